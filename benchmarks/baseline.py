"""Side by side: vsr, Real-ESRGAN's own class between ffmpeg pipes, and plain `ffmpeg -vf scale`.

    python benchmarks/baseline.py --weights realesr-animevideov3.pth                 600 frames, 5 rounds
    python benchmarks/baseline.py --weights realesr-animevideov3.pth --frames 60 --rounds 3

Same clip, weights, encoder (x264) with the same preset, quality and threads, same cores. Rounds are
interleaved: one run of each, then the next round. Frames per second leave the start-up out; it is reported
apart. The usual way's environment is made once, from PyPI, in `~/.cache/vsr_hpc/baseline`; see
`baseline_loop.py` for its patches.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

HERE = Path(__file__).resolve().parent
ENVIRONMENT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vsr_hpc" / "baseline"
PINS = ("realesrgan==0.3.0", "basicsr==1.4.2", "imageio-ffmpeg==0.6.0", "opencv-python-headless")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One run of one contestant from file to file."""

    fps: float
    """After the first frame."""
    startup_s: float
    wall_s: float
    cpu_s: float
    """Of a frame: all processes, start-up left out."""
    peak_mib: float


def main() -> None:
    wanted = _arguments()
    python = _environment(wanted.torch)
    with tempfile.TemporaryDirectory(prefix="vsr-baseline-") as name:
        folder = Path(name)
        clip = wanted.clip or _clip(folder, wanted.frames)
        case = Case(wanted, clip, folder, python)
        contestants = _contestants(case)
        found: dict[str, list[Pass]] = {each: [] for each in contestants}
        loads = []
        began = time.monotonic()
        for number in range(wanted.rounds):
            if number and time.monotonic() - began > wanted.minutes * 60:
                _say(f"the time is up after {number} rounds")
                break
            for each, run in contestants.items():
                found[each].append(run())
                loads.append(os.getloadavg()[0])
                _say(f"round {number + 1} {each}: {_shown(found[each][-1])}")
        distances = {each: case.distance(each) for each in contestants if each != "ffmpeg lanczos"}
        _report(case, found, distances, loads)


