#!/usr/bin/env python3
r"""Process 1 of a development cluster: starts Slurm's daemons, reaps, and ends with its owner.

`dev_cluster.py` starts it as

    unshare --pid --fork --kill-child --mount-proc --uts [--net] \
        python cluster_init.py ROOT OUTSIDE [--detached] [--keep]

It owns a PID namespace, so whatever ends it (its owner's death closes its stdin; SIGTERM; SIGKILL) ends every
daemon, step and job of the cluster: the kernel does it. Its mount, UTS and network namespaces vanish with it,
so nothing of the host changes. Only ROOT is written, and removed at the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # run with -I, which leaves the script's folder out

import cluster_config as config
import cluster_processes as processes

FOLDERS = ("etc", "munge", "state", "spool", "log", "run", "imds", "db", "home")
START_TIMEOUT_S = 60.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class StartError(Exception):
    """A daemon did not come up; the text holds the end of its log."""


class Cluster:
    """The daemons of one cluster: their process ids, and how each is started."""

    def __init__(self, root: Path, options: config.Options) -> None:
        self.root, self.options = root, options
        version = re.search(r"(\d+)\.(\d+)", _output("slurmctld", "-V"))
        if version is None:
            raise StartError("slurmctld -V tells no version")
        port = 17800 if options.network else _free_ports()
        self.place = config.Place(root=root, base_port=port, version=(int(version[1]), int(version[2])))
        self.pids: dict[str, int] = {}
        self.env = {"PATH": PATH, "LANG": "C.UTF-8", "SLURM_CONF": str(root / "etc/slurm.conf")}

    def start(self) -> None:
        self._write_files()
        if self.options.network:  # before any daemon: Slurm resolves no name where loopback is all there is
            _run("ip", "link", "set", "lo", "up")
            _run("ip", "link", "add", "bridge", "type", "bridge")
            _run("ip", "addr", "add", f"{config.head_address(self.options)}/24", "dev", "bridge")
            _run("ip", "link", "set", "bridge", "up")
        if self.options.auth == "munge":
            self.start_daemon("munged")
            self._wait("munged", self.place.munge_socket.exists)
        if self.options.profile == "full":
            self._start_accounting()
        # slurmctld answers before the first slurmd registers, or the registration is retried a second later.
        self.start_daemon("slurmctld")
        self._wait("slurmctld", lambda: "UP" in self._says("scontrol", "ping"))
        self._start_nodes()
        self._wait("idle nodes", lambda: self._idle_nodes() >= set(self.options.nodes))

    def start_daemon(self, name: str) -> int:
        """Start one daemon: munged, mariadbd, slurmdbd, slurmctld, imds[-NODE], node-NODE or slurmd-NODE."""
        with (self.root / "log" / f"{name}.out").open("ab") as out:
            argv = self._command(name)
            pid = os.posix_spawnp(
                argv[0],
                argv,
                self.env,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, out.fileno(), 1),
                    (os.POSIX_SPAWN_DUP2, out.fileno(), 2),
                ],
                setsid=True,
            )
        self.pids[name] = pid
        return pid

    def reap(self) -> None:
        """Collect every process that ended; as process 1 we inherit all orphans."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.pids = {name: each for name, each in self.pids.items() if each != pid}

    def _command(self, name: str) -> list[str]:
        kind, _, node = name.partition("-")
        munge, log = self.root / "munge", self.root / "log"
        if kind == "munged":
            files = ("key", "socket", "pid", "seed")
            paths = [f"--{each}-file={munge}/munge.{each}" for each in files if each != "socket"]
            return ["munged", "--foreground", "--force", f"--socket={self.place.munge_socket}", *paths,
                    f"--log-file={log}/munged.log"]  # fmt: skip
        if kind == "mariadbd":
            return _mariadbd(self.root, self.place.database_port)
        if kind == "slurmdbd":
            return ["slurmdbd", "-D"]
        if kind == "slurmctld":
            return ["slurmctld", "-D"] if any((self.root / "state").iterdir()) else ["slurmctld", "-D", "-i"]
        if kind == "node":
            spaces = ["--uts", *(["--net"] if self.options.network else [])]
            return ["unshare", *spaces, "--", "sh", "-c", 'hostname "$0"; exec sleep infinity', node]
        if kind == "imds":
            return [
                *self._on_node(node),
                *_imds(self.options, self.place, (node,) if node else self.options.nodes),
            ]
        if kind == "slurmd" and node in self.options.nodes:
            return [*self._on_node(node), "slurmd", "-D", "-N", node]
        raise StartError(f"no daemon is called {name}")

    def _on_node(self, node: str) -> list[str]:
        if not node:
            return []
        spaces = ["--uts", *(["--net"] if self.options.network else [])]
        return ["nsenter", "--target", str(self.pids[f"node-{node}"]), *spaces, "--"]

    def _write_files(self) -> None:
        for each in FOLDERS:
            (self.root / each).mkdir(exist_ok=True)
        (self.root / "run").chmod(0o700)
        shutil.chown(self.root / "home", self.options.user)
        key = self.root / "munge/munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        for name, text in config.config_files(self.options, self.place).items():
            path = self.root / "etc" / name
            path.write_text(text)
            path.chmod({"slurmdbd.conf": 0o600, "task-prolog.sh": 0o755}.get(name, 0o644))
        urls = {node: config.imds_url(self.options, self.place, node) for node in self.options.nodes}
        (self.root / "etc/imds.json").write_text(json.dumps(urls))
        (self.root / "etc/hosts").write_text(config.hosts(self.options))
        _run("mount", "--bind", f"{self.root}/etc/hosts", "/etc/hosts")

    def _start_nodes(self) -> None:
        if not self.options.network:
            self.start_daemon("imds")
            self._wait("imds", lambda: self._has_imds(self.options.nodes))
        for index, node in enumerate(self.options.nodes):
            (self.root / "spool" / node).mkdir()
            holder = self.start_daemon(f"node-{node}")
            self._wait(f"{node}'s name", lambda holder=holder: _has_own_name(holder))  # type: ignore[misc]
            if self.options.network:
                self._connect(node, index, holder)
                self.start_daemon(f"imds-{node}")
                self._wait(f"imds of {node}", lambda node=node: self._has_imds((node,)))  # type: ignore[misc]
            self.start_daemon(f"slurmd-{node}")

    def _connect(self, node: str, index: int, holder: int) -> None:
        """A cable from the node to the cluster's bridge, and the metadata service's address on its own."""
        _run(
            "ip", "link", "add", f"port{index}", "type", "veth", "peer", "name", "eth0", "netns", str(holder)
        )
        _run("ip", "link", "set", f"port{index}", "master", "bridge", "up")
        enter, address = self._on_node(node), config.node_address(self.options, node)
        _run(*enter, "ip", "link", "set", "lo", "up")
        _run(*enter, "ip", "addr", "add", f"{config.IMDS_ADDRESS}/32", "dev", "lo")
        _run(*enter, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
        _run(*enter, "ip", "link", "set", "eth0", "up")

    def _start_accounting(self) -> None:
        data = self.root / "db/data"
        _run("mount", "-t", "tmpfs", "tmpfs", str(self.root / "db"))  # no waiting for a disk
        _run("mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root", "--skip-test-db",
             "--auth-root-authentication-method=normal")  # fmt: skip
        self.start_daemon("mariadbd")
        sql = ("mariadb", "--no-defaults", "-uroot", "-S", f"{self.root}/db/mysql.sock", "-e")
        grant = (
            "create database slurm_acct_db; create user 'slurm'@'127.0.0.1' identified by 'slurm';"
            "grant all on slurm_acct_db.* to 'slurm'@'127.0.0.1'; flush privileges;"
        )
        self._wait(
            "mariadbd", lambda: subprocess.run([*sql, "select 1"], capture_output=True).returncode == 0
        )
        _run(*sql, grant)
        self.start_daemon("slurmdbd")
        self._wait("slurmdbd", lambda: self._succeeds("sacctmgr", "-n", "list", "cluster"))
        self._succeeds("sacctmgr", "-i", "add", "cluster", "dev")

    def _wait(self, what: str, is_there: Callable[[], bool]) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        started = set(self.pids)
        while not is_there():
            self.reap()
            gone = started - set(self.pids)
            if gone or time.monotonic() > end:
                raise StartError(
                    f"{what}: {'ended: ' + ', '.join(gone) if gone else 'timed out'}\n{self._log(gone)}"
                )
            time.sleep(0.02)

    def _log(self, names: set[str]) -> str:
        files = [self.root / "log" / f"{name}.out" for name in names]
        return "\n".join(each.read_text(errors="replace")[-1500:] for each in files if each.exists())

    def _says(self, *argv: str) -> str:
        return subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=30).stdout

    def _succeeds(self, *argv: str) -> bool:
        return subprocess.run(argv, env=self.env, capture_output=True, timeout=60).returncode == 0

    def _has_imds(self, nodes: Sequence[str]) -> bool:
        return all((self.root / f"imds/{node}.log").exists() for node in nodes)

    def _idle_nodes(self) -> set[str]:
        rows = (line.split() for line in self._says("sinfo", "-h", "-N", "-o", "%N %T").splitlines())
        return {row[0] for row in rows if row[1] == "idle"}


