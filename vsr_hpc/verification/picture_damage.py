"""Is every output picture its input in colour, in place and in range? What the match of luma misses.

Each rule compares two explanations of a frame, so honest changes by a filter, a network or a coder do not
count. Measured on outputs of bicubic, Lanczos, vsr-video, vsr-clean and animevideov3 at crf 18 to 35; the
figures beside the limits are (worst honest frame, damaged frame).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsr_hpc.media.picture import Frame, Picture, Plane
from vsr_hpc.verification.frame_match import Thumbnail, luma_thumbnail, thumbnail

_LEAST_SATURATION = 3.0  # rms codes of chroma around grey: below, colour cannot be told from its absence
_GREY_GAIN = 0.4  # share of the input's colour that is left (0.91, 0.00)
_SWAPPED = 0.4  # residual with U and V exchanged, relative to the residual as they are (7.0, 0.14)
_RANGE = 0.4  # residual after the other range's scale, relative to the residual as it is (1.7, 0.20)
_LEAST_RANGE_ERROR = 3.0  # rms codes
_SHIFT_PX = 0.35  # of the input, the median of the clip (0.07, 0.69 for one pixel)
_LEAST_CONTRAST = 8.0  # standard deviation in codes of a picture that can be placed
_SPOT = 40.0  # codes by which a spot of 2x2 small pixels is off (49, 72)
_SPOT_OUTLIER = 4.0  # the same, relative to the frames around it (2.4, 14)
_BLURRED_DB = 3.0  # fine detail that a frame has less than the frames on both sides (0.4, 3.8)
_AROUND = 6  # frames on each side that say what is usual


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is kept of one frame: small luma, small chroma around zero, and how much fine detail it has."""

    luma: Thumbnail
    chroma: NDArray[np.float32] | None
    detail: float


def look_at(frame: Frame, picture: Picture, shape: tuple[int, int], step: int) -> Look:
    return Look(
        luma=luma_thumbnail(frame, picture, shape),
        chroma=_chroma(frame, picture, shape),
        detail=_detail(frame.planes[0], step, picture.pixel.depth),
    )


