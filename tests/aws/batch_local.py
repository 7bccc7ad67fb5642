"""AWS Batch on this machine: moto's records of environments, queues, definitions and jobs, and a process for
each container. Run before a moto server starts (`moto_server(preload=[…])`), or imported for its patches.

What it models, as AWS documents it: arrays of 2 to 10,000 children, whose parent fails where one child did;
`evaluateOnExit` with attempts; timeouts, which are not retried; jobs that wait for others to succeed; queues
by priority, each with its environments in order, by vCPUs; the cancelling for lack of capacity of the one job
at the head of its queue, after whose end the next one's time begins; CancelJob, which leaves what runs alone;
TerminateJob with SIGTERM, then SIGKILL; logs in CloudWatch. Time for lack of capacity runs 600 times faster.

VSR_BATCH_LOCAL names a folder in which a test does what only the sky does:
    lost/<job id>          the host of this job is gone: its processes are killed at once
    no-capacity/<name>     this compute environment gets no instances
    environment            lines NAME=value that every container gets
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from moto.batch import models
from moto.batch.exceptions import ClientException
from moto.batch.models import BatchBackend, ComputeEnvironment, Job, JobQueue
from moto.batch.responses import BatchResponse
from moto.iam.aws_managed_policies import aws_managed_policies_data
from moto.iam.models import AWSManagedPolicy, IAMBackend

from tests.new_account import has_spot_role, is_role_unknown

_TICK_S = 0.05
_KILL_WAIT_S = 30.0
_CAPACITY_HASTE = 600
_NO_CAPACITY = (
    "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - All connected compute environments have insufficient "
    "capacity errors."
)
_DEPENDENCY = "Dependent Job failed"
_LOCK = threading.Lock()
_ENDED = ("SUCCEEDED", "FAILED")


def folder() -> Path:
    return Path(os.environ.get("VSR_BATCH_LOCAL") or tempfile.gettempdir())


# Where a job may run


class Fleet:
    """How many vCPUs of each environment are in use, and who waits for some."""

    def __init__(self) -> None:
        self.used: dict[str, int] = {}
        self.waiting: list[Job] = []

    def place(self, job: Job) -> ComputeEnvironment | None:
        with _LOCK:
            if any(self._goes_first(other, job) for other in self.waiting):
                return None
            for environment in _environments(job.job_queue):
                if self._has_room(environment, job):
                    self.used[environment.arn] = self.used.get(environment.arn, 0) + _vcpus(job)
                    self.waiting.remove(job)
                    return environment
        return None

    def release(self, environment: ComputeEnvironment, job: Job) -> None:
        with _LOCK:
            self.used[environment.arn] -= _vcpus(job)

    def _has_room(self, environment: ComputeEnvironment, job: Job) -> bool:
        is_spot = environment.compute_resources["type"] == "SPOT"
        if is_spot and not has_spot_role(environment.arn.split(":")[4]):
            return False
        if environment.state != "ENABLED" or (folder() / "no-capacity" / environment.name).exists():
            return False
        return self.used.get(environment.arn, 0) + _vcpus(job) <= int(
            environment.compute_resources["maxvCpus"]
        )

    def is_head(self, job: Job) -> bool:
        """Whether it is the first of those that wait in its queue. They wait in the order of their coming."""
        with _LOCK:
            return next(each for each in self.waiting if each.job_queue is job.job_queue) is job

    @staticmethod
    def _goes_first(other: Job, job: Job) -> bool:
        """Whether another waiting job has a queue of higher priority on a common environment."""
        shared = {each.arn for each in _environments(other.job_queue)} & {
            each.arn for each in _environments(job.job_queue)
        }
        return bool(shared) and int(other.job_queue.priority) > int(job.job_queue.priority)


FLEET = Fleet()


def _environments(queue: JobQueue) -> list[ComputeEnvironment]:
    return list(queue.environments)


def _vcpus(job: Job) -> int:
    return int(float(job.job_definition._get_resource_requirement("vcpus", 1)))


# The life of one job


def run(self: Job) -> None:
    """In place of moto's, which asks docker."""
    self.local_reason = ""
    try:
        if not _wait_for_others(self):
            return
        for number in range(1, _attempts(self) + 1):
            environment = _wait_for_place(self)
            if environment is None:
                return
            try:
                reason = _attempt(self, number)
            finally:
                FLEET.release(environment, self)
            if not _is_retried(self, reason) or number == _attempts(self):
                _end(self, is_good=self.exit_code == 0, reason=reason)
                return
            self.status = "RUNNABLE"
    except Exception as exc:  # a job must end, whatever moto does
        _end(self, is_good=False, reason=f"the stand-in failed: {exc!r}")


def _attempts(job: Job) -> int:
    return int((job.job_definition.retry_strategy or {}).get("attempts", 1))


