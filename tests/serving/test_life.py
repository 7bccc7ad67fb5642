"""A server's life under SageMaker: start, load, limits under pressure, SIGTERM with requests in flight."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.serving.samples import clip, network_file, still
from tests.serving.served import Served, served, started

HEAVY = {"num_feat": 64, "num_conv": 32, "scale": 2}


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A read-only model folder whose network takes about a second for a small picture."""
    folder = tmp_path_factory.mktemp("heavy") / "model"
    network_file(folder / "heavy.safetensors", **HEAVY)
    folder.chmod(0o555)
    return folder


def open_request(server: Served) -> socket.socket:
    """A request whose body never comes."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
    return connection


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, heavy: Path) -> Iterator[Served]:
    """Two places, one second."""
    home = tmp_path_factory.mktemp("narrow")
    with served(
        home, "--model-dir", str(heavy), "--model", "nearest", "--queue", "2", "--deadline-s", "1"
    ) as server:  # fmt: skip
        yield server


def test_ping_is_503_until_the_model_has_run_and_nobody_is_let_in(tmp_path: Path, heavy: Path) -> None:
    with started(tmp_path, "--model-dir", str(heavy)) as server:
        assert server.request("GET", "/ping").status == 503
        reply = server.invoke(still(), "image/png")
        assert (reply.status, reply.error["code"]) == (503, "starting")
        assert int(reply.headers["retry-after"]) > 0


def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "broken.safetensors").write_bytes(b"junk")
    with started(tmp_path, "--model-dir", str(tmp_path / "model")) as server:
        assert server.process.wait(60) == 4
    assert any("broken.safetensors" in line for line in server.lines)


def test_sagemakers_own_start_needs_no_arguments(tmp_path: Path, heavy: Path) -> None:
    surroundings = {"VSR_SERVE_MODEL_DIR": str(heavy), "VSR_SERVE_MODELS": "nearest"}
    with served(tmp_path, environment=surroundings) as server:
        (ready,) = server.wait_for_events("ready", of="event")
        assert ready["models"] == ["nearest", "heavy"]


def test_a_full_server_says_429_and_when_to_come_again(tmp_path: Path, heavy: Path) -> None:
    arguments = ("--model-dir", str(heavy), "--model", "nearest", "--queue", "2")
    with served(tmp_path, *arguments) as server, ThreadPoolExecutor(2) as clients:
        large = still("png", 384, 288)
        held = [clients.submit(server.invoke, large, "image/png", attributes="model=heavy") for _ in range(2)]
        server.wait_for("vsr_requests_inside", 2)
        reply = server.invoke(still(), "image/png")
        assert (reply.status, reply.error["limit"]) == (429, 2)
        assert 1 <= int(reply.headers["retry-after"]) <= 30
        assert {each.result(60).status for each in held} <= {200, 503}
        assert server.invoke(still(), "image/png").status == 200


def test_a_body_that_does_not_come_takes_no_place_and_is_cut_off(narrow: Served) -> None:
    with open_request(narrow) as connection:
        connection.settimeout(20)
        assert connection.recv(100).startswith(b"HTTP/1.1 408")
    assert narrow.metric("vsr_requests_inside") == 0


def test_a_request_past_its_deadline_is_told_and_forgotten(narrow: Served) -> None:
    reply = narrow.invoke(still("png", 576, 432), "image/png", attributes="model=heavy")
    assert (reply.status, reply.error["code"]) == (503, "deadline")
    assert reply.error["deadline_s"] == 1
    until = time.monotonic() + 240
    while narrow.invoke(still(), "image/png").status != 200:  # the pass at hand has to end first
        assert time.monotonic() < until
        time.sleep(0.2)


def test_a_clip_past_its_deadline_stops_using_the_device(narrow: Served) -> None:
    reply = narrow.invoke(clip(frames=48, width=320), "video/mp4", attributes="model=heavy;preset=ultrafast")
    assert reply.status == 503
    narrow.wait_for("vsr_device_queue", 0)
    assert narrow.invoke(still(), "image/png").status in (200, 503)  # a pass may be under way still
    time.sleep(1.0)
    frames = narrow.metric("vsr_frames_total")
    time.sleep(1.0)
    assert narrow.metric("vsr_frames_total") == frames


def test_a_client_that_leaves_gives_its_place_back(narrow: Served) -> None:
    body = still("png", 256, 192)
    connection = socket.create_connection(("127.0.0.1", narrow.port))
    head = "POST /invocations?model=heavy HTTP/1.1\r\nHost: x\r\nX-Request-Id: leaver\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    connection.close()
    assert [each["status"] for each in narrow.wait_for_events("leaver", 240)] in ([499], [200])
    narrow.wait_for("vsr_requests_inside", 0)


def test_sigterm_answers_all_that_were_let_in_refuses_others_and_exits(tmp_path: Path, heavy: Path) -> None:
    arguments = ("--model-dir", str(heavy), "--drain-s", "28")
    with served(tmp_path, *arguments) as server, ThreadPoolExecutor(8) as clients:
        bodies = [(still("png", 256, 192, seed), "image/png") for seed in range(3)]
        asked = [
            clients.submit(server.request, "POST", "/invocations", body, {"Content-Type": kind}, 240)
            for body, kind in (*bodies, (clip(frames=4), "video/mp4"))
        ]
        server.wait_for("vsr_requests_inside", 4)
        server.terminate()
        until = time.monotonic() + 20
        while server.request("GET", "/ping").status != 503:
            assert time.monotonic() < until
        refused = server.invoke(still(), "image/png")
        assert (refused.status, refused.error["code"]) == (503, "draining")
        assert refused.headers["connection"] == "close"
        assert [each.result(240).status for each in asked] == [200] * 4, "".join(server.lines)
        assert server.process.wait(60) == 0


def test_what_cannot_be_answered_in_the_drain_is_told_so(tmp_path: Path, heavy: Path) -> None:
    with (
        served(tmp_path, "--model-dir", str(heavy), "--drain-s", "0.2") as server,
        ThreadPoolExecutor(2) as clients,
    ):
        asked = clients.submit(server.invoke, clip(frames=48, width=320), "video/mp4")
        server.wait_for("vsr_requests_inside", 1)
        server.terminate()
        reply = asked.result(20)
        assert reply.status == 503, "".join(server.lines)
        assert (reply.status, reply.error["code"]) == (503, "draining")
        assert server.process.wait(20) == 0


def test_ping_answers_while_the_device_and_the_clients_are_busy(narrow: Served) -> None:
    """SageMaker gives a ping two seconds; here the event loop only has to be free of the work itself."""
    with ThreadPoolExecutor(2) as clients:
        asked = [
            clients.submit(narrow.invoke, still("png", 576, 432, seed), "image/png", attributes="model=heavy")
            for seed in range(2)
        ]
        while not all(each.done() for each in asked):
            assert narrow.request("GET", "/ping", timeout_s=10).status == 200


def test_answers_do_not_wait_for_the_acknowledgement_of_their_head() -> None:
    """asyncio sets TCP_NODELAY only where the listening socket names its protocol (40 ms a request)."""
    from vsr_hpc.serving.process import _bound

    with _bound("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP


def test_the_server_listens_before_torch_is_imported() -> None:
    code = "import sys, vsr_hpc.serving.app; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
