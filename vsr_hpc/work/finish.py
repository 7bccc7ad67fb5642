"""Merge and verify: receipts become the output file, atomically; killed at any moment, it starts again.

Packets are copied, never re-encoded. Each segment's sha256 is checked against its receipt on the way.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import overload

from vsr_hpc.errors import BackendError, JobError, VerifyError, VsrError
from vsr_hpc.media.encode.still_archive import extract_archives, join_animation
from vsr_hpc.media.merge.merge import merge
from vsr_hpc.media.merge.request import MergeRequest
from vsr_hpc.media.segment import MergeReport, SegmentPart
from vsr_hpc.media.stills.gif import is_animation, read_loops
from vsr_hpc.planning.requests import gif_delays_of, streams_request
from vsr_hpc.planning.source_stamps import SourceGuard
from vsr_hpc.report.report import write_at_end
from vsr_hpc.run.claims import is_taken_over, take_single
from vsr_hpc.run.documents import Done, Lease, Receipt, SegmentFacts
from vsr_hpc.run.liveness import Liveness, Process, new_worker_id
from vsr_hpc.run.notification import notify
from vsr_hpc.run.run import READERS, DamagedObjectError, Run
from vsr_hpc.run.settings_proof import receipt_fault
from vsr_hpc.storage.opening import open_output, open_source
from vsr_hpc.storage.output import Published, Publisher, disk_errors_explained, is_there, remove_partial
from vsr_hpc.storage.store import MissingObject
from vsr_hpc.system.files import sha256_of_file
from vsr_hpc.system.interrupts import StopFlag
from vsr_hpc.verification.of_plan import verify_output
from vsr_hpc.wording import plural
from vsr_hpc.work.heartbeat import Pulse
from vsr_hpc.work.watchdog import Watchdog
from vsr_hpc.work.workbench import check_environment

log = logging.getLogger(__name__)

ExitCode = Callable[[str], int]
"""Decides with which code a process ends whose work hangs, from what is known about the hang."""


class ShardsLostError(VerifyError):
    """Finished shards whose segments or receipts are gone or damaged; their receipts were voided."""


Conclusion = Callable[[Run, tuple[Receipt, ...]], None]
"""What follows once the output is in place, while the `finish` lease is still held."""


@overload
def finish_patiently(run: Run, node: str, *, task: str = "") -> Done: ...


@overload
def finish_patiently(
    run: Run,
    node: str,
    *,
    task: str = "",
    stop: StopFlag,
    exit_code_of_hang: ExitCode = ...,
    then: Conclusion | None = None,
) -> Done | None: ...


def finish_patiently(
    run: Run,
    node: str,
    *,
    task: str = "",
    stop: StopFlag | None = None,
    exit_code_of_hang: ExitCode = lambda text: BackendError.exit_code,
    then: Conclusion | None = None,
) -> Done | None:
    """Finish the run, or wait for the process that finishes it and take over if that one dies.

    `task` is the scheduler's name of this task: an earlier process of that name is dead. None is returned
    only if the flag was set while another process finished the run.
    """
    worker, stop = new_worker_id(f"finish-{node}"), stop or StopFlag()
    liveness = Liveness(run=run, task=task, worker=worker)
    is_told = False
    while True:
        done = try_finish(
            run,
            worker,
            node,
            liveness,
            lambda: _keep_beating(run, worker, node, task, stop, exit_code_of_hang),
            then=then,
        )
        if done is not None:
            return done
        if not is_told:
            is_told = True
            text = "another process is finishing this run; waiting for it, or for %.0f s of silence run=%s"
            log.warning(text, run.lease_window_s, run.uri)
        if stop.wait(run.poll_s):
            return None


def try_finish(
    run: Run,
    worker: str,
    node: str,
    liveness: Liveness,
    beating: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    *,
    then: Conclusion | None = None,
) -> Done | None:
    """Finish the run unless another worker does; the end of it, or None where somebody else is at it.

    Only an observer that comes again with the same `liveness` finds out that the other one has died, and
    only one that is `beating` while it merges, or does so anyway, is left to it.
    """
    done = run.done()
    if done is not None:
        return done
    check_environment(run.plan)
    lease = take_single(run, "finish", worker, node, liveness)
    if lease is None:
        return None
    with beating():
        try:
            done, receipts = _finish_output(run, lease)
        except BaseException as exc:
            run.give_back(lease, "stopped", node, str(exc))
            if not isinstance(exc, VsrError):
                raise
            found = run.done()
            if not is_taken_over(run, lease) and (found is None or not is_in_place(found)):
                raise
            log.warning("another process has finished the run or taken it over, here it ended with: %s", exc)
            return found
        _conclude(run, receipts, then)
        return done


@contextlib.contextmanager
def _keep_beating(
    run: Run, worker: str, node: str, task: str, stop: StopFlag, exit_code_of_hang: ExitCode
) -> Iterator[None]:
    """Write heartbeats as a worker does: others leave a long merge alone and take over a dead one.

    They belong to no round, since the speed of a round's workers is computed from its heartbeats. The last
    one says why the merge was stopped.
    """
    first = Process.current().heartbeat(worker, node, task=task).model_copy(update={"state": "finishing"})
    pulse = Pulse(run, first).kept_up(last=lambda: {"note": stop.reason.value if stop.reason else ""})
    with pulse, Watchdog(run.job().run.hang_s, exit_code=exit_code_of_hang).watching():
        yield


def finish(run: Run, lease: Lease | None = None, then: Conclusion | None = None) -> Done:
    """Merge a complete run into its output. VerifyError where something is missing or not as recorded.

    `then` follows once the output is in place; by default, the report that the job asks for.
    ShardsLostError where finished shards have to be made again. BackendError where another process has taken
    over the `finish` lease.
    """
    done, receipts = _finish_output(run, lease)
    _conclude(run, receipts, then)
    return done


def _conclude(run: Run, receipts: tuple[Receipt, ...] | None, then: Conclusion | None) -> None:
    """What follows once this process has put the output in place; an error of it is the caller's."""
    if receipts is not None:
        (then or report_at_end)(run, receipts)


