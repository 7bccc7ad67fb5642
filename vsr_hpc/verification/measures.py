"""How far one output frame is from its input in colour, range, place and detail. Pure numpy.

Each measure compares two explanations of a frame, or removes what a filter, a network or a coder changes
everywhere (gain, offset, sharpness), so that honest changes count little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsr_hpc.verification.frame_match import Thumbnail
from vsr_hpc.verification.looks import Look, Sheets

_LEAST_SATURATION = 3.0  # rms codes of chroma around grey: below, colour cannot be told from its absence
_LEAST_HUE_SATURATION = 5.0  # the same, where an angle is measured: one code is 11 degrees there
_LEAST_CHROMA_SLOPE = 0.5  # rms codes a sample of chroma that can be placed
_LEAST_RANGE_ERROR = 3.0  # rms codes
_RANGE_BLOCK = 8
_LEAST_SLOPE = 2.0  # rms codes a pixel, in its flattest direction, of a tile that can be placed
_TILES = 12  # along the longer side
_LEAST_TILE = 16
_LEAST_TILE_ERROR = 3.0  # rms codes
_LEAST_TILES = 8  # a smaller picture has too few details for shifts of its tiles to be told
_SUSPECTS = 3  # tiles with the largest residuals, and those with the largest beside their slopes
_FURTHEST = 4  # pixels
_FLAT = 10.0  # codes of difference that are usual where a picture is flat

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """One frame. Shifts are (across, down) in pixels of the grid, positive to the right and downwards."""

    colour_gain: float | None
    """The share of the input's colour that is left; None where there is too little to judge."""
    hue_deg: float | None
    """How far all hues are turned."""
    exchanged: float | None
    """The residual with U and V exchanged, relative to the residual as they are."""
    squeezed: float
    """The residual if luma of full range was written in limited codes, relative to the residual as it is."""
    stretched: float
    shift: tuple[float, float] | None
    chroma_shift: tuple[float, float] | None
    """In samples of the grid's chroma."""
    moved_tile: float
    """The residual of a tile if it was shifted, relative to its residual as it is; of the worst tile."""
    spot: float
    """The worst spot of 4x4 pixels, relative to what its surroundings vary by."""
    spot_place: tuple[float, float]
    """Its middle, as shares of width and height."""
    chroma_spot: float
    """The worst block of 8x8 chroma samples, in codes."""
    detail_db: float
    """Fine detail of the output relative to the input's."""


def measure(own: Look, made: Look, *, is_full: bool, has_same_kind: bool) -> Measures:
    gain, hue, exchanged, shift_of_chroma, chroma_spot = None, None, None, None, 0.0
    if has_same_kind and own.chroma is not None and made.chroma is not None:
        gain, hue, exchanged = _colour(own.chroma, made.chroma)
        if exchanged is None or exchanged > 1:
            shift_of_chroma, chroma_spot = _chroma_place(own.chroma, made.chroma)
    squeezed, stretched = _range_errors(own.luma, made.luma, is_full=is_full)
    shift, moved_tile, spot, place = _place(own.luma, made.luma)
    return Measures(
        colour_gain=gain,
        hue_deg=hue,
        exchanged=exchanged,
        squeezed=squeezed,
        stretched=stretched,
        shift=shift,
        chroma_shift=shift_of_chroma,
        moved_tile=moved_tile,
        spot=spot,
        spot_place=place,
        chroma_spot=chroma_spot,
        detail_db=float(10 * np.log10(max(made.detail, 1e-3) / max(own.detail, 1e-3))),
    )


