"""One short clip of a request: the batch path's own plan, pipeline and merge in a temporary folder.

Only the device is shared: frames go to it beside those of other requests. The answer is the file that
`vsr upscale` makes of the same clip with the same options.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from vsr_hpc.errors import MediaError
from vsr_hpc.job import JobSpec, parse_job
from vsr_hpc.media.clip import Timeline, local_source
from vsr_hpc.media.mux import SegmentPart, merge
from vsr_hpc.media.picture import Frame
from vsr_hpc.media.reader import read_segment
from vsr_hpc.media.source import open_input
from vsr_hpc.media.writer import SegmentWriter
from vsr_hpc.pipeline import Stopped, Workbench, make_segments
from vsr_hpc.plan import Plan, Shard
from vsr_hpc.prepare import make_plan, prepare, streams_request, upscale_request
from vsr_hpc.serving.batcher import Batcher
from vsr_hpc.serving.limits import Limits, Refusal, too_long, too_many_pixels
from vsr_hpc.serving.options import Content, Options
from vsr_hpc.serving.shelf import Bench, Model
from vsr_hpc.serving.stills import Facts
from vsr_hpc.upscale.settings import DeviceFacts, resolve_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeClip:
    """The finished file, in the request's own folder."""

    path: Path
    facts: Facts
    frames: int


class Patience:
    """Until when a request is worked on: its deadline, or somebody saying that nobody waits any more."""

    def __init__(self, deadline_s: float) -> None:
        self.until = time.monotonic() + deadline_s
        self._given_up = threading.Event()

    def give_up(self) -> None:
        self._given_up.set()

    @property
    def is_over(self) -> bool:
        return self._given_up.is_set() or time.monotonic() > self.until

    @property
    def left_s(self) -> float:
        return 0.0 if self._given_up.is_set() else max(0.0, self.until - time.monotonic())


def make_clip(
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
    patience: Patience,
) -> MadeClip:
    """Upscale `folder`/in.<content>. Stopped where the patience ends first; MediaError, JobError, Refusal."""
    source = folder / f"in.{content}"
    _check_head(source, limits)
    job = _job(folder, content, answer, model, options)
    prepared = prepare(job)
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
    shared = SharedDevice(batcher, Bench(model, prepared.clip.picture, out, settings), patience)
    parts = _segments(plan, timeline, shared, folder, patience)
    output = Path(job.output)
    assert plan.encoding is not None
    report = merge(
        parts, plan.clip, timeline, prepared.source, out, plan.encoding, output, streams_request(job)
    )
    facts = (
        ("model", model.name),
        ("width", str(out.width)),
        ("height", str(out.height)),
        ("frames", str(report.frames)),
    )
    return MadeClip(path=output, facts=facts, frames=report.frames)


class SharedDevice:
    """The pipeline's view of the device that all requests share."""

    def __init__(self, batcher: Batcher, bench: Bench, patience: Patience) -> None:
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


def _check_head(source: Path, limits: Limits) -> None:
    """Refuse by what the container says, before anything is decoded."""
    with open_input(local_source(source)) as container:
        for stream in container.streams.video:
            width, height = int(stream.width or 0), int(stream.height or 0)
            if width * height > limits.pixels_in:
                raise too_many_pixels("clip's", width, height, limits.pixels_in)
        seconds = (container.duration or 0) / 1_000_000
    if seconds > limits.clip_s:
        raise too_long(round(seconds, 2), limits.clip_s, "seconds")


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
        "blend": options.blend,
        "grain": options.grain,
        "seed": options.seed,
        "deinterlace": options.deinterlace,
    }
    video = {"codec": options.codec, "crf": options.crf, "preset": options.preset}
    if options.quality is not None:
        raise Refusal(422, "option", "quality is for stills; a clip takes crf")
    return parse_job(
        {
            "input": str(folder / f"in.{content}"),
            "output": str(folder / f"out.{answer}"),
            "model": model.reference,
            "picture": picture,
            "video": video,
            "streams": {"audio": options.audio},
            "overwrite": True,
        },
        "request",
    )


def _segments(
    plan: Plan, timeline: Timeline, shared: SharedDevice, folder: Path, patience: Patience
) -> list[SegmentPart]:
    made: dict[str, Path] = {}
    scratch = folder / "segments"
    scratch.mkdir()
    encoding = plan.encoding
    if encoding is None:
        raise MediaError("the answer is no video")
    rate = plan.clip.frame_rate or Fraction(25)

    def publish(name: str, path: Path) -> None:
        made[name] = path

    bench = Workbench(
        plan=plan,
        timeline=timeline,
        source=local_source(plan.clip.uri),
        upscaler=shared,
        scratch=scratch,
        decoder_threads=1,
        new_writer=lambda path: SegmentWriter(path, encoding, plan.picture, time_base=1 / rate),
        read_back=lambda path: (plan.picture, read_segment(path, plan.picture)),
        publish=publish,
    )
    whole = Shard(index=0, first_chunk=0, last_chunk=plan.chunk_count, start=plan.start, stop=plan.stop)
    work = make_segments(
        bench, whole, on_frames=lambda count: None, should_drop=lambda left: patience.is_over
    )
    return [
        SegmentPart(
            fetch=lambda name=each.name: made[name],  # type: ignore[misc]
            frames=each.frames,
            sha256=each.sha256,
            done=lambda path: path.unlink(missing_ok=True),
        )
        for each in work.segments
    ]
