"""One picture of a request: decoded within limits, its bench on the device, and its answer encoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import numpy as np

from vsr_hpc.engine.device_facts import DeviceFacts
from vsr_hpc.engine.geometry import output_geometry
from vsr_hpc.engine.settings import UpscaleRequest, resolve_settings
from vsr_hpc.errors import JobError
from vsr_hpc.media.picture import Colour, Frame, Picture, Plane
from vsr_hpc.media.pixels import planar_format
from vsr_hpc.media.stills.metadata import StillMeta
from vsr_hpc.media.stills.still import encode_image, resolve_image_encoding, still_picture
from vsr_hpc.serving.deadline import RequestDeadline
from vsr_hpc.serving.fence import Fence
from vsr_hpc.serving.limits import Limits
from vsr_hpc.serving.loaded_models import Bench, Model
from vsr_hpc.serving.refusals import Refusal, answer_too_large, too_many_pixels
from vsr_hpc.serving.request import MEDIA_TYPES, Content, Options

_MATRICES = {"gbr": 0, "bt709": 1, "unspecified": 2, "bt601": 6, "bt2020": 9}
Facts = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Still:
    """A request's picture as planes."""

    content: Content
    picture: Picture
    frame: Frame
    meta: StillMeta | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What goes back: the bytes, what they are, and facts for the response's custom attributes."""

    body: bytes
    media_type: str
    facts: Facts = field(default=())


def decode_still(
    content: Content,
    body: bytes,
    parameters: Mapping[str, str],
    limits: Limits,
    fence: Fence,
    patience: RequestDeadline,
) -> Still:
    """The picture in a body, read behind the fence; raw planes need no decoder."""
    if content == "planes":
        return raw_planes(body, parameters, limits)
    picture, planes, meta = fence.read_still(content, body, patience)
    return Still(content=content, picture=picture, frame=Frame(index=0, planes=planes), meta=meta)


def bench_for(
    model: Model,
    options: Options,
    still: Still,
    answer: Content,
    *,
    device: DeviceFacts,
    batch: int | None,
    limits: Limits,
) -> Bench:
    """What must be made of a picture; the same choices as the batch path makes. JobError, MediaError."""
    scale = None if options.scale is None else Fraction(str(options.scale)).limit_denominator(10_000)
    geometry = output_geometry(
        still.picture,
        still.picture.pixel,
        scale=scale,
        size=options.width_height,
        default_scale=model.card.scale,
    )
    out = geometry.picture
    if out.width * out.height > limits.pixels_out:
        raise too_many_pixels("answer's", out.width, out.height, limits.pixels_out)
    if answer != "planes":
        name = f"answer.{answer}"
        out = still_picture(name, out)
        resolve_image_encoding(name, out, quality=options.quality)
    request = UpscaleRequest(
        size=(out.width, out.height),
        pixel=out.pixel,
        batch=batch,
        blend=options.blend,
        grain=options.grain,
        seed=options.seed,
    )
    settings = resolve_settings(request, model.card, still.picture, device)
    return Bench(model, still.picture, out, settings)


def encode_still(
    answer: Content, bench: Bench, frame: Frame, options: Options, meta: StillMeta | None, limits: Limits
) -> Answer:
    """The answer's bytes, refused where they are too many."""
    out = bench.picture_out
    if answer == "planes":
        body = b"".join(_little(plane) for plane in frame.planes)
        media_type = f"{MEDIA_TYPES['planes']}; {_described(out)}"
    else:
        encoding = resolve_image_encoding(f"answer.{answer}", out, quality=options.quality)
        body, media_type = encode_image(encoding, out, frame.planes, meta), MEDIA_TYPES[answer]
    if len(body) > limits.answer_bytes:
        raise answer_too_large(len(body), limits.answer_bytes)
    facts = (("model", bench.model.name), ("width", str(out.width)), ("height", str(out.height)))
    return Answer(body=body, media_type=media_type, facts=facts)


# Raw planes ----------------------------------------------------------------------------------------------


def raw_planes(body: bytes, parameters: Mapping[str, str], limits: Limits) -> Still:
    width, height = _side(parameters, "width"), _side(parameters, "height")
    if width * height > limits.pixels_in:
        raise too_many_pixels("request's", width, height, limits.pixels_in)
    try:
        pixel = planar_format(parameters.get("pixel", "yuv420p")[:32])
    except (ValueError, JobError) as exc:
        raise Refusal(422, "media", f"raw planes: pixel: {exc}") from exc
    matrix, span = parameters.get("matrix", "unspecified"), parameters.get("range", "limited")
    if matrix not in _MATRICES:
        raise Refusal(422, "media", f"raw planes: matrix {matrix[:20]!r} is none of {', '.join(_MATRICES)}")
    if span not in ("limited", "full"):
        raise Refusal(422, "media", f"raw planes: range {span[:20]!r} is neither limited nor full")
    is_rgb = pixel.kind == "rgb"
    siting: Literal["unspecified", "left"] = "left" if pixel.log2_chroma_w and not is_rgb else "unspecified"
    colour = Colour(
        matrix=0 if is_rgb else _MATRICES[matrix],
        is_full_range=is_rgb or span == "full",
        is_range_tagged=True,
        siting=siting,
    )
    picture = Picture(width=width, height=height, pixel=pixel, colour=colour)
    shapes = picture.plane_shapes()
    wanted = sum(rows * columns for rows, columns in shapes) * pixel.dtype.itemsize
    if wanted != len(body):
        raise Refusal(
            422, "media", f"raw planes: {width}x{height} {pixel.name} are {wanted} bytes, {len(body)} came",
            numbers={"wanted_bytes": wanted, "found_bytes": len(body)},
        )  # fmt: skip
    planes, at = [], 0
    for rows, columns in shapes:
        little = pixel.dtype.newbyteorder("<")
        plane = np.frombuffer(body, little, count=rows * columns, offset=at).reshape(rows, columns)
        planes.append(_in_depth(plane.astype(pixel.dtype, copy=False), pixel.depth))
        at += rows * columns * pixel.dtype.itemsize
    return Still(content="planes", picture=picture, frame=Frame(index=0, planes=tuple(planes)), meta=None)


def _in_depth(plane: Plane, depth: int) -> Plane:
    """Samples above their depth, or no numbers at all, would be computed with; they are refused."""
    if depth == 32 and not np.isfinite(plane).all():
        raise Refusal(422, "media", "raw planes: a sample is not a finite number")
    if depth not in (8, 16, 32) and int(plane.max(initial=0)) >> depth:
        raise Refusal(422, "media", f"raw planes: a sample is larger than {depth} bits hold")
    return plane


def _side(parameters: Mapping[str, str], name: str) -> int:
    text = parameters.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text)):
        raise Refusal(
            422, "media", f"raw planes: {name}={text[:20]!r}; write for example "
            f"Content-Type: {MEDIA_TYPES['planes']}; width=64; height=48; pixel=yuv420p; matrix=bt709"
        )  # fmt: skip
    return int(text)


def _described(picture: Picture) -> str:
    names = {number: name for name, number in _MATRICES.items()} | {5: "bt601"}
    span = "full" if picture.colour.is_full_range else "limited"
    return (
        f"width={picture.width}; height={picture.height}; pixel={picture.pixel.name}; "
        f"matrix={names.get(picture.colour.matrix, 'unspecified')}; range={span}"
    )


def _little(plane: Plane) -> bytes:
    return np.ascontiguousarray(plane, plane.dtype.newbyteorder("<")).tobytes()
