"""A job's plan with what it would take here and elsewhere: tries some frames, asks the tables.

Also keeps, with a run, what was expected of it when it began.
"""

from __future__ import annotations

import importlib
import logging
import os
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from vsr_hpc.aws.prices import check_region, prices
from vsr_hpc.executors.slurm.commands import is_own_cluster
from vsr_hpc.forecast.job_ways import (
    WORKER_COUNTS,
    Choice,
    JobPlace,
    Option,
    Range,
    RefusedPlace,
    Work,
    cheapest,
    choose,
    describe_option,
    local_option,
    options,
    places,
    refusal,
    round_option,
)
from vsr_hpc.forecast.own_cluster import cluster_ways
from vsr_hpc.forecast.profiles import load_profiles
from vsr_hpc.forecast.worker_speed import FrameWork, Pace
from vsr_hpc.job.spec import JobSpec
from vsr_hpc.media.encode.encoding import Encoding
from vsr_hpc.media.timeline import Timeline
from vsr_hpc.models.cards import Card
from vsr_hpc.models.network_costs import activation_bytes_per_pixel
from vsr_hpc.planning.plan import Plan
from vsr_hpc.planning.planner import make_plan
from vsr_hpc.planning.preparation import Prepared, prepare
from vsr_hpc.run.run import Run
from vsr_hpc.run.spending import ESTIMATE_NAME, Estimate, Figure
from vsr_hpc.system.processes import visible_gpus
from vsr_hpc.work.trial import LONG_S, SHORT_S, Sample, read_sample

log = logging.getLogger(__name__)


DEFAULT_REGION = "us-east-1"
CLIP_LIMIT_S = 60.0
"""Of the server, as serving.limits has it by default."""

_GUESSED_CPU_NS = {"h264": 45.0, "h265": 120.0, "av1": 80.0, "ffv1": 25.0, "prores": 20.0, "images": 60.0}
"""CPU nanoseconds per output pixel of encoding at the usual preset, where no frame was tried."""
_GUESSED_DECODE_NS, _GUESSED_CHECK_NS, _GUESSED_FILTER_NS = 6.0, 8.0, 8.0
_COMMAND_S = 0.7
"""Until a command of ours does something: the interpreter and its imports."""
_POLL_S = 0.5
_REBUILT_S = 0.5
"""A network that this process has had already."""
_BUSY = 0.5
"""Other work on this machine, in cores, above which waiting for it is told from working."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """All that `vsr plan` shows."""

    plan: Plan
    notes: tuple[str, ...]
    sample: Sample | None
    """The frames that were tried here; None on a machine without torch."""
    busy_cores: float
    """How many cores other work keeps busy on this machine now, by the kernel's own count."""
    cores: int
    here: Option | RefusedPlace
    elsewhere: tuple[Option | RefusedPlace, ...]
    """The best way of each place, or why there is none."""
    choice: Choice | None
    """Where a deadline or a budget was given."""
    bytes_out: int
    memory_bytes: int
    """Of one worker on this machine, about."""
    prices: str
    region: str


def forecast(
    job: JobSpec,
    *,
    region: str = DEFAULT_REGION,
    deadline_s: float | None = None,
    budget_usd: float | None = None,
    shows_aws: bool = False,
) -> Forecast:
    """Check and plan a job, try some of its frames here, weigh where it could run. Writes nothing.

    On a Slurm cluster of one's own, AWS and its prices are left out unless `shows_aws`.
    A machine without torch tries no frames; figures for other places then come from profiles and rates.
    """
    from vsr_hpc.work.run_plan import try_frames

    check_region(region)
    busy = os.getloadavg()[0]  # before this command adds to it
    prepared = prepare(job)
    cores = len(os.sched_getaffinity(0))
    threads = _threads_of_one(job, cores)
    can_try = _has_torch()
    found: list[Sample] = []
    tried_cpu: list[float] = []

    def try_and_measure(ready: Prepared, timeline: Timeline) -> float:
        before = time.process_time()
        found.append(try_frames(ready, timeline, threads=threads, budget_s=LONG_S))
        tried_cpu.append(time.process_time() - before)
        return found[0].seconds_per_frame()

    began, began_cpu = time.perf_counter(), time.process_time()
    plan, timeline = make_plan(prepared, try_and_measure if can_try else lambda _ready, _timeline: None)
    if can_try and not found:  # the clip is too short for its plan to need a measurement
        try_and_measure(prepared, Timeline.from_bytes(timeline))
    sample = found[0] if found else None
    planning_s = time.perf_counter() - began - (sample.spent_s if sample else 0.0)
    if busy > _BUSY:  # other work's time is not this job's
        planning_s = min(planning_s, time.process_time() - began_cpu - sum(tried_cpu))
    frame = frame_work(plan, sample)
    work = _work(plan, frame, int(frame.bytes_out * plan.frames), planning_s)
    table, profiles = prices(region), load_profiles()
    here: Option | RefusedPlace = RefusedPlace(
        where="local", label="this machine", reason="torch is not installed here; pip install torch"
    )
    every: list[Option] = []
    if sample is not None:
        workers = _workers_here(job, plan)
        here = local_option(work, _pace_here(sample, workers, cores, plan), workers)
        every.append(here)
    elsewhere: list[Option | RefusedPlace] = []
    is_free = deadline_s is not None or budget_usd is not None
    counts = WORKER_COUNTS if is_free else (job.run.workers,)
    is_own = is_own_cluster()
    if is_own:
        found_here = tuple(cluster_ways(job, work, table, profiles, counts))
        best_here = choose(_options_in(found_here), deadline_s=deadline_s, budget_usd=budget_usd).option
        elsewhere.append(best_here or found_here[0])
        every += _options_in(found_here)
    for place in places(plan.card.is_filter) if shows_aws or not is_own or job.on == "aws-batch" else ():
        ways = tuple(options(place, work, table, profiles, counts))
        best, refused = _best(place, work, ways, deadline_s, budget_usd)
        elsewhere.append(refused or best or _refuse_unpriced(place))
        every += [] if refused else ways
    choice = choose(every, deadline_s=deadline_s, budget_usd=budget_usd) if is_free else None
    return Forecast(
        plan=plan, notes=prepared.notes, sample=sample, busy_cores=busy, cores=cores, here=here,
        elsewhere=tuple(elsewhere), choice=choice,
        bytes_out=work.bytes_out, memory_bytes=memory_bytes(plan), prices=table.text(), region=region,
    )  # fmt: skip


