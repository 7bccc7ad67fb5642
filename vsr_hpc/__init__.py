"""Video super-resolution from one job file: one machine, Slurm, AWS Batch, SageMaker.

Importing this package imports no torch; the first upscaling does. docs/python.md has examples.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vsr_hpc.errors import (
    BackendError,
    JobError,
    MediaError,
    ModelError,
    SpaceError,
    VerifyError,
    VsrError,
)
from vsr_hpc.version import VERSION as __version__

if TYPE_CHECKING:
    from vsr_hpc.api import Result, RunHandle, open_run, submit, upscale
    from vsr_hpc.engine.arrays import ArrayUpscaler as Upscaler

__all__ = [
    "BackendError",
    "JobError",
    "MediaError",
    "ModelError",
    "Result",
    "RunHandle",
    "SpaceError",
    "Upscaler",
    "VerifyError",
    "VsrError",
    "__version__",
    "open_run",
    "submit",
    "upscale",
]

_HOMES = {
    **dict.fromkeys(("Result", "RunHandle", "open_run", "submit", "upscale"), "vsr_hpc.api"),
    "Upscaler": "vsr_hpc.engine.arrays",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vsr_hpc' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), {"Upscaler": "ArrayUpscaler"}.get(name, name))


def __dir__() -> list[str]:
    return __all__
