"""Starts a run that a person asked for on the page."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vsr_hpc.dashboard.uploads import safe_name
from vsr_hpc.errors import JobError
from vsr_hpc.executors.local import last_words, start_command
from vsr_hpc.job.reading import parse_job
from vsr_hpc.job.spec import JobSpec
from vsr_hpc.launch import describe_job, submit
from vsr_hpc.models.defaults import AUTO, default_model
from vsr_hpc.planning.preparation import prepare
from vsr_hpc.run.run import Run

_PREVIEW_S = 900.0


class Asked(BaseModel):
    """A job as the form says it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: str = Field(min_length=1, max_length=4096)
    output: str = Field("", max_length=4096)
    model: str = Field(min_length=1, max_length=1024)
    scale: float | None = Field(None, gt=0, le=16)
    size: str | None = Field(None, max_length=32)
    at: str | None = Field(None, max_length=32)
    on: str = "local"


def begin_run(asked: Asked, folder: str) -> Run:
    """Check the job and announce its run; JobError and MediaError say what is wrong."""
    return submit(_job(asked, folder)).run


def describe_run(asked: Asked, folder: str) -> str:
    """What the job will do, in one line, as the command line begins; the same errors as `begin_run`."""
    return describe_job(prepare(_job(asked, folder)))


def _job(asked: Asked, folder: str) -> JobSpec:
    document = {
        "input": asked.input,
        "output": asked.output or default_output(asked, folder),
        "model": asked.model,
        "on": asked.on,
        "picture": {"scale": asked.scale, "size": asked.size},
    }
    return parse_job(document, "")


def default_output(asked: Asked, folder: str) -> str:
    """Beside the input; for one on S3, in the folder where the page keeps things."""
    stem = Path(asked.input.rpartition("/")[2]).stem or "clip"
    name = f"{stem}-{safe_name(Path(asked.model).stem)}.mkv"
    if asked.input.startswith("s3://"):
        return str(Path(folder if "://" not in folder else ".") / name)
    return str(Path(asked.input).parent / name)


@dataclass(slots=True)
class Carrying:
    """Commands that carry runs on, each a process of its own that outlives the page."""

    logs: Path
    _processes: dict[str, tuple[subprocess.Popen[bytes], Path]] = field(default_factory=dict)

    def carry_on(self, uri: str, number: str) -> None:
        """`vsr resume`, unless one that was begun here is still at it."""
        known = self._processes.get(number)
        if known is not None and known[0].poll() is None:
            return
        path = self.logs / f"{number}.log"
        process = start_command(uri, path)
        self._processes[number] = (process, path)

    def trouble(self, number: str) -> str:
        """The last words of a command that failed; "" where all is well."""
        known = self._processes.get(number)
        if known is None or known[0].poll() in (None, 0, 130):
            return ""
        return last_words(known[1]) or f"vsr resume ended with {known[0].returncode}"

    def is_carrying(self, number: str) -> bool:
        known = self._processes.get(number)
        return known is not None and known[0].poll() is None


async def preview_of(asked: Asked) -> dict[str, Any]:
    """One second through the model, in a process of its own; it ends when nobody waits for it any more."""
    model = default_model("video", asked.scale or 2) if asked.model == AUTO else asked.model
    command = [sys.executable, "-m", "vsr_hpc", "preview", f"--models={model}", "--seconds=1"]
    command += ["--json", "--quiet"]
    command += [f"--scale={asked.scale}"] if asked.scale else []
    command += [f"--at={asked.at}"] if asked.at else []
    command += ["--", asked.input]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        out, said = await asyncio.wait_for(process.communicate(), _PREVIEW_S)
    except TimeoutError as exc:
        raise JobError(f"the preview took longer than {_PREVIEW_S:.0f} s; try a smaller model") from exc
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise JobError(said.decode(errors="replace").strip().removeprefix("vsr: ") or "the preview failed")
    found: dict[str, Any] = json.loads(out)
    return found
