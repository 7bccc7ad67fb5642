"""What the shell offers after TAB, asked as the shell asks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import planned_run, tiny_job
from vsr_hpc.cli.completion import complete_files, complete_models, complete_runs
from vsr_hpc.run.known_runs import remember


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def test_models_are_offered_by_name_also_the_last_of_several() -> None:
    assert {"auto", "bicubic", "vsr-video-x4"} <= {name for name, _ in complete_models("")}
    assert [name for name, _ in complete_models("bicubic,lan")] == ["bicubic,lanczos"]


def test_runs_are_offered_by_their_output(tmp_path: Path) -> None:
    remember(planned_run(tiny_job(tmp_path)))
    assert [name for name, _ in complete_runs("o")] == ["out.mkv"]
    assert list(complete_runs("x")) == []


def test_files_are_offered_with_their_folder(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "film.yaml").touch()
    (tmp_path / ".hidden").touch()
    assert list(complete_files("")) == ["jobs/", "state/"] or list(complete_files("")) == ["jobs/"]
    assert list(complete_files("jobs/f")) == ["jobs/film.yaml"]
    assert list(complete_files("nowhere/")) == []


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("vsr upscale a.mkv b.mkv --model vsr-vid", "vsr-video-x2"),
        ("vsr status ou", "out.mkv"),
        ("vsr init endp", "endpoint-canary"),
    ],
)
def test_bash_gets_its_answer(tmp_path: Path, line: str, offered: str) -> None:
    remember(planned_run(tiny_job(tmp_path)))
    asked = {"_VSR_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    command = "import sys; sys.argv[0] = 'vsr'; from vsr_hpc.cli.main import app; app(prog_name='vsr')"
    said = subprocess.run(
        [sys.executable, "-c", command], env=os.environ | asked, capture_output=True, text=True, check=False
    )
    assert offered in said.stdout.split(), said.stdout + said.stderr
