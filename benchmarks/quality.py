"""The README's quality table and the pictures of docs/models.md, from the images held out of training.

    python benchmarks/quality.py IMAGES --more realesr-animevideov3.pth

Any folder does: where it holds the images that `vsr_hpc/models/shipped/images.json` names as held out, only
those are measured, so that no figure is of a picture that was trained on. `--pictures` names a folder for
crops side by side; they show CC0 images only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from fractions import Fraction
from importlib import resources
from pathlib import Path

import imageio.v3 as imageio
import numpy as np

from vsr_hpc.bench.imresize import Picture8
from vsr_hpc.bench.originals import STILLS, Lows, degrade_truth, read_truth, to_rgb8
from vsr_hpc.bench.quality import ModelRow, measure_quality, upscale_lows
from vsr_hpc.engine.device_facts import device_facts
from vsr_hpc.engine.geometry import output_geometry
from vsr_hpc.engine.settings import UpscaleRequest, resolve_settings
from vsr_hpc.engine.upscaler import Upscaler
from vsr_hpc.media.picture import Colour, Frame, Picture
from vsr_hpc.media.pixels import pixel_format
from vsr_hpc.models import weights
from vsr_hpc.models.cards import Card, find_card
from vsr_hpc.models.defaults import shipped_models

FILTERS = ("bicubic", "lanczos")
COLUMNS = ((2, "clean"), (2, "h264:23"), (4, "clean"), (4, "h264:23"), (4, "h264:35"))
CROPS = (  # CC0 images of the gb82 set: name, row, column and side of the crop in the original
    ("gb82-baby-lossless", 330, 120, 160),
    ("gb82-mies-lossless", 180, 150, 160),
    ("gb82-dog-lossless", 150, 190, 160),
)
_ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--more", action="append", default=[], help="more models: names or weights files")
    parser.add_argument("--pictures", type=Path, help="write crops side by side into this folder")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in _measured(asked.images):
            (folder / path.name).symlink_to(path.resolve())
        print("\n".join(_table(folder, asked.more, asked.threads)))
        if asked.pictures:
            asked.pictures.mkdir(parents=True, exist_ok=True)
            for crop in CROPS:
                _draw(asked.images, crop, asked.more, asked.pictures)


def _measured(folder: Path) -> list[Path]:
    """The held-out images of a folder; all of its images where it has none of them."""
    listed = json.loads(resources.files("vsr_hpc.models").joinpath("shipped/images.json").read_text())
    held_out = {each["file"] for each in listed if each["held_out"]}
    every = sorted(path for path in folder.iterdir() if path.suffix.lower() in STILLS)
    return [path for path in every if path.name in held_out] or every


def _table(folder: Path, more: list[str], threads: int) -> list[str]:
    found: dict[str, dict[tuple[int, str], ModelRow]] = {}
    for scale, degrade in COLUMNS:
        fitting = [model for model in more if find_card(model).scale == scale]
        models = [*FILTERS, *shipped_models(scale), *fitting]
        for row in measure_quality(folder, models, scale, degrade=degrade, threads=threads).rows:
            found.setdefault(row.model, {})[scale, degrade] = row
    cards = [find_card(name) for name in (*FILTERS, *shipped_models(), *more)]
    speeds = _speeds(cards, threads)
    head = "".join(f" x{scale} {degrade.replace('h264:', 'CRF ')} |" for scale, degrade in COLUMNS)
    lines = [f"| PSNR dB / SSIM |{head} fps |", f"| --- |{' ---: |' * (len(COLUMNS) + 1)}"]
    for card in cards:
        cells = (_cell(found[card.name].get(column)) for column in COLUMNS)
        lines.append(f"| {card.name} | {' | '.join(cells)} | {speeds[card.name]:.1f} |")
    count = len(list(folder.iterdir()))
    return [*lines, "", f"{count} originals; fps: 1920x1080 out, {threads} threads of {device_facts().name}"]


def _cell(row: ModelRow | None) -> str:
    return "" if row is None else f"{row.figures.psnr:.2f} / {row.figures.ssim:.4f}"


def _speeds(cards: list[Card], threads: int) -> dict[str, float]:
    """Frames of 1920x1080 out in a second, upscaling alone: the best of rounds that take turns."""
    seconds: dict[str, list[float]] = {card.name: [] for card in cards}
    for _ in range(_ROUNDS):
        for card in cards:
            scale = 4 if card.is_filter else card.scale
            run, frame = _engine(card, scale, threads)
            run([frame])
            began = time.perf_counter()
            run([frame])
            seconds[card.name].append(time.perf_counter() - began)
    return {name: 1 / min(each) for name, each in seconds.items() if statistics.median(each) > 0}


def _engine(card: Card, scale: int, threads: int) -> tuple[Upscaler, Frame]:
    shape = Picture(
        width=1920 // scale,
        height=1080 // scale,
        pixel=pixel_format("yuv420p"),
        colour=Colour(matrix=1, is_range_tagged=True, siting="left"),
    )
    dice = np.random.default_rng(1)
    planes = tuple(dice.integers(16, 236, size, dtype=np.uint8) for size in shape.plane_shapes())
    out = output_geometry(shape, shape.pixel, scale=Fraction(scale)).picture
    settings = resolve_settings(UpscaleRequest(size=(out.width, out.height), batch=1), card, shape)
    path = weights.ensure(card) if card.weights else None
    return Upscaler(card, path, shape, out, settings, threads=threads), Frame(index=0, planes=planes)


# Pictures ----------------------------------------------------------------------------------------------


def _draw(images: Path, crop: tuple[str, int, int, int], more: list[str], target: Path) -> None:
    """One crop by bicubic and the models beside the original: above from a clean still, below from CRF 28."""
    name, row, column, side = crop
    found = [path for path in images.iterdir() if path.stem == name]
    if not found:
        return
    rows = []
    for crf, ours in ((None, "vsr-clean-x4"), (28, "vsr-video-x4")):
        truth = read_truth(found[0], 4, is_coded=True)
        lows = degrade_truth(truth, 4, crf)
        panels = [_crop(_through(model, lows), row, column, side) for model in ("bicubic", ours, *more)]
        rows.append(np.concatenate([*panels, _crop(truth.frames[0], row, column, side)], axis=1))
    _write(target / f"{name.split('-')[1]}-x4.png", np.concatenate(rows, axis=0))


def _through(model: str, lows: Lows) -> Picture8:
    picture, frames = upscale_lows(find_card(model), lows, 4)
    return to_rgb8(frames[-1], picture)


def _crop(picture: Picture8, row: int, column: int, side: int) -> Picture8:
    return picture[row : row + side, column : column + side]


def _write(path: Path, rgb: Picture8) -> None:
    imageio.imwrite(path, rgb)


if __name__ == "__main__":
    main()
