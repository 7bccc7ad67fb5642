"""AWS Batch through boto3: a round of identical workers is one array job, or a plain one for a single worker.

Nothing here is the truth about a run. Job ids are kept to show and to cancel; what is done or missing is
read from the run. Lost hosts are Batch's to retry, and whoever completes the run finishes it: no job depends
on the workers, since Batch would never start it where one of them failed.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from vsr_hpc.aws.account import client
from vsr_hpc.aws.batch import jobs
from vsr_hpc.aws.batch.definition import ensure_definition, gpus_of, log_group, wanted_of
from vsr_hpc.aws.errors import explained
from vsr_hpc.errors import BackendError, JobError, VsrError
from vsr_hpc.job.spec import JobSpec
from vsr_hpc.run.documents import Round
from vsr_hpc.run.model_copy import stage
from vsr_hpc.run.run import Run
from vsr_hpc.run.status import read_status
from vsr_hpc.storage.store import MissingObject

log = logging.getLogger(__name__)


LARGEST_ARRAY = 10_000
_SUBMITTING_S = 120.0
"""A round that has no job after this time was never submitted: whoever began it died on the way."""


class RoundJob(BaseModel):
    """What was submitted for a round; written once, after Batch answered."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    round: int
    region: str = ""
    queue: str = ""
    queue_place: int = 0
    """Which of the job's queues, in order of preference."""
    job: str = ""
    workers: int = 0
    definition: str = ""
    log_group: str = ""
    error: str = ""

    def text(self) -> str:
        if self.error:
            return f"round {self.round} could not be submitted: {self.error}"
        noun = "one worker is" if self.workers == 1 else f"{self.workers} workers are"
        return f"round {self.round}: {noun} job {self.job} in queue {self.queue}"


def job_name(run: Run) -> str:
    stem = run.uri.rstrip("/").rpartition("/")[2]
    readable = re.sub(r"[^A-Za-z0-9_-]", "-", stem)[:40].strip("-_")
    return f"vsr-{readable}-{hashlib.sha256(run.place_uri.encode()).hexdigest()[:8]}"


def job_of(run: Run, number: int) -> RoundJob | None:
    """What round `number` submitted; None before that is known."""
    try:
        return RoundJob.model_validate_json(run.store.read(f"jobs/{number}.json"))
    except MissingObject:
        return None


def check(job: JobSpec) -> None:
    """Refuse what cannot be begun: places that instances do not see, no queue, no image. Raises JobError."""
    places = {"input": job.input, "output": job.output, "run.location": job.run_uri}
    found = [
        f"{key}: {place} is on this machine, where AWS Batch's instances do not see it; put it on S3 and "
        f"write s3://bucket/{place.rstrip('/').rpartition('/')[2]}"
        for key, place in places.items()
        if not place.startswith("s3://") and (key != "run.location" or job.output.startswith("s3://"))
    ]
    if found:
        raise JobError.from_findings("on: aws-batch", found)
    batch = client("batch", job.batch.region)
    wanted_of(jobs.find_queue(batch, _queues(job)[0]), job, batch.meta.region_name)


# Beginning a round
def start(run: Run, job: JobSpec, after: Run | None = None) -> RoundJob:
    """Begin a round of workers, unless one is under way: then that one is the answer.

    With `after` the workers wait in Batch until that run's workers have ended well.
    """
    batch = client("batch", job.batch.region)
    number = run.round_number() + 1  # before looking: whoever begins it meanwhile is met when it is created
    present = active_round(run)
    if present is not None:
        log.warning("a round is under way round=%d", present.round)
        return present
    place, queue = _queue(batch, run, job)
    wanted = wanted_of(queue, job, batch.meta.region_name)
    depends = [] if after is None else _dependency(after)
    stage(run, job.model, job.picture.denoise)
    missing = len(run.missing() - set(run.control().poisoned)) if run.has_plan() else 0
    workers = min(job.run.workers, missing) if run.has_plan() else job.run.workers
    workers = max(1, min(workers, LARGEST_ARRAY))
    begun = run.start_round("aws-batch", workers, missing, number)
    if begun is None:
        return _wait_for_job(run, run.rounds()[-1])
    made = RoundJob(
        round=begun.number,
        region=batch.meta.region_name,
        queue=queue.name,
        queue_place=place,
        workers=workers,
        log_group=log_group(wanted.name),
    )
    try:
        definition = ensure_definition(batch, wanted)
        submitted = _submit(batch, run, queue, definition, workers, depends, after)
    except VsrError as exc:
        failed = made.model_copy(update={"error": str(exc)})
        run.store.create(f"jobs/{begun.number}.json", failed.model_dump_json().encode())
        raise
    made = made.model_copy(update={"job": submitted, "definition": definition})
    run.store.create(f"jobs/{begun.number}.json", made.model_dump_json().encode())
    log.info("round begun round=%d workers=%d job=%s", begun.number, workers, submitted)
    return made


def active_round(run: Run) -> RoundJob | None:
    """The latest round where it may still get something done by itself."""
    rounds = [each for each in run.rounds() if each.executor == "aws-batch"]
    if not rounds or run.control().is_cancelled(rounds[-1].number):
        return None
    latest = rounds[-1]
    made = job_of(run, latest.number)
    if made is None:
        if time.time() - latest.submitted_s > _SUBMITTING_S:
            return None
        return _wait_for_job(run, latest)
    if made.error:
        return None
    facts = jobs.describe(client("batch", made.region), [made.job]).get(made.job)
    if facts is not None:
        return None if facts["status"] in jobs.ENDED else made
    alive = [each for each in read_status(run).alive if each.heartbeat.round == latest.number]
    return made if alive else None


