"""Clients that take their time keep nobody else out, and hold nothing for ever."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.samples import still
from tests.serving.served import Served, served

HEAD = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    arguments = ("--model", "nearest", "--threads", "1", "--queue", "4")
    with served(tmp_path_factory.mktemp("slow"), *arguments) as running:
        yield running


@contextlib.contextmanager
def connections(server: Served, count: int, first: bytes) -> Iterator[list[socket.socket]]:
    made = []
    try:
        for _ in range(count):
            made.append(socket.create_connection(("127.0.0.1", server.port), timeout=60))
            made[-1].sendall(first)
        yield made
    finally:
        for each in made:
            each.close()


def received(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    said = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(1 << 16):
            said += piece
    return said


def test_a_head_that_does_not_come_whole_is_cut_off(server: Served) -> None:
    began = time.monotonic()
    with connections(server, 20, HEAD + b"X-A: ") as slow, connections(server, 3, b"") as silent:
        assert server.invoke(still(), "image/png").status == 200
        for each in slow:
            assert received(each).startswith(b"HTTP/1.1 408 ")
        for each in silent:
            assert received(each).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began >= 9


def test_bodies_that_come_slowly_take_no_place_and_are_cut_off(server: Served) -> None:
    with connections(server, 12, HEAD + b"Content-Length: 1000\r\n\r\n\x89") as slow:
        time.sleep(0.5)
        for _ in range(3):
            assert server.invoke(still(), "image/png").status == 200, "the queue has four places"
        for each in slow:
            said = received(each)
            assert said.startswith(b"HTTP/1.1 408 ") and b"slow_body" in said and b"connection: close" in said


def test_a_later_request_has_its_own_time(server: Served) -> None:
    body = still()
    whole = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with connections(server, 1, whole) as (kept,):
        first = kept.recv(1 << 16)
        assert first.startswith(b"HTTP/1.1 200 ")
        kept.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while kept.recv(1 << 16):
                pass
        kept.settimeout(60)
        kept.sendall(whole)
        assert kept.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_the_bodies_of_all_together_are_bounded(server: Served) -> None:
    size = 6 << 20
    piece = bytes(size - 1)
    with connections(server, 6, HEAD + b"Content-Length: %d\r\n\r\n" % size) as many:
        for each in many:
            each.sendall(piece)
        ready, _, _ = select.select(many, [], [], 60)
        assert ready[0].recv(1 << 10).startswith(b"HTTP/1.1 429 ")


def test_one_address_does_not_take_all_connections(tmp_path: Path) -> None:
    with (
        served(tmp_path, "--model", "nearest", "--threads", "1", files=256) as server,
        connections(server, 150, b"") as many,
    ):
        until = time.monotonic() + 20
        while server.request("GET", "/ping").status != 200:
            assert time.monotonic() < until
        assert server.invoke(still(), "image/png").status == 200
        gone = 0
        for each in many:
            each.settimeout(0.01)
            with contextlib.suppress(TimeoutError):
                gone += received(each) == b""
        assert gone >= 150 - 128, "those that waited longest made room"
