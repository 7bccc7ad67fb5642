"""Is output frame i the upscaled input frame i? The relative rule, on small grey pictures. Pure numpy.

An absolute PSNR rejects a GAN's good frames and misses a repeated one, so each output is compared with
its own input *and* with that input's neighbours: it must match its own at least as well.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsr_hpc.engine.geometry import LUMA_WEIGHTS
from vsr_hpc.media.picture import Frame, Picture, Plane

Thumbnail = NDArray[np.float32]
"""A small grey picture, (height, width) or flattened, 0 black to 255 white whatever the clip's range is."""


def thumbnail_shape(width: int, height: int, longest: int = 192) -> tuple[int, int]:
    """(height, width) of the thumbnails of a clip whose input is width x height: never larger than that."""
    shrink = max(1.0, max(width, height) / longest)
    return max(1, round(height / shrink)), max(1, round(width / shrink))


def thumbnail(plane: Plane, shape: tuple[int, int]) -> Thumbnail:
    """The area average of a plane at (height, width) `shape`, in the plane's own codes."""
    rows, columns = shape
    height, width = plane.shape
    across = _area_weights(width, columns).T
    if rows >= height:
        return np.ascontiguousarray(_area_weights(height, rows) @ (plane.astype(np.float32) @ across))
    return np.ascontiguousarray(_rows_averaged(plane, rows) @ across)


def _rows_averaged(plane: Plane, rows: int) -> Thumbnail:
    """The area average of groups of lines; whole lines are added as integers, which is what makes it fast."""
    height, width = plane.shape
    borders = np.arange(rows + 1) * (height / rows)
    first = np.ceil(borders[:-1] - 1e-9).astype(int)
    stop = np.floor(borders[1:] + 1e-9).astype(int)
    wide = {"u1": np.uint16 if height <= 256 * rows else np.uint32, "u2": np.uint32}
    sums = np.zeros((rows, width), wide.get(plane.dtype.str[1:], np.float32))
    for row, (low, high) in enumerate(zip(first, stop, strict=True)):
        np.add.reduce(plane[low:high], axis=0, dtype=sums.dtype, out=sums[row])
    above = (first - borders[:-1]).astype(np.float32)  # the shares of the lines that a border cuts
    below = (borders[1:] - stop).astype(np.float32)
    average = sums.astype(np.float32)
    if max(above.max(), below.max()) > 1e-6:
        average += plane[np.maximum(first - 1, 0)] * above[:, None]
        average += plane[np.minimum(stop, height - 1)] * below[:, None]
    average *= np.float32(rows / height)
    return average


@functools.lru_cache(maxsize=16)
def _area_weights(length: int, cells: int) -> NDArray[np.float32]:
    """(cells, samples): the share of each sample in each cell's mean."""
    borders = np.arange(cells + 1) * (length / cells)
    samples = np.arange(length)
    low = np.maximum(borders[:-1, None], samples)
    high = np.minimum(borders[1:, None], samples + 1)
    return np.asarray(np.maximum(high - low, 0) * (cells / length), dtype=np.float32)


def luma_thumbnail(
    frame: Frame,
    picture: Picture,
    shape: tuple[int, int],
    weights: tuple[float, float] = LUMA_WEIGHTS[1],
) -> Thumbnail:
    """The thumbnail of a frame's luma: 0 for black and 255 for white in every depth and range.

    `weights` are those of red and blue in an RGB frame's luma, by the matrix of what it is compared with.
    """
    pixel = picture.pixel
    if pixel.kind == "rgb":
        green, blue, red = (thumbnail(plane, shape) for plane in frame.planes[:3])
        of_red, of_blue = weights
        luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    else:
        luma = thumbnail(frame.planes[0], shape)
    if pixel.depth > 16:  # scene-linear light has no white; this keeps order and detail of what lies above 1
        positive = np.maximum(luma, 0)
        return np.asarray(255 * np.sqrt(positive / (1 + positive)), dtype=np.float32)
    unit = float(1 << (pixel.depth - 8))
    if pixel.kind == "rgb" or picture.colour.is_full_range:
        return np.asarray(luma * (255 / ((1 << pixel.depth) - 1)), dtype=np.float32)
    return np.asarray((luma - 16 * unit) * (255 / (219 * unit)), dtype=np.float32)


