"""Everything there is to know of a GPU in one call of a few minutes: right, how fast, and what bounds it.

    sh benchmarks/gpu_one_call.sh                 on the machine with the GPU: installs the wheels, then this
    python benchmarks/gpu.py --device cpu --tiny  tries the script's own logic, without a GPU

Parts, each within its share of the time: the device's rates; parity with fp32 on the CPU; the network alone
(Compact, RRDB; eager and from a graph) against the measured matrix rate; the pipeline at 480p, 720p and 1080p
x4 with a null and the real encoder; each stage alone; the usual way (Real-ESRGAN's class, if its package is
there). Weights are random where none are given: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from vsr_hpc.system.environment import set_thread_policy

set_thread_policy()
import numpy as np
import torch

from benchmarks.random_weights import random_models
from vsr_hpc.bench.device_rates import matrix_gflops, memory_gb_per_s, network_floor, seconds_of
from vsr_hpc.engine.device_facts import DeviceFacts, device_facts
from vsr_hpc.engine.geometry import output_picture
from vsr_hpc.engine.platform import tune_allocator
from vsr_hpc.engine.settings import UpscaleRequest, resolve_settings
from vsr_hpc.engine.upscaler import Upscaler
from vsr_hpc.media.picture import Frame, Picture
from vsr_hpc.models.cards import Card, Precision

SIZES = {"480p": (854, 480), "720p": (1280, 720), "1080p": (1920, 1080)}


@dataclass(slots=True)
class Report:
    """Rows that are printed at once and kept for the JSON."""

    began: float = field(default_factory=time.monotonic)
    rows: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, value: Any, words: str) -> None:
        self.rows[name] = value
        print(f"[{time.monotonic() - self.began:5.0f} s] {words}", flush=True)


def main() -> None:
    wanted = _arguments()
    report = Report()
    device = torch.device(wanted.device)
    tune_allocator()
    precision: Precision = "fp16" if device.type == "cuda" else "bf16"
    with tempfile.TemporaryDirectory(prefix="vsr-gpu-") as name:
        folder = Path(name)
        models = random_models(folder, wanted.weights, is_tiny=wanted.tiny)
        report.add("machine", _machine(device), str(_machine(device)))
        rates = _rates(report, device, precision, wanted)
        for part in wanted.parts:
            with _guarded(report, part):
                if part == "parity":
                    _parity(report, models, device, precision, wanted)
                elif part == "network":
                    _networks(report, models, device, precision, rates, wanted)
                elif part == "pipeline":
                    _pipelines(report, models["compact"], folder, wanted)
                elif part == "baseline":
                    _baseline(report, models["compact"][1], folder, wanted)
    report.add("seconds", round(time.monotonic() - report.began), "all parts are through")
    if wanted.json:
        wanted.json.parent.mkdir(parents=True, exist_ok=True)
        wanted.json.write_text(json.dumps(report.rows, indent=1, default=str) + "\n")
    failed = report.rows.get("failed", [])
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


@contextmanager
def _guarded(report: Report, part: str) -> Iterator[None]:
    """A part that fails is said and counted; the others still run, since the machine is lent for minutes."""
    try:
        yield
    except Exception as exc:
        report.rows.setdefault("failed", []).append(part)
        print(f"FAILED {part}: {type(exc).__name__}: {exc}", flush=True)
        if os.environ.get("VSR_TRACE"):
            raise


def _machine(device: torch.device) -> dict[str, Any]:
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)),
    }
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        found |= {"gpu": facts.name, "memory_gib": round(facts.total_memory / 2**30)}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found


def _rates(
    report: Report, device: torch.device, precision: Precision, wanted: argparse.Namespace
) -> tuple[float, float]:
    side, size = (256, 8 << 20) if wanted.tiny else (None, None)
    kinds: tuple[Precision, ...] = ("fp16", "bf16") if device.type == "cuda" else ("bf16",)
    rates = {each: matrix_gflops(device, each, side) for each in kinds}
    bandwidth = memory_gb_per_s(device, size)
    shown = ", ".join(f"{each} {rate / 1e3:.1f} TFLOP/s" for each, rate in rates.items())
    report.add("rates", {**rates, "memory_gb_per_s": bandwidth}, f"{shown}, memory {bandwidth:.0f} GB/s")
    return rates[precision], bandwidth


def _facts(device: torch.device) -> DeviceFacts:
    return device_facts("cuda" if device.type == "cuda" else "cpu")


def _upscaler(
    model: tuple[Card, Path],
    size: tuple[int, int],
    device: DeviceFacts,
    precision: Precision,
    *,
    batch: int | None = None,
) -> tuple[Upscaler, Picture]:
    shown = _picture(size)
    request = UpscaleRequest(precision=precision, batch=batch)
    settings = resolve_settings(request, model[0], shown, device)
    out = output_picture(shown, settings.width, settings.height, shown.pixel)
    return Upscaler(*model, shown, out, settings, threads=len(os.sched_getaffinity(0))), shown


def _picture(size: tuple[int, int]) -> Picture:
    from vsr_hpc.media.picture import Colour
    from vsr_hpc.media.pixels import pixel_format

    return Picture(
        width=size[0],
        height=size[1],
        pixel=pixel_format("yuv420p"),
        colour=Colour(matrix=1, is_range_tagged=True),
    )


def _frames(shown: Picture, count: int) -> list[Frame]:
    """Smooth moving pictures with some noise: what cameras give, and never constant."""
    found = []
    for index in range(count):
        dice = np.random.default_rng(index)
        planes = []
        for height, width in shown.plane_shapes():
            y, x = np.mgrid[0:height, 0:width]
            wave = 128 + 80 * np.sin(x / 17 + index) * np.cos(y / 11) + dice.normal(0, 6, (height, width))
            planes.append(np.clip(wave, 16, 235).astype(np.uint8))
        found.append(Frame(index=index, planes=tuple(planes)))
    return found


def _clip(path: Path, size: tuple[int, int], count: int) -> Path:
    """An H.264 clip of such frames; two dozen different ones over and over, since they take time to draw."""
    from fractions import Fraction

    from vsr_hpc.media.encode.encoding import VideoRequest
    from vsr_hpc.media.encode.resolution import resolve_encoding
    from vsr_hpc.media.encode.segment_writer import SegmentWriter

    shown = _picture(size)
    encoding = resolve_encoding(VideoRequest(codec="h264", preset="veryfast", crf=18, threads=4), shown)
    frames = _frames(shown, min(count, 24))
    with SegmentWriter(path, encoding, shown, time_base=Fraction(1, 24)) as writer:
        for index in range(count):
            writer.write(frames[index % len(frames)])
        writer.close()
    return path


def _parity(
    report: Report,
    models: dict[str, tuple[Card, Path]],
    device: torch.device,
    precision: Precision,
    wanted: argparse.Namespace,
) -> None:
    """The device's pictures against fp32 on the CPU; batches, lanes and repeats against each other."""
    cpu = DeviceFacts(kind="cpu", name="cpu", memory_gib=4, has_fast_bf16=False, has_fast_fp16=False)
    size = (64, 48) if wanted.tiny else (160, 96)
    for key in ("compact", "rrdb"):
        fast, shown = _upscaler(models[key], size, _facts(device), precision, batch=4)
        fast._has_path = True  # on a CPU the same way is taken, to try it
        plain, _ = _upscaler(models[key], size, cpu, "fp32")
        frames = _frames(shown, 6)
        made, again, reference = fast(frames), fast(frames), plain(frames)
        pairs = [(a, b) for one, other in zip(made, reference, strict=True) for a, b in _planes(one, other)]
        psnr = min(_psnr(a, b) for a, b in pairs)
        is_same = all(
            np.array_equal(a, b) for one, two in zip(made, again, strict=True) for a, b in _planes(one, two)
        )
        one_by_one = [frame for each in frames for frame in fast([each])]
        is_alike = all(
            np.array_equal(a, b)
            for one, two in zip(made, one_by_one, strict=True)
            for a, b in _planes(one, two)
        )
        is_graph = fast.device_path is not None and fast.device_path.is_graph
        report.add(
            f"parity {key}",
            {"psnr": psnr, "repeats": is_same, "batching": is_alike, "graph": is_graph},
            f"parity {key}: worst plane {psnr:.1f} dB to fp32; repeated {_same(is_same)}; "
            f"one by one {_same(is_alike)}; graph {'captured' if is_graph else 'not used'}",
        )
        if psnr < 50 or not is_same or not is_alike or (device.type == "cuda" and not is_graph):
            raise RuntimeError(f"{key}: not the same pictures, or no graph")


