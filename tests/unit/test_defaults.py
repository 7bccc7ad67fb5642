"""The package's own models: there without any download, and chosen by what comes in."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from tests.clips import numbered_planes, picture
from vsr_hpc.bench.imresize import luma, resize, shrink
from vsr_hpc.bench.made_clip import make_demo_clip
from vsr_hpc.errors import JobError, ModelError
from vsr_hpc.job.reading import parse_job
from vsr_hpc.media.picture import Colour
from vsr_hpc.media.stills.still import write_image
from vsr_hpc.models import weights
from vsr_hpc.models.cards import find_card
from vsr_hpc.models.defaults import AUTO, default_model, kind_of_still, shipped_models
from vsr_hpc.models.networks import build
from vsr_hpc.planning.preparation import prepare
from vsr_hpc.training.session import images_sha256
from vsr_hpc.verification.similarity import psnr

SHIPPED = Path(weights.__file__).parent / "shipped"


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CACHE", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))


@pytest.mark.parametrize("name", shipped_models())
def test_a_shipped_model_is_in_the_package_small_and_tells_how_it_was_trained(name: str) -> None:
    card = find_card(name)
    path = weights.ensure(card)
    assert path.parent == SHIPPED and path.stat().st_size <= 600_000
    state = weights.load(path, card)
    assert sum(value.numel() for value in state.values()) <= 300_000
    story = json.loads((SHIPPED / f"{name}.json").read_text())
    assert story["recipe"]["scale"] == card.scale
    assert story["recipe"]["recipe"] in name
    assert story["log"][-1][2] > story["last_check"]["bicubic"]


def test_the_data_list_is_the_one_that_all_models_name() -> None:
    from vsr_hpc.training.data import ImageFile

    listed = json.loads((SHIPPED / "images.json").read_text())
    images = [
        ImageFile(path=Path(each["file"]), sha256=each["sha256"], is_held_out=each["held_out"])
        for each in listed
    ]
    assert sum(image.is_held_out for image in images) == 8
    for name in shipped_models():
        story = json.loads((SHIPPED / f"{name}.json").read_text())
        assert story["images"]["list_sha256"] == images_sha256(images)


@pytest.mark.parametrize("scale", [2, 4])
def test_the_clean_model_beats_bicubic_on_edges(scale: int) -> None:
    """Discs drawn at four times the size: what no training saw."""
    import numpy as np

    rng = np.random.default_rng(4)
    y, x = np.mgrid[:512, :512]
    drawn = np.full((512, 512, 3), 128, dtype=np.uint8)
    for _ in range(40):
        inside = (x - rng.uniform(0, 512)) ** 2 + (y - rng.uniform(0, 512)) ** 2 < rng.uniform(20, 80) ** 2
        drawn[inside] = rng.integers(0, 256, 3)
    truth = shrink(drawn, 4)
    low = shrink(truth, scale)
    card = find_card(f"vsr-clean-x{scale}")
    network = build(card)
    network.load_state_dict(weights.load(weights.ensure(card), card))
    with torch.inference_mode():
        made = network(torch.from_numpy(low).permute(2, 0, 1)[None] / 255)
    codes = made.mul(255).round().clamp(0, 255)[0].permute(1, 2, 0).numpy()
    inner = (slice(scale, -scale), slice(scale, -scale))
    plain = psnr(luma(truth)[inner], luma(resize(low, 128, 128))[inner])
    assert psnr(luma(truth)[inner], luma(codes)[inner]) > plain + 2


def test_a_file_that_was_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = tmp_path / "shipped"
    shutil.copytree(SHIPPED, copied)
    monkeypatch.setattr(weights, "_SHIPPED", copied)
    card = find_card("vsr-clean-x2")
    assert weights.ensure(card).parent == copied
    (copied / "vsr-clean-x2.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ModelError, match="reinstall"):
        weights.ensure(card)


@pytest.mark.parametrize(
    ("factor", "name"),
    [(1, "vsr-video-x2"), (2, "vsr-video-x2"), (Fraction(21, 10), "vsr-video-x4"), (8, "vsr-video-x4")],
)
def test_the_factor_chooses(factor: Fraction | int, name: str) -> None:
    assert default_model("video", factor) == name


def test_a_jpeg_counts_as_coded() -> None:
    assert [kind_of_still(suffix) for suffix in (".png", ".JPG", ".exr")] == ["clean", "video", "clean"]


def test_auto_is_resolved_by_clip_and_size(tmp_path: Path) -> None:
    clip = make_demo_clip(tmp_path / "in.mkv", seconds=0.2, size=(64, 64), audio=False)

    shape = picture(pix_fmt="gbrp", colour=Colour(matrix=0, is_full_range=True))

    def chosen(source: Path, output: str, **wanted: object) -> str:
        job = parse_job({"input": str(source), "output": str(tmp_path / output), "picture": wanted}, "")
        assert job.model == AUTO
        return prepare(job).card.name

    assert chosen(clip, "out.mkv") == "vsr-video-x2"
    assert chosen(clip, "out.mkv", scale=4) == "vsr-video-x4"
    assert chosen(clip, "out.mkv", size="128x") == "vsr-video-x2"
    assert chosen(clip, "out.mkv", size="x192") == "vsr-video-x4"
    write_image(tmp_path / "in.png", shape, numbered_planes(0, shape))
    assert chosen(tmp_path / "in.png", "out.png") == "vsr-clean-x2"
    assert chosen(tmp_path / "in.png", "out.png", scale=3) == "vsr-clean-x4"


def test_auto_is_told(tmp_path: Path) -> None:
    clip = make_demo_clip(tmp_path / "in.mkv", seconds=0.2, size=(64, 64), audio=False)
    job = parse_job({"input": str(clip), "output": str(tmp_path / "out.mkv")}, "")
    assert any("vsr-video-x2" in note for note in prepare(job).notes)
    named = parse_job({"input": str(clip), "output": str(tmp_path / "out.mkv"), "model": "bicubic"}, "")
    assert not any("vsr-video" in note for note in prepare(named).notes)


def test_nobody_takes_the_names(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="package's own"):
        weights.import_weights(SHIPPED / "vsr-clean-x2.safetensors", "vsr-clean-x2")


def test_every_model_names_the_weights_that_it_started_from() -> None:
    first = json.loads((SHIPPED / "first-stage-x2.json").read_text())
    for name in ("vsr-clean-x2", "vsr-clean-x4", "vsr-video-x2"):
        story = json.loads((SHIPPED / f"{name}.json").read_text())
        assert story["recipe"]["start"] == first["sha256"]
