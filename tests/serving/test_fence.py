"""What a client sends is read by small processes, which a hostile body ends without hurting anybody else."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.serving.hostile import bomb_of_samples, bomb_of_scans, png_of_zeros
from tests.serving.samples import clip, still
from tests.serving.served import Served, served
from vsr_hpc.serving.deadline import RequestDeadline
from vsr_hpc.serving.fence import Fence
from vsr_hpc.serving.limits import Limits
from vsr_hpc.serving.reading import read_still
from vsr_hpc.serving.refusals import Refusal
from vsr_hpc.serving.request import Content
from vsr_hpc.work.pipeline import Stopped


@pytest.fixture(scope="module")
def fence() -> Iterator[Fence]:
    made = Fence(1, Limits(read_s=20))
    made.start()
    yield made
    made.close()
    assert _readers_of(os.getpid()) == []


def _readers_of(parent: int) -> list[int]:
    """The processes of a fence, also those that nobody has waited for yet."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            command = path.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == parent and (b"vsr_hpc.serving.reading" in command or fields[0] == "Z"):
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("content", ["png", "jpeg", "webp"])
def test_a_still_comes_back_as_it_is_read_without_a_fence(fence: Fence, content: Content) -> None:
    body = still(content, 65, 49)
    picture, planes, meta = fence.read_still(content, body, RequestDeadline(60))
    alone = read_still(content, body, 1 << 20)
    assert (picture, meta) == (alone[0], alone[2])
    assert len(planes) == len(alone[1])
    for one, other in zip(planes, alone[1], strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def test_the_largest_still_that_is_allowed_has_room(fence: Fence) -> None:
    _, planes, _ = fence.read_still("png", png_of_zeros(4096, 2304), RequestDeadline(60))
    assert planes[0].shape == (2304, 4096)


def test_refusals_are_those_of_the_reader(fence: Fence) -> None:
    with pytest.raises(Refusal) as large:
        fence.read_still("png", png_of_zeros(4096, 2305), RequestDeadline(60))
    assert large.value.code == "too_many_pixels" and large.value.numbers["found_pixels"] == 4096 * 2305
    with pytest.raises(Refusal) as damaged:
        fence.read_still("png", b"\x89PNG\r\n\x1a\n", RequestDeadline(60))
    assert (damaged.value.status, damaged.value.code) == (422, "media")


def test_a_clip_is_looked_at_and_one_that_asks_for_gigabytes_is_refused(fence: Fence, tmp_path: Path) -> None:
    good = tmp_path / "in.mp4"
    good.write_bytes(clip())
    fence.look_at_clip("mp4", good, RequestDeadline(60))
    (reader,) = _readers_of(os.getpid())
    for samples, tracks in ((60_000_000, 1), (400_000_000, 1), (20_000_000, 8)):
        bad = tmp_path / f"{samples}.mp4"
        bad.write_bytes(bomb_of_samples(samples, tracks))
        with pytest.raises(Refusal) as refused:
            fence.look_at_clip("mp4", bad, RequestDeadline(60))
        assert refused.value.status in (413, 422)
        assert str(tmp_path) not in refused.value.text
    peak = next(line for line in Path(f"/proc/{reader}/status").read_text().splitlines() if "VmHWM" in line)
    assert int(peak.split()[1]) < 500 << 10


def test_a_still_that_takes_too_long_is_refused_and_its_process_replaced() -> None:
    fence = Fence(1, replace(Limits(), read_s=0.5))
    try:
        fence.start()
        fence.read_still("png", still("png", 8, 8), RequestDeadline(60))
        body = bomb_of_scans(4000, 2300, 20_000)
        began = time.monotonic()
        with pytest.raises(Refusal) as refused:
            fence.read_still("jpeg", body, RequestDeadline(60))
        assert (refused.value.status, refused.value.numbers["limit_s"]) == (413, 0.5)
        assert time.monotonic() - began < 10
        with pytest.raises(Stopped):
            fence.read_still("jpeg", body, RequestDeadline(0.2))
    finally:
        fence.close()


def test_a_process_that_dies_costs_its_own_request_alone(fence: Fence) -> None:
    (reader,) = _readers_of(os.getpid())
    os.kill(reader, signal.SIGKILL)
    while _state(reader) not in ("Z", ""):
        time.sleep(0.01)
    fence.read_still("png", still("png", 8, 8), RequestDeadline(60))  # it was seen to be gone
    (reader,) = _readers_of(os.getpid())
    os.kill(reader, signal.SIGSTOP)
    timer = threading.Timer(0.3, os.kill, (reader, signal.SIGKILL))
    timer.start()
    with pytest.raises(Refusal) as refused:
        fence.read_still("png", still("png", 8, 8), RequestDeadline(60))
    assert refused.value.status == 422 and "ends its decoder" in refused.value.text
    fence.read_still("png", still("png", 8, 8), RequestDeadline(60))


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("fenced"), "--model", "bicubic", "--threads", "1") as running:
        yield running


def test_bombs_cost_a_server_neither_memory_nor_the_requests_beside_them(server: Served) -> None:
    honest, alone = (
        still("png", 64, 48),
        server.invoke(still("png", 64, 48), "image/png", attributes="scale=2"),
    )
    assert alone.status == 200
    rest = _memory(server.process.pid)
    bodies = [
        (bomb_of_samples(60_000_000), "video/mp4"),
        (bomb_of_samples(20_000_000, 8), "video/mp4"),
        (bomb_of_scans(4000, 2300, 2000), "image/jpeg"),
    ]
    answers: list[int] = []
    senders = [
        threading.Thread(target=lambda b=body, k=kind: answers.append(server.invoke(b, k).status))
        for body, kind in bodies * 2
    ]
    for each in senders:
        each.start()
    for _ in range(5):
        beside = server.invoke(honest, "image/png", attributes="scale=2")
        assert (beside.status, beside.body) == (200, alone.body)
    for each in senders:
        each.join()
    assert set(answers) <= {413, 422, 503}, answers
    assert _memory(server.process.pid, peak=True) <= 1.3 * rest + (200 << 10)


def _memory(pid: int, *, peak: bool = False) -> int:
    """KiB of a process and of those that it started."""
    name = "VmHWM" if peak else "VmRSS"
    total = 0
    for each in (pid, *_readers_of(pid)):
        lines = Path(f"/proc/{each}/status").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith(name))
    return total


def test_nothing_of_a_fence_outlives_its_server(tmp_path: Path) -> None:
    with served(tmp_path, "--model", "bicubic", "--threads", "1") as running:
        readers = _readers_of(running.process.pid)
        assert readers
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
    until = time.monotonic() + 20
    while any(_state(each) not in ("", "Z") for each in readers):
        assert time.monotonic() < until
        time.sleep(0.05)
