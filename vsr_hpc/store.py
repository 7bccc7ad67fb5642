"""A run's store: a folder, or a prefix of an S3 bucket, behind one small protocol.

Two primitives carry the whole distributed design: `put` replaces an object in one step, and `create` makes
one only if it is not there yet, so that of several creators exactly one wins.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vsr_hpc.errors import BackendError, JobError, SpaceError


class MissingObject(BackendError):
    """The object asked for is not in the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectFacts:
    name: str
    size_bytes: int
    modified_s: float
    """On the store's clock, as `now` tells it."""


class Store(Protocol):
    """Names are relative, with '/' between parts: `receipts/00042.json`."""

    @property
    def uri(self) -> str: ...
    @property
    def scratch(self) -> Path:
        """A folder for files on their way into the store, on the same file system where it is a folder."""
        ...

    @property
    def poll_s(self) -> float:
        """How long a worker waits between two listings while it has nothing better to do."""
        ...

    @property
    def lease_window_s(self) -> float:
        """How long a worker's heartbeat may stand still before others take its shard."""
        ...

    def put(self, name: str, content: bytes) -> None:
        """Write or replace an object; readers see the old or the new one, never a part."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Write an object that is not there yet; False, and nothing changed, where it is."""
        ...

    def read(self, name: str) -> bytes:
        """Raises MissingObject."""
        ...

    def exists(self, name: str) -> bool: ...

    def list(self, prefix: str) -> tuple[ObjectFacts, ...]:
        """Everything whose name begins with `prefix` (a folder's name with its '/'), sorted by name."""
        ...

    def delete(self, name: str) -> None:
        """No error where it is gone already."""
        ...

    def put_file(self, name: str, path: Path) -> None:
        """Move a finished file into the store under `name`; the local file is gone afterwards."""
        ...

    def local(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """The object as a local file for the time of the block; a folder store gives the file itself."""
        ...

    def now_s(self) -> float:
        """The store's clock, for showing ages only."""
        ...

    def free_bytes(self) -> int | None:
        """Space left, or None where it has no end."""
        ...

    def remove_all(self) -> None:
        """Delete the whole store."""
        ...


def open_store(uri: str) -> Store:
    """A folder's path or `s3://bucket/prefix`."""
    if uri.startswith("s3://"):
        from vsr_hpc.store_s3 import S3Store

        return S3Store.from_uri(uri)
    if "://" in uri:
        raise JobError(f"{uri}: a run lives in a folder or under s3://bucket/prefix")
    return FolderStore(Path(uri))


_SHARED_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "lustre", "beegfs", "gpfs", "ceph", "glusterfs", "fuse.sshfs"}
)
_serial = itertools.count()


class FolderStore:
    """A run in a folder, on a local disk or a shared file system."""

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.abspath(root))  # noqa: PTH100 - resolve() would follow links out of the name given
        self._is_shared = _file_system_of(self._root) in _SHARED_FILE_SYSTEMS

    @property
    def uri(self) -> str:
        return str(self._root)

    @property
    def scratch(self) -> Path:
        scratch = self._root / "tmp"
        _make_folder(scratch)
        return scratch

    @property
    def poll_s(self) -> float:
        return 5.0 if self._is_shared else 1.0

    @property
    def lease_window_s(self) -> float:
        return 180.0 if self._is_shared else 60.0

    def put(self, name: str, content: bytes) -> None:
        target = self._path(name)
        with self._written(target, content) as temporary:
            temporary.replace(target)

    def create(self, name: str, content: bytes) -> bool:
        target = self._path(name)
        with self._written(target, content) as temporary:
            try:
                os.link(temporary, target)
            except FileExistsError:
                # NFS may lose the answer to a link that succeeded; the link count knows.
                return temporary.stat().st_nlink == 2
            except OSError as exc:
                if exc.errno in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                    raise JobError(
                        f"{self._root}: this file system has no hard links, which a run's leases need; "
                        "put the run elsewhere with --run"
                    ) from exc
                raise _translated(exc, target) from exc
        return True

    def read(self, name: str) -> bytes:
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError as exc:
            raise MissingObject(f"{self.uri}: no {name}") from exc
        except OSError as exc:
            raise _translated(exc, self._path(name)) from exc

    def exists(self, name: str) -> bool:
        return self._path(name).exists()

    def list(self, prefix: str) -> tuple[ObjectFacts, ...]:
        return tuple(sorted(self._walk(prefix), key=lambda facts: facts.name))

    def delete(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def put_file(self, name: str, path: Path) -> None:
        target = self._path(name)
        _make_folder(target.parent)
        try:
            _sync(path)
            path.replace(target)
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise _translated(exc, target) from exc
            temporary = target.with_name(_temporary_name())
            try:
                shutil.copyfile(path, temporary)
                _sync(temporary)
                temporary.replace(target)
                path.unlink()
            except OSError as copying:
                temporary.unlink(missing_ok=True)
                raise _translated(copying, target) from copying

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        path = self._path(name)
        if not path.exists():
            raise MissingObject(f"{self.uri}: no {name}")
        yield path

    def now_s(self) -> float:
        probe = self.scratch / _temporary_name()
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def free_bytes(self) -> int | None:
        folder = self._root
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def remove_all(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)

    def _path(self, name: str) -> Path:
        parts = name.split("/")
        if not name or any(part in ("", ".", "..") for part in parts):
            raise JobError(f"{name!r} is not a name of an object in a run")
        return self._root.joinpath(*parts)

    def _walk(self, prefix: str) -> Iterator[ObjectFacts]:
        folder, _, start = prefix.rpartition("/")
        base = self._root / folder if folder else self._root
        try:
            entries = list(os.scandir(base))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            if entry.name.startswith(".tmp-") or not entry.name.startswith(start):
                continue
            name = f"{folder}/{entry.name}" if folder else entry.name
            try:
                if entry.is_dir():
                    yield from self._walk(name + "/")
                else:
                    stat = entry.stat()
                    yield ObjectFacts(name=name, size_bytes=stat.st_size, modified_s=stat.st_mtime)
            except FileNotFoundError:  # deleted while we looked
                continue

    @contextlib.contextmanager
    def _written(self, target: Path, content: bytes) -> Iterator[Path]:
        _make_folder(target.parent)
        temporary = target.with_name(_temporary_name())
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        except OSError as exc:
            raise _translated(exc, target) from exc
        finally:
            temporary.unlink(missing_ok=True)


def _temporary_name() -> str:
    return f".tmp-{os.getpid()}-{next(_serial)}-{secrets.token_hex(4)}"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise _translated(exc, folder) from exc


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _translated(exc: OSError, path: Path) -> SpaceError | JobError | BackendError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpaceError(
            f"{path}: the disk is full; free some space and call again, finished shards are kept"
        )
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return JobError(f"{path}: cannot be written ({os.strerror(exc.errno)}); choose another place")
    return BackendError(f"{path}: {exc.strerror or exc}")


def _file_system_of(path: Path) -> str:
    """The kind of file system that holds `path` ('ext4', 'nfs4'), or '' where the kernel does not tell."""
    while not path.exists():
        path = path.parent
    best = ("", "")
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    real = os.path.realpath(path)
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        is_above = real == point or real.startswith(point.rstrip("/") + "/")
        if is_above and len(point) >= len(best[0]):
            best = (point, kind)
    return best[1]
