"""Everything that can be known from headers and settings is told at once, before any work."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.clips import numbered_clip, numbered_planes, picture
from tests.runs import planned_run, tiny_job
from vsr_hpc.errors import JobError, MediaError, SpaceError
from vsr_hpc.executors.slurm.submission import plan_here
from vsr_hpc.media.clip.probe import index_clip
from vsr_hpc.media.stills.still import write_image
from vsr_hpc.planning.preparation import prepare
from vsr_hpc.planning.space import check_space
from vsr_hpc.run.run import Run
from vsr_hpc.storage.folder_store import FolderStore
from vsr_hpc.system.interrupts import StopFlag
from vsr_hpc.work import worker


def refused(folder: Path, **sections: Any) -> str:
    with pytest.raises(JobError) as found:
        prepare(tiny_job(folder, **sections))
    return str(found.value)


def shots(folder: Path) -> str:
    folder.mkdir()
    shape = picture((32, 24), "gbrp")
    for number in (1, 2, 3):
        write_image(folder / f"s{number}.png", shape, numbered_planes(number, shape))
    return str(folder)


def test_all_that_the_engine_refuses_is_told_with_the_rest(tmp_path: Path) -> None:
    said = refused(
        tmp_path,
        model="SwinIR-M_x4_classical",
        picture={"batch": 100, "seed": -1, "tile": 101, "precision": "fp16"},
        range={"from": "1:75", "to": "0:99"},
        images={"rate": "50"},
    )
    for part in (
        "7 problems",
        "batch=100 is not between 1 and 64",
        "seed=-1 is negative",
        "tile=101 is not a multiple of",
        "precision=fp16 is not one that SwinIR-M_x4_classical allows: fp32\n",
        "range.from: '1:75': seconds go up to 59",
        "range.to: '0:99'",
        "clip.mkv has timestamps of its own",
    ):
        assert part in said


def test_more_grain_than_the_engine_makes_is_refused_with_the_job(tmp_path: Path) -> None:
    assert tiny_job(tmp_path, picture={"grain": 32}).picture.grain == 32
    with pytest.raises(JobError, match=r"picture\.grain: must be at most 32"):
        tiny_job(tmp_path, picture={"grain": 40})


@pytest.mark.parametrize("asked", [{"deinterlace": True}, {"field_order": "tff"}])
def test_images_are_not_deinterlaced(tmp_path: Path, asked: dict[str, Any]) -> None:
    said = refused(tmp_path, input=shots(tmp_path / "shots"), picture=asked)
    assert "is images, which are not deinterlaced" in said


def test_an_encoder_for_an_output_of_images_is_refused_by_its_keys(tmp_path: Path) -> None:
    video = {"codec": "h264", "crf": 20, "params": {"aq-mode": 1}, "pix_fmt": "gbrp"}
    job = tiny_job(tmp_path, output=str(tmp_path / "out_%02d.png"), video=video)
    with pytest.raises(JobError) as found:
        prepare(job)
    keys = "video.codec, video.crf, video.preset, video.params, video.threads"
    assert str(found.value).startswith(f"{keys}: the output is images")
    alone = job.video.model_validate({"pix_fmt": "gbrp"})
    assert prepare(job.model_copy(update={"video": alone})).encoding is None


RAW = [
    ("a.h264", {"b_frames": 2}),
    ("a.hevc", {"codec": "libx265"}),
    ("a.m2v", {"codec": "mpeg2video", "rate": 25}),
]


@pytest.mark.parametrize(("name", "options"), RAW, ids=[name for name, _ in RAW])
def test_a_rate_is_taken_where_there_are_no_timestamps(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    clip = numbered_clip(tmp_path / name, frames=6, **options)
    found = prepare(tiny_job(tmp_path, input=str(clip), images={"rate": "50"}))
    assert found.clip.frame_rate == 50
    timeline = index_clip(found.clip, found.source)
    assert (timeline.time_base, timeline.pts.tolist()) == (Fraction(1, 50), list(range(6)))


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.avi", "a.y4m"])
def test_a_rate_against_the_clips_own_timestamps_is_refused(tmp_path: Path, name: str) -> None:
    codec = {".avi": "ffv1", ".y4m": "wrapped_avframe"}.get(Path(name).suffix, "libx264")
    clip = numbered_clip(tmp_path / name, frames=6, codec=codec)
    assert "has timestamps of its own" in refused(tmp_path, input=str(clip), images={"rate": "50"})


def fresh_run(folder: Path, **sections: Any) -> Run:
    job = tiny_job(folder, frames=8, **sections)
    run = Run.create(FolderStore(Path(job.run_uri)), job)
    run.start_round(job.on, 1, 0)
    return run


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FolderStore, "free_bytes", lambda self: 1 << 20)


@pytest.mark.usefixtures("full_disk")
def test_a_plan_that_does_not_fit_its_disk_is_not_written_and_not_made_again(tmp_path: Path) -> None:
    run = fresh_run(tmp_path)
    for error in (SpaceError, MediaError):  # the next worker of the round leaves the clip alone
        with pytest.raises(error, match=r"are needed for segments and output, 1 MiB are free"):
            worker.work(run.uri, worker.WorkerOptions(threads=1), StopFlag())
        assert not run.has_plan()


@pytest.mark.usefixtures("full_disk")
def test_a_head_node_writes_no_plan_that_does_not_fit(tmp_path: Path) -> None:
    run = fresh_run(tmp_path, on="slurm")
    with pytest.raises(SpaceError, match=r"are needed for segments and output, 1 MiB are free"):
        plan_here(run, run.job())
    assert not run.has_plan()


def test_space_for_a_merge_is_asked_for_where_it_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    plan = planned_run(tiny_job(tmp_path, frames=8)).plan
    away = plan.model_copy(update={"job": plan.job.model_copy(update={"output": "s3://films/out.mkv"})})
    nearly_full = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr("vsr_hpc.planning.space.shutil.disk_usage", lambda path: nearly_full)
    with pytest.raises(SpaceError, match="put the output elsewhere"):
        check_space(away, "s3://films/run", None)
    check_space(away, "s3://films/run", None, is_merged_here=False)
    with pytest.raises(SpaceError, match="put the output elsewhere"):
        check_space(plan, "s3://films/run", None, is_merged_here=False)
