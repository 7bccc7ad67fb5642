"""`vsr models train`: train a small network on one's own images."""

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
    images: Annotated[
        Path, typer.Option("--images", help="A folder of images in a lossless format that you may use.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder for checkpoint, log, weights and card.")],
    scale: Annotated[
        int, typer.Option("--scale", min=2, max=4, help="The network's enlargement factor.")
    ] = 4,
    recipe: Annotated[
        RecipeName,
        typer.Option(
            "--recipe", help="clean: learn from reduced pictures. video: from pictures also coded as H.264."
        ),
    ] = RecipeName.clean,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Training steps in all.")] = 40_000,
    name: Annotated[
        str | None, typer.Option("--name", help="The model's name. The name of --out by default.")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option("--start", help="The folder of another training whose weights are the start."),
    ] = None,
    hold_out: Annotated[
        str | None,
        typer.Option("--hold-out", help="Names of the images to check with: a,b. One in eight by default."),
    ] = None,
    features: Annotated[
        int, typer.Option("--features", min=4, max=256, help="Channels of the network.")
    ] = 32,
    layers: Annotated[
        int, typer.Option("--layers", min=1, max=64, help="Inner convolutions of the network.")
    ] = 8,
    patch: Annotated[int, typer.Option("--patch", min=8, help="Side of a patch, in input pixels.")] = 32,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Patches in one step.")] = 16,
    rate: Annotated[float, typer.Option("--rate", min=0, help="The highest learning rate.")] = 2e-3,
    seed: Annotated[int, typer.Option("--seed", help="Seed of weights and patches.")] = 1,
    clips: Annotated[
        int, typer.Option("--clips", min=1, help="Short clips that the video recipe prepares.")
    ] = 700,
    changes_colours: Annotated[
        bool,
        typer.Option(
            "--mix-colours/--keep-colours",
            help="Train also with channels in random order and with negatives.",
        ),
    ] = True,
    licence: Annotated[
        str, typer.Option("--licence", help="The licence that the card states.")
    ] = "the user's own",
    device: Annotated[
        Device | None, typer.Option("--device", help="cpu or cuda. A GPU if there is one, by default.")
    ] = None,
    threads: Annotated[
        int, typer.Option("--threads", min=1, help="CPU threads. The weights depend on their number.")
    ] = 1,
    check_every: Annotated[
        int, typer.Option("--check-every", min=1, help="Steps between two checks with the held-out images.")
    ] = 1000,
    stop_at: Annotated[
        int | None, typer.Option("--stop-at", min=1, help="Stop after this step; --resume continues.")
    ] = None,
    is_resumed: Annotated[
        bool,
        typer.Option("--resume/--no-resume", help="Continue from the checkpoint in --out, if there is one."),
    ] = True,
    is_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Train a small network on your own images. The same command continues an interrupted training.

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
        _print_progress,
        stop_at,
    )
    if made is None:
        typer.echo(f"stopped at step {stop_at}; the same command without --stop-at continues", err=True)
    elif is_json:
        typer.echo(json.dumps({"weights": str(made.weights), "card": str(made.card)}))
    else:
        typer.echo(str(made.weights))


def _print_progress(progress: Progress) -> None:
    left = progress.seconds / progress.step * (progress.steps - progress.step)
    typer.echo(
        f"step {progress.step}/{progress.steps}  loss {progress.loss:.5f}  held out {progress.psnr:.3f} dB "
        f"(bicubic {progress.bicubic:.3f})  {left / 60:.0f} min left",
        err=True,
    )


def _best_device() -> Literal["cpu", "cuda"]:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