def _has_torch() -> bool:
    try:
        importlib.import_module("torch")
    except ModuleNotFoundError as exc:
        if exc.name != "torch":
            raise
        return False
    return True


def _options_in(found: tuple[Option | RefusedPlace, ...]) -> list[Option]:
    return [each for each in found if isinstance(each, Option)]


def _refuse_unpriced(place: JobPlace) -> RefusedPlace:
    return RefusedPlace(
        where=place.where, label=place.label, reason="no price of its instance types is known"
    )


def _best(
    place: JobPlace, work: Work, ways: tuple[Option, ...], deadline_s: float | None, budget_usd: float | None
) -> tuple[Option | None, RefusedPlace | None]:
    """What to show of a place: what meets the wishes there, else its cheapest."""
    best = cheapest(ways)
    if deadline_s is not None or budget_usd is not None:
        best = choose(ways, deadline_s=deadline_s, budget_usd=budget_usd).option or best
    return best, refusal(place, work, best, CLIP_LIMIT_S)


def note(run: Run, job: JobSpec) -> None:
    """Keep with a planned run what is expected from its first round to its output.

    On this machine that needs the frames that were tried for the plan, and a short clip is not tried.
    """
    if not run.has_plan():
        return
    plan, sample = run.plan, read_sample(run)
    table = prices(os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or DEFAULT_REGION)
    made = plan.scratch_bytes // 2 if sample is None else int(sample.bytes_per_frame * plan.frames)
    work = replace(_work(plan, frame_work(plan, sample), made, 0.0), has_report=False)
    if job.on == "local":
        if sample is not None:
            workers, cores = _workers_here(job, plan), len(os.sched_getaffinity(0))
            pace = _pace_here(sample, workers, cores, plan)
            own_s = _own_start_s(sample, workers, cores) or _REBUILT_S
            note_estimate(run, local_option(work, replace(pace, startup_s=own_s), workers), prices="")
        return
    if job.on == "slurm" and is_own_cluster():
        for way in cluster_ways(job, work, table, load_profiles(), (job.run.workers,)):
            if isinstance(way, Option):
                note_estimate(run, way, prices="")
        return
    purchase = "on-demand" if job.on == "slurm" and _is_on_demand(job) else "spot"
    for place in places(plan.card.is_filter):
        if place.where == job.on and place.purchase == purchase:
            best = cheapest(options(place, work, table, load_profiles(), (job.run.workers,)))
            if best is not None:
                note_estimate(run, best, prices=table.text())


def _is_on_demand(job: JobSpec) -> bool:
    """By the first partition's name, which is all that is known of it here."""
    first = job.slurm.partitions[0] if job.slurm.partitions else ""
    return "demand" in first.lower()


