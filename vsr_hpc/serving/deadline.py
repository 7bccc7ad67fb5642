"""How long a request may take, and how much of that time is left."""

from __future__ import annotations

import threading
import time


class RequestDeadline:
    """The time until which a request is worked on: its deadline, or earlier, once its client has gone."""

    def __init__(self, deadline_s: float) -> None:
        self.until = time.monotonic() + deadline_s
        self._given_up = threading.Event()

    def give_up(self) -> None:
        self._given_up.set()

    @property
    def is_over(self) -> bool:
        return self._given_up.is_set() or time.monotonic() > self.until

    @property
    def left_s(self) -> float:
        return 0.0 if self._given_up.is_set() else max(0.0, self.until - time.monotonic())
