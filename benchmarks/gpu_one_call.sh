#!/bin/sh
# On a machine with CUDA, PyTorch and no internet: install the wheels that were carried along, then check and
# time everything. From the repository's root: sh benchmarks/gpu_one_call.sh [RESULTS]
#
# Carried in wheels/ (about 36 MiB; made where there is internet by: sh benchmarks/gpu_one_call.sh --fetch):
# av, pydantic and what it needs, safetensors, submitit, cloudpickle, boto3's chain, typer, rich, pyyaml,
# imageio; and imageio-ffmpeg 0.6.0, realesrgan, basicsr for the usual way where they fit.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
wheels=$root/wheels
if [ "${1:-}" = "--fetch" ]; then
    mkdir -p "$wheels"
    python3 -m pip download --quiet --dest "$wheels" --only-binary :all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --no-deps \
        av pydantic pydantic-core annotated-types typing-inspection typing-extensions safetensors submitit \
        cloudpickle typer click rich markdown-it-py mdurl pygments shellingham annotated-doc pyyaml
    du -sh "$wheels"
    exit 0
fi
results=${1:-${OUT:-$root}/gpu.json}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
if [ -d "$wheels" ]; then
    python3 -m pip install --quiet --no-index --no-deps --target "$place" "$wheels"/*.whl
fi
cd "$root"
# The machine's own packages come first; the carried ones fill the gaps.
PYTHONPATH=$root python3 - "$place" "$results" <<'PYTHON'
import runpy, sys
place, results = sys.argv[1:]
sys.path.append(place)
import os
os.environ["PYTHONPATH"] = os.environ["PYTHONPATH"] + ":" + place
sys.argv = ["gpu.py", "--json", results]
runpy.run_path("benchmarks/gpu.py", run_name="__main__")
PYTHON
