#!/usr/bin/env python3
"""A real Slurm cluster of several nodes on this machine, for development and tests; needs root.

    dev_cluster.py up [--spot N] [--ondemand N] [--profile standard|full] [--network] ...
    dev_cluster.py run [--as-root] [--node NODE] COMMAND ...     inside, as the ordinary user
    dev_cluster.py status
    dev_cluster.py down

In a test: `with DevCluster(Options(spot=2)) as cluster: cluster.run_as_user(["sbatch", ...])`. Munge,
slurmctld and one slurmd per node run from the distribution's packages in namespaces of their own
(`cluster_init.py`), in a short private folder; nothing is written to /etc, and everything ends with
whoever holds the cluster.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cluster_processes as processes
from cluster_config import Options
from mock_imds import ImdsControl

__all__ = ["DevCluster", "ImdsControl", "Options", "Task", "why_not"]

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "sinfo", "squeue")
FULL_COMMANDS = ("slurmdbd", "mariadbd", "mariadb-install-db")
DEFAULT_ROOT = Path("/tmp/vsr-slurm")
END_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One line of squeue: a job, or one task of an array."""

    name: str  # "12", or "12_3" for a task of an array
    job_id: int  # Slurm's own number of it, SLURM_JOB_ID in its environment
    state: str
    reason: str
    restarts: int
    node: str


