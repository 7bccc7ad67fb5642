"""Submits to AWS Batch: a round of identical workers is one array job, or a plain job for a single worker.

Job ids are kept to show and to cancel; what is done or missing is read from the run. Batch itself retries
workers whose hosts were lost, and the worker that completes the run finishes it: no job depends on the
workers, since Batch would never start such a job if one worker failed.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Sequence
from typing import Any

from vsr_hpc.aws.account import client
from vsr_hpc.aws.batch import jobs
from vsr_hpc.aws.batch.definition import ensure_definition, gpus_of, log_group, wanted_of
from vsr_hpc.aws.errors import explained
from vsr_hpc.aws.limits import limit
from vsr_hpc.errors import BackendError, JobError, VsrError
from vsr_hpc.executors.rounds import RoundRecord, Rounds, Submission, is_being_submitted
from vsr_hpc.job.spec import JobSpec
from vsr_hpc.run.documents import Round
from vsr_hpc.run.model_copy import stage
from vsr_hpc.run.run import Run

log = logging.getLogger(__name__)


_CANCELLING_S, _POLL_S = 60.0, 0.5


class RoundJob(RoundRecord):
    """The job of Batch that a round is."""

    region: str = ""
    queue: str = ""
    queue_place: int = 0
    """Which of the job's queues, in order of preference."""
    job: str = ""
    workers: int = 0
    definition: str = ""
    log_group: str = ""

    def text(self) -> str:
        if self.error:
            return f"round {self.round} could not be submitted: {self.error}"
        noun = "one worker is" if self.workers == 1 else f"{self.workers} workers are"
        return f"round {self.round}: {noun} job {self.job} in queue {self.queue}"


def job_name(run: Run) -> str:
    stem = run.uri.rstrip("/").rpartition("/")[2]
    readable = re.sub(r"[^A-Za-z0-9_-]", "-", stem)[:40].strip("-_")
    return f"vsr-{readable}-{hashlib.sha256(run.place_uri.encode()).hexdigest()[:8]}"


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


def start(run: Run, job: JobSpec, after: Run | None = None) -> RoundJob:
    """Begin a round of workers; a round that is under way is returned instead.

    With `after` the workers wait in Batch until that run's workers have ended well.
    """
    batch = client("batch", job.batch.region)
    _give_up_starved(batch, run, job)

    def prepare() -> Submission[RoundJob]:
        place, queue = _choose_queue(batch, run, job)
        wanted = wanted_of(queue, job, batch.meta.region_name)
        depends = [] if after is None else _find_dependency(after)
        stage(run, job.model, job.picture.denoise)

        def submit(begun: Round) -> RoundJob:
            definition = ensure_definition(batch, wanted)
            return RoundJob(
                round=begun.number,
                region=batch.meta.region_name,
                queue=queue.name,
                queue_place=place,
                job=_submit(batch, run, queue, definition, begun.workers, depends, after),
                workers=begun.workers,
                definition=definition,
                log_group=log_group(wanted.name),
            )

        return Submission(most_workers=min(job.run.workers, limit("array_size")), submit=submit)

    return ROUNDS.begin(run, prepare)


def _is_open(run: Run, made: RoundJob) -> bool | None:
    facts = jobs.describe(client("batch", made.region), [made.job]).get(made.job)
    return None if facts is None else facts["status"] not in jobs.ENDED


ROUNDS = Rounds(executor="aws-batch", record=RoundJob, is_open=_is_open)


def _queues(job: JobSpec) -> tuple[str, ...]:
    return job.batch.queues or (job.batch.name if gpus_of(job) else f"{job.batch.name}-cpu",)


def _choose_queue(batch: Any, run: Run, job: JobSpec) -> tuple[int, jobs.Queue]:
    """The first of the job's queues, or the next one where the last round found no capacity in its own."""
    names, place = _queues(job), 0
    last = _find_starved(batch, run, job)
    if last is not None:
        place = last.queue_place + 1
        log.warning("no capacity in %s, going on in %s", last.queue, names[place])
    return place, jobs.find_queue(batch, names[place])


