"""One training as a person asks for it: a folder of images in, a folder with weights and card out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vsr_hpc.bench.imresize import shrink, whole
from vsr_hpc.bench.originals import read_still, through_h264, to_rgb8
from vsr_hpc.engine.device_facts import cpu_name
from vsr_hpc.errors import JobError
from vsr_hpc.system.files import write_atomically
from vsr_hpc.training.data import ImageFile, TrainingPair, clean_pairs, list_images, sizes_of
from vsr_hpc.training.degradation import BankSize, video_pairs
from vsr_hpc.training.export import Exported, export
from vsr_hpc.training.loop import CHECKPOINT, LOG, Progress, Recipe, read_checkpoint, train

IMAGES = "images.json"
_LEAST_SIDE = 48
"""Low pixels that an image has at least at a level, so that its patches differ."""
_CHECKED_LEVEL = 0.5
_CHECKED_CRF = 23


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRequest:
    """What a training shall do, beyond its recipe."""

    images: Path
    out: Path
    name: str
    held_out: tuple[str, ...] | None = None
    start: Path | None = None
    """A checkpoint of another training, of this scale or another."""
    licence: str = "the user's own"
    device: str = "cpu"
    threads: int = 1
    check_every: int = 1000
    is_resumed: bool = True


def train_model(
    recipe: Recipe,
    wish: TrainingRequest,
    tell: Callable[[Progress], None] = lambda _: None,
    stop_at: int | None = None,
) -> Exported | None:
    """Train to the end, or go on with what lies in the folder; None where `stop_at` ended it early."""
    if not wish.is_resumed and (wish.out / CHECKPOINT).exists():
        raise JobError(f"{wish.out}: a training lies here; --resume goes on with it, or give another --out")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", wish.name):
        raise JobError(f"{wish.name!r} cannot be a model's name; use letters, digits and . _ + -")
    torch.set_num_threads(wish.threads)
    start = start_state(wish.start) if wish.start else None
    if start is not None:
        recipe = dataclasses.replace(recipe, start=state_sha256(start))
    images = list_images(wish.images, wish.held_out)
    wish.out.mkdir(parents=True, exist_ok=True)
    _keep_images(images, wish.out)
    training = [image for image in images if not image.is_held_out]
    checks = validation_pairs([image for image in images if image.is_held_out], recipe)
    if recipe.recipe == "clean":
        pairs = clean_pairs(training, recipe.scale, max(_LEAST_SIDE, recipe.patch))
    else:
        pairs = video_pairs(training, recipe.scale, recipe.seed, BankSize(clips=recipe.clips))
    state = train(
        recipe,
        pairs,
        checks,
        wish.out,
        start=start,
        device=wish.device,
        check_every=wish.check_every,
        tell=tell,
        stop_at=stop_at,
    )
    if stop_at is not None and stop_at < recipe.steps:
        return None
    return export_model(state, recipe, wish, images)


def export_model(
    state: dict[str, Tensor], recipe: Recipe, wish: TrainingRequest, images: Sequence[ImageFile]
) -> Exported:
    """The files of a training, with the record of how it went."""
    return export(
        state,
        recipe,
        wish.out,
        name=wish.name,
        licence=wish.licence,
        training=record(recipe, wish, images),
    )


def record(recipe: Recipe, wish: TrainingRequest, images: Sequence[ImageFile]) -> dict[str, object]:
    """What a card owes its reader: recipe, images, loss, hardware, and the last check."""
    lines = (wish.out / LOG).read_text(encoding="utf-8").splitlines() if (wish.out / LOG).exists() else []
    return {
        "recipe": dataclasses.asdict(recipe),
        "loss": "mean |Y error| + 0.5 mean |RGB error|; both squared, times 20, in the last part",
        "images": {
            "count": len(images),
            "held_out": [image.name for image in images if image.is_held_out],
            "list_sha256": images_sha256(images),
        },
        "hardware": f"{torch.get_num_threads()} thread(s) of {cpu_name()}, bf16"
        if wish.device == "cpu"
        else f"{torch.cuda.get_device_name()}, bf16",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "last_check": json.loads(lines[-1]) if lines else None,
    }


def validation_pairs(images: Sequence[ImageFile], recipe: Recipe) -> tuple[TrainingPair, ...]:
    """The held-out images at half their size; for video recipes after H.264 at CRF 23."""
    step = recipe.scale if recipe.recipe == "clean" else 2 * recipe.scale
    pairs = []
    for image in images:
        for size in sizes_of(read_still(image.path), 16 * recipe.scale, (_CHECKED_LEVEL,)):
            high = whole(size, step).copy()
            low = shrink(high, recipe.scale)
            if recipe.recipe == "video":
                picture, frames = through_h264([low] * 3, crf=_CHECKED_CRF)
                low = to_rgb8(frames[2], picture)
            pairs.append(TrainingPair(name=image.name, low=low, high=high))
    return tuple(pairs)


def start_state(path: Path) -> dict[str, Tensor]:
    """The averaged weights of a training's checkpoint."""
    state: dict[str, Tensor] = read_checkpoint(path / CHECKPOINT if path.is_dir() else path)["average"]
    return state


def state_sha256(state: dict[str, Tensor]) -> str:
    return hashlib.sha256(b"".join(value.numpy().tobytes() for _, value in sorted(state.items()))).hexdigest()


def images_sha256(images: Sequence[ImageFile]) -> str:
    """One hash for a data list, whatever its folder."""
    lines = [f"{image.sha256} {'held out' if image.is_held_out else 'trained on'}" for image in images]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _keep_images(images: Sequence[ImageFile], folder: Path) -> None:
    listed = [
        {"file": image.path.name, "sha256": image.sha256, "held_out": image.is_held_out} for image in images
    ]
    path = folder / IMAGES
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != listed:
        raise JobError(f"{path}: this training began with other images; give another --out")
    write_atomically(path, json.dumps(listed, indent=1) + "\n")
