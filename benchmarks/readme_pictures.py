"""The picture and the moving demo of the README, made with `vsr_hpc.Upscaler` and `vsr upscale`.

    python benchmarks/readme_pictures.py PHOTOGRAPH CLIP [--animation-weights FILE] [--into docs/pictures]

A part of a photograph and of an animated clip is made four times smaller and upscaled again: by
bicubic, by the package's own network, and by the published network that was trained for this kind of picture.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vsr_hpc import Upscaler

Rgb = NDArray[np.uint8]
_SIDE, _MARGIN, _BAR, _GAP = 224, 64, 26, 6
_LOOP = (176, 128, 10)
"""Width, height and frames of each half of the moving demo."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photograph", type=Path)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--photograph-at", type=int, nargs=2, default=(330, 120), metavar=("ROW", "COLUMN"))
    parser.add_argument(
        "--clip-at", type=int, nargs=3, default=(40, 60, 410), metavar=("FRAME", "ROW", "COLUMN")
    )
    parser.add_argument("--animation-weights", default="realesr-animevideov3")
    parser.add_argument("--into", type=Path, default=Path("docs/pictures"))
    asked = parser.parse_args()
    frame, row, column = asked.clip_at
    photograph = iio.imread(asked.photograph)[..., :3]
    frames = list(itertools.islice(iio.imiter(asked.clip, plugin="pyav"), frame, frame + _LOOP[2]))
    rows = [
        _row(
            _part(photograph, *asked.photograph_at), "vsr-clean-x4", "RealESRGAN_x4plus", "RealESRGAN_x4plus"
        ),
        _row(_part(frames[0], row, column), "vsr-video-x4", asked.animation_weights, "realesr-animevideov3"),
    ]
    sheet = np.concatenate([rows[0], np.full((_GAP, rows[0].shape[1], 3), 255, np.uint8), rows[1]])
    _write_png(sheet, asked.into / "compare-x4.png")
    _write_gif(frames, row, column, asked.into / "demo.gif")


def _part(picture: Rgb, row: int, column: int) -> Rgb:
    """The part that is shown, with a margin that the networks see."""
    size = _SIDE + 2 * _MARGIN
    top = min(max(0, row - _MARGIN), picture.shape[0] - size)
    left = min(max(0, column - _MARGIN), picture.shape[1] - size)
    return picture[top : top + size, left : left + size]


def _row(truth: Rgb, ours: str, theirs: str, their_name: str) -> Rgb:
    small = Upscaler("bicubic", 0.25)(truth)
    names = {"bicubic": "bicubic", f"{ours} (ours)": ours, their_name: theirs}
    made = {name: Upscaler(model, 4)(small) for name, model in names.items()} | {"original": truth}
    inner = slice(_MARGIN, _MARGIN + _SIDE)
    return np.concatenate([_labelled(each[inner, inner], name) for name, each in made.items()], axis=1)


def _labelled(picture: Rgb, name: str) -> Rgb:
    whole = Image.new("RGB", (picture.shape[1] + _GAP, picture.shape[0] + _BAR), "white")
    whole.paste(Image.fromarray(picture), (0, _BAR))
    ImageDraw.Draw(whole).text((2, _BAR / 2), name, "black", ImageFont.load_default(size=15), "lm")
    return np.asarray(whole)


def _write_png(picture: Rgb, path: Path) -> None:
    colours = Image.fromarray(picture).quantize(
        256, Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG
    )
    colours.save(path, optimize=True)


def _write_gif(frames: list[Rgb], row: int, column: int, path: Path) -> None:
    """Bicubic on the left, ours on the right; `vsr upscale` makes the GIF of the images."""
    width, height, _ = _LOOP
    bicubic, ours, smaller = Upscaler("bicubic", 4), Upscaler("vsr-video-x4", 4), Upscaler("bicubic", 0.25)
    parts: list[Any] = [each[row : row + height, column : column + width] for each in frames]
    with tempfile.TemporaryDirectory() as name:
        for number, small in enumerate(map(smaller, parts)):
            both = [_labelled(bicubic(small), "bicubic"), _labelled(ours(small), "vsr-video-x4 (ours)")]
            iio.imwrite(f"{name}/{number:03d}.png", np.concatenate(both, axis=1))
        command = [sys.executable, "-m", "vsr_hpc", "upscale", f"{name}/%03d.png", f"{name}/demo.gif", "-q"]
        subprocess.run([*command, "--model", "nearest", "--scale", "1", "--rate", "10"], check=True)
        path.write_bytes(Path(f"{name}/demo.gif").read_bytes())


if __name__ == "__main__":
    main()
