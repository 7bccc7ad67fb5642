"""What a Python program calls to upscale files and to handle runs: the code below the command line."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vsr_hpc import launch
from vsr_hpc.errors import JobError, error_of_exit_code
from vsr_hpc.executors.local import last_words, start_command
from vsr_hpc.job.reading import load_job, override, parse_job, with_absolute_paths
from vsr_hpc.job.spec import JobSpec
from vsr_hpc.models.defaults import AUTO
from vsr_hpc.run.documents import Done, Heartbeat
from vsr_hpc.run.run import Run
from vsr_hpc.run.status import RunStatus, read_status
from vsr_hpc.system.interrupts import Reason, StopFlag, signals_set
from vsr_hpc.system.user_folders import user_folder

if TYPE_CHECKING:
    from torch import nn

Progress = Callable[[int, int], None]
"""Is called with the number of frames that are done, and of all frames."""
Executor = Literal["local", "slurm", "aws-batch"]

_LOOK_EVERY_S = 1.0
_SCHEDULERS = ("slurm", "aws-batch", "step-functions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished run."""

    output: str
    frames: int
    size_bytes: int
    sha256: str
    seconds: Mapping[str, float]
    """Busy seconds of each stage, summed over all workers: decode, device, encode, check, store, merge."""
    fps: float
    """Frames per second of the latest round, all workers together."""
    report: str | None
    """The HTML report; None where the run has none."""
    notes: tuple[str, ...]
    run: RunHandle


@dataclass(frozen=True, slots=True)
class RunHandle:
    """A run, wherever it works."""

    run: Run
    _command: tuple[subprocess.Popen[bytes], Path] | None = field(default=None, repr=False)
    """The process on this machine that carries the run on, and the file of what it says."""

    @property
    def uri(self) -> str:
        """The run's address, as `vsr status` takes it."""
        return self.run.uri

    def status(self) -> RunStatus:
        """Read how far the run is."""
        return launch.whole_status(self.run)

    def cancel(self) -> bool:
        """Stop the run's workers. Finished shards are kept. False where the run is complete already."""
        return launch.cancel(self.run)

    def resume(self) -> RunHandle:
        """Start workers again where the run worked last; the handle that watches them."""
        job = self.run.job().model_copy(update={"on": launch.executor_of(self.run)})
        launch.retry(self.run)
        return _start(self.run, job)

    def wait(self, timeout_s: float | None = None, *, on_progress: Progress | None = None) -> RunStatus:
        """Wait until the output is in place. TimeoutError after `timeout_s`; the run goes on then.

        An error of the run's is raised as it is; JobError where nobody works on the run any more.
        """
        began = idle_since = time.monotonic()
        while True:
            status = self.status()
            if on_progress is not None:
                on_progress(status.frames_shown, status.frames)
            if launch.already_done(self.run) is not None and not self._is_carried():
                return self.status()  # the report is written after the output
            now = time.monotonic()
            if not self._is_idle(status):
                idle_since = now
            elif status.state in ("cancelled", "poisoned") or now - idle_since > self.run.lease_window_s:
                raise JobError(_why_idle(status))
            if timeout_s is not None and now - began > timeout_s:
                raise TimeoutError(f"{self.uri}: {status.state} after {timeout_s:g} s")
            time.sleep(min(_LOOK_EVERY_S, self.run.poll_s))

    def result(self, timeout_s: float | None = None) -> Result:
        """Wait for the end of the run; what came of it."""
        status = self.wait(timeout_s)
        done = launch.already_done(self.run)
        assert done is not None
        return _result(self, done, status)

    def _is_carried(self) -> bool:
        """Whether the process that carries the run on still works."""
        return self._command is not None and self._command[0].poll() is None

    def _is_idle(self, status: RunStatus) -> bool:
        """Whether nobody works on the run. An error of the command that carries it on is raised."""
        if self._command is not None:
            process, log_file = self._command
            code = process.poll()
            if code is None:
                return False
            if code not in (0, 130):
                raise error_of_exit_code(code)(last_words(log_file) or f"vsr resume ended with code {code}")
        if status.alive:
            return False
        is_scheduled = bool(status.rounds) and status.rounds[-1].executor in _SCHEDULERS
        return not (is_scheduled and status.state == "waiting")


def upscale(
    path_in: str | os.PathLike[str],
    path_out: str | os.PathLike[str],
    *,
    scale: float | None = None,
    model: str | os.PathLike[str] | nn.Module = AUTO,
    settings: Mapping[str, Any] | None = None,
    new: bool = False,
    on_progress: Progress | None = None,
) -> Result:
    """Upscale a clip, an image or a folder of images on this machine, as `vsr upscale` does.

    `model` is a name (`vsr models list`), a file of weights or a torch module. `settings` holds further keys
    of a job file: `{"video.crf": 20}`. The same call continues an interrupted run, and returns at once where
    the output is complete; `new` starts again. Ctrl-C stops after the current frames.
    """
    given: dict[str, Any] = dict(settings or {})
    if scale is not None:
        given["picture.scale"] = scale
    with _torch_kept():
        given |= _model_settings(model, given)
        job = parse_job(override({"input": os.fspath(path_in), "output": os.fspath(path_out)}, given), "")
        submitted = launch.submit(job, is_new=new)
        done = launch.already_done(submitted.run)
        if done is None:
            done = _run_here(submitted, job, on_progress)
    handle = RunHandle(submitted.run)
    return _result(handle, done, read_status(submitted.run))


