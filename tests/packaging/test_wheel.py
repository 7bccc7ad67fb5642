"""The wheel does the main job in an environment that has never seen the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.clips import numbered_clip
from tests.packaging.test_head_node import VALUES
from tests.tools import ROOT

_PARTS = ("vsr_hpc", "cluster-config", "slurm", "jobs", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def vsr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`vsr` of a wheel that was built from a copy of the sources and installed without the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in _PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name)
        else:
            shutil.copy2(ROOT / name, folder / "source" / name)
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "source")
    (wheel,) = folder.glob("*.whl")
    place = folder / "environment"
    venv.create(place, with_pip=False)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(place)}))
    # Dependencies come from the tests' own environment; a path in a .pth file does not bring its .pth files.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", place / "bin/python", "install", "--quiet"]
    _run(*pip, "--no-deps", "--no-index", "--ignore-installed", wheel)
    return place / "bin/vsr"


def _run(*words: object, cwd: Path | None = None) -> str:
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_installed_wheel_upscales_and_verifies(vsr: Path, tmp_path: Path) -> None:
    found = _run(vsr.with_name("python"), "-c", "import vsr_hpc; print(vsr_hpc.__file__)", cwd=tmp_path)
    assert Path(found.strip()).is_relative_to(vsr.parents[1])
    numbered_clip(tmp_path / "in.mkv", frames=4)
    _run(vsr, "upscale", "in.mkv", "out.mkv", "--scale", "2", "--preset", "ultrafast", "-q", cwd=tmp_path)
    assert "4 frames" in _run(vsr, "verify", "in.mkv", "out.mkv", cwd=tmp_path)


def test_the_installed_wheel_finds_its_templates_and_tables(vsr: Path, tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text(VALUES)
    rendered = _run(vsr, "cluster", "render", "spot-gpu", "--values", "values.yaml", cwd=tmp_path)
    assert "SlurmQueues" in rendered
    assert "vsr-video-x4" in _run(vsr, "models", "list", cwd=tmp_path)
    listed = _run(vsr, "init", cwd=tmp_path).splitlines()
    assert {line.split()[0] for line in listed} == {path.stem for path in (ROOT / "jobs").glob("*.yaml")}
    _run(vsr, "init", "slurm", cwd=tmp_path)
    assert (tmp_path / "slurm.yaml").read_bytes() == (ROOT / "jobs/slurm.yaml").read_bytes()
