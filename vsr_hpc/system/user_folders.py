"""Names the folders in which this package keeps things of one user: caches, data, state."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

FolderKind = Literal["cache", "data", "state"]

_FALLBACKS: dict[FolderKind, str] = {"cache": ".cache", "data": ".local/share", "state": ".local/state"}


def user_folder(kind: FolderKind) -> Path:
    """This user's `vsr_hpc` folder of that kind, by the XDG Base Directory rules; it need not exist yet.

    The environment variable XDG_CACHE_HOME, XDG_DATA_HOME or XDG_STATE_HOME names its parent where it is set.
    """
    parent = os.environ.get(f"XDG_{kind.upper()}_HOME") or Path.home() / _FALLBACKS[kind]
    return Path(parent) / "vsr_hpc"