class DevCluster:
    """A cluster that lives as long as the `with` block, or as the process that opened it."""

    def __init__(
        self, options: Options | None = None, *, root: Path | None = None, keep: bool = False
    ) -> None:
        self.options = options or Options()
        self.root = root or Path("/nonexistent")
        self._is_given_root, self._keep = root is not None, keep
        self._owner: subprocess.Popen[str] | None = None
        self._init = 0

    # ---------------------------------------------------------------- life

    def __enter__(self) -> DevCluster:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, *, detached: bool = False) -> None:
        """Bring the cluster up; returns when every node is idle."""
        reason = why_not(self.options)
        if reason:
            raise RuntimeError(reason)
        if not self._is_given_root:
            self.root = Path(tempfile.mkdtemp(prefix="vsr-slurm-", dir="/tmp"))
        self.root.mkdir(exist_ok=True)
        self.root.chmod(0o755)
        (self.root / "options.json").write_text(self.options.to_json())
        self._owner = subprocess.Popen(
            self._init_command(detached=detached),
            stdin=subprocess.DEVNULL if detached else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if detached else None,
            text=True,
            cwd="/",
            start_new_session=True,
        )
        self._wait_ready(self._owner)
        (self.root / "run/init.pid").write_text(f"{self._init}\n")

    def stop(self) -> None:
        """End every process of the cluster and remove its folder. Harmless when it is gone already."""
        if self._owner is not None:
            self._close_pipes(self._owner)
            self._owner.wait(END_TIMEOUT_S)
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._init, signal.SIGTERM)
        _wait_until(lambda: processes.is_gone(self._init), "the cluster's end", END_TIMEOUT_S)

    @classmethod
    def attach(cls, root: Path = DEFAULT_ROOT) -> DevCluster:
        """The running cluster in `root`, brought up by another process; only `stop` ends it."""
        cluster = cls(Options.from_json((root / "options.json").read_text()), root=root)
        cluster._init = int((root / "run/init.pid").read_text())
        if processes.is_gone(cluster._init):
            raise RuntimeError(f"{root} is what is left of a cluster that was killed; remove it")
        return cluster

    def _init_command(self, *, detached: bool) -> list[str]:
        script = Path(__file__).resolve().with_name("cluster_init.py")
        spaces = ["--pid", "--fork", "--kill-child", "--mount-proc", "--uts"]
        spaces += ["--net"] * self.options.network
        flags = ["--detached"] * detached + ["--keep"] * self._keep
        own = [str(script), str(self.root), processes.own_namespace("pid"), *flags]
        return ["unshare", *spaces, "--", sys.executable, "-I", *own]

    def _wait_ready(self, owner: subprocess.Popen[str]) -> None:
        assert owner.stdout is not None
        said = owner.stdout.readline().strip()
        init = processes.child_of(owner.pid)
        if said != "READY" or init is None:
            self._close_pipes(owner)
            owner.wait(END_TIMEOUT_S)
            raise RuntimeError(f"the cluster did not start: {said or 'no word from it'}")
        self._init = init

    @staticmethod
    def _close_pipes(owner: subprocess.Popen[str]) -> None:
        for pipe in (owner.stdin, owner.stdout):
            if pipe is not None:
                pipe.close()

    # ---------------------------------------------------------------- what there is

    @property
    def nodes(self) -> tuple[str, ...]:
        return self.options.nodes

    @property
    def spot_nodes(self) -> tuple[str, ...]:
        return self.options.spot_nodes

    @property
    def ondemand_nodes(self) -> tuple[str, ...]:
        return self.options.ondemand_nodes

    @property
    def home(self) -> Path:
        """The ordinary user's home: theirs, writable, seen by every node, readable by all."""
        return self.root / "home"

    @property
    def env(self) -> dict[str, str]:
        """For Slurm's commands run by this process itself, as root (with network=True only by `run`)."""
        return {**os.environ, "SLURM_CONF": str(self.root / "etc/slurm.conf")}

    @property
    def user_env(self) -> dict[str, str]:
        """The ordinary user's environment: clean, with this interpreter's folder first on PATH.

        PYTHONPATH is this process's own, so that jobs import the packages that it imports.
        """
        return {
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "USER": self.options.user,
            "LOGNAME": self.options.user,
            "LANG": "C.UTF-8",
            "SLURM_CONF": str(self.root / "etc/slurm.conf"),
        }

    def imds(self, node: str) -> ImdsControl:
        """Steers what the node's instance metadata service says."""
        return ImdsControl(self.root / "imds", node)

    def imds_url(self, node: str) -> str:
        """The node's metadata endpoint; a job there has it in AWS_EC2_METADATA_SERVICE_ENDPOINT.

        With network=True it is the real address, 169.254.169.254, and the variable is not set.
        """
        urls: dict[str, str] = json.loads((self.root / "etc/imds.json").read_text())
        return urls[node]

    def log_text(self, lines: int = 30) -> str:
        """The end of every daemon's log, to show when a test fails."""
        files = sorted((self.root / "log").iterdir())
        tails = ((each.name, each.read_text(errors="replace").splitlines()[-lines:]) for each in files)
        return "\n".join(f"--- {name}\n" + "\n".join(tail) for name, tail in tails if tail)

    # ---------------------------------------------------------------- commands

    def command(
        self,
        argv: Sequence[str],
        *,
        user: str | None = None,
        node: str | None = None,
        cwd: Path | None = None,
    ) -> list[str]:
        """What to start from outside so that `argv` runs inside: as root or `user`, on the head or a node."""
        target = self._host_pid(f"node-{node}") if node else self._init
        spaces = ["--pid", "--mount", "--uts", *(["--net"] if self.options.network else [])]
        become = ["setpriv", f"--reuid={user}", f"--regid={_group(user)}", "--init-groups"] if user else []
        place = str(cwd or (self.home if user else "/"))
        return ["nsenter", f"--target={target}", *spaces, "--", *become, "env", f"--chdir={place}", *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        node: str | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        timeout_s: float = 60.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside as root and wait for it; RuntimeError with its words when it fails."""
        command = self.command(argv, node=node, cwd=cwd)
        return _run(command, {**self.env, **(env or {})}, stdin, timeout_s, check=check)

    def run_as_user(
        self,
        argv: Sequence[str],
        *,
        node: str | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        timeout_s: float = 60.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Like `run`, as the ordinary user and in their home. `env` adds to `user_env`."""
        command = self.command(argv, user=self.options.user, node=node, cwd=cwd)
        return _run(command, {**self.user_env, **(env or {})}, stdin, timeout_s, check=check)

    def start_as_user(
        self,
        argv: Sequence[str],
        *,
        node: str | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
    ) -> subprocess.Popen[str]:
        """Like `run_as_user`, without waiting. The process ends with the cluster at the latest."""
        command = self.command(argv, user=self.options.user, node=node, cwd=cwd)
        full_env = {**self.user_env, **(env or {})}
        return subprocess.Popen(command, env=full_env, stdout=stdout, stderr=stderr, text=True)

    def submit(self, script: str, *flags: str, env: Mapping[str, str] | None = None) -> str:
        """sbatch the text of a script as the ordinary user; returns the job's id.

        It writes to <home>/<job>.out, an array's tasks to <home>/<job>_<task>.out.
        """
        is_array = any(each.startswith(("--array", "-a")) for each in flags)
        output = "%A_%a.out" if is_array else "%j.out"
        text = script if script.startswith("#!") else f"#!/bin/sh\n{script}\n"
        argv = ["sbatch", "--parsable", "--open-mode=append", f"--output={output}", *flags]
        return self.run_as_user(argv, stdin=text, env=env).stdout.strip()

    # ---------------------------------------------------------------- jobs and nodes

    def tasks(self, job: str | None = None) -> tuple[Task, ...]:
        """What squeue lists of one job or of all, one entry per array task, ended ones for MinJobAge."""
        fields = ("JobArrayID", "JobID", "State", "Reason", "RestartCnt", "NodeList")
        wanted = ["--jobs", job] if job else []
        layout = ",".join(f"{each}:|" for each in fields)
        argv = ["squeue", "--noheader", "--array", "--states=all", "-O", layout, *wanted]
        rows = ([cell.strip() for cell in line.split("|")] for line in self.run(argv).stdout.splitlines())
        return tuple(
            Task(name=name, job_id=int(job_id), state=state, reason=reason, restarts=int(restarts), node=node)
            for name, job_id, state, reason, restarts, node, *_ in rows
        )

    def task(self, name: str) -> Task:
        """The one job or array task of that name."""
        (task,) = self.tasks(name)
        return task

    def states(self, job: str) -> dict[str, str]:
        """Each task of a job, and its state: {"12_0": "RUNNING", "12_1": "PENDING"}."""
        return {each.name: each.state for each in self.tasks(job)}

    def node_state(self, node: str) -> str:
        """As sinfo says it in full: idle, mixed, allocated, draining, drained, down, down*."""
        return self.run(["sinfo", "-h", "-n", node, "-o", "%T"]).stdout.split()[0]

    def set_node_state(self, node: str, state: str, reason: str = "test") -> None:
        """scontrol update: down, drain, resume."""
        self.run(["scontrol", "update", f"nodename={node}", f"state={state}", f"reason={reason}"])

    def job_pids(self, job: str) -> tuple[int, ...]:
        """Process ids (of the host) of a job or array task: its script and all it started, no slurmstepd."""
        number, _, index = job.partition("_")
        marks = {f"SLURM_JOB_ID={number}"}
        if index:
            marks = {f"SLURM_ARRAY_JOB_ID={number}", f"SLURM_ARRAY_TASK_ID={index}"}
        return tuple(pid for pid in self.pids() if marks <= processes.environment_of(pid))

    def stepd_pids(self, job: str) -> tuple[int, ...]:
        """Process ids (of the host) of the slurmstepds of a job or array task."""
        start = f"slurmstepd: [{self.task(job).job_id}."
        return tuple(pid for pid in self.pids() if processes.command_line_of(pid).startswith(start))

    def node_pids(self, node: str) -> tuple[int, ...]:
        """Everything that runs on a node: slurmd, slurmstepds, jobs. They share its own host name."""
        holder = self._host_pid(f"node-{node}")
        name = processes.namespace_of(holder, "uts")
        mates = (pid for pid in self.pids() if processes.namespace_of(pid, "uts") == name)
        return tuple(pid for pid in mates if pid != holder)

    def pids(self) -> tuple[int, ...]:
        """Every process of the cluster, by the host's numbers."""
        space = processes.namespace_of(self._init, "pid")
        return processes.processes_in(space) if space else ()

    # ---------------------------------------------------------------- faults

    def pid(self, daemon: str) -> int:
        """Process id (of the host) of munged, slurmctld, slurmdbd, mariadbd or slurmd-NODE."""
        return self._host_pid(daemon)

    def kill_daemon(self, daemon: str, signum: signal.Signals = signal.SIGKILL) -> None:
        """Signal a daemon and wait for its end; jobs and slurmstepds stay."""
        pid = self.pid(daemon)
        os.kill(pid, signum)
        _wait_until(lambda: processes.is_gone(pid), f"the end of {daemon}", END_TIMEOUT_S)

    def start_daemon(self, daemon: str) -> int:
        """Start a daemon that was ended; its process id (of the host)."""
        return self._to_host(self._ask({"start": daemon}))

    def restart_controller(self, signum: signal.Signals = signal.SIGTERM) -> None:
        """End slurmctld, start it again, and wait until it answers."""
        self.kill_daemon("slurmctld", signum)
        self.start_daemon("slurmctld")
        _wait_until(lambda: "UP" in self.run(["scontrol", "ping"], check=False).stdout, "slurmctld", 30)

    def kill_node(self, node: str) -> None:
        """The instance is gone: every process of the node at once, with network=True its cable first."""
        if self.options.network:
            self.cut_network(node)
        while alive := [each for each in self.node_pids(node) if not processes.is_gone(each)]:
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def start_node(self, node: str) -> None:
        """Boot a node, what runs stays: cable, IMDS, slurmd. A node set down needs "resume" as well."""
        if self.options.network:
            self.restore_network(node)
            self.start_daemon(f"imds-{node}")
        self.start_daemon(f"slurmd-{node}")

    def cut_network(self, node: str) -> None:
        """Take the node off the network; what runs there goes on. Needs network=True."""
        self._set_port(node, "down")

    def restore_network(self, node: str) -> None:
        self._set_port(node, "up")

    def wait_until(self, is_so: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
        """Wait for something; the error, when it does not come, shows queue, nodes and logs."""
        try:
            _wait_until(is_so, what, timeout_s)
        except TimeoutError as exc:
            queue = "\n".join(map(str, self.tasks()))
            nodes = self.run(["sinfo", "-N", "-o", "%N %T %E"], check=False).stdout
            raise TimeoutError(f"{exc}\n{queue}\n{nodes}\n{self.log_text()}") from None

    def reset(self) -> None:
        """As after the start: no job, no notice, every node idle. For tests that share a cluster."""
        for daemon in ("munged", "slurmctld"):
            self.start_daemon(daemon)
        for node in self.nodes:
            self.imds(node).clear()
            self.start_node(node)
        # A job cancelled before its node registers with a restarted controller blocks that node for good.
        self.wait_until(lambda: "unknown" not in self._node_states().values(), "nodes to register")
        self._cancel_all()
        for node, state in self._node_states().items():
            if state.startswith(("down", "drain")):
                self.set_node_state(node, "resume")
        try:
            _wait_until(self._is_all_idle, "idle nodes", 10)
        except TimeoutError:
            self.restart_controller()  # cures a node that the controller counts as busy without any job
            self.wait_until(self._is_all_idle, "idle nodes")

    def _cancel_all(self) -> None:
        ended = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "PREEMPTED", "NODE_FAIL"}
        open_jobs = sorted({each.name.partition("_")[0] for each in self.tasks() if each.state not in ended})
        if open_jobs:
            self.run(["scancel", "--full", "--signal=KILL", *open_jobs], check=False)
            self.run(["scancel", *open_jobs], check=False)

    def _node_states(self) -> dict[str, str]:
        rows = (line.split() for line in self.run(["sinfo", "-h", "-N", "-o", "%N %T"]).stdout.splitlines())
        return {row[0]: row[1] for row in rows}

    def _is_all_idle(self) -> bool:
        return set(self._node_states().values()) == {"idle"}

    def _set_port(self, node: str, state: str) -> None:
        if not self.options.network:
            raise ValueError("nodes share this machine's network; ask for Options(network=True)")
        self.run(["ip", "link", "set", f"port{self.nodes.index(node)}", state])

    # ---------------------------------------------------------------- process 1

    def _ask(self, request: dict[str, str]) -> int:
        """What process 1 of the cluster answers: a daemon's process id in its own numbers."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(self.root / "run/control"))
            with connection.makefile("rw") as stream:
                stream.write(json.dumps(request) + "\n")
                stream.flush()
                answer: dict[str, Any] = json.loads(stream.readline())
        if "pid" not in answer:
            raise ProcessLookupError(answer.get("error", "no answer"))
        return int(answer["pid"])

    def _host_pid(self, daemon: str) -> int:
        return self._to_host(self._ask({"pid": daemon}))

    def _to_host(self, inside: int) -> int:
        for pid in self.pids():
            if processes.number_inside(pid) == inside:
                return pid
        raise ProcessLookupError(f"process {inside} of the cluster is gone")


def why_not(options: Options | None = None) -> str | None:
    """Why such a cluster cannot run on this machine, and what would help; None when it can."""
    options = options or Options()
    if not sys.platform.startswith("linux"):
        return "a Slurm cluster runs on Linux only"
    commands = COMMANDS + (FULL_COMMANDS if options.profile == "full" else ()) + ("ip",) * options.network
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [each for each in commands if not shutil.which(each, path=path)]
    if missing:
        flag = " --full" if options.profile == "full" else ""
        return f"{', '.join(missing)} not installed: run slurm/install.sh{flag}"
    if os.geteuid() != 0:
        return "Slurm's daemons must run as root to start jobs as another user: run this with sudo"
    try:
        pwd.getpwnam(options.user)
    except KeyError:
        return f"no user {options.user} to run jobs as"
    spaces = ["--pid", "--fork", "--mount-proc", "--uts", *(["--net"] * options.network)]
    tried = subprocess.run(["unshare", *spaces, "true"], capture_output=True, text=True)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


def _run(
    command: list[str], env: Mapping[str, str], stdin: str, timeout_s: float, *, check: bool
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, env=env, input=stdin, capture_output=True, text=True, timeout=timeout_s)
    if check and done.returncode:
        said = f"{done.stdout}{done.stderr}".strip()
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {said}")
    return done


def _wait_until(is_so: Callable[[], bool], what: str, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.05)


def _group(user: str) -> int:
    return pwd.getpwnam(user).pw_gid


# -------------------------------------------------------------------- command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A real Slurm cluster on this machine.")
    parser.add_argument(
        "--root", type=Path, default=DEFAULT_ROOT, help=f"its folder (default {DEFAULT_ROOT})"
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="bring it up", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for field in dataclasses.fields(Options):
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(field.default, bool):
            up.add_argument(flag, action="store_true", help="see Options")
        elif isinstance(field.default, tuple):
            up.add_argument(flag, action="append", default=[], help="see Options; may be repeated")
        else:
            up.add_argument(flag, type=type(field.default), default=field.default, help="see Options")
    run = verbs.add_parser("run", help="run a command inside, as the ordinary user")
    run.add_argument("--as-root", action="store_true")
    run.add_argument("--node", help="on this node instead of the head")
    run.add_argument("argv", nargs=argparse.REMAINDER)
    verbs.add_parser("status", help="nodes and queue")
    verbs.add_parser("down", help="end it")
    return parser


def _up(root: Path, given: argparse.Namespace) -> str:
    chosen = {field.name: getattr(given, field.name) for field in dataclasses.fields(Options)}
    tuples = {name: tuple(value) for name, value in chosen.items() if isinstance(value, list)}
    cluster = DevCluster(Options(**{**chosen, **tuples}), root=root)
    cluster.start(detached=True)
    return (
        f"{len(cluster.nodes)} nodes are idle\n"
        f"as {cluster.options.user}: {sys.argv[0]} run sbatch --wrap hostname\n"
        f"as root:   export SLURM_CONF={root}/etc/slurm.conf\n"
    )


def _use(cluster: DevCluster, given: argparse.Namespace) -> int:
    if given.verb == "down":
        cluster.stop()
    elif given.verb == "status":
        sys.stdout.write(cluster.run(["sinfo", "-N", "-l"]).stdout + cluster.run(["squeue"]).stdout)
    else:
        argv = given.argv[1:] if given.argv[:1] == ["--"] else given.argv
        user = None if given.as_root else cluster.options.user
        env = cluster.env if given.as_root else cluster.user_env
        return subprocess.run(cluster.command(argv, user=user, node=given.node), env=env).returncode
    return 0


def main() -> int:
    given = _parser().parse_args()
    root: Path = given.root.resolve()
    is_up = (root / "run/init.pid").exists()
    try:
        if is_up and given.verb != "up":
            return _use(DevCluster.attach(root), given)
        if is_up or given.verb != "up":
            raise RuntimeError(f"a cluster is already up in {root}" if is_up else f"no cluster in {root}")
        sys.stdout.write(_up(root, given))
    except (RuntimeError, ValueError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
