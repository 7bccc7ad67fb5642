"""A served model is what its card says, for clips as for stills."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest
import torch
import yaml
from safetensors.torch import save_file

from tests.serving.inside import loaded
from tests.serving.samples import clip
from vsr_hpc.engine.device_facts import device_facts
from vsr_hpc.errors import ModelError
from vsr_hpc.models.cards import card_of_file
from vsr_hpc.models.networks import Compact
from vsr_hpc.serving.admission import OpenRequest
from vsr_hpc.serving.batcher import Batcher
from vsr_hpc.serving.clips import plan_clip
from vsr_hpc.serving.deadline import RequestDeadline
from vsr_hpc.serving.limits import Limits
from vsr_hpc.serving.loaded_models import models_in
from vsr_hpc.serving.request import parse_content_type, parse_options
from vsr_hpc.serving.service import RequestItem
from vsr_hpc.serving.stills import Answer

CARD = {
    "name": "described", "kind": "image", "network": "compact", "scale": 2,
    "parameters": {"num_feat": 8, "num_conv": 2, "act_type": "relu"}, "weights": {"file": "net.safetensors"},
    "licence": "none", "overlap": 4, "psnr_floor": 16, "description": "for tests",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A network without PReLU: its keys do not say which activation it has, only its card does."""
    folder = tmp_path / "model"
    folder.mkdir()
    torch.manual_seed(7)
    network = Compact(num_feat=8, num_conv=2, scale=2, act_type="relu")
    save_file({key: value * 0.3 for key, value in network.state_dict().items()}, folder / "net.safetensors")
    (folder / "described.yaml").write_text(yaml.safe_dump(CARD))
    with pytest.raises(ModelError, match="write a card"):
        card_of_file(folder / "net.safetensors")
    return folder


def test_a_clip_is_planned_with_its_models_card(folder: Path, tmp_path: Path) -> None:
    (model,) = models_in(folder)
    (tmp_path / "in.mp4").write_bytes(clip())
    planned = plan_clip(
        tmp_path, "mp4", "mp4", model, parse_options([]), device=device_facts("cpu"), batch=None,
        batcher=cast(Batcher, None), limits=Limits(), patience=RequestDeadline(90),
    )  # fmt: skip
    assert planned.plan.card == model.card
    assert planned.plan.card.psnr_floor == 16


def test_a_model_that_only_its_card_describes_serves_clips(folder: Path, tmp_path: Path) -> None:
    async def live() -> None:
        async with loaded(tmp_path, folder=folder) as service:
            asked = RequestItem(
                body=clip(), declared=parse_content_type("video/mp4"), accept="",
                pairs=(("preset", "ultrafast"),),
            )  # fmt: skip
            made = await service.answer(asked, OpenRequest("one", RequestDeadline(90)), {})
        assert isinstance(made, Answer)
        assert {"model": "described", "frames": "12"}.items() <= dict(made.facts).items()

    asyncio.run(live())
