"""How clients may use connections: a head comes in time, and the process has files left for the next one."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterable
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0
"""From a connection, or from the first byte of a later request, to a whole head."""
_MOST = 1024
_TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def bounded_protocol() -> type[H11Protocol]:
    """uvicorn's protocol with bounds: half of the files that the process may open, and half of those for one
    address. Where they are reached, the connection that has waited longest without a request makes room.
    """
    most = max(8, min(_MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
    return type("BoundedProtocol", (_Bounded,), {"most": most, "most_of_one": max(4, most // 2)})


class _Bounded(H11Protocol):
    most: ClassVar[int]
    most_of_one: ClassVar[int]
    _timer: asyncio.TimerHandle | None = None
    _idle_since: float = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        everybody = [each for each in self.connections if isinstance(each, _Bounded)]
        same = [each for each in everybody if each._address == self._address]
        crowd = same if len(same) > self.most_of_one else everybody if len(everybody) > self.most else []
        if crowd and not self._make_room(crowd):
            transport.abort()
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_idle and self._timer is None:
            self._expect_head()
        super().data_received(data)
        if not self._is_idle:
            self._stop_waiting()
            self._idle_since = self.loop.time()

    @property
    def _address(self) -> Any:
        return self.client[0] if self.client else None

    @property
    def _is_idle(self) -> bool:
        """Whether no request of it is being read or answered."""
        return self.cycle is None or self.cycle.response_complete

    def _make_room(self, crowd: Iterable[_Bounded]) -> bool:
        idle = [each for each in crowd if each is not self and each._is_idle]
        if not idle:
            return False
        oldest = min(idle, key=lambda each: each._idle_since)
        self.connections.discard(oldest)
        oldest.transport.abort()
        return True

    def _expect_head(self) -> None:
        self._timer = self.loop.call_later(HEAD_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self._is_idle and not self.transport.is_closing():
            self.transport.write(_TOO_LATE)
            self.transport.close()