def _wait_for_others(job: Job) -> bool:
    job.status = "PENDING" if job.depends_on else "SUBMITTED"
    wanted = [each["jobId"] for each in job.depends_on or []]
    while True:
        found = [job.all_jobs[each] for each in wanted]
        if job.stop:
            _end(job, is_good=False, reason=job.job_stopped_reason or "")
            return False
        if any(_status(each) == "FAILED" for each in found):
            _end(job, is_good=False, reason=_DEPENDENCY)
            return False
        if all(_status(each) == "SUCCEEDED" for each in found):
            return True
        time.sleep(_TICK_S)


def _wait_for_place(job: Job) -> ComputeEnvironment | None:
    job.status = "RUNNABLE"
    with _LOCK:
        FLEET.waiting.append(job)
    head_since: float | None = None
    while not job.stop:
        environment = FLEET.place(job)
        if environment is not None:
            job.local_reason = ""
            return environment
        is_starved = all(
            (folder() / "no-capacity" / each.name).exists() for each in _environments(job.job_queue)
        )
        if is_starved and head_since is None and FLEET.is_head(job):
            head_since, job.local_reason = time.monotonic(), _NO_CAPACITY
        limit = _capacity_limit_s(job.job_queue)
        if head_since is not None and limit is not None and time.monotonic() - head_since > limit:
            job.job_stopped_reason = f"Cancelled by Batch: {_NO_CAPACITY}"
            break
        time.sleep(_TICK_S)
    with _LOCK:
        FLEET.waiting.remove(job)
    _end(job, is_good=False, reason=job.job_stopped_reason or "")
    return None


def _capacity_limit_s(queue: JobQueue) -> float | None:
    for action in getattr(queue, "local_limits", None) or []:
        if action["reason"] == "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY" and action["action"] == "CANCEL":
            return float(action["maxTimeSeconds"]) / _CAPACITY_HASTE
    return None


def _attempt(job: Job, number: int) -> str:
    """Run the command once; why it ended, in Batch's words. The exit code is None where the host was lost."""
    job.status, job.exit_code = "STARTING", None
    job.job_started_at = datetime.now()
    job.log_stream_name = f"worker/default/{job.job_id.replace(':', '-')}-{number}"
    job._start_attempt()
    until = time.monotonic() + (job._get_attempt_duration() or float("inf"))
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            _command(job),
            env=_environment(job, number),
            cwd=tempfile.gettempdir(),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        job.status = "RUNNING"
        reason = _watch(job, process, until)
        _keep_log(job, said)
    job.job_stopped_at = datetime.now()
    attempt = job.latest_attempt or {}
    attempt["statusReason"] = reason
    if job.exit_code is not None:
        attempt["container"]["exitCode"] = job.exit_code
    job._stop_attempt()
    return reason


def _watch(job: Job, process: subprocess.Popen[bytes], until: float) -> str:
    lost = folder() / "lost" / job.job_id
    while process.poll() is None:
        if lost.exists():
            lost.unlink()
            _kill(process, signal.SIGKILL)
            process.wait()
            return "Host EC2 (instance i-0123456789abcdef0) terminated."
        if job.stop or time.monotonic() > until:
            _kill(process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_KILL_WAIT_S)
            _kill(process, signal.SIGKILL)
            job.exit_code = _code(process.wait())
            return job.job_stopped_reason or "Job attempt duration exceeded timeout"
        time.sleep(_TICK_S)
    job.exit_code = _code(process.returncode)
    return "Essential container in task exited"


def _kill(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _code(code: int) -> int:
    return code if code >= 0 else 128 - code


def _is_retried(job: Job, reason: str) -> bool:
    """The first rule that matches decides; without rules every failure is retried."""
    if job.exit_code == 0 or job.stop or reason.startswith("Job attempt duration"):
        return False
    rules = (job.job_definition.retry_strategy or {}).get("evaluateOnExit") or []
    facts = {"onStatusReason": reason, "onReason": "", "onExitCode": str(job.exit_code)}
    for rule in rules:
        wanted = {key: value for key, value in rule.items() if key != "action"}
        if all(fnmatch.fnmatchcase(facts[key], value) for key, value in wanted.items()):
            return str(rule["action"]).lower() == "retry"
    return True


def _end(job: Job, *, is_good: bool, reason: str) -> None:
    job.local_reason = reason
    job.job_stopped_reason = reason
    job._mark_stopped(success=is_good)


def _command(job: Job) -> list[str]:
    """The image's `vsr` is this checkout's."""
    command = job._add_parameters_to_command(job._get_container_property("command", []))
    return [sys.executable, "-m", "vsr_hpc", *command[1:]] if command[0] == "vsr" else command


def _environment(job: Job, number: int) -> dict[str, str]:
    """A container sees nothing of the host's environment; AWS_ACCESS_KEY_ID stands for its role."""
    given = {each["name"]: each["value"] for each in job._get_container_property("environment", [])}
    home = folder() / "containers" / job.job_id.replace(":", "-")
    home.mkdir(parents=True, exist_ok=True)
    found = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{os.environ['MOTO_PORT']}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_BATCH_JQ_NAME": job.job_queue.name,
        **given,
        "HOME": str(home),
        "TMPDIR": str(home),
        "AWS_BATCH_JOB_ID": job.job_id,
        "AWS_BATCH_JOB_ATTEMPT": str(number),
    }
    if "index" in job.array_properties:
        found["AWS_BATCH_JOB_ARRAY_INDEX"] = str(job.array_properties["index"])
    more = folder() / "environment"
    if more.exists():
        found.update(line.partition("=")[::2] for line in more.read_text().splitlines())
    return found


