"""Before and after: frames of different scenes, and small crops that move."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vsr_hpc.media.clip.clip import Clip
from vsr_hpc.media.clip.probe import index_clip, probe_clip
from vsr_hpc.media.clip.reader import read_frames, read_segment
from vsr_hpc.media.encode.still_archive import read_archive
from vsr_hpc.media.picture import Frame, Picture
from vsr_hpc.media.source import Source
from vsr_hpc.media.timeline import Timeline
from vsr_hpc.report.srgb import data_uri, shown_size, to_image, within
from vsr_hpc.run.documents import Done, Receipt
from vsr_hpc.run.run import Run
from vsr_hpc.storage.opening import open_source
from vsr_hpc.verification.frame_match import luma_thumbnail, thumbnail_shape

log = logging.getLogger(__name__)

SCENES = 5
_CANDIDATES = 12
_SCANNED_FRAMES = 480
_LONGEST_SIDE = 1920
_AFTER_BYTES, _BEFORE_BYTES = 220_000, 90_000
_LOOPS = 2
_LOOP_FRAMES = 12
_LOOP_FPS = 12
_LOOP_SIDE = 240
_LOOP_BYTES = 110_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One frame before and after; pictures are data URIs."""

    frame: int
    time_s: float
    before: str
    after: str
    width: int
    height: int
    """Of the output on a screen of square dots."""
    focus: tuple[float, float]
    """The middle of the part with the most detail, as shares of width and height."""
    has_most_detail: bool
    """Whether it has the most detail of the scenes that are shown."""
    is_reduced: bool
    """Whether both were made smaller for the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """The same small part before and after, as strips of frames from top to bottom."""

    frame: int
    time_s: float
    before: str
    after: str
    frames: int
    width: int
    height: int
    fps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A clip from which frames are taken by number."""

    clip: Clip
    timeline: Timeline
    source: Source
    first: int = 0
    is_deinterlaced: bool = False

    @property
    def picture(self) -> Picture:
        return self.clip.picture

    def frames(self, start: int, stop: int) -> Iterator[Frame]:
        threads = min(4, len(os.sched_getaffinity(0)))
        found = read_frames(
            self.clip,
            self.timeline,
            self.source,
            start - self.first,
            stop - self.first,
            threads=threads,
            deinterlace=self.is_deinterlaced,
        )
        return (replace(frame, index=frame.index + self.first) for frame in found)


def input_side(run: Run) -> Side:
    plan = run.plan
    return Side(
        clip=plan.clip,
        timeline=run.timeline,
        source=open_source(plan.clip.uri, etag=plan.source_etag),
        is_deinterlaced=plan.job.picture.deinterlace,
    )


def output_side(run: Run, done: Done) -> Side:
    """The finished output, its frames numbered as the source's are."""
    source = open_source(done.output)
    rate = run.plan.clip.frame_rate if run.plan.encoding is None else None
    clip = probe_clip(source, frame_rate=rate, allow_gaps=run.plan.job.images.allow_gaps)
    return Side(clip=clip, timeline=index_clip(clip, source), source=source, first=run.plan.start)


