"""What a clip has gone through before it reaches us: motion, light blur and noise, 4:2:0, H.264.

A bank of such frames is made once, in memory; clip n depends on the seed and on n alone. Reading back goes
through `upscale.colour`, as every frame does that a model will see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsr_hpc.bench.imresize import Picture8, resize
from vsr_hpc.bench.originals import read_still, through_h264, to_rgb8
from vsr_hpc.training.data import ImageFile, TrainingPair, sizes_of

PRESETS = ("superfast", "veryfast", "fast", "medium")


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """What one clip suffers; lengths are in low pixels, noise in codes."""

    crf: int
    preset: str
    blur: float
    noise: float
    step: tuple[int, int]
    """Motion in high pixels a frame: fractions of a low pixel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BankSize:
    """How much material a bank holds."""

    clips: int = 900
    frames: int = 7
    """In each clip; every second one is kept, so that all picture types are seen."""
    side: int = 96
    """Of a low frame, in pixels."""


def video_pairs(
    images: Sequence[ImageFile], scale: int, seed: int, size: BankSize | None = None
) -> tuple[TrainingPair, ...]:
    """The bank: damaged low frames with their undamaged high originals."""
    size = size or BankSize()
    sources = [
        (image.name, picture)
        for image in images
        for picture in sizes_of(read_still(image.path), size.side * scale)
    ]
    pairs: list[TrainingPair] = []
    for number in range(size.clips):
        rng = np.random.default_rng((seed, 77, number))
        name, picture = sources[number % len(sources)]
        damage = draw_damage(rng, scale)
        highs = _pan(picture, size, scale, damage.step, rng)
        lows = damage_frames([reduce_picture(high, scale, damage.blur) for high in highs], damage, rng)
        pairs += [
            TrainingPair(name=f"{name}#{number}", low=low, high=high)
            for low, high in list(zip(lows, highs, strict=True))[::2]
        ]
    return tuple(pairs)


def draw_damage(rng: np.random.Generator, scale: int) -> Damage:
    """CRF 15 to 40; half of the clips neither blurred nor noisy."""
    is_still = rng.random() < 0.15
    step = (0, 0) if is_still else tuple(int(each) for each in rng.integers(-2 * scale, 2 * scale + 1, 2))
    return Damage(
        crf=int(rng.integers(15, 41)),
        preset=PRESETS[int(rng.integers(len(PRESETS)))],
        blur=float(rng.uniform(0.15, 0.45)) if rng.random() < 0.3 else 0.0,
        noise=float(rng.uniform(0.5, 4.0)) if rng.random() < 0.4 else 0.0,
        step=(step[0], step[1]),
    )


def reduce_picture(high: Picture8, scale: int, blur: float = 0.0) -> Picture8:
    """The picture at 1/scale; `blur` is a Gaussian's sigma in low pixels, applied before."""
    soft = _blur(high, blur * scale) if blur else high
    return resize(soft, high.shape[0] // scale, high.shape[1] // scale)


def damage_frames(lows: Sequence[Picture8], damage: Damage, rng: np.random.Generator) -> list[Picture8]:
    """The frames after noise, H.264 in 4:2:0, and back."""
    noisy = [
        np.clip(low + rng.normal(0, damage.noise, low.shape), 0, 255).round().astype(np.uint8)
        if damage.noise
        else low
        for low in lows
    ]
    picture, frames = through_h264(noisy, crf=damage.crf, preset=damage.preset)
    return [to_rgb8(frame, picture) for frame in frames]


def _pan(
    picture: Picture8, size: BankSize, scale: int, step: tuple[int, int], rng: np.random.Generator
) -> list[Picture8]:
    """Crops that move over the picture; the motion turns back at its edges."""
    side = size.side * scale
    room = (picture.shape[0] - side, picture.shape[1] - side)
    start = [int(rng.integers(each + 1)) for each in room]
    crops = []
    for index in range(size.frames):
        row, column = (_reflect(start[axis] + index * step[axis], room[axis]) for axis in range(2))
        crops.append(np.ascontiguousarray(picture[row : row + side, column : column + side]))
    return crops


def _reflect(place: int, room: int) -> int:
    if room == 0:
        return 0
    place %= 2 * room
    return min(place, 2 * room - place)


def _blur(picture: Picture8, sigma: float) -> Picture8:
    radius = max(1, round(3 * sigma))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    soft: NDArray[np.float32] = picture.astype(np.float32)
    for axis in (0, 1):
        margins = [(radius, radius) if each == axis else (0, 0) for each in range(3)]
        wide = np.pad(soft, margins, mode="reflect")
        length = picture.shape[axis]
        soft = sum(
            (tap * wide.take(range(i, i + length), axis=axis) for i, tap in enumerate(taps)),
            start=np.zeros_like(soft),
        )
    blurred: Picture8 = soft.round().clip(0, 255).astype(np.uint8)
    return blurred
