"""Trying a few frames of a job: what is counted, and that shards follow from it while no byte does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clips import numbered_clip
from tests.recurrent import tiny_model
from tests.runs import finished, planned_run, tiny_job
from vsr_hpc.media.clip.probe import index_clip
from vsr_hpc.media.picture import Frame
from vsr_hpc.models.cards import find_card
from vsr_hpc.planning.preparation import Prepared, prepare
from vsr_hpc.run.run import Run
from vsr_hpc.storage.folder_store import FolderStore
from vsr_hpc.work import run_plan
from vsr_hpc.work.run_plan import plan_run, try_frames
from vsr_hpc.work.trial import Sample, Tools, _seen_again, measure, read_sample
from vsr_hpc.work.workbench import workbench


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def sample(**changes: object) -> Sample:
    values: dict[str, object] = {
        "device": "a CPU", "threads": 2, "frames": 10, "bytes_per_frame": 1000.0, "startup_s": 1.0,
        "wall_s": {"decode": 0.01, "device": 0.06, "encode": 0.04, "check": 0.01},
        "cpu_s": {"decode": 0.01, "device": 0.06, "encode": 0.08, "check": 0.01},
    }  # fmt: skip
    return Sample.model_validate(values | changes)


def tried(folder: Path, **sections: object) -> Sample:
    prepared = prepare(tiny_job(folder, **sections))
    return try_frames(prepared, index_clip(prepared.clip, prepared.source), threads=1, budget_s=0.2)


def test_the_slowest_stage_sets_the_pace_of_a_worker_with_cores_to_spare() -> None:
    assert sample().seconds_per_frame(cores=16) == 0.06


def test_no_more_is_done_than_the_cores_have_time_for() -> None:
    assert sample().seconds_per_frame(cores=2) == pytest.approx(0.08)
    assert sample().seconds_per_frame(workers=4, cores=2) == pytest.approx(0.08)


def test_more_workers_are_faster_while_there_are_cores() -> None:
    assert sample().seconds_per_frame(workers=2, cores=16) == pytest.approx(0.03)


def test_lanes_of_a_cpu_work_side_by_side() -> None:
    assert sample(lanes=2).seconds_per_frame(cores=16) == pytest.approx(0.04)


def test_a_gpu_keeps_its_own_time() -> None:
    on_gpu = sample(
        kind="cuda", lanes=2, cpu_s={"decode": 0.01, "device": 0.001, "encode": 0.04, "check": 0.01}
    )
    assert on_gpu.seconds_per_frame(cores=16) == 0.06


def test_waiting_for_other_work_is_not_counted() -> None:
    slowed = sample(wall_s={"decode": 0.05, "device": 0.3, "encode": 0.2, "check": 0.05})
    assert slowed.seconds_per_frame(cores=16) == 0.08


def test_every_stage_is_tried(tmp_path: Path) -> None:
    found = tried(tmp_path)
    assert set(found.wall_s) == set(found.cpu_s) == {"decode", "device", "encode", "check"}
    assert all(spent >= 0 for spent in found.wall_s.values())
    assert 2 <= found.frames <= 24
    assert found.bytes_per_frame > 0 and found.startup_s > 0 and not found.is_cropped


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_the_shortest_clips_can_be_tried(tmp_path: Path, frames: int) -> None:
    assert tried(tmp_path, frames=frames).frames == min(frames, 2) or frames == 3


def test_images_can_be_tried(tmp_path: Path) -> None:
    video = {"preset": None, "threads": None}
    assert tried(tmp_path, output=str(tmp_path / "out_%03d.png"), video=video).bytes_per_frame > 0


class _Doubling:
    """A stand-in for an engine: repeats samples, and notes how large the frames were that it got."""

    batch, clipped = 1, 0

    def __init__(self) -> None:
        self.shapes: set[tuple[int, ...]] = set()

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        self.shapes |= {frame.planes[0].shape for frame in frames}
        return [
            Frame(index=each.index, planes=tuple(plane.repeat(2, 0).repeat(2, 1) for plane in each.planes))
            for each in frames
        ]


def test_a_network_that_takes_minutes_for_a_frame_is_tried_on_a_part(tmp_path: Path) -> None:
    heavy = find_card("RealESRGAN_x2plus")
    job = tiny_job(tmp_path)
    numbered_clip(Path(job.input), frames=6, size=(640, 480))
    prepared = prepare(job)
    prepared = Prepared(
        job=prepared.job, source=prepared.source, clip=prepared.clip, card=heavy,
        picture=prepared.picture, encoding=prepared.encoding, notes=(),
    )  # fmt: skip
    engine = _Doubling()
    found = measure(
        prepared,
        index_clip(prepared.clip, prepared.source),
        Tools(upscaler=lambda part, threads: (engine, {"device": "cpu"}), bench=workbench),
        threads=1,
        budget_s=0.2,
    )
    assert found.is_cropped
    assert {shape[0] < 480 and shape[1] < 640 for shape in engine.shapes} == {True}
    assert found.wall_s["device"] > 0 and found.bytes_per_frame > 0


def test_a_plan_is_shaped_by_frames_that_were_tried_and_they_are_kept(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    run = Run.create(FolderStore(Path(job.run_uri)), job)
    plan_run(run, threads=1)
    kept = read_sample(run)
    assert kept is not None
    assert run.plan.seconds_per_frame == kept.seconds_per_frame()


def test_the_target_time_of_a_shard_decides_its_chunks_and_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adaptive shards: tenfold cost per frame makes shorter shards, of the same chunks, with equal bytes."""
    shapes, digests = [], set()
    for name, cost in (("light", 0.05), ("heavy", 0.5)):
        slow = sample(wall_s=_all(cost), cpu_s=_all(cost), lanes=1, threads=1)
        monkeypatch.setattr(run_plan, "measure", lambda *given, slow=slow, **named: slow)
        job = tiny_job(tmp_path, frames=48, output=str(tmp_path / f"{name}.mkv"), run={"shard_s": 2.0})
        run = Run.create(FolderStore(Path(job.run_uri)), job)
        plan_run(run, threads=1)
        shapes.append((run.plan.chunk_count, run.plan.shard_count))
        digests.add(finished(run).sha256)
    (chunks, few), (same_chunks, many) = shapes
    assert chunks == same_chunks == 12
    assert few < many == 12
    assert len(digests) == 1


def _all(seconds: float) -> dict[str, float]:
    """The stages' times whose sum is `seconds`."""
    return dict.fromkeys(("decode", "device", "encode", "check"), seconds / 4)


def test_a_sample_of_another_version_is_left_out_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = planned_run(tiny_job(tmp_path))
    assert read_sample(run) is None
    run.store.create("sample.json", b'{"odd": 1}')
    assert read_sample(run) is None
    assert "sample not read" in caplog.text


def test_a_video_networks_context_counts_for_every_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATA", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    card = tiny_model(tmp_path, context=2)
    prepared = prepare(tiny_job(tmp_path, model=card.name, picture={"scale": 4, "window": 4}))
    assert _seen_again(prepared) == 2.0
    found = try_frames(prepared, index_clip(prepared.clip, prepared.source), threads=1, budget_s=0.2)
    assert found.wall_s["device"] > 0 and found.frames >= 2
