"""What the live page's server knows and lets in; the page itself is tried in tests/browser."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.runs import finished, planned_run, tiny_job
from vsr_hpc import launch
from vsr_hpc.dashboard.guard import Door
from vsr_hpc.dashboard.new_runs import Asked, Carrying, default_output
from vsr_hpc.dashboard.server import Board
from vsr_hpc.dashboard.snapshots import Telling, Watched, read_line, run_id
from vsr_hpc.dashboard.uploads import Folder, safe_name
from vsr_hpc.errors import JobError
from vsr_hpc.run.documents import Heartbeat
from vsr_hpc.run.run import Run
from vsr_hpc.system.interrupts import Reason, StopFlag


def test_a_shard_is_told_once_to_each_page(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    finished(run)
    watched = Watched(uri=run.uri, every_s=0.0)
    telling = Telling(watched=watched)
    first, second = telling.snapshot(), telling.snapshot()
    assert len(first["history"]["bars"]) == run.plan.shard_count
    assert (first["is_fresh"], second["is_fresh"]) == (True, False)
    assert second["history"]["bars"] == []
    again = Telling(watched=watched).snapshot()  # a page that was loaded anew, or whose connection broke
    assert again["is_fresh"]
    assert len(again["history"]["bars"]) == run.plan.shard_count


def test_a_run_that_is_begun_anew_is_told_anew(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    run = planned_run(job)
    finished(run)
    telling = Telling(watched=Watched(uri=run.uri, every_s=0.0))
    assert telling.snapshot()["shards_done"] > 0
    run.store.remove_all()
    (tmp_path / "out.mkv").unlink()
    planned_run(job)
    found = telling.snapshot()
    assert found["is_fresh"]
    assert (found["shards_done"], found["history"]["bars"]) == (0, [])


def test_the_page_shows_the_state_of_a_run_that_begins(tmp_path: Path) -> None:
    """Nobody is offered to resume a run whose workers are about to begin."""
    job = tiny_job(tmp_path)
    run = launch.submit(job).run
    line = read_line(Watched(uri=run.uri, every_s=0.0))
    assert (line["state"], line["model"]) == ("planning", "nearest")
    run = planned_run(job.model_copy(update={"output": str(tmp_path / "b.mkv")}))
    watched = Watched(uri=run.uri, every_s=0.0)
    assert read_line(watched)["state"] == "starting"
    assert watched.picture() is None
    finished(run)
    assert read_line(watched)["state"] == "complete"
    found = watched.picture()
    assert found is not None and found.after.startswith("data:image/webp")


def test_the_latest_finished_frame_is_shown_while_a_run_goes_on(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    stop = StopFlag()
    seen: list[int | None] = []

    def look(heartbeat: Heartbeat) -> None:
        if heartbeat.shards and not seen:
            scene = Watched(uri=run.uri, every_s=0.0).picture()
            seen.append(scene.frame if scene else None)
            stop.set(Reason.CANCELLED)

    launch.run_here(run, stop, on_beat=look)
    assert seen and seen[0] in run.plan.chunk_borders


def test_a_run_is_taken_off_the_list_and_stays_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    run = launch.submit(tiny_job(tmp_path)).run
    board = Board(named=(), intake=Folder(tmp_path), carrying=Carrying(logs=tmp_path))
    board.forget(board.find(run_id(run.uri)))
    assert board.lines()["runs"] == []
    assert Run.open(run.uri).job() == run.job()


def test_a_run_that_is_gone_is_a_line_with_its_reason(tmp_path: Path) -> None:
    line = read_line(Watched(uri=str(tmp_path / "gone.vsr")))
    assert line["state"] == "unreachable"
    assert "no run here" in line["why"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\films\\a.mkv", "a.mkv"),
        ("..", "clip"),
        (".hidden.mkv", "hidden.mkv"),
        ("a\x00b\n.mkv", "a_b_.mkv"),
        ("", "clip"),
        ("é" * 200 + ".mkv", None),
    ],
)
def test_an_uploads_name_is_a_plain_files_name(given: str, kept: str | None) -> None:
    found = safe_name(given)
    assert "/" not in found
    assert len(found.encode()) <= 200
    assert kept is None or found == kept


async def pieces(*content: bytes) -> AsyncIterator[bytes]:
    for each in content:
        yield each


def test_nobodys_clip_is_replaced_and_a_broken_upload_leaves_nothing(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "clips")
    first = asyncio.run(folder.receive("a.mkv", 4, pieces(b"ab", b"cd")))
    second = asyncio.run(folder.receive("a.mkv", 2, pieces(b"xy")))
    assert [Path(first).read_bytes(), Path(second).read_bytes()] == [b"abcd", b"xy"]
    assert Path(second).name == "a-2.mkv"
    with pytest.raises(JobError, match="2 of 9 bytes"):
        asyncio.run(folder.receive("b.mkv", 9, pieces(b"ab")))
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["a-2.mkv", "a.mkv"]


def test_the_output_is_put_where_it_can_be_found() -> None:
    assert default_output(Asked(input="/films/a.mkv", model="bicubic"), "/x") == "/films/a-bicubic.mkv"
    assert default_output(Asked(input="s3://b/in/a.mkv", model="m/w.pth"), "/x") == "/x/a-w.mkv"


def test_the_door_knows_its_names_and_where_the_page_may_send() -> None:
    door = Door.of("t", ["127.0.0.1", "LocalHost"], 80, ["https://s3.example"])
    assert door.hosts == {"127.0.0.1:80", "localhost:80", "127.0.0.1", "localhost"}
    assert "connect-src 'self' https://s3.example;" in door.policy
    assert "unsafe" not in door.policy


def test_a_run_that_begins_while_the_list_is_read_does_not_break_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`vsr submit` in another terminal, whose run is remembered on this machine."""
    uris: list[str] = []

    def one_more() -> tuple[str, ...]:
        uris.append(str(tmp_path / f"{len(uris)}.vsr"))
        return tuple(uris)

    monkeypatch.setattr("vsr_hpc.run.known_runs.remembered_runs", one_more)
    board = Board(named=(), intake=Folder(tmp_path), carrying=Carrying(logs=tmp_path))
    assert [len(board.all()), len(board.all())] == [1, 2]
    assert len(board.lines()["runs"]) == 3