def _finish_output(run: Run, lease: Lease | None) -> tuple[Done, tuple[Receipt, ...] | None]:
    """Put the output in place and record the end; no receipts where that was done before."""
    done = run.done()
    if done is not None and is_in_place(done):
        notify_complete(run, done)
        return done, None
    began = time.monotonic()
    _refuse_superseded(run)
    receipts = _complete_receipts(run)
    report, published = _merge_and_publish(run, lease, receipts)
    _refuse_late(run, lease)
    done = _describe_end(run, receipts, report, published, merge_s=time.monotonic() - began)
    run.write_done(done)
    if run.plan.job.run.keep != "segments":
        _sweep(run)
    log.info("run finished output=%s frames=%d sha256=%s", done.output, done.frames, done.sha256)
    notify_complete(run, done)
    return done, receipts


def _merge_and_publish(
    run: Run, lease: Lease | None, receipts: tuple[Receipt, ...]
) -> tuple[MergeReport, Published]:
    """Merge into a partial file and put it in place; the source is compared before and after the merge."""
    guard = SourceGuard(run.plan)
    output = open_output(run.plan.job.output)
    with disk_errors_explained(output.uri):
        partial = output.partial(run.place_uri)
        try:
            guard.check(run.plan.start, run.plan.stop)
            parts = tuple(_part(run, segment) for receipt in receipts for segment in receipt.segments)
            try:
                report = _merge(run, parts, partial)
            except (MissingObject, VerifyError) as exc:
                _void_lost(run, receipts, exc)
                raise
            guard.check(run.plan.start, run.plan.stop)
            whole = Published(frames=report.frames, size_bytes=report.size_bytes, sha256=report.sha256)
            publisher = Publisher(
                run_uri=run.uri,
                number=run.number,
                replaces=run.plan.job.overwrite,
                check=lambda: _refuse_late(run, lease),
            )
            whole = output.publish(partial, whole, publisher)
        finally:
            remove_partial(partial)
        if run.is_superseded():
            output.take_back(whole)
    return report, whole


