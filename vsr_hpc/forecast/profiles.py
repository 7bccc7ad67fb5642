"""Saved measurements of `vsr bench`: how fast a model ran here, stage by stage. Pure JSON files, no torch.

One file per model, device, sizes, precision and threads; measuring again replaces it. They lie in
`$XDG_STATE_HOME/vsr_hpc/profiles` (`~/.local/state/...`), so that other machines' files can be laid beside.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vsr_hpc.models.cards import Card, Precision, card_hash
from vsr_hpc.system.files import write_atomically
from vsr_hpc.system.user_folders import user_folder

log = logging.getLogger(__name__)


PROFILE_VERSION: Literal[1] = 1


class Profile(BaseModel):
    """How fast one model ran on one device; every figure is measured, None where it was not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = PROFILE_VERSION
    model: str
    card_hash: str
    """`card_hash(card)`: another card under the same name has another."""
    device: str
    """The device's own name: "NVIDIA H200", "AMD EPYC"."""
    kind: Literal["cpu", "cuda"]
    threads: int = Field(ge=1)
    """CPU threads that the measurement could use."""
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    """Of the input."""
    out_width: int = Field(ge=1)
    out_height: int = Field(ge=1)
    scale: float = Field(gt=0)
    precision: Precision
    batch: int = Field(ge=1)
    codec: str = ""
    """The encoder of the pipeline's figures, for example libx264; "" for none."""
    operations_per_frame: float = Field(ge=0)
    network_fps: float | None = Field(default=None, gt=0)
    """The network alone, tensors in and out, all lanes together; None for a filter."""
    pipeline_fps: float = Field(gt=0)
    """Decode, device, encode and check side by side, in steady state: without start-up and merge."""
    stage_seconds: dict[str, float]
    """Busy seconds per frame of each stage on its own: decode, device, encode, check."""
    matrix_gflops: float = Field(gt=0)
    """The best matrix products of this device in this precision, all its lanes together."""
    memory_gb_per_s: float = Field(gt=0)
    """Bytes read plus bytes written of a large copy in the device's memory."""
    floor_fps: float | None = Field(default=None, gt=0)
    """What operations and bytes over those two rates allow, for the network alone."""
    startup_s: float = Field(ge=0)
    """A worker's start until its first frame is done: imports, weights, warming up."""
    merge_gb_per_s: float | None = Field(default=None, gt=0)
    measured_at: str
    """UTC, ISO 8601."""
    versions: dict[str, str]
    """vsr, python, torch, av."""


def profiles_folder() -> Path:
    return user_folder("state") / "profiles"


def save_profile(profile: Profile, folder: Path | None = None) -> Path:
    """Write it in one step, in place of an earlier one of the same thing."""
    folder = folder or profiles_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _file_name(profile)
    write_atomically(path, profile.model_dump_json(indent=1) + "\n")
    return path


def load_profiles(folder: Path | None = None) -> tuple[Profile, ...]:
    """All that can be read, newest first; a file that cannot is left out with a warning."""
    found = []
    for path in sorted((folder or profiles_folder()).glob("*.json")):
        try:
            found.append(Profile.model_validate_json(path.read_bytes()))
        except (ValidationError, OSError) as exc:
            log.warning("profile left out path=%s error=%s", path, str(exc).splitlines()[0])
    return tuple(sorted(found, key=lambda each: each.measured_at, reverse=True))


def newest_profile(card: Card, profiles: Iterable[Profile]) -> Profile | None:
    """The latest measurement of this very card; `profiles` are the newest first."""
    wanted = card_hash(card)
    return next((each for each in profiles if each.card_hash == wanted), None)


def _file_name(profile: Profile) -> str:
    parts = (
        profile.model,
        profile.card_hash[:8],
        profile.device,
        f"{profile.width}x{profile.height}",
        f"{profile.out_width}x{profile.out_height}",
        profile.precision,
        f"{profile.threads}t",
        profile.codec or "none",
    )
    return "_".join(re.sub(r"[^A-Za-z0-9.+-]+", "-", part).strip("-") for part in parts) + ".json"