class Case:
    """What all contestants share."""

    def __init__(self, wanted: Any, clip: Path, folder: Path, python: Path) -> None:
        self.wanted, self.clip, self.folder, self.python = wanted, clip, folder, python
        with av.open(str(clip)) as container:
            stream = container.streams.video[0]
            self.size = (stream.width, stream.height)
            self.rate = str(stream.average_rate)
            self.colour = stream.codec_context.colorspace
        self.frames = wanted.frames
        self.ffmpeg = _output([str(python), "-c", "import imageio_ffmpeg as f; print(f.get_ffmpeg_exe())"])

    def output(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '-')}.mp4"

    def encoder(self) -> list[str]:
        threads = str(self.wanted.encoder_threads)
        return ["^preset", self.wanted.preset, "^crf", str(self.wanted.crf), "^threads", threads]

    def vsr(self) -> Pass:
        output, run = self.output("vsr"), self.folder / "run"
        startup = self._vsr(1, output, run)
        whole = self._vsr(self.frames, output, run)
        frames = self.frames - 1
        return Pass(
            fps=frames / (whole[0] - startup[0]),
            startup_s=startup[0],
            wall_s=whole[0],
            cpu_s=(whole[1] - startup[1]) / frames,
            peak_mib=whole[2],
        )

    def _vsr(self, frames: int, output: Path, run: Path) -> tuple[float, float, float]:
        """(wall seconds, CPU seconds, peak MiB) of `vsr upscale` from process to file."""
        command = [
            sys.executable, "-m", "vsr_hpc", "upscale", str(self.clip), str(output), "--model",
            str(self.wanted.weights.resolve()), "--preset", self.wanted.preset, "--crf", str(self.wanted.crf),
            "--encoder-threads", str(self.wanted.encoder_threads), "--frames", str(frames), "--overwrite",
            "--run", str(run), "--new", "--quiet",
        ]  # fmt: skip
        return _timed(command)

    def usual(self, processes: int) -> Pass:
        """Real-ESRGAN's way; several processes take equal parts of the clip, as its own program does."""
        began = time.perf_counter()
        share = -(-self.frames // processes)
        parts = [(i * share, min(self.frames, (i + 1) * share)) for i in range(processes)]
        with ThreadPoolExecutor(processes) as pool:
            made = list(pool.map(lambda part: self._usual(part, processes), enumerate(parts)))
        wall = time.perf_counter() - began
        startup = max(each["startup_s"] for each in made)
        steady = max(each["steady_s"] for each in made)
        frames = sum(each["steady_frames"] for each in made)
        return Pass(
            fps=frames / steady,
            startup_s=startup,
            wall_s=wall,
            cpu_s=sum(each["cpu_s"] - each["startup_cpu_s"] for each in made) / frames,
            peak_mib=sum(each["peak_mib"] for each in made),
        )

    def _usual(self, part: tuple[int, tuple[int, int]], processes: int) -> dict[str, float]:
        number, (start, stop) = part
        threads = max(1, len(os.sched_getaffinity(0)) // processes)
        output = self.output(f"usual x{processes}" + (f" part{number}" if number else ""))
        said = _output(
            [
                str(self.python), str(HERE / "baseline_loop.py"), str(self.clip), str(output), "--weights",
                str(self.wanted.weights), "--size", f"{self.size[0]}x{self.size[1]}", "--rate", self.rate,
                "--start", str(start), "--frames", str(stop - start), "--threads",
                "0" if processes == 1 else str(threads), "--encoder", *self.encoder(),
            ]
        )  # fmt: skip
        found: dict[str, float] = json.loads(said.splitlines()[-1])
        return found

    def plain(self) -> Pass:
        """FFmpeg's own filter: the speed of doing nothing clever."""
        output = self.output("ffmpeg lanczos")
        command = [
            self.ffmpeg, "-v", "error", "-y", "-i", str(self.clip), "-frames:v", str(self.frames), "-vf",
            f"scale={self.size[0] * 4}:{self.size[1] * 4}:flags=lanczos", "-c:v", "libx264", "-pix_fmt",
            "yuv420p", *(each.replace("^", "-", 1) for each in self.encoder()), str(output),
        ]  # fmt: skip
        wall, cpu, peak = _timed(command)
        return Pass(
            fps=self.frames / wall, startup_s=0.0, wall_s=wall, cpu_s=cpu / self.frames, peak_mib=peak
        )

    def distance(self, name: str, frames: int = 8) -> float:
        """Mean PSNR of the first frames' RGB against the same network in plain float from exact RGB."""
        wanted = _float_reference(self.clip, self.wanted.weights, frames)
        shown = _rgb(self.output(name), frames)
        errors = [np.mean((one - other) ** 2) for one, other in zip(shown, wanted, strict=True)]
        return float(np.mean([10 * np.log10(1 / error) for error in errors]))


def _contestants(case: Case) -> dict[str, Callable[[], Pass]]:
    found: dict[str, Callable[[], Pass]] = {"vsr": case.vsr}
    for count in case.wanted.processes:
        found[f"usual x{count}"] = lambda count=count: case.usual(count)
    found["ffmpeg lanczos"] = case.plain
    return found


def _float_reference(clip: Path, weights: Path, frames: int) -> list[Any]:
    """What the network makes in fp32 of frames whose colour was converted in float; RGB in [0, 1]."""
    import itertools

    import torch

    from vsr_hpc.engine.colour import Coding
    from vsr_hpc.media.clip.probe import probe_clip
    from vsr_hpc.media.clip.reader import read_segment
    from vsr_hpc.media.source import local_source
    from vsr_hpc.models.cards import find_card
    from vsr_hpc.models.networks import build
    from vsr_hpc.models.weights import load

    card = find_card(str(weights))
    network = build(card)
    network.load_state_dict(load(weights, card))
    coding = Coding(probe_clip(local_source(clip)).picture)
    found = []
    with torch.inference_mode():
        for frame in itertools.islice(read_segment(clip), frames):
            planes = [torch.from_numpy(plane.astype(np.float32))[None] for plane in frame.planes]
            found.append(network(coding.to_rgb(planes).clamp(0, 1)).clamp(0, 1)[0].numpy())
    return found


def _rgb(path: Path, frames: int) -> list[Any]:
    """The first frames of a file as RGB in float, converted with the file's own tags."""
    import itertools

    import torch

    from vsr_hpc.engine.colour import Coding
    from vsr_hpc.media.clip.probe import probe_clip
    from vsr_hpc.media.clip.reader import read_segment
    from vsr_hpc.media.source import local_source

    coding = Coding(probe_clip(local_source(path)).picture)
    return [
        coding.to_rgb([torch.from_numpy(plane.astype(np.float32))[None] for plane in frame.planes])[0]
        .clamp(0, 1)
        .numpy()
        for frame in itertools.islice(read_segment(path), frames)
    ]


def _timed(command: list[str]) -> tuple[float, float, float]:
    """(wall seconds, CPU seconds, peak MiB) of a process and its children."""
    program = (
        "import resource, subprocess, sys, time, json; began = time.perf_counter(); "
        "none = subprocess.DEVNULL; "
        "code = subprocess.run(sys.argv[1:], stdin=none, stdout=none).returncode; "
        "wall = time.perf_counter() - began; used = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "print(json.dumps([code, wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))"
    )
    code, wall, cpu, peak = json.loads(_output([sys.executable, "-c", program, *command]))
    if code:
        sys.exit(f"failed: {' '.join(command)}")
    return wall, cpu, peak


def _output(command: list[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def _environment(torch: str | None) -> Path:
    """The usual way's Python, with the same torch as ours; made at the first call."""
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / "complete"
    if stamp.exists():
        return python
    _say(f"making {ENVIRONMENT}")
    version = torch or importlib.metadata.version("torch").partition("+")[0]
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, "setuptools", "wheel", f"torch=={version}", "numpy"], check=True)
    subprocess.run([*install, "--no-deps", "--no-build-isolation", *PINS], check=True)
    stamp.touch()
    return python


def _clip(folder: Path, frames: int) -> Path:
    from vsr_hpc.bench.made_clip import make_demo_clip

    return make_demo_clip(folder / "clip.mp4", seconds=frames / 24, audio=False)


def _report(
    case: Case, found: dict[str, list[Pass]], distances: dict[str, float], loads: list[float]
) -> None:
    print(f"{_machine()}; load while measuring {min(loads):.1f} to {max(loads):.1f}")
    print(
        f"{case.clip.name}: {case.frames} frames {case.size[0]}x{case.size[1]} x4, x264 {case.wanted.preset} "
        f"crf {case.wanted.crf} on {case.wanted.encoder_threads} threads; "
        f"{len(found['vsr'])} interleaved rounds"
    )
    print("| | frames/s | CPU s per frame | start-up s | peak MiB | dB to float |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, passes in found.items():
        values = {key: _median(passes, key) for key in ("fps", "cpu_s", "startup_s", "peak_mib")}
        distance = f"{distances[name]:.2f}" if name in distances else ""
        print(
            f"| {name} | {values['fps']:.2f} | {values['cpu_s']:.3f} | {values['startup_s']:.1f} "
            f"| {values['peak_mib']:.0f} | {distance} |"
        )
    for name in found:
        if name.startswith("usual"):
            pairs = list(zip(found["vsr"], found[name], strict=True))
            fps = [ours.fps / theirs.fps for ours, theirs in pairs]
            wall = [theirs.wall_s / ours.wall_s for ours, theirs in pairs]
            cpu = [theirs.cpu_s / ours.cpu_s for ours, theirs in pairs]
            print(
                f"vsr against {name}: {statistics.median(fps):.2f} times the frames per second "
                f"(pairs {min(fps):.2f} to {max(fps):.2f}), {statistics.median(wall):.2f} times with "
                f"start-up, {statistics.median(cpu):.2f} times less CPU time per frame"
            )


def _median(passes: list[Pass], key: str) -> float:
    return statistics.median(getattr(each, key) for each in passes)


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    versions = ", ".join(f"{each} {importlib.metadata.version(each)}" for each in ("torch", "av"))
    return f"{name}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, {versions}"


def _shown(one: Pass) -> str:
    return f"{one.fps:.2f} fps, {one.cpu_s:.3f} CPU s per frame, start-up {one.startup_s:.1f} s"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="realesr-animevideov3.pth")
    parser.add_argument("--clip", type=Path, help="a constant-rate clip; made up if left out")
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=240, help="begin no further round after these")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2], help="of the usual way")
    parser.add_argument("--preset", default="medium")
    parser.add_argument("--crf", type=int, default=23)
    parser.add_argument("--encoder-threads", type=int, default=2)
    parser.add_argument("--torch", help="version for the usual way's environment; ours by default")
    return parser.parse_args()


if __name__ == "__main__":
    main()
