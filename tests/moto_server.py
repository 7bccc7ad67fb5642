"""A real moto server on loopback, as a process of its own, that can also misbehave on demand.

    with moto_server() as aws:
        aws.make_bucket("films")
        aws.fail("status", method="PUT", path="receipts/", times=2, status=503)

Started as a script it is the server: it writes its port to stdout and ends when its stdin does, so that it
never outlives the tests, however they end.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Fault = Literal["status", "slow", "reset", "lost", "cut"]
"""status: answer so and do nothing · slow: wait, then work · reset: drop the connection and do nothing ·
lost: work, then drop the connection · cut: answer half the body, then drop the connection."""

_REGION = "eu-central-1"


@dataclass(frozen=True)
class Moto:
    """The server as its tests see it."""

    url: str

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to take this server for the whole of AWS."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": _REGION,
            "AWS_REGION": _REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self, service: str, *, is_spared: bool = False) -> Any:
        """A client of this server; `is_spared` keeps its requests out of every fault and every count."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=_REGION,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            config=Config(user_agent_extra=_SPARED if is_spared else ""),
        )

    def make_bucket(self, name: str) -> None:
        self.client("s3").create_bucket(
            Bucket=name, CreateBucketConfiguration={"LocationConstraint": _REGION}
        )

    def fail(
        self,
        kind: Fault,
        *,
        method: str = "",
        path: str = "",
        times: int = 1,
        status: int = 500,
        code: str = "InternalError",
        seconds: float = 0.0,
    ) -> None:
        """Let the next `times` requests with this method go wrong whose path and query contain `path`.

        A path with stars is several words, all of which must be contained.
        """
        self._control("faults", json.dumps(locals() | {"self": None}).encode())

    def heal(self, path: str = "") -> None:
        """Take back every fault whose own `path` begins so."""
        self._control("heal", json.dumps({"path": path}).encode())

    def requests(self) -> tuple[str, ...]:
        """'METHOD /path?query range' of every request since the last call."""
        return tuple(json.loads(self._control("requests", b"{}")))

    def reset(self) -> None:
        """Forget every bucket and object, every fault and every request."""
        self.heal()
        request = urllib.request.Request(f"{self.url}/moto-api/reset", method="POST")
        urllib.request.urlopen(request, timeout=30).close()
        self.requests()

    def _control(self, what: str, body: bytes) -> bytes:
        with urllib.request.urlopen(f"{self.url}{_CONTROL}{what}", body, timeout=30) as answer:
            return bytes(answer.read())


@contextlib.contextmanager
def moto_server(environment: Mapping[str, str] | None = None, preload: Sequence[str] = ()) -> Iterator[Moto]:
    """`environment` is added to the server's own; `preload` are scripts run before moto starts (patches)."""
    command = [sys.executable, str(Path(__file__)), *preload]
    server = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    assert server.stdin is not None and server.stdout is not None
    try:
        port = server.stdout.readline().strip()
        if not port:
            raise RuntimeError("the moto server did not start; run tests/moto_server.py to see why")
        yield Moto(url=f"http://127.0.0.1:{port}")
    finally:
        server.stdin.close()
        server.kill()
        server.wait()
        server.stdout.close()


_CONTROL, _SPARED = "/_test/", "spared-by-faults"
_Start = Callable[..., Any]


