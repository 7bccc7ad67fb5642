"""The Slurm settings of our configuration in a real slurmctld, and what its comments say about requeueing."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.aws.conftest import VALUES
from tests.slurm.fixtures import ROOT, DevCluster, Options, started
from vsr_hpc.aws.cluster.render import find_template, render
from vsr_hpc.aws.cluster.slurm_rules import check_slurm_settings
from vsr_hpc.aws.cluster.values import load_values
from vsr_hpc.aws.cluster.yaml_document import parse

pytestmark = [pytest.mark.aws, pytest.mark.slurm]


def configuration() -> dict[str, Any]:
    text = render(find_template("spot-gpu"), load_values(None, VALUES)).text
    found: dict[str, Any] = yaml.safe_load(text)["Scheduling"]
    return found


def lines() -> tuple[str, ...]:
    """What ParallelCluster would write into slurm.conf for us, on the dev cluster's nodes."""
    scheduling = configuration()
    settings = scheduling["SlurmSettings"]["CustomSlurmSettings"]
    ours = [f"{name}={value}" for each in settings for name, value in each.items()]
    for queue in scheduling["SlurmQueues"]:
        more = " ".join(f"{name}={value}" for name, value in queue["CustomSlurmSettings"].items())
        ours.append(f"PartitionName={queue['Name']} Nodes=spot-dy-g4dn-[1-2] MaxTime=INFINITE {more}")
    return tuple(ours)


@pytest.fixture(scope="module")
def dev() -> Iterator[DevCluster]:
    with started(Options(spot=2, ondemand=1, requeue_delay_s=5, extra=lines()), component="aws") as cluster:
        yield cluster


def test_slurmctld_takes_every_setting_as_it_was_meant(dev: DevCluster) -> None:
    shown = dev.run(["scontrol", "show", "config"]).stdout
    for each in configuration()["SlurmSettings"]["CustomSlurmSettings"]:
        for name, value in each.items():
            assert re.search(rf"(?m)^{name}\s*= {value}( sec)?$", shown), name


def test_queues_have_the_priority_that_our_file_gives_them(dev: DevCluster) -> None:
    for queue in configuration()["SlurmQueues"]:
        shown = dev.run(["scontrol", "show", "partition", queue["Name"]]).stdout
        assert f"PriorityTier={queue['CustomSlurmSettings']['PriorityTier']}" in shown


def test_array_as_large_as_our_setting_allows_is_taken(dev: DevCluster) -> None:
    job = dev.submit("true", "--array=0-10000%1", "--partition=spot-gpu", "--hold")
    dev.run(["scancel", job])


def test_job_that_says_75_runs_again_and_one_that_says_2_does_not(dev: DevCluster) -> None:
    again = dev.submit('[ -n "$SLURM_RESTART_COUNT" ] || exit 75', "--partition=spot-gpu")
    wrong = dev.submit("exit 2", "--partition=spot-gpu")
    dev.wait_until(lambda: dev.task(again).state == "COMPLETED", "the second start", timeout_s=60)
    assert dev.task(again).restarts == 1
    assert (dev.task(wrong).state, dev.task(wrong).restarts) == ("FAILED", 0)


def test_job_whose_node_is_taken_starts_again_elsewhere(dev: DevCluster) -> None:
    job = dev.submit('[ -n "$SLURM_RESTART_COUNT" ] && exit 0; sleep 300', "--partition=spot-gpu")
    dev.wait_until(lambda: dev.task(job).state == "RUNNING", "the first start")
    node = dev.task(job).node
    dev.kill_node(node)
    dev.set_node_state(
        node, "down", "taken"
    )  # as ParallelCluster's clustermgtd does with a terminated instance
    dev.wait_until(lambda: dev.task(job).state == "COMPLETED", "the second start", timeout_s=90)
    assert dev.task(job).restarts == 1 and dev.task(job).node != node
    dev.start_node(node)
    dev.reset()


def test_spot_watch_drains_its_node_on_a_notice(dev: DevCluster) -> None:
    node = dev.spot_nodes[0]
    script = ROOT / "slurm/spot-watch/spot_watch.py"
    told = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": dev.imds_url(node), "SLURMD_NODENAME": node}
    watch = subprocess.Popen(
        dev.command(["python3", "-I", str(script)], node=node),
        env={**dev.env, **told},
        stderr=subprocess.DEVNULL,
    )
    try:
        dev.imds(node).notice()
        dev.wait_until(lambda: dev.node_state(node) in ("drained", "draining"), "the drain")
        assert "spot interruption" in dev.run(["scontrol", "show", "node", node]).stdout
    finally:
        watch.send_signal(signal.SIGTERM)
        watch.wait()
        dev.reset()


@pytest.mark.parametrize("line", ["JobRequeue=maybe", "MaxArrySize=10001", "PreemptType=1", "KillWait=soon"])
def test_value_that_our_check_refuses_keeps_a_real_slurmctld_from_starting(line: str) -> None:
    name, value = line.split("=")
    text = f"Scheduling:\n  SlurmSettings:\n    CustomSlurmSettings:\n      - {name}: {value}\n"
    assert [each.level for each in check_slurm_settings(parse(text, "c.yaml"))] == ["error"]
    with pytest.raises(RuntimeError), started(Options(spot=1, ondemand=0, extra=(line,)), component="aws"):
        pass