# The figures below were fitted on re-encodes (x264 and x265, crf 20 to 35, at twice the size) of 26 real and
# 10 made clips with and without repeated, missing and shifted frames. Correct pairs, noise and static scenes
# included, stay clear of each of them. Thumbnails of 640 pixels told less than those of 192, not more.
REACH = 8
_TELLABLE = 4.0  # rms codes where two inputs differ most: below, a coder may rightly keep the older picture
_NEARER = 0.45  # residual against another input, relative to the residual against its own: a far better match
_CERTAIN = 0.15  # the same, where no look at the neighbouring frames is needed
_CLEAR = 2.7  # how far apart two inputs must be, in residuals that are usual there
_AROUND = 12  # frames either side that say what residual is usual here (a GAN's and a coder's is everywhere)
_FLAT = 4.0  # standard deviation in codes of an input that a flat output can't stand for
_DETAIL = 8.0  # the same, of an input that any output must correlate with
_BLOCK, _BLOCK_ERROR = 16, 32.0  # a block of the thumbnail whose mean is off by more codes holds garbage
_LOSS_FLOOR_DB = 12.0
_LEAST_PIXELS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkFidelity:
    """What the relative rule says of a chunk's frames; numbers are those of the clip's timeline."""

    frames: int
    worst_psnr: float
    """dB between the thumbnails of input and output, 8-bit scale; the range is evened out, nothing else."""
    worst_frame: int | None
    undecided: int
    """Frames whose input can't be told from the one before or after it: static, or lost to the coder."""
    wrong: tuple[tuple[int, int | None], ...]
    """(frame, the input it shows instead; None for black or garbage)."""

    @property
    def is_good(self) -> bool:
        return not self.wrong


class Matcher:
    """Judges outputs against inputs that arrive in order; keeps 17 thumbnails of inputs, never the clip.

    Both sides are numbered by the timeline. Inputs may begin earlier and end later than the outputs: up to
    `REACH` frames of context make the verdict at a chunk's borders as sure as inside it. Feed the two sides
    in step; an output waits until `REACH` inputs beyond it are there or `finish` is called.
    """

    def __init__(self, *, first_input: int, first_output: int, psnr_floor: float | None = None) -> None:
        self._first_output = first_output
        self._next_input = first_input
        self._floor = _LOSS_FLOOR_DB if psnr_floor is None else psnr_floor
        self._inputs: deque[_Grey] = deque()  # those numbered [self._next_input - len, self._next_input)
        self._waiting: deque[_Grey] = deque()
        self._rows: list[NDArray[np.float32]] = []
        self._psnr: list[float] = []
        self._broken: list[bool] = []

    def add_input(self, picture: Thumbnail) -> None:
        self._inputs.append(_Grey(picture))
        self._next_input += 1
        self._settle(REACH)
        current = self._first_output + len(self._rows)
        while self._inputs and self._next_input - len(self._inputs) < current - REACH:
            self._inputs.popleft()

    def add_output(self, picture: Thumbnail) -> None:
        self._waiting.append(_Grey(picture))
        self._settle(REACH)

    def _settle(self, ahead: int) -> None:
        while self._waiting:
            index = self._first_output + len(self._rows)
            if index + ahead >= self._next_input:
                return
            self._judge_one(index, self._waiting.popleft())

    def _judge_one(self, index: int, output: _Grey) -> None:
        base = self._next_input - len(self._inputs)
        if not base <= index < self._next_input:
            raise IndexError(f"output {index} has no input: inputs [{base}, {self._next_input}) are here")
        own = self._inputs[index - base]
        row = np.full((2 * REACH + 1, len(_FIELDS)), np.nan, np.float32)
        lags = [lag for lag in range(-REACH, REACH + 1) if lag and base <= index + lag < self._next_input]
        if lags:
            others = [self._inputs[index + lag - base] for lag in lags]
            row[[lag + REACH for lag in lags]] = _contrast(own, others, output)
        self._rows.append(row)
        psnr = own.psnr(output)
        self._psnr.append(psnr)
        self._broken.append(psnr < self._floor or own.is_garbled_by(output))

    def finish(self) -> ChunkFidelity:
        """The verdict on all outputs so far; the last ones are judged with the inputs that there are."""
        self._settle(0)
        if self._waiting:
            index = self._first_output + len(self._rows)
            raise IndexError(f"output {index} has no input: the last one is {self._next_input - 1}")
        wrong: list[tuple[int, int | None]] = []
        undecided = 0
        for start in range(0, len(self._rows), 1024):
            stop = min(start + 1024, len(self._rows))
            low, high = max(0, start - _AROUND), min(len(self._rows), stop + _AROUND)
            best, unsure = _verdicts(np.stack(self._rows[low:high]))
            for place in range(start, stop):
                index = self._first_output + place
                if best[place - low]:
                    wrong.append((index, index + int(best[place - low])))
                elif self._broken[place]:
                    wrong.append((index, None))
                else:
                    undecided += bool(unsure[place - low])
        worst = int(np.argmin(self._psnr)) if self._psnr else None
        return ChunkFidelity(
            frames=len(self._rows),
            worst_psnr=self._psnr[worst] if worst is not None else math.inf,
            worst_frame=None if worst is None else self._first_output + worst,
            undecided=undecided,
            wrong=tuple(wrong),
        )


