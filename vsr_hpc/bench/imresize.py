"""MATLAB's `imresize` and `rgb2ycbcr` as published super-resolution figures use them; numpy alone.

The cubic kernel (a = -1/2) is widened when shrinking, samples beyond the border are mirrored, rows go
first, and an 8-bit picture is rounded to 8 bits after each of the two passes.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

Picture8 = NDArray[np.uint8]
"""(rows, columns, channels) of 8 bits."""

_LUMA = np.array((65.481, 128.553, 24.966)) / 255.0


def resize(picture: Picture8, rows: int, columns: int) -> Picture8:
    """Antialiased bicubic to any size; the factor of each axis is exactly new size over old."""
    tall = _pass(picture, rows)
    return np.ascontiguousarray(_pass(tall.transpose(1, 0, 2), columns).transpose(1, 0, 2))


def shrink(picture: Picture8, scale: int) -> Picture8:
    """To 1/scale; the size must be whole multiples of the scale (see `whole`)."""
    return resize(picture, picture.shape[0] // scale, picture.shape[1] // scale)


def whole(picture: Picture8, scale: int) -> Picture8:
    """The picture cut at the right and the bottom to whole multiples of the scale."""
    rows, columns = (length - length % scale for length in picture.shape[:2])
    return picture[:rows, :columns]


def luma(picture: NDArray[np.generic]) -> NDArray[np.float64]:
    """BT.601's Y (16 to 235) of RGB codes from 0 to 255, not rounded."""
    return np.asarray(picture, dtype=np.float64) @ _LUMA + 16.0


def _pass(picture: Picture8, length: int) -> Picture8:
    if length == picture.shape[0]:
        return picture
    weights, indices = _taps(picture.shape[0], length)
    flat = picture.reshape(picture.shape[0], -1)
    summed = np.zeros((length, flat.shape[1]), dtype=np.float32)
    for tap in range(weights.shape[1]):
        summed += weights[:, tap, None] * flat[indices[:, tap]]
    rounded: Picture8 = np.clip(np.floor(summed + 0.5), 0, 255).astype(np.uint8)
    return rounded.reshape((length, *picture.shape[1:]))


@functools.lru_cache(maxsize=256)
def _taps(old: int, new: int) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    scale = new / old
    stretch = min(scale, 1.0)
    width = 4.0 / stretch
    centres = (np.arange(1, new + 1) / scale) + 0.5 * (1 - 1 / scale)
    left = np.floor(centres - width / 2)
    indices = left[:, None] + np.arange(math.ceil(width) + 2)[None, :]
    weights = stretch * _cubic(stretch * (centres[:, None] - indices))
    weights /= weights.sum(axis=1, keepdims=True)
    mirror = np.concatenate((np.arange(old), np.arange(old)[::-1]))
    places = mirror[np.mod(indices.astype(np.int64) - 1, 2 * old)]
    used = np.any(weights != 0, axis=0)
    return weights[:, used].astype(np.float32), places[:, used].astype(np.intp)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    near, far = np.abs(x), np.abs(x)
    inner = 1.5 * near**3 - 2.5 * near**2 + 1
    outer = -0.5 * far**3 + 2.5 * far**2 - 4 * far + 2
    result: NDArray[np.float64] = inner * (near <= 1) + outer * ((near > 1) & (near <= 2))
    return result
