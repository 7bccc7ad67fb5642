"""The training itself: one trajectory given by its recipe, killed and continued at will.

Everything random is drawn from (seed, step), and a checkpoint holds weights, averages and the optimizer's
state, so a run that was killed and resumed ends with the weights of one left alone (same machine, same
number of threads).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsr_hpc.bench.imresize import luma, resize
from vsr_hpc.errors import JobError, ModelError
from vsr_hpc.training.data import Patches, TrainingPair
from vsr_hpc.training.network import TrainedCompact, body_of

log = logging.getLogger(__name__)

RecipeName = Literal["clean", "video"]
CHECKPOINT, LOG, RECIPE = "checkpoint.pt", "log.jsonl", "recipe.json"
_LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that decides the weights, besides the images."""

    recipe: RecipeName
    scale: int
    steps: int
    num_feat: int = 32
    num_conv: int = 8
    patch: int = 32
    batch: int = 16
    rate: float = 1e-3
    warm_up: int = 500
    squared_from: float = 0.8
    """From this part of the steps on the error counts squared, as PSNR does; before, as it is."""
    average: float = 0.999
    seed: int = 1
    clips: int = 700
    """Of the bank that a video recipe makes of the images."""
    changes_colours: bool = True
    """Channels in random order and negatives: without it x4 learnt the few colours of its images by heart."""
    start: str = ""
    """sha256 of the weights that training started from, where it did not start from nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What is told at every check."""

    step: int
    steps: int
    loss: float
    psnr: float
    bicubic: float
    seconds: float


@dataclass(slots=True, kw_only=True)
class _State:
    network: TrainedCompact
    average: TrainedCompact
    optimizer: torch.optim.Adam
    step: int = 0
    seconds: float = 0.0


def train(
    recipe: Recipe,
    pairs: Sequence[TrainingPair],
    checks: Sequence[TrainingPair],
    folder: Path,
    *,
    start: dict[str, Tensor] | None = None,
    device: str = "cpu",
    check_every: int = 2000,
    save_every_s: float = 60.0,
    tell: Callable[[Progress], None] = lambda _: None,
    stop_at: int | None = None,
) -> dict[str, Tensor]:
    """Train, or go on where the folder's checkpoint ends; the averaged weights, not yet folded.

    `stop_at` ends this call early at a checkpoint, as a kill would.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_recipe(recipe, folder)
    patches = Patches(
        pairs,
        scale=recipe.scale,
        patch=recipe.patch,
        batch=recipe.batch,
        seed=recipe.seed,
        changes_colours=recipe.changes_colours,
    )
    state = _state(recipe, folder, start, device)
    bicubic = psnr_of(None, checks, recipe.scale)
    began, saved, losses = time.monotonic() - state.seconds, time.monotonic(), Tensor()
    end = min(recipe.steps, stop_at or recipe.steps)
    while state.step < end:
        loss = _step(state, recipe, patches, device)
        losses = torch.cat((losses, loss.detach().cpu().reshape(1)))
        state.step += 1
        state.seconds = time.monotonic() - began
        if state.step % check_every == 0 or state.step == recipe.steps:
            progress = Progress(
                step=state.step,
                steps=recipe.steps,
                loss=float(losses.mean()),
                psnr=psnr_of(state.average, checks, recipe.scale, device),
                bicubic=bicubic,
                seconds=state.seconds,
            )
            losses = Tensor()
            _append_to_log(folder, progress)
            tell(progress)
        if time.monotonic() - saved > save_every_s or state.step == end:
            _save(state, folder)
            saved = time.monotonic()
    return state.average.state_dict()


def psnr_of(
    network: TrainedCompact | None, pairs: Sequence[TrainingPair], scale: int, device: str = "cpu"
) -> float:
    """Mean luma PSNR over pictures, `scale` pixels of border cut; None means bicubic."""
    found = []
    with torch.inference_mode():
        for pair in pairs:
            made = _run_network(network, pair, device) if network else resize(pair.low, *pair.high.shape[:2])
            found.append(_psnr(made, pair.high, scale))
    return float(np.mean(found)) if found else math.nan


def _run_network(network: TrainedCompact, pair: TrainingPair, device: str) -> NDArray[np.float32]:
    with _autocast(device):
        high = network(to_tensor(pair.low[None], device))
    codes: NDArray[np.float32] = high.mul(255).round().clamp(0, 255)[0].permute(1, 2, 0).cpu().numpy()
    return codes


def to_tensor(pictures: NDArray[np.uint8], device: str) -> Tensor:
    """(n, rows, columns, 3) codes as (n, 3, rows, columns) in [0, 1], channels last in memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2)
    scaled: Tensor = tensor.to(torch.float32).div_(255)
    return scaled