def _keep_log(job: Job, said: Any) -> None:
    said.seek(0)
    lines = said.read().decode(errors="replace").splitlines()
    options = job.job_definition.container_properties.get("logConfiguration", {}).get("options", {})
    group = options.get("awslogs-group", "/aws/batch/job")
    logs = job._log_backend
    logs.ensure_log_group(group)
    logs.ensure_log_stream(group, job.log_stream_name)
    at = int(time.time() * 1000)
    if lines:
        logs.put_log_events(
            group, job.log_stream_name, [{"timestamp": at, "message": line} for line in lines]
        )


# What Batch says of jobs


def _status(job: Job) -> str:
    """An array's own status follows from its children's."""
    children = [_own_status(child) for child in job._child_jobs or []]
    if not children:
        return _own_status(job)
    if all(each in _ENDED for each in children):
        return "FAILED" if "FAILED" in children else "SUCCEEDED"
    return "PENDING"


def _own_status(job: Job) -> str:
    return str(getattr(job._status, "value", job._status))


def describe_short(self: Job) -> dict[str, Any]:
    found = _DESCRIBE_SHORT(self)
    return _completed(self, found)


def describe(self: Job) -> dict[str, Any]:
    found = _DESCRIBE(self)
    if "index" in self.array_properties:
        found["arrayProperties"] = {"index": self.array_properties["index"]}
    return _completed(self, found)


def _completed(job: Job, found: dict[str, Any]) -> dict[str, Any]:
    found["status"] = _status(job)
    reason = getattr(job, "local_reason", "")
    if job._child_jobs and found["status"] == "FAILED":
        reason = "Array Child Job failed"
    found.pop("statusReason", None)
    if reason:
        found["statusReason"] = reason
    if job.exit_code is not None and isinstance(found.get("container"), dict):
        found["container"]["exitCode"] = job.exit_code
    return found


def terminate_job(self: BatchBackend, job_id: str, reason: str) -> None:
    if not job_id or not reason:
        raise ClientException("'jobId' and 'reason' are required fields")
    job = self.get_job_by_id(job_id)
    for each in [job, *(job._child_jobs or [])] if job is not None else []:
        if _status(each) not in _ENDED:
            each.terminate(reason)


def cancel_job(self: BatchBackend, job_id: str, reason: str) -> None:
    """What has not been started; of an array all children that have not."""
    if not job_id or not reason:
        raise ClientException("'jobId' and 'reason' are required fields")
    job = self.get_job_by_id(job_id)
    for each in (job._child_jobs or [job]) if job is not None else []:
        if _own_status(each) in ("SUBMITTED", "PENDING", "RUNNABLE"):
            each.terminate(reason)


def submit_job(self: BatchBackend, *arguments: Any, **named: Any) -> Any:
    named["array_properties"] = named.get("array_properties") or {}
    size = named["array_properties"].get("size")
    if size is not None and not 2 <= size <= 10_000:
        raise ClientException("Array size must be between 2 and 10000")
    for each in named.get("depends_on") or []:
        if each["jobId"] not in self._jobs:
            raise ClientException(f"Job {each['jobId']} does not exist")
    queue = self.get_job_queue(named.get("job_queue") or arguments[2])
    if queue is not None and queue.state != "ENABLED":
        raise ClientException("jobQueue is not in a valid state to accept jobs")
    return _SUBMIT(self, *arguments, **named)


# What moto leaves out of environments and queues


def create_compute_environment(self: BatchBackend, *arguments: Any, **named: Any) -> ComputeEnvironment:
    """Without a role of its own an environment gets the account's service-linked one."""
    if is_role_unknown():
        raise ClientException(
            "Error executing request, Exception : The specified instanceProfile is not valid."
        )
    if not named.get("service_role"):
        named["service_role"] = _service_linked_role(self)
    return _CREATE_ENVIRONMENT(self, *arguments, **named)


