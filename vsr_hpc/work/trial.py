"""A few frames of a job through each stage of the pipeline, measured one after the other on this machine.

What comes out decides how many chunks make a shard and what a job will take, never a byte of the output.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vsr_hpc.media.picture import Frame, Picture, Plane
from vsr_hpc.media.timeline import Timeline
from vsr_hpc.planning.cutting import window_of
from vsr_hpc.planning.plan import Plan
from vsr_hpc.planning.planner import frame_range
from vsr_hpc.planning.preparation import Prepared
from vsr_hpc.run.run import Run
from vsr_hpc.storage.store import MissingObject
from vsr_hpc.verification import frame_match as fidelity
from vsr_hpc.verification.picture_damage import DamageFinder
from vsr_hpc.work.pipeline import CHECKED_PX, Upscaling, Workbench, frames_of

log = logging.getLogger(__name__)


SHORT_S, LONG_S = 1.5, 6.0
"""About how long a sample takes: before a plan that is wanted now; when somebody asks for an estimate."""
_NAME = "sample.json"
_MOST_FRAMES = 96
_MOST_BYTES = 384 << 20
"""Of decoded and upscaled frames that are held at once."""
_CAUTIOUS_OPERATIONS_PER_S = 1e11
"""Of a network on a slow core or two: only decides whether whole frames may be tried."""
_ENCODING_S_PER_PIXEL = 5e-8
"""As x264 takes at its usual preset: only decides how many frames are tried."""
_MOST_IN_A_WINDOW = 8
"""Frames that a video network is tried on at a time."""
_LEAST_SIDE = 64
_LONGEST_FRAME_S = 4.0


class Sample(BaseModel):
    """What a frame of one job costs on one machine; seconds are per frame, each stage on its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    kind: str = "cpu"
    threads: int = Field(ge=1)
    """Of the device's computations and of decoding; encoders have their own number."""
    lanes: int = Field(1, ge=1)
    """Batches that the device takes at once."""
    frames: int = Field(ge=1)
    """How many were made."""
    wall_s: dict[str, float]
    """By stage: decode, device, encode, check; of the device with all its lanes at work."""
    cpu_s: dict[str, float]
    """CPU time by stage; of a GPU, what it keeps the CPU busy with."""
    bytes_per_frame: float = Field(ge=0)
    """Of the encoded output."""
    startup_s: float = Field(ge=0)
    """From a started interpreter to a network that has run once: imports, weights, warming up."""
    startup_cpu_s: float = Field(0.0, ge=0)
    spent_s: float = Field(0.0, ge=0)
    """What trying took."""
    is_cropped: bool = False
    """Whether the network was tried on a part of a frame, since a whole one takes too long."""

    @property
    def codec_cpu_s(self) -> float:
        """What is left on the CPU whatever the device: decoding, encoding, checking."""
        return sum(self.cpu_s[stage] for stage in ("decode", "encode", "check"))

    def seconds_per_frame(self, *, workers: int = 1, cores: int | None = None) -> float:
        """Of all workers together in steady state, on a machine that does nothing else.

        The stages run side by side, so the slowest sets the pace; nor can more be done than the cores have
        time for. Other work that slowed a stage down shows as wall time that the CPU did not spend on it.
        """
        paces = [min(self.wall_s[stage], self.cpu_s[stage]) for stage in ("decode", "encode", "check")]
        device_s = self.wall_s["device"]
        if self.kind != "cuda":
            device_s = min(device_s, self.cpu_s["device"] / self.lanes)
        pace = max(*paces, device_s)
        return max(pace / workers, sum(self.cpu_s.values()) / (cores or self.threads))

    @property
    def slowest(self) -> str:
        """The stage that most time goes to."""
        return max(self.wall_s, key=lambda stage: self.wall_s[stage])


def keep_sample(run: Run, sample: Sample) -> None:
    """Beside the plan that it shaped; the first one stands, as the plan does."""
    run.store.create(_NAME, sample.model_dump_json(indent=1).encode())


def read_sample(run: Run) -> Sample | None:
    """What was measured for the run's plan; None where nothing was, or by another version."""
    try:
        return Sample.model_validate_json(run.store.read(_NAME))
    except MissingObject:
        return None
    except ValidationError as exc:
        log.warning("sample not read run=%s error=%s", run.uri, str(exc).splitlines()[0])
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """How a worker builds what it works with; given from above, so that both use the same."""

    upscaler: Callable[[Prepared, int], tuple[Upscaling, dict[str, str]]]
    bench: Callable[[Plan, Timeline, Upscaling, Path, int], Workbench]