def _planes(one: Frame, other: Frame) -> list[tuple[Any, Any]]:
    return list(zip(one.planes, other.planes, strict=True))


def _psnr(one: Any, other: Any) -> float:
    error = float(((one.astype(float) - other.astype(float)) ** 2).mean())
    return 99.0 if not error else float(10 * np.log10(255**2 / error))


def _same(is_same: bool) -> str:
    return "equal" if is_same else "DIFFERENT"


def _networks(
    report: Report,
    models: dict[str, tuple[Card, Path]],
    device: torch.device,
    precision: Precision,
    rates: tuple[float, float],
    wanted: argparse.Namespace,
) -> None:
    """Each network on tensors that lie on the device: eager, and replayed from a graph."""
    plan = {"compact": (1280, 720), "compact32": (1280, 720), "rrdb": (640, 360)}
    for key, size in plan.items():
        size = (64, 48) if wanted.tiny else size
        upscaler, _ = _upscaler(models[key], size, _facts(device), precision)
        run = upscaler.network_pass()
        eager = statistics.median(seconds_of(run, device, rounds=2 if wanted.tiny else 7)) / upscaler.batch
        replayed = _replayed(run, device) / upscaler.batch if device.type == "cuda" else None
        best = min(eager, replayed or eager)
        assert upscaler.network is not None
        floor = network_floor(models[key][0], upscaler.network, size, gflops=rates[0], gb_per_s=rates[1])
        share = floor.operations_s / best
        words = (
            f"network {key} {size[0]}x{size[1]} batch {upscaler.batch}: {1 / best:.1f} frames/s "
            f"(eager {1 / eager:.1f}), {floor.operations / best / 1e12:.1f} TFLOP/s = {share:.0%} of the "
            f"measured matrix rate; layers' bytes alone would take {floor.layers_s / best:.0%} of the time"
        )
        values = {"fps": 1 / best, "eager_fps": 1 / eager, "share": share, "batch": upscaler.batch}
        report.add(f"network {key}", values, words)
        _profile(report, key, run, device)
        del upscaler, run
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _replayed(run: Any, device: torch.device) -> float:
    stream: Any = torch.cuda.Stream(device)
    graph: Any = torch.cuda.CUDAGraph()
    with torch.inference_mode():
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            run()
        return statistics.median(seconds_of(graph.replay, device, rounds=7))


