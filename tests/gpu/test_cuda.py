"""What only a CUDA device can show: fp32's pictures, from a graph, in lanes, in short memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.require import require
from tests.unit.test_engine import CPU, noise_frame, picture, pixel, random_network
from vsr_hpc.engine.device_facts import DeviceFacts, device_facts
from vsr_hpc.engine.geometry import output_picture
from vsr_hpc.engine.settings import UpscaleRequest, resolve_settings
from vsr_hpc.engine.upscaler import Upscaler
from vsr_hpc.media.picture import Frame, Picture
from vsr_hpc.models.cards import Card, find_card

pytestmark = pytest.mark.gpu

Make = Callable[..., Upscaler]


@pytest.fixture(scope="module", autouse=True)
def _cuda() -> None:
    if not torch.cuda.is_available():
        require("gpu", "torch sees no CUDA device here")


@pytest.fixture(scope="module")
def gpu(_cuda: None) -> DeviceFacts:
    return device_facts("cuda")


@pytest.fixture(scope="module")
def compact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Card, Path]:
    return random_network(tmp_path_factory.mktemp("weights"), num_feat=64, num_conv=16, scale=4)


def make(card: Card, weights: Path | None, shown: Picture, facts: DeviceFacts, **wanted: object) -> Upscaler:
    request = UpscaleRequest(**wanted)  # type: ignore[arg-type]
    settings = resolve_settings(request, card, shown, facts)
    out = output_picture(shown, settings.width, settings.height, request.pixel or shown.pixel)
    return Upscaler(card, weights, shown, out, settings, threads=1)


def worst_psnr(one: list[Frame], other: list[Frame], depth: int = 8) -> float:
    top, found = 2**depth - 1, []
    for ours, theirs in zip(one, other, strict=True):
        for a, b in zip(ours.planes, theirs.planes, strict=True):
            error = float(((a.astype(float) - b.astype(float)) ** 2).mean())
            found.append(99.0 if not error else 10 * np.log10(top**2 / error))
    return min(found)


def are_equal(one: list[Frame], other: list[Frame]) -> bool:
    return all(
        np.array_equal(a, b)
        for ours, theirs in zip(one, other, strict=True)
        for a, b in zip(ours.planes, theirs.planes, strict=True)
    )


@pytest.mark.parametrize("sub", ["420", "444"])
@pytest.mark.parametrize("depth", [8, 10])
def test_fp16_is_fp32_on_a_cpu_within_50_db(
    compact: tuple[Card, Path], gpu: DeviceFacts, sub: str, depth: int
) -> None:
    shown = picture(160, 96, pixel(sub, depth))
    frames = [noise_frame(shown, i) for i in range(3)]
    fast, plain = make(*compact, shown, gpu), make(*compact, shown, CPU, precision="fp32")
    assert worst_psnr(fast(frames), plain(frames), depth) >= 50
    assert fast.clipped == pytest.approx(plain.clipped, abs=2)


@pytest.mark.parametrize("name", ["nearest", "bicubic", "lanczos"])
def test_filters_are_those_of_a_cpu_within_a_code(gpu: DeviceFacts, name: str) -> None:
    shown = picture(96, 64)
    made, wanted = (make(find_card(name), None, shown, each)([noise_frame(shown)]) for each in (gpu, CPU))
    for ours, theirs in zip(made[0].planes, wanted[0].planes, strict=True):
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_the_work_is_replayed_from_one_graph(compact: tuple[Card, Path], gpu: DeviceFacts) -> None:
    shown = picture(96, 64)
    made = make(*compact, shown, gpu, batch=2)
    made([noise_frame(shown, i) for i in range(4)])
    assert made.device_path is not None
    assert made.device_path.is_graph


def test_a_graph_gives_what_launching_each_kernel_gives(compact: tuple[Card, Path], gpu: DeviceFacts) -> None:
    shown = picture(96, 64)
    frames = [noise_frame(shown, i) for i in range(4)]
    from_graph, eager = make(*compact, shown, gpu, batch=2), make(*compact, shown, gpu, batch=2)
    eager(frames[:1])
    assert eager.device_path is not None
    eager.device_path.is_graph = False
    assert are_equal(from_graph(frames), eager(frames))


def test_runs_short_batches_and_lanes_change_no_byte(compact: tuple[Card, Path], gpu: DeviceFacts) -> None:
    shown = picture(160, 96)
    frames = [noise_frame(shown, i) for i in range(9)]
    made = make(*compact, shown, gpu, batch=4)
    first, again = made(frames), made(frames)
    one_by_one = [frame for each in frames for frame in made([each])]
    with ThreadPoolExecutor(3) as pool:
        in_lanes = [frame for part in pool.map(made, [[each] for each in frames]) for frame in part]
    assert are_equal(first, again)
    assert are_equal(first, one_by_one)
    assert are_equal(first, in_lanes)


def test_tiles_are_the_whole_within_a_code(compact: tuple[Card, Path], gpu: DeviceFacts) -> None:
    shown = picture(192, 128)
    whole, tiled = (make(*compact, shown, gpu, tile=tile)([noise_frame(shown)]) for tile in (0, 64))
    for ours, theirs in zip(whole[0].planes, tiled[0].planes, strict=True):
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_short_memory_halves_the_batch_and_changes_no_frame(
    compact: tuple[Card, Path], gpu: DeviceFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = picture(96, 64)
    frames = [noise_frame(shown, i) for i in range(5)]
    made = make(*compact, shown, gpu, batch=8)
    original = Upscaler._samples_of

    def compute(self: Upscaler, samples: list[torch.Tensor]) -> list[torch.Tensor]:
        if len(samples[0]) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return original(self, samples)

    monkeypatch.setattr(Upscaler, "_samples_of", compute)
    done = made(frames)
    assert [frame.index for frame in done] == list(range(5))
    assert made.batch == 2


def test_memory_that_a_batch_took_is_used_again(compact: tuple[Card, Path], gpu: DeviceFacts) -> None:
    shown = picture(160, 96)
    made = make(*compact, shown, gpu, batch=2)
    made([noise_frame(shown, i) for i in range(4)])
    torch.cuda.synchronize()
    before = torch.cuda.memory_reserved()
    for _ in range(10):
        made([noise_frame(shown, i) for i in range(4)])
    assert torch.cuda.memory_reserved() <= before