@dataclass(slots=True)
class _Clock:
    wall_s: dict[str, float] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall_s[stage] = self.wall_s.get(stage, 0.0) + time.perf_counter() - wall
        self.cpu_s[stage] = self.cpu_s.get(stage, 0.0) + time.process_time() - cpu

    def per_frame(self, frames: int) -> tuple[dict[str, float], dict[str, float]]:
        return (
            {stage: spent / frames for stage, spent in self.wall_s.items()},
            {stage: spent / frames for stage, spent in self.cpu_s.items()},
        )


def measure(
    prepared: Prepared, timeline: Timeline, tools: Tools, *, threads: int = 0, budget_s: float = SHORT_S
) -> Sample:
    """Make some frames from the middle of the range, and throw them away."""
    threads = threads or len(os.sched_getaffinity(0))
    start, stop = frame_range(prepared.job.range, timeline)
    began, began_cpu = time.perf_counter(), time.process_time()
    part = _part_of(prepared)
    upscaler, platform = tools.upscaler(part, threads)
    clock = _Clock()
    with tempfile.TemporaryDirectory(prefix="vsr-sample-") as folder:
        plan = _plan(prepared, start, stop)
        bench = tools.bench(plan, timeline, upscaler, Path(folder), threads)
        (first,) = frames_of(bench, start, start + 1)
        upscaler([_cropped(first, part.clip.picture)])
        startup_s, startup_cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
        begin, wanted = _middle(start, stop, prepared, budget_s)
        taken, made = _through_device(bench, (begin, begin + wanted), part, budget_s, clock)
        if part is not prepared:
            made = [_stretched(frame, prepared) for frame in taken]
        size = _through_encoder(bench, prepared, taken, made, Path(folder), clock)
    count = len(taken)
    wall, cpu = clock.per_frame(count)
    ratio = _pixels(prepared.clip.picture) / _pixels(part.clip.picture)
    seen = ratio * _seen_again(prepared)
    return Sample(
        device=platform.get("model", platform.get("device", "")),
        kind="cuda" if platform.get("device") == "cuda" else "cpu",
        threads=threads,
        lanes=bench.lanes,
        frames=count,
        wall_s=wall | {"device": wall["device"] * seen},
        cpu_s=cpu | {"device": cpu["device"] * seen},
        bytes_per_frame=size / count,
        startup_s=startup_s,
        startup_cpu_s=startup_cpu_s,
        spent_s=time.perf_counter() - began,
        is_cropped=ratio > 1,
    )


def _seen_again(prepared: Prepared) -> float:
    """How often a video network sees each frame: windows have context, which was not tried."""
    window = window_of(prepared.job, prepared.card, prepared.clip)
    if window is None:
        return 1.0
    longest, context = window
    return (longest + 2 * context) / longest


def _pixels(picture: Picture) -> int:
    return picture.width * picture.height


