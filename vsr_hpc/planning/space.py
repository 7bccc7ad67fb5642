"""Estimates the disk space that a run needs, and refuses a run that does not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

from vsr_hpc.errors import SpaceError
from vsr_hpc.media.encode.encoding import Encoding
from vsr_hpc.planning.plan import Plan
from vsr_hpc.planning.preparation import Prepared
from vsr_hpc.storage.opening import open_output

_BITS_PER_PIXEL = {"h264": 0.35, "h265": 0.3, "av1": 0.25, "ffv1": 6.0, "prores": 3.0}
_USUAL_QUALITY = {"h264": 18, "h265": 20, "av1": 30}


def check_space(
    plan: Plan,
    run_uri: str,
    free_bytes: int | None,
    stored_bytes: int = 0,
    *,
    is_merged_here: bool = True,
) -> None:
    """Refuse a run that cannot fit where its segments go, less what lies there already, and its output.

    What goes to S3 needs a disk only on the machine that merges it.
    """
    disk = open_output(plan.job.output).disk
    is_apart = "://" in run_uri or _device(disk) != _device(Path(run_uri))
    here = plan.scratch_bytes // 2 if is_apart else plan.scratch_bytes
    _refuse_short(run_uri, max(0, here - stored_bytes), free_bytes, "put the run elsewhere with --run")
    if is_apart and (is_merged_here or "://" not in plan.job.output):
        free = shutil.disk_usage(_existing(disk)).free
        _refuse_short(str(disk), plan.scratch_bytes // 2, free, "put the output elsewhere")


def _refuse_short(place: str, needed: int, free_bytes: int | None, way_out: str) -> None:
    if free_bytes is not None and free_bytes < needed:
        raise SpaceError(
            f"{place}: about {_size(needed)} more are needed for segments and output, {_size(free_bytes)} "
            f"are free; free some space or {way_out}"
        )


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _device(path: Path) -> int:
    return _existing(path).stat().st_dev


def scratch_bytes(prepared: Prepared, frames: int) -> int:
    """Segments and output side by side, generously."""
    pixels = prepared.picture.width * prepared.picture.height * frames
    return int(2 * pixels * _bits_per_pixel(prepared.encoding) / 8) + prepared.clip.size_bytes + (16 << 20)


def _bits_per_pixel(encoding: Encoding | None) -> float:
    """As for ordinary pictures; constant quality doubles it for every six steps down."""
    if encoding is None or encoding.rate_kind == "lossless":
        return _BITS_PER_PIXEL["ffv1"]
    bits = _BITS_PER_PIXEL[encoding.codec]
    usual = _USUAL_QUALITY.get(encoding.codec)
    if usual is None or encoding.rate_kind not in ("crf", "qp"):
        return bits
    return float(min(_BITS_PER_PIXEL["ffv1"], bits * 2 ** ((usual - encoding.rate) / 6)))


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"
