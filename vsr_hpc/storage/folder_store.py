"""A run's store: a folder, or a prefix of an S3 bucket, behind one small protocol.

Two primitives carry the whole distributed design: `put` replaces an object in one step, and `create` makes
one only if it is not there yet, so that of several creators exactly one wins.

What a process keeps on its node's own disk (transfers under way, blocks of a source) lies in `node_folder`.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import itertools
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vsr_hpc.errors import BackendError, JobError, SpaceError

if TYPE_CHECKING:
    from vsr_hpc.storage.s3_connection import S3Options


class MissingObject(BackendError):
    """The object asked for is not in the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectFacts:
    name: str
    size_bytes: int
    modified_s: float
    """On the store's clock, as `now` tells it."""


class Store(Protocol):
    """Names are relative, with '/' between parts: `receipts/00042.json`; see `check_name`.

    Every method raises JobError where a person must act (denied, no such bucket), SpaceError on a full disk
    and BackendError, after a backend's own bounded tries, where another try can help.
    """

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
        """Write an object that is not there yet; False, and nothing changed, where it is.

        Of several creators exactly one gets True, whatever they write. After a BackendError the object may
        or may not be there, and may hold this content.
        """
        ...

    def read(self, name: str) -> bytes:
        """Raises MissingObject."""
        ...

    def exists(self, name: str) -> bool: ...

    def list(self, prefix: str) -> tuple[ObjectFacts, ...]:
        """Everything whose name begins with `prefix` (a folder's name with its '/'), sorted by name.

        Files in `scratch` are no objects and are never listed.
        """
        ...

    def delete(self, name: str) -> None:
        """No error where it is gone already."""
        ...

    def delete_many(self, names: Iterable[str]) -> None:
        """As `delete` of each; S3 takes a thousand in one request."""
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


def open_store(uri: str, s3: S3Options | None = None) -> Store:
    """A folder's path or `s3://bucket/prefix`; `s3` says how to talk to S3, by default what VSR_S3_* say."""
    if uri.startswith("s3://"):
        from vsr_hpc.storage.s3_store import S3Store

        return S3Store.from_uri(uri, s3)
    if "://" in uri:
        raise JobError(f"{uri}: a run lives in a folder or under s3://bucket/prefix")
    return FolderStore(Path(uri))


def check_name(name: str) -> tuple[str, ...]:
    """The parts of an object's name; JobError where a folder or S3 could not keep it."""
    parts = tuple(name.split("/"))
    is_plain = all(part not in ("", ".", "..") and len(os.fsencode(part)) <= 255 for part in parts)
    is_ours = parts[0] == _SCRATCH or any(part.startswith(_TEMPORARY) for part in parts)
    if not is_plain or is_ours or "\0" in name:
        raise JobError(f"{name!r} is not a name of an object in a run")
    return parts


_SCRATCH = "tmp"
_TEMPORARY = ".tmp-"
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "afs"}
_PARALLEL = {"lustre", "beegfs", "gpfs", "ceph", "glusterfs", "wekafs", "panfs", "pvfs2", "orangefs"}
_IN_USER_SPACE = {"fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.juicefs"}
_SHARED_FILE_SYSTEMS = frozenset(_NETWORK | _PARALLEL | _IN_USER_SPACE)
_STALE_TRIES = 4
_serial = itertools.count()


