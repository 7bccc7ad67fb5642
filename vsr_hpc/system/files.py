"""Writes files so that a reader sees the old or the new content and never a part."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
from pathlib import Path

from vsr_hpc.errors import JobError, OutageError, SpaceError

TEMPORARY_PREFIX = ".tmp-"
_serial = itertools.count()


def temporary_name() -> str:
    return f"{TEMPORARY_PREFIX}{os.getpid()}-{next(_serial)}-{secrets.token_hex(4)}"


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise translated(exc, folder) from exc


def flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def translated(exc: OSError, path: Path) -> SpaceError | JobError | OutageError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpaceError(
            f"{path}: the disk is full; free some space and call again, finished shards are kept"
        )
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return JobError(f"{path}: cannot be written ({os.strerror(exc.errno)}); choose another place")
    return OutageError(f"{path}: {exc.strerror or exc}")
