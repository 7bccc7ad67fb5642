"""Rounds of workers: begins each one once, finds it again, and decides whether another one follows.

A round is announced in the run (`rounds/<k>.json`), submitted to a scheduler, and recorded with the
scheduler's ids (`jobs/<k>.json`). The record serves to show and to cancel; what is done or missing is read
from the run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from vsr_hpc.errors import BackendError, VsrError
from vsr_hpc.run.documents import Round
from vsr_hpc.run.names import shard_name
from vsr_hpc.run.run import Run
from vsr_hpc.run.status import read_status
from vsr_hpc.storage.store import MissingObject

log = logging.getLogger(__name__)

_SUBMITTING_S = 120.0
"""A round that has no record after this time was never submitted: the process that began it has died."""
_POLL_S = 0.2


class RoundRecord(BaseModel):
    """What was submitted for a round; written once, after the scheduler answered."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    round: int
    error: str = ""
    """Why the round could not be submitted; empty where it was."""


Record = TypeVar("Record", bound=RoundRecord)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission(Generic[Record]):
    """A round that is ready to be submitted."""

    most_workers: int
    submit: Callable[[Round], Record]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds(Generic[Record]):
    """The rounds that one executor submits to its scheduler."""

    executor: str
    record: type[Record]
    is_open: Callable[[Run, Record], bool | None]
    """Whether jobs of a recorded round wait or run; None where the scheduler does not know them."""

    def begin(self, run: Run, prepare: Callable[[], Submission[Record]]) -> Record:
        """Submit a round of workers; where one is under way, answer with that one.

        `prepare` brings what workers need, and runs before the round is announced.
        """
        number = run.round_number() + 1  # read first: if another process begins this round, creating it fails
        present = self.find_active(run)
        if present is not None:
            log.warning("a round is under way round=%d", present.round)
            return present
        submission = prepare()
        missing = count_open_shards(run)
        workers = count_workers(submission.most_workers, missing)
        begun = run.start_round(self.executor, workers, missing or 0, number)
        if begun is None:
            return self._wait_for_record(run, run.rounds()[-1])
        try:
            record = submission.submit(begun)
        except VsrError as exc:
            self._keep(run, self.record(round=begun.number, error=str(exc)))
            raise
        self._keep(run, record)
        log.info("round begun round=%d workers=%d", begun.number, workers)
        return record

    def find_latest(self, run: Run) -> Round | None:
        """The latest round of this executor."""
        return max(
            (each for each in run.rounds() if each.executor == self.executor),
            key=lambda each: each.number,
            default=None,
        )

    def read(self, run: Run, number: int) -> Record | None:
        """What round `number` submitted; None before that is known."""
        try:
            return self.record.model_validate_json(run.store.read(f"jobs/{number}.json"))
        except MissingObject:
            return None

    def find_active(self, run: Run) -> Record | None:
        """The record of the latest round, if that round may still get something done by itself."""
        latest = self.find_latest(run)
        if latest is None or run.control().is_cancelled(latest.number):
            return None
        record = self.read(run, latest.number)
        if record is None:
            return self._wait_for_record(run, latest) if is_being_submitted(latest) else None
        if record.error:
            return None
        is_open = self.is_open(run, record)
        if is_open is None:
            is_open = any(each.heartbeat.round == latest.number for each in read_status(run).alive)
        return record if is_open else None

    def _keep(self, run: Run, record: Record) -> None:
        run.store.create(f"jobs/{record.round}.json", record.model_dump_json().encode())

    def _wait_for_record(self, run: Run, begun: Round) -> Record:
        """Wait for another process, which is submitting this round right now."""
        until = time.monotonic() + _SUBMITTING_S
        while time.monotonic() < until:
            record = self.read(run, begun.number)
            if record is not None:
                return record
            time.sleep(_POLL_S)
        raise BackendError(
            f"{run.uri}: {begun.user} began round {begun.number}, which has no jobs yet; "
            "call again in a moment"
        )


def was_refused(run: Run) -> bool:
    """Whether a scheduler refused every round of this run, so that nobody has worked or will."""
    rounds = run.rounds()
    if not rounds or run.heartbeats():
        return False
    try:
        stored = [run.store.read(f"jobs/{each.number}.json") for each in rounds]
    except MissingObject:  # a round of this machine, or one that is being submitted
        return False
    return all(RoundRecord.model_validate_json(each).error for each in stored)


def is_being_submitted(begun: Round) -> bool:
    """Whether a round without a record is so new that its process may still be submitting it."""
    return time.time() - begun.submitted_s <= _SUBMITTING_S


def count_open_shards(run: Run) -> int | None:
    """How many shards a round can make: missing and not set aside. None where there is no plan yet."""
    return len(run.missing() - set(run.control().poisoned)) if run.has_plan() else None


def count_workers(most: int, open_shards: int | None) -> int:
    """A round has no more workers than it has shards to make, and at least one."""
    return max(1, most if open_shards is None else min(most, open_shards))


def why_no_other_round(run: Run, number: int, *, is_cancelled_by_user: bool) -> str | None:
    """Why no other round begins by itself after round `number`; None where another one may help."""
    if run.round_number() != number:
        return f"round {run.round_number()} has been begun since"
    missing = run.missing()
    if missing <= set(run.control().poisoned):
        return "`vsr resume --retry-poisoned` tries them again"
    if is_cancelled_by_user:
        return "its jobs were cancelled by a person; `vsr resume` continues"
    if number >= run.job().run.max_rounds:
        return f"{number} rounds were tried (run.max_rounds); `vsr resume` tries again"
    if not _has_made_progress(run, number, missing):
        return "the last round made no shard; see `vsr logs` and `vsr status`, then `vsr resume`"
    return None


def _has_made_progress(run: Run, number: int, missing: frozenset[int]) -> bool:
    """Whether a round made a shard, or lost a worker in one: such attempts are counted, so they end."""
    begun = next(each for each in run.rounds() if each.number == number)
    if len(missing) < begun.missing or (begun.missing == 0 and run.finished()):
        return True
    workers = {beat.worker for beat in run.heartbeats() if beat.round == number}
    leases, epochs = run.leases(), run.tally().epochs
    names = (shard_name(shard, epochs.get(shard, 0)) for shard in missing)
    newest = [(name, leases[name]) for name in names if name in leases]
    return any(
        not state.is_ended and run.holder(name, state.generation).worker in workers for name, state in newest
    )
