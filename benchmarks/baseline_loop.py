"""The usual way: Real-ESRGAN's own class, frame by frame, between two ffmpeg pipes. Runs in the environment
that `baseline.py` makes; imports nothing of vsr_hpc.

The loop is ours, modelled on what people run: a child that decodes to raw BGR, `RealESRGANer.enhance` for
each frame with the defaults of the package's video program (no tiles, no padding), a child that encodes. What
the package needs before it runs at all, and nothing else, is patched in `_patch`; PATCHES says it in words.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import json
import resource
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

PATCHES = (
    "torchvision, which basicsr imports for training and for one removed module, is stubbed",
    "the package's and basicsr's __init__ modules (training code) are passed over; the files used are theirs",
    "no GPU: device='cpu' and fp32 are given: half precision is slower there, cuda calls would raise",
)


def main() -> None:
    wanted = _arguments()
    began = time.perf_counter()
    enhance = _upsampler(wanted.weights, wanted.device, is_half=wanted.half, threads=wanted.threads)
    import imageio_ffmpeg

    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    loaded = time.perf_counter()
    frames, first, first_cpu = _loop(wanted, ffmpeg, enhance)
    ended = time.perf_counter()
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = {
        "frames": frames,
        "startup_s": first - began,
        "import_s": loaded - began,
        "startup_cpu_s": first_cpu,
        "steady_s": ended - first,
        "steady_frames": frames - 1,
        "cpu_s": own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
        "peak_mib": (own.ru_maxrss + children.ru_maxrss) / 1024,
        "torch": sys.modules["torch"].__version__,
    }
    print(json.dumps(answer))


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--size", required=True, help="of the clip, WIDTHxHEIGHT")
    parser.add_argument("--rate", required=True)
    parser.add_argument("--start", type=int, default=0, help="first frame")
    parser.add_argument("--frames", type=int, required=True)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    parser.add_argument("--encoder", nargs="*", default=[], help="options for the encoding ffmpeg")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--null", action="store_true", help="encode nothing")
    return parser.parse_args()


def _upsampler(weights: Path, device: str, *, is_half: bool, threads: int) -> Any:
    _patch()
    import torch
    from basicsr.archs.srvgg_arch import SRVGGNetCompact
    from realesrgan.utils import RealESRGANer

    if threads:
        torch.set_num_threads(threads)
    model = SRVGGNetCompact(num_in_ch=3, num_out_ch=3, num_feat=64, num_conv=16, upscale=4, act_type="prelu")
    return RealESRGANer(
        scale=4, model_path=str(weights), model=model, tile=0, tile_pad=10, pre_pad=0, half=is_half,
        device=torch.device(device),
    )  # fmt: skip


def _loop(wanted: Any, ffmpeg: str, upsampler: Any) -> tuple[int, float, float]:
    """Frames done, when the first one was, and the CPU time that this process had taken by then."""
    import numpy as np

    width, height = (int(side) for side in wanted.size.split("x"))
    start_s = wanted.start / float(_fraction(wanted.rate))
    reader = subprocess.Popen(
        [ffmpeg, "-v", "error", "-ss", f"{start_s:.6f}", "-i", str(wanted.clip), "-frames:v",
         str(wanted.frames), "-f", "rawvideo", "-pix_fmt", "bgr24", "-"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    target = ["-f", "null", "-"] if wanted.null else [
        "-c:v", "libx264", "-pix_fmt", "yuv420p",
        *(option.replace("^", "-", 1) for option in wanted.encoder), str(wanted.output),
    ]  # fmt: skip
    writer = subprocess.Popen(
        [ffmpeg, "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "bgr24", "-s",
         f"{width * 4}x{height * 4}", "-r", wanted.rate, "-i", "-", *target],
        stdin=subprocess.PIPE,
    )  # fmt: skip
    assert reader.stdout is not None and writer.stdin is not None
    frames, first, first_cpu, size = 0, time.perf_counter(), 0.0, width * height * 3
    while len(raw := reader.stdout.read(size)) == size:
        picture = np.frombuffer(raw, np.uint8).reshape(height, width, 3)
        bigger, _ = upsampler.enhance(picture, outscale=4)
        if wanted.device != "cpu":
            import torch

            torch.cuda.synchronize()
        writer.stdin.write(bigger.astype(np.uint8).tobytes())
        frames += 1
        if frames == 1:
            first, first_cpu = time.perf_counter(), time.process_time()
    writer.stdin.close()
    if reader.wait() or writer.wait() or not frames:
        sys.exit(f"ffmpeg failed, or no frame was read ({frames} frames)")
    return frames, first, first_cpu


def _fraction(text: str) -> float:
    above, _, below = text.partition("/")
    return float(above) / float(below or 1)


def _patch() -> None:
    """Let the package's two files that matter be imported without its training code."""
    for package in ("basicsr", "basicsr.archs", "basicsr.utils", "realesrgan"):
        spec = importlib.util.find_spec(package) if "." not in package else None
        if spec is not None and spec.submodule_search_locations:
            folder = Path(next(iter(spec.submodule_search_locations)))
        else:
            parent = sys.modules[package.partition(".")[0]]
            folder = Path(parent.__path__[0]) / package.partition(".")[2]
        module = types.ModuleType(package)
        module.__path__ = [str(folder)]
        module.__spec__ = importlib.machinery.ModuleSpec(package, None, is_package=True)
        sys.modules[package] = module
    sys.modules["basicsr.utils"].get_root_logger = lambda *_: None  # type: ignore[attr-defined]
    for name, names in {
        "torchvision": ("ops",),
        "torchvision.ops": ("deform_conv2d",),
        "requests": (),
        "tqdm": ("tqdm",),
        "basicsr.ops": (),
        "basicsr.ops.dcn": ("ModulatedDeformConvPack", "modulated_deform_conv"),
        "basicsr.utils.download_util": ("load_file_from_url",),
    }.items():
        stub = types.ModuleType(name)
        for each in names:
            setattr(stub, each, type(each, (), {}))
        sys.modules.setdefault(name, stub)


if __name__ == "__main__":
    main()
