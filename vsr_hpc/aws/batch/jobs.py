"""AWS Batch's calls as functions: what is in a queue, what became of a job, with errors for people.

What Batch says is a hint. It forgets jobs after a day or two; the answer is then empty and the run's own
facts decide.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import boto3
from botocore import exceptions as aws
from botocore.config import Config

from vsr_hpc.aws.errors import is_passing, status
from vsr_hpc.errors import BackendError, JobError, VsrError

log = logging.getLogger(__name__)


ENDED = frozenset({"SUCCEEDED", "FAILED"})
_DESCRIBED_AT_ONCE = 100
_WORDS_OF_FAILED = 3
_DENIED = re.compile(r"AccessDenied|UnauthorizedOperation|NotAuthorized")
_CREDENTIALS = re.compile(r"ExpiredToken|UnrecognizedClient|InvalidClientTokenId|SignatureDoesNotMatch")


def client(service: str, region: str | None) -> Any:
    """A client whose retries are bounded. JobError where the shell has no region."""
    patience = Config(
        connect_timeout=10, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 6}
    )
    with explained(f"connect to {service}"):
        return boto3.client(service, region_name=region, config=patience)


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Errors of AWS as ours: what a person must mend is a JobError, what may pass a BackendError."""
    try:
        yield
    except aws.ClientError as exc:
        raise _refusal(exc, what) from exc
    except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.SSOError) as exc:
        raise JobError(
            f"{what}: no usable AWS credentials ({exc}); `aws configure` or `aws sso login`"
        ) from exc
    except aws.NoRegionError as exc:
        raise JobError(f"{what}: no region; set AWS_REGION, or batch.region in the job file") from exc
    except (aws.ParamValidationError, aws.ProfileNotFound) as exc:
        raise JobError(f"{what}: {exc}") from exc
    except (aws.BotoCoreError, ValueError) as exc:
        raise BackendError(f"{what}: {exc}") from exc


def _refusal(exc: aws.ClientError, what: str) -> VsrError:
    error = exc.response.get("Error", {})
    code, said = str(error.get("Code", "")), str(error.get("Message", ""))
    if _DENIED.search(code):
        return JobError(f"not allowed to {what} ({exc.operation_name}): {said}")
    if _CREDENTIALS.search(code):
        return JobError(f"{what}: AWS refused the credentials ({code}); renew them and call again")
    if is_passing(exc.response):
        return BackendError(f"{what}: AWS answered {status(exc.response)} {code}: {said}")
    return JobError(f"{what}: refused by AWS ({code}): {said}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A job queue and what `vsr batch init` noted on it."""

    name: str
    arn: str
    is_open: bool
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
    return Queue(
        name=facts["jobQueueName"], arn=facts["jobQueueArn"], is_open=True, tags=facts.get("tags", {})
    )


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
