"""How alike two pictures are: PSNR and SSIM of planes of 8-bit codes, by the definitions that papers use."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vsr_hpc.errors import JobError

_SIGMA, _RADIUS = 1.5, 5


def psnr(one: NDArray[np.generic], other: NDArray[np.generic]) -> float:
    """255 being the peak; equal planes give infinity."""
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255.0**2 / error)


def ssim(one: NDArray[np.generic], other: NDArray[np.generic]) -> float:
    """Gaussian window of 11x11, sigma 1.5, only where it fits whole; JobError where it fits nowhere."""
    x, y = one.astype(np.float64), other.astype(np.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = _windowed(x), _windowed(y)
    var_x = _windowed(x * x) - mean_x**2
    var_y = _windowed(y * y) - mean_y**2
    both = _windowed(x * y) - mean_x * mean_y
    top = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    return float(np.mean(top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))))


def _windowed(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    if min(plane.shape) <= 2 * _RADIUS:
        raise JobError(f"pictures of {plane.shape[1]}x{plane.shape[0]} are too small for SSIM")
    taps = np.exp(-0.5 * (np.arange(-_RADIUS, _RADIUS + 1) / _SIGMA) ** 2)
    taps /= taps.sum()
    high, wide = plane.shape[0] - 2 * _RADIUS, plane.shape[1] - 2 * _RADIUS
    rows = np.zeros((high, plane.shape[1]))
    for place, tap in enumerate(taps):
        rows += tap * plane[place : place + high]
    done = np.zeros((high, wide))
    for place, tap in enumerate(taps):
        done += tap * rows[:, place : place + wide]
    return done
