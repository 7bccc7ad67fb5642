"""Chaos on a real Slurm: during each run things break at random; its output must be the undisturbed one.

python -m tests.slurm.chaos --rounds 12 --seed 1       prints each run, then a table of faults

Every node is in a network namespace of its own, with its own metadata service. A round submits one run,
breaks `--faults` things while workers are at work, mends what an operator or a cloud would mend (nodes come
back), and waits for the end. Exit code 1 where an output is missing or differs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.slurm.fixtures import DevCluster, Options, why_not
from tests.slurm.submitted import Submitted
from vsr_hpc.job.reading import parse_job
from vsr_hpc.launch import verify_here
from vsr_hpc.run.run import Run

import cluster_processes as processes  # isort: skip  (fixtures put it on the path)

OPTIONS = Options(spot=4, ondemand=1, kill_wait_s=4, requeue_delay_s=12, network=True)
SECONDS_PER_FRAME = 0.12
LEASE_WINDOW_S = 15.0
HANG_S = 10.0
OVER = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A worker at work: its task and its node."""

    task: str
    node: str


@dataclasses.dataclass(slots=True)
class Round:
    """One run under chaos, and what became of it."""

    film: Submitted
    chance: random.Random
    quiet_s: float
    faults: Counter[str] = dataclasses.field(default_factory=Counter)
    mends: list[tuple[float, Callable[[], object]]] = dataclasses.field(default_factory=list)
    twins: list[subprocess.Popen[str]] = dataclasses.field(default_factory=list)
    resumes: int = 0
    began: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def cluster(self) -> DevCluster:
        return self.film.cluster

    def targets(self) -> list[Target]:
        """Tasks of this run that run, and whose worker is at work on a shard."""
        numbers = range(1, self.film.run.round_number() + 1)
        jobs = {
            job
            for number in numbers
            if self.film.run.store.exists(f"jobs/{number}.json")
            for job in (self.film.job(number),)
        }
        busy = {beat.task for beat in self.film.run.heartbeats() if beat.state == "working"}
        return [
            Target(task=task.name, node=task.node)
            for task in self.cluster.tasks()
            if task.name.partition("_")[0] in jobs and task.state == "RUNNING" and f"dev-{task.name}" in busy
        ]

    def python_of(self, task: str) -> list[int]:
        """The worker's own process: neither the batch script nor srun."""
        pids = self.cluster.job_pids(task)
        return [pid for pid in pids if processes.command_line_of(pid).startswith(sys.executable)]

    def later(self, call: Callable[[], object], *, low: float = 6.0, high: float = 20.0) -> None:
        self.mends.append((time.monotonic() + self.chance.uniform(low, high), call))

    def mend(self, *, all_of_them: bool = False) -> None:
        now = time.monotonic()
        for entry in [each for each in self.mends if all_of_them or each[0] <= now]:
            self.mends.remove(entry)
            entry[1]()


# What can break. Each takes a round and a worker at work and says whether it hit.


def kill_python(state: Round, target: Target) -> bool:
    return _killed(state.python_of(target.task))


def kill_slurmstepd(state: Round, target: Target) -> bool:
    return _killed(state.cluster.stepd_pids(target.task))


def kill_slurmd(state: Round, target: Target) -> bool:
    with contextlib.suppress(ProcessLookupError):
        state.cluster.kill_daemon(f"slurmd-{target.node}")
    state.later(lambda: _revive(state.cluster, target.node), low=1.0, high=40.0)
    return True


def requeue(state: Round, target: Target) -> bool:
    return state.cluster.run_as_user(["scontrol", "requeue", target.task], check=False).returncode == 0


def node_down(state: Round, target: Target) -> bool:
    state.cluster.set_node_state(target.node, "down", "chaos")
    state.later(lambda: _revive(state.cluster, target.node))
    return True


def node_drain(state: Round, target: Target) -> bool:
    state.cluster.set_node_state(target.node, "drain", "chaos")
    state.later(lambda: _revive(state.cluster, target.node))
    return True


def node_gone(state: Round, target: Target) -> bool:
    """An instance that is taken without a word."""
    state.cluster.kill_node(target.node)
    state.later(lambda: _revive(state.cluster, target.node), low=15.0, high=35.0)
    return True


def spot_notice(state: Round, target: Target) -> bool:
    """A notice, and the node is taken: two minutes scaled down to ten seconds."""
    state.cluster.imds(target.node).notice(in_s=10)

    def take() -> None:
        state.cluster.kill_node(target.node)
        state.cluster.imds(target.node).clear()
        state.later(lambda: _revive(state.cluster, target.node), low=15.0, high=30.0)

    state.later(take, low=9.0, high=11.0)
    return True


