"""One ordinary server for all tests that do it no harm: filters by name, a tiny network in its folder."""

from __future__ import annotations

import functools
import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.moto_server import Moto, moto_server
from tests.serving.samples import network_file
from tests.serving.served import Served, served
from vsr_hpc.aws import calls
from vsr_hpc.aws.account import client
from vsr_hpc.aws.endpoint import invocation, transform


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("served")
    models = home / "model"
    network_file(models / "tiny.safetensors")
    models.chmod(0o555)
    scratch = home / "scratch"
    scratch.mkdir()
    with served(
        home, "--model", "bicubic", "--model", "nearest", "--model-dir", str(models),
        "--scratch", str(scratch), "--max-payload-mb", "1", "--max-answer-mb", "2", "--max-clip-s", "2",
        "--max-megapixels", "0.3", "--max-megapixels-out", "1.2", "--batch", "4",
    ) as server:  # fmt: skip
        yield server
    models.chmod(0o755)


@pytest.fixture(scope="session")
def scratch(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return next(tmp_path_factory.getbasetemp().glob("served*")) / "scratch"


@pytest.fixture(scope="session")
def moto() -> Iterator[Moto]:
    """One moto for all of them, with SageMaker's runtime and clock; who uses it first resets it."""
    patches = [str(Path(__file__).with_name(f"{name}_patches.py")) for name in ("sagemaker", "ec2")]
    with moto_server(preload=patches) as aws:
        yield aws


@pytest.fixture
def new_account(account: Moto, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says what the account lacks: see tests/new_account.py."""

    def lacks(**facts: Any) -> None:
        body, kind = json.dumps(facts).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{account.url}/moto-api/account", body, kind)
        urllib.request.urlopen(request, timeout=10).close()

    monkeypatch.setattr("vsr_hpc.aws.new_account._PAUSE_S", 0.01)
    return lacks


@pytest.fixture
def account(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Moto:
    """An empty account, and an environment that means it."""
    moto.reset()
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    # The same moto for all tests: boto3's clients, which take longer to make than to use, are made once.
    for module in (calls, transform, invocation):
        monkeypatch.setattr(module, "client", _client)
    return moto


@functools.cache
def _client(service: str, region: str | None = None, *, timeout_s: float = 70.0) -> Any:
    return client(service, region, timeout_s=timeout_s)
