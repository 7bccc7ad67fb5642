"""`vsr bench --quality`: which models are compared on whose originals, and the table."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import typer

from vsr_hpc.errors import JobError


def measure(
    folder: Path, *, models: str | None, scale: float | None, degrade: str, threads: int, is_json: bool
) -> None:
    """Print PSNR and SSIM (LPIPS where installed) of every model, as a table in Markdown or as JSON."""
    from vsr_hpc.bench.quality import measure_quality, rows_of_text
    from vsr_hpc.models.defaults import shipped_models

    factor = 4.0 if scale is None else scale
    if factor != int(factor):
        raise JobError(f"--quality measures whole factors; --scale {factor} is none")
    names = models.split(",") if models else ["bicubic", "lanczos", *shipped_models(int(factor))]
    table = measure_quality(
        folder,
        [name.strip() for name in names],
        int(factor),
        degrade=degrade,
        threads=threads or len(os.sched_getaffinity(0)),
        tell=_say if sys.stderr.isatty() else lambda _: None,
    )
    if sys.stderr.isatty():
        _say("")
    if is_json:
        typer.echo(json.dumps(_finite(dataclasses.asdict(table)), indent=1))
        return
    for line in rows_of_text(table):
        typer.echo(line)
    typer.echo(
        f"{table.pictures} originals; PSNR and SSIM of luma without {table.scale} pixels of border; "
        f"fps: 1920x1080 out, upscaling alone, on {table.device} with {table.threads} threads",
        err=True,
    )


def _say(text: str) -> None:
    """In place of what was said before."""
    typer.echo(f"\r\033[K{text}", nl=False, err=True)


def _finite(value: Any) -> Any:
    """JSON knows no infinity, which is the PSNR of equal pictures."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