# --- colour
def _colour(own: Sheets, made: Sheets) -> tuple[float | None, float | None, float | None]:
    """(gain, turn of hue in degrees, residual with U and V exchanged)."""
    energy = float(np.mean(np.sum(own * own, axis=0)))
    if energy < _LEAST_SATURATION**2:
        return None, None, None
    along = float(np.mean(np.sum(own * made, axis=0))) / energy
    across = float(np.mean(own[0] * made[1] - own[1] * made[0])) / energy
    is_hue_told = energy > _LEAST_HUE_SATURATION**2 and np.hypot(along, across) > 0.2
    hue = float(np.degrees(np.arctan2(across, along))) if is_hue_told else None
    # where U and V are alike, exchanging them shows nothing
    is_told = float(np.mean(np.square(own[0] - own[1]))) > _LEAST_SATURATION**2
    as_is, crossed = (float(np.mean(np.square(each - own))) for each in (made, made[::-1]))
    exchanged = (crossed / max(as_is, 1e-3)) ** 0.5 if is_told else None
    return along, hue, exchanged


def _chroma_place(own: Sheets, made: Sheets) -> tuple[tuple[float, float] | None, float]:
    """(the shift of both planes together in samples, the worst block in codes)."""
    products, sides = np.zeros((2, 2)), np.zeros(2)
    worst = 0.0
    for one, other in zip(own, made, strict=True):
        rest, gain = _rest(one, other)
        worst = max(worst, _worst_block(rest, 8))
        if gain > 0.3 and min(one.shape) >= 8:
            across, down = _slopes(one)
            inside = rest[1:-1, 1:-1]
            products += _gram(across, down)
            sides -= np.array([np.mean(across * inside), np.mean(down * inside)]) / gain
    moved = _solve(products, sides, _LEAST_CHROMA_SLOPE)
    return moved, worst


def _worst_block(rest: Array, side: int) -> float:
    side = min(side, *rest.shape)
    sums = _sums(rest, side)
    return float(np.abs(sums).max()) / side**2


