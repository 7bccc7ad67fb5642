"""Where a finished output goes: a file or a folder of stills on a disk, or an object on S3.

The merge writes a partial file on a disk of this machine; only the whole one gets the output's name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from vsr_hpc.errors import BackendError, JobError, OutageError, SpaceError
from vsr_hpc.media.stills.names import is_pattern, numbered_files
from vsr_hpc.storage.store import MissingObject
from vsr_hpc.system.files import flush_folder, sha256_of_file
from vsr_hpc.system.node_disk import node_folder, process_folder

if TYPE_CHECKING:
    from vsr_hpc.storage.s3_connection import S3Facts

log = logging.getLogger(__name__)

OutputState = Literal["same", "touched", "other", "gone"]
"""How an output compares with what was published: unchanged; of the same size but with another modification
time; another file; not there."""
_PUBLISH_TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What tells a finished output from whatever else may come to stand under its name."""

    frames: int
    size_bytes: int
    sha256: str
    modified_ns: int | None = None
    """Modification time of an output that is one file on a disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """The edition of a run that publishes an output."""

    run_uri: str
    number: int
    replaces: bool
    """Whether the job may replace a file that stands there."""
    check: Callable[[], None]
    """Raises where this process may not publish (any more)."""

    @property
    def mark(self) -> str:
        return f"{hashlib.sha256(self.run_uri.encode()).hexdigest()[:16]}.{self.number}"

    def may_replace(self, mark: str | None) -> bool:
        """Whether an object with this mark may be replaced, as that of a late earlier edition of this run."""
        run, _, number = (mark or "").partition(".")
        is_own = run == self.mark.partition(".")[0] and number.isdigit() and int(number) <= self.number
        return self.replaces or is_own


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

    def publish(self, partial: Path, whole: Published, publisher: Publisher) -> Published:
        """Give the whole file its name; the partial one is gone afterwards.

        An equal file that stands there already, which another process of this run has published, is kept.
        JobError where something else came to stand there meanwhile.
        """
        ...

    def take_back(self, whole: Published) -> None:
        """Remove what this process has published, where it still stands, since a newer run has begun."""
        ...

    def compare(self, whole: Published) -> OutputState:
        """How what stands there compares with what was published, as far as a look at it tells."""
        ...


def is_there(output: Output, whole: Published) -> bool:
    """Whether what was published still stands; a file with another modification time is hashed."""
    state = output.compare(whole)
    if state == "touched":
        return sha256_of_file(Path(output.uri)) == whole.sha256
    return state == "same"


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

    def publish(self, partial: Path, whole: Published, publisher: Publisher) -> Published:
        publisher.check()
        if partial.is_dir():
            folder = self._path.parent if "%" in self._path.name else self._path
            folder.mkdir(exist_ok=True)
            for path in sorted(partial.iterdir()):
                path.replace(folder / path.name)
            flush_folder(folder)
            return whole
        if not self._put_if_absent(partial):
            if self._holds(whole):
                partial.unlink()
            elif self._path.is_file() and not publisher.replaces:
                raise _stranger(self.uri)
            else:
                publisher.check()
                partial.replace(self._path)
        flush_folder(self._path.parent)
        return replace(whole, modified_ns=self._path.stat().st_mtime_ns)

    def _put_if_absent(self, partial: Path) -> bool:
        """Name the file only if nothing stands there; where the disk knows no hard links, look first."""
        try:
            os.link(partial, self._path)
        except FileExistsError:
            return False
        except OSError as exc:
            if exc.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            if os.path.lexists(self._path):
                return False
            partial.replace(self._path)
            return True
        partial.unlink()
        return True

    def _holds(self, whole: Published) -> bool:
        return (
            self._path.is_file()
            and self._path.stat().st_size == whole.size_bytes
            and sha256_of_file(self._path) == whole.sha256
        )

    def take_back(self, whole: Published) -> None:
        if self.compare(whole) != "same" or not self._path.is_file():
            return
        aside = self.partial()
        self._path.replace(aside)
        facts = aside.stat()
        if (facts.st_size, facts.st_mtime_ns) != (whole.size_bytes, whole.modified_ns):
            self._put_if_absent(aside)  # the newer run has published at this very moment
        aside.unlink(missing_ok=True)
        log.warning("the output was taken back, since a newer run has begun output=%s", self.uri)

    def compare(self, whole: Published) -> OutputState:
        if self._path.is_file():
            facts = self._path.stat()
            if facts.st_size != whole.size_bytes:
                return "other"
            return "same" if whole.modified_ns in (None, facts.st_mtime_ns) else "touched"
        is_numbered = is_pattern(self._path.name)
        folder = self._path.parent if is_numbered else self._path
        if not folder.is_dir():
            return "gone"
        stills = numbered_files(self._path) if is_numbered else list(folder.iterdir())
        return "same" if len(stills) >= whole.frames else "gone"


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
        name = f"{secrets.token_hex(4)}-{self._name}"
        return process_folder("outputs") / name  # goes with its process

    def facts(self) -> S3Facts | None:
        try:
            return self._store.facts(self._name)
        except MissingObject:
            return None

    def prove_writable(self) -> None:
        self._store.prove_writable(self._name)

    def publish(self, partial: Path, whole: Published, publisher: Publisher) -> Published:
        """The upload takes effect only if the object is still the one (or none) that was looked at before."""
        from vsr_hpc.storage.s3_errors import ObjectChanged

        for _ in range(_PUBLISH_TRIES):
            found = self.facts()
            if found is not None and found.sha256 == whole.sha256:
                partial.unlink(missing_ok=True)
                return whole
            if found is not None and not publisher.may_replace(found.run):
                raise _stranger(self.uri)
            publisher.check()
            with contextlib.suppress(ObjectChanged, MissingObject):
                self._store.publish_file(
                    self._name,
                    partial,
                    sha256=whole.sha256,
                    run=publisher.mark,
                    over=None if found is None else found.etag,
                )
                return whole
        raise OutageError(
            f"{self.uri}: others write it at the same time ({_PUBLISH_TRIES} tries); call again"
        )

    def take_back(self, whole: Published) -> None:
        """Nothing: the newer run replaces an object whose mark names an earlier edition."""

    def compare(self, whole: Published) -> OutputState:
        found = self.facts()
        if found is None:
            return "gone"
        return "same" if (found.size_bytes, found.sha256) == (whole.size_bytes, whole.sha256) else "other"


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