def _profile(report: Report, key: str, run: Any, device: torch.device) -> None:
    """Where a pass spends its device time, by kind of kernel: says what a fused kernel could win."""
    if device.type != "cuda":
        return  # a CPU's times are the host's
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        run()
        torch.cuda.synchronize()
    spent: dict[str, float] = {}
    for each in found.key_averages():
        if each.key.startswith("aten::"):
            spent[each.key] = spent.get(each.key, 0.0) + each.self_device_time_total
    total = sum(spent.values()) or 1.0
    rows = sorted(spent.items(), key=lambda row: -row[1])[:6]
    report.add(
        f"kernels {key}",
        dict(rows),
        f"  {key}'s device time: " + ", ".join(f"{name} {value / total:.0%}" for name, value in rows),
    )


def _pipelines(report: Report, model: tuple[Card, Path], folder: Path, wanted: argparse.Namespace) -> None:
    """From file to file, and each stage alone, by what `vsr bench` measures."""
    from vsr_hpc.bench.speed import measure

    sizes = {"tiny": (96, 64)} if wanted.tiny else SIZES
    frames = {"480p": 240, "720p": 160, "1080p": 96}
    for name, size in sizes.items():
        count = frames.get(name, 8)
        clip = _clip(folder / f"{name}.mp4", size, count)
        for has_encoder in (False, True):
            if time.monotonic() - report.began > wanted.budget_s * 0.8:
                report.add(f"pipeline {name}", None, f"pipeline {name}: left out, the time is nearly up")
                continue
            video: dict[str, object] = {"preset": "veryfast", "crf": 20, "threads": 8}
            found = measure(
                str(model[1]),
                clip=clip,
                picture={},
                video=video,
                frames=count,
                rounds=2,
                has_encoder=has_encoder,
            )
            profile = found.profile
            stages = ", ".join(f"{each} {1 / s:.1f}" for each, s in profile.stage_seconds.items())
            bound = max(profile.stage_seconds, key=lambda stage: profile.stage_seconds[stage])
            words = (
                f"pipeline {name} x4 {'x264 veryfast' if has_encoder else 'null encoder'}: "
                f"{profile.pipeline_fps:.1f} frames/s, {profile.pipeline_fps / found.slowest_fps:.0%} of the "
                f"slowest stage alone ({bound}); network {profile.network_fps or 0:.1f}, alone: {stages}"
            )
            key = f"pipeline {name} {'x264' if has_encoder else 'null'}"
            report.add(key, {**profile.model_dump(mode="json"), "slowest_fps": found.slowest_fps}, words)


