"""The timeline: every frame of a clip with its timestamp, in display order, and how to get there."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vsr_hpc.errors import JobError, MediaError

_MAGIC = b"VSRTL\x01\r\n"
Ticks = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Timeline:
    """Frame i has timestamp `pts[i]` in `time_base`; as many frames as a decode from the start yields.

    `key_pts` and `key_dts` are the packets from which decoding may begin, in display order. `reading` says
    how a range is reached: "seek" to a keyframe's dts, or "scan" from the start. Where `is_synthetic`, the
    file's own timestamps can't be used; `pts` was made up and frames are only counted. Frames in `broken`
    can't be decoded.
    """

    time_base: Fraction
    pts: Ticks
    last_duration: int
    key_pts: Ticks
    key_dts: Ticks
    reading: Literal["seek", "scan"]
    is_synthetic: bool = False
    was_decoded: bool = False
    broken: tuple[int, ...] = ()
    findings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def first(self) -> int:
        return int(self.pts[0])

    @property
    def end(self) -> int:
        """Where the last frame ends, in ticks."""
        return int(self.pts[-1]) + self.last_duration

    @property
    def durations(self) -> Ticks:
        """How long each frame is shown, in ticks: up to the next one, the last one by its own duration."""
        return np.append(np.diff(self.pts), np.int64(self.last_duration))

    @property
    def duration_s(self) -> Fraction:
        return (self.end - self.first) * self.time_base

    def time_of(self, frame: int) -> Fraction:
        """Seconds from the first frame to this one."""
        return (int(self.pts[frame]) - self.first) * self.time_base

    def key_before(self, frame: int) -> int:
        """Index into `key_pts` of the last keyframe at or before a frame; -1 where there is none."""
        return bisect_right(self.key_pts, int(self.pts[frame])) - 1

    def identity(self) -> str:
        """sha256 of what decides output bytes: the timestamps, not how they are reached."""
        digest = hashlib.sha256()
        digest.update(f"{self.time_base} {self.last_duration} {len(self)}\n".encode())
        digest.update(self.pts.astype("<i8").tobytes())
        return digest.hexdigest()

    def to_bytes(self) -> bytes:
        """Magic with version, sizes, JSON header, zlib of deltas, sha256 of all that."""
        header = json.dumps(
            {
                "time_base": [self.time_base.numerator, self.time_base.denominator],
                "frames": len(self),
                "keys": len(self.key_pts),
                "last_duration": self.last_duration,
                "reading": self.reading,
                "is_synthetic": self.is_synthetic,
                "was_decoded": self.was_decoded,
                "broken": self.broken,
                "findings": self.findings,
            },
            separators=(",", ":"),
        ).encode()
        deltas = b"".join(
            np.diff(each, prepend=np.int64(0)).astype("<i8").tobytes()
            for each in (self.pts, self.key_pts, self.key_dts)
        )
        packed = zlib.compress(deltas, 6)
        body = _MAGIC + struct.pack("<II", len(header), len(packed)) + header + packed
        return body + hashlib.sha256(body).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> Timeline:
        body, digest = data[:-32], data[-32:]
        if not data.startswith(_MAGIC[:5]):
            raise MediaError("timeline: these bytes are no timeline")
        if not data.startswith(_MAGIC):
            raise MediaError("timeline: written by another version of vsr_hpc; plan the run again with --new")
        if hashlib.sha256(body).digest() != digest:
            raise MediaError("timeline: damaged (its sha256 does not match); plan the run again with --new")
        header_size, packed_size = struct.unpack_from("<II", body, len(_MAGIC))
        start = len(_MAGIC) + 8
        header: dict[str, Any] = json.loads(body[start : start + header_size])
        packed = body[start + header_size : start + header_size + packed_size]
        frames, keys = header["frames"], header["keys"]
        unpacked = zlib.decompressobj().decompress(packed, 8 * (frames + 2 * keys) + 8)
        deltas = np.frombuffer(unpacked, "<i8").astype(np.int64)
        parts = np.split(deltas, [frames, frames + keys])
        pts, key_pts, key_dts = (np.cumsum(part, dtype=np.int64) for part in parts)
        return cls(
            time_base=Fraction(*header["time_base"]),
            pts=pts,
            last_duration=header["last_duration"],
            key_pts=key_pts,
            key_dts=key_dts,
            reading=header["reading"],
            is_synthetic=header["is_synthetic"],
            was_decoded=header["was_decoded"],
            broken=tuple(header["broken"]),
            findings=tuple(header["findings"]),
        )


_CLOCK = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)s?")
_FRAME = re.compile(r"f(\d+)|(\d+)f")


def parse_position(text: str) -> Fraction | int:
    """A place in a clip: a Fraction of seconds (`90`, `90.5`, `1:30`, `00:01:30.5`) or a frame (`250f`)."""
    text = text.strip()
    if frame := _FRAME.fullmatch(text):
        return int(frame[1] or frame[2])
    clock = _CLOCK.fullmatch(text)
    if clock is None:
        raise JobError(f"'{text}' is no place in a clip; give seconds (90.5), [HH:]MM:SS or a frame (250f)")
    hours, minutes, seconds = clock.groups()
    if minutes is not None and Fraction(seconds) >= 60:
        raise JobError(f"'{text}': seconds go up to 59 after a colon")
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + Fraction(seconds)


def select_range(
    timeline: Timeline, start: Fraction | int | None, stop: Fraction | int | None
) -> tuple[int, int]:
    """Frames [first, last) between two places: ints are frames, Fractions seconds after the first frame.

    The first frame at or after `start` up to, not including, the first one at or after `stop`.
    """
    first = 0 if start is None else _frame_at(timeline, start)
    last = len(timeline) if stop is None else min(len(timeline), _frame_at(timeline, stop))
    if not 0 <= first < last:
        shown = f"{len(timeline)} frames, {float(timeline.duration_s):.3f} s"
        borders = f"{_describe_place(start)} and {_describe_place(stop)}"
        raise JobError(f"no frame lies between {borders}; the clip has {shown}")
    return first, last


def _frame_at(timeline: Timeline, place: Fraction | int) -> int:
    if isinstance(place, int):
        return place
    wanted = timeline.first + place / timeline.time_base
    ticks = -(-wanted.numerator // wanted.denominator)
    return int(np.searchsorted(timeline.pts, ticks, side="left"))


def _describe_place(place: Fraction | int | None) -> str:
    if place is None:
        return "the clip's border"
    return f"frame {place}" if isinstance(place, int) else f"{float(place):.3f} s"