def _give_up_starved(batch: Any, run: Run, job: JobSpec) -> None:
    """End the round under way where it found no capacity and the job names another queue."""
    last = _find_starved(batch, run, job)
    if last is None:
        return
    jobs.cancel(batch, last.job, f"no capacity in {last.queue}")
    until = time.monotonic() + _CANCELLING_S
    while _is_open(run, last):
        if time.monotonic() > until:
            raise BackendError(f"job {last.job} is being cancelled; call again in a minute")
        time.sleep(_POLL_S)


def _find_starved(batch: Any, run: Run, job: JobSpec) -> RoundJob | None:
    """The last round, where it found no capacity and there is a queue after its own."""
    latest = ROUNDS.find_latest(run)
    last = None if latest is None else ROUNDS.read(run, latest.number)
    if last is None or not last.job or last.queue_place >= len(_queues(job)) - 1:
        return None
    facts = jobs.describe(batch, [last.job]).get(last.job)
    return last if facts is not None and jobs.is_starved(batch, facts) else None


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
            tags={"vsr-run": _make_tag(run.uri)},
            propagateTags=True,
            **more,
        )
    return str(answer["jobId"])


def _make_tag(text: str) -> str:
    return re.sub(r"[^\w .:/=+\-@]", "_", text)[-256:]


def _find_dependency(after: Run) -> list[dict[str, str]]:
    """What Batch must wait for; nothing where the run is complete already."""
    if after.done() is not None:
        return []
    active = ROUNDS.find_active(after)
    if active is None:
        raise JobError(
            f"--after {after.uri}: that run is not complete and nobody works on it in AWS Batch; "
            f"`vsr resume {after.uri} --on aws-batch` first"
        )
    return [{"jobId": active.job}]


def cancel(run: Run) -> None:
    """End the jobs of the latest round, waiting and running; the caller puts the marker into the run."""
    latest = ROUNDS.find_latest(run)
    made = None if latest is None else ROUNDS.read(run, latest.number)
    if made is not None and made.job:
        jobs.terminate(client("batch", made.region), made.job, "vsr cancel")


def queue_of(run: Run) -> tuple[tuple[str, ...], bool]:
    """The run's latest job as Batch sees it, with the errors of failed workers; and whether it is open."""
    latest = ROUNDS.find_latest(run)
    if latest is None:
        return (), False
    made = ROUNDS.read(run, latest.number)
    if made is None:
        is_new = is_being_submitted(latest)
        return (f"round {latest.number} was {'just ' * is_new}begun and has no job",), is_new
    if made.error:
        return (made.text(),), False
    try:
        batch = client("batch", made.region)
        facts = jobs.describe(batch, [made.job]).get(made.job)
        if facts is None:
            return (made.text(), "batch: the job is over and forgotten"), False
        lines = [
            made.text(),
            _describe_workers(facts),
            *_other_queue(batch, run),
            *_failure_lines(batch, made, jobs.failed_children(batch, facts)),
        ]
    except VsrError as exc:  # the rest of the status does not need Batch
        return (made.text(), f"batch: not asked, {exc}"), False
    return tuple(lines), facts["status"] not in jobs.ENDED


def _other_queue(batch: Any, run: Run) -> list[str]:
    last = _find_starved(batch, run, run.job())
    if last is None:
        return []
    following = _queues(run.job())[last.queue_place + 1]
    return [f"batch: no capacity in {last.queue}; `vsr resume {run.uri}` goes on in {following}"]


def _describe_workers(facts: dict[str, Any]) -> str:
    states = ", ".join(f"{count} {state.lower()}" for state, count in sorted(jobs.counts(facts).items()))
    reason = "" if facts["status"] == "FAILED" else facts.get("statusReason", "")
    return f"batch: workers {states}" + (f" ({reason})" if reason else "")


def _failure_lines(batch: Any, made: RoundJob, failed: Sequence[dict[str, Any]]) -> list[str]:
    """Why workers failed; each reason appears once."""
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
