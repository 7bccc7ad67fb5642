"""Blocks of a source on the node's disk, shared by the workers of one user."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import logging
import mmap
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vsr_hpc.errors import JobError
from vsr_hpc.system.files import temporary_name, translated

log = logging.getLogger(__name__)


GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings:
    """How an object is read; the defaults are for S3 and a node with some disk."""

    block_bytes: int = 8 << 20
    blocks_ahead: int = 2
    """Fetched in the background once two blocks in a row were read."""
    blocks_held: int = 4
    """Kept open by each reader, whatever becomes of the cache."""
    whole_below_bytes: int = 64 << 20
    """A smaller object is fetched whole."""
    cache_bytes: int | None = None
    """Of all sources of this user on this node. None: $VSR_NODE_CACHE_GIB, else a quarter of what the disk
    has free, at most 32 GiB."""
    wait_s: float = 120.0
    """How long to wait for another worker that is fetching a block before fetching it as well."""

    def __post_init__(self) -> None:
        if self.block_bytes < 1 or self.blocks_ahead < 0 or self.blocks_held < 1:
            raise JobError(f"source: {self} leaves nothing to read with")


class BlockCache:
    """One source's pieces on the node's disk, within a budget that all sources of this user share."""

    def __init__(
        self,
        root: Path,
        folder: str,
        settings: SourceSettings,
        fetch: Callable[[BinaryIO, int, int], None],
    ) -> None:
        self._root = root
        self._folder = root / folder
        self._settings = settings
        self._fetch = fetch
        self._is_full = False

    def block(self, name: str, start: int, length: int) -> bytes | mmap.mmap:
        """From the disk where it is there, else from S3 by whoever takes the lock first."""
        path = self._folder / name
        found = _mapped(path, length)
        if found is not None:
            return found
        with self._locked(path):
            found = _mapped(path, length)
            if found is not None:
                return found
            content = io.BytesIO()
            self._fetch(content, start, length)
            self._keep(path, content.getbuffer())
            return content.getvalue()

    def link(self, name: str, start: int, length: int, target: Path) -> None:
        """As `block`, as a file of its own that outlives the cache's; SpaceError where the disk is full."""
        path = self._folder / name
        if _linked(path, target, length):
            return
        with self._locked(path):
            if _linked(path, target, length):
                return
            try:
                self._make_room(length)
                with target.open("xb") as file:
                    self._fetch(file, start, length)
                self._folder.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileExistsError):
                    path.hardlink_to(target)
            except OSError as exc:
                target.unlink(missing_ok=True)
                raise translated(exc, target) from exc
            except BaseException:
                target.unlink(missing_ok=True)
                raise

    def _keep(self, path: Path, content: memoryview) -> None:
        """A block that finds no room is used and not kept: slower, and said once."""
        temporary = path.with_name(temporary_name())
        try:
            self._make_room(len(content))
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                file.write(content)
            temporary.replace(path)
        except OSError as exc:
            temporary.unlink(missing_ok=True)
            if not self._is_full:
                log.warning("source cache not written folder=%s why=%s", self._root, exc.strerror)
            self._is_full = True

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """One of this node's workers at a time; after `wait_s` without it, which only costs a request."""
        lock = self._opened_lock(path)
        try:
            deadline = time.monotonic() + self._settings.wait_s
            while lock is not None and not _try_lock(lock):
                if time.monotonic() > deadline:
                    log.warning("another worker holds a block too long path=%s", path)
                    break
                time.sleep(0.01)
            yield
        finally:
            if lock is not None:
                os.close(lock)

    def _opened_lock(self, path: Path) -> int | None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path.with_name(path.name + _LOCK), os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT, errno.ENOENT):
                raise translated(exc, path) from exc
            return None

    def _make_room(self, coming_bytes: int) -> None:
        """Drop what was used longest ago until everything fits; one worker at a time, the others go on."""
        self._root.mkdir(parents=True, exist_ok=True)
        with (self._root / "evict.lock").open("ab") as lock:
            if not _try_lock(lock.fileno()):
                return
            kept = sorted(_pieces(self._root))
            used = sum(size for _, size, _ in kept)
            budget = self._budget(used)
            for _, size, path in kept:
                if used + coming_bytes <= budget:
                    break
                path.unlink(missing_ok=True)
                path.with_name(path.name + _LOCK).unlink(missing_ok=True)
                used -= size

    def _budget(self, used: int) -> int:
        if self._settings.cache_bytes is not None:
            return self._settings.cache_bytes
        named = os.environ.get("VSR_NODE_CACHE_GIB")
        if named:
            try:
                return int(float(named) * GIB)
            except ValueError as exc:
                raise JobError(f"VSR_NODE_CACHE_GIB={named} is no number of GiB") from exc
        disk = os.statvfs(self._root)
        return min(32 * GIB, (disk.f_bavail * disk.f_frsize + used) // 4)


_LOCK = ".lock"
_TOUCHED_AFTER_S = 30.0


def _mapped(path: Path, length: int) -> mmap.mmap | None:
    """The piece in memory as it lies on the disk; stays whole even when the cache drops the file."""
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            if facts.st_size != length:
                return None
            if time.time() - facts.st_mtime > _TOUCHED_AFTER_S:
                os.utime(file.fileno())  # the cache drops what was used longest ago
            return mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        return None


def _linked(path: Path, target: Path, length: int) -> bool:
    try:
        if path.stat().st_size != length:
            return False
        target.hardlink_to(path)
        os.utime(path)
    except FileNotFoundError:
        return target.exists()
    return True


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pieces(root: Path) -> Iterator[tuple[float, int, Path]]:
    """When last used, how large, where; temporary files that a dead worker left count as pieces."""
    for folder in root.iterdir():
        if not folder.is_dir():
            continue
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                facts = path.stat()
                if path.suffix != _LOCK:
                    yield facts.st_mtime, facts.st_size, path
