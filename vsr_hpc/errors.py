"""Every error this package raises: one class per person who must act.

The exit code is the contract with Slurm and AWS Batch: 75 asks for another try, all others do not.
"""

from __future__ import annotations


class VsrError(Exception):
    """Something a person must act on; its text says what, where, found against wanted, and the way out."""

    exit_code = 1
    retryable = False


class JobError(VsrError):
    """Whoever wrote the job, the configuration or the command must act."""

    exit_code = 2

    @classmethod
    def from_findings(cls, where: str, findings: list[str]) -> JobError:
        """One error that lists every finding, so that all are corrected at once; `where` may be empty."""
        prefix = f"{where}: " if where else ""
        if len(findings) == 1:
            return cls(f"{prefix}{findings[0]}")
        lines = (each.replace("\n", "\n    ") for each in findings)
        return cls("\n".join([f"{prefix}{len(findings)} problems", *(f"  - {each}" for each in lines)]))


class MediaError(VsrError):
    """Whoever supplied the clip must act."""

    exit_code = 3


class SourceChangedError(MediaError):
    """The source is no longer the one that the run was planned with."""


class ModelError(VsrError):
    """Weights are missing, have the wrong hash or the wrong shape."""

    exit_code = 4


class VerifyError(VsrError):
    """The output is not the plan: everything is kept, the run stops."""

    exit_code = 5


class SpaceError(VsrError):
    """Whoever owns the disk must act: it is full, or smaller than the plan needs."""

    exit_code = 6


class BackendError(VsrError):
    """Node, GPU, S3 or scheduler failed; another try can help."""

    exit_code = 75
    retryable = True


class OutageError(BackendError):
    """The store, the source or the network fails: another node would meet the same error."""


def error_of_exit_code(code: int) -> type[VsrError]:
    """The class of errors with which a command ends that way; VsrError itself for any other code."""
    known = {each.exit_code: each for each in VsrError.__subclasses__()}
    return known.get(code, VsrError)
