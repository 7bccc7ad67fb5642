"""One still, read and written with its depth and its profiles.

Decoding and encoding go through PyAV's codecs (imageio reads 16-bit RGB as 8 bit in silence). What a codec
does not carry (ICC profile, EXIF, PNG's gamma) is copied as bytes, in `stillmeta`.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from numpy.typing import NDArray

from vsr_hpc.errors import BackendError, JobError, MediaError, SpaceError
from vsr_hpc.media.ffmpeg_errors import reason
from vsr_hpc.media.picture import Colour, Picture, PixelFormat, Plane
from vsr_hpc.media.pixels import is_full_range_by_name, pixel_format, to_planes
from vsr_hpc.media.stills.metadata import StillMeta, add_meta, read_meta, remove_packed_chunks
from vsr_hpc.system.files import write_atomically

StillFormat = Literal["png", "tiff", "exr", "jpeg", "webp"]

SUFFIXES: dict[str, StillFormat] = {
    ".png": "png",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".exr": "exr",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
}
_MAGIC: tuple[tuple[bytes, StillFormat], ...] = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"v/1\x01", "exr"),
    (b"\xff\xd8\xff", "jpeg"),
)
_DECODERS = {"png": "png", "tiff": "tiff", "exr": "exr", "jpeg": "mjpeg", "webp": "webp"}
_ENCODERS = {"png": "png", "tiff": "tiff", "exr": "exr", "jpeg": "mjpeg", "webp": "libwebp"}
_MAX_BYTES = 1 << 31
_MAX_PIXELS = 1 << 28
# FFmpeg counts rows as padded to 64 samples. JPEG and WebP have at most so many rows.
_PADDING = 64 << 16
# bicubic + accurate_rnd + full_chroma_inp + full_chroma_int: swscale's defaults darken by a level
_EXACT_SCALING = 4 | 0x40000 | 0x4000 | 0x2000


# --- reading
def read_image(
    path: Path | str | io.BytesIO, *, most_pixels: int = _MAX_PIXELS
) -> tuple[Picture, tuple[Plane, ...], StillMeta]:
    """One still: what it is, its planes, and what its codec does not carry; MediaError where damaged.

    A decoder that comes upon more than `most_pixels`, and a margin for the padding of its rows, gives up
    before it has room for them, whatever the still's first header says.
    """
    name = "image" if isinstance(path, io.BytesIO) else str(path)
    data = path.getvalue() if isinstance(path, io.BytesIO) else still_bytes(Path(path))
    kind = _kind(data, name)
    meta = _meta(kind, data, name)
    if meta.refusal:
        raise MediaError(f"{name}: {meta.refusal}")
    frame = _decode(kind, data, name, most_pixels)
    planes = to_planes(frame)
    form = pixel_format(frame.format.name)
    if form.has_alpha and not meta.has_alpha and form.kind == "rgb":
        form, planes = pixel_format(form.name.replace("gbrap", "gbrp")), planes[:3]
    picture = Picture(
        width=frame.width,
        height=frame.height,
        pixel=form,
        colour=_colour(kind, frame, form),
        display_matrix=meta.display_matrix(frame.width, frame.height),
    )
    return picture, planes, meta


def still_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise MediaError(f"{path}: is larger than {_MAX_BYTES >> 30} GiB")
        return path.read_bytes()
    except OSError as exc:
        raise MediaError(f"{path}: cannot be read ({exc.strerror})") from exc


def _kind(data: bytes, name: str) -> StillFormat:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    raise MediaError(f"{name}: is {'empty' if not data else 'no PNG, TIFF, EXR, JPEG or WebP image'}")


def _meta(kind: StillFormat, data: bytes, name: str) -> StillMeta:
    try:
        return read_meta(kind, data)
    except (IndexError, KeyError, ValueError) as exc:
        raise MediaError(f"{name}: this {kind} is damaged ({exc})") from exc


def _decode(kind: StillFormat, data: bytes, name: str, most_pixels: int) -> av.VideoFrame:
    context: Any = av.CodecContext.create(_DECODERS[kind], "r")
    context.options = {"max_pixels": str(min(_MAX_PIXELS, most_pixels + _PADDING))}
    context.thread_count = 1
    if kind == "png":
        data = remove_packed_chunks(data)
    try:
        frames = [*context.decode(av.Packet(data)), *context.decode(None)]
    except (av.FFmpegError, ValueError) as exc:
        raise MediaError(f"{name}: this {kind} cannot be decoded ({reason(exc)})") from exc
    if not frames:
        raise MediaError(f"{name}: this {kind} holds no picture")
    frame: av.VideoFrame = frames[0]
    return frame


def _colour(kind: StillFormat, frame: av.VideoFrame, form: PixelFormat) -> Colour:
    is_yuv = form.kind == "yuv"
    matrix = (int(frame.colorspace) if int(frame.colorspace) != 2 else 5) if is_yuv else 0
    if form.kind == "grey":
        matrix = 2
    is_full = not is_yuv or int(frame.color_range) == 2 or is_full_range_by_name(frame.format.name)
    return Colour(
        matrix=matrix,
        primaries=int(frame.color_primaries),
        transfer=8 if kind == "exr" else int(frame.color_trc),
        is_full_range=is_full,
        is_range_tagged=True,
        siting="center" if is_yuv and form.log2_chroma_w else "unspecified",
    )


def still_meta(data: bytes, name: str) -> StillMeta:
    """What lies beside the samples, without decoding them."""
    return _meta(_kind(data, name), data, name)


# --- writing
@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEncoding:
    """All that decides a still's bytes beside its picture. `pixel` is the layout that `write` takes."""

    format: StillFormat
    pixel: PixelFormat
    quality: int = 95
    is_lossless: bool = True


