"""Frames of many requests on one device: those of one shape go through it together.

One thread owns the device. A pass begins when it would be full, when its oldest frame has waited long
enough, or when nobody else is on the way.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Protocol

from vsr_hpc.errors import BackendError
from vsr_hpc.media.picture import Frame
from vsr_hpc.serving.loaded_models import Bench

if TYPE_CHECKING:
    from vsr_hpc.engine.upscaler import Upscaler

log = logging.getLogger(__name__)

_FAULTS_IN_A_ROW = 3
"""After so many passes that the device failed, the server says at /ping that it is ill."""


class PassWatcher(Protocol):
    """Hears of every pass: how many frames it had and how long the device took."""

    def __call__(self, frames: int, seconds: float) -> None: ...


class _Part:
    """Frames of one request that wait for the device."""

    __slots__ = ("arrived", "done", "frames")

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames, self.arrived = list(frames), time.monotonic()
        self.done: Future[list[Frame]] = Future()


class Batcher:
    """Owns the device thread. `submit` may be called from anywhere."""

    def __init__(
        self,
        upscaler_for: Callable[[Bench], Upscaler],
        *,
        wait_s: float,
        on_the_way: Callable[[], int] = lambda: 1 << 30,
        on_pass: PassWatcher = lambda frames, seconds: None,
    ) -> None:
        """`on_the_way` tells how many pictures will be submitted soon, which may be worth waiting for."""
        self._upscaler_for, self._wait_s = upscaler_for, wait_s
        self._on_the_way, self._on_pass = on_the_way, on_pass
        self._lanes: dict[Bench, deque[_Part]] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._faults = 0
        self._thread = threading.Thread(target=self._live, name="device", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        with self._changed:
            return sum(len(lane) for lane in self._lanes.values())

    @property
    def is_ill(self) -> bool:
        return self._faults >= _FAULTS_IN_A_ROW

    def submit(self, bench: Bench, frames: Sequence[Frame]) -> Future[list[Frame]]:
        """The frames upscaled, in order. Cancel the future to give up; frames not yet begun are skipped."""
        part = _Part(frames)
        with self._changed:
            if self._is_closed:
                raise BackendError("the server is ending")
            self._lanes.setdefault(bench, deque()).append(part)
            self._changed.notify()
        return part.done

    def close(self) -> None:
        """End the thread after the pass at hand; what still waits fails."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(timeout=1)

    # The device thread ------------------------------------------------------------------------------------

    def _live(self) -> None:
        while (taken := self._next()) is not None:
            bench, parts = taken
            self._run(bench, parts)
            del taken, bench, parts  # frames must not stay in memory until the next request comes

    def _next(self) -> tuple[Bench, list[_Part]] | None:
        with self._changed:
            while True:
                if self._is_closed:
                    for lane in self._lanes.values():
                        for part in lane:
                            _fail(part, BackendError("the server is ending"))
                    return None
                self._drop_cancelled()
                bench, wait_s = self._ripest()
                if bench is not None and wait_s <= 0:
                    return bench, self._take(bench)
                self._changed.wait(wait_s if bench is not None else None)

    def _drop_cancelled(self) -> None:
        for bench in list(self._lanes):
            kept = deque(part for part in self._lanes[bench] if not part.done.cancelled())
            if kept:
                self._lanes[bench] = kept
            else:
                del self._lanes[bench]

    def _ripest(self) -> tuple[Bench | None, float]:
        """The bench to run next and how long to wait for company: 0 where it is full, old or alone."""
        best: tuple[Bench | None, float] = (None, 0.0)
        now = time.monotonic()
        is_last = self._on_the_way() <= 0
        oldest = float("inf")
        for bench, lane in self._lanes.items():
            frames = sum(len(part.frames) for part in lane)
            age = now - lane[0].arrived
            is_ripe = is_last or frames >= bench.settings.batch or age >= self._wait_s
            wait = 0.0 if is_ripe else self._wait_s - age
            if best[0] is None or (wait, lane[0].arrived) < (best[1], oldest):
                best, oldest = (bench, wait), lane[0].arrived
        return best

    def _take(self, bench: Bench) -> list[_Part]:
        lane, frames = self._lanes[bench], 0
        taken: list[_Part] = []
        while lane and (not taken or frames + len(lane[0].frames) <= bench.settings.batch):
            part = lane.popleft()
            if part.done.set_running_or_notify_cancel():
                taken.append(part)
                frames += len(part.frames)
        if not lane:
            del self._lanes[bench]
        return taken

    def _run(self, bench: Bench, parts: list[_Part]) -> None:
        """One pass; where it fails for several, each is tried alone, so that one cannot spoil the others."""
        if not parts:
            return
        began = time.monotonic()
        frames = [frame for part in parts for frame in part.frames]
        try:
            made = self._upscaler_for(bench)(frames)
        except Exception as exc:
            if len(parts) > 1:
                log.warning("a pass failed, its requests go one by one frames=%d error=%s", len(frames), exc)
                for part in parts:
                    self._run(bench, [part])
                return
            self._faults += isinstance(exc, BackendError)
            _fail(parts[0], exc)
            return
        self._faults = 0
        self._on_pass(frames=len(frames), seconds=time.monotonic() - began)
        at = 0
        for part in parts:
            _succeed(part, made[at : at + len(part.frames)])
            at += len(part.frames)


def _succeed(part: _Part, frames: list[Frame]) -> None:
    try:
        part.done.set_result(frames)
    except InvalidStateError:
        log.debug("a result came after its request had gone")


def _fail(part: _Part, error: Exception) -> None:
    try:
        part.done.set_exception(error)
    except InvalidStateError:
        log.debug("an error came after its request had gone")
