from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from tests.runs import planned_run, tiny_job
from tests.unit.test_run import heartbeat, receipt
from vsr_hpc import wording
from vsr_hpc.cli import progress
from vsr_hpc.cli.progress import Watching, say_status, status_lines, watch, workers_table
from vsr_hpc.run.documents import Poison
from vsr_hpc.run.run import Run
from vsr_hpc.run.status import RunStatus, read_status
from vsr_hpc.system.interrupts import Reason, StopFlag


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Six shards of four frames."""
    return planned_run(tiny_job(tmp_path))


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    made = _Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def _text(status: RunStatus) -> str:
    console = Console(file=io.StringIO(), width=200)
    for line in status_lines(status):
        console.print(line)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599.4, "59:59"), (36061, "10:01:01")]
)
def test_durations_read_like_a_clock(seconds: float, said: str) -> None:
    assert wording.clock(seconds) == said


def test_plain_lines_come_every_ten_seconds_where_no_terminal_is(
    run: Run, clock: _Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Watching(run) as watching:
        for second in range(1, 25):
            clock.now += 1
            watching.on_beat(heartbeat("w", frames=second // 2))
        for shard in range(2):  # the third was dropped
            run.record(receipt(shard))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "5/24 frames, 0.50 fps, 0:38 left",
        "10/24 frames, 0.50 fps, 0:28 left",
        "upscale  8 frames  0:24",
    ]


def test_what_was_done_before_counts_for_the_bar_and_not_for_the_speed(
    run: Run, clock: _Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for shard in range(3):
        run.record(receipt(shard))
    with Watching(run) as watching:
        clock.now += 10
        watching.on_beat(heartbeat("w", frames=4))
        run.record(receipt(3))
    assert capsys.readouterr().err.splitlines() == [
        "resuming: 12 of 24 frames are done",
        "16/24 frames, 0.40 fps, 0:20 left",
        "upscale  4 frames  0:10",
    ]


def test_workers_in_other_processes_are_read_from_the_store_once_a_second(
    run: Run, clock: _Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[float] = []
    monkeypatch.setattr(progress, "read_status", lambda run: reads.append(clock.now) or read_status(run))
    with Watching(run) as watching:
        run.beat(heartbeat("w", state="working", shard=0, shard_frames=3))
        for _ in range(8):
            clock.now += 0.5
            watching.on_tick()
        run.record(receipt(0))  # since the last reading
    assert len(reads) == 4
    assert capsys.readouterr().err == "upscale  4 frames  0:04\n"


def test_quiet_is_silent(run: Run, clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run.record(receipt(0))
    stop = StopFlag()
    with Watching(run, stop, is_quiet=True) as watching:
        clock.now += 60
        stop.set(Reason.INTERRUPTED)
        watching.on_beat(heartbeat("w", frames=1))
    assert capsys.readouterr() == ("", "")


def test_a_stop_is_acknowledged_once(run: Run, clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    stop = StopFlag()
    with pytest.raises(KeyboardInterrupt), Watching(run, stop) as watching:
        watching.on_beat(heartbeat("w", frames=1))
        stop.set(Reason.INTERRUPTED)
        for _ in range(3):
            watching.on_beat(heartbeat("w", frames=1))
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "stopping after the current frames; Ctrl-C again aborts at once\n"


def test_a_run_with_nothing_made_says_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with Watching(run):
        pass
    assert capsys.readouterr().err == ""


def test_a_status_tells_how_far_how_fast_and_where_the_time_goes(run: Run) -> None:
    run.record(receipt(0))
    run.beat(
        heartbeat(
            "w1",
            state="working",
            shard=1,
            shard_frames=2,
            frames=6,
            started_s=10,
            updated_s=13,
            seconds={"decode": 1.0, "device": 3.0, "device_wait": 9.0},
        )
    )
    said = _text(read_status(run))
    assert "running: 6/24 frames (25%)" in said
    assert "shards: 1 done, 1 running, 4 missing of 6" in said
    assert "speed: 2.00 fps now, 2.00 fps overall, 0:09 left" in said
    assert "time by stage: decode 25%, device 75%, encode 0%" in said


def test_a_run_that_nobody_works_on_has_no_speed_now(run: Run) -> None:
    run.beat(heartbeat("w1", state="left", frames=6, started_s=10, updated_s=13))
    assert "speed: 2.00 fps overall\n" in _text(read_status(run))


def test_a_status_names_what_was_set_aside(run: Run) -> None:
    run.poison(Poison(shard=3, generation=4, reason="frame 13 is [bold]broken", nodes=("a", "b")))
    assert "set aside: shard 00003 after 2 nodes: frame 13 is [bold]broken" in _text(read_status(run))


def test_the_dead_and_the_gone_are_told_apart(run: Run) -> None:
    run.beat(heartbeat("busy", state="working"))
    run.beat(heartbeat("dead", state="working", process_start=1))
    run.beat(heartbeat("gone", state="left"))
    status = read_status(run)
    console = Console(file=io.StringIO(), width=200)
    console.print(workers_table(status, is_all=True))
    assert isinstance(console.file, io.StringIO)
    states = {line.split()[0]: line.split()[2] for line in console.file.getvalue().splitlines()[1:]}
    assert states == {"busy": "working", "dead": "dead", "gone": "left"}
    assert workers_table(status).row_count == 1


def test_lines_for_a_program_are_whole(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.beat(heartbeat("a-worker-with-a-name-that-is-far-longer-than-a-line-of-eighty-characters-" * 2))
    say_status(read_status(run))
    said = capsys.readouterr().out
    assert said.splitlines()[0] == run.uri
    assert "eighty-characters-a-worker-with" in said


def test_a_status_says_what_to_do_next(run: Run) -> None:
    assert f"`vsr resume {run.uri}` continues" in _text(read_status(run))
    run.poison(Poison(shard=3, generation=4, reason="broken", nodes=("a", "b")))
    assert f"`vsr resume {run.uri} --retry-poisoned` tries" in _text(read_status(run))
    for shard in range(6):
        run.record(receipt(shard))
    run.retry_poisoned()
    assert f"`vsr finish {run.uri}` merges them" in _text(read_status(run))
    run.beat(heartbeat("w", state="finishing"))
    assert "`vsr" not in _text(read_status(run))


def test_watching_gives_up_on_a_merge_that_nobody_does(run: Run, clock: _Clock) -> None:
    for shard in range(6):
        run.record(receipt(shard))
    assert watch(lambda: read_status(run)).state == "merging"
    assert clock.now > 1000 + 60


def test_watching_ends_when_nothing_works_on_the_run(
    run: Run, clock: _Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: list[Callable[[], None]] = [
        lambda: run.beat(heartbeat("w", state="working")),
        lambda: None,
        lambda: run.beat(heartbeat("w", state="left")),
    ]

    def read() -> RunStatus:
        changes.pop(0)()
        return read_status(run)

    assert watch(read).state == "incomplete"
    assert "incomplete: 0/24 frames" in capsys.readouterr().out
