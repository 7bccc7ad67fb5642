"""The size of a still by its header alone, so that a small body cannot ask for a huge picture or profile."""

from __future__ import annotations

import struct
import zlib

from vsr_hpc.serving.refusals import Refusal
from vsr_hpc.serving.request import Content

_MAX_INFLATED_BYTES = 16 << 20
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def still_size(content: Content, body: bytes) -> tuple[int, int]:
    """(width, height) as the header says it; 422 where there is no whole header."""
    try:
        size = {"png": _png, "jpeg": _jpeg, "webp": _webp}[content](body)
    except (struct.error, IndexError, ValueError) as exc:
        raise Refusal(422, "media", f"this {content} is damaged: its header cannot be read") from exc
    if not size[0] or not size[1]:
        raise Refusal(422, "media", f"this {content} is damaged: it says {size[0]}x{size[1]} pixels")
    return size


def _png(body: bytes) -> tuple[int, int]:
    size: tuple[int, int] | None = None
    at, room = 8, _MAX_INFLATED_BYTES
    while at + 12 <= len(body):
        length, kind = struct.unpack_from(">I4s", body, at)
        chunk = body[at + 8 : at + 8 + length]
        if kind == b"IHDR" and size is None:  # as decoders do; a later one, behind IEND, says nothing
            size = struct.unpack(">II", chunk[:8])
        elif kind in (b"iCCP", b"zTXt"):
            room -= _inflated_bytes(chunk, room)
        at += 12 + length
    return size or (0, 0)


def _inflated_bytes(chunk: bytes, room: int) -> int:
    """How large a packed profile or text is, found out with a bound: 6 MB of deflate can hold 6 GB."""
    _, _, packed = chunk.partition(b"\0")
    inflater = zlib.decompressobj()
    try:
        found = len(inflater.decompress(packed[1:], room + 1))
    except zlib.error as exc:
        raise Refusal(422, "media", "this png is damaged: its profile or text cannot be read") from exc
    if found > room:
        raise Refusal(
            422, "media", f"this png carries more than {_MAX_INFLATED_BYTES} bytes of profiles and text"
        )
    return found


def _jpeg(body: bytes) -> tuple[int, int]:
    at = 2
    while at + 4 <= len(body):
        if body[at] != 0xFF:
            raise ValueError("no marker")
        marker = body[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in _START_OF_FRAME:
            height, width = struct.unpack_from(">HH", body, at + 5)
            return width, height
        if marker == 0xDA:
            break
        (length,) = struct.unpack_from(">H", body, at + 2)
        at += 2 + length
    raise ValueError("no frame header")


def _webp(body: bytes) -> tuple[int, int]:
    """Of the picture itself, and of the canvas where there is one: the larger counts."""
    at, width, height = 12, 0, 0
    while at + 8 <= len(body):
        kind, length = struct.unpack_from("<4sI", body, at)
        size = (0, 0)
        if kind == b"VP8X":
            size = (
                int.from_bytes(body[at + 12 : at + 15], "little") + 1,
                int.from_bytes(body[at + 15 : at + 18], "little") + 1,
            )
        elif kind == b"VP8L":
            (bits,) = struct.unpack_from("<I", body, at + 9)
            size = ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        elif kind == b"VP8 ":
            w, h = struct.unpack_from("<HH", body, at + 14)
            size = (w & 0x3FFF, h & 0x3FFF)
        width, height = max(width, size[0]), max(height, size[1])
        at += 8 + length + (length & 1)
    return width, height