def expose(paths: Sequence[Path], scratch: Path) -> None:
    """Let everyone reach `paths` inside this mount namespace, also where a folder above them is private.

    An interpreter below /root is the usual case. The private folder is covered by an empty one that holds
    nothing but the paths wanted; the host's own folder, its mode included, stays as it is.
    """
    blocked = {path: above for path in paths for above in _closed_folders(path)[:1]}
    for above in sorted(set(blocked.values())):
        wanted = [path for path in paths if blocked.get(path) == above]
        for index, path in enumerate(wanted):
            (scratch / str(index)).mkdir(parents=True, exist_ok=True)
            _run("mount", "--rbind", str(path), str(scratch / str(index)))
        _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(above))
        for index, path in enumerate(wanted):
            path.mkdir(parents=True, exist_ok=True)
            _run("mount", "--move", str(scratch / str(index)), str(path))
    shutil.rmtree(scratch, ignore_errors=True)


def _closed_folders(path: Path) -> list[Path]:
    return [each for each in reversed([path, *path.parents]) if not each.stat().st_mode & 0o001]


def serve(cluster: Cluster, *, is_detached: bool) -> None:
    """Answer requests until SIGTERM, or until the owner at the other end of stdin is gone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(cluster.root / "run/control"))
        listener.listen(8)
        sys.stdout.write("READY\n")
        sys.stdout.flush()
        watched = [listener] if is_detached else [listener, sys.stdin]
        while True:
            readable, _, _ = select.select(watched, [], [], 0.2)
            if sys.stdin in readable:
                return
            if listener in readable:
                _answer(cluster, listener.accept()[0])
            cluster.reap()


def _answer(cluster: Cluster, connection: socket.socket) -> None:
    with connection, connection.makefile("rw") as stream:
        try:
            request: dict[str, str] = json.loads(stream.readline())
            cluster.reap()
            if "start" in request and request["start"] not in cluster.pids:
                cluster.start_daemon(request["start"])
            name = request.get("start") or request["pid"]
            answer: dict[str, Any] = (
                {"pid": cluster.pids[name]} if name in cluster.pids else {"error": f"{name} does not run"}
            )
        except (StartError, KeyError, ValueError, OSError) as exc:
            answer = {"error": str(exc)}
        stream.write(json.dumps(answer) + "\n")


def _mariadbd(root: Path, port: int) -> list[str]:
    settings = {
        "user": "root",
        "datadir": f"{root}/db/data",
        "socket": f"{root}/db/mysql.sock",
        "bind-address": "127.0.0.1",
        "port": str(port),
        "pid-file": f"{root}/db/mariadb.pid",
        "innodb-buffer-pool-size": "64M",
        "innodb-log-file-size": "16M",
        "innodb-lock-wait-timeout": "900",
        "innodb-flush-log-at-trx-commit": "0",
        "max-allowed-packet": "16M",
    }
    flags = [f"--{key}={value}" for key, value in settings.items()]
    return ["mariadbd", "--no-defaults", *flags, "--skip-log-bin", "--skip-name-resolve"]


def _imds(options: config.Options, place: config.Place, nodes: Sequence[str]) -> list[str]:
    listen = {node: config.imds_listen(options, place, node) for node in nodes}
    places = [f"{node}={host}:{port}" for node, (host, port) in listen.items()]
    return [
        sys.executable,
        "-I",
        str(Path(__file__).with_name("mock_imds.py")),
        str(place.root / "imds"),
        *places,
    ]


def _free_ports() -> int:
    for _ in range(100):
        base = random.randrange(20000, 30000, 100)
        try:
            for offset in (*range(4), *range(10, 50), *range(60, 100)):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", base + offset))
        except OSError:
            continue
        return base
    raise StartError("no block of 100 free TCP ports between 20000 and 30000")


def _has_own_name(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().strip() == "sleep"


def _output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, timeout=30).stdout


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise StartError(f"{' '.join(argv)}: {done.stdout}{done.stderr}".strip())


def end(root: Path, *, keep: bool) -> None:
    """Kill all other processes of this PID namespace and remove the cluster's folder."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    if not keep:
        subprocess.run(["umount", f"{root}/db"], capture_output=True)
        shutil.rmtree(root, ignore_errors=True)


def main(argv: list[str]) -> int:
    root, outside, flags = Path(argv[0]), argv[1], argv[2:]
    if os.getpid() != 1 or processes.own_namespace("pid") == outside:
        # end() kills every process it can see: never outside a namespace of its own.
        sys.stdout.write("FAILED cluster_init.py must be process 1 of a PID namespace of its own\n")
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.umask(0o022)
    os.environ["PATH"] = PATH
    try:
        ctypes.CDLL(None).sethostname(config.HEAD.encode(), len(config.HEAD))
        options = config.Options.from_json((root / "options.json").read_text())
        repository = Path(__file__).resolve().parents[2]
        paths = [Path(sys.base_prefix), Path(sys.prefix), repository, *map(Path, options.visible)]
        expose(list(dict.fromkeys(paths)), root / "expose")
        cluster = Cluster(root, options)
        cluster.start()
        serve(cluster, is_detached="--detached" in flags)
    except (StartError, OSError, ValueError, TypeError) as exc:
        sys.stdout.write("FAILED " + str(exc).replace("\n", " | ") + "\n")
        sys.stdout.flush()
        return 1
    finally:
        end(root, keep="--keep" in flags)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
