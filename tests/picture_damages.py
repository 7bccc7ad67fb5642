"""Damage to a frame's planes, each by an amount that can be scaled down to nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsr_hpc.media.picture import Picture

Planes = tuple[NDArray[Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """What is done to some frames of an output; `words` are in the finding that `verify` must give."""

    name: str
    unit: str
    amount: float
    """The damage that the gate makes, in `unit`."""
    apply: Callable[[Planes, Picture, float], Planes]
    words: str
    is_one_frame: bool = False
    is_warning: bool = False
    """Whether `verify` only warns of it."""
    steps: tuple[float, ...] = (1, 0.5, 0.25, 0.125, 0.0625)
    """Shares of the amount by which it is scaled down."""

    def damaged(self, frames: Sequence[Planes], picture: Picture, amount: float, frame: int) -> list[Planes]:
        """All frames with the damage, or the one numbered `frame`."""
        return [
            self.apply(planes, picture, amount) if not self.is_one_frame or number == frame else planes
            for number, planes in enumerate(frames)
        ]


def _rounded(values: NDArray[np.floating[Any]], like: NDArray[Any], picture: Picture) -> NDArray[Any]:
    return np.rint(np.clip(values, 0, (1 << picture.pixel.depth) - 1)).astype(like.dtype)


def _recoloured(planes: Planes, picture: Picture, matrix: Sequence[Sequence[float]]) -> Planes:
    """U and V around grey, multiplied by a matrix."""
    grey = 1 << (picture.pixel.depth - 1)
    u, v = (plane.astype(np.float64) - grey for plane in planes[1:3])
    made = [grey + row[0] * u + row[1] * v for row in matrix]
    return (planes[0], *(_rounded(each, planes[1], picture) for each in made), *planes[3:])


def fade_colour(planes: Planes, picture: Picture, amount: float) -> Planes:
    left = 1 - amount
    return _recoloured(planes, picture, ((left, 0), (0, left)))


def turn_hue(planes: Planes, picture: Picture, amount: float) -> Planes:
    cos, sin = np.cos(np.radians(amount)), np.sin(np.radians(amount))
    return _recoloured(planes, picture, ((cos, -sin), (sin, cos)))


def exchange_chroma(planes: Planes, picture: Picture, amount: float) -> Planes:
    return _recoloured(planes, picture, ((1 - amount, amount), (amount, 1 - amount)))


def _moved(plane: NDArray[Any], across: float, picture: Picture) -> NDArray[Any]:
    """The plane `across` samples to the right, by linear interpolation."""
    whole = int(np.floor(across))
    places = np.arange(plane.shape[1]) - whole
    right, left = (np.clip(each, 0, plane.shape[1] - 1) for each in (places, places - 1))
    share = across - whole
    values = (1 - share) * plane[:, right].astype(np.float64) + share * plane[:, left].astype(np.float64)
    return _rounded(values, plane, picture)


def move_chroma(planes: Planes, picture: Picture, amount: float) -> Planes:
    return (planes[0], *(_moved(each, amount, picture) for each in planes[1:3]), *planes[3:])


def move_picture(planes: Planes, picture: Picture, amount: float) -> Planes:
    return tuple(_moved(each, amount * each.shape[1] / picture.width, picture) for each in planes)


def move_tile(planes: Planes, picture: Picture, amount: float) -> Planes:
    """A third of the width and of the height, right of the middle."""
    made = []
    for plane, moved in zip(planes, move_picture(planes, picture, amount), strict=True):
        high, wide = plane.shape
        place = (slice(high // 3, 2 * high // 3), slice(wide // 2, wide // 2 + wide // 3))
        whole = plane.copy()
        whole[place] = moved[place]
        made.append(whole)
    return tuple(made)


def blacken_block(planes: Planes, picture: Picture, amount: float) -> Planes:
    """A square of `amount` luma samples; it lies on no grid."""
    unit = 1 << (picture.pixel.depth - 8)
    made = []
    for number, plane in enumerate(planes):
        whole = plane.copy()
        scale = plane.shape[1] / picture.width
        top, left = round(plane.shape[0] * 0.41), round(plane.shape[1] * 0.57)
        side = max(1, round(amount * scale))
        whole[top : top + side, left : left + side] = 128 * unit if number in (1, 2) else 16 * unit
        made.append(whole)
    return tuple(made)


def blur(planes: Planes, picture: Picture, amount: float) -> Planes:
    """Luma by a Gaussian of `amount` samples."""
    radius = max(1, int(np.ceil(3 * amount)))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / max(amount, 1e-3)) ** 2)
    taps /= taps.sum()
    luma = planes[0].astype(np.float64)
    for axis in (0, 1):
        edges = [(radius, radius) if each == axis else (0, 0) for each in (0, 1)]
        padded = np.pad(luma, edges, mode="edge")
        luma = np.add.reduce(
            [tap * padded.take(range(i, i + luma.shape[axis]), axis) for i, tap in enumerate(taps)]
        )
    return (_rounded(luma, planes[0], picture), *planes[1:])


def squeeze_range(planes: Planes, picture: Picture, amount: float) -> Planes:
    """Full-range luma in limited codes, where it was limited already."""
    unit = 1 << (picture.pixel.depth - 8)
    luma = planes[0].astype(np.float64)
    wrong = 16 * unit + luma * (219 / 255)
    return (_rounded(luma + amount * (wrong - luma), planes[0], picture), *planes[1:])


def stretch_range(planes: Planes, picture: Picture, amount: float) -> Planes:
    unit = 1 << (picture.pixel.depth - 8)
    luma = planes[0].astype(np.float64)
    wrong = (luma - 16 * unit) * (255 / 219)
    return (_rounded(luma + amount * (wrong - luma), planes[0], picture), *planes[1:])


DAMAGES = (
    Damage(
        name="colour is missing", unit="of the colour", amount=1, apply=fade_colour, words="lost its colour"
    ),
    Damage(
        name="one frame without colour",
        unit="of the colour",
        amount=1,
        apply=fade_colour,
        words="frame 3 has lost its colour",
        is_one_frame=True,
    ),
    Damage(name="hue is turned", unit="degrees", amount=12, apply=turn_hue, words="hues turned"),
    Damage(
        name="U and V are exchanged",
        unit="mixed in",
        amount=1,
        apply=exchange_chroma,
        words="U and V exchanged",
    ),
    Damage(
        name="chroma is shifted",
        unit="chroma samples",
        amount=2,
        apply=move_chroma,
        words="colour is shifted",
    ),
    Damage(
        name="the picture is shifted", unit="px", amount=2, apply=move_picture, words="picture is shifted"
    ),
    Damage(
        name="one frame is shifted",
        unit="px",
        amount=2,
        apply=move_picture,
        words="frame 3 is shifted",
        is_one_frame=True,
    ),
    Damage(name="one tile is shifted", unit="px", amount=4, apply=move_tile, words="a part that is shifted"),
    Damage(
        name="a black block in one frame",
        unit="px wide",
        amount=16,
        apply=blacken_block,
        words="frame 3 has a spot",
        is_one_frame=True,
    ),
    Damage(
        name="a black block in all frames", unit="px wide", amount=16, apply=blacken_block, words="has a spot"
    ),
    Damage(
        name="one frame is blurred",
        unit="px (sigma)",
        amount=2,
        apply=blur,
        words="frame 3 is less sharp",
        is_one_frame=True,
        is_warning=True,
    ),
    Damage(
        name="full range in limited codes",
        unit="of the error",
        amount=1,
        apply=squeeze_range,
        words="full-range",
    ),
    Damage(
        name="limited range in full codes",
        unit="of the error",
        amount=1,
        apply=stretch_range,
        words="limited-range",
    ),
)
FRAME = 3
"""The frame that is damaged where it is one."""
