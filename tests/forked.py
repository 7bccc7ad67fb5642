"""The `vsr` command as real processes that start at once, and that can be made to stumble at a chosen place.

Each process is forked from one that has loaded the package and torch, which takes seconds; apart from that it
is `python -m vsr_hpc`. A `Stumble` kills or freezes the process just before or after it changes something in
the world, which is where a fault does most harm; a clock hardly ever meets these moments.
"""

from __future__ import annotations

import atexit
import itertools
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["__main__", "tests.loaded"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Stumble:
    """Kill or freeze a process at the `nth` change whose name contains `word`, just before or after it."""

    how: Literal["kill", "freeze"]
    word: str
    nth: int
    is_after: bool

    def __str__(self) -> str:
        return f"{self.how} {'after' if self.is_after else 'before'} {self.word}#{self.nth}"


@dataclass(slots=True)
class Command:
    """A `vsr` command that runs, or has ended."""

    arguments: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]
    said: Path
    """A file for what it says; the errors go to the same name with `.err`."""
    stumble: Stumble | None = None
    pace_s: float = 0.0
    """The mean of the random pauses before each change."""
    was_killed: bool = False
    was_asked_to_stop: bool = False
    _process: Any = field(init=False)

    def __post_init__(self) -> None:
        self._process = _FORKS.Process(
            target=_become,
            args=(self.arguments, self.folder, self.environment, self.said, self.stumble, self.pace_s),
            daemon=True,
        )
        self._process.start()

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it lives."""
        code: int | None = self._process.exitcode
        return code

    @property
    def is_frozen(self) -> bool:
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state == "T" and self.code is None

    @property
    def is_running(self) -> bool:
        return self.code is None and not self.is_frozen

    @property
    def out(self) -> str:
        return self.said.read_text(errors="replace") if self.said.exists() else ""

    @property
    def err(self) -> str:
        errors = self.said.with_suffix(".err")
        return errors.read_text(errors="replace") if errors.exists() else ""

    def send(self, number: signal.Signals, *, to_group: bool = False) -> None:
        """Send a signal to the process, or to its whole group; nothing happens where it has ended."""
        if self.code is not None:
            return
        self.was_killed |= number == signal.SIGKILL
        self.was_asked_to_stop |= number in (signal.SIGTERM, signal.SIGINT)
        try:
            (os.killpg if to_group else os.kill)(self.pid, number)
        except ProcessLookupError:
            return

    def wait(self, limit_s: float) -> int | None:
        self._process.join(limit_s)
        return self.code


def _become(
    arguments: tuple[str, ...],
    folder: Path,
    environment: Mapping[str, str],
    said: Path,
    stumble: Stumble | None,
    pace_s: float,
) -> None:
    """Turn this fork into the command."""
    os.setsid()
    os.chdir(folder)
    for stream, path in ((1, said), (2, said.with_suffix(".err"))):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
    os.environ.update(environment)
    sys.argv = ["vsr", *arguments]
    _watch_changes(stumble, pace_s)
    from vsr_hpc.cli.main import main

    try:
        main()
    finally:
        atexit._run_exitfuncs()


def _watch_changes(stumble: Stumble | None, pace_s: float) -> None:
    """Pause before each change of a file and each request to S3, and stumble where that was asked for."""
    from botocore.httpsession import URLLib3Session

    met = itertools.count(1)

    def watch(owner: Any, name: str, where: Any) -> None:
        real = getattr(owner, name)

        def watched(*args: Any, **named: Any) -> Any:
            spot = where(*args) + "$"  # so that a word can ask for the end of a name
            time.sleep(random.expovariate(1 / pace_s) if pace_s else 0.0)
            due = stumble if stumble and stumble.word in spot and next(met) == stumble.nth else None
            if due and not due.is_after:
                _fall(due)
            try:
                return real(*args, **named)
            finally:
                if due and due.is_after:
                    _fall(due)

        setattr(owner, name, watched)

    watch(os, "link", lambda source, target: os.fspath(target))
    watch(os, "replace", lambda source, target: os.fspath(target))
    watch(os, "unlink", lambda path, **named: f"delete {os.fspath(path)}")
    watch(URLLib3Session, "send", _request)


def _request(session: object, request: Any) -> str:
    """Reads are named by their method, so that a word for a name only meets what changes the name."""
    path = urlsplit(request.url).path
    return path if request.method in ("PUT", "POST") else f"{request.method}:{path.replace('/', '|')}"


def _fall(stumble: Stumble) -> None:
    os.kill(os.getpid(), signal.SIGKILL if stumble.how == "kill" else signal.SIGSTOP)