def submit(
    job: str | os.PathLike[str] | Mapping[str, Any] | JobSpec,
    *,
    on: Executor | None = None,
    new: bool = False,
) -> RunHandle:
    """Start a job and return its run. The same job submitted again continues its run.

    `job` is a job file, its content as a mapping, or a JobSpec. `on` overrides where its workers run: in a
    process of their own on this machine (local), on Slurm or on AWS Batch.
    """
    if isinstance(job, JobSpec):
        found = job
    elif isinstance(job, Mapping):
        found = parse_job(override(job, {}), "")
    else:
        found = load_job(Path(job))
    found = with_absolute_paths(found if on is None else found.model_copy(update={"on": on}))
    return _start(launch.submit(found, is_new=new).run, found)


def open_run(uri: str | os.PathLike[str]) -> RunHandle:
    """Open a run by its address (`.vsr/OUT` or `s3://…`) or by its output."""
    return RunHandle(Run.open(os.fspath(uri)))


def _start(run: Run, job: JobSpec) -> RunHandle:
    if launch.already_done(run) is not None:
        return RunHandle(run)
    if job.on != "local":
        launch.start_elsewhere(run, job)
        return RunHandle(run)
    name = hashlib.sha256(run.uri.encode()).hexdigest()[:16]
    log_file = user_folder("state") / "submitted" / f"{name}.log"
    return RunHandle(run, (start_command(run.uri, log_file), log_file))


def _run_here(submitted: launch.Submitted, job: JobSpec, on_progress: Progress | None) -> Done:
    """Carry a run to its end in this process."""
    run, stop = submitted.run, StopFlag()
    is_main = threading.current_thread() is threading.main_thread()  # only there signals can be handled
    launch.ensure_plan(run, is_new=not submitted.is_continued)
    with signals_set(stop) if is_main else contextlib.nullcontext():
        shown = _Shown(run, on_progress)
        done = launch.run_here(run, stop, how=job.run, on_beat=shown.on_beat, on_tick=shown.on_tick)
    if done is not None:
        return done
    if stop.reason is Reason.INTERRUPTED:
        raise KeyboardInterrupt("the same call continues from the last finished shard")
    raise JobError(
        f"{run.uri}: stopped ({stop.reason.value if stop.reason else 'no work is left'}); "
        "the same call continues the run"
    )


class _Shown:
    """Tells a program how many frames are done, from heartbeats of a worker here or of worker processes."""

    def __init__(self, run: Run, on_progress: Progress | None) -> None:
        self._run, self._tell = run, on_progress or (lambda done, frames: None)
        self._frames = run.plan.frames
        self._before = sum(run.plan.shard(shard).frames for shard in run.finished())
        self._looked = time.monotonic()

    def on_beat(self, heartbeat: Heartbeat) -> None:
        self._tell(min(self._before + heartbeat.frames, self._frames), self._frames)

    def on_tick(self) -> None:
        if time.monotonic() - self._looked >= _LOOK_EVERY_S:
            self._looked = time.monotonic()
            self._tell(read_status(self._run).frames_shown, self._frames)


def _model_settings(model: str | os.PathLike[str] | nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """A torch module lives in this process alone, so its run has one worker, which is this process."""
    if isinstance(model, (str, os.PathLike)):
        return {"model": os.fspath(model)}
    from torch import nn

    from vsr_hpc.models.user_modules import describe_module

    if not isinstance(model, nn.Module):
        raise JobError(f"model is a name, a file or a torch module, not {type(model).__name__}")
    if given.get("run.workers", 1) != 1:
        raise JobError("run.workers: a torch module is run by this process alone; leave run.workers out")
    asked = given.get("picture.precision", "auto")
    card = describe_module(model, precision="fp32" if asked == "auto" else asked)
    return {"model": card.name, "run.gpus": ()}


@contextlib.contextmanager
def _torch_kept() -> Iterator[None]:
    """Torch's settings are the program's; without torch, launching says what is missing."""
    from vsr_hpc.engine.platform import torch_settings_kept

    with torch_settings_kept():
        yield


def _result(handle: RunHandle, done: Done, status: RunStatus) -> Result:
    run = handle.run
    return Result(
        output=done.output,
        frames=done.frames,
        size_bytes=done.size_bytes,
        sha256=done.sha256,
        seconds={**status.seconds, **done.seconds},
        fps=status.fps_overall,
        report=launch.report_of(run) or None,
        notes=done.notes,
        run=handle,
    )


def _why_idle(status: RunStatus) -> str:
    reasons = "".join(f"\n  shard {each.shard:05d}: {each.reason}" for each in status.poisoned)
    return (
        f"{status.uri}: {status.state}, {status.shards_done} of {status.shards} shards are done and nobody "
        f"works on the run; resume() continues it{reasons}"
    )
