"""How far a run is, read from its store: receipts for what is done, heartbeats for what is going on."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from vsr_hpc.errors import VsrError
from vsr_hpc.run.documents import Done, Heartbeat, Poison, Round
from vsr_hpc.run.liveness import is_process_gone
from vsr_hpc.run.run import Run
from vsr_hpc.run.spending import Estimate, Spent, read_estimate, shards_lost, spent_by
from vsr_hpc.storage.opening import open_output
from vsr_hpc.storage.output import OutputState

log = logging.getLogger(__name__)

STAGES = ("decode", "device", "encode", "check", "store")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    heartbeat: Heartbeat
    age_s: float
    """Seconds since its last heartbeat, on the store's clock."""
    is_alive: bool
    fps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """One moment of a run."""

    uri: str
    state: str
    """waiting, planning, running, finishing, merging, incomplete, poisoned, cancelled; at the end complete,
    `output gone` or `output changed` where the output is not what the run published."""
    shards: int
    shards_done: int
    shards_running: int
    shards_poisoned: int
    frames: int
    frames_done: int
    """In finished shards."""
    frames_shown: int
    """With those of shards in hand."""
    fps: float
    fps_overall: float
    eta_s: float | None
    workers: tuple[WorkerStatus, ...]
    seconds: dict[str, float]
    poisoned: tuple[Poison, ...]
    rounds: tuple[Round, ...]
    done: Done | None
    output_state: OutputState | None = None
    """How a finished run's output compares with what was published; None where it cannot be looked at."""
    repeated: int = 0
    """Frames that got an equal one's result (`skip_duplicates`), by all workers so far."""
    queue: tuple[str, ...] = ()
    """What the executor's scheduler says of the run's jobs, for people."""
    estimate: Estimate | None = None
    """What was expected when the run began."""
    spent: Spent | None = None
    report: str = ""
    """Where the report of a finished run lies; empty where there is none."""

    @property
    def alive(self) -> tuple[WorkerStatus, ...]:
        return tuple(worker for worker in self.workers if worker.is_alive)

    @property
    def shards_missing(self) -> int:
        return self.shards - self.shards_done


def read_status(run: Run) -> RunStatus:
    """Read a run's state: three listings and one object for each worker, whatever the number of shards."""
    rounds, control = run.rounds(), run.control()
    done = run.done()
    output_state = _output_state(done) if done is not None else None
    workers = _workers(run)
    alive = [worker for worker in workers if worker.is_alive]
    is_cancelled = bool(rounds) and control.is_cancelled(rounds[-1].number)
    if not run.has_plan():
        state = "cancelled" if is_cancelled else "planning" if alive else "waiting"
        return RunStatus(
            uri=run.uri, state=state, shards=0, shards_done=0, shards_running=0, shards_poisoned=0, frames=0,
            frames_done=0, frames_shown=0, fps=0.0, fps_overall=0.0, eta_s=None, workers=workers, seconds={},
            poisoned=(), rounds=rounds, done=done,
        )  # fmt: skip
    plan, finished = run.plan, run.finished()
    frames_done = sum(plan.shard(shard).frames for shard in finished)
    running = {
        beat.shard: beat.shard_frames for beat in (w.heartbeat for w in alive) if beat.shard is not None
    }
    poisoned = run.poisoned() if control.poisoned else ()
    in_hand = sum(frames for shard, frames in running.items() if shard not in finished)
    shown = min(plan.frames, frames_done + in_hand)
    fps = sum(worker.fps for worker in alive if worker.heartbeat.state == "working")
    return RunStatus(
        uri=run.uri,
        state=_AFTER_THE_END[output_state]
        if done is not None
        else _state(plan.shard_count == len(finished), is_cancelled, bool(alive), bool(poisoned)),
        shards=plan.shard_count,
        shards_done=len(finished),
        shards_running=sum(1 for shard in running if shard not in finished),
        shards_poisoned=len(poisoned),
        frames=plan.frames,
        frames_done=frames_done,
        frames_shown=shown,
        fps=fps,
        fps_overall=(done.fps if done is not None else 0.0) or _overall(workers),
        eta_s=(plan.frames - shown) / fps if fps > 0 else None,
        workers=workers,
        seconds=_summed(workers),
        repeated=sum(worker.heartbeat.repeated for worker in workers),
        poisoned=poisoned,
        rounds=rounds,
        done=done,
        output_state=output_state,
    )


_AFTER_THE_END: dict[OutputState | None, str] = {
    None: "complete",
    "same": "complete",
    "touched": "complete",
    "other": "output changed",
    "gone": "output gone",
}


def _output_state(done: Done) -> OutputState | None:
    try:
        return open_output(done.output).compare(done.published)
    except (VsrError, OSError) as exc:  # whoever may read the run need not be allowed to read its output
        log.warning("output not looked at output=%s why=%s", done.output, exc)
        return None


def with_costs(status: RunStatus, run: Run) -> RunStatus:
    """The status with the estimate and what was spent; leases are only looked at when nobody works."""
    estimate = read_estimate(run)
    leases = {} if status.alive else run.leases()
    spent = spent_by(
        [worker.heartbeat for worker in status.workers],
        status.rounds,
        status.done,
        now_s=run.store.now_s(),
        window_s=run.lease_window_s,
        begun_s=run.begun_s(),
        shards_lost=shards_lost(leases, run.finished() if leases else frozenset()),
        estimate=estimate,
    )
    return replace(status, estimate=estimate, spent=spent)


def _workers(run: Run) -> tuple[WorkerStatus, ...]:
    beats = run.heartbeats()
    if not beats:
        return ()
    written = run.beaten()
    now = run.store.now_s()
    return tuple(
        WorkerStatus(
            heartbeat=beat,
            age_s=max(0.0, now - written.get(beat.worker, now)),
            is_alive=_is_alive(beat, now - written.get(beat.worker, now), run.lease_window_s),
            fps=beat.frames / max(beat.updated_s - beat.started_s, 1e-3),
        )
        for beat in beats
    )


def _is_alive(beat: Heartbeat, age_s: float, window_s: float) -> bool:
    return beat.state != "left" and age_s < window_s and not is_process_gone(beat)


def _state(is_complete: bool, is_cancelled: bool, has_workers: bool, has_poison: bool) -> str:
    if has_workers and is_complete:
        return "finishing"
    if is_cancelled:  # even while the last heartbeats of killed workers are young
        return "cancelled"
    if has_workers:
        return "running"
    return "poisoned" if has_poison else "merging" if is_complete else "incomplete"


def _overall(workers: tuple[WorkerStatus, ...]) -> float:
    """Frames per second of the latest round, from its first worker's start to its last heartbeat."""
    latest = max((worker.heartbeat.round for worker in workers), default=0)
    beats = [worker.heartbeat for worker in workers if worker.heartbeat.round == latest]
    if not beats:
        return 0.0
    span = max(beat.updated_s for beat in beats) - min(beat.started_s for beat in beats)
    return sum(beat.frames for beat in beats) / span if span > 0 else 0.0


def _summed(workers: tuple[WorkerStatus, ...]) -> dict[str, float]:
    total: dict[str, float] = {}
    for worker in workers:
        for stage, seconds in worker.heartbeat.seconds.items():
            total[stage] = total.get(stage, 0.0) + seconds
    return {stage: round(seconds, 3) for stage, seconds in sorted(total.items())}
