"""What a device can do at most: matrix products and copies, measured; and a network's floor from them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vsr_hpc.models.cards import Card, Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The least that a frame costs: operations at the matrix rate, or bytes at the memory's; the larger."""

    operations: float
    bytes_moved: float
    """Each layer's input read and its output written once; a device whose caches hold them moves less."""
    operations_s: float
    memory_s: float
    """Of the frame's own samples and the weights alone, moved once: what no program can avoid."""
    layers_s: float
    """Of `bytes_moved`, as if every layer went through memory."""

    @property
    def seconds(self) -> float:
        return max(self.operations_s, self.memory_s)


def seconds_of(
    run: Callable[[], object], device: torch.device, rounds: int = 5, *, lanes: int = 1
) -> list[float]:
    """Wall seconds per call of each of `rounds`, after one that does not count; on a GPU by device events.

    With `lanes` above 1 as many calls run side by side on a CPU, and each is charged its share of the time.
    """
    run()
    if device.type == "cuda":
        return [_device_seconds(run) for _ in range(rounds)]
    if lanes == 1:
        return [_seconds(run) for _ in range(rounds)]
    with ThreadPoolExecutor(max_workers=lanes) as pool:

        def side_by_side() -> None:
            for each in [pool.submit(run) for _ in range(lanes)]:
                each.result()

        side_by_side()
        return [_seconds(side_by_side) / lanes for _ in range(rounds)]


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _device_seconds(run: Callable[[], object]) -> float:
    event: Any = torch.cuda.Event
    begin, end = event(enable_timing=True), event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


@functools.cache
def matrix_gflops(
    device: torch.device, precision: Precision, side: int | None = None, *, lanes: int = 1
) -> float:
    """The best of several large products of random matrices; on a CPU with torch's present threads a lane."""
    side = side or (8192 if device.type == "cuda" else 2048)
    dice = torch.Generator().manual_seed(1)
    one, other = (
        torch.randn(side, side, generator=dice).to(device=device, dtype=DTYPES[precision]) for _ in range(2)
    )
    with torch.inference_mode():
        best = min(seconds_of(partial(torch.mm, one, other), device, rounds=12, lanes=lanes))
    return 2.0 * side**3 / best / 1e9


@functools.cache
def memory_gb_per_s(device: torch.device, size_bytes: int | None = None) -> float:
    """Bytes read plus bytes written of the best of several large copies."""
    size_bytes = size_bytes or (2 << 30 if device.type == "cuda" else 256 << 20)
    source = torch.ones(size_bytes // 4, device=device)
    target = torch.zeros_like(source)
    with torch.inference_mode():
        best = min(seconds_of(lambda: target.copy_(source), device, rounds=8))
    return 2.0 * size_bytes / best / 1e9


def network_floor(
    card: Card,
    network: nn.Module,
    size: tuple[int, int],
    *,
    gflops: float,
    gb_per_s: float,
) -> Floor:
    """Of one frame of `size` (width, height)."""
    width, height = size
    per_layer = _layer_bytes(network, card, size)
    weights = sum(each.numel() * each.element_size() for each in network.parameters())
    pictures = 1.5 * width * height * (1 + card.scale**2)
    operations = float(card.operations_per_pixel) * width * height
    return Floor(
        operations=operations,
        bytes_moved=per_layer,
        operations_s=operations / (gflops * 1e9),
        memory_s=(weights + pictures) / (gb_per_s * 1e9),
        layers_s=per_layer / (gb_per_s * 1e9),
    )


def _layer_bytes(network: nn.Module, card: Card, size: tuple[int, int]) -> float:
    """Counted on a small picture and scaled up: every convolution's input and output."""
    side = 32 * card.multiple_of
    counted = 0

    def count(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal counted
        counted += sum(each.numel() * each.element_size() for each in inputs if isinstance(each, Tensor))
        counted += output.numel() * output.element_size()

    handles = [each.register_forward_hook(count) for each in network.modules() if isinstance(each, nn.Conv2d)]
    device = next(network.parameters()).device
    try:
        with torch.inference_mode():
            network(torch.zeros(1, 3, side, side, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return counted * (size[0] * size[1]) / (side * side)
