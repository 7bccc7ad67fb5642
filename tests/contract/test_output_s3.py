"""An output on S3 is the same file, made once, never put over another's, and known again."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

import pytest

from tests.clips import numbered_clip
from tests.commands import vsr
from tests.moto_server import Moto
from tests.runs import finished, planned_run, tiny_job
from vsr_hpc.errors import JobError
from vsr_hpc.job.inputs import expand
from vsr_hpc.launch import submit
from vsr_hpc.planning.preparation import prepare
from vsr_hpc.run.run import Run
from vsr_hpc.storage.opening import open_store
from vsr_hpc.work.finish import is_in_place


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def place(moto: Moto) -> str:
    moto.heal()
    return f"s3://films/{uuid.uuid4().hex}/out.mkv"


def _content(uri: str) -> bytes:
    folder, _, name = uri.rpartition("/")
    return open_store(folder).read(name)


@pytest.mark.parametrize("run_place", ["beside", "folder"])
def test_the_object_holds_the_bytes_that_a_file_would(tmp_path: Path, place: str, run_place: str) -> None:
    alone = finished(planned_run(tiny_job(tmp_path)))
    run = {} if run_place == "beside" else {"location": str(tmp_path / "run")}
    done = finished(planned_run(tiny_job(tmp_path, output=place, run=run)))
    assert (done.output, done.sha256) == (place, alone.sha256)
    assert hashlib.sha256(_content(place)).hexdigest() == alone.sha256
    assert is_in_place(done)


def test_a_folder_on_s3_is_the_clips_directly_below_it(tmp_path: Path, place: str) -> None:
    folder = place.removesuffix("out.mkv")
    store = open_store(folder.rstrip("/"))
    for name in ("b.mkv", "a.mov", "notes.txt", "more/c.mkv"):
        store.put(name, b"x")
    assert expand([folder, "s3://films/out/"]) == (
        (f"{folder}a.mov", "s3://films/out/a.mov"),
        (f"{folder}b.mkv", "s3://films/out/b.mkv"),
    )
    with pytest.raises(JobError, match="holds no clip"):
        expand([f"{folder}nothing/", "s3://films/out/"])


def test_the_command_makes_it_once_and_proves_it(tmp_path: Path, place: str) -> None:
    clip = numbered_clip(tmp_path / "clip.mkv")
    command = ["upscale", clip, place, "--model", "nearest", "--preset", "ultrafast", "-q"]
    made = vsr(*command)
    assert (made.code, made.out.strip()) == (0, place), made.err
    before = Run.open(str(place)).done()
    assert vsr(*command).code == 0
    assert Run.open(str(place)).done() == before
    proof = vsr("verify", clip, place)
    assert proof.code == 0, proof.err
    assert "24 frames, each with its timestamp" in proof.out


def test_an_object_of_somebody_else_is_refused_first_and_last(tmp_path: Path, place: str) -> None:
    folder, _, name = place.rpartition("/")
    job = tiny_job(tmp_path, output=place, run={"location": str(tmp_path / "run")})
    run = planned_run(job)
    open_store(folder).put(name, b"another's")
    with pytest.raises(JobError, match="has appeared here since the job began"):
        finished(run)
    assert _content(place) == b"another's"
    with pytest.raises(JobError, match="exists; --overwrite"):
        prepare(job)
    replaced = finished(planned_run(tiny_job(tmp_path, output=place, overwrite=True)))
    assert len(_content(place)) == replaced.size_bytes


def test_a_bucket_that_is_not_there_is_refused_before_any_work(tmp_path: Path, moto: Moto) -> None:
    moto.heal()
    place = "s3://no-such-bucket-here/out.mkv"
    job = tiny_job(tmp_path, output=place, run={"location": str(tmp_path / "run")})
    with pytest.raises(JobError, match="no-such-bucket-here"):
        submit(job)
    assert not (tmp_path / "run").exists()


def test_several_clips_go_under_a_prefix(tmp_path: Path, place: str) -> None:
    clips = [numbered_clip(tmp_path / f"{name}.mkv", frames=6) for name in "ab"]
    prefix = place.removesuffix("out.mkv")
    made = vsr("upscale", *clips, prefix, "--model", "nearest", "--preset", "ultrafast", "-q")
    assert made.code == 0, made.err
    assert all(len(_content(f"{prefix}{name}.mkv")) > 500 for name in "ab")
