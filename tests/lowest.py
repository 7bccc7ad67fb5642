"""Print the lowest version of each dependency that pyproject.toml declares, one requirement a line.

    python -m tests.lowest >lowest.txt && pip install --requirement lowest.txt

The tests' own tools come in their newest versions: only what the package needs is held down.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
_TOOLS = ("einops", "hypothesis", "moto[server,s3]", "pytest<9.2", "pytest-timeout", "pytest-xdist")


def lowest(requirements: Iterable[str]) -> Iterator[str]:
    """Each requirement at its floor; ValueError where one has none, so that nothing is proved of it."""
    for each in requirements:
        found = re.match(r"([A-Za-z0-9._-]+)>=([0-9.]+)", each)
        if found is None:
            raise ValueError(f"pyproject.toml: {each!r} has no lowest version")
        yield f"{found[1]}=={found[2]}"


def main() -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["serve"]]
    sys.stdout.write("".join(f"{each}\n" for each in (*lowest(needed), *_TOOLS)))


if __name__ == "__main__":
    main()
