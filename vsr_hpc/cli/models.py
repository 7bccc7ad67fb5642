"""`vsr models`: list, show, download, import and train networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vsr_hpc.cli.answers import IsJson, answer
from vsr_hpc.cli.completion import complete_models
from vsr_hpc.cli.train import train

_PATIENCE_S = 30.0
"""`pull` waits for a slow network, other commands say at once that weights are missing."""

app = typer.Typer(help="List, show, download, import and train models.", no_args_is_help=True)
app.command("train", no_args_is_help=True)(train)


@app.command("list")
def models_list(is_json: IsJson = False) -> None:
    """List the models that `--model` takes by name: size, licence, whether they are on disk, speed.

    \b
    vsr models list
    """
    from vsr_hpc.cli.model_text import list_lines, model_document
    from vsr_hpc.models.cards import all_cards

    cards = all_cards()
    if is_json:
        answer([model_document(card) for card in cards])
        return
    for line in list_lines(cards):
        typer.echo(line)


@app.command("show", no_args_is_help=True)
def models_show(
    name: Annotated[
        str, typer.Argument(help="A model's name or a weights file.", autocompletion=complete_models)
    ],
    is_json: IsJson = False,
) -> None:
    """Show a model's card: its network, licence, weights, speed and limits.

    \b
    vsr models show realesr-animevideov3
    """
    from vsr_hpc.cli.model_text import card_lines, model_document
    from vsr_hpc.models.cards import find_card

    card = find_card(name)
    if is_json:
        answer(model_document(card))
        return
    for line in card_lines(card):
        typer.echo(line)


@app.command("pull", no_args_is_help=True)
def models_pull(
    name: Annotated[str, typer.Argument(help="A model's name.", autocompletion=complete_models)],
) -> None:
    """Download a model's weights into the cache, check them, and print where they are.

    \b
    vsr models pull realesr-animevideov3
    """
    from vsr_hpc.cli.progress import downloading
    from vsr_hpc.models import weights
    from vsr_hpc.models.cards import find_card

    with downloading(name) as progress:
        typer.echo(str(weights.ensure(find_card(name), progress, patience_s=_PATIENCE_S)))


@app.command("import", no_args_is_help=True)
def models_import(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A .pth or .safetensors file.")],
    name: Annotated[
        str | None, typer.Option("--name", help="The name that the model gets. The file's by default.")
    ] = None,
) -> None:
    """Recognise the network in a file of weights and add it to your models.

    \b
    vsr models import 4x-film.pth --name film
    """
    from vsr_hpc.models import weights

    card = weights.import_weights(path, name)
    typer.echo(f"{card.name}: {card.network} x{card.scale}")
