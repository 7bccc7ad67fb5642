"""Where a clip's bytes come from: a local file, or an object on S3 read through a cache on the node's disk.

A small object is fetched whole. A large one is read in blocks of 8 MiB with read-ahead; the blocks lie in
`node_folder`, where all workers of one user on one node share them: one fetches, the others wait. A block
appears by a rename, so a worker killed on the way leaves nothing half. Every request names the ETag the run
began with, so a clip that is replaced meanwhile is noticed and never mixed with the old one.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import mmap
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from vsr_hpc.errors import MediaError, SourceChangedError, VsrError
from vsr_hpc.storage.block_cache import BlockCache, SourceSettings
from vsr_hpc.storage.s3_address import S3Address
from vsr_hpc.storage.s3_connection import S3Connection, S3Facts
from vsr_hpc.storage.s3_errors import ObjectChanged
from vsr_hpc.storage.store import MissingObject
from vsr_hpc.system.files import temporary_name
from vsr_hpc.system.node_disk import node_folder, process_folder

log = logging.getLogger(__name__)


DEFAULT_SETTINGS = SourceSettings()


class RangedSource:
    """An object on S3; satisfies Source. `open` may be called often and from several threads."""

    def __init__(
        self,
        address: S3Address,
        connection: S3Connection,
        settings: SourceSettings = DEFAULT_SETTINGS,
        etag: str | None = None,
    ) -> None:
        self._address = address
        self._connection = connection
        self._settings = settings
        self._etag = etag
        self._facts: S3Facts | None = None
        self._cache: BlockCache | None = None
        self._whole: Path | None = None
        self._opening = threading.RLock()

    @property
    def uri(self) -> str:
        return self._address.uri

    @property
    def etag(self) -> str | None:
        return self.facts.etag

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

    def _blocks(self) -> BlockCache:
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
                self._cache = BlockCache(node_folder() / "blocks", folder, self._settings, self._fetch)
            return self._cache

    def _fetch(self, file: BinaryIO, start: int, length: int) -> None:
        part = None if start == 0 and length == self.facts.size_bytes else length
        try:
            self._connection.read_into(file, self._address, start=start, length=part, etag=self.facts.etag)
        except (ObjectChanged, MissingObject) as exc:
            try:
                found = self._connection.head(self._address)
            except MissingObject:
                raise SourceChangedError(f"{self.uri}: was deleted while the run was reading it") from exc
            raise self._changed(found) from exc

    def _changed(self, found: S3Facts) -> SourceChangedError:
        wanted = self._facts.etag if self._facts is not None else self._etag
        return SourceChangedError(
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


def _boot() -> str:
    """Blocks are not synced, so those of before a power cut are not trusted."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
