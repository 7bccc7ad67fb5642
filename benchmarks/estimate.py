"""How near `vsr plan` comes: its estimate for this machine beside the median of real runs, for several jobs.

python -m benchmarks.estimate --jobs 5 --repeat 3      on an idle machine, about five minutes on two cores
python -m benchmarks.estimate --jobs 2 --repeat 1 --seconds 6      a small version
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vsr_hpc.bench.made_clip import make_demo_clip
from vsr_hpc.models.networks import Compact

BAR = 0.25
"""Of the measured time: what an estimate may be off on an idle machine."""


@dataclass(frozen=True)
class Job:
    name: str
    size: tuple[int, int]
    model: str
    options: tuple[str, ...]
    workers: int = 1


_AV1 = ("--size", "960x", "--codec", "av1", "--preset", "10")
JOBS = (
    Job("filter, h264", (640, 360), "bicubic", ("--scale", "2", "--preset", "medium")),
    Job("small network, h264", (320, 180), "compact-small.pth", ("--preset", "veryfast")),
    Job("large network, h265", (160, 90), "compact-large.pth", ("--codec", "h265", "--preset", "fast")),
    Job("filter, av1, 2 workers", (640, 360), "lanczos", _AV1, 2),
    Job("small network, ffv1, 2 workers", (320, 180), "compact-small.pth", ("--codec", "ffv1"), 2),
)  # fmt: skip


def make_networks(folder: Path) -> None:
    """Compact networks of two sizes with random weights: what they compute does not matter for time."""
    torch.manual_seed(0)
    for name, sizes in (("small", (24, 8)), ("large", (64, 16))):
        network = Compact(scale=2, num_feat=sizes[0], num_conv=sizes[1], act_type="prelu")
        for parameter in network.parameters():
            parameter.data *= 0.01  # the picture stays what the shortcut around the network makes of it
        torch.save({"params": network.state_dict()}, folder / f"compact-{name}.pth")


def command(verb: str, job: Job, folder: Path, *more: str) -> list[str]:
    model = str(folder / job.model) if job.model.endswith(".pth") else job.model
    clip = folder / f"{job.size[0]}x{job.size[1]}.mp4"
    base = [sys.executable, "-m", "vsr_hpc", verb, str(clip), str(folder / "out.mkv"), "--model", model]
    chunks = ["--chunk-s", "1.5", "--shard-s", "6", "--workers", str(job.workers)]
    return [*base, *job.options, *chunks, *more]


def estimated(job: Job, folder: Path) -> dict[str, Any]:
    said = subprocess.run(
        command("plan", job, folder, "--json"), stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(said.stdout)["estimate"]["here"]
    return found


def measured(job: Job, folder: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one `vsr submit`, from nothing to the output."""
    began, before = time.perf_counter(), os.times()
    subprocess.run(command("submit", job, folder, "--quiet"), stdout=subprocess.DEVNULL, check=True)
    took, after = time.perf_counter() - began, os.times()
    (folder / "out.mkv").unlink()
    shutil.rmtree(folder / ".vsr/out.mkv")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return took, used


def row(job: Job, folder: Path, repeat: int) -> tuple[str, float]:
    """One line of the table, and how far the estimate, asked for once, is from the median of the runs."""
    guess = estimated(job, folder)["seconds"]
    runs = [measured(job, folder) for _ in range(repeat)]
    times, used = [took for took, _ in runs], statistics.median(used for _, used in runs)
    took = statistics.median(times)
    off = guess["mid"] / took - 1
    spread = f"{min(times):.1f} to {max(times):.1f}"
    is_inside = "yes" if guess["low"] <= took <= guess["high"] else "no"
    cells = (job.name, f"{guess['mid']:.1f}", f"{took:.1f}", spread, f"{used:.1f}", f"{off:+.0%}", is_inside)
    return f"| {' | '.join(cells)} |", off


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=len(JOBS), help="how many of the jobs")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each, of which the median counts")
    parser.add_argument("--seconds", type=float, default=10, help="of each clip")
    asked = parser.parse_args()
    jobs = JOBS[: max(1, asked.jobs)]
    print(f"load before: {os.getloadavg()[0]:.1f} of {len(os.sched_getaffinity(0))} cores\n")
    print("| job | estimated s | measured s (median) | all runs | CPU s | off | in its range |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    offs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_STATE_HOME"] = str(folder / "state")
        make_networks(folder)
        for job in jobs:
            clip = folder / f"{job.size[0]}x{job.size[1]}.mp4"
            if not clip.exists():
                make_demo_clip(clip, seconds=asked.seconds, size=job.size)
            line, off = row(job, folder, asked.repeat)
            print(line, flush=True)
            offs.append(off)
    within = sum(abs(off) <= BAR for off in offs)
    print(f"\n{within} of {len(offs)} within {BAR:.0%}; load after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
