#!/usr/bin/env python3
"""A mock of EC2's instance metadata service, version 2: tokens, a Spot notice, a rebalance recommendation.

    mock_imds.py FOLDER NODE=ADDRESS:PORT [NODE=ADDRESS:PORT ...]

What a node's service answers is read from FOLDER/NODE.json at every request, so any process steers it by
writing that file (`ImdsControl`), across network namespaces too. In one process: `with MockImds(folder)`.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

STAMP = "%Y-%m-%dT%H:%M:%SZ"
TOKEN_PATH = "/latest/api/token"
LONGEST_TOKEN_LIFE_S = 21600


class ImdsControl:
    """What one node's metadata service says; every method takes effect at the next request."""

    def __init__(self, folder: Path, node: str) -> None:
        self.node = node
        self._path = folder / f"{node}.json"
        self._log = folder / f"{node}.log"

    def notice(self, *, in_s: float = 120.0, action: str = "terminate") -> str:
        """EC2 takes the instance back in `in_s` seconds. Returns the time that the notice states."""
        when = time.strftime(STAMP, time.gmtime(time.time() + in_s))
        self._merge({"spot/instance-action": json.dumps({"action": action, "time": when})})
        return when

    def rebalance(self) -> str:
        """EC2 recommends leaving, the instance is at risk. Returns the time that this states."""
        when = time.strftime(STAMP, time.gmtime())
        self._merge({"events/recommendations/rebalance": json.dumps({"noticeTime": when})})
        return when

    def fail(self, *, status: int | None = None, delay_s: float = 0.0) -> None:
        """From now on every request waits, and with a status ends in that error."""
        self._merge({"status": status, "delay_s": delay_s})

    def expire_tokens(self) -> None:
        """Every token given out so far is refused with 401."""
        self._merge({"tokens_after": time.time()})

    def clear(self) -> None:
        """Back to a healthy Spot instance without any notice."""
        self._path.unlink(missing_ok=True)

    def requests(self) -> tuple[str, ...]:
        """Every request so far, as `METHOD path status`."""
        return tuple(self._log.read_text().splitlines()) if self._log.exists() else ()

    def answers(self) -> dict[str, Any]:
        """The metadata and settings in force, defaults included."""
        said: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else {}
        return {
            "instance-id": f"i-{self.node}",
            "instance-type": "g4dn.xlarge",
            "instance-life-cycle": "spot",
            "placement/region": "eu-west-1",
            "placement/availability-zone": "eu-west-1a",
            **said,
        }

    def open_log(self) -> None:
        """The log is there once the service listens."""
        self._log.touch()

    def record(self, line: str) -> None:
        with self._log.open("a") as log:
            log.write(line + "\n")

    def _merge(self, change: dict[str, Any]) -> None:
        said: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else {}
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({**said, **change}))
        temporary.replace(self._path)


class ImdsServer(ThreadingHTTPServer):
    """One node's metadata service on one address."""

    daemon_threads = True

    def __init__(self, control: ImdsControl, address: tuple[str, int]) -> None:
        super().__init__(address, _Handler)
        self.control = control
        self.tokens: dict[str, tuple[float, float]] = {}  # token: when given out, when it ends
        control.open_log()

    def is_valid(self, token: str | None, *, given_after: float) -> bool:
        given, ends = self.tokens.get(token or "", (0.0, 0.0))
        return given > given_after and time.time() < ends


class _Handler(BaseHTTPRequestHandler):
    server: ImdsServer

    def do_PUT(self) -> None:
        life = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if self._refused():
            return
        if self.path != TOKEN_PATH or not life.isdigit() or not 1 <= int(life) <= LONGEST_TOKEN_LIFE_S:
            self._answer(400)
            return
        token = secrets.token_urlsafe(24)
        self.server.tokens[token] = (time.time(), time.time() + int(life))
        self._answer(200, token)

    def do_GET(self) -> None:
        answers = self.server.control.answers()
        token = self.headers.get("X-aws-ec2-metadata-token")
        if self._refused():
            return
        if not self.server.is_valid(token, given_after=answers.get("tokens_after", 0.0)):
            self._answer(401)
            return
        text = answers.get(self.path.removeprefix("/latest/meta-data/"))
        self._answer(200 if isinstance(text, str) else 404, text if isinstance(text, str) else "")

    def _refused(self) -> bool:
        answers = self.server.control.answers()
        time.sleep(answers.get("delay_s", 0.0))
        status = answers.get("status")
        if status is not None:
            self._answer(status)
        return status is not None

    def _answer(self, status: int, text: str = "") -> None:
        body = text.encode()
        self.server.control.record(f"{self.command} {self.path} {status}")
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # whoever asked did not wait for the answer
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


class MockImds(ImdsControl):
    """A metadata service in this process, on a free port of the loopback: `url` is its endpoint."""

    def __init__(self, folder: Path, node: str = "node") -> None:
        super().__init__(folder, node)
        self._server = ImdsServer(self, ("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> MockImds:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def main(argv: list[str]) -> int:
    folder, threads = Path(argv[0]), []
    for each in argv[1:]:
        node, _, address = each.partition("=")
        host, _, port = address.rpartition(":")
        server = ImdsServer(ImdsControl(folder, node), (host, int(port)))
        threads.append(threading.Thread(target=server.serve_forever))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
