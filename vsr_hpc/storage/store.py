"""The protocol of a store of objects, which a folder and S3 implement."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vsr_hpc.errors import JobError, OutageError
from vsr_hpc.system.files import TEMPORARY_PREFIX


class MissingObject(OutageError):
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

    def within(self, folder: str) -> Store:
        """The store that lies under a folder of this one."""
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


def check_name(name: str) -> tuple[str, ...]:
    """The parts of an object's name; JobError where a folder or S3 could not keep it."""
    parts = tuple(name.split("/"))
    is_plain = all(part not in ("", ".", "..") and len(os.fsencode(part)) <= 255 for part in parts)
    is_ours = parts[0] == SCRATCH_FOLDER or any(part.startswith(TEMPORARY_PREFIX) for part in parts)
    if not is_plain or is_ours or "\0" in name:
        raise JobError(f"{name!r} is not a name of an object in a run")
    return parts


SCRATCH_FOLDER = "tmp"
RUNS_FOLDER = ".vsr"
"""The folder beside outputs in which their runs lie."""
