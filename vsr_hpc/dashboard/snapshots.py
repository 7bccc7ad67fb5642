"""What the live page knows of a run: its state now, and what is new since it was last told."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vsr_hpc.errors import VsrError
from vsr_hpc.launch import whole_status
from vsr_hpc.report import facts
from vsr_hpc.report.history import History, read_history, read_receipts
from vsr_hpc.report.pictures import Scene, show_latest
from vsr_hpc.report.report import NAME, shown_history
from vsr_hpc.run.documents import Receipt
from vsr_hpc.run.run import Run
from vsr_hpc.run.status import RunStatus
from vsr_hpc.storage.store import MissingObject

log = logging.getLogger(__name__)


_PLANNING_S = 600.0
"""A local run without a plan is being planned, unless it is older than this."""
_LOG_FILES = 4
_LOG_LINES = 80
_PICTURE_EVERY_S = 5.0
_LOG_BYTES = 16 << 10


def run_id(uri: str) -> str:
    """A run's name in addresses: nothing about a path can be asked with it."""
    return hashlib.sha256(uri.encode()).hexdigest()[:16]


@dataclass(slots=True)
class Watched:
    """One run, read at most once in a while however many pages look at it."""

    uri: str
    every_s: float = 0.7
    generation: int = 0
    """Raised where another run came to stand in this one's place."""
    _began_s: float = 0.0
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _receipts: dict[int, Receipt] = field(default_factory=dict)
    _read_at: float = float("-inf")
    _run: Run | None = None
    _status: RunStatus | None = None
    _history: History | None = None
    _log: tuple[str, ...] = ()
    _picture_guard: threading.Lock = field(default_factory=threading.Lock)
    _picture: Scene | None = None
    _picture_key: tuple[int, int, bool] | None = None
    _pictured_at: float = float("-inf")

    def look(self) -> tuple[Run, RunStatus, History, tuple[str, ...]]:
        """Raises VsrError where the run cannot be read."""
        with self._guard:
            run = self._run or Run.open(self.uri)
            pause_s = self.every_s * max(1.0, run.store.poll_s / 5)  # a look costs requests on S3
            is_fresh = time.monotonic() - self._read_at < pause_s
            if self._run is None or not is_fresh or self._status is None or self._history is None:
                status = whole_status(run)
                if self._is_another(status):
                    run = Run.open(self.uri)
                    status = whole_status(run)
                    self._receipts.clear()
                    self.generation += 1
                if run.has_plan():
                    new = run.finished() - self._receipts.keys()
                    self._receipts.update((each.shard, each) for each in read_receipts(run, new))
                self._history = read_history(run, tuple(self._receipts.values()), status.workers)
                self._log = _tail(run)
                self._run, self._status, self._read_at = run, status, time.monotonic()
            assert self._status is not None
            assert self._history is not None
            return run, self._status, self._history, self._log

    def picture(self) -> Scene | None:
        """A finished frame before and after; made anew at most every few seconds."""
        run, status, _, _ = self.look()
        with self._picture_guard:
            key = (self.generation, status.shards_done, status.done is not None)
            is_due = time.monotonic() - self._pictured_at > _PICTURE_EVERY_S
            if run.has_plan() and key != self._picture_key and (is_due or self._picture is None):
                with contextlib.suppress(MissingObject):  # the merge has removed the segment meanwhile
                    self._picture = show_latest(run, tuple(self._receipts.values()))
                self._picture_key, self._pictured_at = key, time.monotonic()
            return self._picture

    def _is_another(self, status: RunStatus) -> bool:
        """Whether the run was thrown away and begun anew since the last look."""
        began = status.rounds[0].submitted_s if status.rounds else 0.0
        before, self._began_s = self._began_s, began
        return bool(before) and began != before