def spot_notice_drained(state: Round, target: Target) -> bool:
    """The same where the root service drains the node."""
    spot_notice(state, target)
    state.later(lambda: state.cluster.set_node_state(target.node, "drain", "spot"), low=0.0, high=5.0)
    return True


def preemption(state: Round, target: Target) -> bool:
    wish = [f"--nodelist={target.node}", "--partition=reclaim", "--gpus-per-node=1"]
    state.cluster.submit("sleep 5", *wish)
    return True


def limit_warning(state: Round, target: Target) -> bool:
    """What Slurm sends before the time limit."""
    warned = ["scancel", "--signal=USR2", target.task]
    return state.cluster.run_as_user(warned, check=False).returncode == 0


def controller_restart(state: Round, target: Target) -> bool:
    state.cluster.restart_controller()
    return True


def network_cut(state: Round, target: Target) -> bool:
    """The node is off the network for a while; its worker goes on writing to the shared folder."""
    state.cluster.cut_network(target.node)
    state.later(lambda: _reconnect(state.cluster, target.node), low=15.0, high=50.0)
    return True


def two_on_one_shard(state: Round, target: Target) -> bool:
    """A second worker under the same task name takes the first one's shard at once; both go on."""
    argv = ["vsr", "worker", state.film.run.uri, "--task", f"dev-{target.task}", "--threads", "1", "-q"]
    packages = f"{state.film.folder}:{state.cluster.user_env['PYTHONPATH']}"
    env = {"SLURMD_NODENAME": target.node, "PYTHONPATH": packages}
    state.twins.append(state.cluster.start_as_user(argv, node=target.node, env=env))
    return True


def frozen_worker(state: Round, target: Target) -> bool:
    """A worker stops for longer than a lease lives, others take over, then it goes on."""
    pids = state.python_of(target.task)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            state.later(  # after the lease has grown stale
                lambda pid=pid: _continue(pid),  # type: ignore[misc]
                low=LEASE_WINDOW_S + 5.0,
                high=LEASE_WINDOW_S + 15.0,
            )
    return bool(pids)


def hung_worker(state: Round, target: Target) -> bool:
    """The device of a worker answers no more, while its heartbeat goes on; its watchdog must end it."""
    state.film.hang(target.task, state.cluster.task(target.task).restarts)
    return True


def source_outage(state: Round, target: Target) -> bool:
    """The disk with the source is away for a while, for all workers."""
    clip = state.film.folder / "clip.mkv"
    away = clip.with_name("clip.away")
    if not clip.exists():
        return False  # the last outage is not over yet
    clip.rename(away)
    state.later(lambda: away.rename(clip), low=5.0, high=15.0)
    return True


FAULTS: dict[str, Callable[[Round, Target], bool]] = {
    "kill -9 python": kill_python,
    "kill -9 slurmstepd": kill_slurmstepd,
    "kill -9 slurmd": kill_slurmd,
    "scontrol requeue": requeue,
    "node set down": node_down,
    "node set to drain": node_drain,
    "instance gone": node_gone,
    "spot notice, node taken": spot_notice,
    "spot notice, drained, taken": spot_notice_drained,
    "preemption": preemption,
    "warning of the time limit": limit_warning,
    "slurmctld restart": controller_restart,
    "node off the network": network_cut,
    "two workers on one shard": two_on_one_shard,
    "worker frozen past its lease": frozen_worker,
    "hung worker": hung_worker,
    "source outage": source_outage,
}
QUICK = (
    "scontrol requeue",
    "node set down",
    "preemption",
    "warning of the time limit",
    "slurmctld restart",
    "two workers on one shard",
    "spot notice, drained, taken",
    "kill -9 slurmstepd",
    "source outage",
    "hung worker",
)
"""Faults after which Slurm starts the task again: no lease has to grow old. The last one comes first."""


def _killed(pids: Iterable[int]) -> bool:
    hit = False
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            hit = True
    return hit


def _continue(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _revive(cluster: DevCluster, node: str) -> None:
    """Boot the node again, as a cloud or an operator would."""
    cluster.imds(node).clear()
    with contextlib.suppress(ProcessLookupError):
        cluster.start_node(node)
    for _ in range(20):
        state = cluster.node_state(node)
        if not state.startswith(("down", "drain")) and not state.endswith("*"):
            return
        cluster.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False)
        time.sleep(0.5)


