"""Training: patches, the folded network, resuming, what is shipped."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from vsr_hpc.errors import JobError, MediaError, ModelError
from vsr_hpc.models.cards import find_card, read_card
from vsr_hpc.models.networks import build
from vsr_hpc.models.weights import load
from vsr_hpc.training.data import Patches, TrainingPair, clean_pairs, list_images
from vsr_hpc.training.degradation import BankSize, video_pairs
from vsr_hpc.training.loop import CHECKPOINT, LOG, Recipe, rate_at
from vsr_hpc.training.network import Prelu, TrainedCompact, plain_state
from vsr_hpc.training.session import TrainingRequest, train_model

RECIPE = Recipe(
    recipe="clean", scale=2, steps=8, num_feat=8, num_conv=2, patch=12, batch=2, warm_up=2, clips=4
)


def _picture(seed: int, side: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((8, 8, 1), dtype=np.uint8))


def _write(path: Path, rgb: NDArray[np.uint8]) -> None:
    context = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt = rgb.shape[1], rgb.shape[0], "rgb24"
    context.time_base = 1
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
    path.write_bytes(b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)]))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for seed in range(3):
        _write(folder / f"{seed}.png", _picture(seed, 208))
    return folder


def _wish(images: Path, out: Path, name: str = "mine", **more: object) -> TrainingRequest:
    return TrainingRequest(images=images, out=out, name=name, check_every=4, **more)


def test_killed_and_resumed_gives_the_weights_of_one_left_alone(images: Path, tmp_path: Path) -> None:
    whole = train_model(RECIPE, _wish(images, tmp_path / "a"))
    assert whole is not None
    for stop_at in (3, 7):
        assert train_model(RECIPE, _wish(images, tmp_path / "b"), stop_at=stop_at) is None
    parts = train_model(RECIPE, _wish(images, tmp_path / "b"))
    assert parts is not None
    one, other = (load(each.weights, read_card(each.card)) for each in (whole, parts))
    assert all(torch.equal(one[key], other[key]) for key in one)
    lines = [json.loads(line) for line in (tmp_path / "b" / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8]


def test_another_seed_gives_other_weights(images: Path, tmp_path: Path) -> None:
    one = train_model(RECIPE, _wish(images, tmp_path / "a"))
    other = train_model(dataclasses.replace(RECIPE, seed=2), _wish(images, tmp_path / "b"))
    assert one is not None and other is not None
    assert one.weights.read_bytes() != other.weights.read_bytes()


def test_training_learns(images: Path, tmp_path: Path) -> None:
    train_model(dataclasses.replace(RECIPE, steps=60, rate=4e-3), _wish(images, tmp_path))
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert lines[-1]["psnr"] > lines[0]["psnr"] + 1


def test_what_is_shipped_is_small_half_precision_and_tells_its_story(images: Path, tmp_path: Path) -> None:
    made = train_model(RECIPE, _wish(images, tmp_path, held_out=("1",), licence="CC0"))
    assert made is not None
    assert made.weights.stat().st_mode == made.card.stat().st_mode
    card = read_card(made.card)
    assert (card.network, card.scale, card.licence, card.overlap) == ("compact", 2, "CC0", 4)
    with safe_open(made.weights, framework="pt") as file:
        story = json.loads(file.metadata()["training"])
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118
    assert story["images"] == {"count": 3, "held_out": ["1"], "list_sha256": story["images"]["list_sha256"]}
    assert story["recipe"]["seed"] == 1 and story["last_check"]["step"] == 8
    assert find_card(made.weights).parameters == card.parameters


def test_the_folded_network_is_the_trained_one() -> None:
    torch.manual_seed(0)
    trained = TrainedCompact(num_feat=8, num_conv=2, scale=2).eval()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    plain = plain_state(trained.state_dict())
    card = find_card("realesr-animevideov3").model_copy(
        update={
            "scale": 2,
            "parameters": tuple(sorted({"num_feat": 8, "num_conv": 2, "act_type": "prelu"}.items())),
        }
    )
    network = build(card)
    network.load_state_dict(plain)
    x = torch.rand(1, 3, 9, 11)
    with torch.inference_mode():
        assert (network(x) - trained(x)).abs().max() < 1e-5


def test_prelu_and_its_gradients_are_those_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = Prelu(4), torch.nn.PReLU(4)
    x = torch.randn(2, 4, 5, 6)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    given = torch.randn_like(x)
    ours(one).backward(given)
    theirs(other).backward(given)
    assert torch.equal(ours(one), theirs(other))
    assert one.grad is not None and other.grad is not None
    assert torch.allclose(one.grad, other.grad)
    assert ours.weight.grad is not None and theirs.weight.grad is not None
    assert torch.allclose(ours.weight.grad, theirs.weight.grad, atol=1e-5)


def test_a_batch_depends_on_its_number_alone_and_low_fits_high(images: Path) -> None:
    pairs = clean_pairs(list_images(images), 2, 12)
    one, other = (Patches(pairs, scale=2, patch=12, batch=4, seed=5) for _ in range(2))
    one.batch(0)
    for mine, theirs in zip(one.batch(3), other.batch(3), strict=True):
        assert np.array_equal(mine, theirs)
    low, high = one.batch(3)
    assert not np.array_equal(low, one.batch(4)[0])
    means = high.reshape(4, 12, 2, 12, 2, 3).mean(axis=(2, 4))
    assert np.abs(means - low).mean() < 12  # turned and mirrored alike


def test_images_are_held_out_whole(images: Path) -> None:
    by_hash = list_images(images)
    assert sum(image.is_held_out for image in by_hash) == 1
    named = list_images(images, ("0", "2"))
    assert [image.name for image in named if image.is_held_out] == ["0", "2"]
    names = {pair.name for pair in clean_pairs([i for i in named if not i.is_held_out], 2, 12)}
    assert names == {"1"}


def test_a_bank_is_the_same_every_time_and_its_frames_fit(images: Path) -> None:
    size = BankSize(clips=2, frames=3, side=32)
    one, other = (video_pairs(list_images(images), 2, 9, size) for _ in range(2))
    assert len(one) == 4
    for mine, theirs in zip(one, other, strict=True):
        assert np.array_equal(mine.low, theirs.low) and mine.high.shape == (64, 64, 3)


def test_a_video_recipe_runs(images: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, recipe="video", steps=2, patch=16)
    first = train_model(RECIPE, _wish(images, tmp_path / "clean"))
    made = train_model(recipe, _wish(images, tmp_path / "video", start=tmp_path / "clean"))
    assert first is not None and made is not None
    with safe_open(made.weights, framework="pt") as file:
        assert len(json.loads(file.metadata()["training"])["recipe"]["start"]) == 64


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    rates = [rate_at(RECIPE, step) for step in range(RECIPE.steps)]
    assert rates[0] < rates[1] and rates[-1] < 0.1 * max(rates)


def test_other_settings_and_images_are_refused_in_the_same_folder(images: Path, tmp_path: Path) -> None:
    train_model(RECIPE, _wish(images, tmp_path), stop_at=1)
    with pytest.raises(JobError, match="another training"):
        train_model(dataclasses.replace(RECIPE, rate=1e-4), _wish(images, tmp_path))
    with pytest.raises(JobError, match="other images"):
        train_model(RECIPE, _wish(images, tmp_path, held_out=("0", "1")))
    with pytest.raises(JobError, match="--resume"):
        train_model(RECIPE, _wish(images, tmp_path, is_resumed=False))


def test_what_cannot_be_trained_on_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no folder"):
        list_images(tmp_path / "none")
    with pytest.raises(JobError, match="holds 0 images"):
        list_images(tmp_path)
    with pytest.raises(JobError, match="no image named nobody"):
        list_images(images, ("nobody",))
    with pytest.raises(JobError, match="nothing is left"):
        list_images(images, ("0", "1", "2"))
    pair = TrainingPair(name="x", low=_picture(0, 8), high=_picture(0, 16))
    with pytest.raises(JobError, match="24 pixels"):
        Patches([pair], scale=2, patch=12, batch=1, seed=1)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"rubbish")
    with pytest.raises(MediaError, match="cannot be read"):
        train_model(RECIPE, _wish(tmp_path, tmp_path / "out"))
    with pytest.raises(JobError, match="cannot be a model's name"):
        train_model(RECIPE, _wish(images, tmp_path / "out3", name="a name"))
    (tmp_path / "c.pt").write_bytes(b"rubbish")
    with pytest.raises(ModelError, match="no checkpoint"):
        train_model(RECIPE, _wish(images, tmp_path / "out2", start=tmp_path / "c.pt"))


def test_a_killed_save_leaves_the_last_checkpoint(images: Path, tmp_path: Path) -> None:
    train_model(RECIPE, _wish(images, tmp_path), stop_at=2)
    (tmp_path / f".{CHECKPOINT}.1.tmp").write_bytes(b"half")
    assert train_model(RECIPE, _wish(images, tmp_path)) is not None


def test_the_command_trains_and_names_what_it_made(images: Path, tmp_path: Path) -> None:
    from tests.commands import vsr

    asked = ("models", "train", "--images", str(images), "--out", str(tmp_path / "mine"), "--scale", "2")
    small = ("--steps", "2", "--features", "8", "--layers", "1", "--patch", "12", "--batch", "2")
    early = vsr(*asked, *small, "--stop-at", "1")
    assert early.code == 0 and early.out == ""
    done = vsr(*asked, *small, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["weights"] == str(tmp_path / "mine" / "mine.safetensors")
    assert "step 2/2" in done.err
    refused = vsr(*asked, *small, "--no-resume")
    assert refused.code == 2 and "--resume" in refused.err


def test_colours_are_changed_in_low_and_high_alike(images: Path) -> None:
    pairs = clean_pairs(list_images(images), 2, 12)
    plain, changed = (
        Patches(pairs, scale=2, patch=12, batch=16, seed=5, changes_colours=is_on) for is_on in (False, True)
    )
    low, high = changed.batch(3)
    assert not np.array_equal(low, plain.batch(3)[0])
    means = high.reshape(16, 12, 2, 12, 2, 3).mean(axis=(2, 4))
    assert np.abs(means - low).mean() < 12
