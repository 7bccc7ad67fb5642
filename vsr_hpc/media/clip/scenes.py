"""Where scenes begin: hard cuts, by the frames alone. Pure numpy on small pictures.

A cut is a frame whose difference to the one before stands out from those of the frames around it, and which
stays: a flash or a lost frame comes back to what was there before. The rule looks three frames to both sides
and nowhere else. Fades and dissolves are no cuts: what is carried along changes as slowly as they do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from vsr_hpc.media.picture import Frame, Picture, Plane

SCENES_VERSION = 1
"""Raised whenever other cuts are found in the same clip."""

_ROWS, _COLUMNS = 18, 32
_REACH = 3
_LEAST = 3.0
"""In 8-bit codes, as a mean over small pictures: below it two shots look alike."""
_STANDS_OUT = 3.0
"""Times the median of the differences around it."""
_ABOVE_ALL = 1.5
"""Times the largest of them that is not a cut's own size."""
_STAYS = 0.6
"""The share of the difference that is left between the frame before the last and the frame after this one."""

Small = NDArray[np.float32]


def find_cuts(frames: Iterable[Frame], picture: Picture) -> tuple[int, ...]:
    """The numbers of the frames with which a new scene begins, the first of all left out."""
    first, change, stays = 0, [0.0], [0.0]
    recent: deque[Small] = deque(maxlen=4)
    for frame in frames:
        if not recent:
            first = frame.index
        recent.append(small_picture(frame, picture))
        if len(recent) > 1:
            change.append(_distance(recent[-2], recent[-1]))
            stays.append(change[-1])
        if len(recent) == 4:
            stays[-2] = _distance(recent[0], recent[3])
    return tuple(first + at for at in cuts(np.array(change), np.array(stays)))


def cuts(change: NDArray[np.float64], stays: NDArray[np.float64]) -> tuple[int, ...]:
    """Places of cuts, by each frame's difference to the one before, and by what is left of it a frame on."""
    found = []
    for at in range(1, len(change)):
        around = np.sort(np.r_[change[max(1, at - _REACH) : at], change[at + 1 : at + 1 + _REACH]])
        own = change[at]
        if own < _LEAST or stays[at] < _STAYS * own:
            continue
        if len(around) == 0:
            found.append(at)
            continue
        others = around[:-1] if len(around) > 2 else around  # one more cut may be near
        if own >= _STANDS_OUT * np.median(around) and own >= _ABOVE_ALL * others[-1]:
            found.append(at)
    return tuple(found)


def small_picture(frame: Frame, picture: Picture) -> Small:
    """Block averages of all planes but alpha, one after the other, in 8-bit codes."""
    form = picture.pixel
    planes = frame.planes[: 1 if form.kind == "grey" else 3]
    gain = np.float32(_to_eight_bits(form.depth))
    return np.concatenate([_blocks(plane).ravel() * gain for plane in planes])


def _blocks(plane: Plane) -> Small:
    rows = np.linspace(0, plane.shape[0], min(_ROWS, plane.shape[0]) + 1).astype(int)
    columns = np.linspace(0, plane.shape[1], min(_COLUMNS, plane.shape[1]) + 1).astype(int)
    sums = np.add.reduceat(np.add.reduceat(plane, rows[:-1], axis=0, dtype=np.float32), columns[:-1], axis=1)
    return np.asarray(sums / np.outer(np.diff(rows), np.diff(columns)), dtype=np.float32)


def _to_eight_bits(depth: int) -> float:
    return 255.0 if depth == 32 else 255.0 / (2.0**depth - 1)


def _distance(one: Small, other: Small) -> float:
    return float(np.abs(one - other).mean())
