"""Frames [start, stop) of a clip, equal to that slice of a decode from the start, wherever reading begins."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av.error
import numpy as np
from av.filter import Graph

from vsr_hpc.errors import MediaError
from vsr_hpc.media.clip.clip import Clip
from vsr_hpc.media.clip.colour_tags import describe_change, read_colour
from vsr_hpc.media.decoder import SeekMissed, frames_from, open_decoder
from vsr_hpc.media.picture import Frame, Picture
from vsr_hpc.media.pixels import pixel_format, to_planes
from vsr_hpc.media.source import Source, local_source, open_input
from vsr_hpc.media.stills.sequence import read_still
from vsr_hpc.media.timeline import Timeline

log = logging.getLogger(__name__)


_LOOKAHEAD_FRAMES = 17
"""A packet this far behind the last wanted frame is no reference of it (16 is the deepest reorder)."""
_FIELD_CONTEXT = 3
"""bwdif looks one frame back and one ahead; the rest is margin, thrown away."""


def read_frames(
    clip: Clip,
    timeline: Timeline,
    source: Source,
    start: int,
    stop: int,
    *,
    threads: int = 1,
    deinterlace: bool = False,
) -> Iterator[Frame]:
    """Yield frames [start, stop) in display order, as the clip's own planes.

    Frames are numbered by the clip's timeline, so the result does not depend on where reading begins. A clip
    that ends early, or a frame that can't be decoded, raises MediaError; no short read is returned.
    """
    if not 0 <= start <= stop <= len(timeline):
        raise ValueError(f"frames [{start}, {stop}) are outside of a clip of {len(timeline)}")
    if start == stop:
        return
    if clip.images is not None:
        if deinterlace:
            raise MediaError(f"{clip.uri}: images are not deinterlaced")
        for number in range(start, stop):
            yield read_still(clip.images, number, clip.picture)
        return
    if not deinterlace:
        for number, frame in _read_numbered(clip, timeline, source, start, stop, threads):
            yield Frame(index=number, planes=to_planes(frame))
        return
    first, last = max(0, start - _FIELD_CONTEXT), min(len(timeline), stop + _FIELD_CONTEXT)
    fields = _read_numbered(clip, timeline, source, first, last, threads)
    for number, frame in enumerate(_deinterlace(clip, fields), first):
        if start <= number < stop:
            yield Frame(index=number, planes=to_planes(frame))


def read_segment(path: str | Path, picture: Picture | None = None, *, threads: int = 1) -> Iterator[Frame]:
    """Every frame of a simple file of our own making, numbered from 0, without an index.

    With `picture`, a frame of another size or format raises MediaError.
    """
    source = local_source(path)

    def on_error(pts: int | None, reason: str) -> None:
        raise MediaError(f"{path}: a frame at pts {pts} cannot be decoded ({reason})")

    with open_decoder(source, _video_of(source), threads=threads) as opened:
        for number, frame in enumerate(opened.frames(on_error)):
            if picture is not None:
                _check_same(str(path), number, frame, picture)
            yield Frame(index=number, planes=to_planes(frame))


def _video_of(source: Source) -> int:
    with open_input(source) as container:
        if not container.streams.video:
            raise MediaError(f"{source.uri}: has no video stream")
        return int(container.streams.video[0].index)


def _read_numbered(
    clip: Clip, timeline: Timeline, source: Source, start: int, stop: int, threads: int
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames [start, stop) as decoded: from the keyframe before, further back where that lands late."""
    number = start - 1  # the last one given
    for key in _list_starts(timeline, start):
        try:
            for number, frame in _from_key(clip, timeline, source, key, start, stop, threads):
                yield number, frame
            break
        except SeekMissed as missed:
            if key < 0 or number >= start:
                lost = number + 1
                raise MediaError(
                    f"{clip.uri}: frame {lost} ({_format_time(timeline, lost)}) is missing when the clip is "
                    f"decoded ({missed}); {_suggest_cut(timeline, lost)}"
                ) from missed
            log.info("seek landed late uri=%s frame=%d key=%d", clip.uri, start, key)
    if number != stop - 1:
        raise MediaError(
            f"{clip.uri}: ends before frame {number + 1}, though its index lists {len(timeline)} frames; the "
            "file has changed or is damaged. Plan the run again with --new"
        )


def _list_starts(timeline: Timeline, start: int) -> tuple[int, ...]:
    """Keyframes to begin at, in the order to try; -1, the start of the file, is always sound."""
    if timeline.reading == "scan":
        return (-1,)
    key = timeline.key_before(start)
    return (*(each for each in (key, key - 1, key - 2) if each > 0), -1)