def compare(
    inputs: Sequence[Thumbnail] | NDArray[np.float32],
    outputs: Sequence[Thumbnail] | NDArray[np.float32],
    *,
    first: int = 0,
    context: int = 0,
    psnr_floor: float | None = None,
) -> ChunkFidelity:
    """Judge a chunk whose first frame is `first`; inputs begin `context` frames before it and may end later.

    Fewer inputs than outputs raise IndexError: count first.
    """
    matcher = Matcher(first_input=first - context, first_output=first, psnr_floor=psnr_floor)
    fed = 0
    for place, output in enumerate(outputs):
        while fed < len(inputs) and fed <= place + context + REACH:
            matcher.add_input(inputs[fed])
            fed += 1
        matcher.add_output(output)
    return matcher.finish()


class _Grey:
    """A thumbnail with its mean and contrast taken out, so that gain and offset no longer count."""

    __slots__ = ("codes", "mean", "spread", "unit")

    def __init__(self, picture: Thumbnail) -> None:
        self.codes = np.asarray(picture, dtype=np.float32)
        self.mean = float(self.codes.mean())
        centred = self.codes.ravel() - np.float32(self.mean)
        self.spread = float(np.sqrt(np.mean(np.square(centred))))
        self.unit = centred / np.float32(max(self.spread, 1e-6))

    def psnr(self, other: _Grey) -> float:
        error = float(np.mean(np.square(self.codes.ravel() - other.codes.ravel())))
        return 99.0 if error < 1e-5 else 10 * math.log10(255**2 / error)

    def is_garbled_by(self, output: _Grey) -> bool:
        """Whether no model makes this output of it: flat, unlike, or with a spoilt block."""
        if self.spread >= _FLAT and output.spread < self.spread / 5:
            return True
        likeness = float(np.mean(self.unit * output.unit))
        if self.spread >= _DETAIL and likeness < 0.5:
            return True
        fitted = np.asarray((self.unit - likeness * output.unit) * self.spread, dtype=np.float32)
        return bool(np.abs(_block_means(fitted.reshape(self.codes.shape))).max() > _BLOCK_ERROR)


def _block_means(picture: Thumbnail) -> Thumbnail:
    if picture.ndim != 2 or min(picture.shape) < _BLOCK:
        return np.asarray(picture.mean(keepdims=True))
    high, wide = picture.shape[0] // _BLOCK, picture.shape[1] // _BLOCK
    cropped = picture[: high * _BLOCK, : wide * _BLOCK]
    return np.asarray(cropped.reshape(high, _BLOCK, wide, _BLOCK).mean(axis=(1, 3)))


_FIELDS = ("own", "other", "apart", "share", "along")
_OWN, _OTHER, _APART, _SHARE, _ALONG = range(len(_FIELDS))


