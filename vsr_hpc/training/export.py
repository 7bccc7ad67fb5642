"""A trained network as it is shipped: a plain Compact in fp16 safetensors that tells how it came to be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors.torch import save
from torch import Tensor

from vsr_hpc.errors import JobError
from vsr_hpc.models.cards import Card, card_of_file
from vsr_hpc.system.files import write_atomically
from vsr_hpc.training.loop import Recipe
from vsr_hpc.training.network import plain_state


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """The two files of a model."""

    weights: Path
    card: Path


def export(
    state: Mapping[str, Tensor],
    recipe: Recipe,
    folder: Path,
    *,
    name: str,
    licence: str,
    training: Mapping[str, object],
) -> Exported:
    """Write NAME.safetensors and NAME.yaml; equal arguments give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    halves = {
        key: value.detach().cpu().to(torch.float16).contiguous()
        for key, value in plain_state(dict(state)).items()
    }
    if not all(bool(value.isfinite().all()) for value in halves.values()):
        raise JobError(f"{folder}: the trained weights are not finite; train again at a lower rate")
    path = folder / f"{name}.safetensors"
    metadata = {"name": name, "training": json.dumps(training, sort_keys=True)}
    write_atomically(path, save(halves, metadata=metadata))  # save_file would keep it from other users
    card = card_for(path, recipe, name=name, licence=licence)
    text = yaml.safe_dump(card.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
    card_path = folder / f"{name}.yaml"
    write_atomically(card_path, text)
    return Exported(weights=path, card=card_path)


def card_for(path: Path, recipe: Recipe, *, name: str, licence: str) -> Card:
    """The card that makes the file usable: `vsr serve --model-dir` and `cards.yaml` take it as it is."""
    seen = "reduced pictures" if recipe.recipe == "clean" else "clips that were coded as H.264"
    found = card_of_file(path, name)
    assert found.weights is not None
    return found.model_copy(
        update={
            "weights": found.weights.model_copy(update={"url": None}),
            "licence": licence,
            "psnr_floor": 14,
            "description": f"Compact x{recipe.scale}, trained on {seen}.",
        }
    )
