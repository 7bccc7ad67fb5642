"""Who may ask: the tokens of a file, which is read again whenever it changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path

from vsr_hpc.errors import JobError
from vsr_hpc.serving.refusals import Refusal

log = logging.getLogger(__name__)

_SHORTEST = 16
_MOST_BYTES = 1 << 20


class Tokens:
    """One token a line; empty lines and lines that begin with `#` are none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._seen = self._state()
            self._digests = _digests(path)
        except (OSError, ValueError) as exc:
            raise JobError(f"--token-file: {path}: {getattr(exc, 'strerror', None) or exc}") from exc

    def caller(self, authorization: str) -> str:
        """A short name of the caller for the log, never the token; Refusal where it is none of ours."""
        self._read_again()
        kind, _, token = authorization.partition(" ")
        digest = _digest(token.strip())
        known = False
        for each in self._digests:  # all of them, so that the time says nothing
            known |= hmac.compare_digest(each, digest)
        if kind.lower() != "bearer" or not known:
            raise Refusal(
                401, "token", "this server asks for `Authorization: Bearer TOKEN` with one of its tokens",
                {"WWW-Authenticate": "Bearer", "Connection": "close"},
            )  # fmt: skip
        return digest.hex()[:8]

    def _read_again(self) -> None:
        """A file that cannot be read now leaves the tokens as they were."""
        try:
            state = self._state()
            if state == self._seen:
                return
            self._digests = _digests(self._path)
            self._seen = state
            log.info("tokens read again count=%d", len(self._digests))
        except (OSError, ValueError) as exc:
            log.warning("the tokens stay as they were: %s", exc)

    def _state(self) -> tuple[int, int, int]:
        found = self._path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino


def first_token(path: Path) -> str:
    """The token that a client of ours sends."""
    try:
        return _tokens(path)[0]
    except (OSError, ValueError) as exc:
        raise JobError(f"--token-file: {path}: {getattr(exc, 'strerror', None) or exc}") from exc


def _digests(path: Path) -> tuple[bytes, ...]:
    return tuple(_digest(each) for each in _tokens(path))


def _tokens(path: Path) -> list[str]:
    with path.open("rb") as file:
        lines = file.read(_MOST_BYTES).decode("ascii").splitlines()
    tokens = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not tokens:
        raise ValueError("holds no token")
    if any(len(each) < _SHORTEST for each in tokens):
        raise ValueError(f"a token has at least {_SHORTEST} characters; `openssl rand -hex 32` makes one")
    return tokens


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
