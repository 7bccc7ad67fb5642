"""What was expected of a run beside what it took, from its own files."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.runs import finished, planned_run, tiny_job
from vsr_hpc.cli.progress import spending_lines, status_lines
from vsr_hpc.forecast.forecast import note_estimate
from vsr_hpc.forecast.job_ways import Option, Range
from vsr_hpc.launch import whole_status
from vsr_hpc.run.documents import Done, Heartbeat, LeaseState, Round
from vsr_hpc.run.spending import node_seconds, read_estimate, read_spent, shards_lost, spent_by


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


OPTION = Option(
    where="slurm",
    label="Slurm cluster, Spot",
    purchase="spot",
    instance="g5.xlarge",
    workers=4,
    seconds=Range(low=300, mid=600, high=1200),
    usd=Range(low=0.5, mid=1.0, high=2.0),
    node_hours=2.0,
    interruptions=0.1,
    basis="scaled",
    slowest="network",
    source="scaled",
    shards=16,
)


def beat(worker: str, node: str, start: float, stop: float, **changes: object) -> Heartbeat:
    values = {
        "worker": worker, "host": "elsewhere", "node": node, "pid": 1, "process_start": 1, "boot": "b",
        "started_s": start, "updated_s": stop, "state": "left",
    }  # fmt: skip
    return Heartbeat.model_validate(values | changes)


def test_workers_side_by_side_on_one_node_count_once() -> None:
    beats = [beat("a", "n1", 0, 100), beat("b", "n1", 50, 150), beat("c", "n2", 0, 10)]
    assert node_seconds(beats) == 160


def test_time_between_two_workers_of_a_node_does_not_count() -> None:
    assert node_seconds([beat("a", "n1", 0, 10), beat("b", "n1", 100, 110)]) == 20


def test_a_clock_that_ran_backwards_counts_nothing() -> None:
    assert node_seconds([beat("a", "n1", 100, 50)]) == 0


def test_interruptions_are_workers_that_went_before_their_work_was_done() -> None:
    beats = [
        beat("done", "n1", 0, 100),
        beat("cancelled", "n1", 0, 100, note="cancelled"),
        beat("spot", "n2", 0, 100, note="spot notice"),
        beat("preempted", "n3", 0, 100, note="terminated"),
        beat("silent", "n4", 0, 100, state="working"),
        beat("at-work", "n5", 0, 990, state="working"),
    ]
    spent = spent_by(beats, (), None, now_s=1000, window_s=60, shards_lost=0, estimate=None)
    assert spent.interruptions == 3


def test_shards_lost_are_generations_without_a_receipt() -> None:
    leases = {
        "00000": LeaseState(generation=1, is_ended=False),  # at work or done
        "00001": LeaseState(generation=3, is_ended=False),  # taken over twice
        "00002": LeaseState(generation=1, is_ended=True),  # given back
        "00003": LeaseState(generation=2, is_ended=True),  # given back, then made by another's receipt
        "finish": LeaseState(generation=5, is_ended=True),
    }
    assert shards_lost(leases, frozenset({1, 3})) == 2 + 1 + 1


def test_money_is_node_hours_at_the_estimates_price(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    note_estimate(run, OPTION, prices="list prices")
    estimate = read_estimate(run)
    assert estimate is not None and estimate.usd_per_node_hour == 0.5
    began = Round(number=1, executor="slurm", workers=4, user="u", submitted_s=1000, missing=4)
    ended = Done(output="o", frames=1, size_bytes=1, sha256="", offset_s=0, finished_s=4600)
    beats = [beat("a", "n1", 1000, 4600), beat("b", "n2", 1000, 4600, note="spot notice")]
    spent = spent_by(beats, [began], ended, now_s=5000, window_s=60, shards_lost=1, estimate=estimate)
    assert (spent.seconds, spent.node_hours, spent.usd) == (3600, 2.0, 1.0)
    took, cost, interrupted = spending_lines(estimate, spent, is_done=True)
    assert took == "took: 60 min, 2.00 node-hours, estimated 10 min (5 min to 20 min)"
    assert cost.startswith("cost: about $1.00 by node-hours, estimated $1.00 ($0.50 to $2.00;")
    assert interrupted == "interrupted: 1 worker, 1 shard started again"


def test_the_first_estimate_of_a_run_stands(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    note_estimate(run, OPTION, prices="")
    note_estimate(run, replace(OPTION, workers=9), prices="")
    estimate = read_estimate(run)
    assert estimate is not None and estimate.workers == 4


def test_a_damaged_estimate_is_none_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = planned_run(tiny_job(tmp_path))
    assert read_estimate(run) is None
    run.store.create("estimate.json", b"{}")
    assert read_estimate(run) is None
    assert "estimate not read" in caplog.text


def test_an_estimate_changes_no_byte_of_the_plan(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    before = run.store.read("plan.json")
    note_estimate(run, OPTION, prices="")
    assert run.store.read("plan.json") == before


def test_a_finished_run_tells_its_time_and_node_hours(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    finished(run)
    spent = read_spent(run)
    assert spent.seconds > 0 and 0 < spent.node_hours <= spent.worker_hours
    assert (spent.interruptions, spent.shards_lost, spent.usd) == (0, 0, None)
    said = [str(each) for each in status_lines(whole_status(run))]
    assert any(each.startswith("took: ") and "node-hours" in each for each in said)


def test_a_run_with_an_estimate_and_no_worker_yet_shows_it_alone(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    note_estimate(run, OPTION, prices="")
    spent = spent_by((), (), None, now_s=time.time(), window_s=60, shards_lost=0, estimate=read_estimate(run))
    assert spending_lines(read_estimate(run), spent, is_done=False) == (
        "estimated: 10 min (5 min to 20 min)",
    )
