"""The usual networks with random weights: speed does not depend on them."""

from __future__ import annotations

from pathlib import Path

import torch

from vsr_hpc.models.cards import Card, card_of_file, find_card
from vsr_hpc.models.networks import Compact, build

_CARDS = {
    "compact": "realesr-animevideov3",
    "compact32": "realesr-general-x4v3",
    "rrdb": "RealESRGAN_x4plus",
}
_SMALL: dict[str, dict[str, object]] = {
    "compact": {"num_feat": 16, "num_conv": 2, "act_type": "prelu"},
    "compact32": {"num_feat": 16, "num_conv": 2, "act_type": "prelu"},
    "rrdb": {"num_feat": 8, "num_block": 1, "num_grow_ch": 4},
}


def random_models(
    folder: Path, compact: Path | None = None, *, is_tiny: bool = False
) -> dict[str, tuple[Card, Path]]:
    """Compact-16 (of the weights given for it), Compact-32 and RRDB-23, as cards and files in `folder`."""
    found = {}
    for key, name in _CARDS.items():
        card, path = find_card(name), compact if key == "compact" else None
        if is_tiny:
            card = Card.model_validate(card.model_dump() | {"parameters": _SMALL[key]})
        if path is None:
            path = folder / f"{key}.pth"
            _write(card, path)
        found[key] = (card_of_file(path), path)
    return found


def _write(card: Card, path: Path) -> None:
    torch.manual_seed(3)
    network = build(card)
    with torch.no_grad():
        for parameter in network.parameters():  # as lively as trained ones, without growing
            if parameter.dim() == 4:
                torch.nn.init.kaiming_normal_(parameter, a=0.25)
                parameter.mul_(0.3 if card.network == "rrdb" else 1.0)
        if isinstance(network, Compact):
            network.body[-1].weight.mul_(0.1)  # a picture remains one, or the check refuses it
    torch.save({"params": network.state_dict()}, path)
