#!/bin/sh
# On a machine with CUDA, PyTorch and no internet: install wheels that were fetched before, then check and time
# everything. From the repository's root: sh benchmarks/gpu_one_call.sh [RESULTS]
#
# They lie in wheels/, fetched where there is internet by: sh benchmarks/gpu_one_call.sh --fetch
# (61 MiB: av, pydantic, safetensors, pyyaml, boto3, pillow and what they need; realesrgan and basicsr for the usual way are
# taken where they are installed already).
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
wheels=$root/wheels
if [ "${1:-}" = "--fetch" ]; then
    mkdir -p "$wheels"
    python3 -m pip download --quiet --dest "$wheels" --only-binary :all: --python-version 3.12 \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        av pydantic safetensors pyyaml boto3 pillow
    du -sh "$wheels"
    exit 0
fi
results=${1:-$root/gpu.json}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
if [ -d "$wheels" ]; then
    python3 -m pip install --quiet --no-index --no-deps --target "$place" "$wheels"/*.whl
fi
cd "$root"
# The machine's own packages come first; the fetched ones fill the gaps.
PYTHONPATH=$root python3 - "$place" "$results" <<'PYTHON'
import runpy, sys
place, results = sys.argv[1:]
sys.path.append(place)
import os
os.environ["PYTHONPATH"] = os.environ["PYTHONPATH"] + ":" + place
sys.argv = ["gpu.py", "--json", results]
runpy.run_path("benchmarks/gpu.py", run_name="__main__")
PYTHON
