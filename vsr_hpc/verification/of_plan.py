"""Verifies what a run made. This module alone knows what a plan promises of its output."""

from __future__ import annotations

from vsr_hpc.job.spec import RangeSection, StreamsSection
from vsr_hpc.media.merge.container_plan import StreamsRequest
from vsr_hpc.planning.plan import Plan
from vsr_hpc.storage.opening import open_source
from vsr_hpc.verification.verify import Promise, Verification, verify


def promise_of_plan(plan: Plan) -> Promise:
    """Everything that the output of `plan` must keep of its source."""
    job = plan.job
    return Promise(
        streams=StreamsRequest(audio=job.streams.audio, drop=job.streams.drop),
        start=job.range.start,
        stop=job.range.stop,
        frames=job.range.frames,
        salvage=job.range.salvage,
        frame_rate=job.images.frame_rate,
        deinterlace=job.picture.deinterlace,
        field_order=None if job.picture.field_order == "auto" else job.picture.field_order,
        picture=plan.picture,
        psnr_floor=plan.card.psnr_floor,
    )


def promise_of_options(streams: StreamsSection, wanted: RangeSection) -> Promise:
    """The same for an output whose run is gone: only what a person says about it is known."""
    return Promise(
        streams=StreamsRequest(audio=streams.audio, drop=streams.drop),
        start=wanted.start,
        stop=wanted.stop,
        frames=wanted.frames,
        salvage=wanted.salvage,
    )


def verify_output(plan: Plan, output: str, *, deep: bool) -> Verification:
    """Compare the output of a plan with the plan's source; both are read again, from a path or from S3."""
    source = open_source(plan.clip.uri, etag=plan.source_etag)
    return verify(source, open_source(output), promise_of_plan(plan), deep=deep)
