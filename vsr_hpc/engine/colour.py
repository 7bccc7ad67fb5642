"""Planes to RGB and back as tensor code: the only place where a frame leaves its own coding.

Matrices are H.273's; arithmetic is fp32 with float64 coefficients; nothing is clipped before the final
rounding. Chroma is resampled at its true sites with Lanczos-3 both ways, which loses half of what the
Catmull-Rom cubic loses. There and back at scale 1: luma and all of 4:4:4 exact; 75 and 100 % colour bars
in 4:2:0 and 4:2:2 exact in flat areas, at most 18 of 255 codes off beside a saturated edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from vsr_hpc.engine.filters import plane_axes, resample
from vsr_hpc.engine.geometry import LUMA_WEIGHTS, is_full_range
from vsr_hpc.media.picture import Picture

Planes = Sequence[torch.Tensor]
"""Per plane a (frames, rows, columns) float32 tensor of code values."""

_YCGCO = ((0.25, 0.5, 0.25), (-0.25, 0.5, -0.25), (0.5, 0.0, -0.5))

# The shaper around a network for scene-linear floats: odd, reversible, steep near black as display codes
# are; SHAPER_WHITE (linear) becomes 1, and what lies above travels on beyond 1.
SHAPER_STEEPNESS = 64.0
SHAPER_WHITE = 100.0


@dataclass(frozen=True, slots=True)
class Coding:
    """How a picture's planes (without alpha) relate to RGB in [0, 1]."""

    picture: Picture

    def to_rgb(self, planes: Planes) -> torch.Tensor:
        """(frames, 3, rows, columns); values outside [0, 1] are kept."""
        picture = self.picture
        if picture.pixel.kind == "rgb":
            rgb = torch.stack([planes[2], planes[0], planes[1]], dim=1)
            return shape(rgb) if picture.pixel.depth == 32 else _affine(rgb, *_level(picture))
        if picture.pixel.kind == "grey":
            grey = planes[0].unsqueeze(1)
            grey = shape(grey) if picture.pixel.depth == 32 else _affine(grey, *_level(picture))
            return grey.expand(-1, 3, -1, -1)
        full = without_subsampling(picture)
        luma = planes[0]
        chroma = [resample(planes[i], *plane_axes(picture, full, i), "lanczos") for i in (1, 2)]
        decode, offset = _decoding(picture)
        return torch.stack(
            [_mix((luma, *chroma), decode[row], float(offset[row])) for row in range(3)], dim=1
        )

    def from_rgb(self, rgb: torch.Tensor) -> list[torch.Tensor]:
        """Code values, not yet rounded or clipped."""
        picture = self.picture
        if picture.pixel.kind == "rgb":
            codes = unshape(rgb) if picture.pixel.depth == 32 else _affine_back(rgb, *_level(picture))
            return [codes[:, 1], codes[:, 2], codes[:, 0]]
        if picture.pixel.kind == "grey":
            grey = rgb.mean(dim=1)
            return [unshape(grey) if picture.pixel.depth == 32 else _affine_back(grey, *_level(picture))]
        encode, offset = encoding(picture)
        channels = rgb.unbind(dim=1)
        luma, *chroma = (_mix(channels, encode[row], float(offset[row])) for row in range(3))
        full = without_subsampling(picture)
        return [
            luma,
            *(resample(plane, *plane_axes(full, picture, i), "lanczos") for i, plane in enumerate(chroma, 1)),
        ]

    @property
    def half_code(self) -> float:
        """Half a code step in RGB units: what lies nearer than this to [0, 1] is within it."""
        if self.picture.pixel.depth == 32:
            return 1e-6
        return 0.5 / _level(self.picture)[0]


def quantise(codes: torch.Tensor, depth: int) -> torch.Tensor:
    """Round half to even and clip to what the depth holds: head- and footroom are kept."""
    return codes if depth == 32 else codes.round().clamp(0, 2**depth - 1)


def shape(linear: torch.Tensor) -> torch.Tensor:
    """Scene-linear light to a range that display-trained networks know."""
    span = math.log1p(SHAPER_STEEPNESS * SHAPER_WHITE)
    return torch.sign(linear) * torch.log1p(linear.abs() * SHAPER_STEEPNESS) / span


def unshape(shaped: torch.Tensor) -> torch.Tensor:
    """The inverse of `shape`, also above 1."""
    span = math.log1p(SHAPER_STEEPNESS * SHAPER_WHITE)
    return torch.sign(shaped) * torch.expm1(shaped.abs() * span) / SHAPER_STEEPNESS


def without_subsampling(picture: Picture) -> Picture:
    return replace(picture, pixel=replace(picture.pixel, log2_chroma_w=0, log2_chroma_h=0))


def _level(picture: Picture) -> tuple[float, float]:
    """(codes from black to white, code of black) of luma, RGB and grey."""
    depth = picture.pixel.depth
    if is_full_range(picture):
        return 2.0**depth - 1, 0.0
    return 219.0 * 2 ** (depth - 8), 16.0 * 2 ** (depth - 8)


def _rgb_to_ycc(picture: Picture) -> NDArray[np.float64]:
    matrix = picture.colour.decoding_matrix(picture.height)
    if matrix == 8:
        return np.array(_YCGCO)
    if matrix == 0:  # G, B, R in the planes of Y, U, V
        return np.array(((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)))
    red, blue = LUMA_WEIGHTS[matrix]
    luma = np.array((red, 1 - red - blue, blue), dtype=np.float64)
    cb = (np.array((0.0, 0.0, 1.0)) - luma) / (2 * (1 - blue))
    cr = (np.array((1.0, 0.0, 0.0)) - luma) / (2 * (1 - red))
    return np.stack((luma, cb, cr)).astype(np.float64)


def encoding(picture: Picture) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """codes = matrix @ rgb + offset."""
    depth, is_gbr = picture.pixel.depth, picture.colour.decoding_matrix(picture.height) == 0
    white, black = _level(picture)
    chroma = 2.0**depth - 1 if is_full_range(picture) else 224.0 * 2 ** (depth - 8)
    gain = np.array((white, white, white) if is_gbr else (white, chroma, chroma))
    middle = black if is_gbr else 2.0 ** (depth - 1)
    return gain[:, None] * _rgb_to_ycc(picture), np.array((black, middle, middle))


def _decoding(picture: Picture) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """rgb = matrix @ codes + offset."""
    encode, offset = encoding(picture)
    decode = np.linalg.inv(encode).astype(np.float64)
    return decode, -decode @ offset


def _mix(channels: Sequence[torch.Tensor], weights: NDArray[np.float64], offset: float) -> torch.Tensor:
    mixed: torch.Tensor | None = None
    for channel, weight in zip(channels, weights, strict=True):
        if abs(weight) < 1e-12:
            continue
        mixed = channel * float(weight) if mixed is None else mixed.add_(channel, alpha=float(weight))
    assert mixed is not None
    return mixed.add_(offset) if offset else mixed


def _affine(codes: torch.Tensor, white: float, black: float) -> torch.Tensor:
    return (codes - black) / white


def _affine_back(rgb: torch.Tensor, white: float, black: float) -> torch.Tensor:
    return rgb * white + black
