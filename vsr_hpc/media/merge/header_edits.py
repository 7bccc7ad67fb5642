"""The few header fields that PyAV cannot set, written by hand: MP4 boxes and Matroska elements.

Everything here rewrites headers only. MP4 templates are edited in memory, where they may grow; a Matroska
file is edited in place, in room that a padded track name reserved.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd
from pathlib import Path
from typing import BinaryIO

from vsr_hpc.errors import BackendError
from vsr_hpc.media.picture import Mastering

# --- MP4
_PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
_NO_LANGUAGE = b"\x7f\xff"
_LANGUAGE_OFFSET = {0: 20, 1: 32}  # inside the body of mdhd, by its version
_MATRIX_OFFSET = {0: 40, 1: 52}  # ISO/IEC 14496-12, 8.3.2: inside the body of tkhd, by its version


def add_track_header(
    mp4: bytes,
    *,
    display_matrix: tuple[int, ...] | None,
    mastering: Mastering | None,
    light_level: tuple[int, int] | None,
) -> bytes:
    """A one-track MP4 or MOV whose header also carries rotation and static HDR10; `moov` must come last."""
    extra = b""
    if mastering is not None:
        m = mastering
        extra += _box(
            b"mdcv",
            struct.pack(">8H2I", *m.green, *m.blue, *m.red, *m.white, m.max_luminance, m.min_luminance),
        )
    if light_level is not None:
        extra += _box(b"clli", struct.pack(">2H", *light_level))
    return b"".join(_edit_box(kind, body, display_matrix, extra) for kind, body in _boxes(mp4))


def _box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body) + 8, kind) + body


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start)
            start += 8
        stop = at + size if size else len(data)
        yield kind, data[start:stop]
        at = stop


def _edit_box(kind: bytes, body: bytes, matrix: tuple[int, ...] | None, extra: bytes) -> bytes:
    if kind == b"tkhd" and matrix is not None:
        at = _MATRIX_OFFSET[body[0]]
        body = body[:at] + struct.pack(">9i", *matrix) + body[at + 36 :]
    elif kind == b"stsd":
        (entry_kind, entry), *_ = _boxes(body[8:])
        body = body[:8] + _box(entry_kind, entry + extra)
    elif kind in _PARENTS:
        body = b"".join(_edit_box(inner, each, matrix, extra) for inner, each in _boxes(body))
    return _box(kind, body)


def remove_other_location(path: Path, location: str) -> None:
    """Hide the 3GPP place (loci) that FFmpeg writes beside a location tag where it says something else.

    It rounds degrees and metres to 1/65536, and readers prefer it to the tag.
    """
    with path.open("r+b") as file:
        for at, start, end in _find_boxes(file, b"loci", (b"moov", b"udta")):
            file.seek(start)
            if _place_of(file.read(end - start)) != location:
                file.seek(at + 4)
                file.write(b"free")


def _place_of(loci: bytes) -> str:
    """The text that FFmpeg reads from a 3GPP place."""
    name_end = loci.find(b"\0", 6)
    if name_end < 0 or name_end + 14 > len(loci):
        return ""
    longitude, latitude, altitude = (each / 65536 for each in struct.unpack_from(">3i", loci, name_end + 2))
    height = f"{altitude:+f}" if altitude else ""
    return f"{latitude:+08.4f}{longitude:+09.4f}{height}/{loci[6:name_end].decode('utf-8', 'replace')}"


def edit_mov_languages(path: Path, languages: Sequence[str]) -> None:
    """Write languages, one for each track, where the muxer left them open: it knows few of QuickTime's codes.

    Any three-letter code may stand there packed into 15 bits, as in MP4.
    """
    with path.open("r+b") as file:
        # tracks of the muxer's own (chapters, timecode) follow those that are named
        for name, at in zip(languages, _language_places(file), strict=False):
            file.seek(at)
            is_open = file.read(2) == _NO_LANGUAGE
            if is_open and len(name) == 3 and all("a" <= letter <= "z" for letter in name):
                first, second, third = (ord(letter) - 0x60 for letter in name)
                file.seek(at)
                file.write(struct.pack(">H", first << 10 | second << 5 | third))


def _language_places(file: BinaryIO) -> Iterator[int]:
    """Where each track's language stands in a file."""
    for _, start, _ in _find_boxes(file, b"mdhd", (b"moov", b"trak", b"mdia")):
        file.seek(start)
        yield start + _LANGUAGE_OFFSET[file.read(1)[0]]


