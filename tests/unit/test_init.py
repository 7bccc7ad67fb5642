"""`vsr init` writes the files of `jobs/`, byte for byte, and replaces nothing by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from vsr_hpc.cli.main import app
from vsr_hpc.errors import JobError
from vsr_hpc.job.examples import example_names

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def vsr_init(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["init", *arguments])


def test_every_file_of_jobs_is_written_as_it_is() -> None:
    assert set(example_names()) == {path.stem for path in JOBS.glob("*.yaml")}
    for name in example_names():
        assert vsr_init(name).stdout == f"{name}.yaml\n"
        assert Path(f"{name}.yaml").read_bytes() == (JOBS / f"{name}.yaml").read_bytes()


def test_without_a_name_each_is_listed_with_what_it_is_for() -> None:
    lines = vsr_init().stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(example_names())
    assert all(len(line.split()) > 3 for line in lines)


def test_an_existing_file_stays_unless_it_is_to_be_replaced() -> None:
    Path("slurm.yaml").write_text("mine")
    error = vsr_init("slurm").exception
    assert isinstance(error, JobError) and "slurm.yaml exists already" in str(error)
    assert Path("slurm.yaml").read_text() == "mine"
    assert vsr_init("slurm", "--overwrite").exit_code == 0 and "workers" in Path("slurm.yaml").read_text()
    assert vsr_init("slurm", "-o", "a/b.yaml").stdout == "a/b.yaml\n"


def test_a_wrong_name_suggests_the_right_one() -> None:
    error = vsr_init("endpoint-cannary").exception
    assert isinstance(error, JobError) and "did you mean endpoint-canary" in str(error)
