"""From a run to its report: everything is gathered, drawn into one page, and kept with the run."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vsr_hpc.errors import JobError, VsrError
from vsr_hpc.report import facts
from vsr_hpc.report.history import History, read_history, read_receipts
from vsr_hpc.report.page import page
from vsr_hpc.report.pictures import show
from vsr_hpc.report.srgb import shown_size
from vsr_hpc.report.truth import Quality, measure_quality
from vsr_hpc.run.documents import Done, Receipt
from vsr_hpc.run.run import Run
from vsr_hpc.run.spending import read_estimate, read_spent
from vsr_hpc.run.status import read_status
from vsr_hpc.verification.of_plan import verify_output
from vsr_hpc.verification.verify import Verification

log = logging.getLogger(__name__)


NAME = "reports/report.html"
"""Where a run keeps its report."""
QUALITY = "reports/quality.json"
VERIFICATION = "reports/verification.json"


def write_report(run: Run, receipts: Sequence[Receipt] | None = None) -> bytes:
    """Make the report of a run as it is now, and put it into its store."""
    content = make_report(run, receipts)
    run.store.put(NAME, content)
    return content


def write_at_end(run: Run, receipts: Sequence[Receipt]) -> None:
    """After the merge: a report that cannot be made is said, and harms nothing."""
    try:
        write_report(run, receipts)
    except Exception as exc:
        log.warning("the output is whole, but its report was not made (`vsr report` tries again): %s", exc)
        log.debug("report failed", exc_info=True)


def measure(run: Run, truth: str) -> Quality:
    """Hold the output against its original; the report shows it from now on."""
    quality = measure_quality(run, _done(run, "--truth"), truth)
    run.store.put(QUALITY, json.dumps(asdict(quality)).encode())
    return quality


def verify_whole(run: Run) -> Verification:
    """`vsr verify` of the output against its source; the report shows it from now on."""
    found = verify_output(run.plan, _done(run, "--verify").output, deep=True)
    shown = {
        "findings": [each.text for each in found.findings],
        "lines": [line.strip() for line in found.lines()],
    }
    run.store.put(VERIFICATION, json.dumps(shown).encode())
    return found


def _done(run: Run, option: str) -> Done:
    done = run.done()
    if done is None:
        raise JobError(f"{option}: {run.uri} has no output yet; `vsr resume` makes it")
    return done


def make_report(run: Run, receipts: Sequence[Receipt] | None = None) -> bytes:
    document = gather(run, receipts)
    title = f"{document['name']} · vsr report"
    summary = (
        f"{document['name']}: {document['state']}, {document['frames_done']} of {document['frames']} frames. "
        "A script draws this report; allow scripts to see it. It makes no network requests."
    )
    return page(title, ("report.js",), document, summary)


def gather(run: Run, receipts: Sequence[Receipt] | None = None) -> dict[str, Any]:
    """All that the report shows, as JSON."""
    began = time.monotonic()
    plan, done, status = run.plan, run.done(), read_status(run)
    if receipts is None:
        receipts = read_receipts(run, run.finished())
    history = read_history(run, receipts, status.workers)
    scenes, loops, why = _pictures(run, done)
    estimate = read_estimate(run)
    document = {
        "name": facts.name_of(plan.job.output),
        "source_name": facts.name_of(plan.clip.uri),
        "uri": run.uri,
        "state": status.state,
        "made_s": time.time(),
        "frames": plan.frames,
        "frames_done": sum(segment.frames for receipt in receipts for segment in receipt.segments),
        "shards": plan.shard_count,
        "duration_s": _duration_s(run),
        "size_in": shown_size(plan.clip.picture),
        "size_out": shown_size(plan.picture),
        "model": plan.card.name,
        "output_bytes": done.size_bytes if done else None,
        "merge_s": done.seconds.get("merge") if done else None,
        "ran": asdict(facts.what_ran(plan, receipts)),
        "scenes": [asdict(each) for each in scenes],
        "loops": [asdict(each) for each in loops],
        "why_no_pictures": why,
        "history": shown_history(history),
        "rounds": [each.model_dump(mode="json") for each in status.rounds],
        "checks": [asdict(each) for each in facts.checks(run, receipts, done)],
        "verification": facts.stored(run, VERIFICATION),
        "quality": facts.stored(run, QUALITY),
        "estimate": estimate.model_dump(mode="json") if estimate else None,
        "spent": asdict(read_spent(run, estimate)),
        "again": asdict(facts.reproduce(plan.job, plan.card.name)),
    }
    log.info("report gathered uri=%s seconds=%.2f", run.uri, time.monotonic() - began)
    return document


def shown_history(history: History, base_s: float | None = None) -> dict[str, Any]:
    """Times from `base_s` or the start, in rows that stay small with ten thousand shards."""
    t0 = history.start_s if base_s is None else base_s
    return {
        "start_s": t0,
        "span_s": round(history.stop_s - t0, 3),
        "lanes": [
            {**asdict(lane), "start_s": round(lane.start_s - t0, 3), "stop_s": round(lane.stop_s - t0, 3)}
            for lane in history.lanes
        ],
        "bars": [
            [
                b.lane,
                round(b.start_s - t0, 2),
                round(b.stop_s - t0, 2),
                b.shard,
                b.frames,
                b.generation,
                b.worst_psnr_db,
            ]
            for b in history.bars
        ],
        "breaks": [
            [b.lane, round(b.start_s - t0, 2), round(b.stop_s - t0, 2), b.shard, b.cause, b.text]
            for b in history.breaks
        ],
        "step_s": history.step_s,
        "fps": list(history.fps),
    }


def _pictures(run: Run, done: Done | None) -> tuple[Any, Any, str]:
    """Before and after; a report without them says why."""
    if done is None:
        return (), (), "Pictures come with the finished output."
    try:
        return (*show(run, done), "")
    except (VsrError, OSError, ValueError) as exc:
        log.warning("no pictures in the report uri=%s why=%s", run.uri, exc)
        return (), (), f"Pictures could not be read: {exc}"


def _duration_s(run: Run) -> float:
    timeline, plan = run.timeline, run.plan
    stop = float(timeline.time_of(plan.stop)) if plan.stop < len(timeline) else float(timeline.duration_s)
    return stop - float(timeline.time_of(plan.start))
