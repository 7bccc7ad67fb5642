#!/bin/sh
# Builds the image from this checkout with docker, podman or buildah, whichever works here, and prints its size.
#   containers/build.sh [TAG]          vsr-hpc:cpu by default
# By environment: VARIANT (cpu, cuda), BASE_IMAGE, TORCH_INDEX, WEIGHTS, RUN_AS as in the Dockerfile; PIP_CONF and CA,
# files that only the build sees; ENGINE; ENGINE_OPTIONS, further words for its build command.
set -eu

cd "$(dirname "$0")/.."
variant=${VARIANT:-cpu}
tag=${1:-vsr-hpc:$variant}

refuse() { echo "containers/build.sh: $1" >&2; exit 1; }

works() {
    case $1 in
        docker) docker version --format '{{.Server.Version}}' >/dev/null 2>&1 ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

engine=${ENGINE:-}
if [ -z "$engine" ]; then
    for each in docker podman buildah; do if works "$each"; then engine=$each; break; fi; done
fi
[ -n "$engine" ] || refuse "none of docker, podman, buildah works here; containers/install.sh installs podman"

revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
[ -z "$(git status --porcelain 2>/dev/null)" ] || revision=$revision-changed
created=$(git log -1 --format=%cd --date=format-local:%Y-%m-%dT%H:%M:%SZ 2>/dev/null || echo 1970-01-01T00:00:00Z)
version=$(sed -n 's/^VERSION = "\(.*\)"$/\1/p' vsr_hpc/version.py | head -n 1)

set -- --file containers/Dockerfile --tag "$tag" --build-arg VARIANT="$variant" --build-arg VERSION="$version" \
    --build-arg REVISION="$revision" --build-arg CREATED="$created"
for name in BASE_IMAGE TORCH_INDEX WEIGHTS RUN_AS; do
    if value=$(printenv "$name"); then set -- "$@" --build-arg "$name=$value"; fi
done
if [ -n "${PIP_CONF:-}" ]; then set -- "$@" --secret "id=pip,src=$PIP_CONF"; fi
if [ -n "${CA:-}" ]; then set -- "$@" --secret "id=ca,src=$CA"; fi
case $engine in
    docker) export DOCKER_BUILDKIT=1 ;;
    # Docker's own format: OCI's has no health check. Docker finds the list of what to leave out by its name.
    *) set -- "$@" --format docker --ignorefile containers/Dockerfile.dockerignore ;;
esac
# A base that was made here is in no registry.
case ${BASE_IMAGE:-} in localhost/*) [ "$engine" = docker ] || set -- "$@" --pull-never ;; esac

# shellcheck disable=SC2086  # a list of words
TZ=UTC "$engine" build "$@" ${ENGINE_OPTIONS:-} . >&2
case $engine in
    buildah) size=$(buildah images --format '{{.Size}}' "$tag") ;;
    *) size="$(($("$engine" image inspect --format '{{.Size}}' "$tag") / 1000000)) MB" ;;
esac
echo "$tag: $size"
