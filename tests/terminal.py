"""A command in a real terminal: what a person sees of it, and the keys that the person presses."""

from __future__ import annotations

import os
import pty
import re
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Sequence
from fcntl import ioctl
from pathlib import Path
from types import TracebackType

from tests.commands import MODULE

PATIENCE_S = 120.0
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\x1b[=>]")
CTRL_C = b"\x03"


class Terminal:
    """A process whose stdin, stdout and stderr are one terminal, which is its controlling one."""

    def __init__(self, words: Sequence[str], cwd: Path, *, columns: int = 110, **environment: str) -> None:
        ours, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        known = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TERM": "xterm-256color"}
        self._ours, self._heard = ours, bytearray()
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *words],
            cwd=cwd, env={**known, **environment}, stdin=theirs, stdout=theirs, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._ours, 1 << 16)
            except OSError:  # every process that had the other side is gone
                return
            if not piece:
                return
            self._heard += piece

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(timeout=10)
        os.close(self._ours)

    @property
    def raw(self) -> str:
        return bytes(self._heard).decode(errors="replace")

    @property
    def text(self) -> str:
        """What was written, without colours and movements; a line that was drawn again stands there again."""
        return _CONTROL.sub("", self.raw).replace("\r\n", "\n").replace("\r", "\n")

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.text.splitlines() if line.strip()]

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def wait_for(self, words: str, patience_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + patience_s
        while re.search(words, self.text) is None:
            if time.monotonic() > deadline or self.process.poll() is not None:
                self._reader.join(timeout=1)
                assert re.search(words, self.text), f"{words!r} never came:\n{self.text}"
                return
            time.sleep(0.02)

    def end(self, patience_s: float = PATIENCE_S) -> int:
        """Wait for the end; the exit code."""
        code = self.process.wait(timeout=patience_s)
        self._reader.join(timeout=10)
        return code


def vsr_in_terminal(*words: object, cwd: Path, **environment: str) -> Terminal:
    """`vsr` as a person starts it."""
    return Terminal([*MODULE, *map(str, words)], cwd, **environment)
