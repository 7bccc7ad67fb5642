"""The demo clip: made anywhere, without fonts or downloads, the same each time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest

from vsr_hpc.bench.made_clip import make_demo_clip
from vsr_hpc.errors import JobError
from vsr_hpc.media.clip.probe import index_clip, probe_clip
from vsr_hpc.media.source import local_source


def test_demo_clip_is_the_same_each_time(tmp_path: Path) -> None:
    one, two = (make_demo_clip(tmp_path / name, 0.5, (96, 64)) for name in ("one.mp4", "two.mp4"))
    assert one.read_bytes() == two.read_bytes()


def test_demo_clip_has_moving_pictures_tags_and_sound(tmp_path: Path) -> None:
    path = make_demo_clip(tmp_path / "demo.mp4", 1, (128, 96))
    clip = probe_clip(local_source(path))
    assert len(index_clip(clip, local_source(path))) == 24
    assert clip.frame_rate == Fraction(24)
    assert (clip.picture.colour.matrix, clip.picture.colour.is_full_range) == (1, False)
    with av.open(str(path)) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
        pictures = {bytes(frame.planes[0]) for frame in container.decode(video=0)}
    assert len(pictures) == 24


def test_demo_clip_can_be_silent(tmp_path: Path) -> None:
    path = make_demo_clip(tmp_path / "demo.mkv", 0.25, (64, 64), audio=False)
    assert [each.kind for each in probe_clip(local_source(path)).streams] == ["video"]


def test_demo_clip_of_an_odd_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="even sizes"):
        make_demo_clip(tmp_path / "demo.mp4", 1, (65, 64))
