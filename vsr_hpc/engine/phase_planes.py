"""From a network's last convolution to the output's planes in one go, a few rows at a time.

A network that ends in a pixel shuffle leaves each input pixel's s x s output pixels side by side, as phases.
All that follows is done there: the input is added, values are clamped, what lay outside of the network's
range is carried around it, RGB becomes planes by one small matrix product, samples are rounded. Only then
are phases laid out as rows. A strip of rows stays in the cache, so no full-size tensor in float is read
and written again and again; on a GPU a strip is the whole frame.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vsr_hpc.engine.colour import encoding, without_subsampling
from vsr_hpc.engine.filters import Axis, plane_axes, resample, taps
from vsr_hpc.media.picture import Picture

_STRIP_PIXELS = 2560
"""Input pixels of one strip on a CPU: its 48 phases in float, twice, fit into a core's own cache."""
_REACH = 2
"""Input pixels on either side that the cubic filter needs."""


def is_fusible(picture: Picture) -> bool:
    """Whether the output's planes are made here; the rest takes the general way through RGB."""
    return picture.pixel.kind == "yuv" and picture.pixel.depth <= 16 and not picture.pixel.has_alpha


class PhasePlanes:
    """Makes planes of phases; equal to the general way but for the order of additions."""

    def __init__(self, scale: int, picture: Picture, device: torch.device) -> None:
        self._scale, self._picture, self._device = scale, picture, device
        phases = scale * scale
        matrix, offset = encoding(picture)
        mixed = np.kron(matrix.T, np.eye(phases))
        self._matrix = torch.from_numpy(mixed.astype(np.float32)).to(device)
        self._offset = torch.from_numpy(np.repeat(offset, phases).astype(np.float32)).to(device)
        self._cubic = torch.from_numpy(_cubic_phases(scale)).to(device)
        self._sample = torch.uint8 if picture.pixel.depth == 8 else torch.int16
        self._top = 2**picture.pixel.depth - 1
        self._full = without_subsampling(picture)

    def __call__(self, phases: Tensor, inside: Tensor, excess: Tensor | None) -> list[Tensor]:
        """(frames, 3 s s, rows, columns), RGB that the network saw, and what of it lay outside, or None.

        Gives (frames, rows, columns) of samples for each plane, rounded.
        """
        made = [
            self._frame(phases[i], inside[i], None if excess is None else excess[i])
            for i in range(len(phases))
        ]
        return [torch.stack(planes) for planes in zip(*made, strict=True)]

    def _frame(self, phases: Tensor, inside: Tensor, excess: Tensor | None) -> list[Tensor]:
        height, width = phases.shape[-2:]
        last, rgb = phases.permute(1, 2, 0), inside.permute(1, 2, 0)
        around = None
        if excess is not None:
            around = functional.pad(excess.unsqueeze(0), (_REACH,) * 4, mode="replicate")[0]
        planes = self._empty(height, width)
        step = height if self._device.type == "cuda" else max(1, _STRIP_PIXELS // width)
        for start in range(0, height, step):
            stop = min(height, start + step)
            x = self._add_input(last[start:stop], rgb[start:stop])
            if around is not None:
                self._carry(x, around[:, start : stop + 2 * _REACH])
            codes = torch.addmm(self._offset, x.flatten(0, 1), self._matrix)
            for plane, part in zip(planes, codes.chunk(3, dim=1), strict=True):
                self._lay_out(part, plane, start, stop, width)
        return [self._place_samples(plane, i) for i, plane in enumerate(planes)]

    def _add_input(self, last: Tensor, rgb: Tensor) -> Tensor:
        """What the network shows: its residual and its input, within its range."""
        x = last.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        x.view(*x.shape[:2], 3, -1).add_(rgb.unsqueeze(-1))
        return x.clamp_(0, 1)

    def _carry(self, x: Tensor, around: Tensor) -> None:
        """Add what lay outside of the range, by the cubic filter, where there is any."""
        if self._device.type == "cuda" or bool(around.any()):
            bigger = functional.conv2d(around.unsqueeze(1), self._cubic)
            x.view(*x.shape[:2], 3, -1).add_(bigger.permute(2, 3, 0, 1))

    def _empty(self, height: int, width: int) -> list[Tensor]:
        """Luma in samples; chroma too unless it is still to be made smaller."""
        shape = (height * self._scale, width * self._scale)
        pixel = self._picture.pixel
        chroma = torch.float32 if pixel.log2_chroma_w or pixel.log2_chroma_h else self._sample
        return [
            torch.empty(shape, dtype=kind, device=self._device) for kind in (self._sample, chroma, chroma)
        ]

    def _lay_out(self, part: Tensor, plane: Tensor, start: int, stop: int, width: int) -> None:
        scale, rows = self._scale, stop - start
        if plane.dtype != torch.float32:
            part = self._round(part)
        target = plane[start * scale : stop * scale].view(rows, scale, width, scale)
        target.copy_(part.view(rows, width, scale, scale).permute(0, 2, 1, 3))

    def _place_samples(self, plane: Tensor, number: int) -> Tensor:
        if plane.dtype != torch.float32:
            return plane
        smaller = resample(plane, *plane_axes(self._full, self._picture, number), "lanczos")
        return self._round(smaller).to(self._sample)

    def _round(self, codes: Tensor) -> Tensor:
        """Half to even, as everywhere; 16-bit samples travel in int16 with the same bits."""
        codes = codes.round_().clamp_(0, self._top)
        return codes if self._top < 2**15 else codes.to(torch.int32).to(torch.int16)


def _cubic_phases(scale: int) -> NDArray[np.float32]:
    """(phases, 1, 5, 5): the cubic filter as a convolution of the input, one channel for each phase."""
    middle = 2 * _REACH + 1
    axis = Axis(middle, middle * scale, Fraction(1 - scale, 2 * scale), Fraction(1, scale))
    index, weights = taps(axis, "bicubic")
    dense = np.zeros((scale, middle))
    for phase in range(scale):
        row = _REACH * scale + phase
        np.add.at(dense[phase], index[row], weights[row])
    both = np.einsum("pi,qj->pqij", dense, dense)
    kernels: NDArray[np.float32] = both.reshape(scale * scale, 1, middle, middle).astype(np.float32)
    return kernels
