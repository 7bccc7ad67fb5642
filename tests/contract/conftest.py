"""Every backend behind the same tests: a folder, and S3 served by a moto server on loopback."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.moto_server import Moto, moto_server
from tests.require import require
from vsr_hpc.storage.opening import open_store
from vsr_hpc.storage.store import Store


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    try:
        import moto.moto_server  # noqa: F401
    except ImportError as exc:
        require("moto", f"moto[server] is not installed ({exc})")
    with pytest.MonkeyPatch.context() as patch, moto_server() as server:
        for name in [each for each in os.environ if each.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        server.make_bucket("films")
        yield server


@pytest.fixture(autouse=True)
def node_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path_factory.mktemp("node")
    monkeypatch.setenv("VSR_NODE_CACHE", str(cache))
    return cache


@pytest.fixture(params=["folder", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "run of a film")
    request.getfixturevalue("moto").heal()
    return f"s3://films/runs/{uuid.uuid4().hex}"


@pytest.fixture
def store(uri: str) -> Store:
    return open_store(uri)
