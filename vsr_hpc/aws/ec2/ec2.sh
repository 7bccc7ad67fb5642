# Starts one container of vsr on this instance, says when it answers, and watches it. cloud-init runs it as root at
# the first boot; the values above are the file's. A container that never answers gives the instance back.
set -Eeuo pipefail
umask 077

readonly metadata=${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}
readonly ping=http://127.0.0.1:$port/ping
export AWS_REGION=$region AWS_DEFAULT_REGION=$region AWS_RETRY_MODE=standard AWS_MAX_ATTEMPTS=10

say() { printf '%s vsr: %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$*" >&2; }

about_me() {
  local token
  token=$(curl -sf --max-time 5 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 300' "$metadata/latest/api/token")
  curl -sf --max-time 5 -H "X-aws-ec2-metadata-token: $token" "$metadata/latest/meta-data/$1"
}

# CONTINUE: this instance counts. ABANDON: the group throws it away and starts another.
answer_hook() {
  aws autoscaling complete-lifecycle-action --auto-scaling-group-name "$group" --lifecycle-hook-name "$hook" \
    --instance-id "$(about_me instance-id)" --lifecycle-action-result "$1"
}

fail() {
  trap - ERR
  say "FAILED: $*"
  docker logs --tail 50 vsr >&2 || say 'no container has run'
  answer_hook ABANDON
  exit 1
}

need() {
  command -v "$1" >/dev/null && return
  say "installing $2"
  if command -v dnf >/dev/null; then dnf install -y "$2"; else apt-get update && apt-get install -y "$2"; fi
}

prepare() {
  need docker docker
  need aws awscli
  need curl curl
  systemctl enable --now docker
  # An image made for ECS would wait for a cluster that is not there.
  if systemctl is-enabled --quiet ecs 2>/dev/null; then systemctl disable --now ecs; fi
  if [[ $image =~ ^[0-9]{12}\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com ]]; then
    aws ecr get-login-password --region "${BASH_REMATCH[1]}" \
      | docker login --username AWS --password-stdin "${image%%/*}"
  fi
  local try
  for try in 1 2 3 4 5; do
    docker pull "$image" && return
    say "pull $try of 5 failed"
    sleep $((try * 5))
  done
  fail "$image cannot be pulled"
}

start() {
  local -a options=(--detach --name vsr --stop-timeout 30 --env-file /dev/fd/3)
  [[ $gpus == yes ]] && options+=(--gpus all)
  if [[ $role == server ]]; then
    options+=(--restart unless-stopped --publish "$port:8080")
  fi
  docker rm --force vsr >/dev/null 2>&1 || true
  docker run "${options[@]}" "$image" "${command[@]}" 3<<<"$environment"
}

await_server() {
  local until=$((SECONDS + startup_s))
  until curl -sf --max-time 3 -o /dev/null "$ping"; do
    ((SECONDS < until)) || fail "no answer at $ping within $startup_s s"
    [[ $(docker inspect --format '{{.State.Status}}' vsr) != exited ]] || fail 'the container has ended'
    sleep 2
  done
  say 'it answers'
}

# The server until the instance goes: two minutes without an answer, and the group replaces the instance; a Spot
# notice, and those who are inside are still answered.
watch_server() {
  local missed=0
  while true; do
    if about_me spot/instance-action >/dev/null 2>&1; then
      say 'Spot takes this instance; draining'
      docker stop vsr
      return
    fi
    if curl -sf --max-time 3 -o /dev/null "$ping"; then missed=0; else missed=$((missed + 1)); fi
    if ((missed >= 24)); then
      say 'the server does not answer any more'
      aws autoscaling set-instance-health --instance-id "$(about_me instance-id)" --health-status Unhealthy
      return
    fi
    sleep 5
  done
}

# A worker until its run has nothing left for it. 75 asks for another try; whatever else it is, the instance goes,
# and the group wants one less. Not so where Spot takes the instance: then the group is to start another.
watch_worker() {
  local code try
  for try in 1 2 3 4 5; do
    code=$(docker wait vsr)
    say "the worker ended with $code"
    if about_me spot/instance-action >/dev/null 2>&1; then
      say 'Spot takes this instance; the group starts another'
      return
    fi
    [[ $code == 75 ]] || break
    sleep $((try * 20))
    docker start vsr
  done
  aws autoscaling terminate-instance-in-auto-scaling-group --instance-id "$(about_me instance-id)" \
    --should-decrement-desired-capacity
}

trap 'fail "line $LINENO: $BASH_COMMAND ended with $?"' ERR
prepare
start
[[ $role == worker ]] || await_server
answer_hook CONTINUE
trap - ERR
set +E
"watch_$role"
