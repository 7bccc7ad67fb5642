#!/bin/sh
# Debian's or Ubuntu's packages that tests use beside Slurm: a chroot for the bootstrap scripts, a browser for the report,
# npm for one linter, and what makes and reads odd media. May be run again: what is there is left alone.
set -eu

packages="debootstrap chromium chromium-driver fonts-inter ffmpeg mkvtoolnix mediainfo libheif-examples"
# Other packages of Node.js than Debian's bring npm along and conflict with Debian's.
command -v npm >/dev/null || packages="$packages nodejs npm"

is_installed() { [ "$(dpkg-query -W -f='${db:Status-Abbrev}' "$1" 2>/dev/null)" = "ii " ]; }

refuse() { echo "tests/install-tools.sh: $1" >&2; exit 1; }

install_packages() {
  command -v apt-get >/dev/null || refuse "no apt-get here; it knows Debian and Ubuntu only"
  missing=""
  for package in $packages; do is_installed "$package" || missing="$missing $package"; done
  if [ -z "$missing" ]; then return; fi
  [ "$(id -u)" -eq 0 ] || refuse "needs root to install$missing"

  apt-get update -q || refuse "apt-get update failed (see above); is there a network?"
  known=""
  for package in $missing; do
    if apt-cache show "$package" >/dev/null 2>&1; then known="$known $package"
    else echo "tests/install-tools.sh: $package is not packaged here; its tests will say what they miss"; fi
  done
  # shellcheck disable=SC2086  # a list of words
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $known || refuse "apt-get failed (see above)"
}

install_packages

# A linter of Amazon States Language, which only npm has; its test says what it misses.
node="$(dirname "$0")/../.venv-node"
if command -v npm >/dev/null && [ ! -x "$node/node_modules/.bin/asl-validator" ]; then
  npm install --silent --no-fund --no-audit --prefix "$node" asl-validator@4.0.0 \
    || echo "tests/install-tools.sh: npm could not install asl-validator; its test will say so"
fi
echo "tests/install-tools.sh: all there"
