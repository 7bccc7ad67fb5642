"""Fixtures for every test that needs a real Slurm; another layer imports them in its conftest.py."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.require import require

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "slurm/dev-cluster"))

from cluster_processes import namespace_of, processes_in  # noqa: E402
from dev_cluster import DevCluster, Options, why_not  # noqa: E402

__all__ = [
    "ROOT",
    "DevCluster",
    "Options",
    "cluster",
    "make_cluster",
    "namespace_of",
    "processes_in",
    "shared_cluster",
    "started",
    "why_not",
]

# The shortest requeue that Slurm bears when jobs obey SIGTERM; a job that does not needs kill_wait_s + 8.
QUICK = Options(spot=3, ondemand=1, kill_wait_s=2, requeue_delay_s=5)


def started(options: Options, *, component: str = "slurm") -> DevCluster:
    """A cluster to enter, or a skip with the reason (a failure where VSR_REQUIRE names the component)."""
    if (reason := why_not(options)) is not None:
        require(component, reason)
    return DevCluster(options)


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[DevCluster]:
    with started(QUICK) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: DevCluster) -> Iterator[DevCluster]:
    """The session's cluster (3 Spot nodes, 1 on demand), given back without jobs and with every node idle."""
    yield shared_cluster
    shared_cluster.reset()


@pytest.fixture
def make_cluster() -> Iterator[Callable[[Options], DevCluster]]:
    """For a test that needs a cluster of its own: `make_cluster(Options(network=True))`."""
    with ExitStack() as stack:
        yield lambda options: stack.enter_context(started(options))
