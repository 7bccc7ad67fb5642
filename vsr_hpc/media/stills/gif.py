"""Animated GIF: each frame is a picture with a palette of its own, so that frames can be made anywhere.

A GIF shows a frame for a whole number of hundredths of a second, has 256 colours for each, and pixels that
are either opaque or not there. FFmpeg chooses the colours and codes the pixels; this module joins the
pictures.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
import numpy as np
from av.filter import Graph

from vsr_hpc.errors import JobError, MediaError
from vsr_hpc.media.ffmpeg_errors import reason
from vsr_hpc.media.picture import Picture, Plane
from vsr_hpc.media.pixels import pixel_format, to_planes
from vsr_hpc.media.source import Source, raw_bytes
from vsr_hpc.media.timeline import Timeline
from vsr_hpc.wording import plural

SUFFIX = ".gif"
TICK = Fraction(1, 100)
_LEAST_DELAY = 2
"""Ticks. Browsers and other players show a frame with a shorter delay for a tenth of a second."""
_MOST_DELAY = 65535
_COLOURS = 256
_OPAQUE = 128
_LOOPS = b"\x0bNETSCAPE2.0\x03\x01"
_EXTENSION, _IMAGE, _END = 0x21, 0x2C, 0x3B
_CONTROL = 0xF9
_HAS_TABLE = 0x80
_HDR_TRANSFERS = (16, 18)


# --- what a GIF can hold
def is_animation(output: str) -> bool:
    """Whether an output is named as a GIF."""
    return output.lower().endswith(SUFFIX)


def gif_picture(picture: Picture) -> Picture:
    """How frames like `picture` must be laid out for a GIF: 8-bit RGB, with alpha where there is some."""
    pixel = pixel_format("gbrap" if picture.pixel.has_alpha else "gbrp")
    colour = replace(picture.colour, matrix=0, is_full_range=True, is_range_tagged=True, siting="unspecified")
    return replace(
        picture, pixel=pixel, colour=colour, sample_aspect=Fraction(1), display_matrix=None,
        mastering=None, light_level=None,
    )  # fmt: skip


def gif_findings(picture: Picture) -> list[str]:
    """Why a picture cannot become a GIF, with the way out."""
    if picture.colour.transfer in _HDR_TRANSFERS:
        return [
            "output: a GIF has 8 bits and no HDR, and would show this source in false colours; name a video"
        ]
    return []


def gif_notes(picture: Picture, rate: Fraction | None) -> list[str]:
    """What a GIF cannot hold of these pictures, shown at this rate."""
    notes = ["a GIF has 256 colours a frame; other colours are mixed from these by a pattern of pixels"]
    if rate and (1 / (rate * TICK)).denominator != 1:
        notes.append(
            "a GIF counts in hundredths of a second; each frame begins at the one nearest to its time"
        )
    if picture.pixel.has_alpha:
        notes.append(
            "a GIF's pixels are opaque or transparent; those less than half opaque become transparent"
        )
    if picture.pixel.depth > 8:
        notes.append(f"a GIF has 8 bits a sample, the source {picture.pixel.depth}")
    if picture.sample_aspect != 1:
        notes.append(f"a GIF has square pixels; the sample aspect {picture.sample_aspect} is lost")
    if picture.display_matrix is not None:
        notes.append("a GIF has no rotation; players will not turn the picture")
    return notes


def gif_delays(timeline: Timeline, start: int, stop: int, *, may_change_times: bool = False) -> list[int]:
    """How many ticks each frame is shown: every frame begins at the tick nearest to its own time.

    JobError where a frame would be shown for less than players allow, unless `may_change_times` lets it be
    shown longer.
    """
    times = [int(pts) for pts in timeline.pts[start:stop]]
    times.append(timeline.end if stop == len(timeline) else int(timeline.pts[stop]))
    ticks = [round((each - times[0]) * timeline.time_base / TICK) for each in times]
    delays = [after - before for before, after in pairwise(ticks)]
    short = [number for number, delay in enumerate(delays) if delay < _LEAST_DELAY]
    if short and not may_change_times:
        shown = (times[short[0] + 1] - times[short[0]]) * timeline.time_base
        raise JobError(
            f"output: frame {start + short[0]} is shown for {float(1000 * shown):.3f} ms, but a GIF counts "
            "in hundredths of a second, and players show a frame for 20 ms at least; name a video, or accept "
            f"longer times for {plural(len(short), 'frame')} with --drop timing"
        )
    if (longest := max(delays)) > _MOST_DELAY:
        raise JobError(
            f"output: a frame is shown for {longest / 100:.2f} s, but a GIF shows one for "
            f"{_MOST_DELAY / 100} s at most; name a video"
        )
    return [max(delay, _LEAST_DELAY) for delay in delays]


# --- one picture
@dataclass(frozen=True, slots=True, kw_only=True)
class _Image:
    """One picture of a GIF: its place and size, its palette, and its coded pixels."""

    place: bytes
    palette: bytes
    transparent: int | None
    pixels: bytes


def encode_gif(picture: Picture, planes: Sequence[Plane]) -> bytes:
    """One frame as a GIF of its own. Up to 256 colours (one of them transparent) are kept as they are."""
    pixels = _pack(planes)
    frame = _index_exactly(pixels)
    if frame is None:
        frame = _index_by_ffmpeg(pixels)
    memory = io.BytesIO()
    try:
        with av.open(memory, "w", format="gif", options={"fflags": "+bitexact"}) as out:
            stream: Any = out.add_stream("gif", rate=10, options={"gifflags": "0"})
            stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, "pal8"
            stream.codec_context.thread_count = 1
            frame.pts = 0
            out.mux([*stream.encode(frame), *stream.encode(None)])
    except (av.FFmpegError, ValueError) as exc:
        raise MediaError(f"FFmpeg's GIF encoder failed ({reason(exc)})") from exc
    return memory.getvalue()


def decode_gif(data: bytes, *, has_alpha: bool) -> tuple[Plane, ...]:
    """The planes of a GIF of one frame, green, blue and red first."""
    with av.open(io.BytesIO(data), "r", format="gif") as container:
        planes = to_planes(next(container.decode(video=0)))
    return planes if has_alpha else planes[:3]


def _pack(planes: Sequence[Plane]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Rows of blue, green, red, alpha; what is not opaque has no colour."""
    green, blue, red, *alpha = planes
    mask = np.full(green.shape, 255, np.uint8)
    if alpha:
        mask = np.where(alpha[0] >= _OPAQUE, 255, 0).astype(np.uint8)
    visible = mask[..., None] & np.stack([blue, green, red], axis=-1)
    return np.concatenate([visible, mask[..., None]], axis=-1)


