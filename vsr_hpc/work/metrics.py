"""A worker's figures for the outside: CloudWatch (EMF lines or put_metric_data) and Prometheus' textfile.

Off unless the job or a flag asks. What is said is the worker's own heartbeat; names are in docs/metrics.md.
Nothing here may fail or slow the work: a thread of its own publishes, and what cannot be published is logged.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

from vsr_hpc.run.documents import Heartbeat

log = logging.getLogger(__name__)


NAMESPACE = "vsr_hpc"
EVERY_S = 60.0
Push = Literal["none", "emf", "cloudwatch"]
_INTERRUPTIONS = frozenset({"spot notice", "time limit", "terminated"})
_UNITS = {
    "FramesDone": "Count",
    "ShardsDone": "Count",
    "ShardsFailed": "Count",
    "FramesPerSecond": "Count/Second",
    "DeviceBusy": "Percent",
    "WorkersAlive": "Count",
    "Interruptions": "Count",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What happened between two looks at a worker."""

    run: str
    worker: str
    node: str
    moment_s: float
    values: dict[str, float]


class Sink(Protocol):
    def publish(self, figures: Figures, beat: Heartbeat) -> None: ...
    def close(self) -> None: ...


def figures_between(run: str, before: Heartbeat | None, now: Heartbeat, span_s: float) -> Figures:
    """Counts since the last look, so that CloudWatch may add up workers; speeds and shares of that time."""
    frames = now.frames - (before.frames if before else 0)
    device = _spent(before, now, "device")
    waited = _spent(before, now, "device_wait")
    is_over = now.state == "left"
    values = {
        "FramesDone": float(frames),
        "ShardsDone": float(now.shards - (before.shards if before else 0)),
        "ShardsFailed": float(now.failed - (before.failed if before else 0)),
        "FramesPerSecond": round(frames / max(span_s, 1e-3), 4),
        "WorkersAlive": 0.0 if is_over else 1.0,
        "Interruptions": 1.0 if is_over and now.note in _INTERRUPTIONS else 0.0,
    }
    if device + waited > 0:  # stage clocks move when a shard is done
        values["DeviceBusy"] = round(100 * device / (device + waited), 2)
    return Figures(run=run, worker=now.worker, node=now.node, moment_s=time.time(), values=values)


def _spent(before: Heartbeat | None, now: Heartbeat, stage: str) -> float:
    return now.seconds.get(stage, 0.0) - (before.seconds.get(stage, 0.0) if before else 0.0)


class EmfLines:
    """CloudWatch's embedded metric format: one JSON object a line, from which its Logs take figures."""

    def __init__(self, stream: TextIO | None = None, namespace: str = NAMESPACE) -> None:
        self._stream, self._namespace = stream, namespace

    def publish(self, figures: Figures, beat: Heartbeat) -> None:
        print(json.dumps(emf(figures, self._namespace)), file=self._stream or sys.stderr, flush=True)

    def close(self) -> None:
        pass


def emf(figures: Figures, namespace: str = NAMESPACE) -> dict[str, Any]:
    """By run, and over all runs; worker and node can be asked for in Logs Insights."""
    metrics = [{"Name": name, "Unit": _UNITS[name]} for name in figures.values]
    return {
        "_aws": {
            "Timestamp": int(1000 * figures.moment_s),
            "CloudWatchMetrics": [{"Namespace": namespace, "Dimensions": [["Run"], []], "Metrics": metrics}],
        },
        "Run": figures.run,
        "Worker": figures.worker,
        "Node": figures.node,
        **figures.values,
    }


class CloudWatch:
    """The same figures by the API, for workers whose logs do not go to CloudWatch."""

    def __init__(self, client: Any = None, namespace: str = NAMESPACE) -> None:
        self._client, self._namespace = client, namespace

    def publish(self, figures: Figures, beat: Heartbeat) -> None:
        if self._client is None:
            from vsr_hpc.aws.account import client

            self._client = client("cloudwatch")
        dimensions: tuple[list[dict[str, str]], ...] = ([{"Name": "Run", "Value": figures.run[-255:]}], [])
        self._client.put_metric_data(
            Namespace=self._namespace,
            MetricData=[
                {
                    "MetricName": name,
                    "Dimensions": each,
                    "Timestamp": figures.moment_s,
                    "Value": value,
                    "Unit": _UNITS[name],
                }
                for name, value in figures.values.items()
                for each in dimensions
            ],
        )

    def close(self) -> None:
        pass


