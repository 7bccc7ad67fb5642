"""A worker's log in the run's store: kept in memory, written with the heartbeat, read by `vsr logs`."""

from __future__ import annotations

import logging
import threading

from vsr_hpc.storage.store import Store

_MOST_BYTES = 1 << 20


class RunLog(logging.Handler):
    """Collects the package's records; `flush_to` writes them when they changed. Long ones are cut."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._text = bytearray()
        self._is_written = True
        self._guard = threading.RLock()  # a signal's handler may log while its own thread does

    def emit(self, record: logging.LogRecord) -> None:
        line = (self.format(record) + "\n").encode(errors="replace")
        with self._guard:
            self._text += line
            if len(self._text) > _MOST_BYTES:
                half = _MOST_BYTES // 2
                self._text[half : len(self._text) - half // 2] = b"\n[...]\n"
            self._is_written = False

    def flush_to(self, store: Store, name: str) -> None:
        with self._guard:
            if self._is_written:
                return
            content, self._is_written = bytes(self._text), True
        store.put(f"logs/{name}.log", content)