def _contrast(own: _Grey, others: Sequence[_Grey], output: _Grey) -> NDArray[np.float32]:
    """Where its own input and another one differ most, which of them does the output follow?

    One row per other input: the rms residual of the output against its own and against the other, how far
    the two are apart (codes, on those pixels), the share of the pixels, and where the output lies on the way
    from its own (0) to the other (1). The first is NaN where the inputs hardly differ anywhere. Looking only
    where they differ lets a small moving thing count in a still picture.
    """
    rows = np.full((len(others), len(_FIELDS)), np.nan, np.float32)
    scale = np.array([min(own.spread, other.spread) for other in others], np.float32)
    apart = np.stack([other.unit for other in others])
    apart -= own.unit
    apart *= scale[:, None]
    energy = np.square(apart)
    residual = output.unit - own.unit
    residual_energy = np.square(residual)
    threshold = np.maximum(4 * energy.mean(axis=1), _TELLABLE**2 / 2)
    least = min(_LEAST_PIXELS, energy.shape[1])
    mask = energy > threshold[:, None]
    for i in np.flatnonzero(mask.sum(axis=1) < least):
        if energy[i].max() > _TELLABLE**2:
            mask[i] = energy[i] >= np.partition(energy[i], -least)[-least]
        elif energy[i].max() < _TELLABLE**2 / 2:
            mask[i] = False
    chosen = mask.astype(np.float32)
    count = chosen.sum(axis=1)
    seen = count > 0
    n = np.maximum(count, 1)
    own_energy = scale**2 * (chosen @ residual_energy)
    chosen *= apart
    apart_energy = np.einsum("kp,kp->k", chosen, apart)
    towards = scale * (chosen @ residual)
    other_energy = np.maximum(own_energy - 2 * towards + apart_energy, 0)
    rows[:, _OWN] = np.sqrt(own_energy / n)
    rows[:, _OTHER] = np.sqrt(other_energy / n)
    rows[:, _APART] = np.sqrt(apart_energy / n)
    rows[:, _SHARE] = count / energy.shape[1]
    rows[:, _ALONG] = towards / np.maximum(apart_energy, 1e-6)
    rows[~seen, _OWN] = np.nan
    return rows


def _verdicts(rows: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Per frame: the lag of the input that it shows instead of its own (0: none); whether it is undecided."""
    known = ~np.isnan(rows[..., _OWN])
    own, other, apart, share, along = (np.where(known, rows[..., i], 0) for i in range(len(_FIELDS)))
    tellable = known & (apart >= _TELLABLE)
    usual, neighbours = _usual(np.where(known, own, np.nan))
    far_nearer = tellable & (other < _NEARER * own)
    # where the inputs differ by little more than the residual that is usual there, a coder lags behind
    alone = np.where(neighbours >= 3, (own > 1.3 * usual) & (apart > _CLEAR * usual), other < 0.3 * own)
    outlier = tellable & (along > 0.7) & (share >= 0.004) & (neighbours >= 3)
    outlier &= (own > 1.8 * usual) & (other < 1.2 * usual) & (apart > _CLEAR * usual)
    wrong = (far_nearer & alone) | (tellable & (other < _CERTAIN * own)) | outlier
    wrong |= _shifted(own, other, apart, share, known)
    score = np.where(wrong, other / np.maximum(own, 1e-6), np.inf)
    best = np.where(wrong.any(axis=1), score.argmin(axis=1) - REACH, 0)
    beside = [REACH - 1, REACH + 1]
    absent = np.isnan(rows[:, beside, _SHARE])  # before the first input, after the last
    sure = absent | (tellable[:, beside] & (other[:, beside] >= own[:, beside]))
    return np.asarray(best), np.asarray(~sure.all(axis=1))


def _usual(own: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    """The median residual of the frames around each one, by lag, and of how many frames it is the median."""
    padded = np.pad(own, ((_AROUND, _AROUND), (0, 0)), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * _AROUND + 1, axis=0).copy()
    windows[..., _AROUND] = np.nan
    count = (~np.isnan(windows)).sum(axis=-1)
    ordered = np.sort(windows, axis=-1)  # NaN last
    middle = np.maximum(count - 1, 0) // 2
    usual = np.take_along_axis(ordered, middle[..., None], axis=-1)[..., 0]
    return np.where(count > 0, usual, 0), count


def _shifted(
    own: NDArray[np.floating],
    other: NDArray[np.floating],
    apart: NDArray[np.floating],
    share: NDArray[np.floating],
    known: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Frames in the middle of a stretch that fits the inputs of one and the same other lag far better."""
    counted = known & (apart >= 0.75 * _TELLABLE)
    half = _AROUND // 2
    kernel = np.ones(2 * half + 1)

    def around(values: NDArray[np.floating]) -> NDArray[np.floating]:
        padded = np.pad(values, ((half, half), (0, 0)))
        return np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis=0) @ kernel

    mine = around(np.where(counted, own**2 * share, 0))
    theirs = around(np.where(counted, other**2 * share, 0))
    enough = around(counted.astype(np.float64)) >= 5
    return np.asarray(counted & enough & (theirs < 0.25 * mine) & (other < own))
