"""`vsr cluster` and `vsr storage` as they are typed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from tests.aws.conftest import VALUES
from vsr_hpc.aws.cluster import lifecycle
from vsr_hpc.aws.cluster.lifecycle import ClusterState
from vsr_hpc.aws.config_files import config_folder
from vsr_hpc.cli.cluster import app, storage_app
from vsr_hpc.errors import JobError

READY = ClusterState(
    name="vsr", region="us-east-1", status="CREATE_COMPLETE", fleet="RUNNING",
    head_address="198.51.100.7", compute_nodes=2, version="3.16.1",
)  # fmt: skip


@pytest.fixture
def values_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a values.yaml, and no way to any account."""
    monkeypatch.chdir(tmp_path)
    for name in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(VALUES))
    return path


def typed(*words: str, which: Any = app, answer: str = "") -> Any:
    return CliRunner().invoke(which, list(words), input=answer)


def test_render_fills_the_standard_template_from_values_in_the_folder(values_file: Path) -> None:
    done = typed("render")
    assert done.exit_code == 0 and yaml.safe_load(done.stdout)["Region"] == "us-east-1"


def test_set_wins_over_the_file(values_file: Path) -> None:
    done = typed("render", "dev", "--set", "region=eu-west-1", "--set", "name=other")
    assert yaml.safe_load(done.stdout)["Region"] == "eu-west-1"
    assert {"Key": "vsr-cluster", "Value": "other"} in yaml.safe_load(done.stdout)["Tags"]


def test_rendered_file_is_checked_without_values(values_file: Path) -> None:
    assert typed("render", "spot-gpu", "-o", "c.yaml").exit_code == 0
    values_file.unlink()
    done = typed("check", "c.yaml")
    assert done.exit_code == 0 and "asleep, per month" in done.stdout


@pytest.mark.parametrize(("settings", "code"), [((), 0), (("spot_nodes=500",), 2)])
def test_exit_code_of_check_is_its_worst_finding(
    values_file: Path, settings: tuple[str, ...], code: int
) -> None:
    done = typed("check", "spot-gpu", *(word for each in settings for word in ("--set", each)))
    assert done.exit_code == code


def test_fsx_variant_gives_warnings_and_exit_code_1(values_file: Path) -> None:
    assert typed("check", "spot-gpu-fsx").exit_code == 1


def test_check_as_json_holds_findings_and_the_bill(values_file: Path) -> None:
    done = typed("check", "--json", "--set", "spot_nodes=500")
    answer = json.loads(done.stdout)
    assert answer["exit_code"] == 2 and answer["bill"]["load_high_usd"] > 100
    assert answer["findings"][0]["where"].endswith("(value head_instance)")


def test_unknown_value_is_refused_by_name(values_file: Path) -> None:
    done = typed("render", "--set", "bukcet=x")
    assert isinstance(done.exception, JobError) and "bukcet" in str(done.exception)


@pytest.fixture
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests replace what acts on AWS; test_bare_aws.py shows the refusal without credentials."""
    monkeypatch.setattr(lifecycle, "account_number", lambda *_: "123456789012")


@pytest.mark.usefixtures("_credentials")
def test_create_asks_before_it_costs_anything(values_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "create", lambda *_: pytest.fail("it was created"))
    done = typed("create", answer="n\n")
    assert done.exit_code == 1 and "It costs money until it is deleted" in done.output


@pytest.mark.usefixtures("_credentials")
def test_create_prints_the_line_for_the_first_job_on_stdout(
    values_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "create", lambda *_: READY)
    done = typed("create", "--yes")
    assert done.stdout.strip().endswith("ubuntu@198.51.100.7 vsr submit /opt/vsr/first-job.yaml")


@pytest.mark.usefixtures("_credentials")
def test_delete_looks_for_runs_in_the_bucket_of_the_values(
    values_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(lifecycle, "delete", lambda *words, **more: asked.update(more, words=words[:2]))
    assert typed("delete", "--yes").exit_code == 0
    assert asked == {"words": ("vsr", "us-east-1"), "store": ("vsr-hpc-data", "vsr"), "is_forced": False}


def test_status_needs_to_know_which_cluster(values_file: Path) -> None:
    values_file.unlink()
    done = typed("status", "--name", "vsr")
    assert isinstance(done.exception, JobError) and "--region" in str(done.exception)


def test_storage_init_says_what_it_would_do_and_does_nothing(values_file: Path) -> None:
    done = typed("init", "my-bucket", "--region", "eu-west-1", "--dry-run", which=storage_app)
    assert done.exit_code == 0 and done.output.count("will ") == 6


def test_storage_init_refuses_names_that_would_reach_further(values_file: Path) -> None:
    done = typed("init", "*", "--region", "eu-west-1", "--prefix", "../x", "--dry-run", which=storage_app)
    assert isinstance(done.exception, JobError)
    assert "bucket='*'" in str(done.exception) and "prefix='../x'" in str(done.exception)


def test_cluster_modules_import_neither_torch_nor_parallelcluster() -> None:
    code = (
        "import sys, vsr_hpc.cli.cluster;"
        "from vsr_hpc.aws.cluster import check, lifecycle, node_environment;"
        "sys.exit(bool({'torch', 'pcluster', 'av', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_command_and_option_of_the_guide_exists() -> None:
    guide = (config_folder().parent / "docs/aws.md").read_text("utf-8")
    groups = {"cluster": typer.main.get_command(app), "storage": typer.main.get_command(storage_app)}
    seen = set()
    for line in re.findall(r"vsr (?:cluster|storage) [^`\n|]*", guide):
        _, group, name, *words = line.split()
        command = groups[group].commands[name]  # type: ignore[attr-defined]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known, line
        seen.add(name)
    assert {"setup", "check", "pack", "create", "status", "stop", "start", "delete", "init"} <= seen


@pytest.mark.parametrize("name", ["spot-gpu", "dev", "spot-gpu-fsx"])
def test_costs_of_the_guide_are_those_of_the_price_table(name: str, values_file: Path) -> None:
    guide = (config_folder().parent / "docs/aws.md").read_text("utf-8")
    bill = json.loads(typed("check", name, "--json").stdout)
    assert re.search(rf"`{name}` \| \${bill['floor_usd_per_month']:.0f} a month", guide)
    if name != "spot-gpu-fsx":
        assert f"${bill['bill']['load_low_usd']:.2f} to ${bill['bill']['load_high_usd']:.2f} an hour" in guide
