"""Ends a Slurm job that version 0.1.0 queued: submitit pickled its task by this module's name."""

from __future__ import annotations

import logging
from typing import NoReturn

log = logging.getLogger(__name__)


def __getattr__(name: str) -> NoReturn:
    if name not in ("WorkerTask", "FinishTask", "Names"):
        raise AttributeError(name)
    log.error("This job was queued by an older version of vsr_hpc; call `vsr resume` on its run.")
    raise SystemExit(2)
