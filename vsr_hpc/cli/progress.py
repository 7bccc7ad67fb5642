"""Shows a run's progress, phase by phase: a live bar where stderr is a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from vsr_hpc.run.documents import Done, Heartbeat
from vsr_hpc.run.run import Run
from vsr_hpc.run.spending import Estimate, Spent
from vsr_hpc.run.status import STAGES, RunStatus, read_status
from vsr_hpc.system.interrupts import StopFlag
from vsr_hpc.wording import clock, duration, money, plural, size

_PLAIN_EVERY_S = 10.0
_READ_EVERY_S = 1.0
_MERGE_PATIENCE_S = 60.0


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        fps, eta = task.fields["fps"], task.fields["eta_s"]
        left = "" if eta is None else f"  {clock(eta)} left"
        return Text(f"{fps:6.2f} fps{left}", style="cyan")


class NamedPhase:
    """A phase of a run without a bar: a line that moves while it lasts, and one line when it has ended."""

    def __init__(self, name: str, *, is_quiet: bool = False) -> None:
        self._name, self._is_quiet = name, is_quiet
        self._began = time.monotonic()
        console = Console(stderr=True)
        self._live: Live | None = None
        if not is_quiet and console.is_terminal:
            self._live = Live(
                get_renderable=lambda: self._line(""), console=console, refresh_per_second=4, transient=True
            )
            self._live.start()

    def stop(self) -> None:
        """Take the moving line away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def end(self, text: str = "") -> None:
        """Say how long it took, and what came of it."""
        self.stop()
        if not self._is_quiet:
            print(self._line(text), file=sys.stderr, flush=True)  # noqa: T201 - this module is what people read

    def _line(self, text: str) -> str:
        return phase_line(self._name, text, time.monotonic() - self._began)


def phase_line(name: str, text: str, seconds: float) -> str:
    """`merge    0:07`, `plan     1,440 frames in 3 shards  0:04`."""
    return f"{name:<8} {text}{'  ' if text else ''}{clock(seconds)}"


