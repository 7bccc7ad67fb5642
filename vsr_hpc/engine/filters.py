"""Plane-wise resampling: nearest, bicubic (Catmull-Rom), Lanczos-3; separable, siting-aware, on any device.

A filter never visits RGB. Positions are exact rationals, so a plane at scale 1 whose sites do not move
comes back bit-equal, and a picture's size alone decides every weight.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vsr_hpc.engine.geometry import is_full_range
from vsr_hpc.media.picture import Picture

Filter = Literal["nearest", "bicubic", "lanczos"]

_RADIUS: dict[Filter, int] = {"bicubic": 2, "lanczos": 3}
_BLOCK = {"cpu": 16, "cuda": 256}
"""Output samples of one matrix: small ones waste fewer products on a CPU, large ones launch less on a GPU."""

# Where a chroma sample lies among the luma samples it belongs to, per axis. A clip that does not say is
# taken as "left", the site of MPEG-2, H.264, H.265 and AV1's default.
_SITES: dict[str, tuple[str, str]] = {
    "unspecified": ("first", "middle"),
    "left": ("first", "middle"),
    "center": ("middle", "middle"),
    "topleft": ("first", "first"),
    "top": ("middle", "first"),
    "bottomleft": ("first", "last"),
    "bottom": ("middle", "last"),
}


@dataclass(frozen=True, slots=True)
class Axis:
    """How output sample k lies on the input's samples: at offset + k * step."""

    n_in: int
    n_out: int
    offset: Fraction
    step: Fraction

    @property
    def is_identity(self) -> bool:
        return self.n_in == self.n_out and self.offset == 0 and self.step == 1


def scaling_axis(n_in: int, n_out: int) -> Axis:
    """A full-resolution axis: edges meet edges."""
    ratio = Fraction(n_in, n_out)
    return Axis(n_in, n_out, ratio / 2 - Fraction(1, 2), ratio)


def plane_axes(source: Picture, target: Picture, plane: int) -> tuple[Axis, Axis]:
    """(x, y) of one plane, from where its samples are sited in the source to where they are in the target."""
    in_w, in_h = source.pixel.plane_size(plane, source.width, source.height)
    out_w, out_h = target.pixel.plane_size(plane, target.width, target.height)
    in_x, in_y = chroma_grid(source, plane)
    out_x, out_y = chroma_grid(target, plane)
    return (
        _axis(in_w, out_w, Fraction(source.width, target.width), in_x, out_x),
        _axis(in_h, out_h, Fraction(source.height, target.height), in_y, out_y),
    )


def chroma_grid(picture: Picture, plane: int) -> tuple[tuple[int, Fraction], tuple[int, Fraction]]:
    """((step, offset) across, (step, offset) down) of a plane's samples, in luma samples."""
    if picture.pixel.kind != "yuv" or plane not in (1, 2):
        return (1, Fraction(0)), (1, Fraction(0))
    across, down = _SITES[picture.colour.siting]
    return _site(picture.pixel.log2_chroma_w, across), _site(picture.pixel.log2_chroma_h, down)


def resample(samples: torch.Tensor, x: Axis, y: Axis, kind: Filter) -> torch.Tensor:
    """Resample the last two dimensions (rows, columns). Floats; nearest takes any type."""
    if y.n_out > y.n_in:  # the axis that grows more data goes last
        return _along_rows(_along_columns(samples, x, kind), y, kind)
    return _along_columns(_along_rows(samples, y, kind), x, kind)


def code_map(source: Picture, target: Picture, plane: int) -> tuple[float, float]:
    """(gain, offset) that takes a plane's codes to the target's bit depth."""
    if is_full_range(source) != is_full_range(target):
        raise ValueError("plane-wise filters do not change the range")
    d_in, d_out = source.pixel.depth, target.pixel.depth
    if d_in == d_out:
        return 1.0, 0.0
    is_alpha = source.pixel.has_alpha and plane == source.pixel.plane_count - 1
    if is_full_range(source) or is_alpha:
        gain = _top(d_out) / _top(d_in)
    else:
        gain = 2.0 ** (d_out - d_in)
    if source.pixel.kind == "yuv" and plane in (1, 2):
        return gain, 2.0 ** (d_out - 1) - gain * 2.0 ** (d_in - 1)
    return gain, 0.0


def _top(depth: int) -> float:
    return 1.0 if depth == 32 else 2.0**depth - 1