def _baseline(report: Report, weights: Path, folder: Path, wanted: argparse.Namespace) -> None:
    """The usual way at 720p on the same GPU, one process and several; only where its packages are there."""
    missing = [name for name in ("basicsr", "realesrgan") if importlib.util.find_spec(name) is None]
    if missing:  # looked for, not imported: their imports are broken on most machines, the loop patches them
        report.add("baseline", None, f"the usual way: {' and '.join(missing)} not installed, left out")
        return
    size = (96, 64) if wanted.tiny else SIZES["720p"]
    frames = 6 if wanted.tiny else 64
    clip = _clip(folder / "usual.mp4", size, frames)
    for count in (1,) if wanted.tiny else (1, 2, 4):
        if time.monotonic() - report.began > wanted.budget_s * 0.9:
            report.add(f"baseline x{count}", None, f"the usual way x{count}: left out, the time is nearly up")
            continue
        share = frames // count
        parts = [
            subprocess.Popen(
                [
                    sys.executable, str(HERE / "baseline_loop.py"), str(clip), str(folder / f"usual{i}.mp4"),
                    "--weights", str(weights), "--size", f"{size[0]}x{size[1]}", "--rate", "24", "--start",
                    str(i * share), "--frames", str(share), "--device", wanted.device,
                    *(["--half"] if wanted.device == "cuda" else []), "--null",
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            for i in range(count)
        ]  # fmt: skip
        said = [part.communicate()[0] for part in parts]
        if any(part.returncode for part in parts):
            raise RuntimeError("the usual way failed, see above")
        made = [json.loads(text.splitlines()[-1]) for text in said]
        fps = sum(each["steady_frames"] for each in made) / max(each["steady_s"] for each in made)
        report.add(
            f"baseline x{count}", fps, f"the usual way, {count} processes, null encoder: {fps:.2f} frames/s"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small everything: tries the script itself")
    parser.add_argument("--weights", type=Path, help="of the Compact network; random ones if left out")
    every = ["parity", "network", "pipeline", "baseline"]
    parser.add_argument("--parts", nargs="*", default=every, choices=every)
    parser.add_argument("--budget-s", type=float, default=450)
    parser.add_argument("--json", type=Path, help="write all figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