def _find_boxes(file: BinaryIO, kind: bytes, folders: tuple[bytes, ...]) -> Iterator[tuple[int, int, int]]:
    """(box, body, end) of each box of a kind, in document order, inside these folders alone."""
    waiting = [(0, file.seek(0, 2))]
    while waiting:
        at, stop = waiting.pop()
        while at + 8 <= stop:
            file.seek(at)
            size, found = struct.unpack(">I4s", file.read(8))
            start = at + 8
            if size == 1:
                (size,) = struct.unpack(">Q", file.read(8))
                start += 8
            end = at + size if size else stop
            if found == kind:
                yield at, start, end
            elif found in folders:
                waiting.append((end, stop))
                at, stop = start, end
                continue
            at = end


# --- Matroska
_SEGMENT, _TRACKS, _TRACK, _CLUSTER = 0x18538067, 0x1654AE6B, 0xAE, 0x1F43B675
_CRC, _VOID, _NAME, _VIDEO, _COLOUR = 0xBF, 0xEC, 0x536E, 0xE0, 0x55B0
_DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT = 0x54B0, 0x54BA, 0x54B2
_STEREO_MODE, _SIDE_BY_SIDE, _ABOVE_EACH_OTHER = 0x53B8, (1, 8, 9, 11), (2, 3, 6, 7)
_SITING_HORIZONTAL, _SITING_VERTICAL, _CODEC_DELAY, _CODEC_ID = 0x55B7, 0x55B8, 0x56AA, 0x86
_SITING = {"left": (1, 2), "center": (2, 2), "topleft": (1, 1), "top": (2, 1)}

NAME_PADDING = " " * 48
"""Append it to the name of a track that will be edited: it is the room for the new elements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackEdit:
    """What to write into one track's header; None leaves a field as it is."""

    sample_aspect: Fraction | None = None
    size: tuple[int, int] = (0, 0)
    siting: str = "unspecified"
    codec_delay_ns: int | None = None
    codec_id: str | None = None


def edit_matroska_tracks(file: BinaryIO, edits: dict[int, TrackEdit]) -> None:
    """Edit the headers of tracks (by position, from 0) in place and give their padded names back."""
    start, size = _find_tracks(file)
    file.seek(start)
    elements = list(_elements(file.read(size)))
    checksum = next((i for i, (each, _) in enumerate(elements) if each == _CRC), None)
    position = 0
    for i, (each, payload) in enumerate(elements):
        if each == _TRACK:
            if position in edits:
                elements[i] = (each, _edit_track(payload, edits[position]))
            position += 1
    if checksum is not None:
        rest = b"".join(_element(*each) for i, each in enumerate(elements) if i != checksum)
        elements[checksum] = (_CRC, struct.pack("<I", zlib.crc32(rest)))
    body = b"".join(_element(*each) for each in elements)
    if len(body) > size:
        raise BackendError(f"Matroska tracks of {size} bytes cannot be edited in place to {len(body)} bytes")
    file.seek(start)
    file.write(_fill(body, size))


def edit_matroska_file(path: Path, edits: dict[int, TrackEdit]) -> None:
    with path.open("r+b") as file:
        edit_matroska_tracks(file, edits)


def has_matroska_tracks(data: bytes | bytearray) -> bool:
    """Whether the beginning of a file holds its track headers whole."""
    try:
        start, size = _find_tracks(io.BytesIO(data))
    except BackendError:
        return False
    return start + size <= len(data)


def _find_tracks(file: BinaryIO) -> tuple[int, int]:
    at = 0
    while True:
        file.seek(at)
        head = file.read(12)
        if len(head) < 12:
            raise BackendError("a Matroska file without track headers cannot be edited")
        kind, id_width = _identifier(head, 0)
        size, size_width = _size(head, id_width)
        start = at + id_width + size_width
        if kind == _TRACKS:
            return start, size
        if kind == _CLUSTER:
            raise BackendError("a Matroska file without track headers cannot be edited")
        at = start if kind == _SEGMENT else start + size


