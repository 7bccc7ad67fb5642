from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vsr_hpc.system import spot_notice
from vsr_hpc.system.interrupts import Reason, StopFlag, signals_set
from vsr_hpc.system.spot_notice import spot_watched


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGTERM, Reason.TERMINATED),
        (signal.SIGUSR2, Reason.TIME_LIMIT),
        (signal.SIGINT, Reason.INTERRUPTED),
    ],
)
def test_each_signal_sets_the_flag_with_its_reason(number: signal.Signals, reason: Reason) -> None:
    flag = StopFlag()
    with signals_set(flag):
        os.kill(os.getpid(), number)
        assert flag.wait(5)
    assert flag.reason is reason


_SIGNALLED = """
import signal, sys
from vsr_hpc.system.interrupts import StopFlag, signals_set
for number in range(200):
    flag = StopFlag()
    with signals_set(flag):
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGTERM))
        signal.setitimer(signal.ITIMER_REAL, 1e-4 * (1 + number % 7))
        while not flag.is_set():
            flag.wait(0)
print("all were heard")
"""


def test_a_signal_in_the_middle_of_a_look_at_the_flag_does_not_deadlock() -> None:
    """The lock of a threading.Event is not reentrant: its `set` in a handler waits for its own thread."""
    heard = subprocess.run(
        [sys.executable, "-c", _SIGNALLED], capture_output=True, text=True, timeout=120, check=False
    )
    assert (heard.returncode, heard.stdout) == (0, "all were heard\n"), heard.stderr


def test_every_thread_that_waits_is_woken() -> None:
    flag = StopFlag()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(flag.wait, 60) for _ in range(4)]
        flag.set(Reason.CANCELLED)
        assert all(each.result(60) for each in waiting)


def test_the_first_reason_stands() -> None:
    flag = StopFlag()
    flag.set(Reason.TIME_LIMIT)
    flag.set(Reason.CANCELLED)
    assert flag.reason is Reason.TIME_LIMIT


def test_a_second_interrupt_aborts() -> None:
    flag = StopFlag()
    with signals_set(flag), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        flag.wait(5)
        os.kill(os.getpid(), signal.SIGINT)
        flag.wait(5)


def test_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with signals_set(StopFlag()):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_grace_decides_what_may_still_be_finished() -> None:
    flag = StopFlag()
    assert flag.allows(1e9)
    flag.set(Reason.TERMINATED, grace_s=10)
    assert flag.allows(5)
    assert not flag.allows(15)


def test_no_grace_drops_even_short_work() -> None:
    flag = StopFlag()
    flag.set(Reason.CANCELLED)
    assert not flag.allows(0.01)


class _Metadata(BaseHTTPRequestHandler):
    """IMDSv2 that gives the notice after two questions without it."""

    asked = 0

    def do_PUT(self) -> None:
        assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer(200, b"token")

    def do_GET(self) -> None:
        assert self.headers["X-aws-ec2-metadata-token"] == "token"
        if self.path.endswith("/rebalance"):
            self._answer(200, b'{"noticeTime": "2026-01-01T00:00:00Z"}')
            return
        type(self).asked += 1
        if self.asked < 3:
            self._answer(404, b"")
        else:
            self._answer(200, b'{"action": "terminate", "time": "2026-01-01T00:00:00Z"}')

    def _answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Metadata]]:
    _Metadata.asked = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Metadata)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    yield _Metadata
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_spot_notice_sets_the_flag_and_a_recommendation_is_only_said(
    metadata: type[_Metadata], caplog: pytest.LogCaptureFixture
) -> None:
    flag = StopFlag()
    with spot_watched(flag, every_s=0.01):
        assert flag.wait(10)
    assert flag.reason is Reason.SPOT_NOTICE
    assert metadata.asked == 3
    assert caplog.text.count("recommends leaving") == 1


def test_a_metadata_service_that_answers_late_is_still_heard(
    metadata: type[_Metadata], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, real = [0], spot_notice._metadata

    def late(base: str, path: str, *, token: str = "", method: str = "GET") -> str | None:
        asked[0] += 1
        if asked[0] <= 5:
            raise TimeoutError("timed out")
        return real(base, path, token=token, method=method)

    monkeypatch.setattr(spot_notice, "_metadata", late)
    flag = StopFlag()
    with spot_watched(flag, every_s=0.01):
        assert flag.wait(10)
    assert flag.reason is Reason.SPOT_NOTICE


def test_where_no_metadata_answers_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1")
    flag = StopFlag()
    with spot_watched(flag, every_s=0.01):
        assert not flag.wait(0.2)
