"""The list of runs that `vsr runs` shows to this user."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from vsr_hpc.errors import VsrError
from vsr_hpc.run.run import Run
from vsr_hpc.run.status import read_status

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    """One run in the list of a user's runs."""

    uri: str
    state: str
    frames: int
    frames_done: int


def every_run() -> tuple[RunLine, ...]:
    """The runs that this user began on this machine, oldest first; one that cannot be reached says so."""
    return tuple(_line(uri) for uri in remembered_runs())


def _line(uri: str) -> RunLine:
    try:
        found = read_status(Run.open(uri))
    except VsrError as exc:
        log.info("run not read uri=%s why=%s", uri, exc)
        return RunLine(uri=uri, state="unreachable", frames=0, frames_done=0)
    return RunLine(uri=uri, state=found.state, frames=found.frames, frames_done=found.frames_done)


def remembered_runs() -> tuple[str, ...]:
    """URIs of the runs that this user began on this machine and that still exist."""
    uris = []
    for path in sorted(_register().glob("*.json"), key=lambda each: each.stat().st_mtime):
        try:
            uri = str(json.loads(path.read_text(encoding="utf-8"))["uri"])
        except (OSError, ValueError, KeyError):
            continue
        if "://" in uri or (Path(uri) / "places").is_dir():
            uris.append(uri)
        else:
            path.unlink(missing_ok=True)
    return tuple(uris)


def forget(uri: str) -> None:
    """Take a run off the list of `vsr runs`; its files stay."""
    _entry(uri).unlink(missing_ok=True)


def remember(run: Run) -> None:
    """For `vsr runs`; a user whose home cannot be written to goes without."""
    entry = _entry(run.uri)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.write_text(json.dumps({"uri": run.uri}), encoding="utf-8")
    except OSError as exc:
        log.info("run not remembered for `vsr runs` folder=%s why=%s", entry.parent, exc.strerror)


def _entry(uri: str) -> Path:
    return _register() / f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}.json"


def _register() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "vsr_hpc" / "runs"