class FolderStore:
    """A run in a folder, on a local disk or a shared file system."""

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.abspath(root))  # noqa: PTH100 - resolve() would follow links out of the name given
        self._is_shared = file_system_of(self._root) in _SHARED_FILE_SYSTEMS

    @property
    def uri(self) -> str:
        return str(self._root)

    @property
    def scratch(self) -> Path:
        scratch = self._root / _SCRATCH
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
                if exc.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                    raise JobError(
                        f"{self._root}: this file system has no hard links, which a run's leases need; "
                        "put the run elsewhere with --run"
                    ) from exc
                raise translated(exc, target) from exc
        return True

    def read(self, name: str) -> bytes:
        path = self._path(name)
        for left in reversed(range(_STALE_TRIES)):
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError) as exc:
                raise MissingObject(f"{self.uri}: no {name}") from exc
            except OSError as exc:
                # NFS: another host put a new object in this one's place while we read the old one.
                if exc.errno != errno.ESTALE or not left:
                    raise translated(exc, path) from exc
        raise AssertionError("unreachable")

    def exists(self, name: str) -> bool:
        try:
            return self._path(name).exists()
        except OSError as exc:
            raise translated(exc, self._path(name)) from exc

    def list(self, prefix: str) -> tuple[ObjectFacts, ...]:
        return tuple(sorted(self._walk(prefix), key=lambda facts: facts.name))

    def delete(self, name: str) -> None:
        try:
            self._path(name).unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as exc:
            raise translated(exc, self._path(name)) from exc

    def delete_many(self, names: Iterable[str]) -> None:
        for name in names:
            self.delete(name)

    def put_file(self, name: str, path: Path) -> None:
        target = self._path(name)
        _make_folder(target.parent)
        try:
            _sync(path)
            path.replace(target)
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise translated(exc, target) from exc
            temporary = target.with_name(temporary_name())
            try:
                shutil.copyfile(path, temporary)
                _sync(temporary)
                temporary.replace(target)
                path.unlink()
            except OSError as copying:
                temporary.unlink(missing_ok=True)
                raise translated(copying, target) from copying

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        path = self._path(name)
        if not path.exists():
            raise MissingObject(f"{self.uri}: no {name}")
        yield path

    def now_s(self) -> float:
        probe = self.scratch / temporary_name()
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
        try:
            shutil.rmtree(self._root)
        except FileNotFoundError:
            return
        except OSError as exc:
            raise translated(exc, self._root) from exc

    def _path(self, name: str) -> Path:
        return self._root.joinpath(*check_name(name))

    def _walk(self, prefix: str) -> Iterator[ObjectFacts]:
        folder, _, start = prefix.rpartition("/")
        base = self._root / folder if folder else self._root
        try:
            entries = list(os.scandir(base))
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as exc:
            raise translated(exc, base) from exc
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if name == _SCRATCH or entry.name.startswith(_TEMPORARY) or not entry.name.startswith(start):
                continue
            try:
                if entry.is_dir():
                    yield from self._walk(name + "/")
                else:
                    facts = entry.stat()
                    yield ObjectFacts(name=name, size_bytes=facts.st_size, modified_s=facts.st_mtime)
            except FileNotFoundError:  # deleted while we looked
                continue

    @contextlib.contextmanager
    def _written(self, target: Path, content: bytes) -> Iterator[Path]:
        _make_folder(target.parent)
        temporary = target.with_name(temporary_name())
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        except OSError as exc:
            raise translated(exc, target) from exc
        finally:
            temporary.unlink(missing_ok=True)


def temporary_name() -> str:
    return f"{_TEMPORARY}{os.getpid()}-{next(_serial)}-{secrets.token_hex(4)}"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise translated(exc, folder) from exc


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def translated(exc: OSError, path: Path) -> SpaceError | JobError | BackendError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpaceError(
            f"{path}: the disk is full; free some space and call again, finished shards are kept"
        )
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return JobError(f"{path}: cannot be written ({os.strerror(exc.errno)}); choose another place")
    return BackendError(f"{path}: {exc.strerror or exc}")


def file_system_of(path: Path) -> str:
    """The kind of file system that holds `path` ('ext4', 'nfs4'), or '' where the kernel does not tell."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return file_system_among(mounts, os.path.realpath(path))


def file_system_among(mounts: str, path: str) -> str:
    """As `file_system_of`, from the text of /proc/self/mounts; of two mounts on one point the later holds."""
    longest, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = _unescaped(fields[1])
        is_above = path == point or path.startswith(point.rstrip("/") + "/")
        if is_above and len(point) >= len(longest):
            longest, kind = point, fields[2]
    return kind


def _unescaped(field: str) -> str:
    for octal, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(octal, character)
    return field


def node_folder() -> Path:
    """This user's folder on the node's own disk, mode 0700, kept between runs.

    It lies in $VSR_NODE_CACHE, else $TMPDIR, else /var/tmp, as `vsr-<uid>`, so that users may share a node.
    """
    named = os.environ.get("VSR_NODE_CACHE") or os.environ.get("TMPDIR")
    parent = Path(named or ("/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir()))
    folder = parent / f"vsr-{os.geteuid()}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError as exc:
        raise translated(exc, folder) from exc
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise JobError(f"{folder}: is not a folder of yours; name another place in VSR_NODE_CACHE")
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


_process_folders: dict[tuple[Path, int], tuple[Path, int]] = {}


def process_folder(kind: str) -> Path:
    """A folder of this process alone in `node_folder`; it goes with the process, or soon after its death.

    The owner holds a lock on it for as long as it lives, so that others can tell a dead one's folder, also
    across containers, where process ids tell nothing.
    """
    parent = node_folder() / "processes"
    key = (parent, os.getpid())
    if key not in _process_folders:
        _make_folder(parent)
        _sweep(parent)
        _process_folders[key] = _locked_folder(parent)
        atexit.register(_leave, key)
    folder = _process_folders[key][0] / kind
    _make_folder(folder)
    return folder


def _locked_folder(parent: Path) -> tuple[Path, int]:
    while True:
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=parent))
            lock = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as exc:
            raise translated(exc, parent) from exc
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (folder / ".lock").exists():
                return folder, lock
        os.close(lock)  # swept between its birth and its lock


def _sweep(parent: Path) -> None:
    for folder in parent.iterdir():
        with contextlib.suppress(OSError):  # another sweeper was faster, or its owner lives
            lock = os.open(folder / ".lock", os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _leave(key: tuple[Path, int]) -> None:
    if key[1] == os.getpid():  # not a fork of the owner
        folder, _ = _process_folders.pop(key)
        shutil.rmtree(folder, ignore_errors=True)
