"""requirements.py PYPROJECT [EXTRA…]: what a project needs, one requirement a line."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def main(pyproject: str, *extras: str) -> None:
    project = tomllib.loads(Path(pyproject).read_text(encoding="utf-8"))["project"]
    needed = list(project["dependencies"])
    for extra in extras:
        needed += project["optional-dependencies"][extra]
    sys.stdout.write("".join(f"{each}\n" for each in needed))


if __name__ == "__main__":
    main(*sys.argv[1:])