class Watching:
    """Shows a run's progress until the block ends. Speed and time left count only its own frames.

    `on_output` is called once the output is in place and verified, before the report is made. `is_brief`
    leaves out the lines that name phases, for one of many stills.
    """

    def __init__(
        self,
        run: Run,
        stop: StopFlag | None = None,
        *,
        is_quiet: bool = False,
        is_brief: bool = False,
        on_output: Callable[[Done], None] = lambda done: None,
    ) -> None:
        self._run, self._stop, self._is_quiet, self._on_output = run, stop, is_quiet, on_output
        self._is_brief = is_brief
        self._console = Console(stderr=True)
        self._phase: NamedPhase | None = None
        self._is_working = False
        self._frames_before = 0
        self._frames, self._fps = 0, 0.0
        self._eta_s: float | None = None
        self._entered = self._began = self._read_at = self._said_at = time.monotonic()
        self._status: RunStatus | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} frames"),
            _Speed(),
            console=self._console,
        )
        self._live: Live | None = None

    def __enter__(self) -> Watching:
        plan = self._run.plan
        done = self._run.finished()
        self._frames_before = sum(plan.shard(shard).frames for shard in done)
        self._frames = self._frames_before
        self._task = self._bar.add_task(
            "upscale ", total=plan.frames, completed=self._frames, fps=0.0, eta_s=None
        )
        if not self._is_quiet and self._console.is_terminal:
            self._live = Live(
                get_renderable=self._render, console=self._console, refresh_per_second=4, transient=True
            )
            self._live.start()
        elif not self._is_quiet and self._frames_before:
            self._say(f"resuming: {self._frames_before:,} of {plan.frames:,} frames are done")
        return self

    def on_phase(self, phase: str, done: Done | None) -> None:
        """The run begins another phase; upscaling begins with the block, and again where shards were lost."""
        if phase == "upscale":
            return
        if self._phase is not None:
            self._phase.end()
        else:
            self._end_bar()
        if phase == "report" and done is not None:
            self._on_output(done)
        self._phase = NamedPhase(phase, is_quiet=self._is_quiet or self._is_brief)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if self._phase is not None and kind is None:
            self._phase.end()
        elif self._phase is not None:
            self._phase.stop()
        elif kind is None:
            self._end_bar()

    def _end_bar(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        finished = sum(self._run.plan.shard(shard).frames for shard in self._run.finished())
        made = finished - self._frames_before  # frames of a shard that was lost do not count
        if made > 0 and not self._is_quiet and not self._is_brief:
            self._say(phase_line("upscale", plural(made, "frame"), time.monotonic() - self._entered))

    def on_beat(self, heartbeat: Heartbeat) -> None:
        """A worker inside this process made progress."""
        self._say_stopping()
        self._note_work(heartbeat.state == "working")
        self._advance(self._frames_before + heartbeat.frames)

    def on_tick(self) -> None:
        """Some time passed. Workers in other processes are seen by their heartbeats."""
        self._say_stopping()
        now = time.monotonic()
        if now - self._read_at < _READ_EVERY_S:
            return
        self._read_at = now
        self._status = read_status(self._run)
        self._note_work(any(each.heartbeat.state == "working" for each in self._status.alive))
        self._advance(self._status.frames_shown)

    def _note_work(self, is_working: bool) -> None:
        """The speed is measured from the first shard on, not from the start of the program."""
        if is_working and not self._is_working:
            self._is_working, self._began = True, time.monotonic()

    def _advance(self, frames: int) -> None:
        self._frames = max(self._frames, frames)
        spent = time.monotonic() - self._began
        made = self._frames - self._frames_before
        self._fps = made / spent if spent > 0 else 0.0
        self._eta_s = (self._run.plan.frames - self._frames) / self._fps if self._fps > 0 else None
        self._bar.update(self._task, completed=self._frames, fps=self._fps, eta_s=self._eta_s)
        now = time.monotonic()
        if self._live is None and not self._is_quiet and now - self._said_at >= _PLAIN_EVERY_S:
            self._said_at = now
            left = "" if self._eta_s is None else f", {clock(self._eta_s)} left"
            self._say(f"{self._frames:,}/{self._run.plan.frames:,} frames, {self._fps:.2f} fps{left}")

    def _render(self) -> RenderableType:
        if self._status is None or len(self._status.alive) < 2:
            return self._bar
        return Group(self._bar, workers_table(self._status))

    def _say_stopping(self) -> None:
        if self._stop is None or not self._stop.is_set() or self._is_quiet:
            return
        self._stop = None
        self._say("stopping after the current frames; Ctrl-C again aborts at once")

    def _say(self, text: str) -> None:
        if self._live is not None and self._live.is_started:
            self._console.print(text)  # above the bar
        else:
            print(text, file=sys.stderr, flush=True)  # noqa: T201 - this module is what people read


@contextlib.contextmanager
def downloading(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar for a download, where stderr is a terminal. The value takes the bytes so far and in all."""
    with Progress(
        TextColumn(name), BarColumn(), DownloadColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task(name, total=None)
        yield lambda so_far, total: bar.update(task, completed=so_far, total=total)


def workers_table(status: RunStatus, *, is_all: bool = False) -> Table:
    """What each worker does. Workers that are dead or gone are shown only with `is_all`."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("worker", "node", "state", "shard", "frames", "fps", "age", "restarts"):
        table.add_column(column, justify="left" if column in ("worker", "node", "state") else "right")
    for worker in status.workers if is_all else status.alive:
        beat = worker.heartbeat
        is_known = worker.is_alive or beat.state == "left"
        why = f" ({beat.note})" if beat.state == "left" and beat.note else ""
        state = f"{beat.state}{why}" if is_known else "dead"
        table.add_row(
            beat.worker,
            beat.node,
            state,
            "" if beat.shard is None else f"{beat.shard}",
            str(beat.frames),
            f"{worker.fps:.2f}",
            clock(worker.age_s),
            str(beat.restart),
        )
    return table


def status_lines(status: RunStatus) -> list[RenderableType]:
    """A run's status as lines for a person."""
    bar = f"{status.frames_shown:,}/{status.frames:,} frames" if status.frames else "no plan yet"
    share = f" ({status.frames_shown / status.frames:.0%})" if status.frames else ""
    lines: list[RenderableType] = [
        Text(f"{status.uri}", style="bold"),
        Text(f"{status.state}: {bar}{share}"),
        Text(
            f"shards: {status.shards_done} done, {status.shards_running} running, "
            f"{status.shards_missing - status.shards_running} missing of {status.shards}"
            + (f", {status.shards_poisoned} set aside" if status.shards_poisoned else "")
        ),
    ]
    if status.fps or status.fps_overall:
        left = "" if status.eta_s is None else f", {clock(status.eta_s)} left"
        now = f"{status.fps:.2f} fps now, " if status.alive else ""
        overall = "while upscaling" if status.done is not None else "overall"
        lines.append(Text(f"speed: {now}{status.fps_overall:.2f} fps {overall}{left}"))
    spent = {stage: status.seconds.get(stage, 0.0) for stage in STAGES}
    if sum(spent.values()) > 0:
        shares = ", ".join(f"{stage} {seconds / sum(spent.values()):.0%}" for stage, seconds in spent.items())
        lines.append(Text(f"time by stage: {shares}"))
    if status.repeated:
        lines.append(Text(f"repeated frames: {status.repeated} reused an equal frame's result"))
    is_done = status.done is not None
    lines += [Text(each) for each in spending_lines(status.estimate, status.spent, is_done=is_done)]
    if status.workers:
        lines.append(workers_table(status, is_all=True))
    lines += [Text(each) for each in status.queue]
    lines += [
        Text(f"set aside: shard {each.shard:05d} after {len(each.nodes)} nodes: {each.reason}", style="red")
        for each in status.poisoned
    ]
    if status.state in _NEXT:
        lines.append(Text(_NEXT[status.state].format(uri=status.uri), style="yellow"))
    if status.done is not None:
        done = status.done
        if status.output_state == "touched":
            lines.append(Text("the output has another modification time than when it was published"))
        lines.append(
            Text(
                f"output: {done.output}  {plural(done.frames, 'frame')}, {size(done.size_bytes)} "
                f"({done.size_bytes:,} bytes), sha256 {done.sha256[:16]}"
            )
        )
    if status.report:
        lines.append(Text(f"report: {status.report}"))
    return lines


def say_status(status: RunStatus) -> None:
    """Print the status on stdout. Lines are not wrapped where a program or a file reads them."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_UNBROKEN)
    for line in status_lines(status):
        console.print(line, soft_wrap=isinstance(line, Text))


_UNBROKEN = 1000

_NEXT = {
    "incomplete": "no worker is running: `vsr resume {uri}` continues",
    "cancelled": "`vsr resume {uri}` continues",
    "poisoned": "`vsr resume {uri} --retry-poisoned` tries again what was set aside",
    "output gone": "the output of this run is not there: the same `vsr upscale` or `vsr submit` starts over",
    "output changed": "the output is not the file that this run published: move it away, then the same "
    "`vsr upscale` or `vsr submit` starts over",
    "merging": "all shards are done: `vsr finish {uri}` merges them, unless another process does already",
}


def watch(read: Callable[[], RunStatus], *, every_s: float = 1.0) -> RunStatus:
    """Show a run's status in place until it is complete or no worker is left."""
    status = read()
    merging_since: float | None = None
    with Live(Group(*status_lines(status)), console=Console(), refresh_per_second=4) as live:
        while status.state in ("running", "planning", "finishing", "merging", "waiting"):
            is_unwatched = status.state == "merging"  # another command merges, or none
            merging_since = (merging_since or time.monotonic()) if is_unwatched else None
            if merging_since is not None and time.monotonic() - merging_since > _MERGE_PATIENCE_S:
                break
            time.sleep(every_s)
            status = read()
            live.update(Group(*status_lines(status)))
    return status


def spending_lines(estimate: Estimate | None, spent: Spent | None, *, is_done: bool) -> tuple[str, ...]:
    """Time and cost so far beside the estimate. Nothing where neither is known."""
    if spent is None or not spent.seconds:
        return () if estimate is None else (f"estimated: {_expected(estimate)}",)
    hours = f"{spent.node_hours:.2f}" if spent.node_hours >= 0.1 else f"{spent.node_hours:.4f}"
    said = "" if estimate is None else f", estimated {_expected(estimate)}"
    made = [f"{'took' if is_done else 'so far'}: {duration(spent.seconds)}, {hours} node-hours{said}"]
    if spent.usd is not None and estimate is not None and estimate.usd is not None:
        made.append(
            f"cost: about {money(spent.usd)} by node-hours, estimated {money(estimate.usd.mid)} "
            f"({money(estimate.usd.low)} to {money(estimate.usd.high)}; {estimate.prices})"
        )
    if spent.interruptions or spent.shards_lost:
        made.append(
            f"interrupted: {plural(spent.interruptions, 'worker')}, "
            f"{plural(spent.shards_lost, 'shard')} started again"
        )
    return tuple(made)


def _expected(estimate: Estimate) -> str:
    seconds = estimate.seconds
    return f"{duration(seconds.mid)} ({duration(seconds.low)} to {duration(seconds.high)})"
