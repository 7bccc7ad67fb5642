"""Frames that decode to the same bits are upscaled once. Pure numpy; no state crosses a chunk's border.

Animation holds a drawing for two or three frames, and flickers between few of them. Within a chunk, a frame
equal to one of the last few different ones gets that one's result. So what is reused follows from the chunk
alone, whichever worker makes it, and the output is the same bytes as without.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from vsr_hpc.media.picture import Frame, Plane

REMEMBERED = 4
"""Different frames of a chunk that are looked back at; their results are held, at the output's size."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SortedFrames:
    """Some frames of a chunk, and which of them have to be made."""

    chunk: int
    frames: tuple[Frame, ...]
    digests: tuple[bytes, ...]
    fresh: tuple[Frame, ...]

    @classmethod
    def all_of(cls, chunk: int, frames: Sequence[Frame]) -> SortedFrames:
        """Nothing is looked for: every frame is made."""
        return cls(chunk=chunk, frames=tuple(frames), digests=(), fresh=tuple(frames))


class Repeats:
    """Sorts frames as they come, and gives each its result as results come in, both in order."""

    saved: dict[int, int]
    """Frames reused so far, by chunk."""

    def __init__(self) -> None:
        self._seen: _Recent[None] = _Recent()
        self._made: _Recent[tuple[Plane, ...]] = _Recent()
        self._chunks = [-1, -1]
        self.saved = {}

    def sort(self, chunk: int, frames: Sequence[Frame]) -> SortedFrames:
        """Which frames are not a repeat of one before in their chunk."""
        if chunk != self._chunks[0]:
            self._chunks[0], self._seen = chunk, _Recent()
        digests = tuple(_digest(frame) for frame in frames)
        fresh = []
        for frame, digest in zip(frames, digests, strict=True):
            if self._seen.find(digest) is None:
                fresh.append(frame)
                self._seen.add(digest, None)
        self.saved[chunk] = self.saved.get(chunk, 0) + len(frames) - len(fresh)
        return SortedFrames(chunk=chunk, frames=tuple(frames), digests=digests, fresh=tuple(fresh))

    def complete(self, batch: SortedFrames, made: Sequence[Frame]) -> list[Frame]:
        """A result for every frame of a batch, given those of its fresh ones."""
        if batch.chunk != self._chunks[1]:
            self._chunks[1], self._made = batch.chunk, _Recent()
        results, coming = [], iter(made)
        for frame, digest in zip(batch.frames, batch.digests, strict=True):
            found = self._made.find(digest)
            if found is None:
                result = next(coming)
                self._made.add(digest, result.planes)
            else:
                result = replace(frame, planes=found[0])
            results.append(result)
        return results


class _Recent(Generic[T]):
    """The last few different digests, the latest use last, each with a value."""

    def __init__(self) -> None:
        self._held: OrderedDict[bytes, T] = OrderedDict()

    def find(self, digest: bytes) -> tuple[T] | None:
        if digest not in self._held:
            return None
        self._held.move_to_end(digest)
        return (self._held[digest],)

    def add(self, digest: bytes, value: T) -> None:
        self._held[digest] = value
        while len(self._held) > REMEMBERED:
            self._held.popitem(last=False)


def _digest(frame: Frame) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    for plane in frame.planes:
        digest.update(np.ascontiguousarray(plane).data)
    return digest.digest()
