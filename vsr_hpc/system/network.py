"""Finds out quickly whether an address on the network can be reached from here."""

from __future__ import annotations

import socket
import threading
import urllib.request
from urllib.parse import urlsplit

PATIENCE_S = 1.0
"""Long enough for a name and a connection across the world, short enough to be waited for by a person."""

_PORTS = {"http": 80, "https": 443}


def connection_problem(url: str, patience_s: float = PATIENCE_S) -> str | None:
    """Why no connection to the host of `url`, or to the proxy for it, was made in time; None if one was.

    The attempt runs in a thread of its own, because the lookup of a name takes no time limit.
    """
    host, port, name = _first_hop(url)
    outcome: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=patience_s).close()
            outcome.append(None)
        except (OSError, UnicodeError) as exc:
            outcome.append(reason_text(exc))

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(patience_s)
    found = outcome[0] if outcome else f"no answer within {patience_s:g} s"
    return None if found is None else f"{name}: {found}"


def reason_text(error: BaseException | str) -> str:
    """What an error of the network says, without its number, as part of a sentence."""
    text = getattr(error, "strerror", None) or str(error)
    return f"{text[:1].lower()}{text[1:]}"


def _first_hop(url: str) -> tuple[str, int, str]:
    """Host and port that a request for `url` connects to, and its name in a message."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(host):
        return host, parts.port or _PORTS[parts.scheme], host
    via = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return via.hostname or "", via.port or _PORTS.get(via.scheme, 80), f"the proxy {via.hostname}:{via.port}"