def _from_key(
    clip: Clip, timeline: Timeline, source: Source, key: int, start: int, stop: int, threads: int
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames [start, stop) decoded from one keyframe on."""
    count = 0

    def on_error(pts: int | None, reason: str) -> None:
        failed = count if pts is None else int(np.searchsorted(timeline.pts, pts, side="left"))
        if failed < stop + _LOOKAHEAD_FRAMES and _reaches(timeline, failed, start):
            raise _undecodable_error(clip, timeline, failed, reason)

    for failed in timeline.broken:
        if failed < stop and _reaches(timeline, failed, start):
            raise _undecodable_error(clip, timeline, failed, "as seen when the clip was indexed")
    with open_decoder(source, clip.video, decoder=clip.decoder, threads=threads) as opened:
        for number, frame in frames_from(opened, timeline, key, on_error):
            count = number + 1
            if number < start:
                continue
            _check_same(clip.uri, number, frame, clip.picture)
            _check_colour(clip, timeline, number, frame)
            yield number, frame
            if number == stop - 1:
                return
    if count < stop and not timeline.is_synthetic and key >= 0:
        raise SeekMissed(f"the file ends after frame {count - 1}")


def _reaches(timeline: Timeline, failed: int, start: int) -> bool:
    """Whether damage at a frame is seen at or after `start`: no keyframe lies between."""
    if failed >= start:
        return True
    next_key = bisect_right(timeline.key_pts, int(timeline.pts[failed]))
    return next_key >= len(timeline.key_pts) or timeline.key_pts[next_key] > timeline.pts[start]


def _undecodable_error(clip: Clip, timeline: Timeline, failed: int, reason: str) -> MediaError:
    failed = min(failed, len(timeline) - 1)
    return MediaError(
        f"{clip.uri}: frame {failed} ({_format_time(timeline, failed)}) cannot be decoded ({reason}); "
        f"{_suggest_cut(timeline, failed)}"
    )


def _suggest_cut(timeline: Timeline, failed: int) -> str:
    next_key = bisect_right(timeline.key_pts, int(timeline.pts[failed]))
    if next_key >= len(timeline.key_pts):
        return f"everything after it may be damaged. Take what lies before with --to {failed}f"
    clean = int(np.searchsorted(timeline.pts, timeline.key_pts[next_key]))
    damaged = f"frames {failed} to {clean - 1} may be damaged"
    return f"{damaged}. Cut around them with --to {failed}f and --from {clean}f"


def _format_time(timeline: Timeline, frame: int) -> str:
    return f"{float(timeline.time_of(min(frame, len(timeline) - 1))):.3f} s"


def _check_same(uri: str, number: int, frame: av.VideoFrame, picture: Picture) -> None:
    form = pixel_format(frame.format.name)
    if (frame.width, frame.height) != (picture.width, picture.height) or form != picture.pixel:
        raise MediaError(
            f"{uri}: the picture changes at frame {number} from {picture.width}x{picture.height} "
            f"{picture.pixel.name} to {frame.width}x{frame.height} {form.name}; "
            f"{_split_at(number)}"
        )


def _check_colour(clip: Clip, timeline: Timeline, number: int, frame: av.VideoFrame) -> None:
    found = read_colour(frame, clip.codec, clip.picture.colour.siting)
    if change := describe_change(clip.picture.colour, found):
        raise MediaError(
            f"{clip.uri}: the colour tags change at frame {number} ({_format_time(timeline, number)}): "
            f"{change}. An output has one set of tags, so one of the two parts would be shown in wrong "
            "colours; "
            f"{_split_at(number)}"
        )


def _split_at(number: int) -> str:
    return (
        f"upscale what lies before with --to {number}f, and cut the rest off into a file of its own "
        "(ffmpeg -ss TIME -i IN -map 0 -c copy OUT.mkv)"
    )


def _deinterlace(clip: Clip, frames: Iterator[tuple[int, av.VideoFrame]]) -> Iterator[av.VideoFrame]:
    """One progressive frame for each frame, by bwdif."""
    graph: Graph | None = None
    for _, frame in frames:
        if graph is None:
            graph = _bwdif(clip, frame)
        graph.push(frame)
        yield from _pull_ready(graph, clip, frame.format.name)
    if graph is not None:
        graph.push(None)
        yield from _pull_ready(graph, clip, None)


def _bwdif(clip: Clip, frame: av.VideoFrame) -> Graph:
    parity = clip.interlace if clip.interlace in ("tff", "bff") else "auto"
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1, 1000),
    )
    try:
        lines = graph.add("bwdif", f"mode=send_frame:parity={parity}:deint=all")
        graph.link_nodes(source, lines, graph.add("buffersink")).configure()
    except (av.error.FFmpegError, ValueError) as exc:
        raise MediaError(
            f"{clip.uri}: {frame.width}x{frame.height} {frame.format.name} cannot be deinterlaced ({exc}); "
            "deinterlace it first: ffmpeg -i IN -vf bwdif=send_frame -c:v ffv1 -c:a copy OUT.mkv"
        ) from exc
    return graph


def _pull_ready(graph: Graph, clip: Clip, wanted: str | None) -> Iterator[Any]:
    while True:
        try:
            frame = graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        if pixel_format(frame.format.name) != clip.picture.pixel or wanted not in (None, frame.format.name):
            raise MediaError(
                f"{clip.uri}: {wanted or clip.picture.pixel.name} cannot be deinterlaced as it is"
            )
        yield frame
