"""Whole runs with a video network: windows, scene cuts, any number of workers, kill and resume."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.clips import numbered_clip
from tests.recurrent import tiny_model
from tests.runs import finished, planned_run, tiny_job
from vsr_hpc.errors import JobError
from vsr_hpc.job.spec import JobSpec
from vsr_hpc.launch import submit
from vsr_hpc.media.clip.reader import read_segment
from vsr_hpc.run.run import Run
from vsr_hpc.system.interrupts import StopFlag
from vsr_hpc.work.worker import WorkerOptions, work


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA", "CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))


def two_scenes(path: Path, *, frames: int = 12, cut: int = 5, second: int = 60) -> Path:
    """A grey ramp drifting, then from frame `cut` on another one: FFV1, so that what is read is exact."""
    rows, columns = np.mgrid[0:36, 0:44]
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 44, 36, "yuv420p"
        for i in range(frames):
            wave = 40 * np.sin((columns + i) / 5) + (rows - 18)
            luma = np.clip(120 + wave if i < cut else 120 + second - wave[::-1], 16, 235).astype(np.uint8)
            chroma = np.full((18, 22), 128, np.uint8)
            planes = np.concatenate([luma.ravel(), chroma.ravel(), chroma.ravel()])
            frame = av.VideoFrame.from_ndarray(planes.reshape(54, 44), format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, 24)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def video_job(folder: Path, name: str = "out", *, clip: str = "clip.mkv", **changes: Any) -> JobSpec:
    """Chunks of 4 frames of the two scenes, losslessly."""
    if not (folder / "clip.mkv").exists():
        two_scenes(folder / "clip.mkv")
    return tiny_job(
        folder,
        input=str(folder / clip),
        output=str(folder / f"{name}.mkv"),
        model="tiny-vsr",
        picture={"scale": 4, **changes.pop("picture", {})},
        video={"codec": "ffv1", "preset": None},
        run={"chunk_s": 4 / 24, "threads": 1, **changes.pop("run", {})},
        **changes,
    )


def luma_of(path: str) -> list[Any]:
    return [frame.planes[0] for frame in read_segment(path)]


def test_the_plan_alone_decides_whatever_the_workers_and_the_order_of_shards(tmp_path: Path) -> None:
    tiny_model(tmp_path, context=1)
    two_scenes(tmp_path / "clip.mkv", frames=16)
    digests, shards = set(), []
    for name, workers, speed in (("one", 1, None), ("two", 2, None), ("long", 1, 0.001)):
        run = planned_run(video_job(tmp_path, name, run={"chunk_s": 2 / 24}), speed)
        shards.append(run.plan.shard_count)
        options = WorkerOptions(threads=1, does_finish=False)
        with ThreadPoolExecutor(workers) as pool:
            lives = [pool.submit(work, run.uri, options, StopFlag()) for _ in range(workers)]
            assert sum(life.result().shards for life in lives) >= run.plan.shard_count
        digests.add(finished(run).sha256)
    assert shards[0] > shards[2]
    assert len(digests) == 1


def test_a_scene_cut_is_in_the_plan_and_no_window_looks_across(tmp_path: Path) -> None:
    tiny_model(tmp_path, context=3)
    run = planned_run(video_job(tmp_path))
    plan = run.plan
    assert plan.temporal is not None and plan.temporal.cuts == (5,)
    windows = [window for chunk in range(plan.chunk_count) for window in plan.windows(chunk)]
    assert [window.start for window in windows][1:] == [window.stop for window in windows][:-1]
    assert all(window.read_stop <= 5 or window.read_start >= 5 for window in windows)


def test_another_second_scene_changes_nothing_of_the_first(tmp_path: Path) -> None:
    tiny_model(tmp_path, context=5)
    two_scenes(tmp_path / "other.mkv", second=80)
    finished(planned_run(video_job(tmp_path)))
    finished(planned_run(video_job(tmp_path, "changed", clip="other.mkv")))
    one, other = luma_of(str(tmp_path / "out.mkv")), luma_of(str(tmp_path / "changed.mkv"))
    same = [np.array_equal(a, b) for a, b in zip(one, other, strict=True)]
    assert same == [True] * 5 + [False] * 7


def test_chunks_with_enough_context_are_the_whole_clip_at_once(tmp_path: Path) -> None:
    tiny_model(tmp_path, context=20)
    finished(planned_run(video_job(tmp_path)))
    finished(planned_run(video_job(tmp_path, "whole", run={"chunk_s": 5.0})))
    finished(planned_run(video_job(tmp_path, "short", run={"chunk_s": 5.0}, picture={"window": 3})))
    finished(planned_run(video_job(tmp_path, "blind", picture={"context": 0})))
    made = {name: luma_of(str(tmp_path / f"{name}.mkv")) for name in ("out", "whole", "short", "blind")}
    same = {name: all(map(np.array_equal, made["whole"], lumas)) for name, lumas in made.items()}
    assert same == {"out": True, "whole": True, "short": True, "blind": False}


def test_tiles_agree_with_the_whole_picture_within_a_code(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    finished(planned_run(video_job(tmp_path, picture={"context": 0})))
    finished(planned_run(video_job(tmp_path, "tiled", picture={"tile": 32, "context": 0})))
    pairs = zip(luma_of(str(tmp_path / "out.mkv")), luma_of(str(tmp_path / "tiled.mkv")), strict=True)
    worst = max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in pairs)
    assert 0 <= worst <= 1


def test_killed_and_called_again_it_makes_the_same_bytes(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    wanted = finished(planned_run(video_job(tmp_path, "undisturbed"))).sha256
    planned_run(video_job(tmp_path, "killed"))
    uri, chance = str(tmp_path / "killed.mkv"), random.Random(7)
    until, struck = time.monotonic() + 240, 0
    while time.monotonic() < until and Run.open(uri).done() is None:
        before = len(Run.open(uri).finished())
        command = [sys.executable, "-m", "vsr_hpc", "resume", uri, "--quiet"]
        process = subprocess.Popen(command, start_new_session=True, env=dict(os.environ))
        try:
            while struck < 1 and process.poll() is None and len(Run.open(uri).finished()) <= before:
                time.sleep(0.05)
            if struck < 1 and process.poll() is None:
                time.sleep(chance.random() * 0.1)
                struck += 1
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=240)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    done = Run.open(uri).done()
    assert done is not None and struck > 0
    assert done.sha256 == wanted


def test_another_context_is_refused_by_name_and_the_same_continues(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    planned_run(video_job(tmp_path))
    assert submit(video_job(tmp_path)).is_continued
    with pytest.raises(JobError, match=r"--context was 2, now 4"):
        submit(video_job(tmp_path, picture={"context": 4}))


def test_settings_that_mean_nothing_to_the_model_are_refused(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    with pytest.raises(JobError, match="skip_duplicates: tiny-vsr is a video network"):
        submit(video_job(tmp_path, picture={"skip_duplicates": True}))
    numbered_clip(tmp_path / "plain.mkv", frames=4)
    job = tiny_job(tmp_path, input=str(tmp_path / "plain.mkv"), picture={"context": 3})
    with pytest.raises(JobError, match="context: nearest makes each frame by itself"):
        submit(job)


def test_a_still_is_a_window_of_one(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    numbered_clip(tmp_path / "one.mkv", frames=1)
    done = finished(planned_run(video_job(tmp_path, clip="one.mkv")))
    assert done.frames == 1