def resolve_image_encoding(
    output: str | os.PathLike[str], picture: Picture, *, quality: int | None = None
) -> ImageEncoding:
    """How stills named like `output` are coded; the layout is the picture's own where the format has it."""
    suffix = Path(output).suffix.lower()
    kind = SUFFIXES.get(suffix)
    if kind is None:
        raise JobError(
            f"{output}: {suffix or 'no suffix'} is no still format here; known: {' '.join(SUFFIXES)}"
        )
    if quality is not None and not 1 <= quality <= 100:
        raise JobError(f"--quality {quality} is outside 1 to 100")
    pixel = picture.pixel
    if (pixel.depth == 32) != (kind == "exr"):
        raise JobError(
            f"{output}: the source has {pixel.depth} bits a sample; only floating point "
            "goes to .exr, and only there"
        )
    if pixel.has_alpha and kind == "jpeg":
        raise JobError(
            f"{output}: JPEG has no alpha; name the output .png, .tif or .webp, or add --drop alpha"
        )
    if kind in ("jpeg", "webp") and pixel.depth > 8:
        raise JobError(f"{output}: {kind} has 8 bits a sample, the source {pixel.depth}; use .png or .tif")
    is_lossy = kind == "jpeg" or (kind == "webp" and pixel.kind == "yuv")
    return ImageEncoding(format=kind, pixel=pixel, quality=quality or 95, is_lossless=not is_lossy)


def encode_image(
    encoding: ImageEncoding, picture: Picture, planes: Sequence[Plane], meta: StillMeta | None = None
) -> bytes:
    """The still as bytes, with the profile, EXIF and gamma of `meta`."""
    frame = _lay_out(encoding, picture, planes)
    context: Any = av.CodecContext.create(_ENCODERS[encoding.format], "w")
    context.width, context.height, context.pix_fmt = frame.width, frame.height, frame.format.name
    context.time_base = Fraction(1, 25)
    context.thread_count = 1
    context.options = _still_options(encoding)
    if encoding.format == "jpeg":
        context.color_range = 2
    frame.pts = 0
    try:
        packets = [*context.encode(frame), *context.encode(None)]
    except (av.FFmpegError, ValueError) as exc:
        raise BackendError(f"{encoding.format} encoder: {frame.format.name} failed ({reason(exc)})") from exc
    data = b"".join(bytes(packet) for packet in packets)
    return add_meta(encoding.format, data, meta) if meta is not None else data


