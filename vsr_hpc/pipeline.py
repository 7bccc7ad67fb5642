"""Frames of a shard through decoder, device and encoder: three threads side by side with bounded queues.

Each stage counts the seconds it was busy and the seconds it waited, so that "why is it slow" has an answer.
A segment is decoded back, counted and compared with its input before it is handed on.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from vsr_hpc import fidelity
from vsr_hpc.errors import MediaError
from vsr_hpc.fidelity import Thumbnail, thumbnail_shape
from vsr_hpc.media.clip import Source, Timeline
from vsr_hpc.media.picture import Frame, Picture
from vsr_hpc.media.reader import read_frames
from vsr_hpc.media.writer import SegmentFacts as WrittenFacts
from vsr_hpc.plan import Plan, Shard
from vsr_hpc.run import SegmentFacts

T = TypeVar("T")
_QUEUED_BATCHES = 3


class Upscaling(Protocol):
    """What turns input frames into output frames; the engine, or a stand-in in tests."""

    @property
    def batch(self) -> int: ...
    @property
    def clipped(self) -> int: ...
    def __call__(self, frames: list[Frame]) -> list[Frame]: ...


class ChunkWriter(Protocol):
    def write(self, frame: Frame) -> None: ...
    def close(self) -> WrittenFacts: ...
    def abort(self) -> None: ...


class Stopped(Exception):
    """The worker was asked to stop and the grace does not allow finishing this shard."""


@dataclass(slots=True)
class StageClock:
    """Busy and waiting seconds of each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began


class _Pipe(Generic[T]):
    """A bounded queue whose ends both give up when the pipeline fails; waiting is timed."""

    _END = object()

    def __init__(
        self, size: int, failed: threading.Event, clock: StageClock, reader: str, writer: str
    ) -> None:
        self._queue: queue.Queue[object] = queue.Queue(size)
        self._failed, self._clock = failed, clock
        self._reader, self._writer = f"{reader}_wait", f"{writer}_wait"

    def put(self, item: T) -> None:
        self._put(item)

    def end(self) -> None:
        self._put(self._END)

    def _put(self, item: object) -> None:
        with self._clock.timed(self._writer):
            while True:
                if self._failed.is_set():
                    raise _AbandonedError
                try:
                    self._queue.put(item, timeout=0.1)
                except queue.Full:
                    continue
                return

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._clock.timed(self._reader):
                while True:
                    if self._failed.is_set():
                        raise _AbandonedError
                    try:
                        item = self._queue.get(timeout=0.1)
                    except queue.Empty:
                        continue
                    break
            if item is self._END:
                return
            yield item  # type: ignore[misc]


class _AbandonedError(Exception):
    """Another stage failed; its error is the one to report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWork:
    segments: tuple[SegmentFacts, ...]
    seconds: dict[str, float]
    clipped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench:
    """What a worker needs for every shard of a run."""

    plan: Plan
    timeline: Timeline
    source: Source
    upscaler: Upscaling
    scratch: Path
    decoder_threads: int
    new_writer: Callable[[Path], ChunkWriter]
    read_back: Callable[[Path], tuple[Picture, Iterator[Frame]]]
    """A segment's frames, and what they are as it decodes."""
    publish: Callable[[str, Path], None]
    """Moves a checked segment into the store under its name."""


