"""kill -9 in the middle of a merge: whatever is called next finishes the run, and the bytes are the same."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs import planned_run, tiny_job
from vsr_hpc.run.run import Run
from vsr_hpc.system.interrupts import StopFlag
from vsr_hpc.work import worker

LIMIT_S = 120.0
FINISH, RESUME, BATCH = ("finish",), ("resume",), ("batch", "finish")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Every shard has its receipt, nobody has merged."""
    made = planned_run(tiny_job(tmp_path))
    worker.work(made.uri, worker.WorkerOptions(threads=1, does_finish=False), StopFlag())
    assert not made.missing()
    return made


def command(run: Run, words: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "vsr_hpc", *words, run.uri]


def environment(folder: Path) -> dict[str, str]:
    """Each attempt of a job of AWS Batch has the job's id."""
    return {**os.environ, "XDG_STATE_HOME": str(folder), "AWS_BATCH_JOB_ID": "0b1e"}


@contextlib.contextmanager
def endless_segment(run: Run) -> Iterator[None]:
    """Reading the last segment takes for ever, until the block ends: a pipe that nobody writes to."""
    last = Path(run.place_uri) / run.store.list("segments/")[-1].name
    aside = last.with_name(".tmp-aside")
    last.rename(aside)
    os.mkfifo(last)
    try:
        yield
    finally:
        aside.replace(last)


def killed_in_its_merge(run: Run, words: tuple[str, ...], folder: Path) -> None:
    """Call, wait until the merge has begun to write, kill -9."""
    before = partials(run)
    with (
        endless_segment(run),
        subprocess.Popen(
            command(run, words),
            env=environment(folder),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process,
    ):
        try:
            until = time.monotonic() + LIMIT_S
            while not partials(run) - before:
                assert process.poll() is None, f"{words} ended with {process.returncode}"
                assert time.monotonic() < until, f"{words} began no merge"
                time.sleep(0.02)
        finally:
            process.kill()


def partials(run: Run) -> set[Path]:
    return set(Path(run.plan.job.output).parent.glob(".out.mkv.*.partial.mkv"))


@pytest.mark.parametrize(
    "calls", [(FINISH, FINISH), (RESUME, RESUME), (BATCH, BATCH), (FINISH, RESUME, BATCH, FINISH)]
)
def test_a_merge_that_was_killed_is_done_by_the_next_call(
    calls: tuple[tuple[str, ...], ...], run: Run, tmp_path: Path
) -> None:
    for words in calls[:-1]:
        killed_in_its_merge(run, words, tmp_path)
    last = subprocess.run(
        command(run, calls[-1]),
        env=environment(tmp_path),
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert last.returncode == 0, last.stderr
    assert last.stdout.strip() == run.plan.job.output
    done = run.done()
    assert done is not None and done.frames == 24
    assert hashlib.sha256(Path(done.output).read_bytes()).hexdigest() == done.sha256
    holders = {run.holder("finish", number).worker for number in range(1, len(calls) + 1)}
    assert len(holders) == len(calls)  # no attempt has a dead one's name
