"""Makes a source, upscales it with our code, and has the output compared."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.media_zoo.checking import compare
from tests.media_zoo.sources import Source
from vsr_hpc.errors import VsrError
from vsr_hpc.job.reading import parse_job
from vsr_hpc.launch import run_here
from vsr_hpc.planning.planner import make_plan
from vsr_hpc.planning.preparation import prepare
from vsr_hpc.run.run import Run
from vsr_hpc.storage.folder_store import FolderStore
from vsr_hpc.system.interrupts import StopFlag

Outcome = Literal["good", "refused", "wrong", "not made"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """What became of one source. "not made": this machine's tools cannot make it."""

    source: Source
    outcome: Outcome
    said: str = ""
    is_exact: bool | None = None


def visit(source: Source, folder: Path) -> Visit:
    """Make it, upscale it to twice its size by repeated samples, and compare."""
    folder.mkdir(parents=True)
    made = folder / f"in{source.suffix}"
    for line in source.lines:
        command = line.replace("{out}", shlex.quote(str(made))).replace("{t}", shlex.quote(str(folder)))
        done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True, timeout=600)
        if done.returncode:
            return Visit(source=source, outcome="not made", said=done.stderr.strip()[-200:])
    output = folder / f"out{source.output}"
    try:
        upscale(made, output, source.options)
    except VsrError as exc:
        is_due = bool(source.refused) and source.refused in str(exc)
        return Visit(source=source, outcome="refused" if is_due else "wrong", said=f"refused: {exc}")
    if source.refused:
        return Visit(source=source, outcome="wrong", said=f"was not refused ({source.refused})")
    seen = folder / source.seen if source.seen else made
    verdict = compare(seen, output, loses=source.loses, exact=source.is_exact)
    return Visit(
        source=source,
        outcome="wrong" if verdict.faults else "good",
        said="; ".join(verdict.faults),
        is_exact=verdict.is_exact,
    )


def upscale(source: Path, output: Path, options: dict[str, Any]) -> None:
    """A whole run in this process, lossless where the encoder can."""
    is_still = output.suffix in (".png", ".tif", ".jpg", ".exr", ".webp", ".gif")
    document: dict[str, Any] = {
        "input": str(source),
        "output": str(output),
        "model": "nearest",
        "picture": {"scale": 2},
        "run": {"threads": 1},
    }
    if not is_still:
        document["video"] = {"lossless": True, "threads": 1}
    for key, value in options.items():
        document[key] = {**document.get(key, {}), **value}
    job = parse_job(document, "media zoo")
    prepared = prepare(job)
    run = Run.create(FolderStore(Path(job.run_uri)), job)
    plan, timeline = make_plan(prepared, lambda *_: None)
    run.write_plan(plan, timeline)
    run.start_round("local", 1, plan.shard_count)
    run_here(run, StopFlag())
