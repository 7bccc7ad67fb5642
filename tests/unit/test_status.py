from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.runs import planned_run, tiny_job
from tests.unit.test_run import heartbeat, receipt
from vsr_hpc.run.documents import Done, Poison
from vsr_hpc.run.run import Run
from vsr_hpc.run.status import read_status
from vsr_hpc.storage.folder_store import FolderStore


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Six shards of four frames."""
    return planned_run(tiny_job(tmp_path))


def _done(run: Run) -> Done:
    return Done(output=run.plan.job.output, frames=24, size_bytes=1, sha256="0", offset_s=0, finished_s=1)


def test_a_run_without_a_plan_waits_until_somebody_plans_it(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    run = Run.create(FolderStore(tmp_path / "run"), job)
    run.store.delete("plan.json")
    assert (read_status(run).state, read_status(run).shards) == ("waiting", 0)
    run.beat(heartbeat("w"))
    assert read_status(run).state == "planning"


def test_the_state_follows_what_lies_in_the_store(run: Run) -> None:
    assert read_status(run).state == "incomplete"
    run.beat(heartbeat("w", state="working", shard=0))
    assert read_status(run).state == "running"
    for shard in range(6):
        run.record(receipt(shard))
    assert read_status(run).state == "finishing"
    run.beat(heartbeat("w", state="left"))
    assert read_status(run).state == "merging"
    run.write_done(_done(run))
    assert read_status(run).state == "output gone"
    Path(run.plan.job.output).write_bytes(b"0")
    assert read_status(run).state == "complete"


def test_a_cancelled_run_never_runs_however_young_a_killed_workers_heartbeat_is(run: Run) -> None:
    run.beat(heartbeat("w", state="working"))
    run.cancel()
    assert read_status(run).state == "cancelled" and len(read_status(run).alive) == 1
    for shard in range(6):
        run.record(receipt(shard))
    assert read_status(run).state == "finishing"


def test_the_next_round_is_not_cancelled_by_the_mark_of_the_last(run: Run) -> None:
    run.cancel()
    run.start_round("local", 1, 6)
    assert read_status(run).state == "incomplete"


def test_shards_that_were_set_aside_are_named(run: Run) -> None:
    run.poison(Poison(shard=3, generation=4, reason="frame 13 is broken", nodes=("a", "b")))
    status = read_status(run)
    assert (status.state, status.shards_poisoned) == ("poisoned", 1)
    assert status.poisoned[0].reason == "frame 13 is broken"
    run.retry_poisoned()
    assert read_status(run).shards_poisoned == 0


def test_frames_in_hand_are_shown_and_not_counted_as_done(run: Run) -> None:
    run.record(receipt(0))
    run.beat(heartbeat("w", state="working", shard=1, shard_frames=3))
    status = read_status(run)
    assert (status.frames_done, status.frames_shown, status.shards_running) == (4, 7, 1)


def test_frames_of_a_shard_that_is_done_are_counted_once(run: Run) -> None:
    run.record(receipt(1))
    run.beat(heartbeat("w", state="working", shard=1, shard_frames=4))
    status = read_status(run)
    assert (status.frames_shown, status.shards_running) == (4, 0)


def test_two_workers_on_one_shard_do_not_count_it_twice(run: Run) -> None:
    for worker in ("a", "b"):
        run.beat(heartbeat(worker, state="working", shard=1, shard_frames=2))
    assert (read_status(run).frames_shown, read_status(run).shards_running) == (2, 1)


def test_speed_is_that_of_workers_at_work_and_gives_the_time_left(run: Run) -> None:
    now = time.time()
    for name, state in (("a", "working"), ("b", "working"), ("c", "waiting"), ("d", "left")):
        run.beat(heartbeat(name, state=state, frames=20, started_s=now - 10, updated_s=now))
    status = read_status(run)
    assert status.fps == pytest.approx(4)
    assert status.eta_s == pytest.approx(24 / 4)


def test_without_speed_no_time_left_is_invented(run: Run) -> None:
    run.beat(heartbeat("a", state="working", frames=0, started_s=1, updated_s=1))
    status = read_status(run)
    assert (status.fps, status.eta_s) == (0, None)


def test_overall_speed_is_of_the_latest_round(run: Run) -> None:
    run.beat(heartbeat("old", round=1, frames=1000, started_s=0, updated_s=10, state="left"))
    run.beat(heartbeat("a", round=2, frames=10, started_s=100, updated_s=105))
    run.beat(heartbeat("b", round=2, frames=30, started_s=102, updated_s=110))
    assert read_status(run).fps_overall == pytest.approx(4)


def test_a_worker_whose_process_is_gone_is_not_alive(run: Run) -> None:
    run.beat(heartbeat("dead", state="working", process_start=1))
    run.beat(heartbeat("elsewhere", state="working", host="other", process_start=1))
    assert [each.heartbeat.worker for each in read_status(run).alive] == ["elsewhere"]


def test_a_worker_elsewhere_that_says_nothing_for_a_lease_window_is_not_alive(run: Run) -> None:
    run.beat(heartbeat("elsewhere", state="working", host="other"))
    path = Path(run.place_uri) / "workers" / "elsewhere.json"
    silent_since = path.stat().st_mtime - run.store.lease_window_s - 5
    os.utime(path, (silent_since, silent_since))
    status = read_status(run)
    assert status.alive == ()
    assert status.workers[0].age_s > run.store.lease_window_s


def test_stage_times_of_all_workers_are_summed(run: Run) -> None:
    run.beat(heartbeat("a", seconds={"decode": 1.0, "device": 2.0}))
    run.beat(heartbeat("b", seconds={"device": 3.0}))
    assert read_status(run).seconds == {"decode": 1.0, "device": 5.0}
