"""Makes the plan of a run, by whichever process holds the plan's lease."""

from __future__ import annotations

import os

from vsr_hpc.media.timeline import Timeline
from vsr_hpc.planning.planner import make_plan
from vsr_hpc.planning.preparation import Prepared, prepare
from vsr_hpc.planning.space import check_space
from vsr_hpc.run import model_copy as staging
from vsr_hpc.run.run import Run
from vsr_hpc.work.trial import SHORT_S, Sample, Tools, keep_sample, measure
from vsr_hpc.work.workbench import build_upscaler, workbench


def plan_run(run: Run, threads: int = 0) -> None:
    """Make the plan of a run that has only its job yet; what was measured for it is kept beside."""
    prepared = prepare(run.job(), card=staging.card_of(run))
    plan, timeline = make_plan(prepared, lambda ready, index: _measured(run, ready, index, threads))
    check_space(plan, run.uri, run.store.free_bytes())
    run.write_plan(plan, timeline)


def _measured(run: Run, prepared: Prepared, timeline: Timeline, threads: int) -> float:
    found = try_frames(prepared, timeline, threads=threads)
    keep_sample(run, found)
    return found.seconds_per_frame()


def try_frames(
    prepared: Prepared, timeline: Timeline, *, threads: int = 0, budget_s: float = SHORT_S
) -> Sample:
    """What a frame of this job costs here, by a few of them made as a worker would; they are thrown away."""
    threads = threads or len(os.sched_getaffinity(0))
    tools = Tools(upscaler=build_upscaler, bench=workbench)
    return measure(prepared, timeline, tools, threads=threads, budget_s=budget_s)
