#!/bin/sh
# Install Debian's or Ubuntu's packages for a real Slurm on this machine (slurm/dev-cluster). Starts no daemon and
# may be run again: what is there is left alone.
#   slurm/install.sh          munge and Slurm
#   slurm/install.sh --full   also slurmdbd and MariaDB, for the cluster with accounting
set -eu

packages="slurm-wlm slurmctld slurmd slurm-client munge iproute2"
case "${1:-}" in
    "") ;;
    --full) packages="$packages slurmdbd mariadb-server" ;;
    *) echo "slurm/install.sh: unknown argument $1; it takes --full or nothing" >&2; exit 2 ;;
esac

is_installed() { [ "$(dpkg-query -W -f='${db:Status-Abbrev}' "$1" 2>/dev/null)" = "ii " ]; }

refuse() { echo "slurm/install.sh: cannot install Slurm: $1" >&2; exit 1; }

command -v apt-get >/dev/null || refuse "no apt-get here; it knows Debian and Ubuntu only"

missing=""
for package in $packages; do is_installed "$package" || missing="$missing $package"; done
if [ -z "$missing" ]; then echo "slurm/install.sh: all there"; exit 0; fi

sudo=""
if [ "$(id -u)" -ne 0 ]; then
    if ! sudo -n true 2>/dev/null; then refuse "needs root; run: sudo slurm/install.sh ${1:-}"; fi
    sudo="sudo -n"
fi

# The packages would start their services. A policy that says no, as long as apt runs.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '$sudo rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
    $sudo chmod 755 "$policy"
fi

$sudo apt-get update -q || refuse "apt-get update failed (see above); is there a network?"
# shellcheck disable=SC2086  # a list of words
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing ||
    refuse "apt-get install$missing failed (see above)"
