"""Ends a process whose work has hung: liveness is progress, and a heartbeat alone is none.

A hung driver, network disk or decoder leaves the heartbeat's thread alive, so nobody would ever take over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vsr_hpc.errors import BackendError
from vsr_hpc.system.progress import ticks

log = logging.getLogger(__name__)

TIMES_THE_LONGEST_GAP = 20
_LONGEST_POLL_S = 5.0
_LAST_WORDS_S = 10.0
"""How long the log may take to be written before the process ends without it: that disk may be what hangs."""


@dataclass(slots=True)
class StallMeter:
    """Measures how long there has been no progress, in its own polls.

    A process that was frozen (SIGSTOP, a paused machine) was not polled either, so its pause counts as one
    poll, whatever a clock says.
    """

    poll_s: float
    least_s: float
    """The shortest time without progress that is called a hang."""
    expected_s: float = 0.0
    """The longest gap that a forecast of the work gives reason for; 0 where there is none."""
    longest_s: float = 0.0
    """The longest gap between two ticks so far."""
    gap_s: float = 0.0
    has_ticked: bool = False
    _newest: int | None = None

    @property
    def limit_s(self) -> float:
        return max(self.least_s, TIMES_THE_LONGEST_GAP * max(self.longest_s, self.expected_s))

    def is_hung(self, newest: int) -> bool:
        """Whether the work counts as hung, now that `newest` is the number of the latest tick.

        Before the first tick there is no limit, unless a forecast gives one: nothing else tells how long the
        work takes to begin.
        """
        if self._newest is None or newest != self._newest:
            self.has_ticked = self._newest is not None
            self.longest_s = max(self.longest_s, self.gap_s if self.has_ticked else 0.0)
            self._newest, self.gap_s = newest, 0.0
            return False
        if self.has_ticked or self.expected_s > 0:
            self.gap_s += self.poll_s
        return self.gap_s > self.limit_s


class Watchdog:
    """Looks at the progress of this process while a block runs, and ends the process where there is none."""

    def __init__(
        self,
        least_s: float,
        *,
        flush: Callable[[], object] = lambda: None,
        exit_code: Callable[[str], int] = lambda text: BackendError.exit_code,
    ) -> None:
        """`flush` saves the log first; `exit_code` gets the message. By default 75: try again."""
        self._meter = StallMeter(poll_s=min(_LONGEST_POLL_S, least_s / 10), least_s=least_s)
        self._flush, self._exit_code = flush, exit_code

    def expect(self, gap_s: float) -> None:
        """Say how long the work may well take from tick to tick."""
        self._meter.expected_s = max(self._meter.expected_s, gap_s)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(self._meter.poll_s):
                if self._meter.is_hung(ticks()):
                    self._end_process()

        self._meter.is_hung(ticks())  # where the count begins: the block's own ticks move it
        thread = threading.Thread(target=watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _end_process(self) -> None:
        """Give no lease back and clean nothing up: others see a death, and the shard's attempt counts."""
        meter = self._meter
        text = (
            f"no progress for {meter.gap_s:.0f} s (limit {meter.limit_s:.0f} s, longest gap before "
            f"{meter.longest_s:.0f} s): the work hangs, this process ends; {_where_threads_are()}"
        )
        # This line and the exit code are all that is left of the process, so it is an error here as in `cli`.
        log.error("%s", text)
        code = [BackendError.exit_code]

        def last_words() -> None:
            code[0] = self._exit_code(text)
            self._flush()

        helper = threading.Thread(target=last_words, name="last-words", daemon=True)
        helper.start()
        helper.join(_LAST_WORDS_S)
        os._exit(code[0])


def _where_threads_are() -> str:
    """The innermost line of this package in each thread, for whoever asks what hung."""
    names = {each.ident: each.name for each in threading.enumerate()}
    places = []
    for ident, frame in sys._current_frames().items():
        name = names.get(ident, "")
        own = [each for each in traceback.extract_stack(frame) if "vsr_hpc" in each.filename]
        if own and name not in ("watchdog", "heartbeat"):
            last = own[-1]
            places.append(f"{name} in {last.name} ({Path(last.filename).name}:{last.lineno})")
    return "threads: " + "; ".join(sorted(places))
