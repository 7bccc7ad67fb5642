"""Warping by flow and deformable convolution in plain tensor code, for the networks that basicsr defines.

basicsr's own warp loses its coordinates in half precision, and its deformable convolution needs torchvision
or a compiled extension. These run alike on every device; coordinates are fp32 whatever the features are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def flow_warp(
    x: Tensor,
    flow: Tensor,
    interp_mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = True,
) -> Tensor:
    """Samples of `x` (n, c, h, w) from where `flow` (n, h, w, 2; x before y) points, in x's type."""
    height, width = x.shape[-2:]
    rows = torch.arange(height, device=x.device, dtype=torch.float32)
    columns = torch.arange(width, device=x.device, dtype=torch.float32)
    across = (columns + flow[..., 0].float()) * (2.0 / max(width - 1, 1)) - 1.0
    down = (rows[:, None] + flow[..., 1].float()) * (2.0 / max(height - 1, 1)) - 1.0
    places = torch.stack((across, down), dim=3)
    sampled = functional.grid_sample(
        x.float(), places, mode=interp_mode, padding_mode=padding_mode, align_corners=align_corners
    )
    return sampled.to(x.dtype)


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Modulated deformable convolution (DCNv2) with one weight group, as torchvision.ops.deform_conv2d."""
    (step_y, step_x), (pad_y, pad_x), (gap_y, gap_x) = map(_pair, (stride, padding, dilation))
    batch, channels, height, width = x.shape
    high, wide = weight.shape[-2:]
    taps = high * wide
    groups = offset.shape[1] // (2 * taps)
    rows, columns = offset.shape[-2:]
    shifts = offset.float().view(batch, groups, taps, 2, rows, columns)
    gains = None if mask is None else mask.view(batch, groups, taps, rows, columns)
    planes = x.float().reshape(batch * groups, channels // groups, height, width)
    top = torch.arange(rows, device=x.device, dtype=torch.float32)[:, None] * step_y - pad_y
    left = torch.arange(columns, device=x.device, dtype=torch.float32) * step_x - pad_x
    total: Tensor | None = None
    for tap in range(taps):
        down = shifts[:, :, tap, 0] + top + tap // wide * gap_y
        across = shifts[:, :, tap, 1] + left + tap % wide * gap_x
        places = torch.stack(
            (across * (2.0 / max(width - 1, 1)) - 1.0, down * (2.0 / max(height - 1, 1)) - 1.0), dim=-1
        ).view(batch * groups, rows, columns, 2)
        seen = functional.grid_sample(planes, places, align_corners=True)
        seen = seen.view(batch, groups, channels // groups, rows, columns)
        if gains is not None:
            seen = seen * gains[:, :, tap, None]
        kernel = weight[:, :, tap // wide, tap % wide, None, None]
        part = functional.conv2d(seen.reshape(batch, channels, rows, columns).to(weight.dtype), kernel)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total if bias is None else total.add_(bias.view(1, -1, 1, 1))


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
