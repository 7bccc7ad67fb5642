"""Segments on their way into one track: fetched ahead, counted, and given the source's timestamps."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from vsr_hpc.errors import VerifyError
from vsr_hpc.media.ffmpeg_errors import reason
from vsr_hpc.media.merge.header_edits import add_track_header
from vsr_hpc.media.picture import Picture
from vsr_hpc.media.segment import SegmentPart
from vsr_hpc.media.timeline import Timeline
from vsr_hpc.system.files import sha256_of_file
from vsr_hpc.system.progress import tick

_PREFETCH = 2


class Fetched:
    """Segments on this machine: a bounded number is fetched and checked ahead, and let go once copied."""

    def __init__(self, segments: Sequence[SegmentPart], stack: contextlib.ExitStack) -> None:
        self.segments = segments
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fetch")
        stack.callback(self._pool.shutdown, wait=True, cancel_futures=True)
        self._coming: dict[int, Future[Path]] = {}

    def path(self, number: int) -> Path:
        for ahead in range(number, min(number + _PREFETCH + 1, len(self.segments))):
            if ahead not in self._coming:
                self._coming[ahead] = self._pool.submit(_fetch, self.segments[ahead])
        return self._coming[number].result()

    def let_go(self, number: int) -> None:
        done = self.segments[number].done
        path = self._coming[number].result()
        if done is not None:
            done(path)


def mp4_scale(base: Fraction) -> int:
    """A time scale in which every tick of the source is a whole number and that no muxer rounds up."""
    scale = base.denominator
    while scale < 10000:
        scale *= 2
    return scale


def nearest(value: Fraction) -> int:
    """Half away from zero, as FFmpeg rounds."""
    doubled = abs(value.numerator) * 2 + value.denominator
    rounded = doubled // (2 * value.denominator)
    return rounded if value.numerator >= 0 else -rounded


def output_ticks(timeline: Timeline, start: int, stop: int, offset: Fraction, base: Fraction) -> list[int]:
    """When each frame is shown and when the last one ends, in the output's ticks."""
    times = [int(pts) for pts in timeline.pts[start:stop]]
    times.append(timeline.end if stop == len(timeline) else int(timeline.pts[stop]))
    scale, shift = timeline.time_base / base, offset / base
    return [nearest(pts * scale + shift) for pts in times]


def retime(
    packet: Any, shown: list[int], coded: int, frame: int, depth: int, base: Fraction, path: Path
) -> None:
    """Timestamps of the `coded`-th packet of the track, which shows the given frame."""
    if coded - frame > depth:
        raise VerifyError(
            f"{path}: frame {frame} is coded {coded - frame} places late, its codec header allows {depth}"
        )
    packet.time_base = base
    packet.pts = shown[frame]
    packet.dts = _decoding_time(shown, coded, depth)
    packet.duration = shown[frame + 1] - shown[frame]


def _decoding_time(shown: list[int], coded: int, depth: int) -> int:
    """The sorted timestamps, delayed by the reorder depth.

    What comes before the first one is as long as what the last `depth` frames overhang at the end, so that
    MP4's media duration, a sum of differences of dts, comes out as long as the film.
    """
    if coded >= depth:
        return shown[coded - depth]
    last = len(shown) - 2
    lead = max(depth, shown[last] - shown[max(0, last - depth)])
    return shown[0] - lead * (depth - coded) // depth


def numbered_packets(segment: Any, stream: Any, path: Path) -> Iterator[tuple[int, Any]]:
    """A segment's packets in coding order, each with the number of the frame it shows."""
    is_in_order = stream.codec_context.reorder_depth == 0
    step: int | None = None
    for count, packet in enumerate(packet for packet in segment.demux(stream) if packet.size):
        tick()
        if is_in_order:
            yield count, packet
            continue
        step = step or packet.duration
        if not step or packet.pts is None or packet.pts % step:
            raise VerifyError(f"{path}: packet {count} has no timestamp on the segment's grid")
        yield packet.pts // step, packet


@contextlib.contextmanager
def open_segment(path: Path) -> Iterator[Any]:
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as exc:
        raise VerifyError(f"{path}: this segment cannot be opened: {reason(exc)}") from exc
    with container:
        yield container


def _fetch(part: SegmentPart) -> Path:
    """Fetched, and what its receipt says it is."""
    path = part.fetch()
    if part.sha256 is None:
        return path
    found = sha256_of_file(path)
    if found != part.sha256:
        raise VerifyError(f"{path}: sha256 is {found}, its receipt says {part.sha256}")
    return path


@contextlib.contextmanager
def video_template(segment: Path, picture: Picture) -> Iterator[Any]:
    """A container whose video stream carries what the output's header needs, rotation and HDR10 included.

    PyAV copies side data from a template but cannot make it; so a one-packet MP4 is made in memory and its
    header edited. Where there is nothing to add, the segment itself is the template.
    """
    if picture.display_matrix is None and picture.mastering is None and picture.light_level is None:
        with open_segment(segment) as container:
            yield container
        return
    memory = io.BytesIO()
    with open_segment(segment) as container:
        stream = container.streams.video[0]
        kind = "mov" if segment.suffix == ".mov" else "mp4"
        with av.open(memory, "w", format=kind, options={"fflags": "+bitexact"}) as small:
            copy = small.add_stream_from_template(stream, opaque=True)
            with contextlib.closing(container.demux(stream)) as packets:  # see decoder.py
                packet = next(each for each in packets if each.size)
            packet.stream = copy
            small.mux_one(packet)
    edited = add_track_header(
        memory.getvalue(),
        display_matrix=picture.display_matrix,
        mastering=picture.mastering,
        light_level=picture.light_level,
    )
    with av.open(io.BytesIO(edited)) as template:
        yield template
