#!/bin/sh
# Makes localhost/bookworm-minbase: Debian's smallest system as a base image, where no container registry can be
# reached. It is what docker.io/library/debian:bookworm-slim is made of. Needs root, debootstrap, podman or buildah.
#
#   containers/base.sh
#   make image BASE_IMAGE=localhost/bookworm-minbase
set -eu

name=localhost/bookworm-minbase:latest
suite=bookworm

refuse() { echo "containers/base.sh: $1" >&2; exit 1; }

engine=""
for each in podman buildah; do command -v "$each" >/dev/null && { engine=$each; break; }; done
[ -n "$engine" ] || refuse "neither podman nor buildah is here; run containers/install.sh"
command -v debootstrap >/dev/null || refuse "debootstrap is not here; run containers/install.sh"
if "$engine" inspect --type image "$name" >/dev/null 2>&1; then echo "$name is there"; exit 0; fi
[ "$(id -u)" -eq 0 ] || refuse "debootstrap needs root"

work=$(mktemp -d /var/tmp/vsr-base-XXXXXX)
trap 'rm -rf "$work"' EXIT
debootstrap --variant=minbase "$suite" "$work/root" >"$work/log" 2>&1 \
    || { tail -n 20 "$work/log" >&2; refuse "debootstrap failed (see above)"; }

# What Debian's own slim images leave out, and what names the machine that built it.
root=$work/root
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/tmp/* \
    "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/info/* "$root"/usr/share/locale/*
rm -f "$root/etc/hostname" "$root/etc/resolv.conf" "$root/etc/machine-id"
cat >"$root/etc/dpkg/dpkg.cfg.d/slim" <<'CONF'
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/man/*
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
CONF

if [ "$engine" = podman ]; then
    tar -C "$root" -cf - . | podman import --quiet --change 'CMD ["/bin/bash"]' - "$name" >/dev/null
else
    container=$(buildah from scratch)
    buildah copy --quiet "$container" "$root" / >/dev/null
    buildah config --cmd '["/bin/bash"]' "$container"
    buildah commit --quiet "$container" "$name" >/dev/null
    buildah rm "$container" >/dev/null
fi
echo "$name"
