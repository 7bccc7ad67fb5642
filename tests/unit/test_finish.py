"""Who merges: one at a time while it lives, somebody else once it is dead, and no harm where two do."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.runs import planned_run, tiny_job
from vsr_hpc.errors import BackendError
from vsr_hpc.executors.aws_batch import workflow_steps as batch_workflow
from vsr_hpc.executors.slurm import finish_task as slurm
from vsr_hpc.executors.slurm.task_life import TaskLife
from vsr_hpc.run.documents import Done, Heartbeat, Lease
from vsr_hpc.run.liveness import Liveness, Process
from vsr_hpc.run.run import Run
from vsr_hpc.storage.folder_store import FolderStore
from vsr_hpc.system.interrupts import Reason, StopFlag
from vsr_hpc.work import worker
from vsr_hpc.work.finish import finish_patiently, try_finish

LIMIT_S = 120.0


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Every shard has its receipt, nobody has merged. Looks and heartbeats come often."""
    monkeypatch.setattr(FolderStore, "poll_s", 0.03)
    made = planned_run(tiny_job(tmp_path, frames=8))
    worker.work(made.uri, worker.WorkerOptions(threads=1, does_finish=False), StopFlag())
    assert not made.missing()
    return made


def elsewhere(name: str, task: str = "") -> Heartbeat:
    """Of a process on another host: only its silence tells that it is dead."""
    me = Process.current()
    return Heartbeat(
        worker=name, host="elsewhere", node="n9", pid=me.pid, process_start=1, boot="other", task=task
    )


def taken_by(run: Run, name: str, *, has_heartbeat: bool = True, task: str = "") -> Heartbeat:
    """The merge is held by a process of another host."""
    assert run.take("finish", 1, name, "n9") is not None
    beat = elsewhere(name, task)
    if has_heartbeat:
        run.beat(beat)
    return beat


@contextlib.contextmanager
def moving(run: Run, beat: Heartbeat) -> Iterator[None]:
    """Its heartbeat moves until the block ends."""
    ended = threading.Event()

    def move() -> None:
        for counter in itertools.count(1):
            if ended.wait(0.01):
                return
            run.beat(beat.model_copy(update={"counter": counter}))

    thread = threading.Thread(target=move)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def hurry(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every look at it, the clock goes on by a part of a lease's window."""
    ticks, part_s = itertools.count(1), run.store.lease_window_s / 8
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks) * part_s)


def until(is_so: Callable[[], object]) -> None:
    for _ in range(int(LIMIT_S / 0.01)):
        if is_so():
            return
        time.sleep(0.01)
    raise TimeoutError("it did not happen")


class SlowStore:
    """The first to read a segment waits until it is let go; a second one meanwhile is called a mistake."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, is_for_one: bool = False) -> None:
        self.is_read, self.go, self.is_for_one = threading.Event(), threading.Event(), is_for_one
        local = FolderStore.local

        def slowly(store: FolderStore, name: str) -> contextlib.AbstractContextManager[Path]:
            if not self.is_read.is_set():
                self.is_read.set()
                if not self.go.wait(LIMIT_S):
                    raise TimeoutError("nobody let the merge go on")
            elif not self.go.is_set() and not self.is_for_one:
                raise AssertionError("a second merge began beside one that lives")
            return local(store, name)

        monkeypatch.setattr(FolderStore, "local", slowly)


@contextlib.contextmanager
def merging(slow: SlowStore, *calls: Callable[[], Done]) -> Iterator[list[Future[Done]]]:
    """The first call is in the middle of its merge, the others come then; all are let go in the end."""
    with ThreadPoolExecutor(len(calls)) as pool:
        try:
            begun = [pool.submit(calls[0])]
            assert slow.is_read.wait(LIMIT_S)
            yield [*begun, *(pool.submit(each) for each in calls[1:])]
        finally:
            slow.go.set()


def sha256_of(done: Done) -> str:
    return hashlib.sha256(Path(done.output).read_bytes()).hexdigest()


def test_a_live_merge_on_a_slow_store_is_never_taken_over(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real, skipped = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + skipped[0])
    observer = Liveness(run=run, task="", worker="other")
    with merging(SlowStore(monkeypatch), lambda: finish_patiently(run, "n1")) as (first,):
        holder = run.holder("finish", 1).worker
        for _ in range(6):
            assert try_finish(run, "other", "n2", observer) is None
            before = run.heartbeat(holder)
            until(lambda: run.heartbeat(holder) != before)  # noqa: B023 - called at once
            skipped[0] += 0.9 * run.store.lease_window_s
    assert first.result(LIMIT_S).sha256 == sha256_of(first.result())
    assert run.leases()["finish"].generation == 1
    beat = run.heartbeat(holder)
    assert beat is not None and (beat.state, beat.round) == ("left", 0)


@pytest.mark.parametrize("has_heartbeat", [True, False])
def test_a_merge_whose_holder_is_silent_is_taken_over_after_the_leases_window(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, has_heartbeat: bool
) -> None:
    taken_by(run, "finish-1234", has_heartbeat=has_heartbeat)
    hurry(run, monkeypatch)
    done = finish_patiently(run, "n1")
    assert done.sha256 == sha256_of(done)
    assert run.holder("finish", 2).worker.startswith("finish-n1-")
    assert [each.levelname for each in caplog.records if "another process is finishing" in each.message] == [
        "WARNING"
    ]


def test_a_second_process_waits_and_answers_with_what_the_first_one_made(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = (lambda: finish_patiently(run, "n1"), lambda: finish_patiently(run, "n2"))
    with merging(SlowStore(monkeypatch), *calls) as ends:
        until(lambda: "another process is finishing" in caplog.text)
    first, second = (each.result(LIMIT_S) for each in ends)
    assert first == second and first.sha256 == sha256_of(first)
    assert run.leases()["finish"].generation == 1


def test_a_merge_that_goes_on_after_it_was_taken_over_harms_nothing_and_ends_well(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a machine was frozen: the other one has published and swept when this one wakes up."""
    slow = SlowStore(monkeypatch, is_for_one=True)
    with merging(slow, lambda: finish_patiently(run, "frozen")) as (first,):
        with monkeypatch.context() as patched:
            patched.setattr(Run, "beat", lambda self, heartbeat: None)
            patched.setattr("vsr_hpc.run.liveness.is_process_gone", lambda heartbeat: False)
            hurry(run, patched)
            second = finish_patiently(run, "awake")
        assert run.store.list("segments/") == ()
    assert first.result(LIMIT_S) == second
    assert second.sha256 == sha256_of(second)
    assert [path.name for path in Path(second.output).parent.glob(".*partial*")] == []


