"""Where the files of `cluster-config/` lie, in a checkout and in an installation."""

from __future__ import annotations

import sys
from pathlib import Path

from vsr_hpc.errors import JobError


def config_folder() -> Path:
    """`cluster-config/` of the checkout, or where an installed package put it."""
    checkout = Path(__file__).resolve().parents[2] / "cluster-config"
    installed = Path(sys.prefix) / "share" / "vsr_hpc" / "cluster-config"
    for folder in (checkout, installed):
        if folder.is_dir():
            return folder
    raise JobError(f"no cluster-config folder at {checkout} or {installed}; give the template's path instead")
