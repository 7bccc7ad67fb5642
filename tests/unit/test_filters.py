"""Plane-wise filters: exact where nothing moves, sited where chroma is, bounded where depths differ."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch

from vsr_hpc.engine.filters import Axis, Filter, code_map, plane_axes, resample, scaling_axis
from vsr_hpc.media.picture import Colour, Picture, PixelFormat


def pixel(sub: str = "420", depth: int = 8) -> PixelFormat:
    w, h = {"420": (1, 1), "422": (1, 0), "444": (0, 0)}[sub]
    return PixelFormat(name=f"yuv{sub}p{depth}", kind="yuv", depth=depth, log2_chroma_w=w, log2_chroma_h=h)


def picture(width: int, height: int, siting: str = "left", sub: str = "420", depth: int = 8) -> Picture:
    colour = Colour(siting=siting)  # type: ignore[arg-type]
    return Picture(width=width, height=height, pixel=pixel(sub, depth), colour=colour)


@pytest.mark.parametrize(
    ("kind", "siting"), list(product(("nearest", "bicubic", "lanczos"), ("left", "center", "topleft")))
)
def test_scale_1_moves_nothing(kind: Filter, siting: str) -> None:
    same = picture(33, 25, siting)
    noise = torch.rand(25, 33)
    for plane in range(3):
        x, y = plane_axes(same, same, plane)
        part = noise[: y.n_in, : x.n_in]
        assert torch.equal(resample(part, x, y, kind), part)


def test_nearest_at_2_repeats_every_sample_of_every_plane() -> None:
    small, large = picture(8, 6), picture(16, 12)
    for plane in range(3):
        x, y = plane_axes(small, large, plane)
        samples = torch.arange(x.n_in * y.n_in).reshape(y.n_in, x.n_in)
        expected = samples.repeat_interleave(2, 0).repeat_interleave(2, 1)
        assert torch.equal(resample(samples, x, y, "nearest"), expected)


@pytest.mark.parametrize("kind", ["bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(64, 40), (23, 17), (32, 24), (47, 31)])
def test_a_flat_plane_stays_flat_at_any_size(kind: Filter, size: tuple[int, int]) -> None:
    out = resample(torch.full((24, 32), 200.0), scaling_axis(32, size[0]), scaling_axis(24, size[1]), kind)
    assert out.shape == (size[1], size[0])
    assert (out - 200).abs().max() < 1e-3


@pytest.mark.parametrize("siting", ["left", "center", "topleft", "bottom"])
@pytest.mark.parametrize("scale", [Fraction(2), Fraction(3, 2), Fraction(1, 2)])
def test_a_chroma_ramp_stays_where_the_luma_ramp_is(siting: str, scale: Fraction) -> None:
    source = picture(64, 48, siting)
    target = picture(int(64 * scale), int(48 * scale), siting)
    x, y = plane_axes(source, target, 1)
    across = 0.0 if siting in ("left", "topleft") else 0.5
    ramp = (torch.arange(32) * 2 + across).expand(24, 32)  # each chroma sample holds its luma position
    out = resample(ramp.contiguous(), x, y, "bicubic")
    expected = (torch.arange(x.n_out) * 2 + across + 0.5) / float(scale) - 0.5
    assert (out[10, 5:-5] - expected[5:-5]).abs().max() < 1e-3


def test_shrinking_is_antialiased() -> None:
    stripes = torch.tensor([0.0, 255.0]).repeat(32).expand(64, 64).contiguous()
    out = resample(stripes, scaling_axis(64, 16), scaling_axis(64, 16), "bicubic")
    assert (out[:, 2:-2] - 127.5).abs().max() < 6


def test_bicubic_is_the_catmull_rom_of_a_dense_sum() -> None:
    axis = scaling_axis(7, 17)
    row = torch.rand(1, 7, dtype=torch.float32)
    out = resample(row, axis, Axis(1, 1, Fraction(0), Fraction(1)), "bicubic")[0]
    for k in range(17):
        at = (k + 0.5) * 7 / 17 - 0.5
        total = 0.0
        for j in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            d = abs(at - j)
            near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
            total += (near if d < 1 else far) * float(row[0, min(6, max(0, j))])
        assert abs(float(out[k]) - total) < 1e-5


@pytest.mark.parametrize("depth", [10, 12, 16])
def test_deeper_codes_keep_black_white_and_neutral_chroma(depth: int) -> None:
    shallow, deep = picture(8, 8), picture(8, 8, depth=depth)
    gain, offset = code_map(shallow, deep, 0)
    assert (16 * gain + offset, 235 * gain + offset) == (16 * 2 ** (depth - 8), 235 * 2 ** (depth - 8))
    gain, offset = code_map(shallow, deep, 1)
    assert 128 * gain + offset == 2 ** (depth - 1)
