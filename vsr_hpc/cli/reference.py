"""The tables of job keys and options in docs/cli.md, made from the fields of the job.

python -m vsr_hpc.cli.reference                  prints them
python -m vsr_hpc.cli.reference docs/cli.md      writes them into the file, between its two marks
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel

    from vsr_hpc.job.options import JobKey

BEGIN = "<!-- made by `python -m vsr_hpc.cli.reference docs/cli.md` from vsr_hpc/job/spec.py -->"
END = "<!-- end of what is made -->"


def reference(spec: type[BaseModel] | None = None) -> str:
    """One table for each panel of options, and one for the keys that only a job file has."""
    return "\n".join(_lines(spec)) + "\n"


def with_reference(text: str, spec: type[BaseModel] | None = None) -> str:
    """A document with new tables between its marks. Raises ValueError where a mark is missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the text has no {BEGIN!r} or no {END!r} after it")
    return f"{before}{BEGIN}\n\n{reference(spec)}\n{END}{after}"


def _lines(spec: type[BaseModel] | None) -> Iterator[str]:
    from vsr_hpc.job.options import PANELS, job_keys, job_options

    options = job_options(spec)
    for panel in PANELS:
        yield f"**{panel}**\n"
        yield from _table(key for key in options if key.option is not None and key.option.panel == panel)
        yield ""
    yield "**Only in a job file**\n"
    yield "| key | value | meaning |"
    yield "| --- | --- | --- |"
    for key in job_keys(spec):
        if key.option is None:
            yield f"| `{key.key}` | {_value(key)} | {_cell(key.description)} |"


def _table(keys: Iterable[JobKey]) -> Iterator[str]:
    yield "| option | key | value | meaning |"
    yield "| --- | --- | --- | --- |"
    for key in keys:
        names = ", ".join(f"`{name}`" for name in key.names)
        yield f"| {names} | `{key.key}` | {_value(key)} | {_cell(key.description)} |"


def _value(key: JobKey) -> str:
    if key.option is not None and key.option.flag_value:
        return f"`{key.option.flag_value}`; `{key.default}` by default"
    several = "several " if key.is_repeated else ""
    shown = f"{several}`{_cell(key.metavar)}`" if key.metavar else "`true`; `false` by default"
    return f"{shown}; `{key.default}` by default" if key.default else shown


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Print the tables, or write them into the files that are named."""
    if len(sys.argv) == 1:
        print(reference(), end="")  # noqa: T201 - this is its answer
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(with_reference(path.read_text()))


if __name__ == "__main__":
    main()
