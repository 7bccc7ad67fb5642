"""Images to train on and to check with: listed with their hashes, parted by source image, cut to patches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsr_hpc.bench.imresize import Picture8, luma, resize, shrink, whole
from vsr_hpc.bench.originals import read_still
from vsr_hpc.errors import JobError

SUFFIXES = (".png", ".webp", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
LEVELS = (1.0, 0.7, 0.5)
"""Sizes at which every image is seen: shrunken photographs are sharp at the pixel, as benchmarks are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """One source image of a data list."""

    path: Path
    sha256: str
    is_held_out: bool

    @property
    def name(self) -> str:
        return self.path.stem


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPair:
    """A low picture and its original, exactly `scale` times as large."""

    name: str
    low: Picture8
    high: Picture8


def list_images(folder: Path, held_out: Sequence[str] | None = None) -> tuple[ImageFile, ...]:
    """Every image of a folder by name; those held out are named, or one in eight chosen by content hash."""
    if not folder.is_dir():
        raise JobError(f"{folder}: is no folder of images")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if len(paths) < 2:
        raise JobError(f"{folder}: holds {len(paths)} images ({', '.join(SUFFIXES)}); two are the least")
    unknown = set(held_out or ()) - {path.stem for path in paths}
    if unknown:
        raise JobError(f"{folder}: has no image named {', '.join(sorted(unknown))} to hold out")
    hashes = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    chosen = {path for path in paths if held_out is not None and path.stem in held_out}
    if held_out is None:
        chosen = set(sorted(paths, key=lambda path: hashes[path])[: max(1, len(paths) // 8)])
    if len(chosen) == len(paths):
        raise JobError(f"{folder}: all {len(paths)} images are held out; nothing is left to train on")
    return tuple(ImageFile(path=path, sha256=hashes[path], is_held_out=path in chosen) for path in paths)


def sizes_of(picture: Picture8, least: int, levels: Sequence[float] = LEVELS) -> tuple[Picture8, ...]:
    """The picture at each level that still has `least` pixels in both directions."""
    sizes = ((level, *(round(length * level) for length in picture.shape[:2])) for level in levels)
    return tuple(
        picture if level == 1 else resize(picture, rows, columns)
        for level, rows, columns in sizes
        if min(rows, columns) >= least
    )


def clean_pairs(images: Sequence[ImageFile], scale: int, patch: int) -> tuple[TrainingPair, ...]:
    """Every image at every level, with its antialiased bicubic reduction."""
    pairs = []
    for image in images:
        for size in sizes_of(read_still(image.path), patch * scale):
            high = np.ascontiguousarray(whole(size, scale))
            pairs.append(TrainingPair(name=image.name, low=shrink(high, scale), high=high))
    return tuple(pairs)


class Patches:
    """Batches of random patches: step n's batch depends on the seed and on n alone.

    Of two places drawn, the one with more detail is taken: flat patches teach nothing.
    """

    def __init__(
        self,
        pairs: Sequence[TrainingPair],
        *,
        scale: int,
        patch: int,
        batch: int,
        seed: int,
        changes_colours: bool = False,
    ) -> None:
        self._pairs = [pair for pair in pairs if min(pair.low.shape[:2]) >= patch]
        if not self._pairs:
            raise JobError(f"no image has {patch * scale} pixels in both directions, which a patch needs")
        self._scale, self._patch, self._batch, self._seed = scale, patch, batch, seed
        self._changes_colours = changes_colours
        self._detail = [_detail_table(pair.low) for pair in self._pairs]
        area = np.array([pair.low.shape[0] * pair.low.shape[1] for pair in self._pairs], dtype=np.float64)
        self._chances = area / area.sum()

    def batch(self, step: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """(low, high), each (batch, rows, columns, 3)."""
        rng = np.random.default_rng((self._seed, step))
        lows, highs = [], []
        for index in rng.choice(len(self._pairs), size=self._batch, p=self._chances):
            low, high = self._cut(self._pairs[index], self._place(int(index), rng))
            turns, is_mirrored = int(rng.integers(4)), bool(rng.integers(2))
            low, high = _turn(low, turns, is_mirrored), _turn(high, turns, is_mirrored)
            if self._changes_colours:
                order, is_negative = rng.permutation(3), bool(rng.integers(2))
                low, high = _recolour(low, order, is_negative), _recolour(high, order, is_negative)
            lows.append(low)
            highs.append(high)
        return np.stack(lows), np.stack(highs)

    def _place(self, index: int, rng: np.random.Generator) -> tuple[int, int]:
        rows, columns = self._pairs[index].low.shape[:2]
        side, table = self._patch, self._detail[index]
        places = [
            (int(rng.integers(rows - side + 1)), int(rng.integers(columns - side + 1))) for _ in range(2)
        ]
        return max(places, key=lambda at: _sum_square(table, at[0], at[1], side))

    def _cut(self, pair: TrainingPair, place: tuple[int, int]) -> tuple[Picture8, Picture8]:
        (row, column), side, scale = place, self._patch, self._scale
        low = pair.low[row : row + side, column : column + side]
        high = pair.high[
            row * scale : (row + side) * scale,
            column * scale : (column + side) * scale,
        ]
        return low, high


def _turn(picture: Picture8, turns: int, is_mirrored: bool) -> Picture8:
    turned = np.rot90(picture, turns)
    return turned[:, ::-1] if is_mirrored else turned


def _recolour(picture: Picture8, order: NDArray[np.int64], is_negative: bool) -> Picture8:
    """Channels in another order, and the negative: exact in 8 bits, so low and high still belong together."""
    other: Picture8 = picture[..., order]
    return 255 - other if is_negative else other


def _detail_table(low: Picture8) -> NDArray[np.float64]:
    """Summed-area table of the luma's steps between neighbours."""
    y = luma(low)
    steps = np.abs(np.diff(y, axis=0, append=y[-1:])) + np.abs(np.diff(y, axis=1, append=y[:, -1:]))
    return np.pad(steps.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))


def _sum_square(table: NDArray[np.float64], row: int, column: int, side: int) -> float:
    low, high = row + side, column + side
    return float(table[low, high] - table[row, high] - table[low, column] + table[row, column])
