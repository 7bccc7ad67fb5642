"""What the output of a run must keep of its source, and whether it does."""

from __future__ import annotations

from dataclasses import replace

from vsr_hpc.errors import JobError
from vsr_hpc.job.spec import JobSpec
from vsr_hpc.media.merge.container_plan import StreamsRequest
from vsr_hpc.planning.plan import Plan
from vsr_hpc.run.run import Run
from vsr_hpc.run.settings_proof import find_other_settings
from vsr_hpc.storage.opening import open_output, open_source
from vsr_hpc.storage.output import is_there
from vsr_hpc.verification.verify import Finding, Promise, Verification, verify


def promise_of_job(job: JobSpec) -> Promise:
    """What the output of a job must keep of its source."""
    return Promise(
        streams=StreamsRequest(audio=job.streams.audio, drop=job.streams.drop),
        start=job.range.start,
        stop=job.range.stop,
        frames=job.range.frames,
        salvage=job.range.salvage,
        frame_rate=job.images.frame_rate,
        deinterlace=job.picture.deinterlace,
        field_order=None if job.picture.field_order == "auto" else job.picture.field_order,
    )


def promise_of_plan(plan: Plan) -> Promise:
    """The same, and the picture that was planned."""
    return replace(promise_of_job(plan.job), picture=plan.picture, psnr_floor=plan.card.psnr_floor)


def verify_output(plan: Plan, output: str, *, deep: bool) -> Verification:
    """Compare the output of a plan with the plan's source; both are read again, from a path or from S3."""
    source = open_source(plan.clip.uri, etag=plan.source_etag)
    return verify(source, open_source(output), promise_of_plan(plan), deep=deep)


def find_run_faults(run: Run, output: str) -> tuple[Finding, ...]:
    """What in a run's records is not of its plan's settings, and whether the output is what it published."""
    texts = list(find_other_settings(run))
    done = run.done()
    if done is not None and not is_there(open_output(output), done.published):
        texts.append("the output is not the file that the run published")
    return tuple(Finding(check="run", text=text) for text in texts)


def verify_run(run: Run, *, deep: bool) -> Verification:
    """Compare the output of a finished run with its source.

    Where pictures are not decoded, the warnings are those that the workers wrote into their receipts.
    """
    done = run.done()
    if done is None:
        raise JobError(f"{run.uri} has no output yet; `vsr resume` makes it")
    found = verify_output(run.plan, done.output, deep=deep)
    found = replace(found, findings=(*found.findings, *find_run_faults(run, done.output)))
    if deep:
        return found
    noted = (text for receipt in run.receipts() for text in receipt.findings)
    return replace(found, warnings=tuple(Finding(check="picture", text=text) for text in noted))
