"""Pictures in memory: the values that a file gives, the caller's types and devices, bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tests.commands import vsr
from tests.recurrent import tiny_model
from vsr_hpc import JobError, ModelError, Upscaler


def noise(*shape: int, dtype: Any = np.uint8) -> NDArray[Any]:
    dice = np.random.default_rng(7)
    if np.dtype(dtype).kind == "f":
        return dice.random((*shape, 3)).astype(dtype)
    return dice.integers(0, np.iinfo(dtype).max + 1, (*shape, 3)).astype(dtype)


class Tripler(nn.Module):
    """Two convolutions and a pixel shuffle: it sees two pixels in each direction."""

    def __init__(self, *, dilation: int = 1) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.inner = nn.Conv2d(3, 8, 3, padding=dilation, dilation=dilation)
        self.outer = nn.Conv2d(8, 27, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        residual = functional.pixel_shuffle(self.outer(self.inner(x).relu()), 3)
        return residual * 0.1 + functional.interpolate(x, scale_factor=3.0)


class Halved(nn.Module):
    """Works at half of the size, which must therefore be even."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(
            functional.pixel_shuffle(self.body(functional.pixel_unshuffle(x, 2)), 2), scale_factor=2.0
        )


class Global(nn.Module):
    """Every output pixel depends on the whole picture."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(x - 0.1 * x.mean(dim=(2, 3), keepdim=True), scale_factor=2.0)


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, size=(x.shape[-2] * 2 + 2, x.shape[-1] * 2))


class Grey(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("model", "scale"), [("vsr-clean-x2", 2), ("vsr-clean-x2", 3), ("bicubic", 2), ("nearest", 3)]
)
def test_an_array_becomes_what_the_command_makes_of_it(tmp_path: Path, model: str, scale: int) -> None:
    picture = noise(24, 32)
    iio.imwrite(tmp_path / "in.png", picture)
    done = vsr("upscale", tmp_path / "in.png", tmp_path / "out.png", "--model", model, "--scale", scale, "-q")
    assert done.code == 0, done.err
    made = Upscaler(model, scale)(picture)
    assert np.array_equal(made, iio.imread(tmp_path / "out.png"))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64"])
@pytest.mark.parametrize("model", ["vsr-video-x2", "lanczos"])
def test_arrays_and_tensors_of_each_type_agree(model: str, dtype: str) -> None:
    pictures = noise(3, 16, 20, dtype=dtype)
    upscaler = Upscaler(model, 2)
    made = upscaler(pictures)
    assert (made.shape, made.dtype) == ((3, 32, 40, 3), np.dtype(dtype))
    assert np.array_equal(upscaler(pictures[1]), made[1])
    tensor = upscaler(torch.from_numpy(pictures))
    assert np.array_equal(tensor.numpy(), made)
    assert not tensor.is_inference()
    top = 1.0 if made.dtype.kind == "f" else np.iinfo(made.dtype).max
    exact = upscaler(pictures.astype(np.float64) / top)
    step = {"float16": 2e-3, "float32": 1e-6, "float64": 0}.get(dtype, 0.51 / top)
    assert np.abs(np.clip(exact, 0, 1) - np.clip(made.astype(np.float64) / top, 0, 1)).max() <= step


def test_views_and_read_only_arrays_are_taken() -> None:
    pictures = noise(16, 20)
    upscaler = Upscaler("bicubic", 2)
    wanted = upscaler(np.ascontiguousarray(pictures[::-1, :, ::-1]))
    assert np.array_equal(upscaler(pictures[::-1, :, ::-1]), wanted)
    pictures.setflags(write=False)
    assert upscaler(pictures).shape == (32, 40, 3)


def test_scene_linear_values_above_one_survive() -> None:
    light = np.full((16, 16, 3), 4.0, np.float32)
    made = Upscaler("vsr-clean-x2", colour="linear")(light)
    assert np.allclose(made, 4.0, rtol=0.05)
    with pytest.raises(JobError, match="takes floats"):
        Upscaler("vsr-clean-x2", colour="linear")(noise(16, 16))


def test_the_programs_own_torch_settings_and_random_numbers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Tripler()
    threads, numbers = torch.get_num_threads(), torch.get_rng_state()
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    torch.set_num_threads(1)
    try:
        Upscaler(module, threads=2)(noise(16, 16))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == (True, False)
    assert torch.equal(torch.get_rng_state(), numbers)


def test_a_generator_is_read_as_results_are_asked_for() -> None:
    asked = 0

    def frames() -> Iterator[NDArray[Any]]:
        nonlocal asked
        for _ in range(1000):
            asked += 1
            yield noise(16, 16)

    made = Upscaler("bicubic", 2, threads=2).stream(frames())
    for _ in range(3):
        assert next(made).shape == (32, 32, 3)
    assert asked <= 12


def test_sizes_may_change_on_the_way() -> None:
    made = list(Upscaler("nearest", 2).stream([noise(8, 10), noise(8, 10), noise(12, 6)]))
    assert [each.shape for each in made] == [(16, 20, 3), (16, 20, 3), (24, 12, 3)]


def test_a_video_network_sees_neighbours_and_holds_a_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr("vsr_hpc.engine.arrays._WINDOW", 3)
    tiny_model(tmp_path, context=1)
    upscaler = Upscaler("tiny-vsr")
    clip = noise(5, 16, 16)
    made = upscaler(clip)
    assert made.shape == (5, 64, 64, 3)
    assert not np.array_equal(upscaler(clip[:3]), made[:3])  # the fourth frame was context
    asked = iter(range(1000))
    next(upscaler.stream(clip[next(asked) % 5] for _ in range(1000)))
    assert next(asked) <= 3 + 1 + 1


# Modules of the calling program


def test_a_modules_scale_and_reach_are_found_and_tiles_equal_the_whole() -> None:
    module = Tripler()
    whole, tiled = Upscaler(module), Upscaler(module, tile=16)
    assert (whole.scale, whole.card.overlap, whole.card.multiple_of) == (3, 2, 1)
    picture = noise(40, 52)
    made = whole(picture)
    assert np.array_equal(tiled(picture), made)
    with torch.no_grad():
        x = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
        own = module(x)[0].clamp(0, 1).permute(1, 2, 0).mul(255).round().to(torch.uint8)
    assert np.abs(own.numpy().astype(int) - made).max() <= 1


def test_a_module_that_needs_even_sides_gets_them() -> None:
    upscaler = Upscaler(Halved())
    assert (upscaler.card.multiple_of, upscaler.card.overlap % 2) == (2, 0)
    assert upscaler(noise(15, 17)).shape == (30, 34, 3)


def test_a_module_that_sees_everything_has_no_exact_tiles() -> None:
    card = Upscaler(Global()).card
    assert not card.is_tiled_exactly
    assert "tiles may differ" in card.limits


def test_a_far_sighted_module_is_measured() -> None:
    assert Upscaler(Tripler(dilation=20)).card.overlap == 21
    assert not Upscaler(Tripler(dilation=70)).card.is_tiled_exactly


def test_the_callers_module_is_not_changed() -> None:
    module = Tripler().train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    Upscaler(module, precision="bf16")(noise(16, 16))
    assert module.training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(each.requires_grad and each.dtype == torch.float32 for each in module.parameters())
    assert not any(each._forward_hooks for each in module.modules())


def test_another_scale_than_the_modules_own_is_resampled() -> None:
    assert Upscaler(Tripler(), 2)(noise(16, 20)).shape == (32, 40, 3)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Odd(), "makes 192x130 of 96x64, which is 2 times the width and 2.03125 times the height"),
        (Grey(), "makes (1, 1, 64, 96) of (1, 3, 64, 96)"),
        (nn.Linear(7, 7), "fails on RGB pictures of shape (1, 3, 64, 96)"),
    ],
)
def test_an_unusable_module_is_refused_with_numbers(module: nn.Module, said: str) -> None:
    with pytest.raises(ModelError) as refused:
        Upscaler(module)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        (noise(16, 16)[..., :1], "(16, 16, 1) is not RGB"),
        (np.zeros((16, 16, 4), np.uint8), "leave alpha out"),
        (np.zeros((3, 16, 16), np.uint8), "transpose(1, 2, 0)"),
        (np.zeros((16, 16, 3), np.int64), "int64 are not taken"),
        ([[1]], "not list"),
        (np.zeros((0, 16, 16, 3), np.uint8), "no pictures"),
    ],
)
def test_what_is_no_picture_is_refused(pictures: Any, said: str) -> None:
    with pytest.raises(JobError) as refused:
        Upscaler("nearest", 2)(pictures)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"device": "mps"}, "not supported"), ({"colour": "hdr"}, "display or linear"), ({"scale": 0}, "scale")],
)
def test_wrong_arguments_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError) as refused:
        Upscaler("nearest", **given)(noise(8, 8))
    assert said in str(refused.value)
