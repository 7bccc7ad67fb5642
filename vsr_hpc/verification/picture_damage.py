"""Is every output picture its input in colour, in place and in range? What the match of luma alone misses.

The limits stand in one table, each beside the worst honest output. `python -m tests.damages` measures both:
over every filter and network, and down to the smallest damage of each kind that is found. docs/verify.md
holds its answer.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from vsr_hpc.media.picture import Picture
from vsr_hpc.verification.looks import Grid, Look, chroma_steps, common_grid
from vsr_hpc.verification.measures import Measures, measure

MeasureName = Literal[
    "colour", "hue", "exchanged", "range", "shift", "frame shift", "chroma shift", "tile", "frame tile",
    "spot", "new spot", "chroma block", "detail",
]  # fmt: skip
LONGEST = 1024
"""The longer side of the pictures that are compared, in pixels, unless the input is smaller."""
_WHOLE = 0.4  # pixels of the grid: more than one tile makes of the whole picture
_AROUND = 6  # frames on each side that say what is usual
_LEFT = frozenset({"unspecified", "left", "topleft", "bottomleft"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """Where damage begins. `honest` is the worst value of any true output that was measured."""

    value: float
    honest: float
    unit: str
    is_error: bool = True
    """False where a true output may come within a factor of two (3 dB) of the limit."""
    is_floor: bool = False
    """Whether damage lies below the limit."""

    def is_passed(self, value: float | None) -> bool:
        return value is not None and (value < self.value if self.is_floor else value > self.value)


LIMITS: dict[MeasureName, Limit] = {
    "colour": Limit(value=0.6, honest=0.88, unit="of the colour left", is_floor=True),
    "hue": Limit(value=6.0, honest=2.6, unit="degrees"),
    "exchanged": Limit(value=0.4, honest=5.7, unit="of the residual", is_floor=True),
    "range": Limit(value=0.45, honest=0.92, unit="of the residual", is_floor=True),
    "shift": Limit(value=0.22, honest=0.11, unit="input px"),
    "frame shift": Limit(value=0.4, honest=0.15, unit="px"),
    "chroma shift": Limit(value=0.18, honest=0.09, unit="samples"),
    "tile": Limit(value=0.36, honest=0.95, unit="of the residual, half of the frames", is_floor=True),
    "frame tile": Limit(value=0.36, honest=0.3, unit="of the residual", is_error=False, is_floor=True),
    "spot": Limit(value=4.4, honest=2.2, unit="times what surrounds it"),
    "new spot": Limit(value=5.0, honest=2.4, unit="times the frames around it"),
    "chroma block": Limit(value=18.5, honest=9.1, unit="codes"),
    "detail": Limit(value=3.0, honest=0.4, unit="dB", is_error=False),
}
_LEAST_NEW_SPOT = 0.8  # a fainter spot shows in no frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One thing that is wrong with the picture."""

    measure: MeasureName
    text: str

    @property
    def is_error(self) -> bool:
        """Whether no true output comes near it."""
        return LIMITS[self.measure].is_error


