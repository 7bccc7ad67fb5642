"""The way through an accelerator, and planes made of phases: the same pictures as the plain way."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.test_engine import CPU, noise_frame, picture, pixel, random_network, upscaler
from vsr_hpc.bench.made_clip import make_demo_clip
from vsr_hpc.engine.colour import Coding
from vsr_hpc.engine.device_path import DevicePath, as_float, as_samples
from vsr_hpc.engine.geometry import output_picture
from vsr_hpc.engine.settings import UpscaleRequest, choose_lanes, resolve_settings
from vsr_hpc.engine.upscaler import Upscaler
from vsr_hpc.media.clip.reader import read_segment
from vsr_hpc.media.picture import Frame
from vsr_hpc.models.cards import Card, Precision, card_of_file, find_card
from vsr_hpc.models.weights import ensure


@pytest.fixture(scope="module")
def compact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Card, Path]:
    return random_network(tmp_path_factory.mktemp("weights"), num_feat=8, num_conv=3, scale=2)


def planes_equal(one: list[Frame], other: list[Frame]) -> bool:
    return [frame.index for frame in one] == [frame.index for frame in other] and all(
        a.dtype == b.dtype and np.array_equal(a, b)
        for ours, theirs in zip(one, other, strict=True)
        for a, b in zip(ours.planes, theirs.planes, strict=True)
    )


def through_device(made: Upscaler) -> Upscaler:
    """The same upscaler as a GPU would be driven."""
    made._has_path = True
    return made


@pytest.mark.parametrize("depth", [8, 10, 16])
def test_batches_through_the_device_path_are_the_plain_ones(compact: tuple[Card, Path], depth: int) -> None:
    card, weights = compact
    shown = picture(form=pixel("420", depth))
    # In 16 bits it shows that the plain way computes a short batch with other kernels, so there is none.
    frames = [noise_frame(shown, i) for i in range(5 if depth < 16 else 4)]
    plain = upscaler(card, shown, weights, batch=2)
    there = through_device(upscaler(card, shown, weights, batch=2))
    assert planes_equal(plain(frames), there(frames))
    assert there.clipped == plain.clipped > 0  # the copies that fill the last batch do not count
    assert there.device_path is not None
    assert there.device_path.batch == 2


def test_a_short_batch_is_filled_up_so_that_every_batch_has_one_shape() -> None:
    seen = []

    def compute(samples: list[torch.Tensor]) -> list[torch.Tensor]:
        seen.append(samples[0].shape)
        return [samples[0] + 1]

    path = DevicePath(compute, 3, torch.device("cpu"))
    planes = [(np.full((2, 4), i, np.uint8),) for i in range(4)]
    made = path(planes[:3]) + path(planes[3:])
    assert seen == [(3, 2, 4)] * 2
    assert [int(frame[0][0, 0]) for frame in made] == [1, 2, 3, 4]


def test_results_are_not_overwritten_by_the_next_batch() -> None:
    path = DevicePath(lambda samples: samples, 1, torch.device("cpu"))
    (first,) = path([(np.zeros((2, 2), np.uint8),)])
    path([(np.ones((2, 2), np.uint8),)])
    assert not first[0].any()


def test_lanes_change_no_byte(compact: tuple[Card, Path]) -> None:
    card, weights = compact
    shown = picture()
    frames = [noise_frame(shown, i) for i in range(6)]
    for made in (upscaler(card, shown, weights), through_device(upscaler(card, shown, weights))):
        alone = made([*frames])
        with ThreadPoolExecutor(3) as pool:
            together = [frame for part in pool.map(made, [[each] for each in frames]) for frame in part]
        assert planes_equal(alone, together)


def test_two_lanes_out_of_memory_at_once_halve_the_batch_once(
    compact: tuple[Card, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    card, weights = compact
    shown = picture()
    made = through_device(upscaler(card, shown, weights, batch=8))
    both = threading.Barrier(2)
    original = Upscaler._samples_of

    def compute(self: Upscaler, samples: list[torch.Tensor]) -> list[torch.Tensor]:
        if len(samples[0]) == 8:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        return original(self, samples)

    def call(frame: Frame) -> list[Frame]:
        both.wait(60)
        return made([frame])

    monkeypatch.setattr(Upscaler, "_samples_of", compute)
    with ThreadPoolExecutor(2) as pool:
        done = [frame for part in pool.map(call, [noise_frame(shown, i) for i in range(2)]) for frame in part]
    assert [frame.index for frame in done] == [0, 1]
    assert made.batch == 4


@pytest.mark.parametrize("values", [[0, 1, 255], [0, 1, 40000, 65535]])
def test_samples_travel_unchanged(values: list[int]) -> None:
    depth = 8 if max(values) < 256 else 16
    words = np.array(values, np.uint8 if depth == 8 else np.uint16)
    sent = torch.from_numpy(words if depth == 8 else words.view(np.int16))
    codes = as_float(sent)
    assert codes.tolist() == values
    back = as_samples(codes, depth).numpy()
    assert (back if depth == 8 else back.view(np.uint16)).tolist() == values


# Phases ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sub", ["420", "422", "444"])
@pytest.mark.parametrize("depth", [8, 10])
def test_planes_of_phases_are_those_of_the_general_way(
    compact: tuple[Card, Path], sub: str, depth: int
) -> None:
    card, weights = compact
    shown = picture(50, 46, pixel(sub, depth))
    fused, general = upscaler(card, shown, weights), upscaler(card, shown, weights)
    assert fused._planes is not None
    general._planes = None
    for ours, theirs in zip(fused([noise_frame(shown)]), general([noise_frame(shown)]), strict=True):
        for one, other in zip(ours.planes, theirs.planes, strict=True):
            apart = np.abs(one.astype(int) - other.astype(int))
            assert apart.max() <= 1  # another order of additions may tip a sample that lies between two codes
            assert (apart > 0).mean() < 1e-3


def test_tiles_of_phases_are_the_whole(compact: tuple[Card, Path]) -> None:
    card, weights = compact
    shown = picture(96, 64)
    whole = upscaler(card, shown, weights, tile=0)
    tiled = upscaler(card, shown, weights, tile=32)
    for one, other in zip(
        whole([noise_frame(shown)])[0].planes, tiled([noise_frame(shown)])[0].planes, strict=True
    ):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1


@pytest.mark.parametrize("wanted", [{"blend": 0.5}, {"grain": 2.0}, {"pixel": pixel("444")}])
def test_only_what_is_plain_is_made_of_phases(compact: tuple[Card, Path], wanted: dict[str, object]) -> None:
    card, weights = compact
    made = upscaler(card, picture(), weights, **wanted)
    assert (made._planes is None) == ("pixel" not in wanted)


# Fast against plain ----------------------------------------------------------------------------------------


def psnr(one: Frame, other: Frame) -> float:
    errors = [
        ((a.astype(float) - b.astype(float)) ** 2).mean()
        for a, b in zip(one.planes, other.planes, strict=True)
    ]
    return float(10 * np.log10(255**2 / max(np.mean(errors), 1e-9)))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_fast_way_is_the_plain_float_way_within_50_db(
    tmp_path: Path, precision: Precision, demo_frames: list[Frame]
) -> None:
    card, weights = random_network(tmp_path, num_feat=16, num_conv=6, scale=2)
    shown = picture(96, 64)
    fast = upscaler(card, shown, weights, precision=precision)
    plain = upscaler(card, shown, weights, precision="fp32")
    plain._planes = None
    made, wanted = fast(demo_frames), plain(demo_frames)
    flat = [Coding(shown).to_rgb([torch.from_numpy(p)[None].float() for p in demo_frames[0].planes])]
    assert float(flat[0].std()) > 0.1  # a real picture, not a flat one
    assert min(psnr(a, b) for a, b in zip(made, wanted, strict=True)) >= 50


@pytest.mark.parametrize("name", ["vsr-clean-x2", "vsr-video-x4"])
def test_our_own_networks_are_within_50_db(name: str, demo_frames: list[Frame]) -> None:
    card, shown = find_card(name), picture(96, 64)
    fast, plain = (upscaler(card, shown, ensure(card), precision=each) for each in ("bf16", "fp32"))
    plain._planes = None
    made, wanted = fast(demo_frames), plain(demo_frames)
    assert min(psnr(a, b) for a, b in zip(made, wanted, strict=True)) >= 50


def test_trained_weights_on_a_filmed_frame_are_within_50_db() -> None:
    material = Path(os.environ.get("VSR_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
    clip, weights = material / "videos" / "bikes.mp4", material / "weights" / "realesr-animevideov3.pth"
    if not (clip.exists() and weights.exists()):
        pytest.skip(f"no filmed clip or trained weights in {material}")
    first = next(read_segment(clip))
    crop = [(slice(96 >> i, 176 >> i), slice(384 >> i, 512 >> i)) for i in (0, 1, 1)]
    frame = replace(first, planes=tuple(p[at].copy() for p, at in zip(first.planes, crop, strict=True)))
    shown, card = picture(128, 80), card_of_file(weights)
    fast, plain = (upscaler(card, shown, weights, precision=each) for each in ("bf16", "fp32"))
    plain._planes = None
    (made,), (wanted,) = fast([frame]), plain([frame])
    assert float(wanted.planes[0].std()) > 10
    assert psnr(made, wanted) >= 50


@pytest.fixture(scope="module")
def demo_frames(tmp_path_factory: pytest.TempPathFactory) -> list[Frame]:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    make_demo_clip(path, seconds=3 / 24, size=(96, 64), audio=False)
    return list(read_segment(path))


# Lanes -----------------------------------------------------------------------------------------------------


def lanes(threads: int, side: int = 64, model: str = "realesr-animevideov3") -> int:
    shown = picture(side, side)
    card = find_card(model)
    return choose_lanes(card, shown, resolve_settings(UpscaleRequest(), card, shown, CPU), threads)


def test_each_thread_of_a_cpu_is_a_lane_until_memory_is_short() -> None:
    assert lanes(1) == 1
    assert lanes(2) == 2
    assert lanes(16) == 16
    assert 1 <= lanes(64, side=2048) < 64


def test_lanes_are_the_upscalers_threads(compact: tuple[Card, Path]) -> None:
    card, weights = compact
    shown = picture()
    settings = resolve_settings(UpscaleRequest(), card, shown, CPU)
    out = output_picture(shown, settings.width, settings.height, shown.pixel)
    assert Upscaler(card, weights, shown, out, settings, threads=1, lanes=3).lanes == 3
