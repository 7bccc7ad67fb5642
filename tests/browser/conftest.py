from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.browser.chromium import Browser, browser, why_not
from tests.browser.pages import made_run
from tests.require import require
from vsr_hpc.report.report import make_report


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all of these tests: starting it costs more than most of them."""
    if (reason := why_not()) is not None:
        require("browser", reason)
    with browser(tmp_path_factory.mktemp("profile")) as session:
        yield session


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a report about a real small run with interruptions."""
    folder = tmp_path_factory.mktemp("report")
    path = folder / "report.html"
    path.write_bytes(make_report(made_run(folder)))
    return path.as_uri()


@dataclass(frozen=True)
class Live:
    """A dashboard that is being served, and the folder in which it stands."""

    address: str
    folder: Path


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    with dashboard(folder, str(folder / "clips")) as served:
        yield served


@contextlib.contextmanager
def dashboard(
    folder: Path, uploads: str, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Live]:
    """A real `vsr dashboard`, until the block ends."""
    command = [sys.executable, "-m", "vsr_hpc", "dashboard", "--port", "0", "--uploads", uploads]
    server = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "XDG_STATE_HOME": str(folder / "state"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    try:
        address = server.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), "the dashboard did not start"
        yield Live(address=address, folder=folder)
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
