"""Outputs that the product makes as it should, over clips, models and settings: `verify` must accept each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import clips, runs
from vsr_hpc.job.reading import parse_job
from vsr_hpc.media.picture import Colour

DATA = Path(__file__).parents[1].parent / "shared" / "data"
_ANIME = DATA / "weights" / "realesr-animevideov3.pth"
_X4PLUS = DATA / "weights" / "RealESRGAN_x4plus.pth"
FRAMES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Honest:
    """A source and how it is upscaled."""

    clip: str
    """A file of `DATA`, or the name of a made clip."""
    model: str
    scale: float
    picture: dict[str, Any] = field(default_factory=dict)
    video: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        model = Path(self.model).stem
        more = " ".join(f"{key}={value}" for key, value in {**self.picture, **self.video}.items())
        return f"{Path(self.clip).stem} {model} x{self.scale:.2g} {more}".strip()

    def is_here(self) -> bool:
        """Whether the clip and the weights are on this machine."""
        here = self.clip in _MADE or (DATA / "videos" / self.clip).exists()
        return here and (not self.model.startswith("/") or Path(self.model).exists())


def honest_outputs() -> Iterator[Honest]:
    """Every filter and network of the package, and two GAN-trained ones, with the settings that add most."""
    third = 1 / 3
    ways: tuple[tuple[str, float, dict[str, Any], dict[str, Any]], ...] = (
        ("nearest", 2, {}, {}),
        ("bicubic", 2, {}, {}),
        ("bicubic", third, {}, {}),
        ("nearest", third, {}, {}),
        ("lanczos", 2, {}, {"crf": 35}),
        ("lanczos", 4, {}, {}),
        ("vsr-clean-x2", 2, {}, {}),
        ("vsr-clean-x4", 4, {}, {}),
        ("vsr-video-x2", 2, {}, {}),
        ("vsr-video-x2", 2, {"grain": 8}, {}),
        ("vsr-video-x2", 2, {"blend": 0.5}, {"crf": 35}),
        ("vsr-video-x4", 4, {}, {}),
        (str(_ANIME), 4, {}, {}),
        (str(_ANIME), 4, {"grain": 8}, {}),
        (str(_ANIME), 2, {}, {"crf": 32}),
    )
    for clip in ("carphone_pristine.mp4", "nasa_13013_hdr.mp4", "made", "made_10bit"):
        for model, scale, picture, video in ways:
            if clip == "made_10bit" and scale < 1:
                video = {"codec": "ffv1"}  # below H.265's least size
            yield Honest(clip=clip, model=model, scale=scale, picture=picture, video=video)
    for clip in ("bikes.mp4", "friday.mp4", "h264_10bits.mp4", "bt601_limited_range.mp4", "transparent.webm"):
        yield Honest(clip=clip, model=str(_ANIME), scale=4)
        yield Honest(clip=clip, model="bicubic", scale=third)
        yield Honest(clip=clip, model="vsr-video-x2", scale=2, video={"crf": 32})
    for clip in ("flower.mp4", "testsrc2_444_10bit_hevc.mp4", "nasa_13013_vfr.mp4", "bt601_full_range.mp4"):
        yield Honest(clip=clip, model="bicubic", scale=2, video={"crf": 32})
        yield Honest(clip=clip, model="vsr-video-x2", scale=2, picture={"grain": 4})
    for clip in ("bigbuckbunny.mp4", "scene_cuts.mp4"):
        yield Honest(clip=clip, model="vsr-video-x2", scale=2)
        yield Honest(clip=clip, model="lanczos", scale=third)
    for clip in ("carphone_pristine.mp4", "made"):
        yield Honest(clip=clip, model=str(_X4PLUS), scale=4)


def make_source(clip: str, folder: Path) -> Path:
    """A clip of `DATA`, or a made one."""
    if clip not in _MADE:
        return DATA / "videos" / clip
    path = folder / f"{clip}.mkv"
    return path if path.exists() else textured_clip(path, **_MADE[clip])


def make_output(honest: Honest, folder: Path) -> Path:
    """Upscale the first frames of the source in this process; what is there is taken as it is."""
    place = folder / "".join(each if each.isalnum() or each in "-." else "_" for each in str(honest))
    output = place / "out.mkv"
    if not output.exists():
        document = {
            "input": str(make_source(honest.clip, folder)),
            "output": str(output),
            "model": honest.model,
            "picture": {"scale": honest.scale, **honest.picture},
            "video": {"threads": 1, **honest.video},
            "streams": {"audio": "none", "drop": ["video", "subtitle", "data", "alpha", "attachment"]},
            "range": {"frames": FRAMES},
        }
        runs.finished(runs.planned_run(parse_job(document, "honest")))
    return output


_MADE: dict[str, dict[str, Any]] = {
    "made": {"pix_fmt": "yuv420p"},
    "made_10bit": {"pix_fmt": "yuv420p10le"},
}
BT709 = Colour(matrix=1, primaries=1, transfer=1, is_range_tagged=True)


def textured_clip(
    path: Path, *, size: tuple[int, int] = (192, 108), frames: int = FRAMES, pix_fmt: str = "yuv420p"
) -> Path:
    """A coloured, textured picture that pans; every frame and every place differs from every other."""
    shape = clips.picture(size, pix_fmt, BT709)
    sheets = [_textured(number, size) for number in range(frames)]

    def planes(number: int) -> tuple[NDArray[Any], ...]:
        unit = 1 << (shape.pixel.depth - 8)
        return tuple(np.rint(each * unit).astype(shape.pixel.dtype) for each in sheets[number])

    return clips.clip_of_planes(path, shape, [planes(number) for number in range(frames)])


def _textured(number: int, size: tuple[int, int]) -> tuple[NDArray[np.float64], ...]:
    """Y, U and V (4:2:0) on an 8-bit scale."""
    wide, high = size
    rng = np.random.default_rng(5)
    x, y = np.meshgrid(np.arange(wide) + 1.5 * number, np.arange(high) + 0.5 * number)
    luma = np.full((high, wide), 120.0)
    for _ in range(24):  # waves of every direction, from 6 px up
        across, down = rng.normal(0, 0.35, 2)
        luma += rng.uniform(3, 12) * np.sin(across * x + down * y + rng.uniform(0, 7))
    luma += 25 * np.sign(np.sin(x / 9) * np.cos(y / 13))  # and edges
    half_x, half_y = x[::2, ::2], y[::2, ::2]
    blue = 128 + 45 * np.sin(half_x / 12) * np.cos(half_y / 9) + 12 * np.sin(half_x / 4)
    red = 128 - 40 * np.cos(half_x / 15 + half_y / 8) + 10 * np.sin(half_y / 4)
    return np.clip(luma, 20, 230), np.clip(blue, 20, 235), np.clip(red, 20, 235)
