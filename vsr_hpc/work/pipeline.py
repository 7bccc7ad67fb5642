"""Frames of a shard through decoder, device, encoder and check: side by side, with bounded queues between.

Each stage counts the seconds it was busy and the seconds it waited, so that "why is it slow" has an answer.
The device may take several batches at once (lanes): on a CPU one per core, on a GPU so that copies of one
overlap with the sums of another. Their results go on in order, so lanes change no byte. A segment is decoded
back, counted and compared with its input before it is handed on, while the next one is being encoded.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar, cast

from vsr_hpc.engine.duplicates import Repeats, SortedFrames
from vsr_hpc.errors import MediaError
from vsr_hpc.media.clip.reader import read_frames
from vsr_hpc.media.picture import Frame, Picture
from vsr_hpc.media.segment import SegmentFacts as WrittenFacts
from vsr_hpc.media.source import Source
from vsr_hpc.media.timeline import Timeline
from vsr_hpc.planning.plan import Plan, Shard
from vsr_hpc.run.documents import SegmentFacts
from vsr_hpc.verification import frame_match as fidelity
from vsr_hpc.verification.looks import Look, common_grid
from vsr_hpc.verification.picture_damage import DamageFinder

T = TypeVar("T")
_QUEUED_BATCHES = 3
CHECKED_PX = 192
"""The longer side of the pictures that a worker compares; `vsr verify` compares larger ones."""
_LISTED = 5
"""Findings of a shard that its receipt names; receipts stay small."""


class Upscaling(Protocol):
    """What turns input frames into output frames; the engine, or a stand-in in tests."""

    @property
    def batch(self) -> int: ...
    @property
    def clipped(self) -> int: ...
    def __call__(self, frames: list[Frame]) -> list[Frame]: ...


class WindowUpscaling(Upscaling, Protocol):
    """A video network: the first `before` and the last `after` frames of a window are context."""

    def window(self, frames: list[Frame], before: int, after: int) -> Iterator[Frame]: ...


class ChunkWriter(Protocol):
    def write(self, frame: Frame) -> None: ...
    def close(self) -> WrittenFacts: ...
    def abort(self) -> None: ...


class Stopped(Exception):
    """The worker was asked to stop and the grace does not allow finishing this shard."""


@dataclass(slots=True)
class StageClock:
    """Busy and waiting seconds of each stage; a stage of several lanes counts the mean of them."""

    seconds: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def timed(self, stage: str, lanes: int = 1) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = (time.perf_counter() - began) / lanes
            with self._lock:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + spent


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
    repeated: int
    """Frames that got the result of an equal one."""
    findings: tuple[str, ...] = ()
    """What looks like damage of the picture; no reason to refuse the shard."""


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
    lanes: int = 1
    """Batches that the device takes at once; `upscaler` is then called from as many threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Closing:
    """A chunk whose last frame went to its encoder."""

    chunk: int
    path: Path
    writer: ChunkWriter


def make_segments(
    bench: Workbench, shard: Shard, *, on_frames: Callable[[int], None], should_drop: Callable[[int], bool]
) -> ShardWork:
    """Do one shard. Raises Stopped where `should_drop(frames left)` says that time is up."""
    work = _Work(bench, shard, on_frames, should_drop)
    clipped_before = bench.upscaler.clipped
    stages = (work.decode, work.encode, work.check)
    with ThreadPoolExecutor(max_workers=len(stages), thread_name_prefix="stage") as pool:
        others = [pool.submit(work.guarded, stage) for stage in stages]
        errors: list[BaseException] = []
        try:
            work.guarded(work.compute)
        except BaseException as exc:
            errors.append(exc)
        errors += [error for other in others if (error := other.exception()) is not None]
    if errors:
        work.abort()
    _raise_first(errors)
    return ShardWork(
        segments=tuple(work.segments),
        seconds={stage: round(spent, 3) for stage, spent in sorted(work.clock.seconds.items())},
        clipped=bench.upscaler.clipped - clipped_before,
        repeated=sum(work.repeats.saved.values()),
        findings=tuple(work.findings[:_LISTED]),
    )


