"""Who is let in: a bounded number of requests, none before the model ran, none while the server ends."""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Literal

from vsr_hpc.serving.deadline import RequestDeadline
from vsr_hpc.serving.limits import Limits
from vsr_hpc.serving.refusals import Refusal

_LONGEST_RETRY_S = 30


class OpenRequest:
    """One accepted request, from its head to its answer."""

    def __init__(self, request_id: str, patience: RequestDeadline) -> None:
        self.id, self.began, self.patience = request_id, time.monotonic(), patience
        self.ahead = 1
        """Pictures of this request on their way to the device; one until it is known what has come."""
        self.dropped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the server ends before the answer is ready."""

    def drop(self) -> None:
        self.patience.give_up()
        if not self.dropped.done():
            self.dropped.set_result(None)


class Gate:
    """Counts who is inside. All methods but `before_device` belong to the event loop's thread."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._calls: set[OpenRequest] = set()
        self._snapshot: tuple[OpenRequest, ...] = ()
        self._mean_s = 1.0
        self._arrived_bytes = 0
        self.state: Literal["starting", "ready", "draining"] = "starting"
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    @property
    def inside(self) -> int:
        return len(self._calls)

    def before_device(self) -> int:
        """How many pictures of accepted requests are coming, but do not wait there yet. From any thread."""
        return sum(call.ahead for call in self._snapshot)

    @contextlib.contextmanager
    def arriving(self) -> Iterator[Callable[[int], None]]:
        """While a body comes; what it gets is told of each piece. A body that comes slowly takes no place.

        Refusal where nobody is let in, and where the bodies that are coming are as much as all places take.
        """
        self._check()
        mine, most = 0, self._limits.queue * self._limits.payload_bytes

        def take(size_bytes: int) -> None:
            nonlocal mine
            if self._arrived_bytes + size_bytes > most:
                raise self._busy("bodies of other requests fill the memory for them")
            mine += size_bytes
            self._arrived_bytes += size_bytes

        try:
            yield take
        finally:
            self._arrived_bytes -= mine

    def _check(self) -> None:
        if self.state == "starting":
            raise Refusal(503, "starting", "the model is still being loaded", {"Retry-After": "5"})
        if self.state == "draining":
            raise Refusal(503, "draining", "the server is ending; ask another one", {"Retry-After": "1"})
        if len(self._calls) >= self._limits.queue:
            raise self._busy(
                f"{len(self._calls)} requests are being worked on, which is all that is taken at a time"
            )

    def _busy(self, why: str) -> Refusal:
        wait_s = max(1, min(_LONGEST_RETRY_S, math.ceil(self._mean_s * len(self._calls) / 2)))
        return Refusal(
            429, "busy", f"{why}; come again in {wait_s} s",
            {"Retry-After": str(wait_s)}, {"inside": len(self._calls), "limit": self._limits.queue},
        )  # fmt: skip

    @contextlib.contextmanager
    def entered(self, request_id: str, patience: RequestDeadline | None = None) -> Iterator[OpenRequest]:
        """A place inside for one request; a Refusal (503, 429) where there is none."""
        self._check()
        call = OpenRequest(request_id, patience or RequestDeadline(self._limits.deadline_s))
        self._calls.add(call)
        self._snapshot = tuple(self._calls)
        self._is_empty.clear()
        try:
            yield call
        finally:
            call.patience.give_up()
            self._calls.discard(call)
            self._snapshot = tuple(self._calls)
            self._mean_s += 0.1 * (time.monotonic() - call.began - self._mean_s)
            if not self._calls:
                self._is_empty.set()

    async def drain(self, seconds: float) -> bool:
        """Let nobody in, wait for all answers; after `seconds` the rest is told. True where none was left."""
        self.state = "draining"
        if await self._emptied(seconds):
            return True
        for call in tuple(self._calls):
            call.drop()
        await self._emptied(2.0)
        return False

    async def _emptied(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._is_empty.wait(), seconds)
        except TimeoutError:
            return False
        return True


def request_id_from(given: str) -> str:
    """The caller's own id where it is short, visible ASCII; a new one otherwise."""
    if 0 < len(given) <= 64 and all("!" <= each <= "~" and each not in '"\\' for each in given):
        return given
    return secrets.token_hex(8)