def _middle(start: int, stop: int, prepared: Prepared, budget_s: float) -> tuple[int, int]:
    """Where to take how many frames: as many as may be held and encoded in time, around the middle."""
    samples = sum(rows * columns for rows, columns in prepared.picture.plane_shapes())
    held = samples * prepared.picture.pixel.dtype.itemsize * 2
    encoded = int(budget_s / 2 / (_pixels(prepared.picture) * _ENCODING_S_PER_PIXEL))
    count = min(stop - start, max(2, min(_MOST_FRAMES, _MOST_BYTES // held, encoded)))
    return start + (stop - start - count) // 2, count


def _plan(prepared: Prepared, start: int, stop: int) -> Plan:
    """A plan of one chunk; it is only worked from and never written."""
    return Plan(
        job=prepared.job,
        clip=prepared.clip,
        card=prepared.card,
        picture=prepared.picture,
        encoding=prepared.encoding,
        chunk_borders=(start, stop),
        shard_borders=(0, 1),
        timeline_sha256="",
        fingerprint={},
        seconds_per_frame=None,
        scratch_bytes=0,
    )


def _part_of(prepared: Prepared) -> Prepared:
    """The job for a corner of its frames, where a whole one would take a network too long to try."""
    picture, card = prepared.clip.picture, prepared.card
    affordable = _LONGEST_FRAME_S * _CAUTIOUS_OPERATIONS_PER_S / max(1, card.operations_per_pixel)
    if card.is_filter or _pixels(picture) <= affordable:
        return prepared
    shrink = (affordable / _pixels(picture)) ** 0.5
    sides = [max(_LEAST_SIDE, int(side * shrink) // 16 * 16) for side in (picture.width, picture.height)]
    width, height = min(sides[0], picture.width), min(sides[1], picture.height)
    factor = prepared.picture.width / picture.width, prepared.picture.height / picture.height
    return replace(
        prepared,
        clip=replace(prepared.clip, picture=replace(picture, width=width, height=height)),
        picture=replace(
            prepared.picture,
            width=max(2, round(width * factor[0] / 2) * 2),
            height=max(2, round(height * factor[1] / 2) * 2),
        ),
    )


def _through_device(
    bench: Workbench, frames: tuple[int, int], part: Prepared, budget_s: float, clock: _Clock
) -> tuple[list[Frame], list[Frame]]:
    """Decode, then upscale until half the time is spent: two frames at least."""
    coming = frames_of(bench, *frames)
    taken = [next(coming)]  # with the way there from the last key frame, which a whole chunk does not feel
    with clock.timed("decode"):
        taken += coming
    decoded = max(1, len(taken) - 1)
    made: list[Frame] = []
    at_once = _MOST_IN_A_WINDOW if part.card.is_recurrent else bench.upscaler.batch
    until = time.perf_counter() + budget_s / 2
    with clock.timed("device"):
        while len(made) < min(2, len(taken)) or (len(made) < len(taken) and time.perf_counter() < until):
            batch = taken[len(made) : len(made) + at_once]
            made += bench.upscaler([_cropped(each, part.clip.picture) for each in batch])
    clock.wall_s["device"] /= bench.lanes  # a worker makes as many batches at once
    for spent in (clock.wall_s, clock.cpu_s):
        spent["decode"] *= len(made) / decoded
    return taken[: len(made)], made


def _through_encoder(
    bench: Workbench,
    prepared: Prepared,
    taken: list[Frame],
    made: list[Frame],
    folder: Path,
    clock: _Clock,
) -> int:
    """Encode and check as a worker does; bytes of what was encoded."""
    path = folder / f"sample{prepared.encoding.suffix if prepared.encoding else '.tar'}"
    writer = bench.new_writer(path)
    try:
        with clock.timed("encode"):
            for frame in made:
                writer.write(frame)
            facts = writer.close()
    except BaseException:
        writer.abort()
        raise
    with clock.timed("check"):  # for its time alone; a worker judges
        was, now = prepared.clip.picture, prepared.picture
        finder = DamageFinder(was, now, first=0, longest=CHECKED_PX)
        inputs = [finder.grid.look_at(frame, was) for frame in taken]
        picture, frames = bench.read_back(path)
        outputs = [finder.grid.look_at(frame, picture) for frame in frames]
        fidelity.compare([each.luma for each in inputs], [each.luma for each in outputs])
        for own, output in zip(inputs, outputs, strict=True):
            finder.add(own, output)
    return facts.size_bytes


def _cropped(frame: Frame, picture: Picture) -> Frame:
    planes = zip(frame.planes, picture.plane_shapes(), strict=True)
    return replace(frame, planes=tuple(plane[:rows, :columns] for plane, (rows, columns) in planes))


def _stretched(frame: Frame, prepared: Prepared) -> Frame:
    """Some picture of the output's size with the frame's own texture, where the network made none."""
    planes = []
    for place, (rows, columns) in enumerate(prepared.picture.plane_shapes()):
        source = frame.planes[min(place, len(frame.planes) - 1)]
        down = np.arange(rows) * source.shape[0] // rows
        across = np.arange(columns) * source.shape[1] // columns
        planes.append(_recoded(source[down][:, across], prepared))
    return replace(frame, planes=tuple(planes))


def _recoded(plane: Plane, prepared: Prepared) -> Plane:
    depth, wanted = prepared.clip.picture.pixel.depth, prepared.picture.pixel
    if depth > 16 or wanted.depth > 16:
        return np.ascontiguousarray(plane, dtype=wanted.dtype)
    return np.ascontiguousarray(plane.astype(np.float32) * 2.0 ** (wanted.depth - depth), dtype=wanted.dtype)