def _describe_end(
    run: Run, receipts: tuple[Receipt, ...], report: MergeReport, published: Published, *, merge_s: float
) -> Done:
    now_s, repeated = time.time(), sum(receipt.repeated for receipt in receipts)
    return Done(
        output=open_output(run.plan.job.output).uri,
        frames=report.frames,
        size_bytes=report.size_bytes,
        sha256=report.sha256,
        modified_ns=published.modified_ns,
        settings=run.plan.settings_id,
        offset_s=float(report.offset),
        notes=(*report.notes, *_repeats_note(repeated, report.frames)),
        repeated=repeated,
        platforms=len({tuple(sorted(receipt.platform.items())) for receipt in receipts}),
        finished_s=now_s,
        seconds={
            "upscale": round(upscaling_s(receipts), 3),
            "merge": round(merge_s, 3),
            "all": round(now_s - (run.begun_s() or now_s), 3),
        },
    )


def notify_complete(run: Run, done: Done) -> None:
    notify(run, "complete", f"{done.output}, {plural(done.frames, 'frame')}")


def check_output(run: Run) -> None:
    """Hold the packets and headers of a finished output against its source; VerifyError where they differ."""
    done = run.done()
    if done is None or run.plan.encoding is None:
        return
    found = verify_output(run.plan, done.output, deep=False)
    if not found.ok:
        lines = "".join(f"\n  - {each.text}" for each in found.findings)
        raise VerifyError(f"{done.output}: the output is kept, but it is not what was planned{lines}")


def check_and_report(run: Run, receipts: tuple[Receipt, ...]) -> None:
    """What follows a merge where nobody waits for the node that it runs on."""
    check_output(run)
    report_at_end(run, receipts)


def report_at_end(run: Run, receipts: tuple[Receipt, ...]) -> None:
    """Make the report, unless the job asks for none."""
    if run.plan.job.run.report != "none":
        write_at_end(run, receipts)


def upscaling_s(receipts: tuple[Receipt, ...]) -> float:
    """How long at least one worker was making what these receipts prove; side by side counts once."""
    total, until = 0.0, float("-inf")
    for start, stop in sorted((each.started_s, each.finished_s) for each in receipts):
        total += max(0.0, stop - max(start, until))
        until = max(until, stop)
    return total


def _repeats_note(repeated: int, frames: int) -> tuple[str, ...]:
    if not repeated:
        return ()
    return (f"{repeated} of {frames} frames repeat another bit by bit and were not made again",)


def _complete_receipts(run: Run) -> tuple[Receipt, ...]:
    missing = run.missing()
    if missing:
        poisoned = run.poisoned()
        text = "".join(f"\n  shard {each.shard:05d} was set aside: {each.reason}" for each in poisoned)
        hint = " (--retry-poisoned tries the set aside ones again)" if poisoned else ""
        raise VerifyError(
            f"{run.uri}: {len(missing)} of {run.plan.shard_count} shards are missing; "
            f"`vsr resume` makes them{hint}{text}"
        )
    receipts: list[Receipt] = []
    lost: dict[int, str] = {}
    finished = sorted(run.tally().finished.items())
    with ThreadPoolExecutor(READERS, thread_name_prefix="receipts") as pool:
        read = tuple(pool.map(lambda each: _sound_receipt(run, *each), finished))
    for (shard, epoch), receipt in zip(finished, read, strict=True):
        if isinstance(receipt, str):
            run.void(shard, epoch, receipt)
            lost[shard] = receipt
        else:
            receipts.append(receipt)
    if lost:
        raise _shards_lost(run, lost)
    return tuple(receipts)


