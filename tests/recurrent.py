"""A BasicVSR of a few thousand weights as a model of the user's own: random, tame and the same every time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tests.require import require
from vsr_hpc.errors import ModelError
from vsr_hpc.models.cards import Card, Weights, write_card
from vsr_hpc.models.networks import build
from vsr_hpc.system.files import sha256_of_file


def tiny_network(card: Card, seed: int = 3) -> nn.Module:
    """The card's network with small seeded weights; skips the test where basicsr is not installed."""
    torch.manual_seed(seed)
    try:
        network = build(card)
    except ModelError as exc:
        require("basicsr", str(exc))
    with torch.no_grad():
        for parameter in network.get_submodule("conv_last").parameters():
            parameter.mul_(0.5)  # the picture stays its input's, with something of its own
    return network


def tiny_model(folder: Path, *, context: int = 2, name: str = "tiny-vsr") -> Card:
    """Write such a network's file and card (the caller has set XDG_DATA_HOME); found by its name then."""
    card = Card(
        name=name, kind="recurrent", network="basicvsr", scale=4,
        parameters={"num_feat": 4, "num_block": 1}, weights=Weights(file=f"{name}.pth"), licence="none",
        overlap=16, multiple_of=4, context=context, psnr_floor=1, description="for tests",
    )  # fmt: skip
    path = folder / f"{name}.pth"
    torch.save({"params": tiny_network(card).state_dict()}, path)
    weights = Weights(file=path.name, url=path.as_uri(), sha256=sha256_of_file(path))
    card = card.model_copy(update={"weights": weights})
    write_card(card)
    return card