def _edit_track(payload: bytes, edit: TrackEdit) -> bytes:
    children = []
    for kind, body in _elements(payload):
        if kind == _NAME:
            body = body.removesuffix(NAME_PADDING.encode())
            if not body:
                continue
        elif kind == _VIDEO:
            body = _edit_video(body, edit)
        elif kind == _CODEC_ID and edit.codec_id is not None:
            body = edit.codec_id.encode()
        elif kind == _CODEC_DELAY and edit.codec_delay_ns is not None:
            continue
        children.append(_element(kind, body))
    if edit.codec_delay_ns is not None:
        children.append(_element(_CODEC_DELAY, _number(edit.codec_delay_ns)))
    return _fill(b"".join(children), len(payload))


def _fill(body: bytes, size: int) -> bytes:
    """Padded to a size with a Void element, whose own size may be written in one byte or in eight."""
    room = size - len(body)
    if room == 0:
        return body
    if room < 2:
        raise BackendError(f"a Matroska track header lacks {2 - room} bytes of room for an edit")
    head = bytes([_VOID, 0x80 | (room - 2)])
    if room >= 128:
        head = bytes([_VOID, 1]) + (room - 9).to_bytes(7, "big")
    return body + head + bytes(room - len(head))


def _edit_video(body: bytes, edit: TrackEdit) -> bytes:
    children = dict(_elements(body))
    if edit.sample_aspect is not None:
        width, height = display_size(*edit.size, edit.sample_aspect / _views_aspect(children))
        children.pop(_DISPLAY_UNIT, None)
        children[_DISPLAY_WIDTH] = _number(width)
        children[_DISPLAY_HEIGHT] = _number(height)
    if edit.siting in _SITING:
        horizontal, vertical = _SITING[edit.siting]
        colour = dict(_elements(children.get(_COLOUR, b"")))
        colour[_SITING_HORIZONTAL], colour[_SITING_VERTICAL] = _number(horizontal), _number(vertical)
        children[_COLOUR] = b"".join(_element(*each) for each in colour.items())
    return b"".join(_element(*each) for each in children.items())


def _views_aspect(video: dict[int, bytes]) -> Fraction:
    """What FFmpeg multiplies the stated aspect by where a picture holds two views: that of one is stated."""
    mode = int.from_bytes(video.get(_STEREO_MODE, b""), "big")
    return (
        Fraction(2) if mode in _SIDE_BY_SIDE else Fraction(1, 2) if mode in _ABOVE_EACH_OTHER else Fraction(1)
    )


def display_size(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Matroska stores the shown size, not the aspect: a size that gives the aspect exactly."""
    times = aspect.denominator // gcd(width * aspect.numerator, aspect.denominator)
    shown = width * times * aspect.numerator // aspect.denominator, height * times
    if max(shown) < 1 << 16:
        return shown
    wide, high = width * aspect.numerator, height * aspect.denominator
    return wide // gcd(wide, high), high // gcd(wide, high)


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        kind, id_width = _identifier(data, at)
        size, size_width = _size(data, at + id_width)
        start = at + id_width + size_width
        yield kind, data[start : start + size]
        at = start + size


def _width(first: int) -> int:
    if not first:
        raise BackendError("a Matroska header is damaged")
    return 9 - first.bit_length()


def _identifier(data: bytes, at: int) -> tuple[int, int]:
    width = _width(data[at])
    return int.from_bytes(data[at : at + width], "big"), width


def _size(data: bytes, at: int) -> tuple[int, int]:
    width = _width(data[at])
    return int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1), width


def _number(value: int) -> bytes:
    return value.to_bytes(max(1, (value.bit_length() + 7) // 8), "big")


def _element(kind: int, body: bytes) -> bytes:
    width = 1 if len(body) < 127 else 2 if len(body) < 16383 else 4 if len(body) < (1 << 28) - 1 else 8
    return _number(kind) + ((1 << 7 * width) | len(body)).to_bytes(width, "big") + body
