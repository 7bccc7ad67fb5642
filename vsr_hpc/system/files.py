"""Writes files whole or not at all, hashes them, and turns errors of the disk into ours."""

from __future__ import annotations

import difflib
import errno
import hashlib
import itertools
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Literal

from vsr_hpc.errors import JobError, OutageError, SpaceError
from vsr_hpc.system.progress import tick

TEMPORARY_PREFIX = ".tmp-"
_BLOCK_BYTES = 1 << 20
_MOST_COMPARED = 2000
_serial = itertools.count()


def temporary_name() -> str:
    return f"{TEMPORARY_PREFIX}{os.getpid()}-{next(_serial)}-{secrets.token_hex(4)}"


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; new ones outlive a loss of power."""
    try:
        new = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for each in reversed(new):
            flush_folder(each.parent)
    except OSError as exc:
        raise translated(exc, folder) from exc


def write_atomically(path: Path, content: str | bytes | Iterable[bytes]) -> int:
    """Replace `path` in one step by `content`, text as UTF-8. Returns its size in bytes.

    The new file is flushed to the disk first, so a reader sees the old file or the new one and never a part.
    Where writing fails, `path` is as it was and no temporary file remains; the error, an OSError or one of
    `content`'s own, reaches the caller unchanged.
    """
    pieces = [content.encode()] if isinstance(content, str) else content
    pieces = [pieces] if isinstance(pieces, bytes) else pieces
    temporary = path.with_name(temporary_name())
    try:
        with temporary.open("xb") as file:
            for piece in pieces:
                file.write(piece)
                tick()
            file.flush()
            os.fsync(file.fileno())
            size_bytes = file.tell()
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return size_bytes


def sha256_of_file(path: Path) -> str:
    """The sha256 of a file's content, in hex."""
    with path.open("rb") as file:
        return sha256_of_stream(file)


def sha256_of_stream(file: BinaryIO) -> str:
    """The sha256 of what remains of an open file, in hex; it is read block by block."""
    digest = hashlib.sha256()
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
        tick()
    return digest.hexdigest()


def flush_and_hash(path: Path) -> tuple[int, str]:
    """Flush a finished file to the disk. Returns its size in bytes and its sha256 in hex."""
    flush_to_disk(path)
    return path.stat().st_size, sha256_of_file(path)


def flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Flush a folder's list of names, so that a new name in it outlives a loss of power.

    A folder that this user may not list, or a file system that cannot do it, is left to its own rules.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EROFS):
            raise
    finally:
        os.close(descriptor)


def describe_missing(path: Path) -> str:
    """What to say of a path where nothing is, with the file beside it that was probably meant."""
    try:
        names = [each.name for each in itertools.islice(path.parent.iterdir(), _MOST_COMPARED)]
    except OSError:  # the folder is missing too, or must not be read
        names = []
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"there is no such file{hint}"


def translated(
    exc: OSError, path: Path, doing: Literal["written", "read"] = "written"
) -> SpaceError | JobError | OutageError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpaceError(
            f"{path}: the disk is full; free some space and call again, finished shards are kept"
        )
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        way_out = "choose another place" if doing == "written" else "ask its owner for the right to read it"
        return JobError(f"{path}: cannot be {doing} ({os.strerror(exc.errno)}); {way_out}")
    return OutageError(f"{path}: {exc.strerror or exc}")