@pytest.mark.parametrize("is_taken_over", [True, False])
def test_an_error_of_a_merge_counts_only_where_no_other_process_has_taken_it_over(
    run: Run, monkeypatch: pytest.MonkeyPatch, is_taken_over: bool
) -> None:
    """The one that took over removes what it finds half-made, under a frozen one's hands."""

    def fails(run: Run, lease: Lease) -> Done:
        if is_taken_over:
            assert run.take("finish", 2, "finish-far", "n9") is not None
        raise BackendError("the partial file is gone")

    monkeypatch.setattr("vsr_hpc.work.finish._finish_output", fails)
    observer = Liveness(run=run, task="", worker="frozen")
    refusal = contextlib.nullcontext() if is_taken_over else pytest.raises(BackendError, match="is gone")
    with refusal:
        assert try_finish(run, "frozen", "n1", observer) is None
    assert run.ending("finish", 1) is not None


@pytest.mark.parametrize("scheduler", ["slurm", "batch"])
def test_the_next_attempt_of_the_same_task_takes_over_at_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, scheduler: str
) -> None:
    """Batch and Slurm start a job whose host was lost again under its own id."""
    hurry(run, monkeypatch)
    monkeypatch.setenv("AWS_BATCH_JOB_ID", "0b1e")
    if scheduler == "batch":
        taken_by(run, "finish-n9-1-abcdef", task="batch-0b1e")
        done = batch_workflow.finish(run.uri)
    else:
        taken_by(run, "finish-n9-1-abcdef", task="cluster-12_0")
        made = slurm.conclude(
            run, 1, TaskLife(job="12_0", array="12", cluster="cluster", node="n1", restart=1, folder="")
        )
        assert isinstance(made, Done)
        done = made
    assert done.sha256 == sha256_of(done)
    assert run.leases()["finish"].generation == 2
    assert "another process" not in caplog.text, "no silence was waited for"


def test_who_waits_for_a_merge_leaves_when_asked_to(run: Run) -> None:
    stop = StopFlag()
    stop.set(Reason.INTERRUPTED)
    taken_by(run, "finish-far")
    assert finish_patiently(run, "n1", stop=stop) is None
    assert run.leases()["finish"].generation == 1


def test_a_worker_that_finds_only_a_dead_merge_left_does_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_by(run, "cancelled-worker")
    hurry(run, monkeypatch)
    outcome = worker.work(run.uri, worker.WorkerOptions(threads=1), StopFlag())
    done = run.done()
    assert outcome.is_complete and done is not None and done.sha256 == sha256_of(done)


def test_a_worker_leaves_a_merge_to_the_one_that_it_has_seen_alive(run: Run) -> None:
    """GPUs don't stay for a long merge."""
    with moving(run, taken_by(run, "merging-worker")):
        outcome = worker.work(run.uri, worker.WorkerOptions(threads=1), StopFlag())
    assert not outcome.is_complete and run.done() is None
    assert run.leases()["finish"].generation == 1
