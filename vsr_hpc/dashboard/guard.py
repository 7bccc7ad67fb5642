"""Decides who may ask: somebody with the address that was printed, by a name of this machine, from this page.

The token in the path keeps other users and other pages out. The Host check stops a foreign name that was made
to point here (DNS rebinding); the Origin check stops a foreign page from sending (cross-site requests).

A report comes from a run's store, where others may write, and its scripts can read the address that they were
loaded from. Each report therefore has an address of its own without the token, which opens this report only.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """The one way in."""

    token: str
    hosts: frozenset[str]
    """`host:port` as browsers write it."""
    connects: tuple[str, ...] = ()
    """Origins beside this one that the page may send to: an S3 endpoint for uploads."""

    @classmethod
    def of(cls, token: str, names: Iterable[str], port: int, connects: Iterable[str] = ()) -> Door:
        hosts = {f"{name.lower()}:{port}" for name in names}
        if port == 80:
            hosts |= {name.lower() for name in names}
        return cls(token=token, hosts=frozenset(hosts), connects=tuple(connects))

    def report_key(self, number: str) -> str:
        """The part of an address that opens the report of one run; the token cannot be computed from it."""
        return hmac.new(self.token.encode(), f"report {number}".encode(), "sha256").hexdigest()[:32]

    @property
    def policy(self) -> str:
        connect = " ".join(("'self'", *self.connects))
        return (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
            f"connect-src {connect}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
        )


REPORT_POLICY = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""The sandbox gives a report an origin of its own, which may neither read nor send anything here."""
REPORTS = "/report/"
"""Where reports are served, outside of the token's path."""


class Guard:
    """Outermost: refuses before anything else is looked at, and puts its headers on every answer."""

    def __init__(self, inner: ASGIApp, door: Door) -> None:
        self._inner, self._door = inner, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        why = self._refusal(scope)
        if why is not None:
            log.warning("refused method=%s why=%s", scope["method"], why)
            await PlainTextResponse(f"{why}\n", status_code=403)(scope, receive, send)
            return
        is_report = scope["path"].startswith(REPORTS)
        rest = scope["path"] if is_report else scope["path"][len(self._door.token) + 1 :]
        inner = {**scope, "path": rest, "raw_path": rest.encode(), "root_path": ""}

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("content-security-policy", self._door.policy)
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "no-referrer"
                headers["cross-origin-resource-policy"] = "same-origin"
                headers["cross-origin-opener-policy"] = "same-origin"
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await self._inner(inner, receive, with_headers)

    def _refusal(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._door.hosts:
            return "this page is not served under that name"
        if scope["path"].startswith(REPORTS) and scope["method"] in ("GET", "HEAD"):
            return None  # the address names its report by a key
        given = scope["path"].split("/", 2)
        if len(given) < 3 or not hmac.compare_digest(given[1].encode(), self._door.token.encode()):
            return "open the address that `vsr dashboard` printed, with its token"
        if scope["method"] in ("GET", "HEAD"):
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None and origin.lower().partition("://")[2] not in self._door.hosts:
            return "another page may not send here"
        if site is not None and site not in ("same-origin", "none"):
            return "another page may not send here"
        return None
