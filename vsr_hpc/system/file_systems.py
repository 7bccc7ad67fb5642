"""Which file system holds a path, and whether several machines share it."""

from __future__ import annotations

import os
from pathlib import Path

_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "afs"}
_PARALLEL = {"lustre", "beegfs", "gpfs", "ceph", "glusterfs", "wekafs", "panfs", "pvfs2", "orangefs"}
_IN_USER_SPACE = {"fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.juicefs"}
SHARED_FILE_SYSTEMS = frozenset(_NETWORK | _PARALLEL | _IN_USER_SPACE)


def file_system_of(path: Path) -> str:
    """The kind of file system that holds `path` ('ext4', 'nfs4'), or '' where the kernel does not tell."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return file_system_among(mounts, os.path.realpath(path))


def file_system_among(mounts: str, path: str) -> str:
    """As `file_system_of`, from the text of /proc/self/mounts; of two mounts on one point the later holds."""
    longest, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = _unescaped(fields[1])
        is_above = path == point or path.startswith(point.rstrip("/") + "/")
        if is_above and len(point) >= len(longest):
            longest, kind = point, fields[2]
    return kind


def _unescaped(field: str) -> str:
    for octal, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(octal, character)
    return field
