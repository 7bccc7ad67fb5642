"""Sample layouts: which planar format stands for a decoded one, and a frame's planes as numpy views."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

import av
import numpy as np
from av.filter import Graph

from vsr_hpc.errors import MediaError
from vsr_hpc.media.picture import PixelFormat, Plane

_ENDIAN = "le" if sys.byteorder == "little" else "be"
_LOG2 = {1: 0, 2: 1, 4: 2}
_TICK = Fraction(1, 1000)

# Packed RGB: the order of channels in memory; "x" is padding.
_PACKED_RGB8 = {
    "rgb24": "rgb",
    "bgr24": "bgr",
    "rgba": "rgba",
    "bgra": "bgra",
    "argb": "argb",
    "abgr": "abgr",
    "rgb0": "rgbx",
    "bgr0": "bgrx",
    "0rgb": "xrgb",
    "0bgr": "xbgr",
}
_PACKED_RGB16 = {"rgb48": "rgb", "bgr48": "bgr", "rgba64": "rgba", "bgra64": "bgra"}

# Luma plane and interleaved chroma: planar name, chroma order, right shift (samples at the top of the word).
_SEMI_PLANAR = {
    "nv12": ("yuv420p", "uv", 0),
    "nv21": ("yuv420p", "vu", 0),
    "nv16": ("yuv422p", "uv", 0),
    "nv24": ("yuv444p", "uv", 0),
    "nv42": ("yuv444p", "vu", 0),
    "nv20": ("yuv422p10", "uv", 0),
    "p010": ("yuv420p10", "uv", 6),
    "p012": ("yuv420p12", "uv", 4),
    "p016": ("yuv420p16", "uv", 0),
    "p210": ("yuv422p10", "uv", 6),
    "p212": ("yuv422p12", "uv", 4),
    "p216": ("yuv422p16", "uv", 0),
    "p410": ("yuv444p10", "uv", 6),
    "p412": ("yuv444p12", "uv", 4),
    "p416": ("yuv444p16", "uv", 0),
}

# One plane of Y, U, V (and A): planar name, the repeating pattern of samples, right shift.
_PACKED_YUV = {
    "yuyv422": ("yuv422p", "yuyv", 0),
    "uyvy422": ("yuv422p", "uyvy", 0),
    "yvyu422": ("yuv422p", "yvyu", 0),
    "y210": ("yuv422p10", "yuyv", 6),
    "y212": ("yuv422p12", "yuyv", 4),
    "y216": ("yuv422p16", "yuyv", 0),
    "uyyvyy411": ("yuv411p", "uyyvyy", 0),
    "vyu444": ("yuv444p", "vyu", 0),
    "vuyx": ("yuv444p", "vuyx", 0),
    "vuya": ("yuva444p", "vuya", 0),
    "ayuv": ("yuva444p", "ayuv", 0),
    "uyva": ("yuva444p", "uyva", 0),
    "ayuv64": ("yuva444p16", "ayuv", 0),
    "xv36": ("yuv444p12", "uyvx", 4),
    "xv48": ("yuv444p16", "uyvx", 0),
}

_PLANAR = re.compile(r"(yuva?4[0-4]{2}p|gbra?p|gray)(9|10|12|14|16|f16|f32)?(le|be)?")


def pixel_format(name: str) -> PixelFormat:
    """The planar format in which frames of FFmpeg's format `name` travel; MediaError where there is none.

    `ya8` and `ya16le` have no planar twin in FFmpeg: they keep their name and travel as two planes.
    """
    return _known(name)


@lru_cache(maxsize=256)
def _known(name: str) -> PixelFormat:
    planar = _planar_name(name)
    if planar is None:
        raise MediaError(
            f"pixel format {name} has no planar equivalent here (hardware, Bayer, XYZ, packed floats and "
            "formats with fewer than 8 bits a sample are not read); convert first: "
            "ffmpeg -i IN -pix_fmt yuv444p10le -c:v ffv1 OUT.mkv"
        )
    parts = av.VideoFormat(planar, 16, 16).components
    kind: Literal["yuv", "rgb", "grey"]
    kind = "yuv" if planar.startswith("yuv") else "rgb" if planar.startswith("gbr") else "grey"
    subsampled = kind == "yuv"
    return PixelFormat(
        name=planar,
        kind=kind,
        depth=32 if "f32" in planar else parts[0].bits,
        log2_chroma_w=_LOG2[16 // parts[1].width] if subsampled else 0,
        log2_chroma_h=_LOG2[16 // parts[1].height] if subsampled else 0,
        has_alpha="yuva" in planar or "gbrap" in planar or planar.startswith("ya"),
    )


def without_alpha(pixel: PixelFormat) -> PixelFormat:
    """The format with the same samples and no alpha channel."""
    if not pixel.has_alpha:
        return pixel
    opaque = {"grey": ("ya", "gray"), "yuv": ("yuva", "yuv"), "rgb": ("gbrap", "gbrp")}[pixel.kind]
    return planar_format(pixel.name.replace(*opaque).replace("gray8", "gray"))


def _planar_name(name: str) -> str | None:
    base = re.sub(r"(le|be)$", "", name)
    if name in ("monow", "monob"):
        return "gray"
    if base in ("ya8", "ya16"):
        return "ya8" if base == "ya8" else f"ya16{_ENDIAN}"
    if name == "pal8":
        return "gbrap"
    if name in _PACKED_RGB8:
        return "gbrap" if "a" in _PACKED_RGB8[name] else "gbrp"
    if base in _PACKED_RGB16:
        return ("gbrap16" if "a" in _PACKED_RGB16[base] else "gbrp16") + _ENDIAN
    packed = _SEMI_PLANAR.get(base) or _PACKED_YUV.get(base)
    plain = packed[0] if packed else re.sub(r"^yuvj", "yuv", base)
    match = _PLANAR.fullmatch(plain)
    if match is None:
        return None
    # Half floats travel as floats, which hold each of their values; FFmpeg encodes no half floats.
    return plain.replace("f16", "f32") + (_ENDIAN if match[2] else "")


def is_full_range_by_name(name: str) -> bool:
    """FFmpeg's old `yuvj` formats say full range by their name."""
    return name.startswith("yuvj")


