"""Where a clip's bytes come from: a local file, or an object on S3 read through a cache on the node's disk.

A small object is fetched whole. A large one is read in blocks of 8 MiB with read-ahead; the blocks lie in
`node_folder`, where all workers of one user on one node share them: one fetches, the others wait. A block
appears by a rename, so a worker killed on the way leaves nothing half. Every request names the ETag the run
began with, so a clip that is replaced meanwhile is noticed and never mixed with the old one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import logging
import mmap
import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vsr_hpc.errors import JobError, MediaError, VsrError
from vsr_hpc.media.source import FileSource, local_source
from vsr_hpc.storage.folder_store import (
    MissingObject,
    node_folder,
    process_folder,
    temporary_name,
    translated,
)
from vsr_hpc.storage.s3_connection import MIB, ObjectChanged, S3Address, S3Connection, S3Facts, S3Options

log = logging.getLogger(__name__)


GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings:
    """How an object is read; the defaults are for S3 and a node with some disk."""

    block_bytes: int = 8 * MIB
    blocks_ahead: int = 2
    """Fetched in the background once two blocks in a row were read."""
    blocks_held: int = 4
    """Kept open by each reader, whatever becomes of the cache."""
    whole_below_bytes: int = 64 * MIB
    """A smaller object is fetched whole."""
    cache_bytes: int | None = None
    """Of all sources of this user on this node. None: $VSR_NODE_CACHE_GIB, else a quarter of what the disk
    has free, at most 32 GiB."""
    wait_s: float = 120.0
    """How long to wait for another worker that is fetching a block before fetching it as well."""

    def __post_init__(self) -> None:
        if self.block_bytes < 1 or self.blocks_ahead < 0 or self.blocks_held < 1:
            raise JobError(f"source: {self} leaves nothing to read with")


_DEFAULTS = SourceSettings()


def open_source(
    uri: str,
    s3: S3Options | None = None,
    settings: SourceSettings = _DEFAULTS,
    etag: str | None = None,
) -> FileSource | RangedSource:
    """A path or `s3://bucket/name` as a Source.

    `etag` is the content that the plan was made for (`RangedSource.facts.etag`): another one under the same
    name raises MediaError. A local file has none.
    """
    if uri.startswith("s3://"):
        options = S3Options.from_environment() if s3 is None else s3
        return RangedSource(S3Address.from_uri(uri), S3Connection(options), settings, etag)
    if "://" in uri:
        raise JobError(f"{uri}: a clip is a local path or an object s3://bucket/name; download it first")
    return local_source(uri)


class RangedSource:
    """An object on S3; satisfies Source. `open` may be called often and from several threads."""

    def __init__(
        self,
        address: S3Address,
        connection: S3Connection,
        settings: SourceSettings = _DEFAULTS,
        etag: str | None = None,
    ) -> None:
        self._address = address
        self._connection = connection
        self._settings = settings
        self._etag = etag
        self._facts: S3Facts | None = None
        self._cache: _Cache | None = None
        self._whole: Path | None = None
        self._opening = threading.RLock()

    @property
    def uri(self) -> str:
        return self._address.uri

    @property
    def requests(self) -> Counter[str]:
        """Requests this process sent for the source, by operation."""
        return self._connection.requests

    @property
    def facts(self) -> S3Facts:
        """What the source is; asked once, then held to."""
        with self._opening:
            if self._facts is None:
                try:
                    found = self._connection.head(self._address)
                except MissingObject as exc:
                    self._connection.check_bucket(self._address.bucket)
                    raise MediaError(f"{self.uri}: there is no such object") from exc
                if found.size_bytes == 0:
                    raise MediaError(f"{self.uri}: is empty (0 bytes)")
                if self._etag not in (None, found.etag):
                    raise self._changed(found)
                self._facts = found
            return self._facts

    def open(self) -> str | BinaryIO:
        """A local path for a small object, else a seekable file of its own that reads by range."""
        if self.facts.size_bytes <= self._settings.whole_below_bytes:
            return str(self._fetched_whole())
        raw = _RangedFile(
            self._address.key.rpartition("/")[2], self.facts.size_bytes, self._settings, self._block
        )
        return io.BufferedReader(raw, buffer_size=256 << 10)

    def _fetched_whole(self) -> Path:
        """The cache may drop its copy at any time; this process holds a second link to it."""
        with self._opening:
            if self._whole is None or not self._whole.exists():
                link = process_folder("sources") / f"{temporary_name()}{Path(self._address.key).suffix}"
                self._blocks().link("whole", 0, self.facts.size_bytes, link)
                self._whole = link
            return self._whole

    def _block(self, number: int) -> bytes | mmap.mmap:
        start = number * self._settings.block_bytes
        length = min(self._settings.block_bytes, self.facts.size_bytes - start)
        return self._blocks().block(f"{number:08d}", start, length)

    def _blocks(self) -> _Cache:
        with self._opening:
            if self._cache is None:
                named = (
                    self.uri,
                    self.facts.etag,
                    self.facts.size_bytes,
                    self._settings.block_bytes,
                    _boot(),
                )
                folder = hashlib.sha256(repr(named).encode()).hexdigest()[:32]
                self._cache = _Cache(node_folder() / "blocks", folder, self._settings, self._fetch)
            return self._cache

    def _fetch(self, file: BinaryIO, start: int, length: int) -> None:
        part = None if start == 0 and length == self.facts.size_bytes else length
        try:
            self._connection.read_into(file, self._address, start=start, length=part, etag=self.facts.etag)
        except (ObjectChanged, MissingObject) as exc:
            try:
                found = self._connection.head(self._address)
            except MissingObject:
                raise MediaError(f"{self.uri}: was deleted while the run was reading it") from exc
            raise self._changed(found) from exc

    def _changed(self, found: S3Facts) -> MediaError:
        wanted = self._facts.etag if self._facts is not None else self._etag
        return MediaError(
            f"{self.uri}: the source changed: its ETag was {wanted}, now {found.etag}; "
            "put the old one back, or start a new run"
        )


class _RangedFile(io.RawIOBase):
    """A seekable file whose bytes come from blocks; reads ahead where it is read in order."""

    def __init__(
        self, name: str, size: int, settings: SourceSettings, block: Callable[[int], bytes | mmap.mmap]
    ) -> None:
        self.name = name
        self._size = size
        self._settings = settings
        self._block = block
        self._position = 0
        self._held: OrderedDict[int, bytes | mmap.mmap] = OrderedDict()
        self._previous = -2
        self._last_block = (size - 1) // settings.block_bytes
        self._ahead: dict[int, _Ahead] = {}
        self._failure: VsrError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "seek before the beginning")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # of any buffer
        if self._position >= self._size:
            return 0
        if self._failure is not None:  # FFmpeg asks on after an error; each answer would take its full time
            raise self._failure
        number, offset = divmod(self._position, self._settings.block_bytes)
        try:
            piece = self._hold(number)[offset : offset + len(buffer)]
        except VsrError as exc:
            self._failure = exc
            raise
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def close(self) -> None:
        self._held.clear()
        self._ahead.clear()
        super().close()

    def _hold(self, number: int) -> bytes | mmap.mmap:
        if number != self._previous:
            if number == self._previous + 1:
                self._read_ahead(number)
            self._previous = number
        if number not in self._held:
            under_way = self._ahead.pop(number, None)
            found = under_way.result() if under_way else None
            self._held[number] = self._block(number) if found is None else found
            if len(self._held) > self._settings.blocks_held:
                self._held.popitem(last=False)
        self._held.move_to_end(number)
        return self._held[number]

    def _read_ahead(self, number: int) -> None:
        wanted = range(number + 1, min(number + self._settings.blocks_ahead, self._last_block) + 1)
        for passed in [each for each in self._ahead if each not in wanted and each != number]:
            del self._ahead[passed]
        for each in wanted:
            if each not in self._held and each not in self._ahead:
                self._ahead[each] = _Ahead(self._block, each)


class _Ahead:
    """One block fetched by a thread of its own; a daemon, so that it never holds up the end of a worker."""

    def __init__(self, block: Callable[[int], bytes | mmap.mmap], number: int) -> None:
        self._found: bytes | mmap.mmap | None = None
        self._thread = threading.Thread(target=self._run, args=(block, number), daemon=True)
        self._thread.start()

    def result(self) -> bytes | mmap.mmap | None:
        """None where it failed: the reader asks again and gets the error itself."""
        self._thread.join()
        return self._found

    def _run(self, block: Callable[[int], bytes | mmap.mmap], number: int) -> None:
        try:
            self._found = block(number)
        except Exception as exc:
            log.info("read-ahead failed block=%d why=%s", number, exc)


class _Cache:
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


def _boot() -> str:
    """Blocks are not synced, so those of before a power cut are not trusted."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


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
