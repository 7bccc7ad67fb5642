"""Whether a run's plan, receipts and end all speak of the same settings."""

from __future__ import annotations

import json
from collections.abc import Iterator

from vsr_hpc.planning.cutting import window_of
from vsr_hpc.planning.fingerprint import fingerprint
from vsr_hpc.planning.plan import Plan
from vsr_hpc.run.documents import Receipt
from vsr_hpc.run.run import DamagedObjectError, Run

_OF_A_VERSION = frozenset({"pixel path", "scene cuts"})
"""Parts of the fingerprint that tell which version of this package made the plan."""


def receipt_fault(plan: Plan, receipt: Receipt, shard: int) -> str | None:
    """Why this is no receipt of a shard of the plan; None where it is one."""
    if receipt.settings != plan.settings_id:
        return f"has a receipt of other settings ({receipt.settings}) than the plan ({plan.settings_id})"
    wanted = plan.shard(shard)
    lengths = [
        (chunk, stop - start)
        for chunk in range(wanted.first_chunk, wanted.last_chunk)
        for start, stop in (plan.chunk(chunk),)
    ]
    found = [(segment.chunk, segment.frames) for segment in receipt.segments]
    if receipt.shard != shard or found != lengths:
        return f"has a receipt of other chunks than the plan's: {found} instead of {lengths}"
    return None


def find_other_settings(run: Run) -> Iterator[str]:
    """What in a run contradicts the settings of its plan, in words."""
    plan, done = run.plan, run.done()
    yield from _contradictions(plan)
    try:
        receipts = run.receipts()
    except DamagedObjectError as exc:
        yield str(exc)
        receipts = ()
    for receipt in receipts:
        fault = receipt_fault(plan, receipt, receipt.shard)
        if fault is not None:
            yield f"shard {receipt.shard:05d} {fault}"
    if done is not None and done.settings != plan.settings_id:
        yield f"the output was merged with other settings: {done.settings} instead of {plan.settings_id}"
    if done is not None and len(receipts) != plan.shard_count:
        yield f"the run is finished, but {len(receipts)} of its {plan.shard_count} shards have a receipt"


def _contradictions(plan: Plan) -> Iterator[str]:
    """Settings that the plan's fingerprint states otherwise than its job."""
    stated = plan.fingerprint
    derived = fingerprint(
        plan.job,
        content_sha256=json.loads(stated["input"]),
        card=plan.card,
        picture=plan.picture,
        encoding=plan.encoding,
        frames=(plan.start, plan.stop),
        encoder_build=json.loads(stated["encoder build"]),
        window=window_of(plan.job, plan.card, plan.clip),
    )
    for key in sorted((stated.keys() & derived.keys()) - _OF_A_VERSION):
        if stated[key] != derived[key]:
            yield f"the plan's fingerprint has {key} {stated[key]}, its job {derived[key]}"
