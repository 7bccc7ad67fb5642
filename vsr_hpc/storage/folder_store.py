"""A run's store: a folder, or a prefix of an S3 bucket, behind one small protocol.

Two primitives carry the whole distributed design: `put` replaces an object in one step, and `create` makes
one only if it is not there yet, so that of several creators exactly one wins.

What a process keeps on its node's own disk (transfers under way, blocks of a source) lies in `node_folder`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from vsr_hpc.errors import JobError, VsrError
from vsr_hpc.storage.store import RUNS_FOLDER, SCRATCH_FOLDER, MissingObject, ObjectFacts, check_name
from vsr_hpc.system.file_systems import SHARED_FILE_SYSTEMS, file_system_of
from vsr_hpc.system.files import (
    TEMPORARY_PREFIX,
    flush_folder,
    flush_to_disk,
    make_folder,
    temporary_name,
    translated,
)

log = logging.getLogger(__name__)

_STALE_TRIES = 4
PACK_NAME = "records.zip"
"""Holds the small objects of a store that changes no more."""


class FolderStore:
    """A run in a folder, on a local disk or a shared file system."""

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.abspath(root))  # noqa: PTH100 - resolve() would follow links out of the name given
        self._is_clock_missed = False
        self._is_shared = file_system_of(self._root) in SHARED_FILE_SYSTEMS
        self._pack: tuple[os.stat_result, zipfile.ZipFile] | None = None

    @property
    def uri(self) -> str:
        return str(self._root)

    @property
    def scratch(self) -> Path:
        scratch = self._root / SCRATCH_FOLDER
        make_folder(scratch)
        return scratch

    @property
    def poll_s(self) -> float:
        return 5.0 if self._is_shared else 1.0

    @property
    def lease_window_s(self) -> float:
        return 180.0 if self._is_shared else 60.0

    def within(self, folder: str) -> FolderStore:
        return FolderStore(self._root.joinpath(*check_name(folder)))

    def put(self, name: str, content: bytes) -> None:
        target = self._path(name)
        with self._written(target, content) as temporary:
            temporary.replace(target)

    def create(self, name: str, content: bytes) -> bool:
        target = self._path(name)
        if self._in_pack(name) is not None:
            return False
        with self._written(target, content) as temporary:
            try:
                os.link(temporary, target)
            except FileExistsError:
                # NFS may lose the answer to a link that succeeded.
                return _is_same_file(temporary, target)
            except OSError as exc:
                if exc.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                    raise JobError(
                        f"{self._root}: this file system has no hard links, which a run's leases need; "
                        "put the run elsewhere with --run"
                    ) from exc
                raise translated(exc, target) from exc
            flush_folder(target.parent)
        return True

    def read(self, name: str) -> bytes:
        path = self._path(name)
        for left in reversed(range(_STALE_TRIES)):
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError) as exc:
                packed = self._in_pack(name)
                if packed is None:
                    raise MissingObject(f"{self.uri}: no {name}") from exc
                return packed[0].read(packed[1])
            except OSError as exc:
                # NFS: another host put a new object in this one's place while we read the old one.
                if exc.errno != errno.ESTALE or not left:
                    raise translated(exc, path, "read") from exc
        raise AssertionError("unreachable")

    def exists(self, name: str) -> bool:
        try:
            return self._path(name).exists() or self._in_pack(name) is not None
        except OSError as exc:
            raise translated(exc, self._path(name), "read") from exc

    def list(self, prefix: str) -> tuple[ObjectFacts, ...]:
        found = {facts.name: facts for facts in self._packed(prefix)}
        found |= {facts.name: facts for facts in self._walk(prefix)}
        return tuple(found[name] for name in sorted(found))

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
        make_folder(target.parent)
        try:
            flush_to_disk(path)
            path.replace(target)
            flush_folder(target.parent)
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise translated(exc, target) from exc
            temporary = target.with_name(temporary_name())
            try:
                shutil.copyfile(path, temporary)
                flush_to_disk(temporary)
                temporary.replace(target)
                flush_folder(target.parent)
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
        """The file server's clock is read from a file that is written; a mere reader takes its own clock."""
        try:
            probe = self.scratch / temporary_name()
            try:
                probe.touch()
                return probe.stat().st_mtime
            finally:
                probe.unlink(missing_ok=True)
        except (OSError, VsrError) as exc:
            if not self._is_clock_missed:
                log.warning(
                    "ages are those of this machine's clock: the store cannot be written to store=%s why=%s",
                    self.uri,
                    exc,
                )
            self._is_clock_missed = True
            return time.time()

    def free_bytes(self) -> int | None:
        folder = self._root
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def pack(self, names: Iterable[str]) -> None:
        """Move small objects into one file. They are read and listed as before; none is deleted alone."""
        wanted = set(names)
        facts = [each for each in self._walk("") if each.name in wanted]
        pack = self._root / PACK_NAME
        temporary = pack.with_name(temporary_name())
        try:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
                for each in (*facts, *self._packed("")):
                    entry = zipfile.ZipInfo(each.name)
                    entry.compress_type = zipfile.ZIP_DEFLATED
                    entry.comment = repr(each.modified_s).encode()
                    if entry.filename not in archive.NameToInfo:
                        archive.writestr(entry, self.read(each.name))
            flush_to_disk(temporary)
            temporary.replace(pack)
        except OSError as exc:
            raise translated(exc, pack) from exc
        finally:
            temporary.unlink(missing_ok=True)
        self.delete_many(each.name for each in facts)
        folders = [Path(path) for path, _, _ in os.walk(self._root, topdown=False)]
        for folder in folders[:-1]:
            with contextlib.suppress(OSError):  # something is left in it
                folder.rmdir()

    def _archive(self) -> zipfile.ZipFile | None:
        """The pack, opened once; another process may have written a new one."""
        path = self._root / PACK_NAME
        try:
            stamp = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if self._pack is None or not os.path.samestat(self._pack[0], stamp):
            self._pack = (stamp, zipfile.ZipFile(path))
        return self._pack[1]

    def _in_pack(self, name: str) -> tuple[zipfile.ZipFile, zipfile.ZipInfo] | None:
        archive = self._archive()
        if archive is None or name not in archive.NameToInfo:
            return None
        return archive, archive.NameToInfo[name]

    def _packed(self, prefix: str) -> Iterator[ObjectFacts]:
        archive = self._archive()
        for entry in archive.infolist() if archive is not None else ():
            if entry.filename.startswith(prefix):
                modified_s = float(entry.comment)
                yield ObjectFacts(name=entry.filename, size_bytes=entry.file_size, modified_s=modified_s)

    def remove_all(self) -> None:
        try:
            shutil.rmtree(self._root)
        except FileNotFoundError:
            return
        except OSError as exc:
            raise translated(exc, self._root) from exc
        if self._root.parent.name == RUNS_FOLDER:
            with contextlib.suppress(OSError):  # other runs lie in it
                self._root.parent.rmdir()

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
            raise translated(exc, base, "read") from exc
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if (
                name == SCRATCH_FOLDER
                or entry.name.startswith(TEMPORARY_PREFIX)
                or not entry.name.startswith(start)
            ):
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
        make_folder(target.parent)
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


def _is_same_file(one: Path, other: Path) -> bool:
    """Whether two names are of one file. NFS asks its server at each opening; a link count may be cached."""
    with one.open("rb") as mine, other.open("rb") as theirs:
        return os.path.sameopenfile(mine.fileno(), theirs.fileno())
