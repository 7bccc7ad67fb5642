"""Clients that stay and read nothing of their answers: they keep neither a place nor memory for ever."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clips import numbered_clip
from tests.serving.inside import listening, loaded, silent_client
from vsr_hpc.serving import app, process


def asked(kind: str, options: str, body: bytes) -> bytes:
    head = (
        f"POST /invocations?{options} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
        f"Accept: */*\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def large_still() -> bytes:
    """Two megabytes come back."""
    planes = "application/x-vsr-planes; width=64; height=48; pixel=gbrp"
    return asked(planes, "model=nearest&scale=16", bytes(64 * 48 * 3))


def streamed_clip(folder: Path) -> bytes:
    """Some megabytes come back: nothing is lost in it."""
    path = numbered_clip(folder / "in.mkv", frames=48, codec="ffv1")
    return asked("video/x-matroska", "model=nearest&scale=8&codec=ffv1&stream=true", path.read_bytes())


async def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not is_so():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (app, process):
        monkeypatch.setattr(module, "UNREAD_S", 0.5)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("way", ["streamed", "plain"])
def test_who_takes_nothing_is_cut_off_and_its_place_is_free(
    way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vsr_hpc.access")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    # A plain answer goes to the socket as a whole: it is the next one on the connection that waits.
    sent = streamed_clip(tmp_path) if way == "streamed" else large_still() * 2

    def cut_off() -> bool:
        lines = [json.loads(each.getMessage()) for each in caplog.records if each.name == "vsr_hpc.access"]
        return any(each.get("error") == "cut_off" for each in lines)

    async def live() -> None:
        async with (
            loaded(tmp_path, models=("nearest",), scratch=scratch) as service,
            listening(service) as http,
            silent_client(http, sent),
        ):
            await until(cut_off)
            assert service.gate.inside == 0
            assert list(scratch.iterdir()) == []

    asyncio.run(live())


@pytest.mark.usefixtures("impatient")
@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the kernel has no TCP_USER_TIMEOUT")
def test_an_answer_that_nobody_takes_does_not_stay_in_memory(tmp_path: Path) -> None:
    async def live() -> None:
        async with (
            loaded(tmp_path, models=("nearest",)) as service,
            listening(service) as http,
            silent_client(http, large_still()),
        ):
            await until(lambda: http.server_state.total_requests == 1)
            await until(lambda: not http.server_state.connections)

    asyncio.run(live())
