from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.clips import numbered_clip
from vsr_hpc.cli.main import app
from vsr_hpc.errors import JobError, ModelError
from vsr_hpc.report.preview import content, label, png, preview


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return numbered_clip(tmp_path_factory.mktemp("clip") / "a.mkv", frames=24)


def test_models_are_shown_on_the_same_part_of_the_same_frame(clip: Path) -> None:
    found = preview(str(clip), ("nearest", "bicubic"), at="0.5", scale=2, crop="32x24+16+12", threads=1)
    assert (found.frame, found.box) == (12, (16, 12, 48, 36))
    assert [pane.model for pane in found.panes] == ["source", "nearest", "bicubic"]
    assert {pane.images[0].size for pane in found.panes} == {(64, 48)}
    sheet = png(found)
    assert sheet.width > 2 * 64
    assert sheet.height > 2 * 48
    assert label(found, found.panes[1]).startswith("nearest, ")


def test_the_part_of_a_model_is_the_part_of_its_whole_picture(clip: Path) -> None:
    """Bicubic sees beyond its part only where a card says so; nearest needs nothing and must be exact."""
    part = preview(str(clip), ("nearest",), at="5f", scale=2, crop="32x24+16+12", threads=1)
    whole = preview(str(clip), ("nearest",), at="5f", scale=2, crop="full", threads=1)
    cut = whole.panes[1].images[0].crop((32, 24, 96, 72))
    luma = [np.asarray(each.convert("L"), np.int16) for each in (part.panes[1].images[0], cut)]
    assert np.abs(luma[0] - luma[1])[2:-2, 2:-2].max() <= 1, "only chroma at the border may differ"


def test_a_second_of_it_moves(clip: Path) -> None:
    found = preview(str(clip), ("bicubic",), at="0", scale=2, seconds=0.5, threads=1)
    assert [len(pane.images) for pane in found.panes] == [6, 6]


@pytest.mark.parametrize(
    ("crop", "text"),
    [("10x10", "least"), ("64x48+9+9", "outside"), ("a", "write WxH"), ("32x32+1", "write WxH")],
)
def test_a_crop_that_cannot_be_is_refused(clip: Path, crop: str, text: str) -> None:
    with pytest.raises(JobError, match=text):
        preview(str(clip), ("bicubic",), crop=crop)


def test_every_unknown_model_is_named(clip: Path) -> None:
    with pytest.raises(JobError) as caught:
        preview(str(clip), ("bicubik", "lanczo", "nearest"))
    assert "bicubik" in str(caught.value)
    assert "lanczo" in str(caught.value)


def test_the_command_writes_a_picture_or_a_page_and_answers_with_json(clip: Path, tmp_path: Path) -> None:
    shared = ["preview", str(clip), "--models", "nearest,lanczos", "--scale", "2", "--threads", "1", "-q"]
    out = tmp_path / "choice.png"
    said = CliRunner().invoke(app, [*shared, "-o", str(out)])
    assert said.exit_code == 0, said.output
    assert said.stdout.strip() == str(out)
    with Image.open(out) as image:
        assert image.size[0] > 256
    said = CliRunner().invoke(app, [*shared, "--json"])
    assert [pane["model"] for pane in json.loads(said.stdout)["panes"]] == ["source", "nearest", "lanczos"]
    found = preview(str(clip), ("nearest",), scale=2, threads=1)
    assert content(found, ".html").startswith(b"<!doctype html>")


def test_another_kind_of_file_is_refused_before_any_work(clip: Path) -> None:
    said = CliRunner().invoke(app, ["preview", str(clip), "-o", "x.gif"])
    assert isinstance(said.exception, JobError)


@pytest.fixture
def _empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setattr("vsr_hpc.models.weights.connection_problem", lambda *_: "site: no network")


@pytest.mark.usefixtures("_empty_home")
def test_a_model_without_weights_and_network_is_left_out_and_named(clip: Path) -> None:
    reasons: list[str] = []
    names = ("bicubic", "realesr-animevideov3")
    found = preview(str(clip), names, scale=2, crop="32x24", threads=1, on_left_out=reasons.append)
    assert [pane.model for pane in found.panes] == ["source", "bicubic"]
    assert len(reasons) == 1 and "realesr-animevideov3.pth" in reasons[0] and "no network" in reasons[0]
    with pytest.raises(ModelError, match="no network"):
        preview(str(clip), ("realesr-animevideov3",), crop="32x24")


@pytest.mark.usefixtures("_empty_home")
def test_by_default_every_model_on_this_disk_is_shown_ours_for_the_clip_first(clip: Path) -> None:
    found = preview(str(clip), scale=4, crop="32x24", threads=1)
    names = [pane.model for pane in found.panes]
    assert names[:2] == ["source", "vsr-video-x4"]
    assert {"bicubic", "lanczos", "vsr-clean-x2", "vsr-clean-x4", "vsr-video-x2"} <= set(names)
    assert "realesr-animevideov3" not in names
