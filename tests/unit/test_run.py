from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import planned_run, tiny_job
from vsr_hpc.errors import JobError
from vsr_hpc.launch import executor_of
from vsr_hpc.run.claims import Claims
from vsr_hpc.run.control import Control
from vsr_hpc.run.documents import Heartbeat, Receipt
from vsr_hpc.run.liveness import Process, is_process_gone
from vsr_hpc.run.run import Run
from vsr_hpc.run.status import read_status


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return planned_run(tiny_job(tmp_path))


def heartbeat(worker: str, **changes: object) -> Heartbeat:
    me = Process.current()
    facts = {"host": me.host, "node": "n1", "pid": me.pid, "process_start": me.process_start, "boot": me.boot}
    return Heartbeat.model_validate({"worker": worker, **facts, **changes})


def receipt(shard: int, worker: str = "w") -> Receipt:
    return Receipt(
        shard=shard,
        worker=worker,
        generation=1,
        segments=(),
        platform={},
        seconds={},
        started_s=0,
        finished_s=1,
    )


def claims(run: Run, worker: str, node: str = "n1", task: str = "") -> Claims:
    run.beat(heartbeat(worker, node=node, task=task))
    return Claims(run=run, worker=worker, node=node, task=task)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no run here"):
        Run.open(str(tmp_path))


