"""The steps of a workflow that are jobs of AWS Batch: plan, finish, verify, or all of it for a short clip."""

from __future__ import annotations

import json
import logging
import os
from pathlib import PurePosixPath

from vsr_hpc.errors import JobError, MediaError, VerifyError
from vsr_hpc.executors.aws_batch.worker_task import Attempt, work_here
from vsr_hpc.job.inputs import CLIP_SUFFIXES
from vsr_hpc.job.spec import JobSpec
from vsr_hpc.planning.planner import make_plan
from vsr_hpc.planning.preparation import Prepared, prepare
from vsr_hpc.run.documents import Done
from vsr_hpc.run.model_copy import stage
from vsr_hpc.run.run import Run
from vsr_hpc.storage.opening import open_store
from vsr_hpc.storage.s3_address import S3Address
from vsr_hpc.verification.of_plan import verify_run as verify_run_output
from vsr_hpc.verification.verify import Verification
from vsr_hpc.work.finish import finish_patiently

log = logging.getLogger(__name__)


SHORT_S = 300.0
"""An express workflow takes clips up to this length."""
_GUESSED_OPERATIONS_PER_S = 1e13


def job_for(template: JobSpec, source: str, run_uri: str, incoming: str) -> JobSpec:
    """A template's job for one clip: `incoming/a/b.mkv` becomes `outgoing/a/b.mkv`; see `output_name`."""
    address = S3Address.from_uri(source)
    if not address.key.startswith(incoming):
        raise JobError(f"{source}: is not below {incoming}, which this workflow works on")
    folder = PurePosixPath(incoming.rstrip("/")).parent / "outgoing"
    name = PurePosixPath(address.key[len(incoming) :])
    suffix = PurePosixPath(template.output).suffix or ".mkv"
    output = f"s3://{address.bucket}/{folder / output_name(name, suffix)}"
    how = template.run.model_copy(update={"location": run_uri})
    return template.model_copy(
        update={"input": source, "output": output, "run": how, "on": "aws-batch", "overwrite": True}
    )


def output_name(clip: PurePosixPath, suffix: str) -> PurePosixPath:
    """The name of what is made of a clip, another one for every other clip: `overwrite` must replace only
    what the same clip became before.

    `take.mkv` keeps its name, `take.mov` becomes `take.mov.mkv`. Hence `take.mov.mkv` gets one suffix more,
    and what has no clip's suffix gets two, since `take.mkv` and `take.mkv.mkv` are others' names.
    """
    known = CLIP_SUFFIXES | {suffix.lower()}
    if clip.suffix == suffix and PurePosixPath(clip.stem).suffix.lower() not in known:
        return clip
    times = 1 if clip.suffix.lower() in known else 2
    return clip.with_name(clip.name + suffix * times)


def read_template(uri: str) -> JobSpec:
    folder, _, name = uri.rpartition("/")
    return JobSpec.model_validate_json(open_store(folder).read(name))


def plan(run_uri: str, source: str, template: str, incoming: str, longest_s: float | None = None) -> int:
    """Make the run and its plan, unless they are there; how many workers it wants.

    The number lies in `workflow.json` in the run's folder, where the state machine reads it.
    """
    job = job_for(read_template(template), source, run_uri, incoming)
    folder = open_store(run_uri)
    run = Run.create(folder, job)
    if run.job().input != source:
        raise JobError(f"{run_uri}: is the run of another clip, {run.job().input}")
    if run.round_number() == 0:
        run.start_round("step-functions", job.run.workers, 0)
    if not run.has_plan():
        prepared = prepare(job)
        _refuse_long(prepared, longest_s)
        stage(run, job.model, job.picture.denoise)
        run.write_plan(*make_plan(prepared, _guess))
    missing = 0 if run.done() is not None else len(run.missing())
    workers = min(job.run.workers, missing)
    folder.put("workflow.json", json.dumps({"workers": workers, "output": job.output}).encode())
    log.info("planned run=%s shards=%d missing=%d", run_uri, run.plan.shard_count, missing)
    return workers


def _guess(ready: Prepared, timeline: object) -> float:
    """Seconds per frame on a GPU that is not here; it decides how many chunks make a shard, and no byte."""
    pixels = ready.clip.picture.width * ready.clip.picture.height
    return 0.01 + float(ready.card.operations_per_pixel) * pixels / _GUESSED_OPERATIONS_PER_S


def _refuse_long(prepared: Prepared, longest_s: float | None) -> None:
    length = prepared.clip.duration_s
    if longest_s is not None and length is not None and length > longest_s:
        raise MediaError(
            f"{prepared.clip.uri}: lasts {float(length):.0f} s, and this workflow is for clips up to "
            f"{longest_s:.0f} s; put it into incoming/"
        )


def finish(run_uri: str) -> Done:
    """Merge a complete run; VerifyError names what is missing or was set aside."""
    job = os.environ.get("AWS_BATCH_JOB_ID")
    task = Attempt.read().task if job else ""
    return finish_patiently(Run.open(run_uri), os.uname().nodename, task=task)


def verify_run(run_uri: str) -> Verification:
    """Prove the output of a finished run: counts, timestamps, streams, tags. VerifyError if it is not so."""
    result = verify_run_output(Run.open(run_uri), deep=False)
    if not result.ok:
        raise VerifyError("\n".join([f"{result.output}: is not the whole, true output", *result.lines()]))
    return result


def whole(run_uri: str, source: str, template: str, incoming: str) -> int:
    """A short clip from beginning to end in this one job; the exit code for Batch."""
    plan(run_uri, source, template, incoming, longest_s=SHORT_S)
    code = work_here(run_uri, does_finish=True, after=None)
    if code == 0:
        finish(run_uri)
        verify_run(run_uri)
    return code
