"""The network while it is trained: richer than what is shipped, and folded to a plain Compact at the end.

Each inner convolution is the sum of a 3x3 kernel, the identity and a 3x3 kernel to twice the channels
followed by a 1x1 back. All of it is linear, so it is summed up as a kernel before the picture is touched:
a step costs what a plain Compact's costs, and learns faster.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_WIDER = 2


class FoldedConv(nn.Module):
    """A square 3x3 convolution in parts."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.expand = nn.Parameter(torch.empty(_WIDER * channels, channels, 3, 3))
        self.reduce = nn.Parameter(torch.empty(channels, _WIDER * channels))
        nn.init.normal_(self.kernel, std=0.3 * (2 / (9 * channels)) ** 0.5)
        nn.init.normal_(self.expand, std=(1 / (9 * channels)) ** 0.5)
        nn.init.normal_(self.reduce, std=0.3 * (1 / (_WIDER * channels)) ** 0.5)

    def folded(self) -> Tensor:
        """The one kernel that does what all parts together do."""
        channels = self.kernel.shape[0]
        path = (self.reduce @ self.expand.flatten(1)).view_as(self.kernel)
        identity = torch.zeros_like(self.kernel)
        identity[range(channels), range(channels), 1, 1] = 1.0
        return self.kernel + path + identity

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.folded(), self.bias, padding=1)


class Prelu(nn.Module):
    """nn.PReLU, whose gradient on a CPU takes longer than the convolution's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = _PreluFunction.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return result


class _PreluFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        slope = slope.to(x.dtype)[None, :, None, None]
        ctx.save_for_backward(x, slope)
        return x.clamp(min=0).addcmul_(x.clamp(max=0), slope)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (given,) = gradients
        x, slope = ctx.saved_tensors
        for_slope = (given * x.clamp(max=0)).permute(0, 2, 3, 1).flatten(0, 2).sum(0, dtype=torch.float32)
        positive = torch.ops.aten.threshold_backward(given, x, 0)
        return (given - positive).mul_(slope).add_(positive), for_slope


class TrainedCompact(nn.Module):
    """Compact's body with `FoldedConv`s inside; takes and gives RGB in [0, 1]."""

    def __init__(self, *, num_feat: int, num_conv: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        layers: list[nn.Module] = [nn.Conv2d(3, num_feat, 3, 1, 1), Prelu(num_feat)]
        for _ in range(num_conv):
            layers += [FoldedConv(num_feat), Prelu(num_feat)]
        last = nn.Conv2d(num_feat, 3 * scale * scale, 3, 1, 1)
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.zero_()  # type: ignore[union-attr]
        self.body = nn.ModuleList([*layers, last])

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for layer in self.body:
            out = layer(out)
        residual = functional.pixel_shuffle(out.float(), self.scale)
        return residual + functional.interpolate(x, scale_factor=float(self.scale), mode="nearest")


def plain_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A `TrainedCompact`'s state under a plain Compact's keys: kernels folded."""
    plain = {}
    for key, value in state.items():
        stem, _, part = key.rpartition(".")
        if part == "kernel":
            conv = FoldedConv(value.shape[0])
            conv.load_state_dict({name: state[f"{stem}.{name}"] for name in conv.state_dict()})
            plain[f"{stem}.weight"] = conv.folded().detach()
        elif part not in ("expand", "reduce"):
            plain[key] = value
    return plain


def body_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """All but the last layer: what a network of another scale can start from."""
    last = max(int(key.split(".")[1]) for key in state)
    return {key: value for key, value in state.items() if int(key.split(".")[1]) != last}
