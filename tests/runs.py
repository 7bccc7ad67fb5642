"""Tiny runs for tests: a clip whose frames carry their number, a job for it, and its plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.clips import numbered_clip
from vsr_hpc.job.reading import parse_job
from vsr_hpc.job.spec import JobSpec
from vsr_hpc.planning.planner import make_plan
from vsr_hpc.planning.preparation import prepare
from vsr_hpc.run.documents import Done
from vsr_hpc.run.run import Run
from vsr_hpc.storage.folder_store import FolderStore
from vsr_hpc.system.interrupts import StopFlag


def tiny_job(folder: Path, *, frames: int = 24, **sections: Any) -> JobSpec:
    """A job that doubles a 64x48 clip of `frames` frames at 24 per second, cut into chunks of 4."""
    clip = folder / "clip.mkv"
    if not clip.exists():
        numbered_clip(clip, frames=frames)
    document: dict[str, Any] = {
        "input": str(clip),
        "output": str(folder / "out.mkv"),
        "model": "nearest",
        "picture": {"scale": 2},
        "video": {"preset": "ultrafast", "threads": 1},
        "run": {"chunk_s": 4 / 24, "threads": 1},
    }
    for key, value in sections.items():
        document[key] = {**document.get(key, {}), **value} if isinstance(value, dict) else value
    return parse_job(document, "test")


def planned_run(job: JobSpec, seconds_per_frame: float | None = None) -> Run:
    """The job's run with its plan; shards are single chunks unless a speed is given."""
    run = Run.create(FolderStore(Path(job.run_uri)), job)
    plan, timeline = make_plan(prepare(job), lambda prepared, index: seconds_per_frame)
    run.write_plan(plan, timeline)
    run.start_round("local", 1, plan.shard_count)
    return run


def finished(run: Run) -> Done:
    """Work the run to its end in this process."""
    from vsr_hpc.launch import run_here

    done = run_here(run, StopFlag())
    assert done is not None
    return done
