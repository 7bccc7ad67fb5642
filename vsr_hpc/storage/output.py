"""Where a finished output goes: a file or a folder of stills on a disk, or an object on S3.

The merge writes a partial file on a disk of this machine; only the whole one gets the output's name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vsr_hpc.errors import BackendError, JobError, SpaceError
from vsr_hpc.media.stills.names import is_pattern, numbered_files
from vsr_hpc.storage.store import MissingObject
from vsr_hpc.system.node_disk import node_folder, process_folder
from vsr_hpc.system.progress import tick

if TYPE_CHECKING:
    from vsr_hpc.storage.s3_connection import S3Facts


class Output(Protocol):
    @property
    def uri(self) -> str: ...
    @property
    def disk(self) -> Path:
        """The local folder that the merge writes to; it may not exist yet."""
        ...

    def partial(self, run_uri: str = "") -> Path:
        """A name on this machine's disk for the file that is being merged.

        With a run's URI it is told by whoever holds its `finish` lease, and what a merge of that run has left
        there when it was killed is removed; other runs' files are not looked at.
        """
        ...

    def publish(self, partial: Path, sha256: str, *, replaces: bool) -> None:
        """Give the whole file its name. JobError where something else came to stand there meanwhile."""
        ...

    def is_there(self, size_bytes: int, sha256: str) -> bool:
        """Whether what was published still stands, as far as a look at it tells."""
        ...


def check_remote_output(uri: str, *, replaces: bool) -> list[str]:
    """What forbids an output that is an address: found by asking, and by beginning an upload."""
    if not uri.startswith("s3://"):
        return [
            f"output: {uri} is an address that cannot be written to; name a local path or s3://bucket/name"
        ]
    name = uri.rpartition("/")[2]
    if not Path(name).suffix or is_pattern(name):
        return [f"output: {uri} names no single file; on S3 name one, for example {uri.rstrip('/')}/out.mkv"]
    try:
        output = S3Output(uri)
        if output.facts() is not None and not replaces:
            return [f"output: {uri} exists; --overwrite (in a job file: overwrite: true) replaces it"]
        output.prove_writable()
    except JobError as exc:
        return [f"output: {exc}"]
    return []


class LocalOutput:
    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._path = Path(uri)

    @property
    def disk(self) -> Path:
        return self._path.parent

    def partial(self, run_uri: str = "") -> Path:
        folder, run = self._path.parent, hashlib.sha256(run_uri.encode()).hexdigest()[:8]
        folder.mkdir(parents=True, exist_ok=True)
        begin, end = f".{self._path.name}.{run}-", f".partial{self._path.suffix}"
        for each in list(folder.iterdir()) if run_uri else ():
            if each.name.startswith(begin) and each.name.endswith(end):
                with contextlib.suppress(OSError):  # another user's stays, and is in nobody's way
                    remove_partial(each)
        # random, since process ids are alike in containers that share a disk
        return self._path.with_name(f"{begin}{secrets.token_hex(4)}{end}")

    def publish(self, partial: Path, sha256: str, *, replaces: bool) -> None:
        if partial.is_dir():
            folder = self._path.parent if "%" in self._path.name else self._path
            folder.mkdir(exist_ok=True)
            for path in sorted(partial.iterdir()):
                path.replace(folder / path.name)
            return
        if self._path.is_file() and not replaces and _sha256(self._path) != sha256:
            raise _stranger(self.uri)
        partial.replace(self._path)

    def is_there(self, size_bytes: int, sha256: str) -> bool:
        if self._path.is_file():
            return self._path.stat().st_size == size_bytes
        if is_pattern(self._path.name):
            return self._path.parent.is_dir() and bool(numbered_files(self._path))
        return self._path.is_dir()


class S3Output:
    """One object; its sha256 travels with it, so that a later look tells ours from another's."""

    def __init__(self, uri: str) -> None:
        from vsr_hpc.storage.s3_address import S3Address
        from vsr_hpc.storage.s3_connection import S3Connection, S3Options
        from vsr_hpc.storage.s3_store import S3Store

        address = S3Address.from_uri(uri)
        folder, _, self._name = address.key.rpartition("/")
        self.uri = uri
        self._store = S3Store(
            S3Address(bucket=address.bucket, key=folder), S3Connection(S3Options.from_environment())
        )

    @property
    def disk(self) -> Path:
        return node_folder()

    def partial(self, run_uri: str = "") -> Path:
        return process_folder("outputs") / self._name  # goes with its process

    def facts(self) -> S3Facts | None:
        try:
            return self._store.facts(self._name)
        except MissingObject:
            return None

    def prove_writable(self) -> None:
        self._store.prove_writable(self._name)

    def publish(self, partial: Path, sha256: str, *, replaces: bool) -> None:
        found = self.facts()
        if found is not None and not replaces and found.sha256 != sha256:
            raise _stranger(self.uri)
        self._store.put_file(self._name, partial, sha256=sha256)

    def is_there(self, size_bytes: int, sha256: str) -> bool:
        found = self.facts()
        return found is not None and (found.size_bytes, found.sha256) == (size_bytes, sha256)


def remove_partial(partial: Path) -> None:
    if partial.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
    else:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors_explained(uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"{uri}: the disk is full; free some space and call again, nothing is lost"
            raise SpaceError(text) from exc
        raise BackendError(f"{uri}: {exc.strerror or exc}") from exc


def _stranger(uri: str) -> JobError:
    return JobError(f"{uri}: a file has appeared here since the job began; move it away and call again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
            tick()
        return digest.hexdigest()
