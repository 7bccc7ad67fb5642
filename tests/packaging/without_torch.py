"""python without_torch.py WORD…: the `vsr` command where torch and its companions cannot be imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

ABSENT = ("torch", "torchvision", "basicsr", "spandrel", "lpips")


class Absent:
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


if __name__ == "__main__":
    sys.meta_path.insert(0, Absent())
    from vsr_hpc.cli.main import main

    sys.argv[0] = "vsr"
    main()