def to_planes(frame: av.VideoFrame) -> tuple[Plane, ...]:
    """The frame's planes in the layout of `pixel_format(frame.format.name)`.

    Planar formats in native byte order come as views that keep the frame's buffer alive; everything else is
    unpacked into new arrays without changing a sample.
    """
    name = frame.format.name
    form = _known(name)
    if any(plane.line_size < 0 for plane in frame.planes):
        frame = _upright(frame)
    return _unpacker(name)(frame, name, form)


def frame_digest(frame: av.VideoFrame) -> bytes:
    """A hash of size, format and every sample: equal frames have equal digests."""
    digest = hashlib.blake2b(f"{frame.width}x{frame.height} {frame.format.name}".encode(), digest_size=16)
    for plane in to_planes(frame):
        digest.update(np.ascontiguousarray(plane).data)
    return digest.digest()


_Unpacker = Callable[[av.VideoFrame, str, PixelFormat], "tuple[Plane, ...]"]


@lru_cache(maxsize=256)
def _unpacker(name: str) -> _Unpacker:
    base = re.sub(r"(le|be)$", "", name)
    if name in ("monow", "monob"):
        return _unpack_bits
    if name == "pal8":
        return _unpack_palette
    if base in ("ya8", "ya16"):
        return _unpack_grey_alpha
    if name in _PACKED_RGB8 or base in _PACKED_RGB16:
        return _unpack_rgb
    if base in _SEMI_PLANAR:
        return _unpack_semi_planar
    if base in _PACKED_YUV:
        return _unpack_yuv
    return _view_planar


def _lines(frame: av.VideoFrame, plane: int, dtype: str, columns: int) -> Plane:
    """One plane's samples as rows of `columns` words, a view without the padding."""
    source = frame.planes[plane]
    words = np.frombuffer(source, np.uint8)[: source.line_size * source.height]  # type: ignore[call-overload]
    rows = words.reshape(source.height, source.line_size)
    width_bytes = columns * np.dtype(dtype).itemsize
    view: Plane = rows[:, :width_bytes].view(dtype)
    return view


def _dtype(name: str, form: PixelFormat) -> str:
    if form.depth == 8:
        return "u1"
    samples = "f2" if "f16" in name else "f4" if form.depth == 32 else "u2"
    return (">" if name.endswith("be") else "<") + samples


def _native(plane: Plane, form: PixelFormat) -> Plane:
    return plane if plane.dtype == form.dtype else plane.astype(form.dtype)


