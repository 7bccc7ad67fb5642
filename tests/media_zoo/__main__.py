"""Visit every source, or those named: python -m tests.media_zoo [--table] [NAME...]"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.media_zoo.checking import missing_tools
from tests.media_zoo.sources import all_sources
from tests.media_zoo.visiting import Visit, visit


def table(visits: list[Visit]) -> str:
    """The result by family, as docs/media.md shows it."""
    lines = [
        "| class | clips | kept | refused with the reason | pictures equal bit by bit |",
        "|---|--:|--:|--:|--:|",
    ]
    families = list(dict.fromkeys(each.source.family for each in visits))
    for family in [*families, "all"]:
        ours = [each for each in visits if family in (each.source.family, "all")]
        outcomes = Counter(each.outcome for each in ours)
        clips = len(ours) - outcomes["not made"]
        made = [each for each in ours if each.outcome in ("good", "wrong")]
        compared = [each for each in made if each.source.is_exact]
        exact = sum(bool(each.is_exact) for each in compared)
        lines.append(
            f"| {family} | {clips} | {outcomes['good']} | {outcomes['refused']} "
            f"| {exact} of {len(compared)} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.media_zoo")
    parser.add_argument("names", nargs="*", help="names, or beginnings of names; all where none is given")
    parser.add_argument("--keep", type=Path, help="a folder in which sources and outputs stay")
    wanted = parser.parse_args()
    if (reason := missing_tools()) is not None:
        print(f"tests.media_zoo: {reason}", file=sys.stderr)
        return 1
    chosen = [
        each
        for each in all_sources()
        if not wanted.names or any(each.name.startswith(name) for name in wanted.names)
    ]
    visits = []
    with tempfile.TemporaryDirectory() as scratch:
        for source in chosen:
            made = visit(source, (wanted.keep or Path(scratch)) / source.name)
            visits.append(made)
            print(f"{made.outcome:9}{source.name}  {made.said}", flush=True)
    print()
    print(table(visits))
    return int(any(each.outcome in ("wrong", "not made") for each in visits))


if __name__ == "__main__":
    sys.exit(main())
