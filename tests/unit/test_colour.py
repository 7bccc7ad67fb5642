"""The RGB path: H.273's numbers, and what a round trip through RGB costs."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from vsr_hpc.engine.colour import Coding, quantise, shape, unshape
from vsr_hpc.engine.filters import plane_axes, resample
from vsr_hpc.engine.geometry import check_rgb_path
from vsr_hpc.errors import MediaError
from vsr_hpc.media.picture import Colour, Picture, PixelFormat

SUBSAMPLING = {"420": (1, 1), "422": (1, 0), "444": (0, 0)}
WIDTH, HEIGHT = 160, 64
EDGE_CODES = 18
"""Measured: the most that chroma beside a saturated edge loses at scale 1, in 8-bit codes."""


def picture(sub: str = "444", depth: int = 8, **tags: object) -> Picture:
    w, h = SUBSAMPLING[sub]
    form = PixelFormat(name=f"yuv{sub}", kind="yuv", depth=depth, log2_chroma_w=w, log2_chroma_h=h)
    colour = Colour(**({"matrix": 1, "is_range_tagged": True} | tags))  # type: ignore[arg-type]
    return Picture(width=WIDTH, height=HEIGHT, pixel=form, colour=colour)


def codes_of(shown: Picture, rgb: tuple[float, float, float]) -> list[float]:
    pixel = torch.tensor(rgb).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    return [float(plane[0, 0, 0]) for plane in Coding(shown).from_rgb(pixel)]


def round_trip(shown: Picture, planes: list[torch.Tensor]) -> list[torch.Tensor]:
    coding = Coding(shown)
    return [quantise(plane, shown.pixel.depth) for plane in coding.from_rgb(coding.to_rgb(planes))]


def coded(shown: Picture, rgb: torch.Tensor) -> list[torch.Tensor]:
    """RGB rows as the planes of a clip, chroma sited as its tags say."""
    full = replace(shown, pixel=replace(shown.pixel, log2_chroma_w=0, log2_chroma_h=0))
    luma, *chroma = Coding(full).from_rgb(rgb)
    sampled = [
        resample(plane, *plane_axes(full, shown, i), "bicubic") for i, plane in enumerate(chroma, start=1)
    ]
    return [quantise(plane, shown.pixel.depth) for plane in (luma, *sampled)]


def bars(level: float) -> torch.Tensor:
    """Eight upright bars above the same in reverse order, so that edges run both ways."""
    corners = torch.tensor(list(product((1.0, 0.0), repeat=3))) * level
    row = corners.T.repeat_interleave(WIDTH // 8, dim=1)
    upper = row[:, None, :].expand(3, HEIGHT // 2, WIDTH)
    return torch.cat([upper, upper.flip(-1)], dim=1).unsqueeze(0)


def ramps() -> torch.Tensor:
    ramp = torch.linspace(0, 1, WIDTH).expand(HEIGHT, WIDTH)
    return torch.stack([ramp, ramp.flip(-1), ramp * 0 + 0.5]).unsqueeze(0)


@pytest.mark.parametrize(
    ("matrix", "rgb", "expected"),
    [  # BT.709, BT.601 and BT.2020 with limited range, as the recommendations' tables give them
        (1, (1.0, 1.0, 1.0), (235, 128, 128)),
        (1, (1.0, 0.0, 0.0), (63, 102, 240)),
        (1, (0.0, 0.0, 1.0), (32, 240, 118)),
        (6, (1.0, 0.0, 0.0), (81, 90, 240)),
        (6, (0.0, 1.0, 0.0), (145, 54, 34)),
        (9, (1.0, 0.0, 0.0), (74, 97, 240)),
    ],
)
def test_primary_colours_have_the_recommendations_codes(
    matrix: int, rgb: tuple[float, float, float], expected: tuple[int, int, int]
) -> None:
    assert [round(code) for code in codes_of(picture(matrix=matrix), rgb)] == list(expected)


def test_ten_bit_white_and_full_range_white_are_where_they_belong() -> None:
    assert codes_of(picture(depth=10), (1, 1, 1)) == pytest.approx([940, 512, 512], abs=1e-3)
    full = picture(depth=10, is_full_range=True)
    assert codes_of(full, (1, 1, 1)) == pytest.approx([1023, 512, 512], abs=1e-3)


def test_an_unspecified_matrix_follows_the_height_of_the_picture() -> None:
    small = picture(matrix=2)
    assert codes_of(small, (1, 0, 0)) == codes_of(picture(matrix=6), (1, 0, 0))
    large = replace(small, height=1080)
    assert codes_of(large, (1, 0, 0)) == codes_of(picture(matrix=1), (1, 0, 0))


@pytest.mark.parametrize("matrix", [6, 1, 9])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("depth", [8, 10])
@pytest.mark.parametrize("siting", ["left", "topleft"])
@pytest.mark.parametrize("sub", ["420", "422", "444"])
def test_bars_and_ramps_survive_rgb(matrix: int, full: bool, depth: int, sub: str, siting: str) -> None:
    shown = picture(sub, depth, matrix=matrix, is_full_range=full, siting=siting)
    for drawn in (bars(1.0), bars(0.75), ramps()):
        before = coded(shown, drawn)
        after = round_trip(shown, before)
        off = [(a - b).abs() for a, b in zip(before, after, strict=True)]
        assert off[0].max() <= 1, "luma"
        edge = 1 if sub == "444" else EDGE_CODES * 2 ** (depth - 8)
        assert max(float(off[1].max()), float(off[2].max())) <= edge, "chroma at edges"


@pytest.mark.parametrize("siting", ["left", "center", "topleft"])
@pytest.mark.parametrize("sub", ["420", "422"])
def test_flat_areas_keep_their_chroma(sub: str, siting: str) -> None:
    shown = picture(sub, siting=siting)
    before = coded(shown, bars(1.0))
    after = round_trip(shown, before)
    bar = before[1].shape[-1] // 8
    middle = [i * bar + bar // 2 for i in range(8)]
    rows = before[1].shape[-2] // 4
    for a, b in zip(before[1:], after[1:], strict=True):
        assert (a - b)[0, rows, middle].abs().max() <= 1


def test_no_colour_shift_over_all_legal_colours() -> None:
    torch.manual_seed(3)
    shown = picture()
    rgb = torch.rand(1, 3, HEIGHT, WIDTH)
    again = Coding(shown).to_rgb(coded(shown, rgb))
    assert (again - rgb).mean(dim=(0, 2, 3)).abs().max() < 2e-4
    assert (again - rgb).abs().max() < 0.012  # what eight bits leave


@pytest.mark.parametrize("matrix", [10, 11, 12, 13, 14])
def test_unconverted_matrices_are_refused_by_number(matrix: int) -> None:
    with pytest.raises(MediaError, match=f"\\({matrix}\\).*--model bicubic"):
        check_rgb_path(picture(matrix=matrix))


def test_rgb_in_yuv_planes_passes_only_without_subsampling() -> None:
    check_rgb_path(picture("444", matrix=0))
    with pytest.raises(MediaError):
        check_rgb_path(picture("420", matrix=0))
    assert codes_of(picture(matrix=0, is_full_range=True), (1.0, 0.5, 0.0)) == pytest.approx([127.5, 0, 255])


def test_the_shaper_is_reversible_far_above_white() -> None:
    light = torch.tensor([-2.0, -1e-4, 0.0, 1e-5, 0.18, 1.0, 40.0, 100.0, 60000.0])
    assert torch.allclose(unshape(shape(light)), light, rtol=1e-5, atol=1e-8)
    assert shape(torch.tensor(100.0)) == pytest.approx(1.0)
    assert np.all(np.diff(shape(light).numpy()) > 0)