# --- range
def _range_errors(own: Thumbnail, made: Thumbnail, *, is_full: bool) -> tuple[float, float]:
    """Residuals of the two classic errors of range, relative to the residual as it is; 1 is harmless.

    Means of blocks are compared: networks raise the contrast of details, coders blur them.
    """
    side = min(_RANGE_BLOCK, *own.shape)
    share = np.float32(1 / side**2)
    high, wide = (length // side * side for length in own.shape)
    codes, seen = (_sums(each[:high, :wide], side) * share for each in (own, made))
    if not is_full:
        codes, seen = (each * np.float32(219 / 255) + 16 for each in (codes, seen))
    as_is = _rms(seen - codes)
    if as_is < _LEAST_RANGE_ERROR:
        return 1.0, 1.0
    squeezed = _rms(seen - (codes * np.float32(219 / 255) + 16)) / as_is
    stretched = _rms(seen - np.clip((codes - 16) * np.float32(255 / 219), 0, 255)) / as_is
    return squeezed, stretched


def _rms(error: Array) -> float:
    return float(np.sqrt(np.mean(np.square(error))))


# --- place
def _place(
    own: Thumbnail, made: Thumbnail
) -> tuple[tuple[float, float] | None, float, float, tuple[float, float]]:
    """(shift of the picture, how well a shift explains the worst tile, the worst spot, its place)."""
    rest, gain = _rest(own, made)
    if min(own.shape) < 8:
        return None, 1.0, 0.0, (0.5, 0.5)
    across, down = _slopes(own)
    inside = rest[1:-1, 1:-1]
    spot, place = _worst_spot(inside, across, down)
    if gain < 0.5:
        return None, 1.0, spot, place
    sides = -np.array([np.mean(across * inside), np.mean(down * inside)]) / gain
    shift = _solve(_gram(across, down), sides, _LEAST_SLOPE)
    tile = max(_LEAST_TILE, round(max(own.shape) / _TILES))
    if max(own.shape) < _LEAST_TILES * _LEAST_TILE:
        return shift, 1.0, spot, place
    slopes, energy = _sums(across * across + down * down, tile), _sums(inside * inside, tile)
    suspects = {
        int(each)
        for order in (energy, energy / (slopes + _LEAST_SLOPE**2 * tile * tile))
        for each in np.argsort(order, axis=None)[-_SUSPECTS:]
    }
    corners = [
        [int(part) * tile for part in np.unravel_index(each, energy.shape)] for each in sorted(suspects)
    ]
    explained = [_shifted_residual(own, rest, gain, row, column, tile) for row, column in corners]
    return shift, min(explained, default=1.0), spot, place


def _shifted_residual(own: Thumbnail, rest: Array, gain: float, row: int, column: int, tile: int) -> float:
    """The least residual of a tile after any shift of some pixels, relative to its residual as it is."""
    top, bottom = max(_FURTHEST, row), min(own.shape[0] - _FURTHEST, row + tile)
    left, right = max(_FURTHEST, column), min(own.shape[1] - _FURTHEST, column + tile)
    if bottom - top < tile // 2 or right - left < tile // 2:
        return 1.0
    as_is = rest[top:bottom, left:right]
    as_is = as_is - as_is.mean()
    if _rms(as_is) < _LEAST_TILE_ERROR:
        return 1.0
    wide = own[top - _FURTHEST : bottom + _FURTHEST, left - _FURTHEST : right + _FURTHEST]
    there = np.lib.stride_tricks.sliding_window_view(wide, as_is.shape)
    moved = (as_is + np.float32(gain) * own[top:bottom, left:right]) - np.float32(gain) * there
    return float(moved.std(axis=(2, 3)).min()) / _rms(as_is)


def _worst_spot(rest: Array, across: Array, down: Array) -> tuple[float, tuple[float, float]]:
    high, wide = (length // 2 for length in rest.shape)
    if high < 4 or wide < 4:
        return 0.0, (0.5, 0.5)

    def halved(values: Array) -> Array:
        means: Array = values[: 2 * high, : 2 * wide].reshape(high, 2, wide, 2).mean(axis=(1, 3))
        return means

    small = halved(rest)
    spots = np.abs(small[1:, 1:] + small[:-1, 1:] + small[1:, :-1] + small[:-1, :-1]) / 4
    slopes = np.maximum(_box(halved(across * across + down * down), 3), 0)[1:, 1:]
    scores = spots / (_FLAT + np.sqrt(slopes))
    row, column = np.unravel_index(int(scores.argmax()), scores.shape)
    return float(scores[row, column]), (float(column + 1) / wide, float(row + 1) / high)


def _box(values: Array, radius: int) -> Array:
    """The mean of the surroundings of each value."""
    padded = np.pad(values, radius + 1, mode="edge")
    sums = padded.cumsum(axis=0).cumsum(axis=1)
    side = 2 * radius + 1
    whole = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return np.asarray(whole[: values.shape[0], : values.shape[1]] / side**2)


def _rest(one: Array, other: Array) -> tuple[Array, float]:
    """What of `other` is left once gain and offset are removed, and the gain."""
    own, made = one - one.mean(), other - other.mean()
    gain = float(np.mean(own * made)) / max(float(np.mean(own * own)), 1e-6)
    return made - np.float32(gain) * own, gain


def _slopes(one: Array) -> tuple[Array, Array]:
    return (one[1:-1, 2:] - one[1:-1, :-2]) / 2, (one[2:, 1:-1] - one[:-2, 1:-1]) / 2


def _gram(across: Array, down: Array) -> NDArray[np.float64]:
    both = float(np.mean(across * down))
    return np.array([[float(np.mean(across * across)), both], [both, float(np.mean(down * down))]])


def _solve(
    products: NDArray[np.float64], sides: NDArray[np.float64], least_slope: float
) -> tuple[float, float] | None:
    """A picture moved by d differs from the one before by -d times its slope."""
    if np.linalg.eigvalsh(products)[0] < least_slope**2:
        return None
    moved = np.linalg.solve(products, sides)
    return float(moved[0]), float(moved[1])


def _sums(values: Array, side: int) -> Array:
    """Sums over blocks of about `side` x `side`; the last ones take what is left over."""
    rows, columns = (np.arange(max(1, length // side)) * side for length in values.shape)
    sums: Array = np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1)
    return sums