def _chroma(frame: Frame, picture: Picture, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """Two small planes around zero on an 8-bit scale; None for grey and float pictures."""
    pixel = picture.pixel
    if pixel.kind == "grey" or pixel.depth > 16:
        return None
    small = [thumbnail(plane, shape) for plane in frame.planes[:3]]
    if pixel.kind == "rgb":
        green, blue, red = (plane * (255 / ((1 << pixel.depth) - 1)) for plane in small)
        return np.asarray(np.stack([blue - green, red - green]) / 2, np.float32)
    unit = float(1 << (pixel.depth - 8))
    return np.asarray(np.stack(small[1:]) / unit - 128, np.float32)


def _detail(plane: Plane, step: int, depth: int) -> float:
    """Energy of second differences `step` samples apart, along some lines and some columns."""
    if min(plane.shape) <= 4 * step:
        return 0.0
    unit = np.float32(1 / (1 << max(0, depth - 8)) if depth <= 16 else 255)
    rows = plane[:: 4 * step].astype(np.float32) * unit
    columns = plane[:, :: 4 * step].astype(np.float32) * unit
    across = rows[:, : -2 * step] + rows[:, 2 * step :] - 2 * rows[:, step:-step]
    down = columns[: -2 * step] + columns[2 * step :] - 2 * columns[step:-step]
    return float(np.mean(across * across) + np.mean(down * down))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measures:
    colour_gain: float | None
    """None where the input has too little colour to judge."""
    swapped: float | None
    squeezed: float
    stretched: float
    shift_px: tuple[float, float] | None
    spot: float
    detail_db: float


class DamageFinder:
    """Collects measures frame by frame, in step with the output, and names what is damaged at the end."""

    def __init__(self, was: Picture, now: Picture, *, first: int) -> None:
        self._was, self._now, self._first = was, now, first
        self._frames: list[_Measures] = []

    def add(self, ours: Look, theirs: Look) -> None:
        gain, swapped = (
            _colour(ours, theirs) if self._was.pixel.kind == self._now.pixel.kind else (None, None)
        )
        squeezed, stretched = _range_errors(ours.luma, theirs.luma, is_full=_is_full(self._now))
        spot, shift = _place(ours.luma, theirs.luma)
        if shift is not None:
            high, wide = ours.luma.shape
            shift = (shift[0] * self._was.width / wide, shift[1] * self._was.height / high)
        ratio = max(theirs.detail, 1e-3) / max(ours.detail, 1e-3)
        self._frames.append(
            _Measures(
                colour_gain=gain,
                swapped=swapped,
                squeezed=squeezed,
                stretched=stretched,
                shift_px=shift,
                spot=spot,
                detail_db=float(10 * np.log10(ratio)),
            )
        )

    def faults(self) -> Iterator[str]:
        """Damage that no honest output came near when the limits were measured."""
        yield from self._told("has no colour", lambda each: _is_below(each.colour_gain, _GREY_GAIN))
        yield from self._told("has U and V exchanged", lambda each: _is_below(each.swapped, _SWAPPED))
        yield from self._told("holds full-range luma in limited codes", lambda each: each.squeezed < _RANGE)
        yield from self._told("holds limited-range luma in full codes", lambda each: each.stretched < _RANGE)
        placed = [each.shift_px for each in self._frames if each.shift_px is not None]
        if placed:
            across, down = (statistics.median(each[axis] for each in placed) for axis in (0, 1))
            if max(abs(across), abs(down)) > _SHIFT_PX:
                moved = f"{across:+.1f} px across and {down:+.1f} px down"
                yield f"the picture is shifted by about {moved}, counted in pixels of the input"
        spots = [each.spot for each in self._frames]
        spoilt = [
            i
            for i, spot in enumerate(spots)
            if spot > _SPOT and spot > _SPOT_OUTLIER * statistics.median(_others(spots, i) or [spot])
        ]
        yield from self._named("has a spot that its input has not", spoilt)

    def notes(self) -> Iterator[str]:
        """Frames that look damaged, where an honest one may too: a heuristic refuses nothing."""
        detail = [each.detail_db for each in self._frames]
        blurred = []
        for i, own in enumerate(detail):
            sides = (detail[max(0, i - _AROUND) : i], detail[i + 1 : i + 1 + _AROUND])
            if all(side and own < statistics.median(side) - _BLURRED_DB for side in sides):
                blurred.append(i)
        yield from self._named("is less sharp than the frames around it", blurred)

    def _told(self, text: str, is_damaged: Callable[[_Measures], bool]) -> Iterator[str]:
        return self._named(text, [i for i, each in enumerate(self._frames) if is_damaged(each)])

    def _named(self, text: str, places: Sequence[int]) -> Iterator[str]:
        if len(places) == 1:
            yield f"frame {self._first + places[0]} {text}"
        elif places:
            shown = ", ".join(str(self._first + place) for place in places[:5])
            more = f" and {len(places) - 5} more" if len(places) > 5 else ""
            yield f"{len(places)} frames ({shown}{more}): each {text}"


def _is_below(value: float | None, limit: float) -> bool:
    return value is not None and value < limit


def _others(values: Sequence[float], place: int) -> list[float]:
    return [*values[max(0, place - _AROUND) : place], *values[place + 1 : place + 1 + _AROUND]]


def _is_full(picture: Picture) -> bool:
    return picture.pixel.kind == "rgb" or picture.colour.is_full_range


def _colour(ours: Look, theirs: Look) -> tuple[float | None, float | None]:
    if ours.chroma is None or theirs.chroma is None:
        return None, None
    own, made = ours.chroma, theirs.chroma
    energy = float(np.mean(np.sum(own * own, axis=0)))
    if energy < _LEAST_SATURATION**2:
        return None, None
    gain = float(np.mean(np.sum(own * made, axis=0))) / energy
    # where U and V are alike, exchanging them shows nothing
    is_told = float(np.mean(np.square(own[0] - own[1]))) > _LEAST_SATURATION**2
    as_is, exchanged = (float(np.mean(np.square(each - own))) for each in (made, made[::-1]))
    # a picture without colour has no U or V to exchange; a gain below zero may come of the exchange
    swapped = (exchanged / max(as_is, 1e-3)) ** 0.5 if is_told else None
    if swapped is not None and swapped < _SWAPPED:
        return None, swapped
    return gain, swapped


def _range_errors(own: Thumbnail, made: Thumbnail, *, is_full: bool) -> tuple[float, float]:
    """Residuals of the two classic errors of range, relative to the residual as it is; 1 is harmless."""
    codes = own if is_full else own * np.float32(219 / 255) + 16
    seen = made if is_full else made * np.float32(219 / 255) + 16
    as_is = _rms(seen - codes)
    if as_is < _LEAST_RANGE_ERROR:
        return 1.0, 1.0
    squeezed = _rms(seen - (codes * np.float32(219 / 255) + 16)) / as_is
    stretched = _rms(seen - np.clip((codes - 16) * np.float32(255 / 219), 0, 255)) / as_is
    return squeezed, stretched


def _rms(error: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(error))))


def _place(own: Thumbnail, made: Thumbnail) -> tuple[float, tuple[float, float] | None]:
    """(the worst spot in codes, the shift in small pixels), both after gain and offset are removed."""
    one, other = own - own.mean(), made - made.mean()
    energy = float(np.mean(np.square(one)))
    gain = float(np.mean(one * other)) / max(energy, 1e-6)
    rest = other - gain * one
    high, wide = (length // 2 for length in rest.shape)
    if not high or not wide:
        return 0.0, None
    spots = rest[: 2 * high, : 2 * wide].reshape(high, 2, wide, 2).mean(axis=(1, 3))
    spot = float(np.abs(spots).max())
    if energy < _LEAST_CONTRAST**2 or gain < 0.5 or min(one.shape) < 8:
        return spot, None
    down, across = np.gradient(one)
    # a picture moved by d differs from the one before by -d times its slope
    products = [[float(np.mean(a * b)) for b in (across, down)] for a in (across, down)]
    sides = [-float(np.mean(each * rest)) / gain for each in (across, down)]
    if np.linalg.cond(np.array(products)) > 100:
        return spot, None
    moved = np.linalg.solve(np.array(products), np.array(sides))
    return spot, (float(moved[0]), float(moved[1]))
