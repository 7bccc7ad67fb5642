"""The development cluster is a real Slurm: what it promises, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.require import require
from tests.slurm.fixtures import ROOT, DevCluster, Options, namespace_of, processes_in, started, why_not

pytestmark = pytest.mark.slurm

DEV_CLUSTER = ROOT / "slurm/dev-cluster"
# Obeys SIGTERM at once, as a worker does; says what it is and how often it was started.
LOOP = (
    'trap "exit 0" TERM; echo start ${SLURM_RESTART_COUNT:-0} $SLURMD_NODENAME; '
    "for i in $(seq 600); do sleep 0.1; done"
)


def wait_running(cluster: DevCluster, *jobs: str, restarts: int = 0) -> None:
    """Wait until each job runs and has said so."""

    def all_run() -> bool:
        tasks = [cluster.task(job) for job in jobs]
        is_on = all(each.state == "RUNNING" and each.restarts == restarts for each in tasks)
        return is_on and all(len(lines_of(cluster, job)) > restarts for job in jobs)

    cluster.wait_until(all_run, f"{jobs} to run")


def lines_of(cluster: DevCluster, job: str) -> list[str]:
    path = cluster.home / f"{job}.out"
    return path.read_text().splitlines() if path.exists() else []


def ask_imds(endpoint: str, name: str) -> str:
    """A shell line that prints the status of the answer and the metadata."""
    life, token = "X-aws-ec2-metadata-token-ttl-seconds: 60", "X-aws-ec2-metadata-token: $t"
    fetch = f't=$(curl -s -X PUT -H "{life}" {endpoint}/latest/api/token)'
    read = f'curl -s -o answer.$$ -w "%{{http_code}} " -H "{token}" {endpoint}/latest/meta-data/{name}'
    return f"{fetch}; {read}; cat answer.$$; rm answer.$$"


def wait_starts(cluster: DevCluster, wanted: dict[str, list[str]]) -> None:
    """Wait until each job said that it started on these nodes, one after the other."""

    def starts() -> dict[str, list[str]]:
        return {job: [each for each in lines_of(cluster, job) if each.startswith("start")] for job in wanted}

    said = {
        job: [f"start {count} {node}" for count, node in enumerate(nodes)] for job, nodes in wanted.items()
    }
    cluster.wait_until(lambda: starts() == said, f"{said}")


def test_array_runs_as_an_ordinary_user_with_a_gpu_on_several_nodes(cluster: DevCluster) -> None:
    job = cluster.submit("id -un; hostname; echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES; sleep 0.5",
                         "--array=0-5", "--gpus-per-node=1")  # fmt: skip
    cluster.wait_until(lambda: set(cluster.states(job).values()) == {"COMPLETED"}, "the array")
    said = [lines_of(cluster, f"{job}_{index}") for index in range(6)]
    assert {each[0] for each in said} == {"nobody"}
    assert {each[1] for each in said} == set(cluster.spot_nodes)
    assert all(each[2] == f"{each[1]} 0" for each in said)


def test_standard_profile_is_as_bare_as_parallelcluster(cluster: DevCluster) -> None:
    rows = (line.partition("=") for line in cluster.run(["scontrol", "show", "config"]).stdout.splitlines())
    config = {key.strip(): value.strip() for key, _, value in rows}
    assert config["MaxArraySize"] == "1001"
    assert config["AccountingStorageType"] == "accounting_storage/none"
    assert config["SlurmctldParameters"] == "(null)"
    drain = ["scontrol", "update", f"nodename={cluster.nodes[0]}", "state=drain", "reason=x"]
    assert cluster.run_as_user(drain, check=False).returncode != 0
    assert cluster.run_as_user(["sacct"], check=False).returncode != 0


def test_user_runs_this_interpreter_and_its_libraries(cluster: DevCluster) -> None:
    code = "import numpy, os, sys; print(os.getuid() > 0, sys.prefix)"
    assert cluster.run_as_user(["python", "-c", code]).stdout.split() == ["True", sys.prefix]


def test_each_node_answers_with_its_own_metadata(cluster: DevCluster) -> None:
    ask = ask_imds("$AWS_EC2_METADATA_SERVICE_ENDPOINT", "instance-id")
    jobs = {node: cluster.submit(ask, f"--nodelist={node}") for node in cluster.spot_nodes}
    cluster.wait_until(lambda: all(cluster.task(j).state == "COMPLETED" for j in jobs.values()), "the jobs")
    assert {node: lines_of(cluster, job) for node, job in jobs.items()} == {
        node: [f"200 i-{node}"] for node in cluster.spot_nodes
    }


def test_requeued_and_preempted_jobs_start_again(cluster: DevCluster) -> None:
    calm, contested, _ = cluster.spot_nodes
    requeued = cluster.submit(LOOP, f"--nodelist={calm}")
    preempted = cluster.submit(LOOP, f"--nodelist={contested}", "--gpus-per-node=1")
    wait_starts(cluster, {requeued: [calm], preempted: [contested]})
    cluster.run_as_user(["scontrol", "requeue", requeued])
    urgent = cluster.submit("sleep 1", "--partition=reclaim", "--gpus-per-node=1", f"--nodelist={contested}")
    cluster.wait_until(lambda: cluster.task(urgent).state == "COMPLETED", "the urgent job")
    wait_starts(cluster, {requeued: [calm, calm], preempted: [contested, contested]})
    assert [cluster.task(each).restarts for each in (requeued, preempted)] == [1, 1]


def test_job_of_a_node_set_down_starts_again_on_another(cluster: DevCluster) -> None:
    job = cluster.submit(LOOP)
    wait_running(cluster, job)
    first = cluster.task(job).node
    cluster.set_node_state(first, "down")
    wait_running(cluster, job, restarts=1)
    assert cluster.task(job).node != first
    wait_starts(cluster, {job: [first, cluster.task(job).node]})


def test_jobs_survive_a_restart_of_the_controller(cluster: DevCluster) -> None:
    job = cluster.submit(LOOP)
    wait_running(cluster, job)
    pids = cluster.job_pids(job)
    assert pids
    cluster.restart_controller()
    assert cluster.task(job).state == "RUNNING"
    assert set(cluster.job_pids(job)) & set(pids)


def test_jobs_survive_the_death_of_slurmd(cluster: DevCluster) -> None:
    job = cluster.submit(LOOP)
    wait_running(cluster, job)
    daemon = f"slurmd-{cluster.task(job).node}"
    cluster.kill_daemon(daemon)
    assert cluster.job_pids(job) and cluster.stepd_pids(job)
    with pytest.raises(ProcessLookupError):
        cluster.pid(daemon)
    assert cluster.start_daemon(daemon) == cluster.pid(daemon)


def test_killed_node_loses_every_process_and_comes_back(cluster: DevCluster) -> None:
    job = cluster.submit(f"setsid sleep 300 & {LOOP}")
    wait_running(cluster, job)
    node = cluster.task(job).node
    assert len(cluster.job_pids(job)) >= 2
    cluster.kill_node(node)
    assert cluster.job_pids(job) == cluster.stepd_pids(job) == cluster.node_pids(node) == ()
    cluster.start_node(node)
    assert cluster.pid(f"slurmd-{node}") in cluster.node_pids(node)


def test_isolated_nodes_have_own_metadata_and_lose_the_network(
    make_cluster: Callable[[Options], DevCluster],
) -> None:
    cluster = make_cluster(Options(spot=2, ondemand=0, network=True))
    first, second = cluster.nodes
    when = cluster.imds(first).notice()
    notice = json.dumps({"action": "terminate", "time": when})
    ask = ask_imds("http://169.254.169.254", "spot/instance-action")
    jobs = [cluster.submit(ask, f"--nodelist={node}") for node in cluster.nodes]
    cluster.wait_until(lambda: all(cluster.task(each).state == "COMPLETED" for each in jobs), "the jobs")
    assert [lines_of(cluster, each) for each in jobs] == [[f"200 {notice}"], ["404 "]]

    def reaches_head(node: str) -> bool:
        connect = ["timeout", "0.5", "bash", "-c", "exec 3<>/dev/tcp/head/17800"]
        return cluster.run(connect, node=node, check=False).returncode == 0

    assert reaches_head(first)
    cluster.cut_network(first)
    assert not reaches_head(first)
    assert reaches_head(second)
    cluster.restore_network(first)
    cluster.wait_until(lambda: reaches_head(first), "the cable")


def test_killed_owner_leaves_no_process_and_no_folder() -> None:
    if (reason := why_not()) is not None:
        require("slurm", reason)
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from dev_cluster import *\n"
        "c = DevCluster(Options(spot=1, ondemand=0)); c.start()\n"
        "j = c.submit('setsid sleep 300 & sleep 300')\n"
        "c.wait_until(lambda: len(c.job_pids(j)) >= 2, 'the job')\n"
        "print(c.root, *c.pids(), flush=True); time.sleep(300)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(DEV_CLUSTER)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        root, *pids = owner.stdout.readline().split()
        spaces = {namespace_of(int(pid), "pid") for pid in pids}
        os.kill(owner.pid, signal.SIGKILL)
    assert len(pids) >= 6 and len(spaces) == 1
    wait_gone(spaces)
    assert not Path(root).exists()


def test_killed_process_1_takes_everything_along() -> None:
    with started(Options(spot=1, ondemand=0)) as cluster:
        spaces = {namespace_of(pid, "pid") for pid in cluster.pids()}
        os.kill(cluster._init, signal.SIGKILL)
        wait_gone(spaces)
    shutil.rmtree(cluster.root)


def wait_gone(spaces: set[str | None]) -> None:
    end = time.monotonic() + 10
    while any(processes_in(each) for each in spaces if each):
        assert time.monotonic() < end, "processes of the cluster are left"
        time.sleep(0.02)


def test_full_profile_accounts_for_jobs() -> None:
    with started(Options(spot=1, ondemand=0, profile="full"), component="slurm-full") as cluster:
        job = cluster.submit("true", "--array=0-1")
        sacct = ["sacct", "-X", "-n", "-P", "-j", job, "-o", "jobid,state"]
        done = {f"{job}_0|COMPLETED", f"{job}_1|COMPLETED"}
        cluster.wait_until(lambda: set(cluster.run_as_user(sacct).stdout.split()) == done, "sacct")


def test_command_line_brings_a_cluster_up_and_down(tmp_path: Path) -> None:
    if (reason := why_not()) is not None:
        require("slurm", reason)
    root = f"/tmp/vsr-cli-{os.getpid()}"

    def call(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(DEV_CLUSTER / "dev_cluster.py"), "--root", root, *argv]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    try:
        assert call("up", "--spot", "1", "--ondemand", "0").stdout.startswith("1 nodes are idle\n")
        assert call("up").stderr == f"a cluster is already up in {root}\n"
        assert call("run", "srun", "id", "-un").stdout == "nobody\n"
        assert "spot-dy-g4dn-1" in call("status").stdout
    finally:
        assert call("down").returncode == 0
    assert not Path(root).exists()
    assert call("status").stderr == f"no cluster in {root}\n"


@pytest.mark.parametrize("name", ["worker", "upscale"])
def test_sbatch_script_runs_vsr_with_the_arguments_as_given(
    cluster: DevCluster, name: str, tmp_path: Path
) -> None:
    stub = cluster.home / f"{name}-bin/vsr"
    stub.parent.mkdir()
    stub.write_text(f"#!{sys.executable}\nimport json, sys; print(json.dumps(sys.argv[1:]))\n")
    stub.chmod(0o755)
    env = {"PATH": f"{stub.parent}:{cluster.user_env['PATH']}"}
    script = str(ROOT / f"slurm/{name}.sbatch")
    arguments = ["a film.mkv", "out $1.mkv", "--model", "x"]
    job = cluster.run_as_user(["sbatch", "--parsable", script, *arguments], env=env).stdout.strip()
    log = cluster.home / f"vsr-{name}-{job}.log"
    cluster.wait_until(lambda: cluster.task(job).state == "COMPLETED", "the job")
    assert json.loads(log.read_text()) == [name, *arguments]
