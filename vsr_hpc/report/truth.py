"""How near an output comes to the truth, where somebody has it: luma PSNR and SSIM of some frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vsr_hpc.errors import JobError
from vsr_hpc.media.clip.probe import index_clip, probe_clip
from vsr_hpc.media.picture import Frame, Picture
from vsr_hpc.report.pictures import Side, candidate_frames, input_side, output_side, read_some
from vsr_hpc.report.srgb import to_image
from vsr_hpc.run.documents import Done
from vsr_hpc.run.run import Run
from vsr_hpc.storage.opening import open_source
from vsr_hpc.verification.similarity import psnr, ssim

_EQUAL_DB = 100.0
"""Said of pictures that are equal, so that means stay numbers."""
Grey = NDArray[np.float32]
"""Luma as it is shown, 0 black to 255 white."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Means over the frames that were compared; bicubic is the plain enlargement of the same inputs."""

    truth: str
    frames: int
    psnr_db: float
    ssim: float
    bicubic_psnr_db: float
    bicubic_ssim: float
    worst_frame: int
    worst_psnr_db: float


def measure_quality(run: Run, done: Done, truth: str) -> Quality:
    """JobError where the truth has not the output's size or not the source's number of frames."""
    before, after = input_side(run), output_side(run, done)
    source = open_source(truth)
    clip = probe_clip(source)
    original = Side(clip=clip, timeline=index_clip(clip, source), source=source)
    _check_fits(original, before, after)
    numbers = candidate_frames(before.timeline, run.plan.start, run.plan.stop)
    rows = []
    for number, small, big, true in _triples(before, after, original, numbers):
        wide = _grey(small.resize(big.size, Image.Resampling.BICUBIC))
        rows.append((number, *figures(_grey(big), _grey(true)), *figures(wide, _grey(true))))
    means = np.mean([row[1:] for row in rows], axis=0)
    worst = min(rows, key=lambda row: row[1])
    return Quality(
        truth=truth,
        frames=len(rows),
        psnr_db=round(float(means[0]), 3),
        ssim=round(float(means[1]), 5),
        bicubic_psnr_db=round(float(means[2]), 3),
        bicubic_ssim=round(float(means[3]), 5),
        worst_frame=worst[0],
        worst_psnr_db=round(worst[1], 3),
    )


def figures(one: Grey, other: Grey) -> tuple[float, float]:
    """(PSNR, SSIM); equal pictures have a number too, so that means stay numbers."""
    return min(_EQUAL_DB, psnr(one, other)), ssim(one, other)


def _grey(image: Image.Image) -> Grey:
    """Luma of BT.709, as R'G'B' of screens has it."""
    red, green, blue = np.moveaxis(np.asarray(image, dtype=np.float32), 2, 0)
    return np.asarray(0.2126 * red + 0.7152 * green + 0.0722 * blue, dtype=np.float32)


def _triples(
    before: Side, after: Side, original: Side, numbers: tuple[int, ...]
) -> Iterator[tuple[int, Image.Image, Image.Image, Image.Image]]:
    sides = (before, after, original)
    for frames in zip(*(read_some(side, numbers) for side in sides), strict=True):
        small, big, true = (_image(frame, side.picture) for frame, side in zip(frames, sides, strict=True))
        yield frames[0].index, small, big, true


def _image(frame: Frame, picture: Picture) -> Image.Image:
    return to_image(frame, picture)


def _check_fits(original: Side, before: Side, after: Side) -> None:
    wanted, found = after.picture, original.picture
    findings = []
    if (wanted.width, wanted.height) != (found.width, found.height):
        findings.append(
            f"--truth: {original.clip.uri} is {found.width}x{found.height}, the output "
            f"{wanted.width}x{wanted.height}"
        )
    if len(original.timeline) != len(before.timeline):
        findings.append(
            f"--truth: {original.clip.uri} has {len(original.timeline)} frames, the source "
            f"{len(before.timeline)}"
        )
    if findings:
        raise JobError.from_findings("the truth does not belong to this run", findings)
