"""MATLAB's bicubic reduction and luma, against another implementation of the same definition."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from vsr_hpc.bench import imresize as matlab


def _noise(rows: int, columns: int) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def _pass_slowly(line: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """One line by the definition: kernel widened by the factor, samples mirrored at the ends."""
    scale = length / len(line)
    stretch = min(scale, 1.0)
    out = []
    for i in range(1, length + 1):
        centre = i / scale + 0.5 * (1 - 1 / scale)
        total = weight_sum = 0.0
        for j in range(int(np.floor(centre - 2 / stretch)), int(np.ceil(centre + 2 / stretch)) + 1):
            x = abs(stretch * (centre - j))
            weight = 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else 0.0
            if 1 < x <= 2:
                weight = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
            place = (j - 1) % (2 * len(line))
            total += weight * line[place if place < len(line) else 2 * len(line) - 1 - place]
            weight_sum += weight
        out.append(total / weight_sum)
    return np.array(out)


@pytest.mark.parametrize(("rows", "columns"), [(8, 12), (6, 9), (48, 72), (10, 13)])
def test_resize_is_the_definition_rounded_after_each_pass(rows: int, columns: int) -> None:
    picture = _noise(24, 36)

    def rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip(np.floor(values + 0.5), 0, 255)

    tall = rounded(np.apply_along_axis(_pass_slowly, 0, picture.astype(np.float64), rows))
    wanted = rounded(np.apply_along_axis(_pass_slowly, 1, tall, columns))
    difference = np.abs(matlab.resize(picture, rows, columns) - wanted)
    assert difference.max() <= 1  # a half may fall to either side
    assert (difference > 0).mean() < 0.01


def test_a_flat_picture_stays_flat() -> None:
    flat = np.full((20, 16, 3), 77, dtype=np.uint8)
    assert (matlab.shrink(flat, 4) == 77).all()


def test_whole_cuts_right_and_bottom() -> None:
    picture = _noise(23, 37)
    assert np.array_equal(matlab.whole(picture, 4), picture[:20, :36])


def test_luma_spans_16_to_235() -> None:
    black_white_red = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0]]], dtype=np.uint8)
    assert matlab.luma(black_white_red) == pytest.approx(np.array([[16, 235, 81.481]]), abs=1e-9)
