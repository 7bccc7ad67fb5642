"""What differs between a run and a job is told in names and values that a person knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runs import planned_run, tiny_job
from tests.unit.test_run import receipt
from vsr_hpc.errors import JobError
from vsr_hpc.executors.rounds import RoundRecord
from vsr_hpc.launch import submit
from vsr_hpc.planning.differences import describe_differences
from vsr_hpc.run.run import Run

_PLAN = {
    "input": "a" * 64,
    "weights": "b" * 64,
    "model": "vsr-video-x2",
    "frames": [0, 40],
    "output size": "1280x544",
    "pixel format": "yuv420p",
    "encoder build": "PyAV-18.1.0 libavcodec-62.11.100 libx264-0123abcd.so.165",
    "picture.tile": "auto",
    "video.codec": "h264",
    "video.encoder": "libx264",
    "video.suffix": ".mp4",
    "video.pixel": {"name": "yuv420p", "depth": 8},
    "video.rate_kind": "crf",
    "video.rate": 18.0,
    "video.params": [],
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ()),
        ({"video.rate": 30.0}, ("the quality was CRF 18, now CRF 30",)),
        ({"video.rate_kind": "lossless", "video.rate": 0.0}, ("the quality was CRF 18, now lossless",)),
        ({"input": "c" * 64}, ("the content of the input has changed",)),
        ({"weights": "c" * 64}, ("the weights of the model have changed",)),
        ({"model": "bicubic"}, ("--model was vsr-video-x2, now bicubic",)),
        ({"frames": [0, 1440]}, ("the frames (--from, --to, --frames) was 0 to 39, now 0 to 1439",)),
        ({"picture.tile": 256}, ("--tile was auto, now 256",)),
        ({"video.params": [["aq-mode", "3"]]}, ("--encoder-params was not set, now aq-mode=3",)),
        (
            {"video.codec": "h265", "video.encoder": "libx265", "video.pixel": {"name": "x", "depth": 8}},
            ("--codec was h264, now h265", "video.pixel was name=yuv420p:depth=8, now name=x:depth=8"),
        ),
        (
            {"pixel format": "yuv444p", "video.pixel": {"name": "yuv444p", "depth": 8}},
            ("the output's pixel format was yuv420p, now yuv444p",),
        ),
        (
            {"encoder build": "PyAV-19.0.0 libavcodec-63.1.100 libx264-9876abcd.so.165"},
            ("PyAV was 18.1.0, now 19.0.0; `pip install av==18.1.0` brings the same encoders back",),
        ),
    ],
)
def test_a_difference_is_told_in_known_words(changes: dict[str, object], said: tuple[str, ...]) -> None:
    before, now = (
        {key: json.dumps(value) for key, value in each.items()} for each in (_PLAN, {**_PLAN, **changes})
    )
    assert describe_differences(before, now) == said


def _begun(folder: Path) -> Run:
    return planned_run(tiny_job(folder))


def test_a_run_without_a_finished_shard_is_replaced_by_overwrite_alone(tmp_path: Path) -> None:
    run = _begun(tmp_path)
    other = tiny_job(tmp_path, video={"crf": 40})
    with pytest.raises(
        JobError, match=r"nothing is done yet, with other settings; --overwrite makes it anew"
    ):
        submit(other)
    again = submit(other.model_copy(update={"overwrite": True}))
    assert not again.is_continued
    assert again.run.number == run.number + 1


def test_a_run_that_its_scheduler_refused_is_replaced_without_a_question(tmp_path: Path) -> None:
    run = submit(tiny_job(tmp_path)).run
    begun = run.start_round("slurm", 2, 6)
    assert begun is not None
    other = tiny_job(tmp_path, video={"crf": 40})
    with pytest.raises(JobError, match="nothing is done yet"):  # it is being submitted
        submit(other)
    refused = RoundRecord(round=begun.number, error="sbatch refused it")
    run.store.put("jobs/1.json", refused.model_dump_json().encode())
    assert submit(other).run.number == run.number + 1


def test_finished_shards_are_not_thrown_away_by_overwrite(tmp_path: Path) -> None:
    run = _begun(tmp_path)
    run.record(receipt(0).model_copy(update={"started_s": 0.0, "finished_s": 5400.0}))
    other = tiny_job(tmp_path, video={"crf": 40}).model_copy(update={"overwrite": True})
    with pytest.raises(JobError) as caught:
        submit(other)
    assert str(caught.value) == (
        f"{run.uri} holds 90 min of work (1 of 6 shards) that was done with other settings. The same "
        "settings continue it; --new throws that work away: the quality was CRF 18, now CRF 40"
    )
    assert Run.open(run.uri).number == run.number
    assert submit(other, is_new=True).run.number == run.number + 1


def test_before_there_is_a_plan_what_was_written_is_compared(tmp_path: Path) -> None:
    submit(tiny_job(tmp_path))
    with pytest.raises(JobError, match=r"--overwrite makes it anew: --crf was not set, now 40$"):
        submit(tiny_job(tmp_path, video={"crf": 40}))