def make_segments(
    bench: Workbench, shard: Shard, *, on_frames: Callable[[int], None], should_drop: Callable[[int], bool]
) -> ShardWork:
    """Do one shard. Raises Stopped where `should_drop(frames left)` says that time is up."""
    clock, failed = StageClock(), threading.Event()
    decoded: _Pipe[tuple[int, list[Frame]]] = _Pipe(_QUEUED_BATCHES, failed, clock, "device", "decode")
    upscaled: _Pipe[tuple[int, list[Frame]]] = _Pipe(_QUEUED_BATCHES, failed, clock, "encode", "device")
    thumbnails: dict[int, list[Thumbnail]] = {}
    segments: list[SegmentFacts] = []
    clipped_before = bench.upscaler.clipped

    def decode() -> None:
        for chunk in range(shard.first_chunk, shard.last_chunk):
            thumbnails[chunk] = []
            start, stop = bench.plan.chunk(chunk)
            for batch in _batches(_timed(clock, "decode", _frames(bench, start, stop)), bench.upscaler.batch):
                with clock.timed("decode"):
                    thumbnails[chunk] += [_thumbnail(frame, bench.plan.clip.picture) for frame in batch]
                decoded.put((chunk, batch))
        decoded.end()

    def compute() -> None:
        left = shard.frames
        for chunk, batch in decoded:
            if should_drop(left):
                raise Stopped
            with clock.timed("device"):
                frames = bench.upscaler(batch)
            left -= len(frames)
            on_frames(len(frames))
            upscaled.put((chunk, frames))
        upscaled.end()

    def encode() -> None:
        earlier: list[Thumbnail] = []
        for chunk, batches in itertools.groupby(upscaled, key=lambda item: item[0]):
            path = bench.scratch / f"{shard.name}-{chunk}-{threading.get_ident()}{_suffix(bench.plan)}"
            writer = bench.new_writer(path)
            try:
                for _, frames in batches:
                    with clock.timed("encode"):
                        for frame in frames:
                            writer.write(frame)
                with clock.timed("encode"):
                    facts = writer.close()
                inputs = thumbnails.pop(chunk)
                with clock.timed("check"):
                    segment = _checked(bench, chunk, path, facts, inputs, earlier)
                earlier = [*earlier, *inputs][-fidelity.REACH :]
            except BaseException:
                writer.abort()
                raise
            with clock.timed("store"):
                bench.publish(segment.name, path)
            segments.append(segment)

    def guarded(stage: Callable[[], None]) -> None:
        try:
            stage()
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="stage") as pool:
        ends = [pool.submit(guarded, decode), pool.submit(guarded, encode)]
        errors: list[BaseException] = []
        try:
            guarded(compute)
        except BaseException as exc:
            errors.append(exc)
        errors += [error for end in ends if (error := end.exception()) is not None]
    _raise_first(errors)
    return ShardWork(
        segments=tuple(segments),
        seconds={stage: round(spent, 3) for stage, spent in sorted(clock.seconds.items())},
        clipped=bench.upscaler.clipped - clipped_before,
    )


def _raise_first(errors: list[BaseException]) -> None:
    real = [error for error in errors if not isinstance(error, _AbandonedError)]
    if real:
        raise real[0]


def _frames(bench: Workbench, start: int, stop: int) -> Iterator[Frame]:
    picture = bench.plan.job.picture
    return read_frames(
        bench.plan.clip,
        bench.timeline,
        bench.source,
        start,
        stop,
        threads=bench.decoder_threads,
        deinterlace=picture.deinterlace,
    )


def _suffix(plan: Plan) -> str:
    return plan.encoding.suffix if plan.encoding else ".tar"


def _checked(
    bench: Workbench,
    chunk: int,
    path: Path,
    facts: WrittenFacts,
    inputs: list[Thumbnail],
    earlier: list[Thumbnail],
) -> SegmentFacts:
    """Decode the segment back, count its frames and hold them against its input.

    `earlier` inputs of the shard tell a frame that shows the chunk before. Later ones may not be there yet,
    and the verdict must not depend on who was faster.
    """
    picture, frames = bench.read_back(path)
    outputs = [_thumbnail(frame, picture, like=inputs[0]) for frame in frames]
    start, stop = bench.plan.chunk(chunk)
    if not len(inputs) == len(outputs) == stop - start:
        raise MediaError(
            f"chunk {chunk}: {stop - start} frames planned, {len(inputs)} read, "
            f"{len(outputs)} came back from its segment"
        )
    verdict = fidelity.compare(
        [*earlier, *inputs],
        outputs,
        first=start,
        context=len(earlier),
        psnr_floor=bench.plan.card.psnr_floor,
    )
    if verdict.wrong:
        index, shown = verdict.wrong[0]
        like = "black or garbage" if shown is None else f"input frame {shown}"
        raise MediaError(
            f"chunk {chunk}: output frame {index} looks like {like} ({len(verdict.wrong)} such frames); "
            "the segment is thrown away"
        )
    return SegmentFacts(
        chunk=chunk,
        name=f"segments/{chunk:06d}-{facts.sha256[:16]}{path.suffix}",
        frames=facts.frames,
        size_bytes=facts.size_bytes,
        sha256=facts.sha256,
        worst_psnr_db=round(verdict.worst_psnr, 2),
        undecided=verdict.undecided,
    )


def _thumbnail(frame: Frame, picture: Picture, like: Thumbnail | None = None) -> Thumbnail:
    rows, columns = like.shape if like is not None else thumbnail_shape(picture.width, picture.height)
    return fidelity.luma_thumbnail(frame, picture, (rows, columns))


def _batches(frames: Iterator[Frame], size: int) -> Iterator[list[Frame]]:
    while batch := list(itertools.islice(frames, size)):
        yield batch


def _timed(clock: StageClock, stage: str, frames: Iterator[Frame]) -> Iterator[Frame]:
    while True:
        with clock.timed(stage):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame
