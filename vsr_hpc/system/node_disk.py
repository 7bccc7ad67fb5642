"""The folders of this user and of this process on the node's own disk."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

from vsr_hpc.errors import JobError
from vsr_hpc.system.files import make_folder, translated


def node_folder() -> Path:
    """This user's folder on the node's own disk, mode 0700, kept between runs.

    It lies in $VSR_NODE_CACHE, else $TMPDIR, else /var/tmp, as `vsr-<uid>`, so that users may share a node.
    """
    named = os.environ.get("VSR_NODE_CACHE") or os.environ.get("TMPDIR")
    parent = Path(named or ("/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir()))
    return private_folder(parent / f"vsr-{os.geteuid()}")


def private_folder(folder: Path) -> Path:
    """Make a folder that only this user may enter; JobError where another user owns what stands there."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError as exc:
        raise translated(exc, folder) from exc
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise JobError(
            f"{folder}: is not a folder of yours; name another place in VSR_NODE_CACHE or XDG_CACHE_HOME"
        )
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
        make_folder(parent)
        _sweep(parent)
        _process_folders[key] = _locked_folder(parent)
        atexit.register(_leave, key)
    folder = _process_folders[key][0] / kind
    make_folder(folder)
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
    if key[1] == os.getpid() and key in _process_folders:  # not a fork of the owner
        folder, _ = _process_folders.pop(key)
        shutil.rmtree(folder, ignore_errors=True)