class DamageFinder:
    """Collects measures frame by frame, in step with the output, and names what is damaged at the end."""

    def __init__(self, was: Picture, now: Picture, *, first: int, longest: int = LONGEST) -> None:
        self._was, self._now, self._first = was, now, first
        self.grid = common_grid(was, now, longest)
        self.frames: list[Measures] = []

    def add(self, own: Look, made: Look) -> None:
        self.frames.append(
            measure(
                own,
                made,
                is_full=self._now.pixel.kind == "rgb" or self._now.colour.is_full_range,
                has_same_kind=self._was.pixel.kind == self._now.pixel.kind,
            )
        )

    def damages(self) -> Iterator[Damage]:
        """What is wrong, each kind once; the frames that it concerns are named."""
        yield from self._each(
            "colour", "has lost its colour", lambda each: self._unless_exchanged(each, each.colour_gain)
        )
        yield from self._each(
            "hue", "has its hues turned", lambda each: self._unless_exchanged(each, each.hue_deg)
        )
        yield from self._each("exchanged", "has U and V exchanged", lambda each: each.exchanged)
        squeezed, stretched = (
            "holds full-range luma in limited codes",
            "holds limited-range luma in full codes",
        )
        yield from self._each("range", squeezed, lambda each: each.squeezed)
        yield from self._each("range", stretched, lambda each: each.stretched)
        tiles = list(self._moved_tiles())
        moved = self._shift_px()
        is_whole = moved is not None and _length(moved) > _WHOLE * self._was.width / self.grid.luma[1]
        yield from tiles if not is_whole else ()  # every tile of a picture that moved is elsewhere
        yield from self._shifts(has_moved_part=not is_whole and any(each.is_error for each in tiles))
        yield from self._spots()
        block = "has a block whose colour is not its input's"
        yield from self._each("chroma block", block, lambda each: each.chroma_spot)
        yield from self._blurred()

    def values(self) -> dict[MeasureName, float | None]:
        """The worst value of each measure, as the table of limits counts it."""
        detail = [-each for each in self._detail_drops()]
        chroma = self._chroma_shift()
        moved = self._shift_px()
        return {
            "colour": _worst(min, (each.colour_gain for each in self.frames)),
            "hue": _worst(max, (self._unless_exchanged(each, each.hue_deg) for each in self.frames)),
            "exchanged": _worst(min, (each.exchanged for each in self.frames)),
            "range": _worst(min, (min(each.squeezed, each.stretched) for each in self.frames)),
            "shift": None if moved is None else _length(moved),
            "frame shift": _worst(max, (_length(each.shift) for each in self.frames)),
            "chroma shift": None if chroma is None else _length(chroma),
            "tile": self._usual_tile(),
            "frame tile": _worst(min, (each.moved_tile for each in self.frames)),
            "spot": _worst(max, (each.spot for each in self.frames)),
            "new spot": _worst(max, self._new_spots()),
            "chroma block": _worst(max, (each.chroma_spot for each in self.frames)),
            "detail": _worst(max, detail),
        }

    def _unless_exchanged(self, frame: Measures, value: float | None) -> float | None:
        """Gain and hue say nothing where U and V are exchanged."""
        return None if value is None or LIMITS["exchanged"].is_passed(frame.exchanged) else abs(value)

    # --- place
    def _shift_px(self) -> tuple[float, float] | None:
        """The shift of the whole clip in pixels of the input; the median of its frames."""
        high, wide = self.grid.luma
        scales = (self._was.width / wide, self._was.height / high)
        placed = [each.shift for each in self.frames if each.shift is not None]
        if not placed:
            return None
        across, down = (statistics.median(each[axis] for each in placed) * scales[axis] for axis in (0, 1))
        return across, down

    def _chroma_shift(self) -> tuple[float, float] | None:
        """The shift of the whole clip's chroma in samples of the grid, beyond what its siting explains."""
        placed = [each.chroma_shift for each in self.frames if each.chroma_shift is not None]
        if not placed:
            return None
        due = siting_shift(self._was, self._now, self.grid)
        across, down = (
            _beyond(statistics.median(each[axis] for each in placed), due[axis]) for axis in (0, 1)
        )
        return across, down

    def _shifts(self, *, has_moved_part: bool) -> Iterator[Damage]:
        moved = self._shift_px()
        is_moved = moved is not None and _length(moved) > self._shift_limit_px()
        if moved is not None and is_moved and not has_moved_part:  # a part that moved draws the whole along
            text = f"{moved[0]:+.1f} px across and {moved[1]:+.1f} px down, counted in pixels of the input"
            yield Damage(measure="shift", text=f"the picture is shifted by about {text}")
        elif not is_moved:
            yield from self._each(
                "frame shift", "is shifted against its input", lambda each: _length(each.shift)
            )
        chroma = self._chroma_shift()
        if LIMITS["chroma shift"].is_passed(_length(chroma)) and chroma is not None:
            ratio = self._was.width / self.grid.luma[1]
            across, down = (
                each * ratio * step
                for each, step in zip(chroma, chroma_steps(self._was, self._now), strict=True)
            )
            text = f"{across:+.1f} px across and {down:+.1f} px down, counted in pixels of the input"
            yield Damage(measure="chroma shift", text=f"the colour is shifted against luma by about {text}")

    def _usual_tile(self) -> float | None:
        return statistics.median(each.moved_tile for each in self.frames) if self.frames else None

    def _moved_tiles(self) -> Iterator[Damage]:
        """A coder may leave a moving thing where it was before in one frame, but not in most frames."""
        name: MeasureName = "tile" if LIMITS["tile"].is_passed(self._usual_tile()) else "frame tile"
        text = "has a part that is shifted against the rest"
        yield from self._each(name, text, lambda each: each.moved_tile)

    def _shift_limit_px(self) -> float:
        """A shift of a tenth of a pixel of the grid is the least that is surely told."""
        return max(LIMITS["shift"].value, 0.1 * self._was.width / self.grid.luma[1])

    # --- spots and sharpness
    def _spots(self) -> Iterator[Damage]:
        absolute, relative = LIMITS["spot"], LIMITS["new spot"]
        new = self._new_spots()
        places = [
            place
            for place, each in enumerate(self.frames)
            if absolute.is_passed(each.spot) or relative.is_passed(new[place])
        ]
        where = ""
        if places:
            across, down = self.frames[places[0]].spot_place
            where = f" (about {across * self._now.width:.0f}, {down * self._now.height:.0f})"
        yield from self._named("new spot", f"has a spot that its input has not{where}", places)

    def _new_spots(self) -> list[float]:
        """Each frame's worst spot, relative to what the frames around it have; 0 where it is faint."""
        spots = [each.spot for each in self.frames]
        return [
            spot / max(statistics.median(_others(spots, place) or [spot]), 1e-3)
            if spot > _LEAST_NEW_SPOT
            else 0.0
            for place, spot in enumerate(spots)
        ]

    def _detail_drops(self) -> list[float]:
        """How much more detail each frame has than the frames before it and those after it, in dB."""
        detail = [each.detail_db for each in self.frames]
        drops = []
        for place, own in enumerate(detail):
            sides = (detail[max(0, place - _AROUND) : place], detail[place + 1 : place + 1 + _AROUND])
            drops.append(max(own - statistics.median(side) for side in sides) if all(sides) else 0.0)
        return drops

    def _blurred(self) -> Iterator[Damage]:
        limit = LIMITS["detail"]
        places = [place for place, drop in enumerate(self._detail_drops()) if limit.is_passed(-drop)]
        yield from self._named("detail", "is less sharp than the frames around it", places)

    # --- words
    def _each(
        self, name: MeasureName, text: str, value: Callable[[Measures], float | None]
    ) -> Iterator[Damage]:
        limit = LIMITS[name]
        yield from self._named(
            name, text, [place for place, each in enumerate(self.frames) if limit.is_passed(value(each))]
        )

    def _named(self, name: MeasureName, text: str, places: Sequence[int]) -> Iterator[Damage]:
        if len(places) == 1:
            yield Damage(measure=name, text=f"frame {self._first + places[0]} {text}")
        elif places:
            shown = ", ".join(str(self._first + place) for place in places[:5])
            more = f" and {len(places) - 5} more" if len(places) > 5 else ""
            yield Damage(measure=name, text=f"{len(places)} frames ({shown}{more}): each {text}")


