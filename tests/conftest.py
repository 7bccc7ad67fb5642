"""The thread policy of the command line, set before numpy and torch are loaded; groups for pytest-xdist."""

from __future__ import annotations

import os

import pytest

from tests.grouping import group_of, order_of
from vsr_hpc.system.environment import set_thread_policy

set_thread_policy()
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several of these processes share the cores


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "xdist_group(name): tests that one process of pytest-xdist runs")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give every test its group, and put the longest groups first; a plain run keeps pytest's order."""
    if not hasattr(config, "workerinput"):
        return
    groups: dict[pytest.Item, str | None] = {}
    for item in items:
        file = item.path.relative_to(config.rootpath).as_posix()
        fixtures = getattr(item, "fixturenames", ())
        groups[item] = group_of(file, fixtures, shares_a_fixture=_shares_a_fixture(item))
        if (group := groups[item]) is not None:
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: order_of(groups[item]))


def _shares_a_fixture(item: pytest.Item) -> bool:
    """Whether a fixture of this test is made once for its module."""
    info = getattr(item, "_fixtureinfo", None)
    made = {} if info is None else info.name2fixturedefs
    return any(each[-1].scope in ("module", "package", "class") for each in made.values() if each)
