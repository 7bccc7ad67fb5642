"""ParallelCluster, its environment and a patched moto server for the tests of this folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.aws.batch_cloud import cloud, installed_cloud
from tests.require import require
from vsr_hpc.aws.cluster.pcluster import Tool, find_tool
from vsr_hpc.aws.cluster.values import Values, load_values

__all__ = ["cloud", "installed_cloud"]

GOLDENS = Path(__file__).parent / "goldens"


def pytest_addoption(parser: pytest.Parser) -> None:
    with contextlib.suppress(ValueError):  # another folder's conftest may have it already
        parser.addoption("--update-golden", action="store_true", help="rewrite goldens instead of comparing")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare text with a file that changes only by --update-golden."""

    def compare(name: str, text: str) -> None:
        path = GOLDENS / name
        if request.config.getoption("--update-golden", default=False):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8")
        assert path.is_file(), f"{path} is missing; pytest tests/aws --update-golden writes it"
        assert text == path.read_text("utf-8")

    return compare


VALUES = {
    "region": "us-east-1",
    "head_subnet": "subnet-0a1b2c3d4e5f60711",
    "compute_subnets": ["subnet-0a1b2c3d4e5f60712", "subnet-0a1b2c3d4e5f60713", "subnet-0a1b2c3d4e5f60714"],
    "key_name": "vsr-hpc",
    "ssh_from": "198.51.100.7/32",
    "bucket": "vsr-hpc-data",
    "prefix": "vsr",
    "node_policy_arn": "arn:aws:iam::123456789012:policy/vsr-node-vsr-hpc-data",
}


@pytest.fixture
def values() -> Values:
    return load_values(None, VALUES)


@pytest.fixture(scope="session")
def pcluster_tool() -> Tool:
    tool = find_tool()
    if tool is None:
        require("aws", "ParallelCluster is not installed; `vsr cluster setup` does it")
    return tool
