from __future__ import annotations

import os

import pytest

from tests.grouping import group_of, order_of


@pytest.mark.xdist_group("seen")
def test_groups_reach_the_scheduler(request: pytest.FixtureRequest) -> None:
    """A version of pytest that pytest-xdist does not know would make every group in every process."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@seen")


def test_tests_of_the_shared_slurm_cluster_run_in_one_process_and_the_other_slurm_tests_in_another() -> None:
    file = "tests/slurm/test_executor.py"
    assert group_of(file, ["cluster", "shared_cluster"], shares_a_fixture=False) == "slurm"
    groups = {
        group_of(file, ["make_cluster"], shares_a_fixture=False),
        group_of("tests/slurm/test_spot_watch.py", [], shares_a_fixture=True),
        group_of("tests/aws/test_cluster_slurm.py", ["dev"], shares_a_fixture=True),
    }
    assert groups == {"slurm-own"} and [order_of("slurm"), order_of("slurm-own")] == [0, 1]


def test_a_test_that_shares_nothing_may_run_anywhere_and_one_that_shares_stays_with_its_file() -> None:
    file = "tests/contract/test_cli.py"
    assert group_of(file, ["tmp_path"], shares_a_fixture=False) is None
    assert group_of(file, ["tmp_path"], shares_a_fixture=True) == file
    assert order_of(file) < order_of(None)


def test_servers_are_started_once() -> None:
    one = group_of("tests/serving/test_client.py", ["account", "server"], shares_a_fixture=True)
    assert one == group_of("tests/serving/test_ec2.py", ["moto", "account"], shares_a_fixture=False)
