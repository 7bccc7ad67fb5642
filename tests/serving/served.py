"""A real server as a process of its own, and requests to it as a client sends them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.containers.running import IMAGE_VARIABLE, container, hand_over
from tests.containers.running import surroundings as container_surroundings

_START_S = 180
_VSR = """
from vsr_hpc.system.environment import set_thread_policy
set_thread_policy()
from vsr_hpc.cli import main as cli
cli.main()
"""


def vsr(*arguments: str) -> list[str]:
    """The command line of `vsr …` in this interpreter."""
    return [sys.executable, "-c", _VSR, *arguments]


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


class Served:
    """The process as its tests see it."""

    def __init__(self, process: subprocess.Popen[str], port: int, lines: list[str]) -> None:
        self.process, self.port, self.lines = process, port, lines
        self.context: ssl.SSLContext | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 60,
    ) -> Reply:
        connection: http.client.HTTPConnection
        if self.context is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        else:
            connection = http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=timeout_s, context=self.context
            )
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}))
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def invoke(
        self, body: bytes, content_type: str = "", path: str = "/invocations", **headers: str
    ) -> Reply:
        """`headers` by their names with underscores: accept="image/webp", attributes="scale=2"."""
        names = {"attributes": "X-Amzn-SageMaker-Custom-Attributes"}
        sent = {names.get(key, key.replace("_", "-")): value for key, value in headers.items()}
        return self.request("POST", path, body, {"Content-Type": content_type, **sent})

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = self.request("GET", "/metrics").body.decode()
        found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, flags=re.MULTILINE)
        return sum(float(each) for each in found)

    def wait_for(self, name: str, value: float, timeout_s: float = 20) -> None:
        until = time.monotonic() + timeout_s
        while (found := self.metric(name)) != value:
            assert time.monotonic() < until, f"{name} is {found}, wanted {value}"
            time.sleep(0.02)

    def events(self) -> list[Any]:
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    def wait_for_events(self, value: str, timeout_s: float = 60, *, of: str = "id") -> list[Any]:
        """The log's lines about a request, which come after its answer; or those with this value of a key."""
        until = time.monotonic() + timeout_s
        while not (found := [each for each in self.events() if each.get(of) == value]):
            assert time.monotonic() < until, f"no line about {value}"
            time.sleep(0.02)
        return found

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def served(
    home: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    files: int | None = None,
    trusted: Path | None = None,
) -> Iterator[Served]:
    """`vsr serve` on a free port, ready; killed at the end if it is still there.

    `trusted` is the certificate of a server by https.
    """
    with started(home, *arguments, environment=environment, files=files) as server:
        server.context = ssl.create_default_context(cafile=trusted) if trusted else None
        until = time.monotonic() + _START_S
        while server.request("GET", "/ping").status != 200:
            assert server.process.poll() is None, "".join(server.lines)
            assert time.monotonic() < until, "the server did not become ready"
            time.sleep(0.05)
        yield server


@contextlib.contextmanager
def started(
    home: Path, *arguments: str, environment: Mapping[str, str] | None = None, files: int | None = None
) -> Iterator[Served]:
    """`vsr serve` on a free port as soon as it listens; in a container where VSR_TEST_IMAGE names one.

    `files` is how many files it may open.
    """
    surroundings = {
        **os.environ,
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_DATA_HOME": str(home / "share"),
        "VSR_SERVE_MODEL_DIR": str(home / "no-models"),
        **(environment or {}),
    }
    command, boxed = ["serve", "--port", "0", "--threads", "1", "--device", "cpu", *arguments], None
    if image := os.environ.get(IMAGE_VARIABLE):
        said = {name: value for name, value in surroundings.items() if os.environ.get(name) != value}
        hand_over(home.parent)
        boxed = container(image, command, mounts={home.parent: str(home.parent)}, environment=said)
        surroundings = container_surroundings()
    limited = [] if files is None else ["prlimit", f"--nofile={files}"]
    process = subprocess.Popen(
        [*limited, *vsr(*command)] if boxed is None else boxed.command,
        env=surroundings, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    lines: list[str] = []
    has_port = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if '"listening"' in line:
                has_port.set()
        has_port.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert has_port.wait(_START_S)
        listening = next((json.loads(line) for line in lines if '"listening"' in line), None)
        assert listening is not None, "".join(lines)
        yield Served(process, listening["port"], lines)
    finally:
        if boxed is not None:
            boxed.remove()
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join(timeout=5)
        assert process.stderr is not None
        process.stderr.close()
