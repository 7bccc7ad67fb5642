"""What the shell offers after TAB: names of models and runs, and job files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vsr_hpc.storage.store import RUNS_FOLDER


def complete_models(incomplete: str) -> Iterator[tuple[str, str]]:
    """Names of models with what they are for; after commas, the last one of several."""
    from vsr_hpc.models.cards import all_cards
    from vsr_hpc.models.defaults import AUTO

    before, comma, last = incomplete.rpartition(",")
    offered = [(AUTO, "Our model for the clip and its size.")]
    offered += [(card.name, card.description) for card in all_cards()]
    for name, description in offered:
        if name.startswith(last):
            yield f"{before}{comma}{name}", description


def complete_runs(incomplete: str) -> Iterator[tuple[str, str]]:
    """The runs that this user started on this machine, each by its output where that lies in a folder.

    It reads only the list of runs, not their state, which can lie on a slow store.
    """
    from vsr_hpc.run.known_runs import remembered_runs

    for uri in remembered_runs():
        name = _as_output(uri)
        if name.startswith(incomplete):
            yield name, uri


def complete_files(incomplete: str) -> Iterator[str]:
    """Files and folders whose path begins with what was typed: job files, inputs and outputs."""
    folder, slash, last = incomplete.rpartition("/")
    place = Path(f"{folder}{slash}" or ".")
    if not place.is_dir():
        return
    for path in sorted(place.iterdir()):
        if path.name.startswith(last) and (not path.name.startswith(".") or last.startswith(".")):
            yield f"{folder}{slash}{path.name}{'/' if path.is_dir() else ''}"


def _as_output(uri: str) -> str:
    """A run as a person types it: by its output, from the current folder where that is below it."""
    above, hidden, name = uri.rpartition(f"/{RUNS_FOLDER}/")
    output = f"{above}/{name}" if hidden else uri
    path, here = Path(output), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else output
