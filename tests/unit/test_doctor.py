"""`vsr doctor`: every line is good or names its way out; the exit code tells which."""

from __future__ import annotations

import json
import socket
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vsr_hpc import doctor
from vsr_hpc.cli.main import app
from vsr_hpc.doctor import CHECKS, diagnose, encoder_problem
from vsr_hpc.errors import BackendError, JobError
from vsr_hpc.executors.slurm.commands import Partition, partitions

_SINFO = "gpu-spot|12|gpu:a10g:1(S:0)\ngpu-spot|4|gpu:a10g:1\ncpu|3|(null)\n"


@pytest.fixture
def _bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no credentials, no home with anything in it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setattr(urllib.request, "_opener", None)
    for name in ("no_proxy", "NO_PROXY", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("_bare")
def test_all_that_is_not_good_has_a_way_out_and_absence_alone_is_no_fault() -> None:
    found = {each.name: each for each in diagnose()}
    assert list(found) == list(CHECKS)
    assert all(each.way_out for each in found.values() if each.state != "ok"), found
    assert [found[name].state for name in ("python", "ffmpeg", "encoders", "weights")] == ["ok"] * 4
    assert {found[name].state for name in ("network", "slurm", "aws")} == {"absent"}
    assert "connection refused" in found["network"].text
    assert "libx264" in found["encoders"].text and "vsr-video-x4" in found["weights"].text


@pytest.mark.usefixtures("_bare")
def test_what_is_named_must_be_there() -> None:
    done = CliRunner().invoke(app, ["doctor", "slurm", "--json"])
    assert done.exit_code == 1
    [found] = json.loads(done.stdout)
    assert (found["name"], found["state"]) == ("slurm", "problem") and "login" in found["way_out"]
    assert CliRunner().invoke(app, ["doctor", "ffmpeg", "python"]).exit_code == 0
    with pytest.raises(JobError, match="there is no check gpus"):
        diagnose(["gpus"])


def test_an_error_of_a_check_is_its_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> tuple[doctor.State, str, str]:
        raise BackendError("AWS was not reached")

    monkeypatch.setitem(CHECKS, "aws", refuse)
    [found] = diagnose(["aws"])
    assert (found.state, found.text) == ("problem", "AWS was not reached")


def test_an_encoder_that_does_not_open_says_why() -> None:
    assert encoder_problem("libx264") is None
    assert "no_such_encoder" in (encoder_problem("no_such_encoder") or "")


@pytest.mark.usefixtures("_bare")
def test_partitions_are_counted_with_their_gpus(tmp_path: Path) -> None:
    """The text is what Slurm 23.11 prints; tests/slurm asks a real one."""
    sinfo = tmp_path / "sinfo"
    sinfo.write_text(f"#!/bin/sh\nwhile read -r line; do echo \"$line\"; done <<'END'\n{_SINFO}END\n")
    sinfo.chmod(0o755)
    assert partitions() == (
        Partition(name="gpu-spot", nodes=16, gpus=("gpu:a10g:1",)),
        Partition(name="cpu", nodes=3, gpus=()),
    )
