"""`verify` sees each damage of the picture, once, and accepts the output that it was made from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.damages import PROMISE, Output
from tests.honest_outputs import Honest, make_output, make_source
from tests.picture_damages import DAMAGES, Damage
from vsr_hpc.verification.verify import verify


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Output:
    folder = tmp_path_factory.mktemp("damages")
    path = make_output(Honest(clip="made", model="vsr-video-x2", scale=2, video={"crf": 28}), folder)
    source = make_source("made", folder)
    result = verify(source, path, PROMISE)
    assert result.ok and not result.warnings, list(result.lines())
    return Output.read(source, path)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_each_damage_of_the_picture_is_seen(output: Output, damage: Damage, tmp_path: Path) -> None:
    result = verify(output.source, output.write_damaged(damage, tmp_path / "out.mkv"), PROMISE)
    found = result.warnings if damage.is_warning else result.findings
    assert any(damage.words in each.text for each in found), list(result.lines())


@pytest.mark.parametrize("model", ["nearest", "bicubic"])
def test_a_smaller_output_is_accepted(tmp_path: Path, model: str) -> None:
    """The worker checks it too, before its receipt."""
    honest = Honest(clip="made", model=model, scale=1 / 3)
    output = make_output(honest, tmp_path)
    assert verify(make_source("made", tmp_path), output, PROMISE).ok