def _site(log2: int, where: str) -> tuple[int, Fraction]:
    step = 1 << log2
    return step, {"first": Fraction(0), "middle": Fraction(step - 1, 2), "last": Fraction(step - 1)}[where]


def _axis(
    n_in: int, n_out: int, ratio: Fraction, grid_in: tuple[int, Fraction], grid_out: tuple[int, Fraction]
) -> Axis:
    (step_in, at_in), (step_out, at_out) = grid_in, grid_out
    half = Fraction(1, 2)
    return Axis(n_in, n_out, ((at_out + half) * ratio - half - at_in) / step_in, step_out * ratio / step_in)


def _along_rows(samples: torch.Tensor, axis: Axis, kind: Filter) -> torch.Tensor:
    if axis.is_identity:
        return samples
    if kind == "nearest":
        return samples.index_select(-2, _nearest(axis, samples.device))
    out = samples.new_empty((*samples.shape[:-2], axis.n_out, samples.shape[-1]))
    for block in _operator(axis, kind, samples.device):
        out[..., block.out, :] = torch.matmul(block.weights, samples[..., block.taken, :])
    return out


def _along_columns(samples: torch.Tensor, axis: Axis, kind: Filter) -> torch.Tensor:
    if axis.is_identity:
        return samples
    if kind == "nearest":
        return samples.index_select(-1, _nearest(axis, samples.device))
    out = samples.new_empty((*samples.shape[:-1], axis.n_out))
    for block in _operator(axis, kind, samples.device):
        out[..., block.out] = torch.matmul(samples[..., block.taken], block.weights.T)
    return out


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """A run of output samples, the input samples they need, and a small dense matrix between them."""

    out: slice
    taken: slice
    weights: torch.Tensor


@functools.lru_cache(maxsize=64)
def _nearest(axis: Axis, device: torch.device) -> torch.Tensor:
    numerators, denominator = _positions(axis)
    index = (2 * numerators + denominator) // (2 * denominator)  # floor(position + 1/2)
    return torch.from_numpy(np.clip(index, 0, axis.n_in - 1)).to(device)


@functools.lru_cache(maxsize=64)
def _operator(axis: Axis, kind: Filter, device: torch.device) -> tuple[_Block, ...]:
    index, weights = taps(axis, kind)
    blocks = []
    step = _BLOCK.get(device.type, 64)
    for start in range(0, axis.n_out, step):
        stop = min(axis.n_out, start + step)
        low, high = int(index[start:stop].min()), int(index[start:stop].max()) + 1
        dense = np.zeros((stop - start, high - low))
        rows = np.repeat(np.arange(stop - start), index.shape[1])
        np.add.at(dense, (rows, index[start:stop].ravel() - low), weights[start:stop].ravel())
        blocks.append(
            _Block(
                slice(start, stop), slice(low, high), torch.from_numpy(dense.astype(np.float32)).to(device)
            )
        )
    return tuple(blocks)


def taps(axis: Axis, kind: Filter) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Input indices and weights of every output sample; the border's samples repeat beyond it."""
    numerators, denominator = _positions(axis)
    widen = max(1.0, float(axis.step))  # antialiasing: the kernel grows when the picture shrinks
    reach = int(np.ceil(_RADIUS[kind] * widen))
    near = np.arange(-reach, reach + 2)
    base = numerators // denominator
    fraction = (numerators % denominator) / denominator
    weights = _kernel((near[None, :] - fraction[:, None]) / widen, kind)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.clip(base[:, None] + near[None, :], 0, axis.n_in - 1), weights


def _positions(axis: Axis) -> tuple[NDArray[np.int64], int]:
    denominator = int(np.lcm(axis.offset.denominator, axis.step.denominator))
    offset, step = int(axis.offset * denominator), int(axis.step * denominator)
    return offset + step * np.arange(axis.n_out, dtype=np.int64), denominator


def _kernel(distance: NDArray[np.float64], kind: Filter) -> NDArray[np.float64]:
    d = np.abs(distance)
    if kind == "lanczos":
        return np.where(d < 3, np.sinc(d) * np.sinc(d / 3), 0.0)
    near = 1.5 * d**3 - 2.5 * d**2 + 1  # Catmull-Rom, a = -1/2
    far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    return np.where(d < 1, near, np.where(d < 2, far, 0.0))
