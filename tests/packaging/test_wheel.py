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
from vsr_hpc.version import VERSION

_PARTS = ("vsr_hpc", "cluster-config", "slurm", "jobs", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def vsr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`vsr` of a wheel that was built from a copy of the sources and installed without the checkout."""
    return install(tmp_path_factory.mktemp("wheel"), "1.0.0")


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a later version."""
    return install(tmp_path_factory.mktemp("newer"), "1.1.0")


def install(folder: Path, version: str) -> Path:
    """Build a wheel of this version and install it into an environment of its own; its `vsr`."""
    (folder / "source").mkdir()
    for name in _PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name)
        else:
            shutil.copy2(ROOT / name, folder / "source" / name)
    stated = folder / "source/vsr_hpc/version.py"
    stated.write_text(stated.read_text().replace(f'"{VERSION}"', f'"{version}"'))
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
    for path in (ROOT / "jobs").glob("*.yaml"):
        _run(vsr, "init", path.stem, cwd=tmp_path)
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


PLAN = """import sys
from pathlib import Path
from vsr_hpc.job.reading import parse_job
from vsr_hpc.launch import ensure_plan, submit
names = ("input", "output")
places = {name: str(Path(name + ".mkv").resolve()) for name in names}
run = submit(parse_job({**places, "model": "nearest", "picture": {"scale": 2}}, "test")).run
ensure_plan(run)
print(run.uri)
"""


def test_run_of_one_version_is_refused_by_another_before_it_takes_a_lease(
    vsr: Path, newer: Path, tmp_path: Path
) -> None:
    numbered_clip(tmp_path / "input.mkv", frames=4)
    run = _run(vsr.with_name("python"), "-c", PLAN, cwd=tmp_path).strip()
    again = ["upscale", "input.mkv", "output.mkv", "--scale", "2", "--model", "nearest"]
    for words in (["worker", run], ["resume", run], ["finish", run], again):
        refused = _refuse(newer, *words, cwd=tmp_path)
        assert "1.0.0" in refused and "1.1.0" in refused and "--new" in refused
    assert not list(Path(run).glob("*/leases/*")), "a worker of another version took a lease"
    _run(vsr, "worker", run, "-q", cwd=tmp_path)
    assert "4 frames" in _run(newer, "verify", "input.mkv", "output.mkv", cwd=tmp_path)
    assert "complete" in _run(newer, "status", run, cwd=tmp_path)


def _refuse(vsr: Path, *words: str, cwd: Path) -> str:
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(vsr), *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, (done.returncode, done.stderr)
    return done.stderr