def show(run: Run, done: Done) -> tuple[tuple[Scene, ...], tuple[Loop, ...]]:
    """Frames of different scenes, and crops of those with the most detail."""
    before, after = input_side(run), output_side(run, done)
    start, stop = run.plan.start, min(run.plan.stop, after.first + len(after.timeline))
    length = min(_LOOP_FRAMES * _stride(before.timeline), (stop - start) // 2)
    scenes, loops = [], []
    for rank, number in choose_frames(before, start, stop - max(0, length - 1)):
        count = max(1, length) if rank < _LOOPS else 1
        inputs, outputs = (_shown(each, number, number + count) for each in (before, after))
        scenes.append(scene(before, after.picture, number, inputs[0], outputs[0], has_most_detail=rank == 0))
        if len(inputs) > 1:
            loops.append(loop(before, after, number, inputs, outputs))
    return tuple(scenes), tuple(loops)


def show_latest(run: Run, receipts: Sequence[Receipt]) -> Scene | None:
    """The first frame of the segment that was finished last; None where none is."""
    done, plan, before = run.done(), run.plan, input_side(run)
    if done is not None:
        after = output_side(run, done)
        number = (plan.start + min(plan.stop, after.first + len(after.timeline))) // 2
        made = next(iter(after.frames(number, number + 1)))
    elif receipts:
        segment = max(receipts, key=lambda each: each.finished_s).segments[0]
        number = plan.chunk_borders[segment.chunk]
        with run.store.local(segment.name) as path:
            made = next(read_segment(path) if plan.encoding else read_archive(path, plan.picture))
    else:
        return None
    small = next(iter(before.frames(number, number + 1)))
    return scene(before, plan.picture, number, to_image(small, before.picture), to_image(made, plan.picture))


def choose_frames(side: Side, start: int, stop: int, count: int = SCENES) -> tuple[tuple[int, int], ...]:
    """(rank by detail, frame number) of frames that differ most from each other, in the clip's order."""
    candidates = candidate_frames(side.timeline, start, stop)
    shape = thumbnail_shape(side.picture.width, side.picture.height, longest=64)
    small = np.stack(
        [luma_thumbnail(each, side.picture, shape).ravel() for each in read_some(side, candidates)]
    )
    kept = spread(small, count)
    detail = np.array([_detail(small[each].reshape(shape)) for each in kept])
    ranks = {kept[place]: rank for rank, place in enumerate(np.argsort(-detail, kind="stable"))}
    return tuple((ranks[each], candidates[each]) for each in sorted(kept))


def read_some(side: Side, numbers: Sequence[int]) -> Iterator[Frame]:
    """Frames far apart are sought one by one, those of a short clip come from one pass."""
    if numbers[-1] - numbers[0] > _SCANNED_FRAMES:
        for number in numbers:
            yield from side.frames(number, number + 1)
        return
    wanted = set(numbers)
    yield from (each for each in side.frames(numbers[0], numbers[-1] + 1) if each.index in wanted)


def spread(small: NDArray[np.float32], count: int) -> tuple[int, ...]:
    """Rows that lie far from each other: first the one with the most contrast, then always the furthest."""
    first = int(np.argmax(small.std(axis=1)))
    kept, distance = [first], np.full(len(small), np.inf)
    while len(kept) < min(count, len(small)):
        distance = np.minimum(distance, np.abs(small - small[kept[-1]]).mean(axis=1))
        distance[kept] = -1
        flat = small.std(axis=1) < 4  # black or blank: only where nothing else is left
        kept.append(int(np.argmax(np.where(flat & (distance >= 0), distance / 1e3, distance))))
    return tuple(kept)


def candidate_frames(timeline: Timeline, start: int, stop: int) -> tuple[int, ...]:
    """Spread over the clip. In a long one keyframes, which are cheap to reach and often begin a scene."""
    if timeline.reading == "scan":
        stop = min(stop, start + _SCANNED_FRAMES)
    wanted = [start + (stop - start) * (2 * i + 1) // (2 * _CANDIDATES) for i in range(_CANDIDATES)]
    if stop - start > _SCANNED_FRAMES and len(timeline.key_pts):
        keys = np.searchsorted(timeline.pts, timeline.key_pts)
        near = {int(keys[max(0, timeline.key_before(number))]) for number in wanted}
        inside = sorted(key for key in near if start <= key < stop)
        if len(inside) >= SCENES:
            return tuple(inside)
    return tuple(sorted(set(wanted)))


def _detail(small: NDArray[np.float32]) -> float:
    return float(np.abs(np.diff(small, axis=0)).mean() + np.abs(np.diff(small, axis=1)).mean())


def _stride(timeline: Timeline) -> int:
    """Every how many frames a loop shows one, so that it lasts about a second."""
    rate = len(timeline) / timeline.duration_s if timeline.duration_s else Fraction(25)
    return max(1, min(5, round(rate / _LOOP_FPS)))


def _shown(side: Side, start: int, stop: int) -> list[Image.Image]:
    """The pictures of a loop; only those that are shown are kept."""
    stride = _stride(side.timeline)
    return [
        to_image(frame, side.picture)
        for frame in side.frames(start, stop)
        if (frame.index - start) % stride == 0
    ]


def scene(
    before: Side,
    after: Picture,
    number: int,
    small: Image.Image,
    big: Image.Image,
    *,
    has_most_detail: bool = True,
) -> Scene:
    width, height = shown_size(after)
    left, top, right, bottom = busiest(small, (max(1, small.width // 4), max(1, small.height // 4)))
    return Scene(
        frame=number,
        time_s=float(before.timeline.time_of(number)),
        before=data_uri(within(small, _LONGEST_SIDE), _BEFORE_BYTES),
        after=data_uri(within(big, _LONGEST_SIDE), _AFTER_BYTES),
        width=width,
        height=height,
        focus=((left + right) / 2 / small.width, (top + bottom) / 2 / small.height),
        has_most_detail=has_most_detail,
        is_reduced=max(big.size) > _LONGEST_SIDE,
    )


def loop(
    before: Side, after: Side, number: int, small: Sequence[Image.Image], big: Sequence[Image.Image]
) -> Loop:
    factor = (big[0].width / small[0].width, big[0].height / small[0].height)
    side = (min(_LOOP_SIDE, big[0].width), min(_LOOP_SIDE, big[0].height))
    box = busiest(small[0], (max(1, round(side[0] / factor[0])), max(1, round(side[1] / factor[1]))))
    wide = tuple(round(edge * factor[place % 2]) for place, edge in enumerate(box))
    return Loop(
        frame=number,
        time_s=float(before.timeline.time_of(number)),
        before=data_uri(strip([each.crop(box) for each in small]), _LOOP_BYTES),
        after=data_uri(strip([each.crop((wide[0], wide[1], wide[2], wide[3])) for each in big]), _LOOP_BYTES),
        frames=len(small),
        width=wide[2] - wide[0],
        height=wide[3] - wide[1],
        fps=float(_LOOP_FPS),
    )


def busiest(image: Image.Image, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box of that size with the most detail; (left, top, right, bottom)."""
    grey = np.asarray(image.convert("L"), dtype=np.float32)
    edges = np.abs(np.diff(grey, axis=0, prepend=grey[:1])) + np.abs(
        np.diff(grey, axis=1, prepend=grey[:, :1])
    )
    total = np.pad(edges.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    width, height = min(size[0], image.width), min(size[1], image.height)
    sums = (
        total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    )
    top, left = np.unravel_index(int(np.argmax(sums)), sums.shape)
    return int(left), int(top), int(left) + width, int(top) + height


def strip(images: Sequence[Image.Image]) -> Image.Image:
    """Frames from top to bottom."""
    width, height = images[0].size
    tall = Image.new("RGB", (width, height * len(images)))
    for place, image in enumerate(images):
        tall.paste(image, (0, place * height))
    return tall