def _sound_receipt(run: Run, shard: int, epoch: int) -> Receipt | str:
    """The receipt of a shard, or why it is none: unreadable twice, of other settings or of other chunks."""
    for is_last in (False, True):
        try:
            receipt = run.receipt(shard, epoch)
        except DamagedObjectError as exc:
            if is_last:
                return f"has a receipt that cannot be read ({exc})"
        else:
            break
    return receipt_fault(run.plan, receipt, shard) or receipt


def _void_lost(run: Run, receipts: tuple[Receipt, ...], why: VsrError) -> None:
    """After a failed merge: void the receipts whose segments are gone, or differ in two separate reads."""
    lost: dict[int, str] = {}
    for receipt in receipts:
        for segment in receipt.segments:
            reason = _damage(run, segment)
            if reason is not None:
                run.void(receipt.shard, receipt.epoch, reason)
                lost[receipt.shard] = reason
                break
    if lost:
        raise _shards_lost(run, lost) from why


def _damage(run: Run, segment: SegmentFacts) -> str | None:
    try:
        for _ in range(2):
            with run.store.local(segment.name) as path:
                if sha256_of_file(path) == segment.sha256:
                    return None
    except MissingObject:
        return f"has lost its segment {segment.name}"
    return f"has a damaged segment {segment.name}"


def _shards_lost(run: Run, lost: dict[int, str]) -> ShardsLostError:
    lines = "".join(f"\n  shard {shard:05d} {reason}" for shard, reason in sorted(lost.items()))
    return ShardsLostError(
        f"{run.uri}: {plural(len(lost), 'finished shard')} must be made again; `vsr resume` does that{lines}"
    )


def _refuse_superseded(run: Run) -> None:
    if run.is_superseded():
        raise JobError(
            f"{run.uri}: a newer run has taken the place of this one ({run.place_uri}), "
            "so its output is not published"
        )


def _refuse_late(run: Run, lease: Lease | None) -> None:
    """Refuse to publish for a run that was replaced, or under a lease that another process has taken over."""
    _refuse_superseded(run)
    if lease is not None and is_taken_over(run, lease):
        raise BackendError(f"{run.uri}: another process has taken the merge over while this one was silent")


def _part(run: Run, segment: SegmentFacts) -> SegmentPart:
    """A segment that is brought to this machine when its turn comes, and let go afterwards."""
    held = contextlib.ExitStack()
    return SegmentPart(
        fetch=lambda: held.enter_context(run.store.local(segment.name)),
        frames=segment.frames,
        sha256=segment.sha256,
        done=lambda path: held.close(),
    )


def _merge(run: Run, parts: tuple[SegmentPart, ...], partial: Path) -> MergeReport:
    plan = run.plan
    if plan.encoding is None and is_animation(plan.job.output):
        source = open_source(plan.clip.uri, etag=plan.source_etag)
        return join_animation(
            parts,
            partial,
            (plan.picture.width, plan.picture.height),
            gif_delays_of(plan.job, run.timeline, plan.start, plan.stop),
            read_loops(source) if plan.clip.container == "gif" else 0,
        )
    if plan.encoding is None:
        return extract_archives(parts, partial)
    request = MergeRequest(
        clip=plan.clip,
        timeline=run.timeline,
        source=open_source(plan.clip.uri, etag=plan.source_etag),
        picture=plan.picture,
        encoding=plan.encoding,
        streams=streams_request(plan.job),
        frames=(plan.start, plan.stop),
    )
    return merge(parts, request, partial, name=Path(plan.job.output))


def is_in_place(done: Done) -> bool:
    """Whether the output of a finished run still stands where it was put."""
    return is_there(open_output(done.output), done.published)


def _sweep(run: Run) -> None:
    """The output is whole: segments, orphans and scratch files are not needed any more."""
    for prefix in ("segments/", "weights/"):
        run.store.delete_many(facts.name for facts in run.store.list(prefix))
    for path in run.store.scratch.iterdir():
        remove_partial(path)
