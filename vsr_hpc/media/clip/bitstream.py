"""The few bits of coded pictures that containers do not tell us."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_H264_IDR = 5
_H264_SLICES = frozenset({1, 2, 5})


def is_hidden(codec: str, packet: Any) -> bool:
    """A VP8 or VP9 packet that only feeds later ones (an alternate reference) and shows nothing itself."""
    if codec == "vp8":
        return not memoryview(packet)[0] >> 4 & 1
    if codec == "vp9":
        view = memoryview(packet)
        first, last = view[0], view[-1]
        if last & 0xE0 == 0xC0:  # a superframe: hidden frames travel with the one that is shown
            return False
        has_long_profile = first >> 4 & 3 == 3
        shift = 2 if has_long_profile else 3
        shows_existing = first >> shift & 1
        return first >> 6 == 2 and not shows_existing and not first >> (shift - 2) & 1
    return False


def is_soft_keyframe(codec: str, extradata: bytes, packet: Any) -> bool:
    """An H.264 keyframe that is no IDR: frames after it may still lean on frames before it."""
    if codec != "h264":
        return False
    for kind in _h264_units(extradata, bytes(memoryview(packet)[: 1 << 20])):
        if kind in _H264_SLICES:
            return kind != _H264_IDR
    return True


def _h264_units(extradata: bytes, data: bytes) -> Iterator[int]:
    """NAL unit types, by length prefixes (MP4, Matroska: avcC extradata) or start codes (anything else)."""
    if extradata[:1] == b"\x01" and len(extradata) > 4:
        prefix, at = (extradata[4] & 3) + 1, 0
        while at + prefix < len(data):
            yield data[at + prefix] & 31
            at += prefix + int.from_bytes(data[at : at + prefix], "big")
        return
    at = data.find(b"\x00\x00\x01")
    while 0 <= at < len(data) - 3:
        yield data[at + 3] & 31
        at = data.find(b"\x00\x00\x01", at + 3)