def _view_planar(frame: av.VideoFrame, name: str, form: PixelFormat) -> tuple[Plane, ...]:
    dtype = _dtype(name, form)
    widths = [form.plane_size(i, frame.width, frame.height)[0] for i in range(form.plane_count)]
    return tuple(_native(_lines(frame, i, dtype, width), form) for i, width in enumerate(widths))


def _unpack_grey_alpha(frame: av.VideoFrame, name: str, form: PixelFormat) -> tuple[Plane, ...]:
    both = _lines(frame, 0, _dtype(name, form), 2 * frame.width).astype(form.dtype)
    return np.ascontiguousarray(both[:, 0::2]), np.ascontiguousarray(both[:, 1::2])


def _unpack_bits(frame: av.VideoFrame, name: str, form: PixelFormat) -> tuple[Plane, ...]:
    packed = _lines(frame, 0, "u1", -(-frame.width // 8))
    bits = np.unpackbits(packed, axis=1)[:, : frame.width]
    return ((bits ^ (name == "monow")).astype(np.uint8) * 255,)


def _unpack_palette(frame: av.VideoFrame, name: str, form: PixelFormat) -> tuple[Plane, ...]:
    indices = _lines(frame, 0, "u1", frame.width)
    colours = np.frombuffer(frame.planes[1], np.uint32, count=256)  # type: ignore[call-overload]
    green, blue, red, alpha = (((colours >> shift) & 255).astype(np.uint8) for shift in (8, 0, 16, 24))
    return green[indices], blue[indices], red[indices], alpha[indices]


def _unpack_rgb(frame: av.VideoFrame, name: str, form: PixelFormat) -> tuple[Plane, ...]:
    order = _PACKED_RGB8.get(name) or _PACKED_RGB16[name[:-2]]
    samples = _lines(frame, 0, _dtype(name, form), len(order) * frame.width)
    wanted = "gbra" if form.has_alpha else "gbr"
    return tuple(samples[:, order.index(each) :: len(order)].astype(form.dtype) for each in wanted)


def _unpack_semi_planar(frame: av.VideoFrame, name: str, form: PixelFormat) -> tuple[Plane, ...]:
    _, order, shift = _SEMI_PLANAR[re.sub(r"(le|be)$", "", name)]
    dtype = _dtype(name, form)
    luma = _lines(frame, 0, dtype, frame.width).astype(form.dtype)
    chroma_width = form.plane_size(1, frame.width, frame.height)[0]
    chroma = _lines(frame, 1, dtype, 2 * chroma_width).astype(form.dtype)
    planes = (luma, chroma[:, order.index("u") :: 2], chroma[:, order.index("v") :: 2])
    return tuple(np.ascontiguousarray(plane >> shift) for plane in planes)


def _unpack_yuv(frame: av.VideoFrame, name: str, form: PixelFormat) -> tuple[Plane, ...]:
    _, pattern, shift = _PACKED_YUV[re.sub(r"(le|be)$", "", name)]
    per_group = pattern.count("y")
    groups = -(-frame.width // per_group)
    samples = _lines(frame, 0, _dtype(name, form), groups * len(pattern)).astype(form.dtype) >> shift
    cells = samples.reshape(frame.height, groups, len(pattern))
    luma_at = [i for i, each in enumerate(pattern) if each == "y"]
    luma = cells[:, :, luma_at].reshape(frame.height, groups * per_group)[:, : frame.width]
    rest = [cells[:, :, pattern.index(each)] for each in ("uva" if form.has_alpha else "uv")]
    return tuple(np.ascontiguousarray(plane) for plane in (luma, *rest))


def _upright(frame: av.VideoFrame) -> av.VideoFrame:
    """A copy with its lines from top to bottom (raw AVI stores them upwards, as a negative line size)."""
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or _TICK
    )
    copy, sink = graph.add("copy"), graph.add("buffersink")
    graph.link_nodes(source, copy, sink).configure()
    graph.push(frame)
    out: Any = graph.pull()
    return out  # type: ignore[no-any-return]


def planar_format(name: str) -> PixelFormat:
    """The format of planes that has this very name; ValueError for a packed one."""
    try:
        form = pixel_format(name)
    except (ValueError, MediaError) as exc:
        raise ValueError(f"{name!r} is no pixel format of planes that FFmpeg knows") from exc
    if form.name != name:
        raise ValueError(f"{name} is packed or an alias; name the planes' own format, here {form.name}")
    return form
