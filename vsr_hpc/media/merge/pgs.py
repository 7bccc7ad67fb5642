"""Blu-ray subtitles (PGS) at the beginning of a range: what is on the screen was sent before it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

CODEC = "hdmv_pgs_subtitle"
_COMPOSITION = 0x16
_STATE, _OBJECTS = (
    7,
    10,
)  # offsets in a composition segment: what it needs from before; how many pictures it shows
_NEEDS_NOTHING = 0xC0  # an epoch's start or an acquisition point


class Screen:
    """The packets that a player must have seen to show what is on the screen now."""

    def __init__(self) -> None:
        self._packets: list[Any] = []
        self._is_empty = True

    def note(self, packet: Any) -> None:
        """Take the next packet; those that it makes unnecessary are forgotten."""
        for composition in _compositions(bytes(packet)):
            if composition[_STATE] & _NEEDS_NOTHING:
                self._packets.clear()
            self._is_empty = composition[_OBJECTS] == 0
        self._packets.append(packet)

    def take(self) -> list[Any]:
        """Hand over those packets, once; none where the screen is empty."""
        packets = [] if self._is_empty else self._packets
        self._packets, self._is_empty = [], True
        return packets


def _compositions(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + 3 <= len(data):
        kind, size = struct.unpack_from(">BH", data, at)
        body = data[at + 3 : at + 3 + size]
        if kind == _COMPOSITION and len(body) > _OBJECTS:
            yield body
        at += 3 + size
