"""The Slurm jobs of a round, and the failures that their tasks recorded."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from vsr_hpc.job.spec import RunSection, SlurmSection
from vsr_hpc.run.run import Run
from vsr_hpc.storage.store import MissingObject


class RoundJobs(BaseModel):
    """What was submitted for a round; written once, after sbatch answered."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    round: int
    folder: str
    workers: tuple[str, ...] = ()
    standby: tuple[str, ...] = ()
    finish: tuple[str, ...] = ()
    slurm: SlurmSection
    run: RunSection
    error: str = ""

    def text(self) -> str:
        if self.error:
            return f"round {self.round} could not be submitted: {self.error}"
        parts = [f"round {self.round}: workers are job {', '.join(self.workers)}"]
        if self.standby:
            parts.append(f"on standby as {', '.join(self.standby)}")
        return ", ".join(parts) + (f", vsr finish follows as {self.finish[0]}" if self.finish else "")


def names_of(run: Run) -> Names:
    stem = run.uri.rstrip("/").rpartition("/")[2]
    readable = re.sub(r"[^A-Za-z0-9.-]", "-", stem)[:24].strip("-")
    return Names(run=f"vsr-{readable}-{hashlib.sha256(run.place_uri.encode()).hexdigest()[:8]}")


def jobs_of(run: Run, number: int) -> RoundJobs | None:
    """What round `number` submitted to Slurm; None before that is known."""
    try:
        return RoundJobs.model_validate_json(run.store.read(f"jobs/{number}.json"))
    except MissingObject:
        return None


def failure_lines(run: Run, number: int) -> str:
    """What tasks of a round said when they could not go on, each text once."""
    jobs = jobs_of(run, number)
    if jobs is None:
        return ""
    said = Counter((each.code, each.text) for each in failures(Path(jobs.folder)))
    where = {(each.code, each.text): each for each in failures(Path(jobs.folder))}
    return "\n".join(
        f"{count} task{'s' * (count > 1)} ended with {code} (last {where[code, text].job} on "
        f"{where[code, text].node}): {text}"
        for (code, text), count in said.most_common(5)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The Slurm job names of one run; they alone are enough to find its jobs."""

    run: str

    @property
    def workers(self) -> str:
        return self.run

    @property
    def standby(self) -> str:
        return f"{self.run}-standby"

    @property
    def finish(self) -> str:
        return f"{self.run}-finish"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a task ended that could not go on; beside submitit's files, as the run may be unseen."""

    job: str
    node: str
    code: int
    text: str
    after_s: float = 0.0
    times: int = 1
    """How often the task ended so."""


def failures(folder: Path) -> tuple[Failure, ...]:
    """What tasks left behind that ended with an error."""
    found = []
    for path in sorted(folder.glob("*.failed.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append(Failure(**json.loads(path.read_text(encoding="utf-8"))))
    return tuple(found)
