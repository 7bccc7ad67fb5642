"""What a still carries beside its samples (ICC profile, EXIF, PNG's gamma), read and put back as bytes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

_KEPT_CHUNKS = (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"pHYs", b"tEXt", b"zTXt", b"iTXt")
_COLOUR_CHUNKS = (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"iCCP", b"eXIf", b"pHYs")
_PACKED_CHUNKS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"eXIf")
_LARGEST_ICC = 16 << 20
_EXIF = b"Exif\0\0"
_ICC = b"ICC_PROFILE\0"
_ICC_PART = 65000
_TAG_ORIENTATION, _TAG_ICC = 274, 34675
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
# EXIF orientation: (a, b, c, d) of the matrix that shows the picture upright.
_UPRIGHT = {
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StillMeta:
    """Kept as it came; `refusal` says why a still cannot be read. Orientation is carried, never applied."""

    format: str
    icc: bytes | None = None
    exif: bytes | None = None
    orientation: int = 1
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    has_alpha: bool = True
    refusal: str = ""

    def display_matrix(self, width: int, height: int) -> tuple[int, ...] | None:
        """The same turn as a video's display matrix; None where there is none."""
        if self.orientation not in _UPRIGHT:
            return None
        a, b, c, d = _UPRIGHT[self.orientation]
        x = width if a < 0 else height if c < 0 else 0
        y = height if d < 0 else width if b < 0 else 0
        one = 1 << 16
        return (a * one, b * one, 0, c * one, d * one, 0, x * one, y * one, 1 << 30)


def read_meta(kind: str, data: bytes) -> StillMeta:
    """ValueError or IndexError where the container of the still is damaged."""
    try:
        return {"png": _png, "jpeg": _jpeg, "webp": _webp, "tiff": _tiff}.get(kind, _nothing)(data)
    except (struct.error, zlib.error) as exc:
        raise ValueError(str(exc)) from exc


def add_meta(kind: str, data: bytes, meta: StillMeta) -> bytes:
    """The encoded still with profile, EXIF and gamma put in; formats without a place for one go without."""
    put = {"png": _into_png, "jpeg": _into_jpeg, "webp": _into_webp, "tiff": _into_tiff}.get(kind)
    return data if put is None else put(data, meta)


def _nothing(data: bytes) -> StillMeta:
    return StillMeta(format="exr")


# --- PNG
def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        yield kind, data[at + 8 : at + 8 + size]
        at += 12 + size


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(data: bytes) -> StillMeta:
    found = list(_chunks(data))
    kinds = {kind for kind, _ in found}
    if not found or found[0][0] != b"IHDR":
        raise ValueError("no header chunk")
    header = found[0][1]
    profile = next((body for kind, body in found if kind == b"iCCP"), None)
    exif = next((body for kind, body in found if kind == b"eXIf"), None)
    return StillMeta(
        format="png",
        icc=None if profile is None else _inflate(profile[profile.index(b"\0") + 2 :]),
        exif=exif,
        orientation=_exif_orientation(exif),
        chunks=tuple((kind, body) for kind, body in found if kind in _KEPT_CHUNKS),
        has_alpha=header[9] in (4, 6) or b"tRNS" in kinds,
        refusal="is an animated PNG; convert it to a video or a folder first" if b"acTL" in kinds else "",
    )


def _inflate(packed: bytes) -> bytes:
    inflater = zlib.decompressobj()
    found = inflater.decompress(packed, _LARGEST_ICC)
    if not inflater.eof:
        raise ValueError(f"its colour profile is cut off or larger than {_LARGEST_ICC >> 20} MiB")
    return found


def remove_packed_chunks(data: bytes) -> bytes:
    """A PNG for a decoder that would inflate each of them, however large they get; pixels are the same."""
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind not in _PACKED_CHUNKS:
            kept.append(data[at : at + 12 + size])
        at += 12 + size
    return b"".join(kept)


def _into_png(data: bytes, meta: StillMeta) -> bytes:
    found = [(kind, body) for kind, body in _chunks(data) if kind not in _COLOUR_CHUNKS]
    extra = [(kind, body) for kind, body in meta.chunks if kind in _KEPT_CHUNKS]
    if meta.icc is not None:
        extra = [(kind, body) for kind, body in extra if kind not in (b"sRGB", b"cICP")]
        extra.append((b"iCCP", b"ICC\0\0" + zlib.compress(meta.icc, 9)))
    exif = _exif_of(meta)
    if exif is not None:
        extra.append((b"eXIf", exif))
    return data[:8] + b"".join(_chunk(*each) for each in [found[0], *extra, *found[1:]])


