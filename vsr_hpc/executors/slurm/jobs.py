"""The Slurm jobs of a round, and the failures that their tasks recorded."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from vsr_hpc.executors.rounds import RoundRecord, Rounds
from vsr_hpc.executors.slurm import commands as slurm
from vsr_hpc.job.spec import RunSection, SlurmSection
from vsr_hpc.run.run import Run
from vsr_hpc.wording import plural


class RoundJobs(RoundRecord):
    """The Slurm jobs of a round, and the settings that they were submitted with."""

    folder: str = ""
    workers: tuple[str, ...] = ()
    standby: tuple[str, ...] = ()
    finish: tuple[str, ...] = ()
    plan: tuple[str, ...] = ()
    slurm: SlurmSection = SlurmSection()
    run: RunSection = RunSection()

    def text(self) -> str:
        if self.error:
            return f"round {self.round} could not be submitted: {self.error}"
        parts = [f"round {self.round}: workers are job {', '.join(self.workers)}"]
        if self.plan:
            parts.append(f"after the plan's {self.plan[0]}")
        if self.standby:
            parts.append(f"on standby as {', '.join(self.standby)}")
        return ", ".join(parts) + (f", vsr finish follows as {self.finish[0]}" if self.finish else "")


def names_of(run: Run) -> Names:
    stem = run.uri.rstrip("/").rpartition("/")[2]
    readable = re.sub(r"[^A-Za-z0-9.-]", "-", stem)[:24].strip("-")
    return Names(run=f"vsr-{readable}-{hashlib.sha256(run.place_uri.encode()).hexdigest()[:8]}")


def _is_open(run: Run, jobs: RoundJobs) -> bool | None:
    names, ids = names_of(run), {*jobs.workers, *jobs.standby}
    known = [task for task in slurm.queue((names.workers, names.standby)) if task.array in ids]
    return any(not task.is_ended for task in known) if known else None


ROUNDS = Rounds(executor="slurm", record=RoundJobs, is_open=_is_open)


def failure_lines(run: Run, number: int) -> str:
    """What tasks of a round said when they ended with an error, each text once."""
    jobs = ROUNDS.read(run, number)
    if jobs is None or not jobs.folder:
        return ""
    found = failures(Path(jobs.folder))
    counts = Counter((each.code, each.text) for each in found)
    last = {(each.code, each.text): each for each in found}
    return "\n".join(
        f"{plural(count, 'task')} ended with {code} (last {last[code, text].job} on "
        f"{last[code, text].node}): {text}"
        for (code, text), count in counts.most_common(5)
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

    @property
    def plan(self) -> str:
        return f"{self.run}-plan"

    @property
    def all(self) -> tuple[str, ...]:
        """Those that would begin something first."""
        return self.finish, self.plan, self.standby, self.workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a task ended with an error. It lies beside submitit's files, since the task may not see the run."""

    job: str
    node: str
    code: int
    text: str
    after_s: float = 0.0
    times: int = 1
    """How often the task has ended with an error."""


def failures(folder: Path) -> tuple[Failure, ...]:
    """What the tasks of a round recorded that ended with an error."""
    found = []
    for path in sorted(folder.glob("*.failed.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append(Failure(**json.loads(path.read_text(encoding="utf-8"))))
    return tuple(found)
