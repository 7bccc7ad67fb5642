"""What a finished run leaves beside its output, and how that goes."""

from __future__ import annotations

import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.commands import vsr
from tests.runs import finished, planned_run, tiny_job
from tests.unit.test_run import receipt
from vsr_hpc.errors import JobError
from vsr_hpc.launch import submit, whole_status
from vsr_hpc.report.history import read_history, read_receipts
from vsr_hpc.run.keeping import keep_only
from vsr_hpc.run.run import Run
from vsr_hpc.storage.folder_store import FolderStore
from vsr_hpc.storage.store import MissingObject


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run that kept its files."""
    folder = tmp_path_factory.mktemp("made")
    finished(planned_run(tiny_job(folder, frames=8, run={"keep": "run", "report": "none"})))
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of that run, the only one that this user has begun."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    found = Run.open("out.mkv")
    document = json.loads(found.store.read("done.json"))
    found.store.put("done.json", json.dumps({**document, "output": str(Path("out.mkv").resolve())}).encode())
    from vsr_hpc.run.known_runs import remember

    remember(found)
    return Run.open("out.mkv")


def _files(run: Run) -> list[str]:
    return sorted(path.name for path in Path(run.place_uri).rglob("*") if path.is_file())


def test_records_lie_in_one_file_and_tell_what_they_told(run: Run) -> None:
    run.store.put("reports/report.html", b"report")
    before = whole_status(run)
    history = read_history(run, read_receipts(run, run.finished()), before.workers)
    keep_only(run, "report")
    assert _files(run) == ["done.json", "job.json", "plan.json", "records.zip", "report.html"]
    again = Run.open(run.uri)
    after = whole_status(again)
    assert after.state == "complete"
    assert (after.shards_done, after.fps_overall, after.spent) == (2, before.fps_overall, before.spent)
    assert read_history(again, read_receipts(again, again.finished()), after.workers) == history
    assert len(again.timeline) == 8
    assert again.store.list("logs/") and again.store.read(again.store.list("logs/")[0].name)


def test_a_late_worker_finds_every_receipt_and_cannot_write_another(run: Run) -> None:
    keep_only(run, "report")
    late = Run.open(run.uri)
    assert late.missing() == frozenset()
    assert not late.record(receipt(0))


def test_a_run_that_was_packed_twice_is_whole(run: Run) -> None:
    keep_only(run, "report")
    run.store.put("logs/later.0.log", b"later")
    keep_only(run, "report")
    again = Run.open(run.uri)
    assert again.store.read("logs/later.0.log") == b"later"
    assert again.missing() == frozenset()


def test_a_packed_run_makes_way_for_a_newer_one(run: Run) -> None:
    keep_only(run, "report")
    run.retire()
    assert _files(run) == ["superseded"]


def test_a_pack_does_not_invent_objects(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put("a/1", b"one")
    store.put("b", b"two")
    store.pack(["a/1", "c"])
    assert [(each.name, each.size_bytes) for each in store.list("a/")] == [("a/1", 3)]
    assert store.exists("a/1") and not store.exists("c") and not (tmp_path / "a").exists()
    with pytest.raises(MissingObject):
        store.read("c")


@pytest.mark.parametrize(
    ("kept", "left"),
    [
        ("auto", ["1.json", "done.json", "job.json", "plan.json", "records.zip", "report.html"]),
        ("nothing", None),
    ],
)
def test_a_run_on_this_machine_leaves_what_was_asked(
    tmp_path: Path, kept: str, left: list[str] | None
) -> None:
    run = planned_run(tiny_job(tmp_path, frames=8, run={"keep": kept}))
    done = finished(run)
    assert Path(done.output).is_file()
    folder = tmp_path / ".vsr" / "out.mkv"
    found = sorted(path.name for path in folder.rglob("*") if path.is_file()) if folder.exists() else None
    assert found == left


def test_other_machines_do_not_trim_a_run(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, run={"keep": "nothing"}).model_copy(update={"on": "slurm"})
    with pytest.raises(JobError, match="--keep nothing: other machines may still write into the run"):
        submit(job)


# vsr clean


def test_clean_shows_sizes_and_removes_the_run_not_the_output(run: Run) -> None:
    said = vsr("clean", "out.mkv", "--yes")
    assert said.code == 0, said.err
    assert said.out.split()[1] == "KiB" and said.out.split()[2] == "complete"
    assert said.err.startswith("removed: 1 run, ")
    assert Path("out.mkv").is_file() and not Path(".vsr").exists()


def test_clean_without_names_takes_finished_runs_of_a_certain_age(run: Run) -> None:
    unfinished = submit(tiny_job(Path.cwd(), output="other.mkv")).run
    said = vsr("clean", "--older-than", "1h", "--yes")
    assert (said.code, said.out, said.err) == (0, "", "nothing to remove\n")
    document: dict[str, Any] = json.loads(run.store.read("done.json"))
    run.store.put("done.json", json.dumps({**document, "finished_s": time.time() - 3 * 86_400}).encode())
    said = vsr("clean", "--older-than", "2d", "--keep", "report", "--yes", "--json")
    assert [each["uri"] for each in said.json] == [run.uri]
    assert "records.zip" in _files(run)
    assert vsr("clean", "--yes").code == 0
    assert not Path(run.uri).exists() and Path(unfinished.uri).exists()


def test_clean_asks_before_it_removes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    said = vsr("clean", "out.mkv")
    assert (said.code, "--yes answers the question" in said.err) == (2, True), said.err
    assert Path(run.uri).exists()
    said = vsr("clean", "--older-than", "soon")
    assert said.err.startswith("vsr: --older-than soon: write a number and m, h, d or w")


def test_clean_keeps_work_that_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    run = planned_run(tiny_job(tmp_path))
    run.record(receipt(0).model_copy(update={"started_s": 0.0, "finished_s": 7200.0}))
    said = vsr("clean", run.uri, "--yes")
    assert said.code == 2
    assert "is incomplete and holds 2 h 00 of work (1 shard); `vsr resume" in said.err
    assert vsr("clean", run.uri, "--yes", "--unfinished").code == 0
    assert not Path(run.uri).exists()
