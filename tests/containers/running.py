"""Containers of the image as tests start them: no rights, nothing writable but /tmp and what is mounted."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.tools import find_tool

USER = 10001
IMAGE_VARIABLE = "VSR_TEST_IMAGE"
"""Names an image that is there: tests of the server run against it, not against this checkout."""

_CONF = Path(__file__).with_name("containers.conf")
LOCKED = (
    "--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp:rw,mode=1777,size=2g", "--cap-drop", "ALL",
    "--security-opt", "no-new-privileges", "--network", "host", "--no-healthcheck",
)  # fmt: skip


def surroundings() -> dict[str, str]:
    """podman's settings for a machine without systemd and with old control groups; yours win."""
    return {"CONTAINERS_CONF": str(_CONF), **os.environ}


def podman(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["podman", *words], env=surroundings(), capture_output=True, text=True, check=check, timeout=900
    )


def why_not() -> str | None:
    """What keeps containers from running here; None where they can."""
    if os.geteuid() != 0:
        return "podman as an ordinary user is not set up by these tests"
    if find_tool("podman") is None:
        return "podman is not installed (containers/install.sh)"
    asked = podman("info", "--format", "{{.Store.GraphDriverName}}", check=False)
    return None if asked.returncode == 0 else f"podman info: {asked.stderr.strip()[-200:]}"


@dataclass(frozen=True)
class Container:
    """How to start one: its command line, and what to do when it must go."""

    name: str
    command: list[str]

    def remove(self) -> None:
        podman("rm", "--force", "--time", "0", "--ignore", self.name, check=False)


def container(
    image: str,
    arguments: Sequence[str],
    *,
    mounts: Mapping[Path, str] | None = None,
    environment: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
) -> Container:
    """A container of the image with these arguments; `mounts` are folders here and their place in there."""
    name = f"vsr-test-{uuid.uuid4().hex[:12]}"
    words = ["podman", "run", "--rm", "--name", name, *LOCKED]
    for here, there in (mounts or {}).items():
        words += ["--volume", f"{here}:{there}"]
    for key, value in (environment or {}).items():
        words += ["--env", f"{key}={value}"]
    return Container(name, [*words, *options, image, *arguments])


def hand_over(*folders: Path) -> None:
    """Let the container's user own what it is given; root here still reads it."""
    for folder in folders:
        subprocess.run(["chown", "-R", f"{USER}:{USER}", str(folder)], check=True)
