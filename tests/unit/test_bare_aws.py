"""Commands about AWS on a machine that has neither a region nor credentials: one sentence, or an example."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from vsr_hpc.aws.cluster.values import PLACEHOLDERS, load_values, placeholders_in
from vsr_hpc.cli.main import app
from vsr_hpc.errors import JobError

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "jobs/values.yaml"


@pytest.fixture(autouse=True)
def _bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "AWS_PROFILE",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def vsr(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_a_workflow_is_rendered_with_an_example_account() -> None:
    said = vsr("workflow", "render", str(ROOT / "jobs" / "batch.yaml"), "--bucket", "films")
    assert said.exit_code == 0, said.output
    assert "arn:aws:batch:us-east-1:000000000000" in said.stdout
    assert json.loads(said.stdout)["StartAt"]


@pytest.mark.parametrize(
    "command",
    [("batch", "status"), ("workflow", "status"), ("prices", "refresh"), ("batch", "delete", "--plan")],
)
def test_a_missing_region_is_one_sentence_with_the_way_out(command: tuple[str, ...]) -> None:
    error = vsr(*command).exception
    assert isinstance(error, JobError)
    assert "AWS_REGION" in str(error) and "\n" not in str(error)


def test_missing_credentials_are_one_sentence_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    error = vsr("batch", "status").exception
    assert isinstance(error, JobError) and "aws configure" in str(error) and "\n" not in str(error)


def test_a_region_that_aws_does_not_have_has_no_prices() -> None:
    for words in (("prices", "show"), ("plan", "--serve", "--model", "vsr-video-x4")):
        error = vsr(*words, "--region", "mars-1").exception
        assert isinstance(error, JobError) and "no region 'mars-1'" in str(error)
    assert vsr("prices", "show", "--region", "eu-central-1").exit_code == 0


def test_placeholders_are_what_the_example_says() -> None:
    named = {each.partition("=")[0] for each in placeholders_in(load_values(EXAMPLE))}
    assert named == set(PLACEHOLDERS)


def test_a_cluster_is_refused_for_the_examples_values_before_anything_is_asked() -> None:
    checked = vsr("cluster", "check", "spot-gpu", "--values", str(EXAMPLE), "--offline")
    assert checked.exit_code == 2
    assert all(f"error: {key}=" in checked.stdout for key in PLACEHOLDERS)


def test_create_looks_for_credentials_before_it_asks(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    for value in " ".join(PLACEHOLDERS.values()).split():
        text = text.replace(value, _OWN.get(value, value.replace("0aaaaaaaaaaaaaaa", "0a1b2c3d4e5f6071")))
    (tmp_path / "values.yaml").write_text(text)
    said = vsr("cluster", "create", "spot-gpu", "--values", str(tmp_path / "values.yaml"))
    assert isinstance(said.exception, JobError) and "aws configure" in str(said.exception), said.output
    assert "costs money" not in said.output


_OWN = {
    "203.0.113.7/32": "198.51.100.7/32",
    "my-vsr-bucket": "films-b",
    "arn:aws:iam::123456789012:policy/vsr-node-my-vsr-bucket": "arn:aws:iam::123456789012:policy/films",
    "you@example.org": "a@films.org",
}
