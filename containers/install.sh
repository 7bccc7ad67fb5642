#!/bin/sh
# Debian's or Ubuntu's packages that `make image` and its tests use where there is no docker: buildah and podman with
# runc, debootstrap for a base image without a registry. May be run again: what is there is left alone.
set -eu

packages="buildah podman runc debootstrap"

is_installed() { [ "$(dpkg-query -W -f='${db:Status-Abbrev}' "$1" 2>/dev/null)" = "ii " ]; }

refuse() { echo "containers/install.sh: $1" >&2; exit 1; }

command -v apt-get >/dev/null || refuse "no apt-get here; it knows Debian and Ubuntu only"
missing=""
for package in $packages; do is_installed "$package" || missing="$missing $package"; done
if [ -z "$missing" ]; then echo "containers/install.sh: all there"; exit 0; fi
[ "$(id -u)" -eq 0 ] || refuse "needs root to install$missing"

apt-get update -q || refuse "apt-get update failed (see above); is there a network?"
# shellcheck disable=SC2086  # a list of words
DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing || refuse "apt-get failed (see above)"
