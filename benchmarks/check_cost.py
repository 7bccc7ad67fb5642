"""CPU time of the worker's check beside that of the Compact network: `python benchmarks/check_cost.py`.

Both are counted as CPU seconds of this process. The check is what a worker does besides decoding: reduce both
frames, compare them with the inputs around, look for damage.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vsr_hpc.system.environment import set_thread_policy

set_thread_policy()
import numpy as np
import torch

from benchmarks.random_weights import random_models
from vsr_hpc.media.picture import Colour, Frame, Picture, PixelFormat
from vsr_hpc.models import weights
from vsr_hpc.verification.frame_match import compare
from vsr_hpc.verification.picture_damage import DamageFinder
from vsr_hpc.work.pipeline import CHECKED_PX

SCALE, FRAMES = 4, 12


def picture(width: int, height: int) -> Picture:
    pixel = PixelFormat(name="yuv420p", kind="yuv", depth=8, log2_chroma_w=1, log2_chroma_h=1)
    return Picture(width=width, height=height, pixel=pixel, colour=Colour())


def frames_of(shape: Picture, seed: int, repeats: int) -> list[Frame]:
    """Noise, `repeats` times as large: the costliest content."""
    rng = np.random.default_rng(seed)
    frames = []
    for index in range(FRAMES):
        small = [(high // repeats, wide // repeats) for high, wide in shape.plane_shapes()]
        noise = (rng.integers(16, 236, each).astype(np.uint8) for each in small)
        planes = tuple(plane.repeat(repeats, 0).repeat(repeats, 1) for plane in noise)
        frames.append(Frame(index=index, planes=planes))
    return frames


def cpu_s(work: Callable[[], object], rounds: int) -> float:
    work()
    spent = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return statistics.median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=[640, 360])
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    width, height = asked.size
    was, now = picture(width, height), picture(width * SCALE, height * SCALE)
    inputs, outputs = frames_of(was, 1, 1), frames_of(now, 1, SCALE)

    def check() -> None:
        finder = DamageFinder(was, now, first=0, longest=CHECKED_PX)
        own = [finder.grid.look_at(each, was) for each in inputs]
        made = [finder.grid.look_at(each, now) for each in outputs]
        compare([each.luma for each in own], [each.luma for each in made])
        for one, other in zip(own, made, strict=True):
            finder.add(one, other)
        list(finder.damages())

    with tempfile.TemporaryDirectory(prefix="vsr-check-") as name, torch.inference_mode():
        card, path = random_models(Path(name))["compact"]
        network = weights.open_network(card, path).to(torch.bfloat16).to(memory_format=torch.channels_last)
        sheet = (
            torch.rand(1, 3, height, width).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        )
        network_s = cpu_s(lambda: network(sheet), asked.rounds)
    check_s = cpu_s(check, asked.rounds) / FRAMES
    spent = f"network {network_s * 1000:.0f} ms, check {check_s * 1000:.1f} ms of CPU a frame"
    print(f"{width}x{height} by {SCALE}: {spent}")
    print(f"the check costs {check_s / network_s:.1%} of the network; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