def _wait_for_job(run: Run, begun: Round) -> RoundJob:
    """Another process is submitting this round right now; its job is known in a moment."""
    until = time.monotonic() + _SUBMITTING_S
    while time.monotonic() < until:
        made = job_of(run, begun.number)
        if made is not None:
            return made
        time.sleep(0.5)
    raise BackendError(
        f"{run.uri}: {begun.user} began round {begun.number} and it has no job yet; call again in a moment"
    )


def _queues(job: JobSpec) -> tuple[str, ...]:
    return job.batch.queues or (job.batch.name if gpus_of(job) else f"{job.batch.name}-cpu",)


def _queue(batch: Any, run: Run, job: JobSpec) -> tuple[int, jobs.Queue]:
    """The first of the job's queues, or the next one where the last round found no capacity in its own."""
    names = _queues(job)
    place = 0
    rounds = [each for each in run.rounds() if each.executor == "aws-batch"]
    last = job_of(run, rounds[-1].number) if rounds else None
    if last is not None and last.job and last.queue_place < len(names) - 1:
        facts = jobs.describe(batch, [last.job]).get(last.job)
        failed = [] if facts is None else jobs.failed_children(batch, facts)
        if any(is_capacity(each) for each in failed):
            place = last.queue_place + 1
            log.warning("no capacity in %s, going on in %s", last.queue, names[place])
    return place, jobs.find_queue(batch, names[place])


def is_capacity(facts: dict[str, Any]) -> bool:
    """Whether a job never ran because nobody had an instance for it."""
    return "CAPACITY:" in facts.get("statusReason", "")


def _submit(
    batch: Any,
    run: Run,
    queue: jobs.Queue,
    definition: str,
    workers: int,
    depends: list[dict[str, str]],
    after: Run | None,
) -> str:
    waiting = [] if after is None else ["--after", after.uri]
    more: dict[str, Any] = {"arrayProperties": {"size": workers}} if workers > 1 else {}
    with explained(f"submit {job_name(run)} to {queue.name}"):
        answer = batch.submit_job(
            jobName=job_name(run),
            jobQueue=queue.arn,
            jobDefinition=definition,
            dependsOn=depends,
            containerOverrides={"command": ["vsr", "batch", "worker", run.place_uri, *waiting]},
            tags={"vsr-run": _as_tag(run.uri)},
            propagateTags=True,
            **more,
        )
    return str(answer["jobId"])


def _as_tag(text: str) -> str:
    return re.sub(r"[^\w .:/=+\-@]", "_", text)[-256:]


def _dependency(after: Run) -> list[dict[str, str]]:
    """What Batch must wait for; nothing where the run is complete already."""
    if after.done() is not None:
        return []
    active = active_round(after)
    if active is None:
        raise JobError(
            f"--after {after.uri}: that run is not complete and nobody works on it in AWS Batch; "
            f"`vsr resume {after.uri} --on aws-batch` first"
        )
    return [{"jobId": active.job}]


# What people ask
def cancel(run: Run) -> None:
    """End the run's jobs, waiting and running; the marker in the run is the caller's."""
    for made in _rounds(run)[-1:]:
        if made.job:
            jobs.terminate(client("batch", made.region), made.job, "vsr cancel")


def _rounds(run: Run) -> list[RoundJob]:
    found = (job_of(run, each.number) for each in run.rounds() if each.executor == "aws-batch")
    return [each for each in found if each is not None]


def queue_of(run: Run) -> tuple[tuple[str, ...], bool]:
    """The run's latest job as Batch sees it, with the words of failed workers; and whether it is open."""
    rounds = [each for each in run.rounds() if each.executor == "aws-batch"]
    if not rounds:
        return (), False
    made = job_of(run, rounds[-1].number)
    if made is None:
        is_new = time.time() - rounds[-1].submitted_s < _SUBMITTING_S
        return (f"round {rounds[-1].number} was {'just ' * is_new}begun and has no job",), is_new
    if made.error:
        return (made.text(),), False
    try:
        batch = client("batch", made.region)
        facts = jobs.describe(batch, [made.job]).get(made.job)
        if facts is None:
            return (made.text(), "batch: the job is over and forgotten"), False
        lines = [made.text(), _line(facts), *_told(batch, made, jobs.failed_children(batch, facts))]
    except VsrError as exc:  # a status is worth reading without Batch's word, too
        return (made.text(), f"batch: not asked, {exc}"), False
    return tuple(lines), facts["status"] not in jobs.ENDED


def _line(facts: dict[str, Any]) -> str:
    states = ", ".join(f"{count} {state.lower()}" for state, count in sorted(jobs.counts(facts).items()))
    reason = "" if facts["status"] == "FAILED" else facts.get("statusReason", "")
    return f"batch: workers {states}" + (f" ({reason})" if reason else "")


def _told(batch: Any, made: RoundJob, failed: Sequence[dict[str, Any]]) -> list[str]:
    """Why workers failed, each reason once."""
    words = jobs.last_words(client("logs", made.region), made.log_group, failed)
    grouped: dict[str, list[dict[str, Any]]] = {}
    for each in failed:
        grouped.setdefault(jobs.why(each), []).append(each)
    lines = []
    for reason, members in grouped.items():
        said = next((words[each["jobId"]] for each in members if each["jobId"] in words), "")
        noun = "a worker" if len(members) == 1 else f"{len(members)} workers"
        lines.append(f"{noun} failed: {reason}" + (f": {said}" if said else ""))
    return lines