# --- JPEG
def _segments(data: bytes) -> Iterator[tuple[int, bytes, int, int]]:
    """(marker, body, start, stop) up to the scan."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        (size,) = struct.unpack_from(">H", data, at + 2)
        yield marker, data[at + 4 : at + 2 + size], at, at + 2 + size
        if marker == 0xDA:
            return
        at += 2 + size


def _jpeg(data: bytes) -> StillMeta:
    exif, parts, refusal = None, {}, ""
    for marker, body, _, _ in _segments(data):
        if marker == 0xE1 and body.startswith(_EXIF):
            exif = body[len(_EXIF) :]
        elif marker == 0xE2 and body.startswith(_ICC):
            parts[body[len(_ICC)]] = body[len(_ICC) + 2 :]
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and body[5] == 4:
            refusal = "is a CMYK JPEG; convert it to RGB first"
    return StillMeta(
        format="jpeg",
        icc=b"".join(parts[number] for number in sorted(parts)) or None,
        exif=exif,
        orientation=_exif_orientation(exif),
        has_alpha=False,
        refusal=refusal,
    )


def _into_jpeg(data: bytes, meta: StillMeta) -> bytes:
    extra = b""
    exif = _exif_of(meta)
    if exif is not None and len(exif) < 65000:
        extra += b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + _EXIF + exif
    if meta.icc is not None:
        parts = [meta.icc[at : at + _ICC_PART] for at in range(0, len(meta.icc), _ICC_PART)]
        for number, part in enumerate(parts, 1):
            body = _ICC + bytes([number, len(parts)]) + part
            extra += b"\xff\xe2" + struct.pack(">H", len(body) + 2) + body
    first = next(_segments(data), None)
    place = first[3] if first is not None and first[0] == 0xE0 else 2  # JFIF's own segment stays first
    return data[:place] + extra + data[place:]


# --- WebP
def _riff(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        yield kind, data[at + 8 : at + 8 + size]
        at += 8 + size + (size & 1)


def _webp(data: bytes) -> StillMeta:
    found = dict(_riff(data))
    exif = found.get(b"EXIF")
    if exif is not None and exif.startswith(_EXIF):
        exif = exif[len(_EXIF) :]
    has_alpha = b"ALPH" in found
    if b"VP8L" in found:
        has_alpha = bool(struct.unpack_from("<I", found[b"VP8L"], 1)[0] >> 28 & 1)
    return StillMeta(
        format="webp",
        icc=found.get(b"ICCP"),
        exif=exif,
        orientation=_exif_orientation(exif),
        has_alpha=has_alpha,
        refusal="is an animated WebP; convert it to a video or a folder first" if b"ANIM" in found else "",
    )


def _into_webp(data: bytes, meta: StillMeta) -> bytes:
    exif = _exif_of(meta)
    if meta.icc is None and exif is None:
        return data
    found = [(kind, body) for kind, body in _riff(data) if kind not in (b"VP8X", b"ICCP", b"EXIF")]
    width, height, alpha = _webp_size(dict(found))
    flags = (0x20 if meta.icc is not None else 0) | (0x10 if alpha else 0) | (0x08 if exif is not None else 0)
    head = struct.pack("<I", flags) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = [(b"VP8X", head)]
    if meta.icc is not None:
        chunks.append((b"ICCP", meta.icc))
    chunks += found
    if exif is not None:
        chunks.append((b"EXIF", exif))
    body = b"".join(
        kind + struct.pack("<I", len(each)) + each + b"\0" * (len(each) & 1) for kind, each in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _webp_size(found: dict[bytes, bytes]) -> tuple[int, int, bool]:
    if b"VP8L" in found:
        (bits,) = struct.unpack_from("<I", found[b"VP8L"], 1)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits >> 28 & 1)
    width, height = struct.unpack_from("<HH", found[b"VP8 "], 6)
    return width & 0x3FFF, height & 0x3FFF, b"ALPH" in found


# --- TIFF and EXIF, which is a small TIFF
def _directory(data: bytes) -> tuple[str, dict[int, tuple[int, int, bytes]], int]:
    """(byte order, tags of the first directory as (type, count, value), offset of the next directory)."""
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    tags = {}
    for number in range(count):
        tag, kind, items, value = struct.unpack_from(order + "HHI4s", data, at + 2 + 12 * number)
        size = _TYPE_SIZES.get(kind, 1) * items
        if size > 4:
            (offset,) = struct.unpack(order + "I", value)
            value = data[offset : offset + size]
        tags[tag] = (kind, items, value[:size] if size <= 4 else value)
    (following,) = struct.unpack_from(order + "I", data, at + 2 + 12 * count)
    return order, tags, following


def _orientation(order: str, tags: dict[int, tuple[int, int, bytes]]) -> int:
    if _TAG_ORIENTATION not in tags or len(tags[_TAG_ORIENTATION][2]) < 2:
        return 1
    return int(struct.unpack_from(order + "H", tags[_TAG_ORIENTATION][2])[0])


def _exif_orientation(exif: bytes | None) -> int:
    if exif is None:
        return 1
    try:
        order, tags, _ = _directory(exif)
    except (struct.error, KeyError):
        return 1  # EXIF that cannot be read is carried all the same
    return _orientation(order, tags)


def _exif_of(meta: StillMeta) -> bytes | None:
    """The EXIF block; where only an orientation is known, the smallest block that says it."""
    if meta.exif is not None or meta.orientation == 1:
        return meta.exif
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, _TAG_ORIENTATION, 3, 1, meta.orientation, 0, 0)


def _tiff(data: bytes) -> StillMeta:
    order, tags, following = _directory(data)
    samples = struct.unpack_from(order + "H", tags[277][2])[0] if 277 in tags else 1
    return StillMeta(
        format="tiff",
        icc=tags[_TAG_ICC][2] if _TAG_ICC in tags else None,
        orientation=_orientation(order, tags),
        has_alpha=samples in (2, 4),
        refusal="has several pages; split it into files first" if following else "",
    )


def _into_tiff(data: bytes, meta: StillMeta) -> bytes:
    """FFmpeg's file with a new directory at its end that also holds profile and orientation."""
    order, tags, _ = _directory(data)
    if meta.icc is not None:
        tags[_TAG_ICC] = (7, len(meta.icc), meta.icc)
    if meta.orientation != 1:
        tags[_TAG_ORIENTATION] = (3, 1, struct.pack(order + "H", meta.orientation))
    body = data + b"\0" * (len(data) & 1)
    entries = b""
    for tag, (kind, items, value) in sorted(tags.items()):
        if len(value) > 4:
            offset = len(body)
            body += value + b"\0" * (len(value) & 1)
            value = struct.pack(order + "I", offset)
        entries += struct.pack(order + "HHI", tag, kind, items) + value.ljust(4, b"\0")
    directory = struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", 0)
    return body[:4] + struct.pack(order + "I", len(body)) + body[8:] + directory