class Textfile:
    """A file for the node exporter's textfile collector; it goes when the worker does."""

    def __init__(self, folder: Path, worker: str) -> None:
        self._path = folder / f"vsr_hpc-{worker}.prom"

    def publish(self, figures: Figures, beat: Heartbeat) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            temporary.write_text(exposition(figures.run, beat), encoding="utf-8")
            temporary.replace(self._path)
        finally:
            temporary.unlink(missing_ok=True)

    def close(self) -> None:
        self._path.unlink(missing_ok=True)


def exposition(run: str, beat: Heartbeat) -> str:
    """A worker's counters in Prometheus' text format."""
    who = f'run="{_quoted(run)}",worker="{_quoted(beat.worker)}",node="{_quoted(beat.node)}"'
    rows = [
        ("vsr_frames_total", "counter", "Frames made.", [("", float(beat.frames))]),
        ("vsr_shards_total", "counter", "Shards done.", [("", float(beat.shards))]),
        ("vsr_shards_failed_total", "counter", "Attempts that failed.", [("", float(beat.failed))]),
        (
            "vsr_stage_seconds_total",
            "counter",
            "Seconds of each stage, busy or waiting.",
            [(f',stage="{_quoted(stage)}"', spent) for stage, spent in sorted(beat.seconds.items())],
        ),
        ("vsr_worker_up", "gauge", "1 while the worker lives.", [("", float(beat.state != "left"))]),
        ("vsr_worker_heartbeat_seconds", "gauge", "When it last spoke.", [("", beat.updated_s)]),
    ]
    lines = []
    for name, kind, text, samples in rows:
        if samples:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{{{who}{more}}} {value!r}" for more, value in samples]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def sinks_of(push: Push, prometheus: str | None, worker: str) -> tuple[Sink, ...]:
    """What a job or a flag asked for."""
    found: list[Sink] = []
    if push == "emf":
        found.append(EmfLines())
    if push == "cloudwatch":
        found.append(CloudWatch())
    if prometheus is not None:
        found.append(Textfile(Path(prometheus), worker))
    return tuple(found)


class Telemetry:
    """Publishes at regular times, and once more at the end, from a thread of its own."""

    def __init__(self, run: str, sinks: tuple[Sink, ...], every_s: float = EVERY_S) -> None:
        self._run, self._sinks, self._every_s = run, sinks, every_s
        self._now: Heartbeat | None = None
        self._told: Heartbeat | None = None
        self._told_at = time.monotonic()
        self._failed: set[int] = set()

    def observe(self, beat: Heartbeat) -> None:
        """Takes note only: whoever calls is at work."""
        self._now = beat

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Nothing at all happens where nobody asked for figures."""
        if not self._sinks:
            yield
            return
        ended = threading.Event()

        def publish_on() -> None:
            while not ended.wait(self._every_s):
                self._publish()

        thread = threading.Thread(target=publish_on, name="telemetry", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._publish()
            for number, sink in enumerate(self._sinks):
                self._guarded(number, sink.close)

    def _publish(self) -> None:
        beat, at = self._now, time.monotonic()
        if beat is None:
            return
        figures = figures_between(self._run, self._told, beat, at - self._told_at)
        self._told, self._told_at = beat, at
        for number, sink in enumerate(self._sinks):
            self._guarded(number, functools.partial(sink.publish, figures, beat))

    def _guarded(self, number: int, act: Any) -> None:
        """Said once for each sink: figures may fail for hours, and the log is for the work."""
        try:
            act()
        except Exception as exc:
            level = logging.DEBUG if number in self._failed else logging.WARNING
            self._failed.add(number)
            log.log(level, "figures not published sink=%s why=%s", type(self._sinks[number]).__name__, exc)
