"""The fingerprint of every setting that changes bytes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from vsr_hpc.job.spec import JobSpec
from vsr_hpc.media.clip.scenes import SCENES_VERSION
from vsr_hpc.media.encode.encoding import Encoding
from vsr_hpc.media.picture import Picture
from vsr_hpc.models.cards import Card

PIXEL_PATH_VERSION = 2


def fingerprint(
    job: JobSpec,
    *,
    content_sha256: str,
    card: Card,
    picture: Picture,
    encoding: Encoding | None,
    frames: tuple[int, int],
    encoder_build: str,
    window: tuple[int, int] | None = None,
) -> dict[str, str]:
    """Every setting that changes the output's bytes, by the name a user knows it under."""
    values: dict[str, Any] = {
        "input": content_sha256,
        "frames": list(frames),
        "model": card.name,
        "weights": card.weights.sha256 if card.weights else None,
        "output size": f"{picture.width}x{picture.height}",
        "pixel format": picture.pixel.name,
        "encoder build": encoder_build,
        "pixel path": PIXEL_PATH_VERSION,
        "run.chunk_s": job.run.chunk_s,
    }
    for key, value in job.picture.model_dump(exclude={"scale", "size", "stretch", "batch", *_LATER}).items():
        values[f"picture.{key}"] = value
    if job.picture.denoise is not None:
        values["picture.denoise"] = job.picture.denoise
    if job.picture.stretch:
        values["picture.stretch"] = True
    if job.picture.skip_duplicates:
        values["picture.skip_duplicates"] = True
    if card.mix is not None:
        values["denoise weights"] = card.mix.weights.sha256
    if window is not None:
        values |= {"picture.window": window[0], "picture.context": window[1], "scene cuts": SCENES_VERSION}
    for key, value in job.streams.model_dump().items():
        values[f"streams.{key}"] = value
    for key, value in job.images.model_dump().items():
        values[f"images.{key}"] = value
    if encoding is not None:
        from pydantic import TypeAdapter

        for key, value in TypeAdapter(Encoding).dump_python(encoding, mode="json").items():
            values[f"video.{key}"] = value
    return {key: json.dumps(value, sort_keys=True) for key, value in values.items()}


_LATER = ("denoise", "skip_duplicates", "window", "context")


def fingerprint_id(values: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