def write_image(
    path: Path | str,
    picture: Picture,
    planes: Sequence[Plane],
    meta: StillMeta | None = None,
    *,
    encoding: ImageEncoding | None = None,
) -> None:
    """Write one still under a temporary name, then rename."""
    path = Path(path)
    data = encode_image(encoding or resolve_image_encoding(path, picture), picture, planes, meta)
    write_then_rename(path, data)


def write_then_rename(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as exc:
        raise disk_error(path, exc) from exc


def disk_error(path: Path, exc: OSError) -> Exception:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpaceError(f"{path}: the disk is full; free space and call again")
    return BackendError(f"{path}: cannot be written ({exc.strerror})")


def _still_options(encoding: ImageEncoding) -> dict[str, str]:
    if encoding.format == "png":
        return {"pred": "mixed", "compression_level": "6"}
    if encoding.format == "tiff":
        return {"compression_algo": "deflate"}
    if encoding.format == "exr":
        return {"compression": "zip16"}
    if encoding.format == "webp":
        return {"lossless": "1"} if encoding.is_lossless else {"quality": str(encoding.quality)}
    # FFmpeg's JPEG scale goes from 1 (best) to 31; 118 is its unit.
    step = max(1, round(1 + (100 - encoding.quality) * 0.3))
    return {"flags": "+qscale+bitexact", "global_quality": str(118 * step), "qmin": "1", "huffman": "optimal"}


def _lay_out(encoding: ImageEncoding, picture: Picture, planes: Sequence[Plane]) -> av.VideoFrame:
    """FFmpeg's frame in a layout that the encoder takes; samples are only moved where it has one for them."""
    form, kind = picture.pixel, encoding.format
    if kind == "exr":
        return _planar_frame(form.name, picture, planes)
    if kind == "jpeg":
        return _for_jpeg(picture, planes)
    if kind == "webp" and form.kind == "yuv":
        return _convert(picture, planes, "yuva420p" if form.has_alpha else "yuv420p")
    if form.kind == "yuv":
        deep = "64" if form.has_alpha else "48"
        name = ("rgba" if form.has_alpha else "rgb") + (
            deep if form.depth > 8 else "" if form.has_alpha else "24"
        )
        suffix = ("be" if kind == "png" else "le") if form.depth > 8 else ""
        return _convert(picture, planes, name + suffix)
    return _pack_frame(kind, picture, _widen(form, planes))


def _widen(form: PixelFormat, planes: Sequence[Plane]) -> list[NDArray[Any]]:
    """9 to 14 bits stretched to 16, reversibly; 8 and 16 as they are."""
    if form.depth in (8, 16):
        return [np.asarray(plane) for plane in planes]
    top = (1 << form.depth) - 1
    return [((plane.astype(np.uint32) * 65535 + top // 2) // top).astype(np.uint16) for plane in planes]


def _pack_frame(kind: StillFormat, picture: Picture, planes: list[NDArray[Any]]) -> av.VideoFrame:
    form = picture.pixel
    is_deep = form.depth > 8
    if kind == "webp":
        order, name = "bgra", "bgra"
        if form.kind == "grey":
            planes = [planes[0], planes[0], planes[0], *planes[1:]]
    else:
        order = {"grey": "y", "rgb": "rgb"}[form.kind] + ("a" if form.has_alpha else "")
        base = (
            {"y": "gray16", "ya": "ya16", "rgb": "rgb48", "rgba": "rgba64"}
            if is_deep
            else {"y": "gray", "ya": "ya8", "rgb": "rgb24", "rgba": "rgba"}
        )
        name = base[order] + (("be" if kind == "png" else "le") if is_deep else "")
    by_letter = dict(zip("gbra" if len(planes) > 2 else "ya", planes, strict=False))
    by_letter.setdefault("a", np.full(planes[0].shape, 255, planes[0].dtype))
    dtype = np.dtype(np.uint16).newbyteorder(">" if kind == "png" else "<") if is_deep else np.dtype(np.uint8)
    frame = av.VideoFrame(picture.width, picture.height, name)
    rows = _rows(frame, 0, dtype, len(order))
    for position, letter in enumerate(order):
        rows[:, position :: len(order)] = by_letter[letter]
    return frame


def _planar_frame(name: str, picture: Picture, planes: Sequence[Plane]) -> av.VideoFrame:
    frame = av.VideoFrame(picture.width, picture.height, name)
    for number, plane in enumerate(planes):
        _rows(frame, number, plane.dtype, 1)[...] = plane
    colour = picture.colour
    frame.colorspace, frame.color_range = colour.matrix, 2 if colour.is_full_range else 1
    return frame


def _rows(frame: av.VideoFrame, number: int, dtype: Any, samples: int) -> NDArray[Any]:
    plane = frame.planes[number]
    buffer: NDArray[Any] = np.frombuffer(memoryview(plane), dtype=dtype)
    per_row = plane.line_size // np.dtype(dtype).itemsize
    return buffer[: per_row * plane.height].reshape(plane.height, per_row)[:, : plane.width * samples]


def _for_jpeg(picture: Picture, planes: Sequence[Plane]) -> av.VideoFrame:
    form, colour = picture.pixel, picture.colour
    if form.kind == "grey":
        neutral = np.full_like(planes[0], 128)
        shape = replace(picture, pixel=pixel_format("yuv444p"))
        return _planar_frame("yuvj444p", shape, [planes[0], neutral, neutral])
    names = {"yuv420p": "yuvj420p", "yuv422p": "yuvj422p", "yuv444p": "yuvj444p"}
    if form.name in names and colour.is_full_range and colour.matrix in (2, 5, 6):
        frame = _planar_frame(names[form.name], picture, planes)
        frame.color_range = 2
        return frame
    return _convert(picture, planes, names.get(form.name, "yuvj444p"))


def _convert(picture: Picture, planes: Sequence[Plane], name: str) -> av.VideoFrame:
    """By swscale with named flags and matrices: only where a still format lacks the picture's own layout."""
    colour = picture.colour
    source = _planar_frame(picture.pixel.name, picture, planes)
    matrix = colour.decoding_matrix(picture.height)
    to_matrix = 5 if name.startswith("yuv") else matrix
    is_full = name.startswith("yuvj") or not name.startswith("yuv")
    if name == picture.pixel.name and matrix in (5, 6) and not colour.is_full_range:
        return source
    return source.reformat(
        format=name,
        interpolation=_EXACT_SCALING,
        src_colorspace=matrix if picture.pixel.kind == "yuv" else None,
        dst_colorspace=to_matrix,
        src_color_range=2 if colour.is_full_range else 1,
        dst_color_range=2 if is_full else 1,
    )


def still_picture(output: str | os.PathLike[str], picture: Picture) -> Picture:
    """How frames like `picture` must be laid out for stills named like `output`, so that none is converted.

    PNG and TIFF hold RGB and grey; JPEG full-range BT.601 YUV; WebP either; EXR floating point.
    """
    suffix = Path(output).suffix.lower()
    form, kind = picture.pixel, SUFFIXES.get(suffix, "png")
    if kind == "jpeg" and form.kind != "grey" and not form.has_alpha:
        name = form.name if form.name in ("yuv420p", "yuv422p", "yuv444p") else "yuv444p"
        siting: Literal["center", "unspecified"] = "unspecified" if name == "yuv444p" else "center"
        colour = replace(picture.colour, matrix=5, is_full_range=True, is_range_tagged=True, siting=siting)
        return replace(picture, pixel=pixel_format(name), colour=colour)
    if kind == "webp" and form.name in ("yuv420p", "yuva420p"):
        colour = replace(picture.colour, matrix=5, is_full_range=False, is_range_tagged=True, siting="center")
        return replace(picture, colour=colour)
    if form.kind == "grey" or (form.kind == "rgb" and form.depth in (8, 16, 32)):
        return picture
    base = "gbrap" if form.has_alpha else "gbrp"
    pixel = pixel_format(base if form.depth == 8 else f"{base}16le")
    colour = replace(picture.colour, matrix=0, is_full_range=True, is_range_tagged=True, siting="unspecified")
    return replace(picture, pixel=pixel, colour=colour)
