"""What is kept of a run that has ended, and what can be removed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vsr_hpc.errors import JobError
from vsr_hpc.run.names import parse_heartbeat, parse_lease, parse_receipt, parse_round
from vsr_hpc.run.run import Run
from vsr_hpc.run.status import read_status
from vsr_hpc.storage.folder_store import FolderStore
from vsr_hpc.storage.opening import open_store
from vsr_hpc.wording import duration, plural

Kept = Literal["report", "nothing"]
_RECORDS = ("timeline.bin", "estimate.json", "platform.json", "card.json")
_PARSERS: dict[str, Callable[[str], object]] = {
    "receipts": parse_receipt,
    "leases": parse_lease,
    "workers": parse_heartbeat,
    "rounds": parse_round,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """What a run has left beside its output."""

    run: Run
    state: str
    size_bytes: int
    idle_s: float
    """Seconds since the run was finished, or since a worker last wrote."""


def keep_only(run: Run, kept: Kept) -> None:
    """Leave a run that nobody works on its report and one file of records, or nothing at all.

    A run on S3 keeps its records as they are: objects there are in nobody's way.
    """
    if kept == "nothing":
        run.remove()
    elif isinstance(run.store, FolderStore):
        run.store.pack(facts.name for facts in run.store.list("") if _is_record(facts.name))


def _is_record(name: str) -> bool:
    """Whether an object is a record of the run's own: files that others have put there are left alone."""
    parse = _PARSERS.get(name.partition("/")[0])
    return name in _RECORDS or name.startswith("logs/") or (parse is not None and parse(name) is not None)


def look_at(run: Run) -> Leftover:
    """How large a run is, and since when nothing has happened to it."""
    status = read_status(run)
    if "://" in run.uri:
        size_bytes = sum(facts.size_bytes for facts in open_store(run.uri).list(""))
    else:
        files = (path for path in Path(run.uri).rglob("*") if path.is_file())
        size_bytes = sum(path.stat().st_size for path in files)
    last = max((each.heartbeat.updated_s for each in status.workers), default=run.begun_s() or 0.0)
    ended = status.done.finished_s if status.done is not None else last
    return Leftover(run=run, state=status.state, size_bytes=size_bytes, idle_s=max(0.0, time.time() - ended))


def refuse_removal(left: Leftover, *, is_unfinished_too: bool) -> None:
    """JobError where somebody works on the run, or where removing it would lose finished work."""
    run, status = left.run, read_status(left.run)
    if status.alive:
        raise JobError(f"{run.uri}: workers are still at it; `vsr cancel {run.uri}` stops them")
    if left.state != "complete" and not is_unfinished_too:
        receipts = run.receipts() if run.has_plan() else ()
        lost = duration(sum(each.finished_s - each.started_s for each in receipts))
        held = f"{lost} of work ({plural(len(receipts), 'shard')})" if receipts else "no finished shard"
        raise JobError(
            f"{run.uri}: this run is {left.state} and holds {held}; `vsr resume {run.uri}` continues it, "
            "--unfinished removes it"
        )