_Batch = tuple[int, list[Frame]]
"""A chunk's number and some frames of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decoded:
    """Frames of a chunk for one pass of the device; of a window the first and the last may be context."""

    chunk: int
    frames: list[Frame]
    before: int = 0
    after: int = 0

    @property
    def count(self) -> int:
        return len(self.frames) - self.before - self.after


class _Work:
    """What the stages of one shard share; each method below runs in a thread of its own."""

    def __init__(
        self,
        bench: Workbench,
        shard: Shard,
        on_frames: Callable[[int], None],
        should_drop: Callable[[int], bool],
    ) -> None:
        self._bench, self._shard, self._on_frames, self._should_drop = bench, shard, on_frames, should_drop
        self.clock, self.segments, self.repeats = StageClock(), list[SegmentFacts](), Repeats()
        self.findings: list[str] = []
        self._failed = threading.Event()
        self._grid = common_grid(bench.plan.clip.picture, bench.plan.picture, CHECKED_PX)
        self._looks: dict[int, list[Look]] = {}
        self._writers: list[ChunkWriter] = []
        ends = (self._failed, self.clock)
        queued = _QUEUED_BATCHES if bench.plan.temporal is None else 1  # windows are long
        self._decoded: _Pipe[_Decoded] = _Pipe(queued, *ends, reader="device", writer="decode")
        self._upscaled: _Pipe[_Batch] = _Pipe(_QUEUED_BATCHES, *ends, reader="encode", writer="device")
        self._closing: _Pipe[_Closing] = _Pipe(1, *ends, reader="check", writer="encode")

    def guarded(self, stage: Callable[[], None]) -> None:
        try:
            stage()
        except BaseException:
            self._failed.set()
            raise

    def abort(self) -> None:
        """Remove what was begun and not handed on."""
        for writer in self._writers:
            writer.abort()

    def decode(self) -> None:
        shard, is_windowed = self._shard, self._bench.plan.temporal is not None
        # one pass over the shard: each beginning costs a seek, and the frames from the keyframe before it
        frames: Iterator[Frame] = iter(()) if is_windowed else self._read(shard.start, shard.stop)
        for chunk in range(shard.first_chunk, shard.last_chunk):
            self._looks[chunk] = []
            for each in self._windows(chunk) if is_windowed else self._plain(chunk, frames):
                picture = self._bench.plan.clip.picture
                with self.clock.timed("decode"):
                    own = each.frames[each.before : each.before + each.count]
                    self._looks[chunk] += [self._grid.look_at(frame, picture) for frame in own]
                self._decoded.put(each)
        self._decoded.end()

    def _read(self, start: int, stop: int) -> Iterator[Frame]:
        return _timed(self.clock, "decode", frames_of(self._bench, start, stop))

    def _plain(self, chunk: int, frames: Iterator[Frame]) -> Iterator[_Decoded]:
        """The chunk's own frames, which are the next ones."""
        start, stop = self._bench.plan.chunk(chunk)
        for batch in _batches(itertools.islice(frames, stop - start), self._bench.upscaler.batch):
            yield _Decoded(chunk=chunk, frames=batch)

    def _windows(self, chunk: int) -> Iterator[_Decoded]:
        """Each window's frames with their context, decoded once where windows overlap."""
        windows = self._bench.plan.windows(chunk)
        frames = self._read(windows[0].read_start, windows[-1].read_stop)
        held = deque[Frame]()
        for window in windows:
            while held and held[0].index < window.read_start:
                held.popleft()
            while not held or held[-1].index < window.read_stop - 1:
                held.append(next(frames))
            seen = [each for each in held if window.read_start <= each.index < window.read_stop]
            yield _Decoded(chunk=chunk, frames=seen, before=window.before, after=window.after)

    def compute(self) -> None:
        if self._bench.plan.temporal is not None:
            self._compute_windows()
        elif self._bench.lanes == 1:
            for batch in self._sorted():
                self._hand_on(batch, self._upscale(batch))
        else:
            self._compute_in_lanes(self._bench.lanes)
        self._upscaled.end()

    def _compute_windows(self) -> None:
        """One window after the other; its frames go on as they are made."""
        upscaler = cast(WindowUpscaling, self._bench.upscaler)
        for each in self._wanted():
            made = upscaler.window(each.frames, each.before, each.after)
            for frame in _timed(self.clock, "device", made):
                self._on_frames(1)
                self._upscaled.put((each.chunk, [frame]))

    def _sorted(self) -> Iterator[SortedFrames]:
        """Decoded batches, and which frames of them have to be made."""
        for each in self._wanted():
            if self._bench.plan.job.picture.skip_duplicates:
                yield self.repeats.sort(each.chunk, each.frames)
            else:
                yield SortedFrames.all_of(each.chunk, each.frames)

    def _compute_in_lanes(self, lanes: int) -> None:
        """As many batches at once as there are lanes; their results go on in the order they came in."""
        with ThreadPoolExecutor(max_workers=lanes, thread_name_prefix="lane") as pool:
            begun: deque[tuple[SortedFrames, Future[list[Frame]]]] = deque()
            try:
                for batch in self._sorted():
                    begun.append((batch, pool.submit(self._upscale, batch)))
                    while len(begun) > lanes or (begun and begun[0][1].done()):
                        self._hand_on(begun[0][0], begun.popleft()[1].result())
                while begun:
                    self._hand_on(begun[0][0], begun.popleft()[1].result())
            finally:
                for _, future in begun:
                    future.cancel()

    def _wanted(self) -> Iterator[_Decoded]:
        """Decoded batches, until it is said that the rest is not worth beginning."""
        left = self._shard.frames
        for each in self._decoded:
            if self._should_drop(left):
                raise Stopped
            left -= each.count
            yield each

    def _upscale(self, batch: SortedFrames) -> list[Frame]:
        with self.clock.timed("device", self._bench.lanes):
            return self._bench.upscaler(list(batch.fresh)) if batch.fresh else []

    def _hand_on(self, batch: SortedFrames, made: list[Frame]) -> None:
        frames = self.repeats.complete(batch, made) if batch.digests else made
        self._on_frames(len(frames))
        self._upscaled.put((batch.chunk, frames))

    def encode(self) -> None:
        for chunk, batches in itertools.groupby(self._upscaled, key=lambda item: item[0]):
            name = f"{self._shard.name}-{chunk}-{threading.get_ident()}{_suffix(self._bench.plan)}"
            path = self._bench.scratch / name
            writer = self._bench.new_writer(path)
            self._writers.append(writer)
            for _, frames in batches:
                with self.clock.timed("encode"):
                    for frame in frames:
                        writer.write(frame)
            self._closing.put(_Closing(chunk=chunk, path=path, writer=writer))
        self._closing.end()

    def check(self) -> None:
        """Finish segments, hold them against their input and hand them on, one after the other."""
        bench, clock, earlier = self._bench, self.clock, list[Look]()
        for each in self._closing:
            with clock.timed("encode"):
                facts = each.writer.close()
            inputs = self._looks.pop(each.chunk)
            with clock.timed("check"):
                segment, findings = check_segment(bench, each.chunk, each.path, facts, inputs, earlier)
            self.findings += findings
            earlier = [*earlier, *inputs][-fidelity.REACH :]
            with clock.timed("store"):
                bench.publish(segment.name, each.path)
            self._writers.remove(each.writer)
            self.segments.append(segment)


