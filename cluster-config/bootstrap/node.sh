#!/bin/bash
# Makes a node of a ParallelCluster ready for vsr_hpc: OnNodeConfigured runs it as root on every boot.
# It may run any number of times, needs no package index, and fails loudly: a node that is not whole must not take work.
#
#   node.sh --role head|gpu|cpu --store s3://BUCKET/PREFIX --region REGION [--spot] [--container IMAGE]
set -Eeuo pipefail
umask 022

readonly home=/opt/vsr            # software
readonly settings=/etc/vsr        # what the packed environment's Python reads when it starts
readonly log=/var/log/vsr-node.log

role='' store='' region='' image='' is_spot=no

say() { printf '%s vsr-node: %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$*" | tee -a "$log" >&2; }

# The node is about to be thrown away: its last words go to the store, where `vsr cluster status` readers find them.
fail() {
  trap - ERR
  say "FAILED: $*"
  if [[ -n $store ]]; then
    aws s3 cp --only-show-errors "$log" "$store/node-failures/$(hostname)-$(date -u +%Y%m%dT%H%M%SZ).log" \
      || say "and the log could not be left in $store/node-failures/"
  fi
  exit 1
}
trap 'fail "line $LINENO: $BASH_COMMAND ended with $?"' ERR

read_arguments() {
  while (($#)); do
    case $1 in
      --role | --store | --region | --container)
        (($# > 1)) || fail "$1 wants a value"
        case $1 in
          --role) role=$2 ;;
          --store) store=${2%/} ;;
          --region) region=$2 ;;
          --container) image=$2 ;;
        esac
        shift 2
        ;;
      --spot)
        is_spot=yes
        shift
        ;;
      *) fail "unknown argument $1" ;;
    esac
  done
  [[ $role =~ ^(head|gpu|cpu)$ ]] || fail "--role is head, gpu or cpu, not '$role'"
  [[ $store =~ ^s3://[a-z0-9-]+/.+$ ]] || fail "--store is s3://BUCKET/PREFIX, not '$store'"
  [[ -n $region ]] || fail "--region is missing"
  export AWS_REGION=$region AWS_DEFAULT_REGION=$region AWS_RETRY_MODE=standard AWS_MAX_ATTEMPTS=10
  export PATH=$PATH:/usr/local/bin:/opt/slurm/bin
  command -v aws >/dev/null || { store=''; fail "this image has no aws command"; }
}

fetch() { aws s3 cp --only-show-errors "$1" "$2" || fail "$1 could not be fetched; did \`vsr cluster pack\` run?"; }

# The environment that `vsr cluster pack` built: named by its sha256, unpacked beside the ones before, then switched to.
install_environment() {
  local flavour=cpu work sum name target
  # With a container the network runs in there; outside only the part that talks to Slurm and the metadata service.
  if [[ $role == gpu && -z $image ]]; then flavour=gpu; fi
  work=$(mktemp -d "$home/.incoming-XXXXXX")
  fetch "$store/environments/$flavour.current" "$work/current"
  read -r sum name <"$work/current" || true
  [[ $sum =~ ^[0-9a-f]{64}$ && $name =~ ^[a-z0-9.-]+$ ]] || fail "environments/$flavour.current is damaged: '$sum $name'"
  target=$home/environments/${sum:0:16}
  if [[ ! -e $target/.complete ]]; then
    fetch "$store/environments/$name" "$work/environment.tar.gz"
    echo "$sum  $work/environment.tar.gz" | sha256sum --check --quiet - >&2 || fail "$name is not what was packed (sha256)"
    mkdir "$work/unpacked"
    tar -xzf "$work/environment.tar.gz" -C "$work/unpacked" --no-same-owner
    "$work/unpacked/bin/vsr" --help >/dev/null || fail "the environment $name does not run here ($(python3 --version))"
    mkdir -p "$home/environments"
    touch "$work/unpacked/.complete"
    rm -rf "$target"
    mv -T "$work/unpacked" "$target"
    say "environment $name installed"
  fi
  rm -rf "$work"
  switch "$target" "$home/current"
  # The head node lives long; a job may still run from the environment before this one.
  find "$home/environments" -mindepth 1 -maxdepth 1 -mtime +30 ! -path "$target" -exec rm -rf {} +
  switch "$home/current/bin/vsr" /usr/local/bin/vsr
}

# A link is replaced in one step: a job that starts in this moment sees the old one or the new one.
switch() {
  ln -sfn "$1" "$2.new"
  mv -T "$2.new" "$2"
}

pull_container() {
  local registry=${image%%/*}
  command -v enroot >/dev/null ||
    fail "--container $image: enroot is not on this image, and jobs run containers by it; use the packed environment"
  local file credentials=$home/.enroot password
  file=$home/containers/$(printf '%s' "$image" | tr -c 'a-zA-Z0-9.-' _).sqsh
  mkdir -p "$home/containers"
  if [[ ! -e $file ]]; then
    rm -rf "$credentials" "$file.new"      # of a run that was killed; enroot writes over no file
    trap 'rm -rf "$home/.enroot"' EXIT
    install -d -m 700 "$credentials"       # nobody else may enter before there is a password in it
    if [[ $registry =~ ^[0-9]{12}\.dkr\.ecr[.-] ]]; then
      password=$(aws ecr get-login-password)
      # enroot reads this name in the folder that ENROOT_CONFIG_PATH names (its src/docker.sh).
      (umask 077; printf 'machine %s login AWS password %s\n' "$registry" "$password" >"$credentials/.credentials")
    fi
    ENROOT_CONFIG_PATH=$credentials enroot import --output "$file.new" "docker://${image/\//#}"
    rm -rf "$credentials"
    mv -T "$file.new" "$file"
  fi
  switch "$file" "$home/container.sqsh"
  say "container $image is here"
}

# The instance's own NVMe where it has one (ParallelCluster mounts it at /scratch), its disk where not.
prepare_scratch() {
  local scratch=/var/tmp/vsr
  mountpoint -q /scratch && scratch=/scratch/vsr
  # Open to every user like /tmp: each keeps a folder of its own in there, mode 0700.
  install -d -m 1777 "$scratch" "$scratch/cache"
  # What root puts here every user reads and nobody changes.
  install -d -m 755 "$scratch/cache/vsr_hpc" "$scratch/cache/vsr_hpc/weights"
  install -d -m 755 "$settings"
  {
    printf 'VSR_NODE_CACHE=%s\nXDG_CACHE_HOME=%s\n' "$scratch" "$scratch/cache"
    printf 'AWS_REGION=%s\nAWS_DEFAULT_REGION=%s\n' "$region" "$region"
  } >"$settings/node.env.new"
  mv -T "$settings/node.env.new" "$settings/node.env"
}

# weights/<sha256>/<file>: so that the first shard does not wait, and no node fetches from the internet.
warm_weights() {
  local cache file sum
  cache=$(sed -n 's/^XDG_CACHE_HOME=//p' "$settings/node.env")/vsr_hpc/weights
  aws s3 sync --only-show-errors "$store/weights/" "$cache/" || fail "the weights could not be fetched"
  for file in "$cache"/*/*; do
    [[ -f $file ]] || continue
    sum=$(basename "$(dirname "$file")")
    if ! echo "$sum  $file" | sha256sum --check --status -; then
      rm -f "$file"
      fail "weights $(basename "$file") are not what their name says (sha256); pack them again"
    fi
    chmod 644 "$file"
  done
}

# Drains this node the moment EC2 announces its end, so that nothing new starts on a machine with two minutes to live.
install_spot_watch() {
  local from=$home/current/share/spot-watch unit=/etc/systemd/system/spot-watch.service is_new=no
  cmp -s "$from/spot_watch.py" "$home/spot-watch/spot_watch.py" || is_new=yes
  cmp -s "$from/spot-watch.service" "$unit" || is_new=yes
  install -D -m 755 "$from/spot_watch.py" "$home/spot-watch/spot_watch.py"
  install -D -m 644 "$from/spot-watch.service" "$unit"
  systemctl daemon-reload
  systemctl enable --quiet spot-watch
  if [[ $is_new == yes ]]; then systemctl restart spot-watch; else systemctl start spot-watch; fi
}

# What the last line of `vsr cluster create` submits; a job file to copy. Nodes have the environment at one place.
write_first_job() {
  cat >"$home/first-job.yaml.new" <<YAML
input: $store/incoming/clip.mp4
output: $store/outgoing/clip.mp4
model: realesr-animevideov3
on: slurm
run:
  location: $store/runs/clip
  workers: 4
slurm:
  partitions: [spot-gpu, ondemand-gpu]
  standby_after_min: 15
  python: $home/current/bin/python
YAML
  if [[ -n $image ]]; then    # without this line a job runs outside, where GPU nodes have no CUDA then
    printf '  container: {runtime: enroot, image: %s/container.sqsh}\n' "$home" >>"$home/first-job.yaml.new"
  fi
  mv -T "$home/first-job.yaml.new" "$home/first-job.yaml"
}

main() {
  read_arguments "$@"
  [[ $EUID -eq 0 ]] || fail "must run as root"
  install -d -m 755 "$home"
  exec 9>"$home/.lock"
  flock -w 600 9 || fail "another run of this script did not end within ten minutes"
  rm -rf "$home"/.incoming-*      # of a run that was killed
  prepare_scratch
  install_environment
  if [[ -n $image && $role == gpu ]]; then pull_container; fi
  if [[ $role == gpu ]]; then warm_weights; fi
  if [[ $role == head ]]; then write_first_job; fi
  if [[ $is_spot == yes ]]; then install_spot_watch; fi
  say "ready: role=$role store=$store spot=$is_spot environment=$(readlink "$home/current") container=${image:-none}"
}

main "$@"
