"""What is kept of one frame for the comparison: small planes of luma and chroma, and a measure of detail."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsr_hpc.engine.geometry import LUMA_WEIGHTS
from vsr_hpc.media.picture import Frame, Picture, Plane
from vsr_hpc.verification.frame_match import Thumbnail, luma_thumbnail, thumbnail, thumbnail_shape

Sheets = NDArray[np.float32]
"""Two small planes of chroma around zero, on an 8-bit scale: (2, height, width)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One frame, reduced."""

    luma: Thumbnail
    chroma: Sheets | None
    """None for grey and for float pictures."""
    detail: float
    """Energy of the finest detail that both sides of the comparison can hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The sizes to which the frames of a source and of its output are both reduced."""

    luma: tuple[int, int]
    """(height, width): that of the smaller side, or less."""
    chroma: tuple[int, int]
    narrowest: int
    """The width of the smaller side."""
    luma_weights: tuple[float, float]
    """Of red and blue, for the luma of a side that is RGB: those of the other side's matrix."""

    def look_at(self, frame: Frame, picture: Picture) -> Look:
        step = max(1, round(picture.width / self.narrowest))
        return Look(
            luma=luma_thumbnail(frame, picture, self.luma, self.luma_weights),
            chroma=_chroma(frame, picture, self.chroma),
            detail=_detail(frame.planes[0], step, picture.pixel.depth),
        )


def common_grid(was: Picture, now: Picture, longest: int) -> Grid:
    """The grid for a source and its output; the longer side of its luma is at most `longest`."""
    width, height = min(was.width, now.width), min(was.height, now.height)
    rows, columns = thumbnail_shape(width, height, longest)
    across, down = chroma_steps(was, now)
    return Grid(
        luma=(rows, columns),
        chroma=(max(1, rows // down), max(1, columns // across)),
        narrowest=width,
        luma_weights=_luma_weights(was, now),
    )


def _luma_weights(was: Picture, now: Picture) -> tuple[float, float]:
    """A saturated colour has another luma by another matrix, so both sides are weighed by the same one."""
    matrices = (each.colour.decoding_matrix(each.height) for each in (was, now) if each.pixel.kind == "yuv")
    return LUMA_WEIGHTS.get(next(matrices, 1), LUMA_WEIGHTS[1])


def chroma_steps(was: Picture, now: Picture) -> tuple[int, int]:
    """How many luma pixels of the grid one chroma sample is wide and high: two at least, to save time."""
    return (
        1 << max(1, was.pixel.log2_chroma_w, now.pixel.log2_chroma_w),
        1 << max(1, was.pixel.log2_chroma_h, now.pixel.log2_chroma_h),
    )


def _chroma(frame: Frame, picture: Picture, shape: tuple[int, int]) -> Sheets | None:
    pixel = picture.pixel
    if pixel.kind == "grey" or pixel.depth > 16:
        return None
    small = [thumbnail(plane, shape) for plane in frame.planes[0 if pixel.kind == "rgb" else 1 : 3]]
    if pixel.kind == "rgb":
        green, blue, red = (plane * (255 / ((1 << pixel.depth) - 1)) for plane in small)
        return np.asarray(np.stack([blue - green, red - green]) / 2, np.float32)
    unit = float(1 << (pixel.depth - 8))
    return np.asarray(np.stack(small) / unit - 128, np.float32)


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
