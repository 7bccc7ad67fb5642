"""A frame as eyes see it: planes of any layout, depth, matrix and transfer to an 8-bit sRGB picture.

For showing only. What goes into an output never passes through here.
"""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vsr_hpc.engine.geometry import LUMA_WEIGHTS
from vsr_hpc.media.picture import Frame, Picture, Plane

Rgb = NDArray[np.float32]
"""(height, width, 3), 0 to 1; more where the picture has light above white."""

_PQ, _HLG, _LINEAR = 16, 18, 8
_WHITE_NITS = 203.0
_BT2020_TO_709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
_QUALITIES = (88, 80, 70, 60, 48, 36, 24)


def to_image(frame: Frame, picture: Picture) -> Image.Image:
    """HDR is brought down to what a plain screen shows; alpha is left out."""
    rgb = _rgb(frame, picture)
    transfer = picture.colour.transfer
    if picture.pixel.depth == 32 or transfer == _LINEAR:
        rgb = _srgb(rgb)
    elif transfer in (_PQ, _HLG):
        rgb = _srgb(_tone_mapped(_pq_light(rgb) if transfer == _PQ else _hlg_light(rgb), picture))
    codes = np.clip(rgb * 255 + 0.5, 0, 255).astype(np.uint8)
    return upright(Image.fromarray(codes), picture)


def upright(image: Image.Image, picture: Picture) -> Image.Image:
    """As a player turns it: the display matrix's quarter turns (a mirrored picture is left as it is)."""
    if picture.display_matrix is None:
        return image
    a, b, _, c, d = picture.display_matrix[:5]
    quarter = round(math.degrees(math.atan2(b, a)) / 90) % 4 if a * d - b * c > 0 else 0
    turns = {1: Image.Transpose.ROTATE_270, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_90}
    return image.transpose(turns[quarter]) if quarter else image


def shown_size(picture: Picture) -> tuple[int, int]:
    """Width and height on a screen of square dots, turned as a player turns it."""
    width, height = round(picture.width * float(picture.sample_aspect)), picture.height
    blank = Image.new("L", (2, 1))
    return (height, width) if upright(blank, picture).size == (1, 2) else (width, height)


def data_uri(image: Image.Image, most_bytes: int) -> str:
    """A WebP of at most about so many bytes: the best quality that fits, the least where none does."""
    content = b""
    for quality in _QUALITIES:
        file = io.BytesIO()
        image.save(file, "WEBP", quality=quality, method=3)
        content = file.getvalue()
        if len(content) <= most_bytes:
            break
    return "data:image/webp;base64," + base64.b64encode(content).decode("ascii")


def within(image: Image.Image, longest: int) -> Image.Image:
    """The picture, made smaller where a side is longer."""
    factor = longest / max(image.size)
    if factor >= 1:
        return image
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _rgb(frame: Frame, picture: Picture) -> Rgb:
    pixel, colour = picture.pixel, picture.colour
    peak = 1.0 if pixel.depth == 32 else float((1 << pixel.depth) - 1)
    if pixel.kind == "rgb":
        green, blue, red = (_unit(plane, peak) for plane in frame.planes[:3])
        return np.stack([red, green, blue], axis=2)
    is_full = colour.is_full_range or pixel.depth == 32
    step = 1.0 if pixel.depth == 32 else float(1 << (pixel.depth - 8))
    low, reach = (0.0, peak) if is_full else (16 * step, 219 * step)
    luma = (frame.planes[0].astype(np.float32) - low) / reach
    if pixel.kind == "grey":
        return np.repeat(luma[:, :, None], 3, axis=2)
    middle = 0.5 if pixel.depth == 32 else 128 * step
    chroma_reach = peak if is_full else 224 * step
    blue_difference, red_difference = (
        _enlarged((plane.astype(np.float32) - middle) / chroma_reach, luma.shape)
        for plane in frame.planes[1:3]
    )
    red_weight, blue_weight = LUMA_WEIGHTS.get(colour.decoding_matrix(picture.height), LUMA_WEIGHTS[1])
    red = luma + 2 * (1 - red_weight) * red_difference
    blue = luma + 2 * (1 - blue_weight) * blue_difference
    green = (luma - red_weight * red - blue_weight * blue) / (1 - red_weight - blue_weight)
    return np.stack([red, green, blue], axis=2)


def _unit(plane: Plane, peak: float) -> NDArray[np.float32]:
    return np.asarray(plane.astype(np.float32) / np.float32(peak), dtype=np.float32)


def _enlarged(plane: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    if plane.shape == shape:
        return plane
    image = Image.fromarray(plane).resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32)


def _srgb(light: Rgb) -> Rgb:
    light = np.clip(light, 0, 1)
    low, high = light * 12.92, 1.055 * np.power(light, 1 / 2.4) - 0.055
    return np.where(light <= 0.0031308, low, high).astype(np.float32)


def _pq_light(coded: Rgb) -> Rgb:
    """Light relative to graphics white (BT.2408)."""
    root = np.power(np.clip(coded, 0, 1), 1 / 78.84375)
    light = np.power(np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root), 1 / 0.1593017578125)
    return np.asarray(light * (10000 / _WHITE_NITS), dtype=np.float32)


def _hlg_light(coded: Rgb) -> Rgb:
    coded = np.clip(coded, 0, 1)
    scene = np.where(
        coded <= 0.5, coded**2 / 3, (np.exp((coded - 0.55991073) / 0.17883277) + 0.28466892) / 12
    )
    return np.asarray(np.power(scene, 1.2) * (1000 / _WHITE_NITS), dtype=np.float32)


def _tone_mapped(light: Rgb, picture: Picture) -> Rgb:
    """Reinhard's curve with the brightest light at white, then the colours of a plain screen."""
    peak = np.float32(1000 / _WHITE_NITS)
    bright: Any = np.max(light, axis=2, keepdims=True)
    mapped = light * ((1 + bright / peak**2) / (1 + bright))
    if picture.colour.primaries == 9:
        mapped = mapped @ _BT2020_TO_709.T
    return np.asarray(mapped, dtype=np.float32)
