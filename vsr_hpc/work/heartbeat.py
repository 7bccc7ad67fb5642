"""The heartbeat of a process that works on a run: what it says, and the thread that says it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from vsr_hpc.errors import VsrError
from vsr_hpc.run.documents import Heartbeat
from vsr_hpc.run.run import Run
from vsr_hpc.system.progress import uncounted

log = logging.getLogger(__name__)

Step = Callable[[], object]
_SHARE_OF_POLL = 0.8
BEFORE_EVERY, AFTER_EVERY = 2, 4
"""Heartbeats between two runs of the steps, each of which asks the store for something: on S3 a heartbeat
comes every 24 s, the steps before it every 48 s and those after it every 96 s."""


class Pulse:
    """One process's heartbeat in a run; any thread of the process may change what it says next."""

    def __init__(
        self, run: Run, first: Heartbeat, on_beat: Callable[[Heartbeat], None] = lambda beat: None
    ) -> None:
        self._run, self._beat, self._on_beat = run, first, on_beat
        self._lock = threading.Lock()
        self._written_at = float("-inf")

    @property
    def latest(self) -> Heartbeat:
        return self._beat

    @property
    def age_s(self) -> float:
        """Seconds since the last heartbeat began to be written."""
        return time.monotonic() - self._written_at

    def say(self, **changes: object) -> None:
        """Write a heartbeat now. Raises what the store raises."""
        with self._lock:
            fresh = {"counter": self._beat.counter + 1, "updated_s": time.time(), **changes}
            self._beat = self._beat.model_copy(update=fresh)
            beat = self._beat
        self._written_at = time.monotonic()
        try:
            self._run.beat(beat)
        finally:
            self._on_beat(beat)

    def note(self, changes: Callable[[Heartbeat], dict[str, object]]) -> Heartbeat:
        """Change what the next heartbeat says, which another thread may be about to write."""
        with self._lock:
            self._beat = self._beat.model_copy(update=changes(self._beat))
            return self._beat

    @contextlib.contextmanager
    def kept_up(
        self,
        *,
        before: Sequence[Step] = (),
        after: Sequence[Step] = (),
        last: Callable[[], dict[str, object]] = dict,
    ) -> Iterator[None]:
        """Write heartbeats at regular times until the block ends, and a last one with state `left`.

        The steps of `before` run before every second heartbeat, those of `after` after every fourth one and
        at the end. A step that raises is logged, stops no other step, and runs again the next time.
        """
        ended = threading.Event()

        def keep_up() -> None:
            with uncounted():
                for number in itertools.count(1):
                    if ended.wait(self._run.poll_s * _SHARE_OF_POLL):
                        return
                    first = before if number % BEFORE_EVERY == 0 else ()
                    then = after if number % AFTER_EVERY == 0 else ()
                    _run_each((*first, self.say, *then))

        self.say()
        thread = threading.Thread(target=keep_up, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            _run_each((lambda: self.say(**{**last(), "state": "left"}), *after))


def _run_each(steps: Sequence[Step]) -> None:
    for step in steps:
        try:
            step()
        except VsrError as exc:
            log.warning("heartbeat failed error=%s", exc)
        except Exception as exc:  # this thread must outlive its own bugs and raw errors of the disk
            log.warning("heartbeat failed unexpectedly error=%r", exc, exc_info=True)
