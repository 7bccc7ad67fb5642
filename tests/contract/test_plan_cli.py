"""`vsr plan`, its --deadline, --budget and --serve, and `vsr prices`, as a person and a program meet them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.clips import numbered_clip
from tests.commands import Said, vsr


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("STATE", "CACHE", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return numbered_clip(tmp_path_factory.mktemp("clip") / "clip.mkv", frames=12)


def planned(clip: Path, *more: object) -> Said:
    return vsr("plan", clip, "out.mkv", "--model", "bicubic", "--preset", "ultrafast", *more)


def test_a_plan_tells_time_and_cost_of_every_place_and_writes_nothing(clip: Path, here: Path) -> None:
    said = planned(clip)
    assert said.code == 0, said.err
    for place in (
        "this machine",
        "Slurm cluster, Spot",
        "AWS Batch, on demand",
        "SageMaker async",
        "EC2 with",
    ):
        assert re.search(rf"^{place}.*\d+ (s|min) \(", said.out, re.M), (place, said.out)
    assert "list prices of" in said.out
    assert "frames/s here, measured on" in said.out
    assert list(here.iterdir()) == []


def test_lines_of_a_plan_fit_a_window(clip: Path) -> None:
    said = planned(clip, "--deadline", "1h")
    assert max(len(line) for line in said.out.splitlines() if not line.startswith("input")) <= 120


def test_scaled_figures_are_marked_and_measured_ones_are_not(clip: Path) -> None:
    rows = {line[:12]: line for line in planned(clip).out.splitlines()}
    assert "~" not in rows["this machine"] and "~" in rows["AWS Batch, S"]


def test_a_plan_as_json_is_the_plan_with_its_estimate(clip: Path) -> None:
    answer = planned(clip, "--json", "--region", "eu-central-1").json
    assert answer["chunk_borders"] == [0, 12]
    estimate = answer["estimate"]
    assert estimate["region"] == "eu-central-1"
    assert estimate["here"]["usd"] is None and estimate["here"]["basis"] == "measured"
    for each in estimate["elsewhere"]:
        assert each["seconds"]["low"] <= each["seconds"]["mid"] <= each["seconds"]["high"]
        assert each["usd"]["mid"] > 0


def test_a_deadline_and_a_budget_choose(clip: Path) -> None:
    said = planned(clip, "--deadline", "2h", "--budget", "5")
    assert "advice   take this machine with 1 worker" in said.out
    choice = planned(clip, "--deadline", "2h", "--json").json["estimate"]["choice"]
    assert choice["option"]["where"] == "local" and choice["is_certain"]


def test_where_nothing_fits_the_way_out_is_said(clip: Path) -> None:
    said = planned(clip, "--deadline", "10ms")
    assert said.code == 0
    assert "advice   nothing fits; the fastest is this machine" in said.out


def test_a_dry_run_of_submit_shows_the_same(clip: Path, here: Path) -> None:
    said = vsr("submit", clip, "out.mkv", "--model", "bicubic", "--dry-run")
    assert said.code == 0 and "AWS Batch, Spot" in said.out
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--deadline", "soon"), "--deadline 'soon' is not a length of time; write 90s, 30m, 2h or 1d"),
        (("--deadline", "0"), "is not a length of time"),
        (("--budget", "-1"), "--budget"),
    ],
)
def test_wishes_that_are_none_are_refused(clip: Path, arguments: tuple[str, ...], words: str) -> None:
    said = planned(clip, *arguments)
    assert said.code == 2 and words in said.err and said.out == ""


# --serve


def test_serving_is_weighed_with_cost_and_reason() -> None:
    said = vsr("plan", "--serve", "--model", "realesr-animevideov3", "--requests", "50000/day")
    assert said.code == 0, said.err
    assert "advice   SageMaker real-time" in said.out
    for label in ("serverless", "async", "batch transform", "EC2 with Docker", "Slurm cluster"):
        assert label in said.out


def test_serving_as_json_names_every_way() -> None:
    answer = vsr(
        "plan", "--serve", "--payload", "500MB", "--answer", "900MB", "--latency", "1h", "--pictures", "900",
        "--traffic", "intermittent", "--requests", "20/day", "--model", "realesr-animevideov3", "--json",
    ).json  # fmt: skip
    assert answer["advice"] == "async"
    ways = {each["way"]: each for each in answer["offers"]}
    assert set(ways) == {"real-time", "serverless", "async", "batch-transform", "ec2", "slurm"}
    assert ways["async"]["usd_per_month"] > 0 and not ways["serverless"]["fits"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("x.yaml",), "takes no job"),
        (("--payload", "huge"), "--payload 'huge' is not a size; write 500KB"),
        (("--requests", "many"), "--requests 'many': write 1000/day"),
        (("--picture", "big"), "--picture 'big' is not a size"),
        (("--instance", "z9.huge"), "'z9.huge' is not an instance type"),
        (("--instance", "c7i.2xlarge", "--model", "RealESRGAN_x4plus"), "has no GPU"),
        (("--crf", "3"), "--crf: has no meaning for a service"),
        (("--model", "nonsense"), "'nonsense' is not known"),
    ],
)
def test_what_cannot_be_weighed_is_refused(arguments: tuple[str, ...], words: str) -> None:
    said = vsr("plan", "--serve", *arguments)
    assert said.code == 2 and words in said.err and said.out == ""


def test_a_plan_without_a_job_says_what_is_missing() -> None:
    said = vsr("plan", "--deadline", "2h")
    assert said.code == 2 and "name a job file" in said.err


# Prices


def test_prices_in_use_are_shown_with_their_date() -> None:
    said = vsr("prices", "show", "g4dn.xlarge", "ml.g5.xlarge")
    assert said.code == 0
    assert re.search(r"^g4dn\.xlarge +\$0\.2209 +\$0\.5260 +\$0\.7364$", said.out, re.M)
    assert "list prices of" in said.out
    rows = vsr("prices", "show", "--region", "eu-west-1", "--json").json["usd_per_hour"]
    assert rows["g5.xlarge"]["on-demand"] == pytest.approx(1.006 * 1.11)


def test_the_region_is_that_of_every_aws_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert vsr("prices", "show", "--json").json["region"] == "eu-west-1"
    assert vsr("prices", "show", "--json", "--region", "us-west-2").json["region"] == "us-west-2"


def test_refreshing_without_credentials_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    said = vsr("prices", "refresh", "--region", "eu-west-1")
    assert said.code == 2 and "credentials are needed" in said.err and said.err.count("\n") == 1
    assert vsr("prices", "refresh", "--region", "../x").code == 2


def test_refreshed_prices_are_used_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "vsr_hpc" / "prices"
    folder.mkdir(parents=True)
    answer = {
        "version": 1, "region": "us-east-1", "date": "2026-12-24", "on_demand": {"g5.xlarge": 9.0},
        "spot": {"g5.xlarge": 3.0}, "sagemaker": {},
    }  # fmt: skip
    (folder / "us-east-1.json").write_text(json.dumps(answer))
    said = vsr("prices", "show", "g5.xlarge")
    assert "$3.0000" in said.out and "prices of 2026-12-24 from AWS" in said.out
