"""Endpoint files for tests, how time passes on their moto, and a candidate that is broken on purpose."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

from tests.moto_server import Moto
from vsr_hpc.aws.account import WaitLimits
from vsr_hpc.aws.endpoint import endpoint as endpoints
from vsr_hpc.aws.endpoint import spec_file
from vsr_hpc.aws.endpoint.spec import EndpointSpec
from vsr_hpc.aws.steps import Step

ACCOUNT = "123456789012"
IMAGE = f"{ACCOUNT}.dkr.ecr.eu-central-1.amazonaws.com/vsr:1"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/vsr"
TOPIC = f"arn:aws:sns:eu-central-1:{ACCOUNT}:people"
HURRY = WaitLimits(poll_s=0.0, longest_s=90)


def document(url: str = "http://127.0.0.1:1", **more: Any) -> dict[str, Any]:
    return {
        "name": "film",
        "image": IMAGE,
        "role": ROLE,
        "environment": {"LOCAL_URL": url},
        "instance_type": "ml.g5.xlarge",
        **more,
    }


def spec(url: str = "http://127.0.0.1:1", **more: Any) -> EndpointSpec:
    return spec_file.parse_spec(document(url, **more), "endpoint.yaml")


def apply(wanted: EndpointSpec, **more: Any) -> tuple[Step, ...]:
    return endpoints.apply(wanted, patience=HURRY, **more)


def kinds(steps: tuple[Step, ...]) -> list[str]:
    return [f"{each.action} {each.kind}" for each in steps]


def pass_time(aws: Moto, minutes: int = 0, **more: Any) -> Any:
    body = json.dumps({"minutes": minutes, **more}).encode()
    request = urllib.request.Request(
        f"{aws.url}/moto-api/time", body, {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=90) as answer:
        return json.loads(answer.read())


class _Broken(http.server.BaseHTTPRequestHandler):
    """Healthy to look at, and answers nothing."""

    def do_GET(self) -> None:
        self._answer(200)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(500)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        return


@contextlib.contextmanager
def broken_server() -> Iterator[str]:
    """The URL of a container that passes its health check and fails every request."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Broken)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
