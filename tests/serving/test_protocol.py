"""What is answered to requests that are odd as HTTP, over a raw socket; docs/serving.md has the table."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest

from tests.serving.samples import still
from tests.serving.served import Served, served
from tests.tools import ROOT

BODY = still()
HEAD = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
PIECES = [BODY[at : at + 50] for at in range(0, len(BODY), 50)]
CHUNKS = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*PIECES, b""])
ANSWERS = {
    "a chunked body": (HEAD + CHUNKED + b"\r\n" + CHUNKS, "200"),
    "two requests at once (pipelining)": ((HEAD + LENGTH + b"\r\n" + BODY) * 2, "200 200"),
    "HTTP/1.0": (b"POST /invocations HTTP/1.0\r\n" + LENGTH + b"\r\n" + BODY, "200, closed"),
    "a request to upgrade to a websocket": (
        b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "200",
    ),
    "Content-Length and Transfer-Encoding together": (
        HEAD + LENGTH + CHUNKED + b"\r\n" + CHUNKS, "400, closed",
    ),
    "two different Content-Lengths": (HEAD + LENGTH + b"Content-Length: 5\r\n\r\n" + BODY, "400, closed"),
    "a Content-Length of +5": (HEAD + b"Content-Length: +5\r\n\r\nabcde", "400, closed"),
    "a Content-Length of -5": (HEAD + b"Content-Length: -5\r\n\r\nabcde", "400, closed"),
    "another Transfer-Encoding than chunked": (
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS, "400, closed",
    ),
    "a space before a header's colon": (
        HEAD + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKS, "400, closed",
    ),
    "no Host": (b"POST /invocations HTTP/1.1\r\n" + LENGTH + b"\r\n" + BODY, "400, closed"),
    "two Hosts": (HEAD + b"Host: y\r\n" + LENGTH + b"\r\n" + BODY, "400, closed"),
    "a NUL in a header": (HEAD + b"X-A: a\0b\r\n" + LENGTH + b"\r\n" + BODY, "400, closed"),
    "a chunk without a size": (HEAD + CHUNKED + b"\r\nzz\r\n", "400, closed"),
    "more chunks than a body may have bytes": (
        HEAD + CHUNKED + b"\r\n" + (b"10000\r\n" + bytes(65536) + b"\r\n") * 100, "413",
    ),
    "CONNECT": (b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n", "404"),
    "TRACE": (b"TRACE /ping HTTP/1.1\r\nHost: x\r\n\r\n", "405"),
    "TLS where HTTP is spoken": (bytes.fromhex("1603010200010001fc0303") + bytes(80), "400, closed"),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("odd"), "--model", "nearest", "--threads", "1") as running:
        yield running


@pytest.mark.parametrize("name", ANSWERS)
def test_odd_requests_are_answered_as_the_guide_says(server: Served, name: str) -> None:
    sent, due = ANSWERS[name]
    assert answered(server, sent, due.count(" ") + 1 if due.startswith("200 ") else 1) == due
    assert server.request("GET", "/ping").status == 200


def test_a_client_that_asks_first_is_told_to_go_on(server: Served) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(HEAD + LENGTH + b"Expect: 100-continue\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(BODY)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def answered(server: Served, sent: bytes, count: int) -> str:
    """The statuses, and whether the connection was closed afterwards."""
    said = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(sent)
        while len(found := re.findall(rb"HTTP/1.1 (\d+)", said)) < count:
            piece = connection.recv(1 << 16)
            assert piece, said
            said += piece
        connection.settimeout(0.5)
        is_closed = False
        try:
            while connection.recv(1 << 16):
                pass
            is_closed = True
        except TimeoutError:
            pass
        except ConnectionError:
            is_closed = True
    return b" ".join(found).decode() + (", closed" if is_closed else "")


def test_the_guide_has_this_table() -> None:
    guide = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    for name, (_, due) in ANSWERS.items():
        assert f"| {name} | {due} |" in guide
