"""`make demo`: make a small clip, upscale it with several workers, kill one on the way, verify the output."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from vsr_hpc.bench.made_clip import make_demo_clip
from vsr_hpc.errors import VsrError
from vsr_hpc.run.run import Run
from vsr_hpc.run.status import read_status

_FOLDER = Path("demo")
_WORKERS = 3


def main() -> None:
    """Run the demo in `demo/` below the present folder."""
    shutil.rmtree(_FOLDER, ignore_errors=True)
    _FOLDER.mkdir()
    clip, output = _FOLDER / "clip.mkv", _FOLDER / "bigger.mkv"
    _say(f"making a clip with sound: {clip}")
    make_demo_clip(clip, seconds=12)
    command = [
        "vsr", "upscale", str(clip), str(output), "--scale", "4",
        "--preset", "veryfast", "--workers", str(_WORKERS), "--chunk-s", "1",
    ]  # fmt: skip
    _say("$ " + " ".join(command))
    killer = threading.Thread(target=_kill_one_worker, args=(str(output),), daemon=True)
    killer.start()
    _run(command)
    killer.join(10)
    check = ["vsr", "verify", str(clip), str(output)]
    _say("$ " + " ".join(check))
    _run(check)
    _say(f"done: {output} is {clip}, four times as wide and high, though a worker was killed on the way")


def _kill_one_worker(uri: str) -> None:
    """kill -9 the first worker that is in the middle of a shard, once something is finished."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        time.sleep(0.05)
        try:
            status = read_status(Run.open(uri))
        except VsrError:
            continue
        if status.state == "complete":
            return
        busy = [worker for worker in status.alive if worker.heartbeat.state == "working"]
        if status.shards_done and len(busy) > 1:
            victim = busy[0].heartbeat
            os.kill(victim.pid, signal.SIGKILL)
            _say(f"demo: killed worker {victim.worker} (kill -9) while it worked on shard {victim.shard}")
            return


def _run(command: list[str]) -> None:
    code = subprocess.run([sys.executable, "-m", "vsr_hpc", *command[1:]], check=False).returncode
    if code:
        sys.exit(code)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the demo talks


if __name__ == "__main__":
    main()
