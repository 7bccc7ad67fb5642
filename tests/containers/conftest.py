"""One image for all tests that run it: the one that VSR_TEST_IMAGE names, or built from this checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.containers.files import ROOT
from tests.containers.running import IMAGE_VARIABLE, podman, surroundings, why_not
from tests.require import require

SECRET = "vsr-secret-canary"
"""Stands in the build's settings for pip; must stand nowhere in the image."""
_BASE = "localhost/bookworm-minbase"


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    is_wanted = "containers" in os.environ.get("VSR_REQUIRE", "")
    if not is_wanted and not os.environ.get(IMAGE_VARIABLE):
        pytest.skip("containers: building takes minutes; `make image-test` does it")
    if (reason := why_not()) is not None:
        require("containers", reason)
    name = os.environ.get(IMAGE_VARIABLE) or _build(tmp_path_factory.mktemp("build"))
    assert podman("image", "exists", name, check=False).returncode == 0, f"there is no image {name}"
    return name


def _build(folder: Path) -> str:
    """By containers/build.sh, with this machine's own settings for pip, on a base made here."""
    _must(["sh", "containers/base.sh"])
    conf, places = _pip_settings()
    (folder / "pip.conf").write_text(conf)
    environment = {"ENGINE": "podman", "BASE_IMAGE": _BASE, "PIP_CONF": str(folder / "pip.conf")}
    if authority := os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE"):
        environment["CA"] = authority
    if _has_own_torch():
        environment["TORCH_INDEX"] = ""
    volumes = [f"--volume {place}:{place}:ro" for place in places]
    environment["ENGINE_OPTIONS"] = " ".join(["--isolation chroot --network host --layers", *volumes])
    _must(["sh", "containers/build.sh", "vsr-hpc:test"], **environment)
    return "localhost/vsr-hpc:test"


def _pip_settings() -> tuple[str, list[Path]]:
    """pip.conf for the build, and the folders here that it speaks of."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    kept = {"index-url": "", "extra-index-url": "", "find-links": ""}
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2]
        if name in kept:
            kept[name] = " ".join(value.strip("'\"").replace("\\n", " ").split())
    indexes = re.findall(r"file://(/\S+)", f"{kept['index-url']} {kept['extra-index-url']}")
    folders = [word.removeprefix("file://") for word in kept["find-links"].split()]
    # An index's pages may speak of files beside its own folder.
    found = {Path(each).parent for each in indexes} | {Path(each) for each in folders if each.startswith("/")}
    places = sorted(each for each in found if each.exists())
    lines = ["[global]", f"# {SECRET}", "timeout = 180", *(f"{k} = {v}" for k, v in kept.items() if v)]
    if os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE"):
        lines.append("cert = /run/secrets/ca")
    return "\n".join(lines) + "\n", places


def _has_own_torch() -> bool:
    """Whether pip here finds torch without CUDA by its own settings, as the tests' own torch shows."""
    import torch

    return torch.version.cuda is None and not os.environ.get("TORCH_INDEX")


def _must(command: list[str], **environment: str) -> None:
    done = subprocess.run(
        command, cwd=ROOT, env={**surroundings(), **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")


@pytest.fixture(scope="session")
def facts(image: str) -> dict[str, object]:
    """What the engine says of the image."""
    found: dict[str, object] = json.loads(podman("image", "inspect", image).stdout)[0]
    return found