def _service_linked_role(backend: BatchBackend) -> str:
    iam = backend.iam_backend
    for role in iam.get_roles():
        if role.name.lower() == "awsserviceroleforbatch":
            return str(role.arn)
    return str(iam.create_service_linked_role("batch.amazonaws.com", "", "").arn)


def update_compute_environment(
    self: BatchBackend, compute_environment_name: str, *arguments: Any, **named: Any
) -> Any:
    answer = _UPDATE_ENVIRONMENT(self, compute_environment_name, *arguments, **named)
    wanted = named.get("compute_resources")
    found = self.get_compute_environment(compute_environment_name)
    found.local_status = "VALID"
    if wanted:
        found.compute_resources.update(wanted)
    return answer


def describe_compute_environments(self: BatchBackend, environments: Any = None) -> list[dict[str, Any]]:
    """An environment whose roles or network AWS could not use is INVALID until it is updated."""
    found = _DESCRIBE_ENVIRONMENTS(self, environments)
    for each in found:
        environment = self.get_compute_environment(each["computeEnvironmentName"])
        each["status"] = getattr(environment, "local_status", "VALID")
    return found


def delete_compute_environment(self: BatchBackend, compute_environment_name: str) -> None:
    found = self.get_compute_environment(compute_environment_name)
    if found is not None:
        if found.state != "DISABLED":
            raise ClientException("Cannot delete, found existing state ENABLED; disable it first")
        if any(found in queue.environments for queue in self._job_queues.values()):
            raise ClientException("Cannot delete, found existing JobQueue relationship")
    _DELETE_ENVIRONMENT(self, compute_environment_name)


def delete_job_queue(self: BatchBackend, queue_name: str) -> None:
    found = self.get_job_queue(queue_name)
    if found is not None and found.state != "DISABLED":
        raise ClientException("Cannot delete, job queue must be disabled first")
    _DELETE_QUEUE(self, queue_name)


def createjobqueue(self: BatchResponse) -> str:
    answer = _CREATE_QUEUE(self)
    queue = self.batch_backend.get_job_queue(self._get_param("jobQueueName"))
    queue.local_limits = self._get_param("jobStateTimeLimitActions")
    return answer


def updatejobqueue(self: BatchResponse) -> str:
    answer = _UPDATE_QUEUE(self)
    limits = self._get_param("jobStateTimeLimitActions")
    if limits is not None:
        self.batch_backend.get_job_queue(self._get_param("jobQueue")).local_limits = limits
    return answer


def describe_queue(self: JobQueue) -> dict[str, Any]:
    return {**_DESCRIBE_QUEUE(self), "jobStateTimeLimitActions": getattr(self, "local_limits", None) or []}


_DESCRIBE, _DESCRIBE_SHORT = Job.describe, Job.describe_short
_SUBMIT = BatchBackend.submit_job
_CREATE_ENVIRONMENT = BatchBackend.create_compute_environment
_UPDATE_ENVIRONMENT = BatchBackend.update_compute_environment
_DESCRIBE_ENVIRONMENTS = BatchBackend.describe_compute_environments
_DELETE_ENVIRONMENT = BatchBackend.delete_compute_environment
_DELETE_QUEUE = BatchBackend.delete_job_queue
_CREATE_QUEUE, _UPDATE_QUEUE = BatchResponse.createjobqueue, BatchResponse.updatejobqueue
_DESCRIBE_QUEUE = JobQueue.describe


_POLICIES: list[Any] = []


def only_the_policy_in_use(self: IAMBackend) -> list[AWSManagedPolicy]:
    """The one that Batch's instances have; reading all of AWS's own costs a second each time."""
    name = "AmazonEC2ContainerServiceforEC2Role"
    if not _POLICIES:
        _POLICIES.append(json.loads(aws_managed_policies_data)[name])
    return [AWSManagedPolicy.from_data(name, self.account_id, self.region_name, _POLICIES[0])]


def install() -> None:
    """Put all of it in place; a second call changes nothing."""
    IAMBackend._init_aws_policies = only_the_policy_in_use
    Job.run, Job.describe, Job.describe_short = run, describe, describe_short
    JobQueue.describe = describe_queue
    BatchBackend.submit_job, BatchBackend.terminate_job = submit_job, terminate_job
    BatchBackend.cancel_job = cancel_job
    BatchBackend.create_compute_environment = create_compute_environment
    BatchBackend.update_compute_environment = update_compute_environment
    BatchBackend.describe_compute_environments = describe_compute_environments
    BatchBackend.delete_compute_environment = delete_compute_environment
    BatchBackend.delete_job_queue = delete_job_queue
    BatchResponse.createjobqueue, BatchResponse.updatejobqueue = createjobqueue, updatejobqueue


assert models.Job is Job
install()
