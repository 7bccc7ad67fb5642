"""One short clip of a request: the batch path's own plan, pipeline and merge in a temporary folder.

Only the device is shared: frames go to it beside those of other requests. The answer is the file that
`vsr upscale` makes of the same clip with the same options; or the same streams in pieces that go out while
later ones are still being made.
"""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future, wait
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from vsr_hpc.engine.device_facts import DeviceFacts
from vsr_hpc.engine.settings import resolve_settings
from vsr_hpc.errors import MediaError
from vsr_hpc.job.reading import parse_job
from vsr_hpc.job.spec import JobSpec
from vsr_hpc.media.clip.reader import read_segment
from vsr_hpc.media.encode.encoding import Encoding
from vsr_hpc.media.encode.segment_writer import SegmentWriter
from vsr_hpc.media.merge.merge import merge, stream_merge
from vsr_hpc.media.merge.request import MergeRequest
from vsr_hpc.media.picture import Frame
from vsr_hpc.media.segment import SegmentPart
from vsr_hpc.media.source import Source, local_source
from vsr_hpc.media.timeline import Timeline
from vsr_hpc.planning.plan import Plan, Shard
from vsr_hpc.planning.planner import make_plan
from vsr_hpc.planning.preparation import prepare
from vsr_hpc.planning.requests import streams_request, upscale_request
from vsr_hpc.serving.batcher import Batcher
from vsr_hpc.serving.deadline import RequestDeadline
from vsr_hpc.serving.limits import Limits
from vsr_hpc.serving.loaded_models import Bench, Model
from vsr_hpc.serving.refusals import too_long, too_many_pixels
from vsr_hpc.serving.request import Content, Options
from vsr_hpc.serving.stills import Facts
from vsr_hpc.work.pipeline import ShardWork, Stopped, Workbench, make_segments

_STREAMED_CHUNK_S = 1.0
"""A chunk goes out when the next one is done: short ones make an early first piece."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedClip:
    """A clip that was looked at, found good and cut into chunks."""

    plan: Plan
    timeline: Timeline
    source: Source
    folder: Path
    upscaler: SharedDevice
    facts: Facts
    patience: RequestDeadline

    @property
    def encoding(self) -> Encoding:
        if self.plan.encoding is None:
            raise MediaError("the answer is no video")
        return self.plan.encoding

    @property
    def output(self) -> Path:
        return Path(self.plan.job.output)

    def segments(self, publish: Callable[[str, Path], None]) -> ShardWork:
        """Make all of them; each is handed over when it is checked. Stopped where the patience ends first."""
        scratch = self.folder / "segments"
        scratch.mkdir()
        plan, rate = self.plan, self.plan.clip.frame_rate or Fraction(25)
        bench = Workbench(
            plan=plan,
            timeline=self.timeline,
            source=local_source(plan.clip.uri),
            upscaler=self.upscaler,
            scratch=scratch,
            decoder_threads=1,
            new_writer=lambda path: SegmentWriter(path, self.encoding, plan.picture, time_base=1 / rate),
            read_back=lambda path: (plan.picture, read_segment(path, plan.picture)),
            publish=publish,
        )
        whole = Shard(index=0, first_chunk=0, last_chunk=plan.chunk_count, start=plan.start, stop=plan.stop)
        return make_segments(
            bench, whole, on_frames=lambda count: None, should_drop=lambda left: self.patience.is_over
        )


def plan_clip(
    folder: Path,
    content: Content,
    answer: Content,
    model: Model,
    options: Options,
    *,
    device: DeviceFacts,
    batch: int | None,
    batcher: Batcher,
    limits: Limits,
    patience: RequestDeadline,
) -> PlannedClip:
    """Say what will be made of `folder`/in.<content>, which the fence has looked at. JobError, Refusal."""
    job = _job(folder, content, answer, model, options)
    prepared = prepare(job, card=model.card)
    out = prepared.picture
    if out.width * out.height > limits.pixels_out:
        raise too_many_pixels("answer's", out.width, out.height, limits.pixels_out)
    plan, packed = make_plan(prepared, lambda ready, index: None)
    timeline = Timeline.from_bytes(packed)
    _check_length(plan, timeline, limits)
    request = upscale_request(job, out)
    settings = resolve_settings(request, model.card, prepared.clip.picture, device)
    if batch is not None:
        settings = replace(settings, batch=batch)
    facts = (
        ("model", model.name),
        ("width", str(out.width)),
        ("height", str(out.height)),
        ("frames", str(plan.frames)),
    )
    return PlannedClip(
        plan=plan,
        timeline=timeline,
        source=prepared.source,
        folder=folder,
        upscaler=SharedDevice(batcher, Bench(model, prepared.clip.picture, out, settings), patience),
        facts=facts,
        patience=patience,
    )


def make_clip(clip: PlannedClip) -> None:
    """Write the whole file to the clip's output. Stopped where the patience ends first."""
    paths: dict[str, Path] = {}
    work = clip.segments(paths.__setitem__)
    parts = [
        SegmentPart(
            fetch=lambda name=each.name: paths[name],  # type: ignore[misc]
            frames=each.frames,
            sha256=each.sha256,
            done=_removed,
        )
        for each in work.segments
    ]
    merge(parts, _merge_request(clip), clip.output)


