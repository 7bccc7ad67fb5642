"""Every choice that decides an upscaled picture's bytes, resolved before the first frame. No torch."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from vsr_hpc.engine.device_facts import DeviceFacts, DeviceKind, device_facts
from vsr_hpc.engine.geometry import check_rgb_path, is_planewise, output_geometry
from vsr_hpc.engine.tiles import smallest_tile
from vsr_hpc.errors import JobError
from vsr_hpc.media.picture import Picture, PixelFormat
from vsr_hpc.models.cards import Card, Precision
from vsr_hpc.models.network_costs import activation_bytes_per_pixel

log = logging.getLogger(__name__)

ClipPolicy = Literal["carry", "clip"]

SAMPLE_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}
MAX_BATCH = 16
_CUDA_LANES = 3
_LANES_BYTES = 4 << 30
MAX_GRAIN = 32.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaleRequest:
    """What the user asked for; None means: choose."""

    scale: Fraction | None = None
    size: tuple[int | None, int | None] | None = None
    pixel: PixelFormat | None = None
    drops_alpha: bool = False
    """Whether `pixel` may lack the source's alpha channel."""
    tile: int | None = None
    """Side of a tile's core in input pixels; 0: never tile."""
    batch: int | None = None
    precision: Precision | None = None
    blend: float = 0.0
    """Share of the bicubic filter's picture in the result, 0 to 1."""
    grain: float = 0.0
    """Standard deviation of the added grain in 8-bit codes, 0 to 32."""
    seed: int = 0
    clip: ClipPolicy = "carry"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaleSettings:
    """Every choice, resolved; JSON-serialisable, part of the fingerprint."""

    width: int
    height: int
    tile: int | None
    """Side of a tile's core in input pixels; None: whole frames."""
    batch: int
    precision: Precision
    device: DeviceKind
    blend: float
    grain: float
    seed: int
    clip: ClipPolicy
    """What becomes of values outside the network's range: carried around it, or clipped."""


def resolve_settings(
    request: UpscaleRequest, card: Card, picture: Picture, device: DeviceFacts | None = None
) -> UpscaleSettings:
    """Resolve every `auto`, purely, once the device's facts are given.

    JobError lists every finding; MediaError says that the clip's colour coding has no way to RGB.
    """
    device = device or device_facts()
    findings = request_findings(request, card)
    pixel = request.pixel or picture.pixel
    try:
        out = output_geometry(
            picture,
            pixel,
            scale=request.scale,
            size=request.size,
            default_scale=card.scale,
            drops_alpha=request.drops_alpha,
        ).picture
    except JobError as exc:
        findings.insert(0, str(exc))
    if findings:
        raise JobError.from_findings("upscale", findings)
    if not card.is_filter or not is_planewise(picture, out):
        check_rgb_path(picture)
        check_rgb_path(out)
    precision = request.precision or choose_precision(card, device)
    tile = _choose_tile(request, card, picture, precision, device)
    return UpscaleSettings(
        width=out.width,
        height=out.height,
        tile=tile,
        batch=request.batch or _choose_batch(card, picture, precision, device, tile),
        precision=precision,
        device=device.kind,
        blend=request.blend,
        grain=request.grain,
        seed=request.seed,
        clip=request.clip,
    )


def choose_precision(card: Card, device: DeviceFacts) -> Precision:
    """The fastest precision that the card allows and the device has units for."""
    if card.is_filter:
        return "fp32"
    if device.kind == "cuda" and device.has_fast_fp16 and "fp16" in card.precisions:
        return "fp16"
    if device.has_fast_bf16 and "bf16" in card.precisions:
        return "bf16"
    return "fp32"


def choose_lanes(card: Card, picture: Picture, settings: UpscaleSettings, threads: int) -> int:
    """Batches at once on this device. On a CPU one for each thread that memory allows; changes no byte.

    A thread of its own for each frame beats all threads on one frame: nobody waits for the slowest at every
    layer, least of all where encoder and decoder want the same cores. A GPU copies in and out meanwhile.
    """
    if card.is_recurrent:
        return 1
    if settings.device == "cuda":
        return _CUDA_LANES
    tile = settings.tile
    seen = [
        side if tile is None else min(side, tile + 2 * card.overlap)
        for side in (picture.width, picture.height)
    ]
    inner = 0 if card.is_filter else _pixel_bytes(card, settings.precision) * seen[0] * seen[1]
    outer = 16 * settings.width * settings.height
    return max(1, min(threads, _LANES_BYTES // (inner + outer)))


def request_findings(request: UpscaleRequest, card: Card) -> list[str]:
    """What of a request the engine, or this model, does not take; its size is looked at with the picture."""
    findings = []
    if card.is_recurrent and request.batch not in (None, 1):
        findings.append(f"batch={request.batch}: {card.name} takes one window after the other; leave it out")
    if request.tile and request.tile % card.multiple_of:
        low = request.tile // card.multiple_of * card.multiple_of
        findings.append(
            f"tile={request.tile} is not a multiple of {card.multiple_of}, which {card.name} needs; "
            f"try {low or card.multiple_of} or {low + card.multiple_of}"
        )
    if request.tile and request.tile < smallest_tile(card.multiple_of):
        findings.append(
            f"tile={request.tile} is too small; use at least {smallest_tile(card.multiple_of)}, or 0"
        )
    if request.batch is not None and not 1 <= request.batch <= 64:
        findings.append(f"batch={request.batch} is not between 1 and 64")
    if request.precision and request.precision not in card.precisions:
        findings.append(
            f"precision={request.precision} is not one that {card.name} allows: {', '.join(card.precisions)}"
        )
    if not 0 <= request.blend <= 1:
        findings.append(f"blend={request.blend} is not between 0 and 1")
    if not 0 <= request.grain <= MAX_GRAIN:
        findings.append(f"grain={request.grain} is not between 0 and {MAX_GRAIN:g} (8-bit codes)")
    if not 0 <= request.seed < 2**63:
        findings.append(f"seed={request.seed} is negative or too large")
    return findings


def _budget_bytes(device: DeviceFacts) -> int:
    return int(device.memory_gib * 2**30 * (0.5 if device.kind == "cpu" else 0.7))


def _pixel_bytes(card: Card, precision: Precision) -> int:
    return activation_bytes_per_pixel(
        card.network, card.scale, dict(card.parameters), SAMPLE_BYTES[precision]
    )


def _choose_tile(
    request: UpscaleRequest, card: Card, picture: Picture, precision: Precision, device: DeviceFacts
) -> int | None:
    if card.is_filter or request.tile == 0:
        return None
    if request.tile:
        return request.tile if request.tile < max(picture.width, picture.height) else None
    pixels = _budget_bytes(device) // _pixel_bytes(card, precision)
    if picture.width * picture.height <= pixels:
        return None
    side = int(pixels**0.5) - 2 * card.overlap
    step = 32 * card.multiple_of
    return max(smallest_tile(card.multiple_of), side // step * step)


def _choose_batch(
    card: Card, picture: Picture, precision: Precision, device: DeviceFacts, tile: int | None
) -> int:
    """One frame on a CPU, where batching is slower; on a GPU as many as the memory class holds."""
    if device.kind == "cpu" or card.is_filter or card.is_recurrent:
        return 1
    width = picture.width if tile is None else min(picture.width, tile + 2 * card.overlap)
    height = picture.height if tile is None else min(picture.height, tile + 2 * card.overlap)
    return max(1, min(MAX_BATCH, _budget_bytes(device) // (_pixel_bytes(card, precision) * width * height)))
