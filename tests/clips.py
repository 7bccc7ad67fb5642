"""Tiny clips made on the spot; each frame carries its number in its pixels.

The upper half of a frame is a grid of 8 x 2 black and white blocks (luma, or green where there is no luma):
the frame's number in 16 bits, most significant first. It survives lossy coding and any scaling. The lower
half is a ramp with a moving bar and coloured chroma, so that mixed-up planes, fields or frames show.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

from vsr_hpc.media.encode.encoder import repeatable_x264_params
from vsr_hpc.media.picture import Colour, Frame, Picture, PixelFormat

COLUMNS, ROWS = 8, 2
SAMPLE_RATE = 48000


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapter:
    start_s: float
    stop_s: float
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    start_s: float
    stop_s: float
    text: str


def pixel(name: str) -> PixelFormat:
    """The PixelFormat of a planar FFmpeg name, worked out here on its own."""
    layout = av.VideoFormat(name, 16, 16)
    parts = layout.components
    has_alpha = any(part.is_alpha for part in parts)
    kind: Literal["yuv", "rgb", "grey"]
    kind = "rgb" if layout.is_rgb else "grey" if len(parts) - has_alpha == 1 else "yuv"
    wide, high = (0, 0) if kind != "yuv" else (16 // parts[1].width - 1, 16 // parts[1].height - 1)
    log2 = {0: 0, 1: 1, 3: 2}
    return PixelFormat(
        name=name,
        kind=kind,
        depth=parts[0].bits,
        log2_chroma_w=log2[wide],
        log2_chroma_h=log2[high],
        has_alpha=has_alpha,
    )


def picture(
    size: tuple[int, int] = (64, 48), pix_fmt: str = "yuv420p", colour: Colour | None = None
) -> Picture:
    return Picture(width=size[0], height=size[1], pixel=pixel(pix_fmt), colour=colour or Colour())


def numbered_planes(number: int, shape: Picture, *, field_shift: int = 0) -> tuple[NDArray[Any], ...]:
    """The planes of frame `number`; `field_shift` moves the lower field's bar."""
    form, width, height = shape.pixel, shape.width, shape.height
    peak = (1 << form.depth) - 1 if form.depth <= 16 else 1
    black, white = (16 * (peak + 1) // 256, 235 * (peak + 1) // 256) if form.kind != "rgb" else (0, peak)
    if form.dtype == np.float32:
        black, white = 0, 1
    main = np.empty((height, width), np.float64)
    main[:] = black + (white - black) * (0.25 + 0.5 * np.arange(width) / max(1, width - 1))
    upper = height // 2
    for row in range(ROWS):
        for column in range(COLUMNS):
            bit = number >> (ROWS * COLUMNS - 1 - row * COLUMNS - column) & 1
            rows = slice(row * upper // ROWS, (row + 1) * upper // ROWS)
            columns = slice(column * width // COLUMNS, (column + 1) * width // COLUMNS)
            main[rows, columns] = white if bit else black
    bar = max(1, width // 8)
    for line in range(upper, height):
        left = (number * 4 + (field_shift if line % 2 else 0)) % max(1, width - bar)
        main[line, left : left + bar] = white
    planes = [main]
    for plane in range(1, 1 if form.kind == "grey" else 3):
        wide, high = form.plane_size(plane, width, height)
        ramp = (
            np.linspace(0.3, 0.7, max(wide, 2))[:wide]
            if plane == 1
            else np.linspace(0.7, 0.3, max(high, 2))[:high]
        )
        sheet = np.broadcast_to(ramp if plane == 1 else ramp[:, None], (high, wide))
        planes.append(black + (white - black) * sheet + (number % 5) * (white - black) / 100)
    if form.has_alpha:
        planes.append(np.broadcast_to(np.linspace(0, peak, height)[:, None], (height, width)))
    if form.dtype == np.float32:
        return tuple(each.astype(np.float32) for each in planes)
    return tuple(np.rint(each).astype(form.dtype) for each in planes)


def numbered_frame(number: int, shape: Picture | None = None) -> Frame:
    return Frame(index=number, planes=numbered_planes(number, shape or picture()))


def frame_number(frame: Frame) -> int:
    """The number that a frame carries, read from its first plane whatever its size and depth."""
    return number_in(frame.planes[0])


def number_in(plane: NDArray[Any]) -> int:
    height, width = plane.shape
    upper = height // 2
    means = np.empty((ROWS, COLUMNS))
    for row in range(ROWS):
        for column in range(COLUMNS):
            top, bottom = (row + 0.25) * upper / ROWS, (row + 0.75) * upper / ROWS
            left, right = (column + 0.25) * width / COLUMNS, (column + 0.75) * width / COLUMNS
            block = plane[
                int(top) : max(int(bottom), int(top) + 1), int(left) : max(int(right), int(left) + 1)
            ]
            means[row, column] = block.mean()
    if plane.dtype == np.float32:
        middle = 0.5
    else:
        middle = {8: 128}.get(plane.dtype.itemsize * 8, 0) or _middle(int(plane.max()))
    return int("".join("1" if mean > middle else "0" for mean in means.ravel()), 2)


def _middle(highest: int) -> float:
    """Half scale of the depth (9 to 16 bit) of a plane with this highest sample."""
    return float((1 << max(9, highest.bit_length())) // 2)


def video_frame(number: int, shape: Picture, *, field_shift: int = 0) -> av.VideoFrame:
    """A PyAV frame with the number's planes, of any planar format with native-endian samples."""
    return frame_of_planes(numbered_planes(number, shape, field_shift=field_shift), shape)


def frame_of_planes(planes: Sequence[NDArray[Any]], shape: Picture) -> av.VideoFrame:
    frame = av.VideoFrame(shape.width, shape.height, shape.pixel.name)
    for target, plane in zip(frame.planes, planes, strict=True):
        lines = np.zeros((plane.shape[0], target.line_size), np.uint8)
        raw = np.ascontiguousarray(plane).view(np.uint8)
        lines[:, : raw.shape[1]] = raw
        whole = np.zeros(target.buffer_size, np.uint8)
        whole[: lines.size] = lines.ravel()
        target.update(whole.tobytes())
    return frame


def clip_of_planes(
    path: Path, shape: Picture, frames: Sequence[Sequence[NDArray[Any]]], *, rate: Fraction | int = 24
) -> Path:
    """Write a lossless clip (FFV1) of the given planes, tagged as `shape` says."""
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as out:
        stream: Any = out.add_stream("ffv1", rate=rate)
        stream.width, stream.height, stream.pix_fmt = shape.width, shape.height, shape.pixel.name
        stream.codec_context.sample_aspect_ratio = shape.sample_aspect
        _tag(stream.codec_context, shape.colour)
        for number, planes in enumerate(frames):
            frame = frame_of_planes(planes, shape)
            frame.pts, frame.time_base = number, 1 / Fraction(rate)
            _tag(frame, shape.colour)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def numbered_clip(
    path: Path | str,
    *,
    frames: int = 24,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: Fraction | int = 24,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    options: dict[str, str] | None = None,
    gop: int = 8,
    b_frames: int | None = None,
    open_gop: bool = False,
    interlaced: Literal["tff", "bff"] | None = None,
    colour: Colour | None = None,
    sample_aspect: Fraction | None = None,
    audio: str | bool = False,
    audio_language: str = "",
    captions: Sequence[Caption] = (),
    caption_codec: str = "subrip",
    chapters: Sequence[Chapter] = (),
    metadata: dict[str, str] | None = None,
    container: str | None = None,
    container_options: dict[str, str] | None = None,
    first_number: int = 0,
    threads: int = 1,
) -> Path:
    """Write a clip whose frame i carries the number `first_number + i`; the container follows the suffix.

    `pts` (in `time_base`, default 1/rate) makes variable frame rate. `b_frames=None` leaves the encoder's own
    default. `audio` is True (AAC) or an encoder's name; the sine lasts as long as the frames. The same
    arguments give the same bytes.
    """
    path, rate = Path(path), Fraction(rate)
    tick = time_base or 1 / rate
    shape = picture(size, pix_fmt, colour)
    stamps = list(pts) if pts is not None else [int(i / rate / tick) for i in range(frames)]
    muxer_options = {"fflags": "+bitexact", **(container_options or {})}
    with av.open(str(path), "w", format=container, container_options=muxer_options) as out:
        out.metadata.update(metadata or {})
        encoder_options = _encoder_options(codec, options, gop, b_frames, open_gop, interlaced)
        stream: Any = out.add_stream(codec, rate=rate, options=encoder_options)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.time_base = stream.codec_context.time_base = tick
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = threads
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        if sample_aspect:
            stream.codec_context.sample_aspect_ratio = sample_aspect
        if colour:
            _tag(stream.codec_context, colour)
        if interlaced:
            stream.codec_context.flags |= av.codec.context.Flags.interlaced_dct
            if codec == "mpeg2video":
                stream.codec_context.flags |= av.codec.context.Flags.interlaced_me
        sound: Any = _add_sound(out, audio, audio_language)
        words: Any = out.add_mux_stream(caption_codec) if captions else None
        if words is not None:
            words.time_base = Fraction(1, 1000)
        if chapters:
            out.set_chapters([_chapter(i, each) for i, each in enumerate(chapters)])
        if words is not None:
            out.mux([_caption(words, each) for each in captions])
        if sound is not None:
            last = stamps[-1] * tick + 1 / rate if stamps else Fraction(0)
            _write_sound(out, sound, int(last * SAMPLE_RATE))
        fields = _set_field(shape, tick, interlaced) if interlaced else None
        for i, stamp in enumerate(stamps):
            frame = video_frame(
                first_number + i, shape, field_shift={None: 0, "tff": 2, "bff": -2}[interlaced]
            )
            frame.pts, frame.time_base = stamp, tick
            if colour:
                _tag(frame, colour)
            out.mux(stream.encode(frame if fields is None else _through(fields, frame)))
        out.mux(stream.encode(None))
    return path


def _encoder_options(
    codec: str,
    given: dict[str, str] | None,
    gop: int,
    b_frames: int | None,
    open_gop: bool,
    interlaced: str | None,
) -> dict[str, str]:
    options = {"g": str(gop)}
    if codec == "libx264":
        params = ["scenecut=0"]
        if open_gop:
            params.append("open-gop=1")
        if interlaced:
            params.append(f"{interlaced}=1")
        if b_frames is not None:
            params.append(f"bframes={b_frames}:b-adapt=0")
        options |= {"preset": "veryfast", "crf": "18", "x264-params": ":".join(params)}
    elif codec == "libx265":
        params = ["log-level=none", "pools=1", "frame-threads=1", "info=0", f"open-gop={int(open_gop)}"]
        params += ["scenecut=0", f"keyint={gop}", f"min-keyint={gop}"]
        if b_frames is not None:
            params.append(f"bframes={b_frames}:b-adapt=0")
        options |= {"preset": "ultrafast", "crf": "18", "x265-params": ":".join(params)}
    elif codec == "libsvtav1":
        os.environ.setdefault("SVT_LOG", "1")  # it prints a banner otherwise
        options |= {"preset": "8", "crf": "10", "svtav1-params": "lp=1"}
    elif codec in ("libvpx", "libvpx-vp9"):
        options |= {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "1M"}
    elif codec in ("mpeg2video", "mpeg4", "mpeg1video"):
        options |= {"qmin": "2", "qmax": "3", "b": "2M"}
    options |= given or {}
    return repeatable_x264(options) if codec == "libx264" else options


def repeatable_x264(options: dict[str, str]) -> dict[str, str]:
    """Encoder options with which x264 gives the same bytes every time, as the product's own writer does."""
    params = [f"{key}={value}" for key, value in repeatable_x264_params().items()]
    given = options.get("x264-params")
    params += [given] if given else []
    return {**options, "x264-params": ":".join(params)} if params else options


def _set_field(shape: Picture, tick: Fraction, order: str) -> Graph:
    """PyAV cannot flag a frame as interlaced; FFmpeg's setfield filter can."""
    graph = Graph()
    layout = av.VideoFormat(shape.pixel.name, shape.width, shape.height)
    source = graph.add_buffer(width=shape.width, height=shape.height, format=layout, time_base=tick)
    graph.link_nodes(source, graph.add("setfield", order), graph.add("buffersink")).configure()
    return graph


def _through(graph: Graph, frame: av.VideoFrame) -> Any:
    graph.push(frame)
    return graph.pull()


def _tag(target: Any, colour: Colour) -> None:
    """Colour tags onto a codec context or a frame. (Siting goes through encoder options.)"""
    target.colorspace, target.color_primaries = colour.matrix, colour.primaries
    target.color_trc = colour.transfer
    target.color_range = (2 if colour.is_full_range else 1) if colour.is_range_tagged else 0


def _add_sound(out: Any, audio: str | bool, language: str) -> Any:
    if not audio:
        return None
    sound = out.add_stream("aac" if audio is True else audio, rate=SAMPLE_RATE, layout="mono")
    if language:
        sound.metadata["language"] = language
    return sound


def _write_sound(out: Any, sound: Any, samples: int) -> None:
    fifo = av.AudioFifo()
    wave = (np.sin(np.arange(samples) * (2 * np.pi * 440 / SAMPLE_RATE)) * 8000).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(wave.reshape(1, -1), format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
    resampler = av.AudioResampler(format=sound.codec_context.format, layout="mono", rate=SAMPLE_RATE)
    for ready in resampler.resample(frame):
        fifo.write(ready)
    block = sound.codec_context.frame_size or 1024
    while (piece := fifo.read(block)) is not None or (piece := fifo.read(0, partial=True)) is not None:
        out.mux(sound.encode(piece))
    out.mux(sound.encode(None))


def _chapter(number: int, chapter: Chapter) -> Any:
    return {
        "id": number + 1,
        "start": round(chapter.start_s * 1000),
        "end": round(chapter.stop_s * 1000),
        "time_base": Fraction(1, 1000),
        "metadata": {"title": chapter.title},
    }


def _caption(stream: Any, caption: Caption) -> av.Packet[Any]:
    packet = av.Packet(caption.text.encode())
    packet.stream, packet.time_base = stream, Fraction(1, 1000)
    packet.pts = packet.dts = round(caption.start_s * 1000)
    packet.duration = round((caption.stop_s - caption.start_s) * 1000)
    return packet
