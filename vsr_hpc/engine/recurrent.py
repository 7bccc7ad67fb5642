"""Recurrent networks over one window of frames: both directions, state from frame to frame, core frames out.

The modules are basicsr's; the order of work is ours. A whole sequence at once would hold every frame's
features and every result. Here the backward direction keeps the features of the frames that need them, the
forward direction hands out each result as it is made and lets its features go. So memory is bounded by the
window, whatever the clip's length, and a tile's size bounds what the device holds at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from vsr_hpc.models.cards import Card, Precision
from vsr_hpc.models.warping import flow_warp

Pictures = Callable[[int], Tensor]
"""A window's frame as (1, 3, rows, columns) in fp32, by its place in the window."""
Crop = tuple[slice, slice]

_SMALLEST_SIDE = 33
"""SpyNet halves its input five times and a sixth time for its first guess: this is the least it takes."""
_FLOW_IS_FP32 = "spynet"
_SHARE_OF_FREE_MEMORY = 0.5


class Propagation:
    """A recurrent network, ready to run windows; nothing is carried from one window to the next."""

    peak_kept_bytes: int
    """The most that was kept of frames at a time, over all windows so far."""

    def __init__(self, network: nn.Module, card: Card) -> None:
        parameters = dict(card.parameters)
        self._net: nn.Module = network
        self._is_icon = card.network == "iconvsr"
        self._features = int(parameters["num_feat"])
        self._stride = int(parameters.get("keyframe_stride", 0))
        self._padding = int(parameters.get("temporal_padding", 0))
        self._dtype = _type_of(network)
        self.peak_kept_bytes = 0

    @torch.inference_mode()
    def run(
        self, pictures: Pictures, count: int, core: range, crops: Sequence[Crop]
    ) -> Iterator[list[Tensor]]:
        """For each frame of `core`, a part of range(count), its upscaled crops in fp32, in order.

        Frames outside of the core are context. Every crop has states of its own.
        """
        kept: dict[int, list[Tensor]] = {}
        keys: dict[int, list[Tensor]] = {}
        shelf = self._shelf(pictures(0), len(core), crops)
        self._go_back(pictures, count, core, crops, kept, keys, shelf)
        states: list[Tensor | None] = [None] * len(crops)
        for i in range(core.stop):
            here, before = pictures(i), pictures(i - 1) if i else None
            made = []
            for number, (rows, columns) in enumerate(crops):
                x = here[..., rows, columns]
                state = self._move(x, before, states[number], (rows, columns))
                behind = kept[i][number].to(x.device) if i in kept else None
                key = keys[i][number].to(x.device) if i in keys else None
                state = self._step(x, state, key, "forward", behind)
                states[number] = state
                if i in core:
                    made.append(self._finish(x, state, behind))
            kept.pop(i, None)
            keys.pop(i, None)
            if i in core:
                yield made

    def _go_back(
        self,
        pictures: Pictures,
        count: int,
        core: range,
        crops: Sequence[Crop],
        kept: dict[int, list[Tensor]],
        keys: dict[int, list[Tensor]],
        shelf: torch.device,
    ) -> None:
        """From the last frame to the first one whose features the forward direction wants."""
        states: list[Tensor | None] = [None] * len(crops)
        first = 0 if self._is_icon else core.start
        key_frames = {*range(0, count, self._stride), count - 1} if self._is_icon else set()
        for i in range(count - 1, first - 1, -1):
            here, after = pictures(i), pictures(i + 1) if i + 1 < count else None
            features = []
            if i in key_frames:
                found = [self._key(pictures, i, count, crop) for crop in crops]
                keys[i] = found
            for number, (rows, columns) in enumerate(crops):
                x = here[..., rows, columns]
                state = self._move(x, after, states[number], (rows, columns))
                state = self._step(x, state, keys[i][number] if i in keys else None, "backward", None)
                states[number] = state
                features.append(state.to(shelf))
            if i in keys:
                keys[i] = [each.to(shelf) for each in keys[i]]
                if i >= core.stop:
                    del keys[i]
            if i < core.stop:
                kept[i] = features
            held = sum(each.numel() * each.element_size() for part in (kept, keys) for each in _all(part))
            self.peak_kept_bytes = max(self.peak_kept_bytes, held)

    # One frame of one crop ---------------------------------------------------------------------------------

    def _move(self, x: Tensor, other: Tensor | None, state: Tensor | None, crop: Crop) -> Tensor:
        """The neighbour's state where this frame's pixels were; zeros where there is no neighbour."""
        if other is None or state is None:
            return x.new_zeros((1, self._features, *x.shape[-2:]), dtype=self._dtype)
        flow = self._flow(x, other[..., crop[0], crop[1]])
        return flow_warp(state, flow.permute(0, 2, 3, 1))

    def _flow(self, x: Tensor, other: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        missing = (0, max(0, _SMALLEST_SIDE - width), 0, max(0, _SMALLEST_SIDE - height))
        if any(missing):
            x, other = (functional.pad(each, missing, mode="replicate") for each in (x, other))
        return self._module("spynet")(x, other)[..., :height, :width]

    def _step(
        self, x: Tensor, state: Tensor, key: Tensor | None, direction: str, behind: Tensor | None
    ) -> Tensor:
        if key is not None:
            state = self._module(f"{direction}_fusion")(torch.cat((state, key), dim=1))
        parts = [x.to(self._dtype), state]
        if self._is_icon and behind is not None:
            parts.insert(1, behind)
        out: Tensor = self._module(f"{direction}_trunk")(torch.cat(parts, dim=1))
        return out

    def _key(self, pictures: Pictures, i: int, count: int, crop: Crop) -> Tensor:
        """IconVSR's refill: features of a keyframe and of the frames around it, mirrored at the ends."""
        reach = self._padding
        front = [2 * reach - k for k in range(reach)]
        back = [count - (reach + 2) - k for k in range(reach)]
        around = [*front, *range(count), *back][i : i + 2 * reach + 1]
        frames = [pictures(min(max(k, 0), count - 1))[..., crop[0], crop[1]] for k in around]
        out: Tensor = self._module("edvr")(torch.stack(frames, dim=1).to(self._dtype))
        return out

    def _finish(self, x: Tensor, state: Tensor, behind: Tensor | None) -> Tensor:
        lrelu, shuffle = self._module("lrelu"), self._module("pixel_shuffle")
        if not self._is_icon:
            assert behind is not None
            state = lrelu(self._module("fusion")(torch.cat((behind, state), dim=1)))
        out = lrelu(shuffle(self._module("upconv1")(state)))
        out = lrelu(shuffle(self._module("upconv2")(out)))
        out = self._module("conv_last")(lrelu(self._module("conv_hr")(out)))
        return out.float() + functional.interpolate(x, scale_factor=4.0, mode="bilinear", align_corners=False)

    def _module(self, name: str) -> Callable[..., Tensor]:
        module = getattr(self._net, name)
        assert isinstance(module, nn.Module)
        return module

    def _shelf(self, like: Tensor, frames: int, crops: Sequence[Crop]) -> torch.device:
        """Where features wait: on the device if there is room, else in the host's memory. No byte depends."""
        if like.device.type != "cuda":
            return like.device
        pixels = sum((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in crops)
        wanted = frames * pixels * self._features * torch.finfo(self._dtype).bits // 8
        free, _ = torch.cuda.mem_get_info(like.device)
        return like.device if wanted < free * _SHARE_OF_FREE_MEMORY else torch.device("cpu")


def set_type(network: nn.Module, precision: Precision) -> None:
    """All but the optical flow in `precision`: a flow of half precision misses by pixels."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    for name, child in network.named_children():
        if name != _FLOW_IS_FP32:
            child.to(dtype=dtype)


def _type_of(network: nn.Module) -> torch.dtype:
    weight = network.get_parameter("conv_last.weight")
    return weight.dtype


def _all(kept: dict[int, list[Tensor]]) -> Iterator[Tensor]:
    for tensors in kept.values():
        yield from tensors
