"""What the package imports is what pyproject.toml declares."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from tests.tools import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULES = {"pillow": "PIL", "pyyaml": "yaml"}
"""The module of a distribution, where their names differ."""
ELSEWHERE = {
    "vsr_hpc/aws/cluster/offline_probe.py": {
        "pcluster",
        "marshmallow",
    },  # ParallelCluster's own environment runs it
}
OPTIONAL = {"spandrel", "basicsr", "lpips"}
"""Used where a user has them; docs/video-models.md says how to install them."""
NOT_IMPORTED_YET = {"imageio"}


def imports_of(path: Path) -> set[str]:
    """The top-level names of all that this file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).partition(".")[0])
    return found - sys.stdlib_module_names - {"vsr_hpc"}


def modules_of(requirements: Iterable[str]) -> set[str]:
    names = {name_of(each) for each in requirements}
    return {MODULES.get(name, name) for name in names}


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return found[0].lower()


def test_every_import_of_the_package_is_declared() -> None:
    declared = modules_of([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["serve"]]) | OPTIONAL
    missing: dict[str, set[str]] = {}
    for path in sorted((ROOT / "vsr_hpc").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if unknown := imports_of(path) - declared - ELSEWHERE.get(name, set()):
            missing[name] = unknown
    assert not missing


def test_every_dependency_is_imported() -> None:
    imported: set[str] = set()
    for path in (ROOT / "vsr_hpc").rglob("*.py"):
        imported |= imports_of(path)
    assert modules_of(PROJECT["dependencies"]) - NOT_IMPORTED_YET <= imported


def test_every_dependency_says_its_lowest_version() -> None:
    from tests.lowest import lowest

    assert len(list(lowest(PROJECT["dependencies"]))) == len(PROJECT["dependencies"])


def test_the_head_node_needs_every_dependency_but_torch() -> None:
    lines = (ROOT / "requirements-head-node.txt").read_text(encoding="utf-8").splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    assert listed == [each for each in PROJECT["dependencies"] if name_of(each) != "torch"]


def test_no_extra_brings_packages_that_nothing_uses() -> None:
    """An extra cannot say --no-deps, and these ask for another torch, OpenCV or training tools."""
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {"serve", "real-esrgan", "test"}
    assert not OPTIONAL & {name_of(each) for extra in extras.values() for each in extra}
