"""Whether the container is well: a server by its /ping, anything else by being there."""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_PATIENCE_S = 4


def port_of(arguments: list[str], environment: Mapping[str, str]) -> int | None:
    """Where the server listens, from the container's first process; None where it is no server."""
    if "serve" not in arguments:
        return None
    for at, word in enumerate(arguments):
        if word.startswith("--port="):
            return int(word.partition("=")[2])
        if word == "--port" and at + 1 < len(arguments):
            return int(arguments[at + 1])
    return int(environment.get("SAGEMAKER_BIND_TO_PORT") or 8080)


def asked(port: int) -> tuple[bool, str]:
    """Whether the server says that it is ready, and what it said."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    try:
        connection.request("GET", "/ping")
        status = connection.getresponse().status
    except OSError as exc:
        return False, f"port {port}: {exc}"
    finally:
        connection.close()
    return status == 200, f"/ping: {status}"


def main() -> int:
    arguments = Path("/proc/1/cmdline").read_bytes().decode(errors="replace").split("\0")
    port = port_of(arguments, os.environ)
    if port is None:
        return 0
    is_well, said = asked(port)
    sys.stdout.write(f"{said}\n")
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
