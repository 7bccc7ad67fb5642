"""The tile grid covers the picture once and shows every core its surroundings."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vsr_hpc.engine.tiles import feather, grid, pad_length, smallest_tile, spans

multiples = st.sampled_from([1, 2, 4])


@given(st.integers(1, 300), st.integers(1, 20), st.integers(0, 20), multiples)
def test_cores_cover_an_axis_once_and_stay_within_the_tile(
    length: int, tile: int, overlap: int, multiple_of: int
) -> None:
    length, tile, overlap = length * multiple_of, tile * multiple_of, overlap * multiple_of
    cut = spans(length, tile, overlap, multiple_of)
    assert [span.start for span in cut[1:]] == [span.stop for span in cut[:-1]]
    assert (cut[0].start, cut[-1].stop) == (0, length)
    for span in cut:
        assert 0 < span.stop - span.start <= max(tile, 1)
        assert span.crop_start == max(0, span.start - overlap)
        assert span.crop_stop == min(length, span.stop + overlap)
        assert span.crop_start % multiple_of == 0 and span.crop_stop % multiple_of == 0


def test_a_picture_that_fits_is_one_tile() -> None:
    assert len(grid(64, 48, None, 18, 1)) == 1
    assert len(grid(64, 48, 64, 18, 1)) == 1
    assert len(grid(65, 48, 64, 18, 1)) == 2


@given(st.integers(20, 200), st.integers(8, 64), st.integers(0, 16))
def test_feathered_cores_reach_every_pixel(length: int, tile: int, reach: int) -> None:
    total = np.zeros(length)
    for span in spans(length, tile, 2 * reach, 1):
        start, stop, weights = feather(span, reach, length)
        assert (start, stop) == (max(0, span.start - reach), min(length, span.stop + reach))
        assert span.crop_start <= start < stop <= span.crop_stop
        total[start:stop] += weights
    assert (total > 0).all()


def test_wide_cores_fade_into_each_other_evenly() -> None:
    total = np.zeros(96)
    for span in spans(96, 32, 16, 1):
        start, stop, weights = feather(span, 8, 96)
        total[start:stop] += weights
    assert np.allclose(total, 1)


def test_padding_reaches_the_next_multiple() -> None:
    assert [pad_length(n, 4) for n in (1, 4, 5)] == [4, 4, 8]
    assert smallest_tile(1) == 16 and smallest_tile(4) == 16