def _index_exactly(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> av.VideoFrame | None:
    """The picture by a palette of its own colours, where 256 suffice."""
    colours, indices = np.unique(np.ascontiguousarray(pixels).view("<u4")[..., 0], return_inverse=True)
    if len(colours) > _COLOURS:
        return None
    height, width = pixels.shape[:2]
    frame = av.VideoFrame(width, height, "pal8")
    plane = frame.planes[0]
    rows = np.zeros((height, plane.line_size), np.uint8)
    rows[:, :width] = indices.reshape(height, width)
    whole = np.zeros(plane.buffer_size, np.uint8)
    whole[: rows.size] = rows.ravel()
    plane.update(whole.tobytes())
    table = np.full(
        _COLOURS, 0xFF000000, "<u4"
    )  # opaque, or FFmpeg takes a place that is free for transparent
    table[: len(colours)] = colours
    frame.planes[1].update(table.tobytes().ljust(frame.planes[1].buffer_size, b"\0"))
    return frame


def _index_by_ffmpeg(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> av.VideoFrame:
    """The picture by 256 colours that FFmpeg chooses, mixed by a pattern that does not move with time."""
    frame = av.VideoFrame.from_ndarray(pixels, format="bgra")
    frame.pts, frame.time_base = 0, Fraction(1, 10)
    graph = Graph()
    graph.threads = 1
    height, width = pixels.shape[:2]
    source = graph.add_buffer(width=width, height=height, format=frame.format, time_base=Fraction(1, 10))
    split = graph.add("split")
    choose = graph.add("palettegen", "stats_mode=single")
    use = graph.add("paletteuse", "dither=bayer:bayer_scale=3:new=1:alpha_threshold=128")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(choose, 0, 0)
    split.link_to(use, 1, 0)
    choose.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    graph.push(frame)
    graph.push(None)
    made: Any = graph.pull()
    return made  # type: ignore[no-any-return]


# --- many pictures
def join_gifs(
    pictures: Iterable[bytes], delays: Sequence[int], size: tuple[int, int], loops: int | None
) -> Iterator[bytes]:
    """One GIF of many, piece by piece. `loops`: 0 is for ever, None plays once."""
    yield b"GIF89a" + struct.pack("<HHBBB", *size, 0x70, 0, 0)
    if loops is not None:
        yield bytes([_EXTENSION, 0xFF]) + _LOOPS + struct.pack("<HB", loops, 0)
    for data, delay in zip(pictures, delays, strict=True):
        image = _read_image(data)
        has_holes = image.transparent is not None
        # a picture with holes is taken away before the next one is shown
        flags = (2 << 2 | 1) if has_holes else 1 << 2
        yield bytes([_EXTENSION, _CONTROL, 4, flags]) + struct.pack("<HBB", delay, image.transparent or 0, 0)
        bits = (len(image.palette) // 3 - 1).bit_length() - 1
        yield bytes([_IMAGE]) + image.place + bytes([_HAS_TABLE | bits]) + image.palette + image.pixels
    yield bytes([_END])


def read_loops(source: Source) -> int | None:
    """How often a GIF says that it plays: 0 for ever, None where it says nothing and plays once."""
    with raw_bytes(source) as file:
        head = file.read(1 << 16)
    at = head.find(_LOOPS)
    return None if at < 0 else int(struct.unpack_from("<H", head, at + len(_LOOPS))[0])


def _read_image(gif: bytes) -> _Image:
    """The only picture of a GIF that FFmpeg wrote."""
    palette, at = _table(gif, 13, gif[10])
    transparent: int | None = None
    while gif[at] == _EXTENSION:
        if gif[at + 1] == _CONTROL and gif[at + 3] & 1:
            transparent = gif[at + 6]
        at = _after_blocks(gif, at + 2)
    place, flags = gif[at + 1 : at + 9], gif[at + 9]
    own, start = _table(gif, at + 10, flags)
    stop = _after_blocks(gif, start + 1)
    return _Image(place=place, palette=own or palette, transparent=transparent, pixels=gif[start:stop])


def _table(gif: bytes, at: int, flags: int) -> tuple[bytes, int]:
    size = 3 << (flags & 7) + 1 if flags & _HAS_TABLE else 0
    return gif[at : at + size], at + size


def _after_blocks(gif: bytes, at: int) -> int:
    while gif[at]:
        at += gif[at] + 1
    return at + 1
