from __future__ import annotations

from tests.grouping import group_of, order_of


def test_everything_that_needs_the_slurm_cluster_runs_in_one_process() -> None:
    groups = {
        group_of("tests/slurm/test_executor.py", ["shared_cluster"], shares_a_fixture=False),
        group_of("tests/slurm/test_spot_watch.py", [], shares_a_fixture=True),
        group_of("tests/aws/test_cluster_slurm.py", ["dev"], shares_a_fixture=True),
    }
    assert groups == {"slurm"} and order_of("slurm") == 0


def test_a_test_that_shares_nothing_may_run_anywhere_and_one_that_shares_stays_with_its_file() -> None:
    file = "tests/contract/test_cli.py"
    assert group_of(file, ["tmp_path"], shares_a_fixture=False) is None
    assert group_of(file, ["tmp_path"], shares_a_fixture=True) == file
    assert order_of(file) < order_of(None)


def test_servers_are_started_once() -> None:
    one = group_of("tests/serving/test_client.py", ["account", "server"], shares_a_fixture=True)
    assert one == group_of("tests/serving/test_ec2.py", ["moto", "account"], shares_a_fixture=False)
