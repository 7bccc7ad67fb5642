"""kill -9 at random moments, then resume, until the run is done: the output must be the undisturbed one.

python -m tests.kills --kills 50 --seed 1        prints one line for each run and a summary
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.clips import numbered_clip
from vsr_hpc.errors import VsrError
from vsr_hpc.run.run import Run
from vsr_hpc.run.status import read_status

_LIMIT_S = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    kills: int
    sha256: str
    redone: int
    """Finished shards that were leased again: must be none."""
    lost: int
    """Leases that ended by a death: what the kills cost."""


def upscale(clip: Path, output: Path, workers: int) -> list[str]:
    return [
        sys.executable, "-m", "vsr_hpc", "upscale", str(clip), str(output), "--model", "bicubic",
        "--scale", "2", "--preset", "veryfast", "--encoder-threads", "1", "--chunk-s", "0.5",
        "--shard-s", "0.001", "--quiet", "--workers", str(workers), "--threads", "2",
    ]  # fmt: skip


def undisturbed(clip: Path, folder: Path) -> str:
    output = folder / "undisturbed.mkv"
    subprocess.run(upscale(clip, output, 1), check=True, timeout=_LIMIT_S)
    done = Run.open(str(output)).done()
    assert done is not None
    return done.sha256


def killed(clip: Path, output: Path, workers: int, kills: int, chance: random.Random) -> Result:
    """Upscale, killing `kills` times a random process of it at a random moment, and call again each time."""
    struck = 0
    until = time.monotonic() + _LIMIT_S
    while time.monotonic() < until:
        process = subprocess.Popen(upscale(clip, output, workers), start_new_session=True)
        try:
            if struck < kills:
                struck += _strike(process, str(output), chance)
            code = process.wait(timeout=_LIMIT_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if code == 0:
            break
    run = Run.open(str(output))
    done = run.done()
    assert done is not None, f"{output}: not done after {struck} kills"
    leases = run.leases()
    receipts = run.receipts()
    redone = sum(leases[f"{each.shard:05d}"].generation > each.generation for each in receipts)
    return Result(
        kills=struck, sha256=done.sha256, redone=redone, lost=sum(each.generation - 1 for each in receipts)
    )


def _strike(process: subprocess.Popen[bytes], uri: str, chance: random.Random) -> int:
    """kill -9 the caller or one of its workers after a random while; 0 where it had ended before."""
    time.sleep(chance.uniform(0.1, 6.0))
    if process.poll() is not None:
        return 0
    victims = [process.pid]
    with contextlib.suppress(VsrError):  # no run yet: the caller is the only process
        victims += [worker.heartbeat.pid for worker in read_status(Run.open(uri)).alive]
    try:
        os.kill(chance.choice(victims), signal.SIGKILL)
    except ProcessLookupError:
        return 0
    return 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = numbered_clip(folder / "clip.mkv", frames=288, size=(320, 180), audio=True)
        wanted = undisturbed(clip, folder)
        kills = lost = runs = 0
        while kills < asked.kills:
            workers = (1, 3)[runs % 2]
            result = killed(clip, folder / f"out-{runs}.mkv", workers, min(4, asked.kills - kills), chance)
            is_same = result.sha256 == wanted
            counts = f"kills={result.kills} lost={result.lost} redone={result.redone}"
            print(
                f"run {runs}: workers={workers} {counts} {'same' if is_same else 'OTHER'} bytes", flush=True
            )
            if not is_same or result.redone:
                sys.exit(1)
            kills, lost, runs = kills + result.kills, lost + result.lost, runs + 1
    print(
        f"{kills} kills in {runs} runs: every output equal to the undisturbed one, {lost} shards lost in hand"
    )


if __name__ == "__main__":
    main()
