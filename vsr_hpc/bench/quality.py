"""How near a model comes to the truth: originals are made small, upscaled by the engine, and compared.

Conventions of published figures: antialiased bicubic reduction as MATLAB makes it (8 bits after each pass),
luma of BT.601 not rounded, `scale` pixels of border cut, the mean of every picture's PSNR and SSIM.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vsr_hpc.bench.imresize import Picture8, luma
from vsr_hpc.bench.originals import Lows, Truth, crf_of, degrade_truth, list_originals, read_truth, to_rgb8
from vsr_hpc.engine.device_facts import DeviceFacts, device_facts
from vsr_hpc.engine.geometry import output_geometry
from vsr_hpc.engine.settings import UpscaleRequest, resolve_settings
from vsr_hpc.engine.upscaler import Upscaler
from vsr_hpc.errors import JobError
from vsr_hpc.media.picture import Frame, Picture
from vsr_hpc.models import weights
from vsr_hpc.models.cards import Card, Precision, find_card
from vsr_hpc.verification.similarity import psnr, ssim

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityFigures:
    """One picture's figures, or the means of many."""

    psnr: float
    ssim: float
    lpips: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureRow:
    """One picture of the folder through one model."""

    name: str
    figures: QualityFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """One model over the whole folder."""

    model: str
    figures: QualityFigures
    megapixels_per_s: float
    """Of output, on this machine, upscaling alone."""
    pictures: tuple[PictureRow, ...]

    @property
    def full_hd_per_s(self) -> float:
        return self.megapixels_per_s / (1920 * 1080 / 1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityTable:
    """What was measured, and how."""

    folder: str
    scale: int
    degradation: str
    pictures: int
    device: str
    threads: int
    precision: str
    rows: tuple[ModelRow, ...]


def measure_quality(
    folder: Path,
    models: Sequence[str],
    scale: int,
    *,
    degrade: str = "clean",
    precision: Precision | None = None,
    threads: int = 1,
    tell: Callable[[str], None] = lambda _: None,
) -> QualityTable:
    """Every model over every still and clip of a folder of originals.

    `degrade` is "clean", or "h264:CRF": the small pictures go through H.264 in 4:2:0 first.
    """
    if not 2 <= scale <= 8:
        raise JobError(f"scale={scale} cannot be measured; choose 2 to 8")
    crf = crf_of(degrade)
    cards = [find_card(model) for model in dict.fromkeys(models)]
    if not cards:
        raise JobError("no model is named; try --models bicubic,vsr-clean-x4")
    paths = list_originals(folder)
    device = device_facts()
    found: dict[str, list[PictureRow]] = {card.name: [] for card in cards}
    clocks = {card.name: _UpscaleClock() for card in cards}
    perceive = _lpips()
    for path in paths:
        truth = read_truth(path, scale, is_coded=crf is not None)
        lows = degrade_truth(truth, scale, crf)
        for card in cards:
            tell(f"{card.name}: {path.name}")
            made = _upscale(card, lows, scale, device, precision, threads, clocks[card.name])
            found[card.name].append(_compare(truth, lows, made, scale, perceive))
    rows = tuple(
        ModelRow(
            model=card.name,
            figures=_mean([row.figures for row in found[card.name]]),
            megapixels_per_s=clocks[card.name].megapixels_per_s,
            pictures=tuple(found[card.name]),
        )
        for card in cards
    )
    return QualityTable(
        folder=str(folder),
        scale=scale,
        degradation=degrade,
        pictures=len(paths),
        device=device.name,
        threads=threads,
        precision=precision or "auto",
        rows=rows,
    )


# Upscaling --------------------------------------------------------------------------------------------------
class _UpscaleClock:
    def __init__(self) -> None:
        self.seconds = self.pixels = 0.0

    @property
    def megapixels_per_s(self) -> float:
        return self.pixels / 1e6 / self.seconds if self.seconds else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class _UpscaledFrames:
    picture: Picture
    frames: tuple[Frame, ...]


def upscale_lows(
    card: Card, lows: Lows, scale: int, *, threads: int = 1
) -> tuple[Picture, tuple[Frame, ...]]:
    """The measured frames through a model, by the engine that jobs use."""
    made = _upscale(card, lows, scale, device_facts(), None, threads, _UpscaleClock())
    return made.picture, made.frames


def _upscale(
    card: Card,
    lows: Lows,
    scale: int,
    device: DeviceFacts,
    precision: Precision | None,
    threads: int,
    clock: _UpscaleClock,
) -> _UpscaledFrames:
    picture = lows.picture
    out = output_geometry(picture, picture.pixel, scale=Fraction(scale)).picture
    request = UpscaleRequest(
        size=(out.width, out.height),
        pixel=out.pixel,
        batch=1,
        precision=None if card.is_filter else precision,
    )
    settings = resolve_settings(request, card, picture, device)
    path = weights.ensure(card) if card.weights else None
    upscaler = Upscaler(card, path, picture, out, settings, threads=threads)
    chosen = [lows.frames[index] for index in lows.measured]
    upscaler(chosen[:1])  # the first pass prepares kernels
    began = time.perf_counter()
    frames = tuple(upscaler(chosen))
    clock.seconds += time.perf_counter() - began
    clock.pixels += out.width * out.height * len(frames)
    return _UpscaledFrames(picture=out, frames=frames)


# Comparing --------------------------------------------------------------------------------------------------
def _compare(
    truth: Truth,
    lows: Lows,
    made: _UpscaledFrames,
    scale: int,
    perceive: Callable[[Picture8, Picture8], float] | None,
) -> PictureRow:
    found = []
    for index, frame in zip(lows.measured, made.frames, strict=True):
        original = truth.frames[index if truth.is_clip or len(truth.frames) > 1 else 0]
        inner = (slice(scale, -scale), slice(scale, -scale))
        wanted, given = luma(original)[inner], _luma_of(frame, made.picture)[inner]
        distance = None if perceive is None else perceive(original, to_rgb8(frame, made.picture))
        found.append(QualityFigures(psnr=psnr(wanted, given), ssim=ssim(wanted, given), lpips=distance))
    return PictureRow(name=truth.name, figures=_mean(found))


def _luma_of(frame: Frame, picture: Picture) -> NDArray[np.float64]:
    """Of coded frames the Y plane itself, which is BT.601 here."""
    if picture.pixel.kind == "yuv":
        return frame.planes[0].astype(np.float64)
    green, blue, red = frame.planes[:3]
    return luma(np.stack((red, green, blue), axis=-1))


def _mean(rows: Sequence[QualityFigures]) -> QualityFigures:
    distances = [row.lpips for row in rows if row.lpips is not None]
    return QualityFigures(
        psnr=float(np.mean([row.psnr for row in rows])),
        ssim=float(np.mean([row.ssim for row in rows])),
        lpips=float(np.mean(distances)) if len(distances) == len(rows) else None,
    )


def _lpips() -> Callable[[Picture8, Picture8], float] | None:
    """LPIPS (AlexNet) where that package is installed."""
    if importlib.util.find_spec("lpips") is None:
        return None
    lpips = importlib.import_module("lpips")
    try:
        network = lpips.LPIPS(net="alex", verbose=False).eval()
    except Exception as exc:  # it fetches AlexNet's weights, by other packages' means
        log.warning("LPIPS is installed but does not start, so it is left out: %s", exc)
        return None

    def distance(one: Picture8, other: Picture8) -> float:
        tensors = [torch.from_numpy(each).permute(2, 0, 1)[None].float() / 127.5 - 1 for each in (one, other)]
        with torch.inference_mode():
            return float(network(*tensors))

    return distance


def rows_of_text(table: QualityTable) -> Iterator[str]:
    """The table for people; the same lines are the README's."""
    has_lpips = all(row.figures.lpips is not None for row in table.rows)
    yield f"| x{table.scale}, {table.degradation} | PSNR dB | SSIM |{' LPIPS |' if has_lpips else ''} fps |"
    yield f"| --- | ---: | ---: |{' ---: |' if has_lpips else ''} ---: |"
    for row in table.rows:
        extra = f" {row.figures.lpips:.4f} |" if has_lpips else ""
        yield (
            f"| {row.model} | {row.figures.psnr:.2f} | {row.figures.ssim:.4f} |{extra} "
            f"{row.full_hd_per_s:.1f} |"
        )