def _merge_request(clip: PlannedClip) -> MergeRequest:
    return MergeRequest(
        clip=clip.plan.clip,
        timeline=clip.timeline,
        source=clip.source,
        picture=clip.plan.picture,
        encoding=clip.encoding,
        streams=streams_request(clip.plan.job),
    )


class ClipStream:
    """A clip that goes out while it is being made.

    Segments are made in a thread of `pool`; whoever reads merges them as they come. It owns the folder.
    """

    def __init__(self, clip: PlannedClip, pool: Executor) -> None:
        self._clip, self.facts = clip, clip.facts
        self._ready = [Future[Path]() for _ in range(clip.plan.chunk_count)]
        plan = clip.plan
        parts = [
            SegmentPart(fetch=partial(self._segment, i), frames=_length(plan.chunk(i)), done=_removed)
            for i in range(plan.chunk_count)
        ]
        self._pieces = stream_merge(parts, _merge_request(clip), clip.output)
        self._reading = threading.Lock()
        self._making = pool.submit(self._make)

    @property
    def folder(self) -> Path:
        return self._clip.folder

    def read(self) -> bytes:
        """The next piece, when it is there; nothing at the end. What went wrong is raised."""
        with self._reading:
            return next(self._pieces, b"")

    def close(self) -> None:
        """Stop what is still being done, and leave nothing."""
        self._clip.patience.give_up()
        with self._reading:
            self._pieces.close()
        if not self._making.cancel():
            wait([self._making])
        shutil.rmtree(self._clip.folder, ignore_errors=True)

    def _make(self) -> None:
        numbers = itertools.count()
        try:
            if self._clip.patience.is_over:
                raise Stopped
            self._clip.segments(lambda name, path: self._ready[next(numbers)].set_result(path))
        except BaseException as exc:  # whoever reads raises it
            for each in self._ready:
                if not each.done():
                    each.set_exception(exc)

    def _segment(self, number: int) -> Path:
        while True:
            try:
                return self._ready[number].result(timeout=0.5)
            except FutureTimeoutError:
                if self._clip.patience.is_over or self._making.cancelled():
                    raise Stopped from None


def _length(frames: tuple[int, int]) -> int:
    return frames[1] - frames[0]


def _removed(path: Path) -> None:
    path.unlink(missing_ok=True)


class SharedDevice:
    """The pipeline's view of the device that all requests share."""

    def __init__(self, batcher: Batcher, bench: Bench, patience: RequestDeadline) -> None:
        self._batcher, self._bench, self._patience = batcher, bench, patience
        self.batch = bench.settings.batch
        self.clipped = 0

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        done: Future[list[Frame]] = self._batcher.submit(self._bench, frames)
        while True:
            try:
                return done.result(timeout=min(0.5, self._patience.left_s))
            except FutureTimeoutError:
                if self._patience.is_over:
                    done.cancel()
                    raise Stopped from None
            except CancelledError:
                raise Stopped from None


def _check_length(plan: Plan, timeline: Timeline, limits: Limits) -> None:
    if plan.frames > limits.clip_frames:
        raise too_long(plan.frames, limits.clip_frames, "frames")
    seconds = (timeline.end - int(timeline.pts[0])) * timeline.time_base
    if seconds > Fraction(limits.clip_s).limit_denominator(1000):
        raise too_long(round(float(seconds), 2), limits.clip_s, "seconds")


def _job(folder: Path, content: Content, answer: Content, model: Model, options: Options) -> JobSpec:
    picture: dict[str, Any] = {
        "scale": options.scale,
        "size": options.size,
        "stretch": options.size is not None,  # as for stills, the answer has exactly this size
        "blend": options.blend,
        "grain": options.grain,
        "seed": options.seed,
        "deinterlace": options.deinterlace,
    }
    video = {"codec": options.codec, "crf": options.crf, "preset": options.preset}
    return parse_job(
        {
            "input": str(folder / f"in.{content}"),
            "output": str(folder / f"out.{answer}"),
            "model": model.reference,
            "picture": picture,
            "video": video,
            "streams": {"audio": options.audio},
            "run": {"chunk_s": _STREAMED_CHUNK_S if options.stream else None},
            "overwrite": True,
        },
        "request",
    )
