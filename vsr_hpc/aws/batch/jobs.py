"""AWS Batch's calls as functions: what is in a queue, what became of a job, with errors for people.

What Batch says is a hint. It forgets jobs after a day or two; the answer is then empty and the run's own
facts decide.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from botocore import exceptions as aws

from vsr_hpc.aws.errors import explained
from vsr_hpc.errors import JobError

log = logging.getLogger(__name__)


ENDED = frozenset({"SUCCEEDED", "FAILED"})
_DESCRIBED_AT_ONCE = 100
_WORDS_OF_FAILED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A job queue and what `vsr batch init` noted on it."""

    name: str
    arn: str
    tags: dict[str, str]

    @property
    def account(self) -> str:
        return self.arn.split(":")[4]

    @property
    def partition(self) -> str:
        return self.arn.split(":")[1]


def find_queue(batch: Any, name: str) -> Queue:
    """JobError where there is no such queue, or it takes no jobs."""
    with explained(f"look at job queue {name}"):
        found = batch.describe_job_queues(jobQueues=[name])["jobQueues"]
    region = batch.meta.region_name
    if not found:
        raise JobError(
            f"no job queue {name} in {region}; `vsr batch init` makes it, `vsr batch status` shows it"
        )
    facts = found[0]
    if facts["state"] != "ENABLED" or facts.get("status") in ("INVALID", "DELETING", "DELETED"):
        why = facts.get("statusReason") or facts.get("status", "")
        raise JobError(f"job queue {name} in {region} takes no jobs ({facts['state'].lower()}, {why})")
    return Queue(name=facts["jobQueueName"], arn=facts["jobQueueArn"], tags=facts.get("tags", {}))


def describe(batch: Any, jobs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What Batch says of these jobs; those that it has forgotten are left out."""
    found: dict[str, dict[str, Any]] = {}
    for first in range(0, len(jobs), _DESCRIBED_AT_ONCE):
        with explained("look at jobs"):
            answer = batch.describe_jobs(jobs=list(jobs[first : first + _DESCRIBED_AT_ONCE]))
        found.update({each["jobId"]: each for each in answer["jobs"]})
    return found


def terminate(batch: Any, job: str, reason: str) -> None:
    """End a job, waiting or running; all children where it is an array."""
    with explained(f"terminate job {job}"):
        batch.terminate_job(jobId=job, reason=reason)


def cancel(batch: Any, job: str, reason: str) -> None:
    """End what of a job has not been started; children that run go on."""
    with explained(f"cancel job {job}"):
        batch.cancel_job(jobId=job, reason=reason)


def is_starved(batch: Any, facts: dict[str, Any]) -> bool:
    """Whether Batch has found no instance for a job, and none of its children has ever had one.

    Batch cancels for lack of capacity the job at the head of the queue alone, so that of an array one child
    ends after each wait: the first one that does speaks for all.
    """
    at_work = {"STARTING", "RUNNING", "SUCCEEDED"} & counts(facts).keys()
    return not at_work and any(_is_capacity(each) for each in failed_children(batch, facts))


def _is_capacity(facts: dict[str, Any]) -> bool:
    """Whether a job never ran because nobody had an instance for it."""
    return "CAPACITY:" in facts.get("statusReason", "")


def counts(facts: dict[str, Any]) -> dict[str, int]:
    """How many children of an array are in which state; a plain job counts as one."""
    summary = facts.get("arrayProperties", {}).get("statusSummary")
    if summary:
        return {state: int(count) for state, count in summary.items() if count}
    return {facts["status"]: 1}


def failed_children(batch: Any, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Failed children of an array, or the job itself where it is plain and failed."""
    if "size" not in facts.get("arrayProperties", {}):
        return [facts] if facts["status"] == "FAILED" else []
    with explained("list an array's jobs"):
        pages = batch.get_paginator("list_jobs").paginate(arrayJobId=facts["jobId"], jobStatus="FAILED")
        names = [each["jobId"] for page in pages for each in page["jobSummaryList"]]
    return list(describe(batch, names[:_DESCRIBED_AT_ONCE]).values())


def why(facts: dict[str, Any]) -> str:
    """Why a job is where it is, in Batch's own words."""
    container = facts.get("container", {})
    parts = [facts.get("statusReason", "")]
    if "exitCode" in container:
        parts.append(f"exit code {container['exitCode']}")
    if container.get("reason"):
        parts.append(container["reason"])
    return ", ".join(dict.fromkeys(part for part in parts if part))


def last_words(logs: Any, group: str, failed: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The error that failed jobs wrote last, by job; nothing where the log cannot be read."""
    said = {}
    for facts in failed[:_WORDS_OF_FAILED]:
        stream = facts.get("container", {}).get("logStreamName")
        if not stream:
            continue
        try:
            events = logs.get_log_events(
                logGroupName=group, logStreamName=stream, limit=30, startFromHead=False
            )
        except (aws.ClientError, aws.BotoCoreError) as exc:
            log.debug("log not read stream=%s why=%s", stream, exc)
            continue
        lines = [each["message"].rstrip() for each in events["events"]]
        errors = [line for line in lines if line.startswith("vsr: ")]
        if errors:
            said[facts["jobId"]] = errors[-1].removeprefix("vsr: ")
    return said
