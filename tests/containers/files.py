"""The image's parts as its tests read them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "containers"


def part(name: str) -> ModuleType:
    """A script of the image as a module; they belong to no package."""
    spec = importlib.util.spec_from_file_location(f"containers_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
