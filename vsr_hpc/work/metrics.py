"""Publishes a worker's figures: for CloudWatch as lines in its log, for Prometheus as a text file.

Both are off unless the job or an option of `vsr worker` asks for them. The figures come from the worker's
heartbeat; docs/metrics.md has their names. Publishing runs in a thread of its own and never stops the work: a
figure that cannot be published is logged.
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
Push = Literal["none", "emf"]
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
    """What a worker did between two readings of its heartbeat."""

    run: str
    worker: str
    node: str
    moment_s: float
    values: dict[str, float]


class Sink(Protocol):
    def publish(self, figures: Figures, beat: Heartbeat) -> None: ...
    def close(self) -> None: ...


def figures_between(run: str, before: Heartbeat | None, now: Heartbeat, span_s: float) -> Figures:
    """The figures between two heartbeats: counts, which CloudWatch can add up, and speeds and shares."""
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
    if device + waited > 0:  # the clocks of stages advance when a shard is done
        values["DeviceBusy"] = round(100 * device / (device + waited), 2)
    return Figures(run=run, worker=now.worker, node=now.node, moment_s=time.time(), values=values)


def _spent(before: Heartbeat | None, now: Heartbeat, stage: str) -> float:
    return now.seconds.get(stage, 0.0) - (before.seconds.get(stage, 0.0) if before else 0.0)


class EmfLines:
    """CloudWatch's embedded metric format: JSON lines that CloudWatch Logs turns into metrics."""

    def __init__(self, stream: TextIO | None = None, namespace: str = NAMESPACE) -> None:
        self._stream, self._namespace = stream, namespace

    def publish(self, figures: Figures, beat: Heartbeat) -> None:
        print(json.dumps(emf(figures, self._namespace)), file=self._stream or sys.stderr, flush=True)

    def close(self) -> None:
        pass


def emf(figures: Figures, namespace: str = NAMESPACE) -> dict[str, Any]:
    """One line: metrics by run and over all runs. Worker and node can be queried in Logs Insights."""
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


class Textfile:
    """A file for the node exporter's textfile collector. It is removed when the worker ends."""

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
        ("vsr_frames_total", "counter", "Frames upscaled.", [("", float(beat.frames))]),
        ("vsr_shards_total", "counter", "Shards done.", [("", float(beat.shards))]),
        ("vsr_shards_failed_total", "counter", "Attempts that failed.", [("", float(beat.failed))]),
        (
            "vsr_stage_seconds_total",
            "counter",
            "Seconds of each stage, busy or waiting.",
            [(f',stage="{_quoted(stage)}"', spent) for stage, spent in sorted(beat.seconds.items())],
        ),
        ("vsr_worker_up", "gauge", "1 while the worker runs.", [("", float(beat.state != "left"))]),
        ("vsr_worker_heartbeat_seconds", "gauge", "Time of its last heartbeat.", [("", beat.updated_s)]),
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
    """The sinks that a job or an option asks for."""
    found: list[Sink] = []
    if push == "emf":
        found.append(EmfLines())
    if prometheus is not None:
        found.append(Textfile(Path(prometheus), worker))
    return tuple(found)


class Telemetry:
    """Publishes at regular intervals, and once more at the end, from a thread of its own."""

    def __init__(self, run: str, sinks: tuple[Sink, ...], every_s: float = EVERY_S) -> None:
        self._run, self._sinks, self._every_s = run, sinks, every_s
        self._now: Heartbeat | None = None
        self._published: Heartbeat | None = None
        self._published_s = time.monotonic()
        self._failed: set[int] = set()

    def observe(self, beat: Heartbeat) -> None:
        """Remember the newest heartbeat. Returns at once, since the caller is at work."""
        self._now = beat

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Publish until the block ends. Starts no thread where there is no sink."""
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
                self._try(number, sink.close)

    def _publish(self) -> None:
        beat, at = self._now, time.monotonic()
        if beat is None:
            return
        figures = figures_between(self._run, self._published, beat, at - self._published_s)
        self._published, self._published_s = beat, at
        for number, sink in enumerate(self._sinks):
            self._try(number, functools.partial(sink.publish, figures, beat))

    def _try(self, number: int, act: Any) -> None:
        """Log the first failure of each sink as a warning, the others for debugging only."""
        try:
            act()
        except Exception as exc:
            level = logging.DEBUG if number in self._failed else logging.WARNING
            self._failed.add(number)
            log.log(level, "figures not published sink=%s why=%s", type(self._sinks[number]).__name__, exc)
