"""Scene cuts: hard ones and no others, wherever the look at the clip begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.clips import picture
from vsr_hpc.media.clip.probe import index_clip, probe_clip
from vsr_hpc.media.clip.reader import read_frames
from vsr_hpc.media.clip.scenes import find_cuts
from vsr_hpc.media.picture import Frame
from vsr_hpc.media.source import local_source

SHAPE = picture((64, 48), "yuv420p")
VIDEOS = Path(__file__).parents[3] / "shared" / "data" / "videos"


def look(seed: int, shift: float = 0, noise: int = 0, gain: float = 1.0) -> NDArray[np.uint8]:
    """A soft random landscape, seen from a place `shift` samples to the right."""
    chance = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:48, 0:64].astype(float)
    luma = np.full((48, 64), 110.0)
    for _ in range(6):
        wide, high, phase = chance.uniform(4, 20), chance.uniform(4, 20), chance.uniform(0, 6)
        luma += chance.uniform(8, 20) * np.sin((columns + shift) / wide + rows / high + phase)
    luma += np.random.default_rng(noise).normal(0, 3, luma.shape)
    return np.clip(luma * gain, 0, 255).astype(np.uint8)


def cuts(lumas: Sequence[NDArray[Any]], first: int = 0) -> tuple[int, ...]:
    grey = np.full((24, 32), 128, np.uint8)
    frames = (Frame(index=first + i, planes=(luma, grey, grey)) for i, luma in enumerate(lumas))
    return find_cuts(frames, SHAPE)


def shot(seed: int, frames: int, speed: float = 0.5) -> list[NDArray[np.uint8]]:
    return [look(seed, speed * i, noise=100 * seed + i) for i in range(frames)]


def test_hard_cuts_are_found_with_their_frame_numbers() -> None:
    assert cuts([*shot(1, 12), *shot(2, 7), *shot(3, 10)]) == (12, 19)
    assert cuts([*shot(1, 12), *shot(2, 7)], first=100) == (112,)


def test_where_the_look_begins_changes_no_cut() -> None:
    lumas = [*shot(1, 12), *shot(2, 9), *shot(3, 10)]
    assert cuts(lumas[8:], first=8) == cuts(lumas)


def test_a_flash_is_no_cut() -> None:
    lumas = shot(1, 20)
    lumas[9] = np.clip(lumas[9].astype(int) + 90, 0, 255).astype(np.uint8)
    assert cuts(lumas) == ()


def test_a_dissolve_is_no_cut() -> None:
    one, other = shot(1, 30), shot(2, 30)
    mixed = [
        (a * (1 - w) + b * w).astype(np.uint8)
        for a, b, w in zip(one, other, np.clip((np.arange(30) - 8) / 12, 0, 1), strict=True)
    ]
    assert cuts(mixed) == ()


@pytest.mark.parametrize("speed", [3.0, 9.0])
def test_a_pan_that_begins_at_once_is_no_cut(speed: float) -> None:
    still = [look(1, 0, noise=i) for i in range(10)]
    panned = [look(1, speed * (i + 1), noise=50 + i) for i in range(12)]
    assert cuts([*still, *panned]) == ()


def test_a_fade_to_black_and_back_is_no_cut() -> None:
    gains = [*[1.0] * 6, *np.linspace(1, 0, 10), *np.linspace(0, 1, 10), *[1.0] * 6]
    assert cuts([look(1, 0, noise=i, gain=gain) for i, gain in enumerate(gains)]) == ()


def test_two_frames_and_one_and_none() -> None:
    assert cuts([look(1), look(2)]) == (1,)
    assert cuts([look(1)]) == ()
    assert cuts([]) == ()


@pytest.mark.parametrize("pix_fmt", ["gray", "yuv444p10le", "gbrp", "gbrpf32le", "yuva420p"])
def test_every_layout_and_depth_is_seen_alike(pix_fmt: str) -> None:
    shape = picture((64, 48), pix_fmt)
    form = shape.pixel
    frames = []
    for i, luma in enumerate([*shot(1, 8), *shot(2, 8)]):
        top = 1.0 if form.depth == 32 else 2.0**form.depth - 1
        full = (luma / 255 * top).astype(form.dtype)
        planes = [full[: rows or None, : columns or None] for rows, columns in shape.plane_shapes()]
        frames.append(Frame(index=i, planes=tuple(planes)))
    assert find_cuts(iter(frames), shape) == (8,)


@pytest.mark.parametrize(
    ("name", "wanted"), [("scene_cuts.mp4", (30, 76, 137, 187, 242)), ("bigbuckbunny.mp4", ())]
)
def test_cuts_of_real_clips(name: str, wanted: tuple[int, ...]) -> None:
    """Looked at frame by frame; PySceneDetect 0.7.2 agrees on the first clip's source (bikes.mp4)."""
    if not (VIDEOS / name).exists():
        pytest.skip(f"{VIDEOS / name} is not here")
    source = local_source(VIDEOS / name)
    clip = probe_clip(source)
    timeline = index_clip(clip, source)
    assert find_cuts(read_frames(clip, timeline, source, 0, len(timeline)), clip.picture) == wanted