def test_a_run_is_found_by_its_own_place_and_by_its_output(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    output = Path(run.plan.job.output)
    assert run.uri == str(output.parent / ".vsr" / output.name)
    for named in (run.uri, f"{run.uri}/", str(output)):
        assert Run.open(named).uri == run.uri
    output.write_bytes(b"a film")  # a file is no run, and no reason to fail either
    assert Run.open(str(output)).uri == run.uri


def test_what_is_missing_is_the_plan_minus_the_receipts(run: Run) -> None:
    assert run.missing() == frozenset(range(6))
    assert run.record(receipt(2))
    assert run.missing() == frozenset({0, 1, 3, 4, 5})


def test_the_first_receipt_wins_for_ever(run: Run) -> None:
    assert run.record(receipt(0, "first"))
    assert not run.record(receipt(0, "second"))
    assert run.receipt(0).worker == "first"


def test_an_existing_plan_is_never_replaced(run: Run) -> None:
    other = run.plan.model_copy(update={"shard_borders": (0, run.plan.chunk_count)})
    run.write_plan(other, run.timeline.to_bytes())
    assert run.plan.shard_count == 6


def test_two_workers_never_hold_one_shard(run: Run) -> None:
    one, two = claims(run, "one"), claims(run, "two")
    taken = []
    for _ in range(3):
        for each in (one, two):
            lease = each.next(run.control())
            assert lease is not None
            taken.append(lease.name)
    assert sorted(taken) == [f"{shard:05d}" for shard in range(6)]
    assert one.next(run.control()) is None


def test_a_shard_given_back_is_taken_again_at_the_next_generation(run: Run) -> None:
    one = claims(run, "one")
    lease = one.next(run.control())
    assert lease is not None
    run.give_back(lease, "stopped", "n1")
    others = claims(run, "two")
    taken = [others.next(run.control()) for _ in range(6)]
    again = [each for each in taken if each is not None and each.name == lease.name]
    assert [each.generation for each in again] == [2]


def test_a_dead_process_of_this_host_loses_its_lease_at_once(run: Run) -> None:
    script = (
        "import pathlib, time; stat = pathlib.Path('/proc/self/stat').read_text(); "
        "print(stat.rsplit(')', 1)[1].split()[19], flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert child.stdout is not None
    start = int(child.stdout.readline())
    run.beat(heartbeat("doomed", pid=child.pid, process_start=start))
    held = [Claims(run=run, worker="doomed", node="n1").next(run.control())]
    living = claims(run, "living")
    taken = [living.next(run.control()) for _ in range(5)]
    assert living.next(run.control()) is None, "its process lives, so its lease stands"
    child.kill()
    child.wait()
    child.stdout.close()
    lease = living.next(run.control())
    assert lease is not None
    assert lease.generation == 2
    assert held[0] is not None
    assert lease.name == held[0].name
    assert all(each is not None and each.generation == 1 for each in taken)


def test_a_process_of_another_host_is_never_called_dead() -> None:
    assert not is_process_gone(heartbeat("far", host="elsewhere", pid=999_999, boot="other"))


def test_a_silent_holder_is_worth_waiting_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    moves = heartbeat("far", host="elsewhere", boot="other")
    run.beat(moves)
    assert Claims(run=run, worker="far", node="n1").next(run.control()) is not None
    waiting = claims(run, "waiting")
    while waiting.next(run.control()) is not None:
        pass
    assert not waiting.may_come_free(run.control())
    began, window_s = time.monotonic(), run.store.lease_window_s
    monkeypatch.setattr(time, "monotonic", lambda: began + window_s / 2)
    assert waiting.may_come_free(run.control())
    run.beat(moves.model_copy(update={"counter": 1}))
    assert waiting.next(run.control()) is None
    assert not waiting.may_come_free(run.control()), "it has moved"


def test_a_holder_that_moved_while_nobody_looked_is_not_silent(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was busy with its own shard for longer than the window looks before it takes."""
    moves = heartbeat("far", host="elsewhere", boot="other")
    run.beat(moves)
    assert Claims(run=run, worker="far", node="n1").next(run.control()) is not None
    busy = claims(run, "busy")
    while busy.next(run.control()) is not None:
        pass
    began = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began + 2 * run.store.lease_window_s)
    run.beat(moves.model_copy(update={"counter": 1}))
    assert busy.next(run.control()) is None


def test_the_same_array_task_come_back_takes_its_own_shard_again(run: Run) -> None:
    before = claims(run, "first-life", task="77_3")
    lease = before.next(run.control())
    assert lease is not None
    run.beat(heartbeat("first-life", host="elsewhere", boot="other", task="77_3"))
    after = claims(run, "second-life", task="77_3")
    names = {each.name: each.generation for _ in range(6) if (each := after.next(run.control())) is not None}
    assert names[lease.name] == 2


@pytest.mark.parametrize(("cause", "attempts"), [("media", 2), ("died", 4)])
def test_a_shard_that_fails_too_often_is_set_aside_and_named(run: Run, cause: str, attempts: int) -> None:
    worker = claims(run, "w0")
    for generation in range(1, attempts + 1):
        lease = run.take("00000", generation, f"dead{generation}", "n1")
        assert lease is not None
        run.beat(heartbeat(f"dead{generation}", pid=2**22 - generation, process_start=1))
        if cause != "died":
            run.give_back(lease, "media", "n1", "frame 3 is broken")
    taken = [worker.next(run.control()) for _ in range(6)]
    assert "00000" not in [each.name for each in taken if each is not None]
    (poison,) = run.poisoned()
    assert poison.shard == 0
    assert poison.reason == ("frame 3 is broken" if cause == "media" else "its worker died without a message")


def test_a_shard_that_was_finished_after_all_is_not_set_aside(run: Run) -> None:
    for generation in (1, 2):
        lease = run.take("00000", generation, "w", "n1")
        assert lease is not None
        run.give_back(lease, "media", "n1", "broken")
    worker = claims(run, "w0")
    while worker.next(run.control()) is not None:
        pass
    assert [each.shard for each in run.poisoned()] == [0]
    assert run.record(receipt(0))
    assert run.poisoned() == ()
    assert read_status(run).shards_poisoned == 0


def test_announced_stops_and_backend_errors_never_set_a_shard_aside(run: Run) -> None:
    for generation in range(1, 9):
        lease = run.take("00000", generation, "w", "n1")
        assert lease is not None
        run.give_back(lease, "stopped" if generation % 2 else "backend", "n1")
    worker = claims(run, "w0")
    taken = [worker.next(run.control()) for _ in range(6)]
    assert [each.generation for each in taken if each is not None and each.name == "00000"] == [9]
    assert run.poisoned() == ()


def test_retrying_brings_a_shard_back(run: Run) -> None:
    for generation in (1, 2):
        lease = run.take("00000", generation, "w", "n1")
        assert lease is not None
        run.give_back(lease, "media", "n1", "broken")
    worker = claims(run, "w0")
    assert {each.name for _ in range(6) if (each := worker.next(run.control()))} == {
        f"{n:05d}" for n in range(1, 6)
    }
    assert run.retry_poisoned() == 1
    assert run.poisoned() == ()
    fresh = claims(run, "w1")
    lease = next(each for _ in range(6) if (each := fresh.next(run.control())) and each.name == "00000")
    assert lease.generation == 3


def test_a_cancel_holds_for_its_round_and_not_for_the_next(run: Run) -> None:
    assert run.round_number() == 1
    run.cancel()
    assert run.is_cancelled()
    assert run.start_round("local", 1, 6) is not None
    assert not run.is_cancelled()


def test_the_run_of_a_workflow_goes_on_in_batch(run: Run) -> None:
    assert executor_of(run) == "local"
    assert run.start_round("step-functions", 2, 6) is not None
    assert executor_of(run) == "aws-batch"


def test_a_worker_of_no_round_is_not_cancelled() -> None:
    assert not Control.from_names([]).is_cancelled(0)
    assert Control.from_names(["cancelled.2"]).is_cancelled(0)


def test_objects_of_a_run_obey_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        run = planned_run(tiny_job(tmp_path))
    finally:
        os.umask(before)
    assert (Path(run.place_uri) / "plan.json").stat().st_mode & 0o777 == 0o640