def siting_shift(was: Picture, now: Picture, grid: Grid) -> tuple[float, float]:
    """How far chroma seems to move on the grid because its samples lie left of (or above) their block.

    The average of a block of samples lies in the block's middle, whatever the samples' siting; so the same
    chroma, co-sited at two sizes, has two places. In samples of the grid's chroma.
    """
    lengths = ((was.width, now.width, grid.luma[1]), (was.height, now.height, grid.luma[0]))
    shifts = []
    for axis, (before, after, small) in enumerate(lengths):
        places = []
        for picture, length in ((was, before), (now, after)):
            log2 = (picture.pixel.log2_chroma_w, picture.pixel.log2_chroma_h)[axis]
            is_co_sited = picture.colour.siting in _LEFT if axis == 0 else "top" in picture.colour.siting
            places.append(-0.5 * small / length if log2 == 1 and is_co_sited else 0.0)
        shifts.append((places[0] - places[1]) / chroma_steps(was, now)[axis])
    return shifts[0], shifts[1]


def _beyond(value: float, due: float) -> float:
    """What lies outside of [0, due]. `nearest` repeats samples and moves none; others follow siting."""
    low, high = min(0.0, due), max(0.0, due)
    return value - high if value > high else value - low if value < low else 0.0


def _length(shift: tuple[float, float] | None) -> float:
    return 0.0 if shift is None else max(abs(shift[0]), abs(shift[1]))


def _worst(
    choose: Callable[[list[float]], float], values: Iterator[float | None] | Sequence[float]
) -> float | None:
    known = [each for each in values if each is not None]
    return choose(known) if known else None


def _others(values: Sequence[float], place: int) -> list[float]:
    return [*values[max(0, place - _AROUND) : place], *values[place + 1 : place + 1 + _AROUND]]
