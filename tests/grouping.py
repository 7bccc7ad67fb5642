"""Which tests run in one process where pytest-xdist spreads them over several, and which of them begin first.

`make test` runs three processes on two cores: tests that wait for a server run beside tests that compute.
"""

from __future__ import annotations

from collections.abc import Collection

_SHARED = (
    ("tests/slurm/", "cluster", "slurm"),
    ("tests/slurm/", "", "slurm-own"),
    ("tests/aws/test_cluster_slurm.py", "", "slurm-own"),
    ("tests/browser/", "", "browser"),
    ("tests/aws/", "cloud", "aws-batch"),
    ("tests/aws/", "installed_cloud", "aws-batch"),
    ("tests/serving/", "account", "serving-moto"),
    ("tests/serving/", "server", "serving-server"),
)
"""A file or folder, a fixture that its test must use (any where empty), and the group of these tests."""
_FIRST = (
    "slurm",
    "slurm-own",
    "tests/aws/test_cluster_life.py",
    "aws-batch",
    "serving-server",
    "serving-moto",
    "browser",
)


def group_of(file: str, fixtures: Collection[str], *, shares_a_fixture: bool) -> str | None:
    """The group of a test, given its file and fixtures; None for a test that may run anywhere.

    One process has the Slurm cluster that tests share, one has the tests that bring up their own cluster, and
    one has each other fixture that is expensive to make.
    """
    for place, fixture, group in _SHARED:
        if file.startswith(place) and (not fixture or fixture in fixtures):
            return group
    return file if shares_a_fixture or file.startswith("tests/unit/") else None


def order_of(group: str | None) -> int:
    """The place in the order of a run: the longest groups begin, single tests fill the gaps at the end."""
    if group in _FIRST:
        return _FIRST.index(group)
    return len(_FIRST) + (1 if group is None else 0)