def frame_work(plan: Plan, sample: Sample | None) -> FrameWork:
    """What a frame costs anywhere, from tried frames; by pixels and usual rates where none were tried."""
    picture, out = plan.clip.picture, plan.picture
    pixels_in, pixels_out = picture.width * picture.height, out.width * out.height
    is_filter = plan.card.is_filter
    cpu = sample.cpu_s if sample is not None else {}
    guess = 1e-9 * pixels_out
    filter_s = cpu.get("device") if sample is not None and sample.kind == "cpu" else None
    guessed_filter_s = guess * _GUESSED_FILTER_NS
    codec = _codec(plan.encoding)
    return FrameWork(
        pixels_in=pixels_in,
        pixels_out=pixels_out,
        operations=0.0 if is_filter else float(plan.card.operations_per_pixel) * pixels_in,
        is_filter=is_filter,
        filter_cpu_s=(guessed_filter_s if filter_s is None else filter_s) if is_filter else 0.0,
        decode_cpu_s=cpu.get("decode", 1e-9 * pixels_in * _GUESSED_DECODE_NS),
        encode_cpu_s=cpu.get("encode", guess * _GUESSED_CPU_NS[codec]),
        check_cpu_s=cpu.get("check", guess * _GUESSED_CHECK_NS),
        bytes_out=sample.bytes_per_frame if sample is not None else plan.scratch_bytes / 2 / plan.frames,
    )


def _codec(encoding: Encoding | None) -> str:
    return "images" if encoding is None else encoding.codec


def _work(plan: Plan, frame: FrameWork, bytes_out: int, planning_s: float) -> Work:
    rate = plan.clip.frame_rate
    return Work(
        card=plan.card,
        frame=frame,
        chunks=plan.chunk_borders,
        shard_s=plan.job.run.shard_s,
        clip_s=plan.frames / float(rate) if rate else 0.0,
        bytes_in=plan.clip.size_bytes,
        bytes_out=bytes_out,
        plan_s=planning_s,
    )


def _workers_here(job: JobSpec, plan: Plan) -> int:
    gpus = visible_gpus() if job.run.gpus is None else job.run.gpus
    return max(1, min(max(job.run.workers, len(gpus)), plan.chunk_count))


def _threads_of_one(job: JobSpec, cores: int) -> int:
    return max(1, (job.run.threads or cores) // max(1, job.run.workers))


def _pace_here(sample: Sample, workers: int, cores: int, plan: Plan) -> Pace:
    """Of all workers of this machine; each of several is a process that begins from nothing."""
    tried_s = SHORT_S if plan.chunk_count > 2 else 0.0
    startup_s = _COMMAND_S + _engine_s(sample) + tried_s + _own_start_s(sample, workers, cores)
    return Pace(
        seconds_per_frame=sample.seconds_per_frame(workers=workers, cores=cores),
        basis="measured",
        slowest="codecs" if sample.slowest != "device" else "filter" if plan.card.is_filter else "network",
        source=f"{sample.frames} frames tried on {sample.device or 'this machine'}",
        startup_s=startup_s,
    )


def _engine_s(sample: Sample) -> float:
    """Until the network has run once; where other work keeps the machine busy, by its CPU time."""
    is_busy = os.getloadavg()[0] > _BUSY + 1  # this process has added to it
    return min(sample.startup_s, sample.startup_cpu_s) if is_busy else sample.startup_s


def _own_start_s(sample: Sample, workers: int, cores: int) -> float:
    """Of several workers, which are processes that begin from nothing; a single one is this process."""
    if workers == 1:
        return 0.0
    return (_COMMAND_S + _engine_s(sample)) * max(1.0, workers / cores) + _POLL_S


def memory_bytes(plan: Plan) -> int:
    """Of one worker on a CPU: the program, frames on their way, what an encoder looks ahead, the network."""
    picture, out = plan.clip.picture, plan.picture
    frame_in = sum(rows * columns for rows, columns in picture.plane_shapes()) * picture.pixel.dtype.itemsize
    frame_out = sum(rows * columns for rows, columns in out.plane_shapes()) * out.pixel.dtype.itemsize
    card: Card = plan.card
    tile = plan.job.picture.tile
    pixels = picture.width * picture.height
    if isinstance(tile, int):
        pixels = min(pixels, (tile + 2 * card.overlap) ** 2)
    activations = 0
    if not card.is_filter:
        per_pixel = activation_bytes_per_pixel(card.network, card.scale, dict(card.parameters), 4)
        activations = min(pixels * per_pixel, 1 << 30)  # the engine tiles what would be more
    return int(340 * 2**20 + 8 * frame_in + 90 * frame_out + activations)


def note_estimate(run: Run, chosen: Option, *, prices: str) -> None:
    """Keep what was expected; an earlier estimate of the run stands."""
    short = round_option(chosen)
    hourly = short.usd.mid / short.node_hours if short.usd is not None and short.node_hours else None
    estimate = Estimate(
        where=short.where,
        way=describe_option(short),
        instance=short.instance,
        purchase=short.purchase,
        workers=short.workers,
        seconds=_figure(short.seconds),
        usd=None if short.usd is None else _figure(short.usd),
        node_hours=short.node_hours,
        interruptions=short.interruptions,
        basis=short.basis,
        source=short.source,
        usd_per_node_hour=hourly,
        prices=prices,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    run.store.create(ESTIMATE_NAME, estimate.model_dump_json(indent=1).encode())


def _figure(values: Range) -> Figure:
    return Figure(low=values.low, mid=values.mid, high=values.high)
