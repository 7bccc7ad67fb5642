"""`vsr models train`: arguments in, a training, what it made out."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from vsr_hpc.training.loop import Progress


class RecipeName(StrEnum):
    clean = "clean"
    video = "video"


class Device(StrEnum):
    cpu = "cpu"
    cuda = "cuda"


def train(
    images: Annotated[Path, typer.Option("--images", help="A folder of images without loss, yours to use.")],
    out: Annotated[Path, typer.Option("--out", help="Where checkpoint, log, weights and card go.")],
    scale: Annotated[int, typer.Option("--scale", min=2, max=4, help="The network's factor.")] = 4,
    recipe: Annotated[
        RecipeName, typer.Option("--recipe", help="clean: reduced pictures; video: also coded as H.264.")
    ] = RecipeName.clean,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Batches in all.")] = 40_000,
    name: Annotated[str | None, typer.Option("--name", help="The model's name; --out's by default.")] = None,
    start: Annotated[
        Path | None, typer.Option("--start", help="Begin with the weights of another training's folder.")
    ] = None,
    hold_out: Annotated[
        str | None,
        typer.Option("--hold-out", help="Images to check with: names, a,b; one in eight by default."),
    ] = None,
    features: Annotated[int, typer.Option("--features", min=4, max=256, help="Channels.")] = 32,
    layers: Annotated[int, typer.Option("--layers", min=1, max=64, help="Inner convolutions.")] = 8,
    patch: Annotated[int, typer.Option("--patch", min=8, help="Side of a small patch.")] = 32,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Patches in a step.")] = 16,
    rate: Annotated[float, typer.Option("--rate", min=0, help="Learning rate at its highest.")] = 2e-3,
    seed: Annotated[int, typer.Option("--seed", help="Decides weights and patches.")] = 1,
    clips: Annotated[int, typer.Option("--clips", min=1, help="Of the video recipe's bank.")] = 700,
    changes_colours: Annotated[
        bool, typer.Option("--mix-colours/--keep-colours", help="Channels in random order, and negatives.")
    ] = True,
    licence: Annotated[str, typer.Option("--licence", help="What the card says.")] = "the user's own",
    device: Annotated[Device | None, typer.Option("--device", help="A GPU where there is one.")] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="On a CPU; part of the trajectory.")] = 1,
    check_every: Annotated[
        int, typer.Option("--check-every", min=1, help="Steps between two looks at the held-out images.")
    ] = 1000,
    stop_at: Annotated[
        int | None, typer.Option("--stop-at", min=1, help="Leave after this step; --resume goes on.")
    ] = None,
    is_resumed: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with the checkpoint in --out, if any.")
    ] = True,
    is_json: Annotated[bool, typer.Option("--json", help="Answer with JSON on stdout.")] = False,
) -> None:
    """Train a small network of your own on your own images; called again, it goes on where it was.

    \b
    vsr models train --images photos/ --scale 4 --out train/mine
    vsr models train --images photos/ --scale 4 --recipe video --start train/mine --out train/mine-video
    vsr upscale in.mkv out.mkv --model train/mine/mine.safetensors
    """
    from vsr_hpc.training.loop import Recipe
    from vsr_hpc.training.session import TrainingRequest, train_model

    made = train_model(
        Recipe(
            recipe=recipe.value,
            scale=scale,
            steps=steps,
            num_feat=features,
            num_conv=layers,
            patch=patch,
            batch=batch,
            rate=rate,
            seed=seed,
            clips=clips,
            changes_colours=changes_colours,
        ),
        TrainingRequest(
            images=images,
            out=out,
            name=name or out.name,
            held_out=tuple(hold_out.split(",")) if hold_out else None,
            start=start,
            licence=licence,
            device=device.value if device else _best_device(),
            threads=threads,
            check_every=check_every,
            is_resumed=is_resumed,
        ),
        _say,
        stop_at,
    )
    if made is None:
        typer.echo(f"stopped at step {stop_at}; the same command without --stop-at goes on", err=True)
    elif is_json:
        typer.echo(json.dumps({"weights": str(made.weights), "card": str(made.card)}))
    else:
        typer.echo(str(made.weights))


def _say(progress: Progress) -> None:
    left = progress.seconds / progress.step * (progress.steps - progress.step)
    typer.echo(
        f"step {progress.step}/{progress.steps}  loss {progress.loss:.5f}  held out {progress.psnr:.3f} dB "
        f"(bicubic {progress.bicubic:.3f})  {left / 60:.0f} min left",
        err=True,
    )


def _best_device() -> Literal["cpu", "cuda"]:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
