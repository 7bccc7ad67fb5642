"""Peak memory of `vsr upscale` for a short and a ten times longer 360p clip: it must not grow with length.

python benchmarks/memory.py [--minutes 1 10]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import av

from vsr_hpc.bench.made_clip import make_demo_clip

_CLIP_S = 6


def repeated(clip: Path, output: Path, times: int) -> None:
    """The clip's video over and over, by copying packets."""
    with av.open(str(output), "w") as long:
        track = None
        for turn in range(times):
            with av.open(str(clip)) as once:
                video = once.streams.video[0]
                track = track or long.add_stream_from_template(video)
                length = round(_CLIP_S / video.time_base)
                for packet in once.demux(video):
                    if packet.dts is not None:
                        packet.pts += turn * length
                        packet.dts += turn * length
                        packet.stream = track
                        long.mux(packet)


def peak_mib(clip: Path, output: Path) -> float:
    """The highest resident size of the process, as the kernel counted it."""
    command = [sys.executable, "-m", "vsr_hpc", "upscale", str(clip), str(output), "--model", "bicubic"]
    command += ["--scale", "2", "--preset", "ultrafast", "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(process.returncode)
    return usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10])
    parser.add_argument("--size", type=int, nargs=2, default=[640, 360])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        once = folder / "once.mp4"
        width, height = asked.size
        make_demo_clip(once, seconds=_CLIP_S, size=(width, height), audio=False)
        for minutes in asked.minutes:
            clip = folder / f"{minutes:g}.mp4"
            repeated(once, clip, round(minutes * 60 / _CLIP_S))
            peak = peak_mib(clip, folder / f"{minutes:g}-x2.mkv")
            print(f"{minutes:5g} min of {width}x{height}: peak {peak:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
