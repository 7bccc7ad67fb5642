"""Every file that the repository holds, whatever is in it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.require import require
from tests.tools import ROOT, find_tool

CONFLICT = re.compile(rb"^(<{7} |={7}$|>{7} )", re.MULTILINE)
TEMPLATES = {"vsr_hpc/aws/ec2/ec2.sh": "tests/serving/test_ec2.py checks what it becomes"}


def _files() -> list[Path]:
    """What git tracks; a source distribution has no git, and then nothing to look at."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def _is_script(path: Path) -> bool:
    first = path.read_bytes()[:200].split(b"\n")[0]
    return path.suffix == ".sh" or (first.startswith(b"#!") and first.split(b" ")[-1].endswith(b"sh"))


SCRIPTS = [path for path in _files() if _is_script(path)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_script_of_a_shell_is_shellcheck_clean(script: Path) -> None:
    name = str(script.relative_to(ROOT))
    if name in TEMPLATES:
        return
    found = find_tool("shellcheck")
    if found is None:
        require("shellcheck", "shellcheck is not installed")
    checked = subprocess.run([found, str(script)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_no_file_has_the_marks_of_a_merge() -> None:
    assert [str(path) for path in _files() if CONFLICT.search(path.read_bytes())] == []
