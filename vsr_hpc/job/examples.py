"""The commented job files of the package; `jobs/` of the repository holds them."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path

from vsr_hpc.errors import JobError
from vsr_hpc.system.files import write_atomically


def example_names() -> tuple[str, ...]:
    """The names of the job files, without `.yaml`."""
    names = (each.name for each in resources.files("vsr_hpc.job").joinpath("files").iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def example_text(name: str) -> str:
    """The text of one job file. JobError where the package has none of that name."""
    names = example_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise JobError(f"there is no job file {name!r}; {hint}there are {', '.join(names)}")
    path = resources.files("vsr_hpc.job").joinpath("files", f"{name}.yaml")
    return path.read_text(encoding="utf-8")


def headline(name: str) -> str:
    """What the first line of a job file says it is for."""
    return example_text(name).splitlines()[0].removeprefix("#").strip()


def write_example(name: str, path: Path, *, is_replaced: bool = False) -> None:
    """Write a copy. JobError where something is at its place already, unless it is to be replaced."""
    text = example_text(name)
    if path.is_dir():
        raise JobError(f"{path} is a folder; name a file in it")
    if path.exists() and not is_replaced:
        raise JobError(f"{path} exists already; --overwrite replaces it, -o names another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
