"""What FFmpeg keeps to itself about containers: MP4 edit lists and crops, and files that were cut off."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_MAX_BOXES = 20_000
_MAX_DEPTH = 8
_MATROSKA_HEAD = 1 << 18
_FOLDERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One entry of an MP4 edit list. `media_time` -1 is an empty edit (a delay)."""

    duration: int
    media_time: int
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """What one MP4 track says about itself, by its track id (FFmpeg's stream id)."""

    id: int
    edits: tuple[Edit, ...] = ()
    samples: int = 0
    has_crop: bool = False

    @property
    def has_plain_edits(self) -> bool:
        """No edits, or at most empty ones and then a single media edit at rate 1."""
        rest = [each for each in self.edits if each.media_time >= 0]
        leading = all(each.media_time < 0 for each in self.edits[: len(self.edits) - 1])
        return not self.edits or (len(rest) <= 1 and leading and all(each.rate == 1 for each in rest))


def cut_off(file: BinaryIO) -> tuple[int, int] | None:
    """(bytes there, bytes that the outermost boxes promise) of an MP4, Matroska or AVI that ends early."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    promised = 0
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        promised = max((start + length for _, start, length in _boxes(file, 0, size)), default=0)
    elif head[:4] == b"RIFF":
        promised = struct.unpack("<I", head[4:8])[0] + 8
        promised = promised if promised < 0xFFFFFF00 else 0
    elif head[:4] == b"\x1a\x45\xdf\xa3":
        promised = _matroska_end(file)
    return (size, promised) if promised > size else None


def mp4_tracks(file: BinaryIO) -> tuple[Track, ...]:
    """The tracks of an MP4 or MOV file; nothing for other containers or where boxes make no sense."""
    size = file.seek(0, os.SEEK_END)
    file.seek(4)
    if file.read(4) not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return ()
    tracks: list[Track] = []
    for kind, start, length in _walk(file, 0, size):
        if kind == b"trak":
            tracks.append(_track(file, start + 8, start + length))
    return tuple(tracks)


def matroska_crops(file: BinaryIO) -> frozenset[int]:
    """Indices of the tracks that ask players to crop the picture (PixelCrop elements above 0)."""
    file.seek(0)
    head = file.read(_MATROSKA_HEAD)
    if head[:4] != b"\x1a\x45\xdf\xa3":
        return frozenset()
    found: set[int] = set()
    for name, start, stop in _elements(head, 0, len(head)):
        if name != b"\x18\x53\x80\x67":
            continue
        for inner, inner_start, inner_stop in _elements(head, start, stop):
            if inner == b"\x16\x54\xae\x6b":
                entries = [each for each in _elements(head, inner_start, inner_stop) if each[0] == b"\xae"]
                found |= {i for i, each in enumerate(entries) if _is_cropped(head, each[1], each[2])}
    return frozenset(found)


def _is_cropped(data: bytes, start: int, stop: int, depth: int = 1) -> bool:
    for name, inner_start, inner_stop in _elements(data, start, stop):
        is_video = name == b"\xe0" and depth < _MAX_DEPTH
        if is_video and _is_cropped(data, inner_start, inner_stop, depth + 1):
            return True
        if name in (b"\x54\xaa", b"\x54\xbb", b"\x54\xcc", b"\x54\xdd") and any(data[inner_start:inner_stop]):
            return True
    return False


def _elements(data: bytes, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """(id, start, stop) of EBML elements in data[start:stop]; sizes that are unknown reach to the end."""
    at = start
    for _ in range(_MAX_BOXES):
        if at >= stop or data[at] == 0:
            return
        id_length = 9 - data[at].bit_length()
        size, used = _vint(data, at + id_length)
        begin = at + id_length + used
        end = stop if size < 0 else min(begin + size, stop)
        yield data[at : at + id_length], begin, end
        at = end


def _track(file: BinaryIO, start: int, stop: int) -> Track:
    number, samples, has_crop = 0, 0, False
    edits: tuple[Edit, ...] = ()
    for kind, at, length in _walk(file, start, stop):
        file.seek(at + 8)
        if kind == b"tkhd":
            body = file.read(min(length - 8, 32))
            offset = 20 if body[:1] == b"\x01" else 12
            number = int.from_bytes(body[offset : offset + 4], "big")
        elif kind == b"elst":
            edits = _edits(file.read(min(length - 8, 1 << 20)))
        elif kind == b"stsz":
            samples = int.from_bytes(file.read(12)[8:12], "big")
        elif kind == b"stsd":
            has_crop = _has_crop(file.read(min(length - 8, 1 << 16)))
    return Track(id=number, edits=edits, samples=samples, has_crop=has_crop)


def _has_crop(description: bytes) -> bool:
    """A clean aperture (clap) that is not the whole picture; QuickTime writes whole ones too."""
    at = description.find(b"clap")
    if at < 0 or len(description) < max(at + 36, 44):
        return False
    width, height = struct.unpack_from(">HH", description, 40)
    fields = struct.unpack_from(">IIIIiIiI", description, at + 4)
    shown = (fields[0], fields[2]) == (width * fields[1], height * fields[3])
    return not shown or any((fields[4], fields[6]))


def _edits(body: bytes) -> tuple[Edit, ...]:
    if len(body) < 8:
        return ()
    form = ">QqhH" if body[0] == 1 else ">IihH"
    step = struct.calcsize(form)
    count = min(int.from_bytes(body[4:8], "big"), (len(body) - 8) // step)
    entries = (struct.unpack_from(form, body, 8 + i * step) for i in range(count))
    return tuple(
        Edit(duration=duration, media_time=media_time, rate=whole + part / 65536)
        for duration, media_time, whole, part in entries
    )


def _walk(file: BinaryIO, start: int, stop: int, depth: int = 1) -> Iterator[tuple[bytes, int, int]]:
    """Boxes in document order; `trak` is yielded and not entered, other folders are.

    So are folders deeper than any sound file has them.
    """
    for kind, at, length in _boxes(file, start, stop):
        if kind in _FOLDERS and kind != b"trak" and depth < _MAX_DEPTH:
            yield from _walk(file, at + 8, min(at + length, stop), depth + 1)
        else:
            yield kind, at, length


def _boxes(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, offset, length) of neighbouring boxes; a length may reach past `stop`, which ends it."""
    at = start
    for _ in range(_MAX_BOXES):
        if at + 8 > stop:
            return
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:
            length = stop - at
        if length < 8 or not all(32 <= each < 127 or each == 0xA9 for each in kind):
            return
        yield kind, at, length
        at += length


def _matroska_end(file: BinaryIO) -> int:
    """Where the Segment element says that it ends; 0 where it doesn't (live recordings)."""
    file.seek(0)
    head = file.read(4096)
    size, used = _vint(head, 4)
    at = 4 + used + max(0, size)
    if head[at : at + 4] != b"\x18\x53\x80\x67":
        return 0
    size, used = _vint(head, at + 4)
    return 0 if size < 0 else at + 4 + used + size


def _vint(data: bytes, at: int) -> tuple[int, int]:
    """(value, bytes used) of an EBML size; value -1 is "unknown"."""
    if at >= len(data) or data[at] == 0:
        return -1, 1
    length = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + length], "big") & ((1 << (7 * length)) - 1)
    return (-1 if value == (1 << (7 * length)) - 1 else value), length
