from __future__ import annotations

import io
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from tests.require import require
from tests.runs import planned_run, tiny_job
from vsr_hpc.errors import JobError
from vsr_hpc.run.documents import Heartbeat
from vsr_hpc.system.interrupts import StopFlag
from vsr_hpc.work.metrics import (
    EmfLines,
    Figures,
    Telemetry,
    Textfile,
    emf,
    exposition,
    figures_between,
)
from vsr_hpc.work.worker import WorkerOptions, work

ROOT = Path(__file__).parents[2]


def beat(**changes: Any) -> Heartbeat:
    return Heartbeat.model_validate(
        {"worker": "w-1", "host": "h", "node": "gpu-1", "pid": 1, "process_start": 1, "boot": "b", **changes}
    )


def test_counts_are_those_since_the_last_look() -> None:
    before = beat(frames=100, shards=2, seconds={"device": 10.0, "device_wait": 0.0})
    now = beat(frames=160, shards=3, failed=1, seconds={"device": 19.0, "device_wait": 1.0})
    values = figures_between("run", before, now, 30.0).values
    assert values == {
        "FramesDone": 60,
        "ShardsDone": 1,
        "ShardsFailed": 1,
        "FramesPerSecond": 2,
        "WorkersAlive": 1,
        "Interruptions": 0,
        "DeviceBusy": 90,
    }


@pytest.mark.parametrize(("note", "count"), [("spot notice", 1), ("", 0), ("cancelled", 0)])
def test_a_worker_that_was_taken_away_counts_as_an_interruption(note: str, count: int) -> None:
    values = figures_between("run", None, beat(state="left", note=note), 1.0).values
    assert (values["Interruptions"], values["WorkersAlive"]) == (count, 0)


def test_an_emf_line_has_every_figure_that_it_announces() -> None:
    stream = io.StringIO()
    figures = figures_between("run", None, beat(frames=5), 1.0)
    EmfLines(stream).publish(figures, beat())
    line = json.loads(stream.getvalue())
    (announced,) = line["_aws"]["CloudWatchMetrics"]
    assert announced["Namespace"] == "vsr_hpc"
    assert announced["Dimensions"] == [["Run"], []]
    assert all(isinstance(line[each["Name"]], float) for each in announced["Metrics"])
    assert line["Run"] == "run"


def test_prometheus_text_is_quoted_and_typed() -> None:
    text = exposition('a"b\\c\nd', beat(frames=7, seconds={"decode": 1.5}))
    assert 'run="a\\"b\\\\c\\nd"' in text
    assert "# TYPE vsr_frames_total counter" in text
    assert any(line.startswith("vsr_frames_total{") and line.endswith(" 7.0") for line in text.splitlines())
    assert 'stage="decode"} 1.5' in text


def test_a_real_worker_publishes_what_it_did_and_takes_its_file_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    run = planned_run(tiny_job(tmp_path, run={"metrics": "emf", "prometheus": str(tmp_path / "prom")}))
    publish = Textfile.publish

    def noted(self: Textfile, figures: Figures, now: Heartbeat) -> None:
        publish(self, figures, now)
        seen.extend(path.read_text() for path in (tmp_path / "prom").glob("*.prom"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Textfile, "publish", noted)
        work(run.uri, WorkerOptions(threads=1), StopFlag())
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith('{"_aws"')]
    assert sum(line["FramesDone"] for line in lines) == 24
    assert sum(line["ShardsDone"] for line in lines) == run.plan.shard_count
    assert "vsr_frames_total" in seen[-1]
    assert list((tmp_path / "prom").iterdir()) == []


def test_a_sink_that_fails_is_said_once_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def publish(self, figures: Figures, now: Heartbeat) -> None:
            raise OSError("no route")

        def close(self) -> None:
            raise OSError("no route")

    telemetry = Telemetry("run", (Broken(),), every_s=0.01)
    with telemetry.running():
        telemetry.observe(beat())
    warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "no route" in warnings[0].message


def test_the_names_are_documented_and_the_alarms_use_them() -> None:
    names = set(figures_between("run", None, beat(seconds={"device": 1.0}), 1.0).values)
    guide = (ROOT / "docs" / "metrics.md").read_text()
    assert all(f"`{name}`" in guide for name in names)
    told = {line.split("{")[0].split()[-1] for line in exposition("r", beat(seconds={"a": 1.0})).splitlines()}
    assert all(f"`{name}`" in guide for name in told if name.startswith("vsr_"))
    alarms = (ROOT / "cluster-config" / "cloudformation" / "alarms.yaml").read_text()
    used = set(re.findall(r"MetricName: (\w+)", alarms))
    assert used
    assert used <= names
    assert emf(figures_between("r", None, beat(), 1.0))["_aws"]["CloudWatchMetrics"][0]["Namespace"] in alarms


def test_cfn_lint_finds_nothing_in_the_alarms() -> None:
    try:
        from cfnlint.api import lint
        from cfnlint.config import ManualArgs
    except ImportError as exc:
        require("aws", f"cfn-lint is not installed ({exc})")
    text = (ROOT / "cluster-config" / "cloudformation" / "alarms.yaml").read_text()
    assert lint(text, config=ManualArgs(regions=["eu-central-1"])) == []
    assert "AWSTemplateFormatVersion" in text


def test_an_unknown_way_is_refused_by_the_job(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"run\.metrics"):
        tiny_job(tmp_path, run={"metrics": "carrier pigeon"})