def _raise_first(errors: list[BaseException]) -> None:
    real = [error for error in errors if not isinstance(error, _AbandonedError)]
    if real:
        raise real[0]


def frames_of(bench: Workbench, start: int, stop: int) -> Iterator[Frame]:
    """The source's frames [start, stop), as a worker reads them."""
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


def check_segment(
    bench: Workbench,
    chunk: int,
    path: Path,
    facts: WrittenFacts,
    inputs: list[Look],
    earlier: list[Look],
) -> tuple[SegmentFacts, list[str]]:
    """Decode the segment back, count its frames and compare them with its input; also what looks damaged.

    `earlier` inputs of the shard tell a frame that shows the chunk before. Later ones may not be there yet,
    and the verdict must not depend on who was faster. A wrong frame raises MediaError. What only looks
    damaged is named: it may be in a true output too, and must not set a shard aside.
    """
    plan = bench.plan
    picture, frames = bench.read_back(path)
    start, stop = plan.chunk(chunk)
    finder = DamageFinder(plan.clip.picture, plan.picture, first=start, longest=CHECKED_PX)
    outputs = [finder.grid.look_at(frame, picture) for frame in frames]
    if not len(inputs) == len(outputs) == stop - start:
        raise MediaError(
            f"chunk {chunk}: {stop - start} frames planned, {len(inputs)} read, "
            f"{len(outputs)} came back from its segment"
        )
    verdict = fidelity.compare(
        [each.luma for each in (*earlier, *inputs)],
        [each.luma for each in outputs],
        first=start,
        context=len(earlier),
        psnr_floor=plan.card.psnr_floor,
    )
    if verdict.wrong:
        index, shown = verdict.wrong[0]
        like = "black or garbage" if shown is None else f"input frame {shown}"
        raise MediaError(
            f"chunk {chunk}: output frame {index} looks like {like} ({len(verdict.wrong)} such frames); "
            "the segment is thrown away"
        )
    for own, made in zip(inputs, outputs, strict=True):
        finder.add(own, made)
    segment = SegmentFacts(
        chunk=chunk,
        name=f"segments/{chunk:06d}-{facts.sha256[:16]}{path.suffix}",
        frames=facts.frames,
        size_bytes=facts.size_bytes,
        sha256=facts.sha256,
        worst_psnr_db=round(verdict.worst_psnr, 2),
        undecided=verdict.undecided,
    )
    return segment, [each.text for each in finder.damages()]


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
