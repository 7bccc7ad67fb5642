"""What /proc tells of the processes of a cluster that lives in namespaces of its own."""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")


def own_namespace(kind: str) -> str:
    return str((PROC / "self/ns" / kind).readlink())


def namespace_of(pid: int, kind: str) -> str | None:
    """The name of a process's namespace ("pid", "uts", "net"); None when the process is gone."""
    try:
        return str((PROC / str(pid) / "ns" / kind).readlink())
    except OSError:
        return None


def processes_in(space: str) -> tuple[int, ...]:
    """Every process of a PID namespace, by this process's numbers."""
    every = (int(each.name) for each in PROC.iterdir() if each.name.isdigit())
    return tuple(pid for pid in every if namespace_of(pid, "pid") == space)


def number_inside(pid: int) -> int | None:
    """The process's number in its own PID namespace."""
    lines = _read(pid, "status").splitlines()
    return next((int(line.split()[-1]) for line in lines if line.startswith("NSpid:")), None)


def child_of(pid: int) -> int | None:
    """The first child of a process."""
    every = (int(each.name) for each in PROC.iterdir() if each.name.isdigit())
    return next((each for each in every if _stat(each)[1:2] == [str(pid)]), None)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, collected by its parent or not."""
    return _stat(pid)[:1] in ([], ["Z"])


def environment_of(pid: int) -> frozenset[str]:
    return frozenset(_read(pid, "environ").split("\0"))


def command_line_of(pid: int) -> str:
    return _read(pid, "cmdline").replace("\0", " ").strip()


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on: state, parent, ..."""
    return _read(pid, "stat").rpartition(")")[2].split()


def _read(pid: int, name: str) -> str:
    try:
        return (PROC / str(pid) / name).read_bytes().decode(errors="replace")
    except OSError:
        return ""