@dataclass
class _Unruly:
    """moto's application behind a list of faults, with S3's atomic writes, which moto itself lacks.

    moto checks If-None-Match and writes in two steps, sets an object's metadata in a third, and ignores the
    conditions of CompleteMultipartUpload.
    """

    app: Callable[[dict[str, Any], _Start], Iterable[bytes]]
    faults: list[dict[str, Any]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    working: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, environ: dict[str, Any], start: _Start) -> Iterable[bytes]:
        path = environ["PATH_INFO"] + ("?" + environ["QUERY_STRING"] if environ["QUERY_STRING"] else "")
        if path.startswith(_CONTROL):
            return self._controlled(path, environ, start)
        is_spared = _SPARED in environ.get("HTTP_USER_AGENT", "")
        asked = environ.get("HTTP_RANGE", "")
        fault = {} if is_spared else self._fault_for(environ["REQUEST_METHOD"], path, asked)
        kind = fault.get("kind", "")
        if kind == "slow":
            time.sleep(fault["seconds"])
        if kind == "reset":
            _swallow(environ)
            return _drop(environ)
        if kind == "status":
            return _refuse(environ, start, fault["status"], fault["code"])
        if not _has_whole_body(environ):
            return _drop(environ)
        if kind not in ("lost", "cut"):
            with self.working:
                if self._is_completed_in_vain(environ):
                    return _refuse(environ, start, 412, "PreconditionFailed")
                return list(self.app(environ, start))
        kept: list[Any] = []
        with self.working:
            body = b"".join(self.app(environ, lambda *answer: kept.extend(answer)))
        if kind == "lost":
            return _drop(environ)
        start(kept[0], kept[1])
        return _half(body, environ)

    def _is_completed_in_vain(self, environ: dict[str, Any]) -> bool:
        wanted, unwanted = environ.get("HTTP_IF_MATCH"), environ.get("HTTP_IF_NONE_MATCH")
        if environ["REQUEST_METHOD"] != "POST" or (wanted is None and unwanted is None):
            return False
        answer: list[Any] = []
        look = {**environ, "REQUEST_METHOD": "HEAD", "QUERY_STRING": "", "CONTENT_LENGTH": "0"}
        look |= {"wsgi.input": io.BytesIO(), "HTTP_IF_MATCH": "", "HTTP_IF_NONE_MATCH": ""}
        list(self.app(look, lambda *found: answer.extend(found)))
        etag = dict(answer[1]).get("ETag") if answer[0].startswith("200") else None
        return etag is not None if unwanted == "*" else etag != wanted

    def _controlled(self, path: str, environ: dict[str, Any], start: _Start) -> Iterable[bytes]:
        order = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        answer: list[str] = []
        with self.lock:
            if path.endswith("faults"):
                self.faults.append(order)
            elif path.endswith("heal"):
                kept = [each for each in self.faults if not each["path"].startswith(order["path"])]
                self.faults[:] = kept
            else:
                answer, self.requests = self.requests, []
        body = json.dumps(answer).encode()
        start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    def _fault_for(self, method: str, path: str, asked: str) -> dict[str, Any]:
        with self.lock:
            self.requests.append(f"{method} {path} {asked}".strip())
            for fault in self.faults:
                is_meant = all(word in path for word in fault["path"].split("*"))
                if fault["times"] > 0 and fault["method"] in ("", method) and is_meant:
                    fault["times"] -= 1
                    return fault
        return {}


def _refuse(environ: dict[str, Any], start: _Start, status: int, code: str) -> Iterable[bytes]:
    _swallow(environ)
    body = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
    start(f"{status} injected", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def _has_whole_body(environ: dict[str, Any]) -> bool:
    """Read the body before the lock is taken, since a frozen client may never send the rest.

    moto would store what a killed client has sent of an object; S3 stores whole objects only.
    """
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(length)
    environ["wsgi.input"] = io.BytesIO(body)
    return len(body) == length


def _swallow(environ: dict[str, Any]) -> None:
    """Take the body off the wire, or its bytes would be read as the next request."""
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))


def _drop(environ: dict[str, Any]) -> Iterable[bytes]:
    connection: socket.socket = environ["werkzeug.socket"]
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError("injected")


def _half(body: bytes, environ: dict[str, Any]) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    time.sleep(0.1)  # lets the half arrive before the reset overtakes it
    _drop(environ)


def _serve(preload: Sequence[str]) -> None:
    import logging
    import runpy

    for script in preload:
        runpy.run_path(script)
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    app = _Unruly(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    os.environ.setdefault("MOTO_PORT", str(server.server_address[1]))  # Step Functions calls back there
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1:])
