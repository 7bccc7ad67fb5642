"""A small clip to try things on, drawn by FFmpeg's own sources: shapes, texture, moving text, a melody.

Nothing is downloaded and nothing random is used: one machine makes the same bytes every time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

from vsr_hpc.errors import JobError

_SAMPLE_RATE = 48000
_BLOCK = 1024
_NOTES_HZ = (261.63, 329.63, 392.00, 523.25, 392.00, 329.63)
# Letters of 5 x 7 dots, drawn without a font: FFmpeg's drawtext needs one, and machines differ in fonts.
_LETTERS = {
    "V": ("10001", "10001", "10001", "10001", "10001", "01010", "00100"),
    "S": ("01111", "10000", "10000", "01110", "00001", "00001", "11110"),
    "R": ("11110", "10001", "10001", "11110", "10100", "10010", "10001"),
    "H": ("10001", "10001", "10001", "11111", "10001", "10001", "10001"),
    "P": ("11110", "10001", "10001", "11110", "10000", "10000", "10000"),
    "C": ("01111", "10000", "10000", "10000", "10000", "10000", "01111"),
    " ": ("00000",) * 7,
}


def make_demo_clip(
    path: Path | str,
    seconds: float = 8.0,
    size: tuple[int, int] = (320, 180),
    rate: Fraction = Fraction(24),
    audio: bool = True,
) -> Path:
    """Write an H.264 clip (with AAC sound in MP4, MOV or MKV) of `seconds` and return its path."""
    width, height = size
    if width % 2 or height % 2 or width < 64 or height < 64 or seconds <= 0:
        raise JobError(
            f"demo clip: {width}x{height}, {seconds} s; give even sizes from 64x64 and a positive length"
        )
    path, count = Path(path), max(2, round(seconds * rate))
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as out:
        video: Any = out.add_stream("libx264", rate=rate)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        context = video.codec_context
        context.thread_count = 1
        context.colorspace = context.color_primaries = context.color_trc = 1
        context.color_range = 1
        context.options = {"preset": "medium", "crf": "20", "x264-params": "keyint=96"}
        sound: Any = _sound_stream(out) if audio else None
        blocks = _melody(count / rate) if audio else iter(())
        heard = Fraction(0)
        for number, frame in enumerate(_pictures(count, size, rate)):
            frame.pts, frame.time_base = number, 1 / rate
            out.mux(video.encode(frame))
            while sound is not None and heard <= number / rate:
                block = next(blocks, None)
                if block is None:
                    break
                out.mux(sound.encode(block))
                heard += Fraction(block.samples, _SAMPLE_RATE)
        out.mux(video.encode(None))
        if sound is not None:
            for block in blocks:
                out.mux(sound.encode(block))
            out.mux(sound.encode(None))
    return path


def _sound_stream(out: Any) -> Any:
    sound = out.add_stream("aac", rate=_SAMPLE_RATE, layout="stereo")
    sound.bit_rate = 96000
    sound.codec_context.flags |= 1 << 23  # AV_CODEC_FLAG_BITEXACT
    return sound


def _pictures(count: int, size: tuple[int, int], rate: Fraction) -> Iterator[av.VideoFrame]:
    """A fractal that is zoomed into, FFmpeg's moving test shapes in a corner, and letters that wander."""
    graph = _scene(size, rate)
    text = _text("VSR HPC", max(1, size[1] // 60))
    for number in range(count):
        frame: Any = graph.pull()
        _draw_text(frame, text, number)
        _tag(frame)
        yield frame


def _scene(size: tuple[int, int], rate: Fraction) -> Graph:
    width, height = size
    inset = (width * 3 // 8 // 2 * 2, height * 3 // 8 // 2 * 2)
    graph = Graph()
    fractal = graph.add(
        "mandelbrot", f"size={width}x{height}:rate={rate}:maxiter=600:end_pts=800:inner=convergence"
    )
    shapes = graph.add("testsrc2", f"size={inset[0]}x{inset[1]}:rate={rate}")
    grid = graph.add("drawgrid", "width=16:height=16:thickness=1:color=white@0.35")
    over = graph.add("overlay", f"x={width - inset[0] - 8}:y={height - inset[1] - 8}")
    scale = graph.add(
        "scale", "out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int"
    )
    format_ = graph.add("format", "pix_fmts=yuv420p")
    sink = graph.add("buffersink")
    shapes.link_to(grid)
    fractal.link_to(over, 0, 0)
    grid.link_to(over, 0, 1)
    over.link_to(scale)
    scale.link_to(format_)
    format_.link_to(sink)
    graph.configure()
    return graph


def _text(words: str, dot: int) -> NDArray[np.bool_]:
    """The words as a bitmap, each dot of a letter `dot` pixels wide."""
    rows = ["0".join(_LETTERS[each][row] for each in words) for row in range(7)]
    bits = np.array([[each == "1" for each in row] for row in rows])
    return np.kron(bits, np.ones((dot, dot), dtype=bool))


def _draw_text(frame: av.VideoFrame, text: NDArray[np.bool_], number: int) -> None:
    plane = frame.planes[0]
    luma: NDArray[np.uint8] = np.frombuffer(memoryview(plane), np.uint8)
    picture = luma.reshape(plane.height, plane.line_size)[:, : plane.width]
    room_x, room_y = plane.width - text.shape[1] - 2, plane.height - text.shape[0] - 2
    left = int(room_x * (0.5 + 0.45 * math.sin(number / 19)))
    top = int(room_y * (0.25 + 0.2 * math.cos(number / 13)))
    box = picture[top : top + text.shape[0] + 1, left : left + text.shape[1] + 1]
    shadow, letters = box[1:, 1:], box[:-1, :-1]
    shadow[text[: shadow.shape[0], : shadow.shape[1]]] = 16
    letters[text[: letters.shape[0], : letters.shape[1]]] = 235


def _tag(frame: av.VideoFrame) -> None:
    frame.colorspace = frame.color_primaries = frame.color_trc = 1
    frame.color_range = 1
    frame.pict_type = 0


def _melody(seconds: Fraction) -> Iterator[av.AudioFrame]:
    """Soft plucked notes, a quarter of a second each, on both sides of a stereo picture."""
    total = int(seconds * _SAMPLE_RATE)
    for start in range(0, total, _BLOCK):
        moments = np.arange(start, min(start + _BLOCK, total)) / _SAMPLE_RATE
        step = (moments * 4).astype(int)
        pitch = np.array(_NOTES_HZ)[step % len(_NOTES_HZ)]
        fade = np.exp(-5 * (moments * 4 - step)) * np.minimum(1, (moments * 4 - step) * 40)
        wave = np.sin(2 * np.pi * pitch * moments) * fade * 0.3
        left = 0.5 + 0.4 * np.sin(moments)
        stereo = np.stack([wave * left, wave * (1 - left)]).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(stereo, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = _SAMPLE_RATE, start, Fraction(1, _SAMPLE_RATE)
        yield frame
