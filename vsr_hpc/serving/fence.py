"""Small processes that read what clients send, each within bounds of memory, time and files.

A body that is made to hurt ends the process that reads it, and nobody else's request: its client is refused,
and another process takes the place. What comes back is JSON, and planes of the size that the JSON says.
Nothing that such a process sends is unpickled or run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vsr_hpc.media.picture import Picture, Plane
from vsr_hpc.media.stills.metadata import StillMeta
from vsr_hpc.serving.deadline import RequestDeadline
from vsr_hpc.serving.limits import Limits
from vsr_hpc.serving.reading import MOST_LINE_BYTES, Reading, StillRead, Task
from vsr_hpc.serving.refusals import Refusal
from vsr_hpc.serving.request import Content
from vsr_hpc.work.pipeline import Stopped

log = logging.getLogger(__name__)

_START_S = 60.0
_GROWTH_BYTES = 64 << 20
_BYTES_PER_PIXEL = 14
_MOST_BODY_BYTES = 256 << 20
"""What a process may take to read a body: so much, so much for each pixel that is allowed, and the body."""


class Fence:
    """The processes. Threads may share it."""

    def __init__(self, count: int, limits: Limits) -> None:
        self._limits = limits
        body_bytes = min(limits.payload_bytes, _MOST_BODY_BYTES)
        self._growth_bytes = _GROWTH_BYTES + _BYTES_PER_PIXEL * limits.pixels_in + body_bytes
        self._free: queue.LifoQueue[_Reader | None] = queue.LifoQueue()
        self._is_closed = threading.Event()
        for _ in range(count):
            self._free.put(None)

    def start(self) -> None:
        """Have every process there before the first request needs it."""
        taken = [self._free.get() for _ in range(self._free.qsize())]
        for each in taken:
            self._free.put(each or _Reader(self._growth_bytes))

    def read_still(
        self, content: Content, body: bytes, patience: RequestDeadline
    ) -> tuple[Picture, tuple[Plane, ...], StillMeta | None]:
        """The picture in a body. Refusal where it is too large, damaged, or takes too much to read."""
        task = Task(content=content, pixels_in=self._limits.pixels_in, size_bytes=len(body))
        found, planes = self._ask(task, body, patience)
        if found is None:
            raise Refusal(422, "media", "the body is no picture")
        return found.picture, planes, found.meta

    def look_at_clip(self, content: Content, path: Path, patience: RequestDeadline) -> None:
        """Open a clip where that can hurt nobody; Refusal where its container says too much."""
        limits = self._limits
        task = Task(content=content, pixels_in=limits.pixels_in, path=str(path), clip_s=limits.clip_s)
        self._ask(task, b"", patience)

    def _ask(
        self, task: Task, body: bytes, patience: RequestDeadline
    ) -> tuple[StillRead | None, tuple[Plane, ...]]:
        try:
            reader = self._free.get(timeout=patience.left_s)
        except queue.Empty:
            raise Stopped from None
        try:
            if reader is not None and not reader.is_alive:
                reader.end()
                reader = None
            if reader is None:
                reader = _Reader(self._growth_bytes)
            return reader.ask(task, body, min(self._limits.read_s, patience.left_s))
        except (OSError, EOFError, ValueError) as exc:
            assert reader is not None
            reason = reader.end()
            log.warning("a process that reads bodies ended kind=%s why=%s code=%d", task.content, exc, reason)
            reader = None
            if patience.is_over:
                raise Stopped from None
            raise self._refusal(isinstance(exc, TimeoutError)) from None
        finally:
            if reader is None and not self._is_closed.is_set():
                with contextlib.suppress(OSError):
                    reader = _Reader(self._growth_bytes)
            self._free.put(reader)
            if self._is_closed.is_set():
                self.close()

    def _refusal(self, is_late: bool) -> Refusal:
        if is_late:
            seconds = self._limits.read_s
            return Refusal(
                413, "media", f"reading this body takes more than {seconds:g} s; send a simpler file",
                numbers={"limit_s": seconds},
            )  # fmt: skip
        megabytes = self._growth_bytes >> 20
        return Refusal(
            422, "media", f"this body ends its decoder, or needs more than {megabytes} MiB to be read",
            numbers={"limit_mib": megabytes},
        )  # fmt: skip

    def close(self) -> None:
        """End the processes that nobody uses; the others end when their request does."""
        self._is_closed.set()
        with contextlib.suppress(queue.Empty):
            while True:
                reader = self._free.get_nowait()
                if reader is not None:
                    reader.end()


class _Reader:
    """One process, and the socket to it."""

    def __init__(self, growth_bytes: int) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vsr_hpc.serving.reading", str(theirs.fileno()), str(growth_bytes)],
                pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self._answers: BinaryIO = self._socket.makefile("rb")
        self._is_ready = False

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, task: Task, body: bytes, patience_s: float) -> tuple[StillRead | None, tuple[Plane, ...]]:
        """Its answer. Refusal where it refuses; an OSError, EOFError or ValueError means its end."""
        if not self._is_ready:
            with self._killed_after(_START_S):
                self._read_line()
            self._is_ready = True
        with self._killed_after(patience_s):
            self._socket.sendall(task.model_dump_json().encode() + b"\n" + body)
            return self._understood(Reading.model_validate_json(self._read_line()), task.pixels_in)

    @contextlib.contextmanager
    def _killed_after(self, seconds: float) -> Iterator[None]:
        timer = threading.Timer(seconds, self._process.kill)
        timer.daemon = True
        began = time.monotonic()
        timer.start()
        try:
            yield
        except (OSError, EOFError) as exc:
            if time.monotonic() - began >= seconds:
                raise TimeoutError("too slow") from exc
            raise
        finally:
            timer.cancel()

    def _read_line(self) -> bytes:
        line = self._answers.readline(MOST_LINE_BYTES)
        if not line.endswith(b"\n"):
            raise EOFError("no answer")
        return line

    def _understood(self, answer: Reading, pixels_in: int) -> tuple[StillRead | None, tuple[Plane, ...]]:
        if (said := answer.refusal) is not None:
            raise Refusal(said.status, said.code, said.text, numbers=said.numbers)
        if answer.still is None:
            return None, ()
        picture = answer.still.picture
        if picture.width * picture.height > pixels_in:
            raise ValueError("its answer is larger than asked for")
        return answer.still, tuple(self._plane(picture, shape) for shape in picture.plane_shapes())

    def _plane(self, picture: Picture, shape: tuple[int, int]) -> Plane:
        plane = np.empty(shape, picture.pixel.dtype)
        left = plane.data.cast("B")
        while left.nbytes:
            count = self._answers.readinto(left)  # type: ignore[attr-defined]
            if not count:
                raise EOFError("its answer was cut off")
            left = left[count:]
        return plane

    def end(self) -> int:
        """Kill it, if it is still there; its exit code."""
        self._process.kill()
        code = self._process.wait()
        self._answers.close()
        self._socket.close()
        return code