@dataclass(slots=True)
class Telling:
    """One page's view of one run: what it was told already is not sent again."""

    watched: Watched
    _told: set[int] = field(default_factory=set)
    _base_s: float | None = None
    _generation: int = -1

    def snapshot(self) -> dict[str, Any]:
        run, status, history, lines = self.watched.look()
        is_fresh = self._generation != self.watched.generation
        if is_fresh:
            self._told.clear()
            self._base_s, self._generation = None, self.watched.generation
        if self._base_s is None and history.lanes:
            self._base_s = history.start_s
        whole = shown_history(history, self._base_s)
        bars = [bar for bar in whole["bars"] if bar[3] not in self._told]
        self._told.update(bar[3] for bar in bars)
        return {
            **_named(run),
            **line_of(status),
            "state": shown_state(run, status),
            "is_fresh": is_fresh,
            "shards": status.shards,
            "shards_done": status.shards_done,
            "shards_running": status.shards_running,
            "fps": status.fps,
            "fps_overall": status.fps_overall,
            "eta_s": status.eta_s,
            "workers": [_worker(each) for each in status.workers[-500:]],
            "poisoned": [each.model_dump(mode="json") for each in status.poisoned],
            "queue": list(status.queue),
            "history": {**whole, "bars": bars},
            "log": list(lines),
            "has_report": run.store.exists(NAME),
            "output": status.done.output if status.done else None,
        }


def line_of(status: RunStatus) -> dict[str, Any]:
    """A run in the list of runs."""
    return {
        "id": run_id(status.uri),
        "uri": status.uri,
        "state": status.state,
        "frames": status.frames,
        "frames_shown": status.frames_shown,
    }


def shown_state(run: Run, status: RunStatus) -> str:
    """The state in words of the page. A run whose workers are about to begin is no run that was left."""
    if status.state == "finishing":
        return "merging"
    if status.rounds and status.state == "incomplete":
        latest = status.rounds[-1]
        has_begun = any(each.heartbeat.round == latest.number for each in status.workers)
        is_fresh = run.store.now_s() - latest.submitted_s < run.lease_window_s
        return "starting" if is_fresh and not has_begun else "incomplete"
    if status.state == "waiting" and not status.rounds and run.job().on == "local":
        written = [each.modified_s for each in run.store.list("job.json")]
        is_fresh = bool(written) and run.store.now_s() - written[0] < _PLANNING_S
        return "planning" if is_fresh else "waiting"
    return status.state


def unreachable(uri: str, why: str) -> dict[str, Any]:
    return {"id": run_id(uri), "uri": uri, "state": "unreachable", "frames": 0, "frames_shown": 0, "why": why}


def read_line(watched: Watched) -> dict[str, Any]:
    try:
        run, status, _, _ = watched.look()
        named = _named(run)
        return {
            **line_of(status),
            "state": shown_state(run, status),
            "name": named["name"],
            "model": named["model"],
            "fps": status.fps,
            "began_s": status.rounds[0].submitted_s if status.rounds else None,
            "shards_done": status.shards_done,
        }
    except VsrError as exc:
        return {**unreachable(watched.uri, str(exc)), "name": facts.name_of(watched.uri)}


def _named(run: Run) -> Mapping[str, Any]:
    if not run.has_plan():
        job = run.job()
        return {
            "name": facts.name_of(job.output),
            "source_name": facts.name_of(job.input),
            "model": job.model,
        }
    plan = run.plan
    return {
        "name": facts.name_of(plan.job.output),
        "source_name": facts.name_of(plan.clip.uri),
        "model": plan.card.name,
        "size_in": [plan.clip.picture.width, plan.clip.picture.height],
        "size_out": [plan.picture.width, plan.picture.height],
    }


def _worker(found: Any) -> dict[str, Any]:
    beat = found.heartbeat
    state = beat.state if found.is_alive or beat.state == "left" else "dead"
    return {
        "worker": beat.worker,
        "node": beat.node,
        "state": state,
        "note": beat.note,
        "shard": beat.shard,
        "shard_frames": beat.shard_frames,
        "frames": beat.frames,
        "fps": found.fps,
        "age_s": found.age_s,
    }


def _tail(run: Run) -> tuple[str, ...]:
    """The last lines of the logs that were written last, in the order of their times."""
    newest = sorted(run.store.list("logs/"), key=lambda each: each.modified_s)[-_LOG_FILES:]
    lines = []
    for each in newest:
        text = run.store.read(each.name)[-_LOG_BYTES:].decode(errors="replace")
        short = each.name.removeprefix("logs/").removesuffix(".log")
        lines += [(line[:23], f"{short}  {line[24:]}") for line in text.splitlines()[-_LOG_LINES:] if line]
    return tuple(f"{when[11:19]}  {text}" for when, text in sorted(lines)[-_LOG_LINES:])