def _reconnect(cluster: DevCluster, node: str) -> None:
    cluster.restore_network(node)
    _revive(cluster, node)


# Rounds


def play(state: Round, wanted: tuple[str, ...], *, patience_s: float = 420.0) -> None:
    """Let the faults happen while workers work, then see the run to its end."""
    until = time.monotonic() + patience_s
    ahead = list(wanted)
    while time.monotonic() < until and state.film.run.done() is None:
        state.mend()
        if not ahead and not state.mends:
            state.film.speed_up()
        targets = state.targets() if ahead else []
        if targets:
            if FAULTS[ahead[-1]](state, state.chance.choice(targets)):
                state.faults[ahead.pop()] += 1
            _pause(state, state.chance.uniform(0.5, 3.0))
        else:
            _pause(state, 0.5)
            _carry_on(state)
    state.mend(all_of_them=True)
    state.film.wait_done()
    for twin in state.twins:
        twin.wait(120)


def _pause(state: Round, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        state.mend()
        time.sleep(0.1)


def _carry_on(state: Round) -> None:
    """Where a run stopped for good, do what its user would do after reading why."""
    cluster = state.cluster
    if state.mends or any(task.state not in OVER for task in cluster.tasks()) or state.film.run.done():
        return
    said = state.film.vsr("resume", str(state.film.output), check=False)
    if said.returncode == 0 and state.film.run.done() is None:
        state.resumes += 1


def kill_whoever_takes(state: Round, shard: int) -> None:
    """A shard that kills its worker, each time, until it is set aside and named."""
    cluster, run = state.cluster, state.film.run
    struck: set[str] = set()
    until = time.monotonic() + 600.0
    while time.monotonic() < until and not run.poisoned():
        for beat in run.heartbeats():
            is_at_it = beat.shard == shard and beat.worker not in struck and beat.state == "working"
            if is_at_it and _killed(state.python_of(beat.task.removeprefix("dev-"))):
                struck.add(beat.worker)
                state.faults["a shard that kills its worker"] += 1
        time.sleep(0.05)
    cluster.wait_until(
        lambda: bool(run.poisoned()) and run.missing() == {shard}, "all other shards", timeout_s=300.0
    )
    finish = state.film.job(run.round_number(), "finish")
    cluster.wait_until(lambda: set(cluster.states(finish).values()) <= OVER, "finish", timeout_s=180.0)
    assert run.done() is None and cluster.task(finish).state == "FAILED"
    assert any(f"shard {shard:05d}" in line for line in state.film.status()["queue"])
    state.film.resume("--retry-poisoned")
    state.resumes += 1
    state.film.wait_done()


def film_of(
    cluster: DevCluster, name: str, frames: int, *, sick: str = "", limit_min: int = 60, **run: float
) -> Submitted:
    """A job of `frames` / 6 shards whose device is slow, and on the node `sick` wrong."""
    return Submitted(
        cluster,
        name,
        frames=frames,
        slow_s=SECONDS_PER_FRAME,
        sick=sick,
        run={"workers": 5, "chunk_s": 6 / 24, "lease_window_s": LEASE_WINDOW_S, "hang_s": HANG_S, **run},
        slurm={"time_limit_min": limit_min, "warning_s": 20},
    )


def redone(run: Run) -> int:
    """Leases beyond the first: what the faults cost, in shards."""
    return sum(receipt.generation - 1 for receipt in run.receipts())


@dataclasses.dataclass(slots=True)
class Sum:
    faults: Counter[str] = dataclasses.field(default_factory=Counter)
    redone: int = 0
    lost_s: float = 0.0
    resumes: int = 0
    rounds: int = 0
    runs: int = 0

    def add(self, state: Round, wanted: str, sha256: str) -> bool:
        run = state.film.run
        took = time.monotonic() - state.began
        self.faults += state.faults
        self.redone += redone(run)
        self.lost_s += max(0.0, took - state.quiet_s)
        self.resumes += state.resumes
        self.rounds += run.round_number()
        self.runs += 1
        told = ", ".join(f"{kind} {count}" for kind, count in sorted(state.faults.items()))
        same = "same bytes" if sha256 == wanted else "OTHER BYTES"
        _say(
            f"run {self.runs}: {sum(state.faults.values())} faults ({told}); {same}, "
            f"{redone(run)} of {run.plan.shard_count} shards redone, {run.round_number()} rounds, "
            f"{took:.0f} s (undisturbed {state.quiet_s:.0f} s)"
        )
        return sha256 == wanted

    def table(self) -> str:
        lines = ["| fault | times |", "| --- | --- |"]
        lines += [f"| {kind} | {count} |" for kind, count in sorted(self.faults.items())]
        lines.append(f"| **all** | **{sum(self.faults.values())}** |")
        return "\n".join(lines) + (
            f"\n\n{self.runs} runs, {sum(self.faults.values())} faults: every output complete and "
            f"byte-identical. {self.redone} shards were taken again, {self.rounds - self.runs} rounds were "
            f"begun beyond the first, {self.resumes} of them by hand. {self.lost_s:.0f} s lost in all, "
            f"{self.lost_s / max(1, sum(self.faults.values())):.0f} s a fault.\n"
        )


def chaos(
    *, rounds: int, faults: int, seed: int, kinds: tuple[str, ...], frames: int, with_hard: bool
) -> Sum:
    """Run it all; AssertionError or TimeoutError where a run did not end as it must."""
    chance, total = random.Random(seed), Sum()
    with DevCluster(OPTIONS) as cluster:
        calm = film_of(cluster, "calm", frames)
        wanted = calm.alone()
        files = {"input": str(calm.folder / "clip.mkv"), "output": str(calm.folder / "alone.mkv")}
        verdict = verify_here(parse_job(files, "chaos"), is_deep=True)
        assert verdict.ok, verdict.lines()
        began = time.monotonic()
        calm.submit()
        assert calm.wait_done() == wanted
        quiet_s = time.monotonic() - began
        _say(f"undisturbed: {calm.run.plan.shard_count} shards in {quiet_s:.0f} s, {wanted[:16]}")
        pool: list[str] = []
        for number in range(rounds):
            while len(pool) < faults:
                fresh = list(kinds)
                chance.shuffle(fresh)
                pool = fresh + pool
            chosen = tuple(pool.pop() for _ in range(faults))
            film = film_of(cluster, f"r{number}", frames)
            state = Round(film, chance, quiet_s)
            film.submit()
            play(state, chosen)
            assert total.add(state, wanted, film.wait_done())
            _calm_down(cluster)
        if with_hard:
            _hard(cluster, chance, quiet_s, frames, wanted, total)
    return total


def _hard(
    cluster: DevCluster, chance: random.Random, quiet_s: float, frames: int, wanted: str, total: Sum
) -> None:
    """A time limit much shorter than the run, a node that cannot compute, a shard that cannot be computed."""
    film = film_of(cluster, "limit", frames, limit_min=1, workers=2)
    state = Round(film, chance, 2 * quiet_s)
    film.submit()
    sha256 = film.wait_done()
    state.faults["time limit"] = sum(beat.note == "time limit" for beat in film.run.heartbeats())
    assert state.faults["time limit"] >= 2
    assert total.add(state, wanted, sha256)
    _calm_down(cluster)
    node = chance.choice(cluster.spot_nodes)
    film = film_of(cluster, "sick", frames, sick=node)
    state = Round(film, chance, quiet_s, Counter({"canary fails on a node": 1}))
    film.submit()
    sha256 = film.wait_done()
    assert {name for _, name in film.run.control().avoided} == {node}
    assert not any(receipt.worker.startswith(node) for receipt in film.run.receipts())
    assert total.add(state, wanted, sha256)
    _calm_down(cluster)
    film = film_of(cluster, "deadly", frames, max_attempts=2)
    state = Round(film, chance, quiet_s)
    film.submit()
    kill_whoever_takes(state, chance.randrange(film.run.plan.shard_count))
    assert total.add(state, wanted, film.wait_done())


def _calm_down(cluster: DevCluster) -> None:
    for node in cluster.nodes:
        cluster.restore_network(node)
    cluster.run(["scancel", "--user", cluster.options.user], check=False)
    for node in cluster.nodes:
        _revive(cluster, node)
    cluster.reset()


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--faults", type=int, default=5, help="in each round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--frames", type=int, default=1440)
    parser.add_argument("--quick", action="store_true", help="only faults that Slurm mends by itself")
    given = parser.parse_args()
    if (reason := why_not(OPTIONS)) is not None:
        _say(f"no chaos here: {reason}")
        return 2
    kinds = QUICK if given.quick else tuple(FAULTS)
    total = chaos(
        rounds=given.rounds,
        faults=given.faults,
        seed=given.seed,
        kinds=kinds,
        frames=given.frames,
        with_hard=not given.quick,
    )
    _say("\n" + total.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
