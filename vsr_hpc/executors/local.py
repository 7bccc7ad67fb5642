"""Worker processes on this machine, one for each GPU where there are any."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vsr_hpc.errors import BackendError, JobError, MediaError, ModelError, SpaceError, VsrError
from vsr_hpc.run.run import Run
from vsr_hpc.system.interrupts import StopFlag

log = logging.getLogger(__name__)


_POLL_S = 0.25
_CHILD_GRACE_S = 30.0
_ERRORS_BY_CODE: dict[int, type[VsrError]] = {
    each.exit_code: each for each in (JobError, MediaError, ModelError, SpaceError)
}


@dataclass(slots=True)
class _Child:
    place: int
    process: subprocess.Popen[bytes]
    said: IO[bytes]
    starts: int = 1


def run_workers(
    run: Run,
    *,
    workers: int,
    gpus: tuple[int, ...],
    threads: int,
    stop: StopFlag,
    on_tick: Callable[[], None],
) -> None:
    """Start worker processes and keep them running until the run has no work left.

    A worker that dies is started again while shards get done; one that says it cannot go on raises here.
    """
    children = [_start(run, place, gpus, threads) for place in range(workers)]
    limit = 2 + run.plan.job.run.max_attempts
    grace_s = _CHILD_GRACE_S
    try:
        while children and not stop.is_set():
            time.sleep(_POLL_S)
            on_tick()
            children = _survivors(run, children, gpus, threads, limit)
    except KeyboardInterrupt:
        grace_s = 0.0  # the second Ctrl-C
        raise
    finally:
        _end(children, grace_s)
        on_tick()


def start_command(uri: str, log_file: Path) -> subprocess.Popen[bytes]:
    """Start `vsr resume` on a run in a process that outlives this one; what it says goes to `log_file`."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "vsr_hpc", "resume", uri, "--quiet"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def last_words(log_file: Path) -> str:
    """The last line that such a command said; "" where it said nothing."""
    said = log_file.read_text(errors="replace").strip().splitlines()
    return said[-1].removeprefix("vsr: ") if said else ""


def _start(run: Run, place: int, gpus: tuple[int, ...], threads: int, restart: int = 0) -> _Child:
    environment = dict(os.environ)
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = _device(gpus[place % len(gpus)])
    command = [
        sys.executable, "-m", "vsr_hpc", "worker", run.place_uri, "--quiet",
        "--with-parent", str(os.getpid()), "--threads", str(threads),
        "--task", f"{_here()}-{place}", "--restart", str(restart),
    ]  # fmt: skip
    said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=said,
        start_new_session=True,
    )
    return _Child(place=place, process=process, said=said)


def _here() -> str:
    """Unlike any other parent's: in containers, many are process 1."""
    return f"local-{os.uname().nodename}-{os.getpid()}"


def _device(gpu: int) -> str:
    """The n-th of the visible devices, by the name it has in CUDA_VISIBLE_DEVICES."""
    named = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    return named[gpu] if gpu < len(named) else str(gpu)


def _survivors(
    run: Run, children: list[_Child], gpus: tuple[int, ...], threads: int, limit: int
) -> list[_Child]:
    alive = []
    for child in children:
        code = child.process.poll()
        if code is None:
            alive.append(child)
            continue
        said = _last_words(child)
        if code != 0:
            if code in _ERRORS_BY_CODE:
                raise _ERRORS_BY_CODE[code](said or f"a worker ended with code {code}")
            if child.starts >= limit:
                raise BackendError(f"a worker was started {child.starts} times and ended with {code}: {said}")
            log.warning("worker died, starting it again place=%d code=%d said=%s", child.place, code, said)
            reborn = _start(run, child.place, gpus, threads, restart=child.starts)
            reborn.starts = child.starts + 1
            alive.append(reborn)
    return alive


def _last_words(child: _Child) -> str:
    child.said.seek(0)
    with child.said:
        text = child.said.read().decode(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return re.sub(r"^vsr: ", "", "\n".join(lines[-20:]))


def _end(children: list[_Child], grace_s: float) -> None:
    """Let workers drain for so long, then kill them; a Ctrl-C while they do cuts that short."""
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            child.process.send_signal(signal.SIGTERM)
    until = time.monotonic() + grace_s
    try:
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, until - time.monotonic()))
    finally:
        for child in children:
            child.process.kill()
            child.process.wait()
            child.said.close()
