"""The Slurm executor on a real cluster: submit, survive, resume. Each test names what must hold."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.fixtures import DevCluster, Options
from tests.slurm.submitted import PATIENCE_S, Submitted
from vsr_hpc.executors.slurm.jobs import failures

pytestmark = pytest.mark.slurm

BUSY = {"frames": 96, "slow_s": 0.06}
"""A clip of 24 shards that keeps one worker busy for six seconds, without using the CPU."""
LASTING = {"frames": 240, "slow_s": 0.5}
"""One that lasts for two minutes, so that a person's command meets it at work on a busy machine, too."""


def signal_job(cluster: DevCluster, film: Submitted, number: signal.Signals) -> None:
    """Signal every process of the workers; one that ended meanwhile, as others were killed, is no matter."""
    for pid in cluster.job_pids(film.job()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def test_four_workers_over_three_nodes_make_the_bytes_of_one_machine(
    make_cluster: Callable[[Options], DevCluster],
) -> None:
    spread = "SelectTypeParameters=CR_CPU,CR_LLN"
    cluster = make_cluster(Options(spot=3, ondemand=0, requeue_delay_s=5, extra=(spread,)))
    film = Submitted(cluster, "film", **BUSY, run={"workers": 4}, slurm={"gpus": 0})
    assert film.submit() == film.run.uri
    sha256 = film.wait_done()
    assert {beat.node for beat in film.run.heartbeats()} == set(cluster.nodes)
    assert len({beat.task for beat in film.run.heartbeats()}) == 4
    assert sha256 == film.alone()


def test_held_and_waiting_tasks_do_not_delay_the_end(cluster: DevCluster) -> None:
    out = cluster.spot_nodes[-1]
    film = Submitted(cluster, "held", **BUSY, run={"workers": 8}, slurm={"exclude": [out]})
    film.submit()
    cluster.run_as_user(["scontrol", "hold", f"{film.job()}_7"])
    film.wait_done()
    assert film.wait_ended(kind="finish") == ["CANCELLED"]
    assert set(film.wait_ended()) == {"CANCELLED", "COMPLETED"}
    assert sorted(beat.node for beat in film.run.heartbeats()) == sorted(set(cluster.spot_nodes) - {out})


def test_own_scancel_is_not_undone_and_resume_goes_on(cluster: DevCluster) -> None:
    film = Submitted(cluster, "scancel", **LASTING)
    film.submit()
    film.wait_receipts()
    cluster.run_as_user(["scancel", film.job()])
    assert film.wait_ended(kind="finish") == ["FAILED"]
    assert film.run.round_number() == 1 and film.run.done() is None
    assert any("cancelled by a person" in line for line in film.status()["queue"])
    first = film.run.finished()
    film.resume()
    film.speed_up()
    film.wait_done()
    assert film.run.round_number() == 2
    assert {receipt.shard for receipt in film.run.receipts() if receipt.worker in _workers(film, 1)} >= first


def _workers(film: Submitted, number: int) -> set[str]:
    return {beat.worker for beat in film.run.heartbeats() if beat.round == number}


def test_vsr_cancel_ends_the_jobs_and_nothing_follows(cluster: DevCluster) -> None:
    film = Submitted(cluster, "cancel", **LASTING, run={"workers": 5})
    film.submit()
    film.wait_receipts()
    film.vsr("cancel", str(film.output))
    assert film.status()["state"] == "cancelled"
    cluster.wait_until(lambda: not _open_jobs(cluster), "an empty queue", timeout_s=PATIENCE_S)
    assert film.states(kind="finish") == ["CANCELLED"]
    assert film.run.round_number() == 1
    film.resume()
    film.speed_up()
    film.wait_done()


def _open_jobs(cluster: DevCluster) -> list[str]:
    over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"}
    return [task.name for task in cluster.tasks() if task.state not in over]


def test_forgotten_jobs_and_small_arrays_lose_nothing(make_cluster: Callable[[Options], DevCluster]) -> None:
    limits = ("MaxArraySize=3",)
    cluster = make_cluster(Options(spot=2, ondemand=0, requeue_delay_s=5, min_job_age_s=2, extra=limits))
    film = Submitted(cluster, "small", **LASTING, run={"workers": 64})
    film.submit()
    assert film.run.plan.shard_count == 60 and film.run.rounds()[0].workers == 3
    film.wait_receipts()
    film.vsr("cancel", str(film.output))
    cluster.wait_until(lambda: not cluster.tasks(), "slurmctld to forget", timeout_s=PATIENCE_S)
    assert film.status()["state"] == "cancelled"
    film.resume()
    film.speed_up()
    film.wait_done()
    assert film.run.round_number() == 2


def test_workers_that_do_not_see_the_run_exit_2_and_status_says_it(cluster: DevCluster) -> None:
    for node in cluster.spot_nodes:
        cluster.set_node_state(node, "drain")
    film = Submitted(cluster, "unseen", frames=24, run={"workers": 2})
    film.submit()
    assert film.status()["state"] == "waiting"
    run, away = film.folder / ".vsr/out.mkv", film.folder / "elsewhere"
    workers, finish = film.job(), film.job(kind="finish")
    run.rename(away)
    for node in cluster.spot_nodes:
        cluster.set_node_state(node, "resume")
    for job in (workers, finish):
        cluster.wait_until(
            lambda job=job: set(cluster.states(job).values()) == {"FAILED"}, "failures", timeout_s=PATIENCE_S
        )
    away.rename(run)
    said = "\n".join(film.status()["queue"])
    assert "3 tasks ended with 2" in said and "no run here" in said
    folder = Path(json.loads(film.run.store.read("jobs/1.json"))["folder"])
    assert [each.code for each in failures(folder)] == [2, 2, 2]


def test_two_resumes_at_once_start_one_round(cluster: DevCluster) -> None:
    film = Submitted(cluster, "twice", frames=96, slow_s=0.25)
    film.submit()
    film.wait_receipts()
    film.vsr("cancel", str(film.output))
    both = [cluster.start_as_user(["vsr", "resume", str(film.output)]) for _ in range(2)]
    assert [each.wait(PATIENCE_S) for each in both] == [0, 0]
    film.speed_up()
    film.wait_done()
    assert film.run.round_number() == 2


def test_time_limit_signal_requeues_the_task_which_takes_its_place_again(cluster: DevCluster) -> None:
    film = Submitted(cluster, "limit", **LASTING, run={"workers": 1})
    film.submit()
    film.wait_receipts(2)
    cluster.run_as_user(["scancel", "--signal=USR2", film.job()])
    wait_noted(film, "time limit")
    film.speed_up()
    film.wait_done()
    assert film.run.round_number() == 1
    beats = sorted(film.run.heartbeats(), key=lambda beat: beat.restart)
    assert [beat.restart for beat in beats] == [0, 1]
    assert len({beat.task for beat in beats}) == 1 and beats[0].note == "time limit"


def test_requeued_worker_takes_its_own_shard_back_at_once(cluster: DevCluster) -> None:
    film = Submitted(cluster, "requeue", **LASTING, run={"workers": 1})
    film.submit()
    film.wait_receipts(2)
    signal_job(cluster, film, signal.SIGSTOP)  # it cannot give its lease back
    cluster.run_as_user(["scontrol", "requeue", film.job()])
    film.speed_up()
    film.wait_done()
    assert [beat.restart for beat in film.run.heartbeats()].count(1) == 1
    receipts = film.run.receipts()
    assert sum(receipt.generation - 1 for receipt in receipts) <= 1


def test_spot_notice_gives_the_shard_back_and_the_task_moves_when_the_node_drains(
    cluster: DevCluster,
) -> None:
    film = Submitted(cluster, "notice", **LASTING, run={"workers": 1})
    film.submit()
    film.wait_receipts(2)
    node = film.run.heartbeats()[0].node
    cluster.imds(node).notice()
    cluster.wait_until(
        lambda: film.run.heartbeats()[0].state == "left", "the worker to leave", timeout_s=PATIENCE_S
    )
    assert cluster.task(film.job()).state == "RUNNING"  # its place is held: nothing starts on a dying node
    cluster.set_node_state(node, "drain")
    film.speed_up()
    film.wait_done()
    nodes = [beat.node for beat in sorted(film.run.heartbeats(), key=lambda beat: beat.restart)]
    assert nodes[0] == node and len(nodes) == 2 and nodes[1] != node
    assert film.run.round_number() == 1


def test_on_demand_workers_stand_by_until_a_spot_worker_is_at_work(cluster: DevCluster) -> None:
    both = {"partitions": ["spot", "ondemand"]}
    film = Submitted(cluster, "standby", frames=120, slurm={**both, "standby_after_min": 15})
    film.submit()
    film.wait_done()
    assert set(film.wait_ended(kind="standby")) == {"CANCELLED"}
    assert {beat.node for beat in film.run.heartbeats()} <= set(cluster.spot_nodes)


def test_on_demand_workers_step_in_where_spot_does_not_come(cluster: DevCluster) -> None:
    for node in cluster.spot_nodes:
        cluster.set_node_state(node, "drain")
    both = {"partitions": ["spot", "ondemand"], "standby_after_min": 0.01}
    film = Submitted(cluster, "ondemand", frames=120, slurm=both)
    film.submit()
    film.wait_done()
    assert set(film.wait_ended()) == {"CANCELLED"}
    assert {beat.node for beat in film.run.heartbeats()} == set(cluster.ondemand_nodes)


def test_round_whose_only_worker_was_killed_is_followed_by_another(cluster: DevCluster) -> None:
    film = Submitted(cluster, "killed", **LASTING, run={"workers": 1})
    film.submit()
    film.wait_receipts(2)
    signal_job(cluster, film, signal.SIGKILL)
    film.speed_up()
    sha256 = film.wait_done()
    assert [each.number for each in film.run.rounds()] == [1, 2]
    assert sha256 == film.alone()


def test_hung_worker_is_replaced_by_its_own_task(cluster: DevCluster) -> None:
    film = Submitted(cluster, "hung", **BUSY, run={"workers": 1, "hang_s": 5})
    film.submit()
    film.hang(film.job())
    film.speed_up()  # the watchdog waits for a multiple of the longest pause between two batches
    sha256 = film.wait_done()
    assert film.run.round_number() == 1
    beats = sorted(film.run.heartbeats(), key=lambda beat: beat.restart)
    assert [beat.restart for beat in beats] == [0, 1] and beats[0].state == "working"
    assert "the work hangs" in "\n".join(film.status()["queue"])
    assert sha256 == film.alone()


def test_merge_that_the_time_limit_cuts_off_is_requeued_and_ends(cluster: DevCluster) -> None:
    film = Submitted(cluster, "merge", **BUSY, run={"workers": 1, "lease_window_s": 3})
    film.hold_merge()
    film.submit()
    wait_merging(film, "workers")
    signal_job(cluster, film, signal.SIGKILL)
    wait_merging(film, "finish")
    finish = film.job(kind="finish")
    cluster.run_as_user(["scancel", "--signal=USR2", finish])
    film.wait_done()
    assert film.run.round_number() == 1
    cluster.wait_until(lambda: film.states(kind="finish") == ["COMPLETED"], "the job", timeout_s=PATIENCE_S)
    assert cluster.task(finish).restarts == 1
    end = film.run.ending("finish", film.run.leases()["finish"].generation - 1)
    assert end is not None and end.cause == "stopped", "the merge that was cut off gave its lease back"


def test_plan_and_merge_run_on_a_cpu_partition_after_the_gpu_nodes_are_released(cluster: DevCluster) -> None:
    elsewhere = sys.executable.replace("/bin/", "/bin/./")  # another path to it: not planned at submission
    section = {"partitions": ["spot"], "cpu_partition": "ondemand", "python": elsewhere}
    film = Submitted(cluster, "cpu", frames=24, slow_s=0.02, run={"workers": 2}, slurm=section)
    film.hold_merge()
    film.submit()
    wait_merging(film, "finish")
    assert film.states() == ["COMPLETED", "COMPLETED"]
    assert film.states(kind="plan") == ["COMPLETED"] and film.states(kind="finish") == ["RUNNING"]
    (film.folder / "hold-merge").unlink()
    sha256 = film.wait_done()
    worked = {beat.node.partition("-")[0] for beat in film.run.heartbeats() if beat.shards}
    others = {cluster.tasks(film.job(kind=kind))[0].node.partition("-")[0] for kind in ("plan", "finish")}
    assert (worked, others) == ({"spot"}, {"ondemand"})
    assert sha256 == film.alone()


def test_a_submission_that_is_refused_half_way_leaves_no_job_and_is_not_in_the_way(
    cluster: DevCluster,
) -> None:
    film = Submitted(cluster, "half", frames=8, slurm={"partitions": ["spot"], "cpu_partition": "nowhere"})
    refused = film.vsr("submit", str(film.path), "--on", "slurm", check=False)
    assert refused.returncode == 2 and "this cluster has spot" in refused.stderr
    over = {"CANCELLED", "COMPLETED", "FAILED"}
    cluster.wait_until(
        lambda: {each.state for each in cluster.tasks()} <= over, "no job", timeout_s=PATIENCE_S
    )
    assert not film.output.exists()
    film.write(picture={"scale": 3}, slurm={"partitions": ["spot"], "gpus": 0})
    film.submit()
    assert film.wait_done() == film.alone()


def wait_noted(film: Submitted, note: str) -> None:
    """Wait until a worker has left for this reason."""
    film.cluster.wait_until(
        lambda: any(beat.note == note for beat in film.run.heartbeats()), note, timeout_s=PATIENCE_S
    )


def wait_merging(film: Submitted, kind: str) -> None:
    """Wait until a process of the round's workers, or of its last job, merges."""

    def is_merging() -> bool:
        beats = (beat for beat in film.run.heartbeats() if beat.state == "finishing")
        return any(beat.task.removeprefix("dev-").startswith(film.job(kind=kind)) for beat in beats)

    film.cluster.wait_until(is_merging, f"the merge by {kind}", timeout_s=PATIENCE_S)


def test_worker_in_a_container_hears_of_the_time_limit(cluster: DevCluster) -> None:
    tools = cluster.home / "tools"
    cluster.run_as_user(["mkdir", "-p", str(tools)])
    stub = tools / "apptainer"  # stands for the real one: `apptainer exec [--nv] IMAGE COMMAND ...`
    stub.write_text('#!/bin/sh\nwhile [ "$1" != image.sif ]; do shift; done; shift; exec "$@"\n')
    stub.chmod(0o755)
    how = {"container": {"image": "image.sif"}, "setup": [f'export PATH="{tools}:$PATH"']}
    film = Submitted(cluster, "container", **LASTING, run={"workers": 1}, slurm=how)
    film.submit()
    film.wait_receipts(2)
    cluster.run_as_user(["scancel", "--signal=USR2", film.job()])
    wait_noted(film, "time limit")
    film.speed_up()
    film.wait_done()
    assert sorted(beat.restart for beat in film.run.heartbeats()) == [0, 1]
    assert film.run.round_number() == 1


def test_settings_that_sbatch_refuses_end_before_anything_runs(cluster: DevCluster) -> None:
    film = Submitted(cluster, "refused", frames=24, slurm={"partitions": ["nowhere"]})
    refused = film.vsr("submit", str(film.path), "--on", "slurm", check=False)
    assert refused.returncode == 2 and "nowhere" not in refused.stdout and "partition" in refused.stderr
    film.write()
    film.submit()
    film.wait_done()


def test_packed_environment_is_unpacked_on_the_node_and_the_first_worker_plans(cluster: DevCluster) -> None:
    film = Submitted(cluster, "packed", frames=96)
    (film.folder / "bin").mkdir()
    python = film.folder / "bin/python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    archive, disk = film.folder / "env.tar.gz", film.folder / "disk"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(python, "bin/python")
    cluster.run_as_user(["mkdir", str(disk)])
    film.write(slurm={"packed": str(archive), "setup": [f"export TMPDIR={disk}"]})
    film.submit()
    film.wait_done()
    unpacked = [path.parent for path in disk.glob("vsr-env-*/*/.ready")]
    assert len(unpacked) == 1 and unpacked[0].parent.stat().st_mode & 0o777 == 0o700
    assert sorted(film.run.leases())[-1] == "plan-1" and len(film.run.rounds()) == 1
