"""Refuses an output that cannot be written or that would replace something."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from vsr_hpc.job.spec import JobSpec
from vsr_hpc.media.clip.clip import Clip
from vsr_hpc.media.stills.names import StillNames
from vsr_hpc.media.stills.still import SUFFIXES as IMAGE_SUFFIXES
from vsr_hpc.storage.output import check_remote_output


def place_findings(job: JobSpec) -> list[str]:
    if "://" in job.output:
        if job.output == job.input:
            return [f"output: {job.output} is the input itself; name another object"]
        return check_remote_output(job.output, replaces=job.overwrite)
    try:
        return _local_findings(job)
    except OSError as exc:
        return [f"output: {job.output} cannot be written ({exc.strerror}); choose another place"]


def _local_findings(job: JobSpec) -> list[str]:
    output = Path(job.output)
    findings = []
    if "://" not in job.input and _same_file(Path(job.input), output):
        return [f"output: {job.output} is the input itself; name another file"]
    if output.exists() and output.is_file() and not job.overwrite:
        findings.append(f"output: {job.output} exists; {_REPLACED_BY}")
    folder = output.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        findings.append(f"output: {folder} is not a folder")
    elif not _is_writable(folder):
        findings.append(
            f"output: {folder} cannot be written to; choose another place or change its permissions"
        )
    return findings


_REPLACED_BY = "--overwrite (in a job file: overwrite: true) replaces it"


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.resolve() == other.resolve() or (other.exists() and one.samefile(other))
    except OSError:
        return False


def _is_writable(folder: Path) -> bool:
    """Proved by writing: access bits lie on network file systems and read-only mounts."""
    probe = folder / f".vsr-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True


def makes_images(job: JobSpec, clip: Clip) -> bool:
    """Whether the output is a still, a pattern of stills, or a folder for them."""
    output = Path(job.output)
    is_folder = job.output.endswith("/") or (
        clip.images is not None and (output.is_dir() or not output.suffix)
    )
    return is_folder or output.suffix.lower() in IMAGE_SUFFIXES


def _has_one_frame(job: JobSpec, clip: Clip) -> bool:
    return (
        job.range.frames == 1 or clip.is_single_picture or (clip.images is not None and len(clip.images) == 1)
    )


def stills_findings(job: JobSpec, clip: Clip, names: StillNames) -> list[str]:
    """Stills are written one by one beside what stands there already; neither that nor the input may go."""
    output = Path(job.output)
    folder = output.parent if output.suffix.lower() in IMAGE_SUFFIXES else output
    count = len(clip.images) if clip.images is not None else 1
    if names.is_single and not _has_one_frame(job, clip):
        return [
            f"output: {job.output}: one file cannot hold several pictures; name a folder (ending in /), "
            f"a pattern such as {output.stem}_%05d{output.suffix}, or a video, or take one frame with "
            "--frames 1"
        ]
    targets = [folder / names.name(index) for index in range(count)]
    if clip.images is not None:
        sources = {clip.images.path(index).resolve() for index in range(count)}
        taken = [target for target in targets if target.resolve() in sources]
        if taken:
            return [f"output: {taken[0]} is one of the input's own images; name another folder"]
    there = [target for target in targets if target.exists()]
    if there and not names.is_single and not job.overwrite:  # a single file was looked at with its place
        return [f"output: {there[0]} exists; {_REPLACED_BY}"]
    return []
