"""Small pictures and clips as bytes, and a tiny network with random weights."""

from __future__ import annotations

import functools
import io
import tempfile
from pathlib import Path

import numpy as np

from tests.clips import numbered_clip
from vsr_hpc.media.picture import Colour, Frame, Picture
from vsr_hpc.media.pixels import pixel_format
from vsr_hpc.media.stills.still import encode_image, read_image, resolve_image_encoding, still_picture


def rgb(width: int = 64, height: int = 48) -> Picture:
    colour = Colour(matrix=0, is_full_range=True, is_range_tagged=True)
    return Picture(width=width, height=height, pixel=pixel_format("gbrp"), colour=colour)


@functools.cache
def still(kind: str = "png", width: int = 64, height: int = 48, seed: int = 0) -> bytes:
    """A smooth picture with some texture, as a PNG, JPEG or WebP."""
    name = f"x.{kind}"
    shown = still_picture(name, rgb(width, height))
    dice = np.random.default_rng(seed)
    planes = []
    for rows, columns in shown.plane_shapes():
        ramp = np.add.outer(np.linspace(20, 120, rows), np.linspace(0, 90, columns))
        planes.append((ramp + dice.integers(0, 12, ramp.shape)).astype(np.uint8))
    return encode_image(resolve_image_encoding(name, shown), shown, planes)


@functools.cache
def clip(suffix: str = "mp4", frames: int = 12, audio: bool = True, width: int = 64) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = numbered_clip(
            Path(folder) / f"x.{suffix}", frames=frames, audio=audio, size=(width, width * 3 // 4)
        )
        return path.read_bytes()


def decoded(body: bytes) -> tuple[Picture, Frame]:
    picture, planes, _ = read_image(io.BytesIO(body))
    return picture, Frame(index=0, planes=planes)


def network_file(path: Path, *, num_feat: int = 8, num_conv: int = 2, scale: int = 2) -> Path:
    """A Compact network with random, small weights: what comes out resembles what went in."""
    import torch
    from safetensors.torch import save_file

    from vsr_hpc.models.networks import Compact

    torch.manual_seed(7)
    network = Compact(num_feat=num_feat, num_conv=num_conv, scale=scale)
    state = {key: value * 0.3 for key, value in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return path
