"""An instance's first boot on this machine: the real user data, a metadata service, `vsr serve` as container.

Beside the script's own bash and curl there are stand-ins for what belongs to the machine: `docker`, which
runs the image's command as a process, `aws`, which says the same to moto through boto3, `systemctl`, and an
impatient `sleep`.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.moto_server import Moto
from tests.serving.served import vsr

_DOCKER = """#!{python}
import json, os, pathlib, signal, subprocess, sys, time
home = pathlib.Path({home!r})
verb, *rest = sys.argv[1:]
with (home / "docker.log").open("a") as log:
    print(verb, *rest, file=log)
if verb == "login":
    sys.stdin.read()
elif verb == "run":
    at = rest.index("--env-file")
    given = dict(line.split("=", 1) for line in open(rest[at + 1]).read().splitlines())
    (home / "given").write_text(json.dumps(given))
    if "--publish" in rest:
        port = rest[rest.index("--publish") + 1].split(":")[0]
        command = {vsr!r} + ["serve", "--port", port, "--host", "127.0.0.1", "--threads", "1"]
        command += ["--model-dir", str(home)]
        server = subprocess.Popen(
            command, env={{**os.environ, **given}}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=(home / "server.log").open("w"), start_new_session=True,
        )
        (home / "pid").write_text(str(server.pid))
        if not rest[-1] == "serve":
            sys.exit("the image was to serve")
elif verb == "inspect":
    print("running" if (home / "pid").exists() else "exited")
elif verb == "stop":
    pid = int((home / "pid").read_text())
    os.kill(pid, signal.SIGTERM)
    (home / "stopped").touch()
elif verb == "wait":
    while not (home / "codes").exists():  # the test says when the worker ends
        time.sleep(0.05)
    codes = (home / "codes").read_text().split()
    print(codes[0])
    (home / "codes").write_text(" ".join(codes[1:]))
"""
_AWS = """#!{python}
import sys
import boto3
service, operation, *rest = sys.argv[1:]
if (service, operation) == ("ecr", "get-login-password"):
    print("secret")
    sys.exit()
given, at = {{}}, 0
while at < len(rest):
    name = "".join(part.title() for part in rest[at].removeprefix("--").split("-"))
    has_value = at + 1 < len(rest) and not rest[at + 1].startswith("--")
    given[name] = rest[at + 1] if has_value else True
    at += 2 if has_value else 1
getattr(boto3.client(service), operation.replace("-", "_"))(**given)
"""


class Metadata(http.server.BaseHTTPRequestHandler):
    """IMDSv2 of one instance; nothing without its token."""

    instance_id = ""
    is_doomed = False

    def do_PUT(self) -> None:
        self._answer(200, "token")

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != "token":
            self._answer(401, "")
        elif self.path.endswith("/instance-id"):
            self._answer(200, self.instance_id)
        elif self.path.endswith("/spot/instance-action") and self.is_doomed:
            self._answer(200, '{"action": "terminate"}')
        else:
            self._answer(404, "")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *arguments: object) -> None:
        return


class Boot:
    """The instance as its tests see it."""

    def __init__(self, home: Path, metadata: type[Metadata], process: subprocess.Popen[str]) -> None:
        self.home, self.metadata, self.process = home, metadata, process

    @property
    def said(self) -> str:
        return (self.home / "boot.log").read_text()

    @property
    def docker_calls(self) -> list[str]:
        return (self.home / "docker.log").read_text().splitlines()


@contextlib.contextmanager
def booted(script: str, instance_id: str, home: Path, aws: Moto) -> Iterator[Boot]:
    """The script at work; it, and the server that it started, are gone afterwards."""
    tools = home / "tools"
    tools.mkdir(parents=True)
    names = {"python": sys.executable, "home": str(home), "vsr": vsr()}
    for name, text in {
        "docker": _DOCKER.format(**names),
        "aws": _AWS.format(**names),
        "systemctl": '#!/bin/sh\\n[ "$1" = enable ]\\n'.replace("\\n", "\n"),
        "sleep": "#!/bin/sh\nexec /bin/sleep 0.1\n",
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (home / "boot.sh").write_text(script)

    class Own(Metadata):
        pass

    Own.instance_id = instance_id
    service = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own)
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    surroundings = {
        **os.environ,
        **aws.environment,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{service.server_address[1]}",
        "VSR_SERVE_DEVICE": "cpu",
    }
    with (home / "boot.log").open("w") as log:
        process = subprocess.Popen(
            ["bash", str(home / "boot.sh")], env=surroundings, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
    try:
        yield Boot(home, Own, process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
        if (home / "pid").exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int((home / "pid").read_text()), 9)
        service.shutdown()
        thread.join()
        service.server_close()