def _psnr(codes: NDArray[np.generic], truth: NDArray[np.uint8], border: int) -> float:
    error = (luma(codes) - luma(truth))[border:-border, border:-border]
    return 10 * math.log10(255**2 / max(float(np.mean(error**2)), 1e-10))


def _step(state: _State, recipe: Recipe, patches: Patches, device: str) -> Tensor:
    low, high = (to_tensor(each, device) for each in patches.batch(state.step))
    for group in state.optimizer.param_groups:
        group["lr"] = rate_at(recipe, state.step)
    with _autocast(device):
        out = state.network(low)
    error = out.float() - high
    weights = torch.tensor(_LUMA, device=device).view(1, 3, 1, 1)
    in_luma = (error * weights).sum(1)
    loss: Tensor
    if state.step < recipe.squared_from * recipe.steps:
        loss = in_luma.abs().mean() + 0.5 * error.abs().mean()
    else:
        loss = 20 * (in_luma.square().mean() + 0.5 * error.square().mean())
    loss.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    state.optimizer.zero_grad()
    keep = min(recipe.average, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        torch._foreach_lerp_(list(state.average.parameters()), list(state.network.parameters()), 1 - keep)
    return loss


def rate_at(recipe: Recipe, step: int) -> float:
    """A linear warm-up, then half a cosine to zero."""
    warm = min(1.0, (step + 1) / max(1, recipe.warm_up))
    return recipe.rate * warm * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def _autocast(device: str) -> torch.autocast:
    return torch.autocast(device.split(":")[0], dtype=torch.bfloat16)


def _network(recipe: Recipe, device: str) -> TrainedCompact:
    network = TrainedCompact(num_feat=recipe.num_feat, num_conv=recipe.num_conv, scale=recipe.scale)
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _state(recipe: Recipe, folder: Path, start: dict[str, Tensor] | None, device: str) -> _State:
    torch.manual_seed(recipe.seed)
    network, average = _network(recipe, device), _network(recipe, device)
    if start is not None:
        fits = start if _same_shapes(start, network.state_dict()) else body_of(start)
        network.load_state_dict(fits, strict=False)
    average.load_state_dict(network.state_dict())
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.rate, fused=True)
    state = _State(network=network, average=average, optimizer=optimizer)
    path = folder / CHECKPOINT
    if path.exists():
        kept = read_checkpoint(path, device)
        network.load_state_dict(kept["network"])
        average.load_state_dict(kept["average"])
        optimizer.load_state_dict(kept["optimizer"])
        state.step, state.seconds = kept["step"], kept["seconds"]
        log.info("training goes on step=%d", state.step)
    return state


def read_checkpoint(path: Path, device: str = "cpu") -> dict[str, Any]:
    """What `train` keeps, read without running any of it."""
    if not zipfile.is_zipfile(path):
        raise ModelError(f"{path}: is no checkpoint of a training")
    kept: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(kept, dict) or not {"network", "average", "optimizer", "step"} <= kept.keys():
        raise ModelError(f"{path}: is no checkpoint of a training")
    return kept


def _same_shapes(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return {key: value.shape for key, value in one.items()} == {
        key: value.shape for key, value in other.items()
    }


def _save(state: _State, folder: Path) -> None:
    kept = {
        "network": state.network.state_dict(),
        "average": state.average.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "step": state.step,
        "seconds": state.seconds,
    }
    temporary = folder / f".{CHECKPOINT}.{os.getpid()}.tmp"
    torch.save(kept, temporary)
    temporary.replace(folder / CHECKPOINT)


def _append_to_log(folder: Path, progress: Progress) -> None:
    with (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(progress)) + "\n")


def _write_recipe(recipe: Recipe, folder: Path) -> None:
    path, text = folder / RECIPE, json.dumps(dataclasses.asdict(recipe), indent=1) + "\n"
    if path.exists() and Recipe(**json.loads(path.read_text())) != recipe:
        raise JobError(f"{path}: another training began here; give another --out, or the same settings")
    path.write_text(text)
