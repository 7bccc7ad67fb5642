"""A process says that it lives while its work moves on: no error silences it, and a hang ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs import planned_run, tiny_job
from vsr_hpc.run.liveness import Process
from vsr_hpc.run.run import Run
from vsr_hpc.storage.folder_store import FolderStore
from vsr_hpc.system.interrupts import Reason, StopFlag
from vsr_hpc.system.progress import tick, ticks, uncounted
from vsr_hpc.work import worker
from vsr_hpc.work.finish import finish_patiently
from vsr_hpc.work.heartbeat import Pulse
from vsr_hpc.work.watchdog import StallMeter

LIMIT_S = 60.0


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(FolderStore, "poll_s", 0.03)
    return planned_run(tiny_job(tmp_path))


def until(is_so: object) -> None:
    end = time.monotonic() + LIMIT_S
    while not is_so():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_a_raw_disk_error_stops_neither_the_heartbeat_nor_the_hearing_of_cancel(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, a heartbeat's thread died of any error that was not this package's own."""
    is_ill, goes_on = threading.Event(), threading.Event()
    real_list = FolderStore.list

    def listing(store: FolderStore, prefix: str) -> object:
        if prefix == "control/" and is_ill.is_set() and threading.current_thread().name == "heartbeat":
            raise OSError(116, "Stale file handle")
        return real_list(store, prefix)

    def patiently(bench: object, shard: object, *, should_drop: object, on_frames: object) -> object:
        goes_on.wait(LIMIT_S)
        raise worker.Stopped

    monkeypatch.setattr(FolderStore, "list", listing)
    monkeypatch.setattr(worker, "make_segments", patiently)
    stop, outcomes = StopFlag(), list[worker.Outcome]()

    def work() -> None:
        outcomes.append(worker.work(run.uri, worker.WorkerOptions(threads=1), stop))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        until(lambda: any(beat.state == "working" for beat in run.heartbeats()))
        is_ill.set()
        until(lambda: "Stale file handle" in caplog.text)
        before = run.heartbeats()[0].counter
        until(lambda: run.heartbeats()[0].counter > before + 2)
        is_ill.clear()
        run.cancel()
        assert stop.wait(LIMIT_S), "the worker no longer hears `cancel`"
    finally:
        goes_on.set()
        thread.join()
    assert outcomes[0].reason is Reason.CANCELLED


def test_one_failing_step_keeps_no_other_step_from_running(run: Run) -> None:
    ran = threading.Event()

    def fail() -> None:
        raise ValueError("a foreign name")

    pulse = Pulse(run, Process.current().heartbeat("w", "n"))
    with pulse.kept_up(before=(fail,), after=(fail, ran.set)):
        assert ran.wait(LIMIT_S)
        until(lambda: pulse.latest.counter > 2)
    assert pulse.latest.state == "left"


def meter(**given: float) -> StallMeter:
    return StallMeter(**{"poll_s": 1.0, "least_s": 10.0, **given})


def polls(measure: StallMeter, newest: int, count: int) -> bool:
    return any(measure.is_hung(newest) for _ in range(count))


def test_there_is_no_limit_before_the_first_tick() -> None:
    assert not polls(meter(), 7, 10_000)


def test_a_forecast_gives_a_limit_before_the_first_tick() -> None:
    measure = meter(expected_s=1.0)
    assert not polls(measure, 7, 20) and polls(measure, 7, 3)


def test_no_tick_for_the_least_time_is_a_hang() -> None:
    measure = meter()
    assert not polls(measure, 1, 5)
    assert not polls(measure, 2, 11) and polls(measure, 2, 1)


def test_slow_work_earns_twenty_times_its_longest_gap() -> None:
    measure = meter()
    polls(measure, 1, 1)
    assert not polls(measure, 2, 9)
    assert not polls(measure, 3, 20 * 8) and polls(measure, 3, 2)


def test_a_heartbeats_own_requests_are_no_progress() -> None:
    before = ticks()
    with uncounted():
        tick()
    assert ticks() == before
    tick()
    assert ticks() != before


HANGS = """
import sys, time
from pathlib import Path
from vsr_hpc.system.interrupts import StopFlag
from vsr_hpc.system.progress import tick
from vsr_hpc.work import finish, worker
def hang(*args, **named):
    tick()
    Path(sys.argv[2]).touch()
    time.sleep(600)
if sys.argv[3] == "merge":
    finish.merge = hang
    finish.finish_patiently(finish.Run.open(sys.argv[1]), "n1")
else:
    worker.make_segments = hang
    worker.work(sys.argv[1], worker.WorkerOptions(threads=1, node="n1"), StopFlag())
"""


def hung(run: Run, stage: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HANGS, run.uri, str(run.store.scratch / "hangs"), stage]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Run]:
    yield planned_run(tiny_job(tmp_path, run={"hang_s": 4.0}))


def test_a_worker_whose_stage_hangs_ends_with_75_and_counts_as_dead(impatient: Run) -> None:
    done = hung(impatient, "shard")
    assert done.returncode == 75, done.stderr
    (beat,) = impatient.heartbeats()
    assert beat.state == "working" and beat.shard is not None
    assert impatient.ending(f"{beat.shard:05d}", 1) is None, "a lease that was given back counts as no death"
    (name,) = [facts.name for facts in impatient.store.list("logs/")]
    said = impatient.store.read(name).decode()
    assert "no progress" in said and "hang" in said, "the log must say why and where"
    outcome = worker.work(impatient.uri, worker.WorkerOptions(threads=1, node="n2"), StopFlag())
    assert outcome.is_complete


def test_a_merge_that_hangs_ends_with_75_and_another_process_finishes(impatient: Run) -> None:
    worker.work(impatient.uri, worker.WorkerOptions(threads=1, does_finish=False), StopFlag())
    assert hung(impatient, "merge").returncode == 75
    assert finish_patiently(impatient, "n2").frames == impatient.plan.frames


FREEZES = """
import sys, time
from pathlib import Path
from vsr_hpc.system.interrupts import StopFlag
from vsr_hpc.system.progress import tick
from vsr_hpc.work import worker
real = worker.make_segments
def slowly(*args, **named):
    Path(sys.argv[2]).touch()
    for _ in range(4):
        tick()
        time.sleep(0.1)
    return real(*args, **named)
worker.make_segments = slowly
outcome = worker.work(sys.argv[1], worker.WorkerOptions(threads=1), StopFlag())
sys.exit(0 if outcome.is_complete else 3)
"""


def test_a_process_that_was_frozen_for_longer_than_the_limit_goes_on(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path, run={"hang_s": 2.0}))
    begun = tmp_path / "begun"
    process = subprocess.Popen([sys.executable, "-c", FREEZES, run.uri, str(begun)])
    try:
        until(begun.exists)
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(5.0)
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.wait()
