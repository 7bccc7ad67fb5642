"""Reads what a client sent. Only this module hands a body to FFmpeg, and it runs inside the fence.

    python -m vsr_hpc.serving.reading FD GROWTH_BYTES

answers one request after the other on a socket: a line of JSON, then bytes, both ways.
"""

from __future__ import annotations

import io
import os
import resource
import socket
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import BaseModel, ConfigDict

from vsr_hpc.errors import VsrError
from vsr_hpc.media.clip.probe import probe_clip
from vsr_hpc.media.picture import Picture, Plane
from vsr_hpc.media.source import local_source, open_input
from vsr_hpc.media.stills.metadata import StillMeta
from vsr_hpc.media.stills.still import read_image
from vsr_hpc.serving.picture_size import still_size
from vsr_hpc.serving.refusals import Refusal, refusal_for, too_long, too_many_pixels
from vsr_hpc.serving.request import Content

MOST_LINE_BYTES = 64 << 20
_CPU_S = 60
_MOST_FILES = 64


class Task(BaseModel):
    """What is to be read: a still whose bytes follow, or a clip that lies at `path`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    content: Content
    pixels_in: int
    size_bytes: int = 0
    path: str = ""
    clip_s: float = 0.0


class StillRead(BaseModel):
    """What a still is; its planes follow."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    picture: Picture
    meta: StillMeta | None


class RefusalRead(BaseModel):
    """Why the request is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: int
    code: str
    text: str
    numbers: dict[str, float | int | str] = {}


class Reading(BaseModel):
    """The answer: a still, a refusal, or neither for a clip that is fine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    still: StillRead | None = None
    refusal: RefusalRead | None = None


def read_still(
    content: Content, body: bytes, pixels_in: int
) -> tuple[Picture, tuple[Plane, ...], StillMeta | None]:
    """The picture in a body. Refused by its header where it is too large; MediaError where damaged."""
    width, height = still_size(content, body)
    if width * height > pixels_in:
        raise too_many_pixels("request's", width, height, pixels_in)
    picture, planes, meta = read_image(io.BytesIO(body), most_pixels=pixels_in)
    if picture.width * picture.height > pixels_in:
        raise too_many_pixels("request's", picture.width, picture.height, pixels_in)
    return picture, planes, meta


def look_at_clip(path: Path, pixels_in: int, clip_s: float) -> None:
    """Open a clip, decode its first frames, and refuse it by what its container says."""
    with open_input(local_source(path)) as container:
        for stream in container.streams.video:
            if stream.codec_context is None:  # no decoder knows it, so its size cannot hurt
                continue
            width, height = int(stream.width or 0), int(stream.height or 0)
            if width * height > pixels_in:
                raise too_many_pixels("clip's", width, height, pixels_in)
        seconds = (container.duration or 0) / 1_000_000
    if seconds > clip_s:
        raise too_long(round(seconds, 2), clip_s, "seconds")
    probe_clip(local_source(path))


# Inside the fence ----------------------------------------------------------------------------------------


def main() -> None:
    ours = socket.socket(fileno=int(sys.argv[1]))
    _limit(int(sys.argv[2]))
    with ours.makefile("rb") as asked, ours.makefile("wb") as answered:
        answered.write(b"{}\n")  # it is there
        answered.flush()
        while line := asked.readline(MOST_LINE_BYTES):
            _answer(Task.model_validate_json(line), asked, answered)
            answered.flush()


def _answer(task: Task, asked: BinaryIO, answered: BinaryIO) -> None:
    _allow_cpu(_CPU_S)
    body = asked.read(task.size_bytes)
    planes: tuple[Plane, ...] = ()
    found = Reading()
    try:
        if task.path:
            look_at_clip(Path(task.path), task.pixels_in, task.clip_s)
        else:
            picture, planes, meta = read_still(task.content, body, task.pixels_in)
            found = Reading(still=StillRead(picture=picture, meta=meta))
    except Refusal as exc:
        found = _refused(exc)
    except VsrError as exc:
        found = _refused(refusal_for(exc, Path(task.path).parent if task.path else None))
    except MemoryError:
        found = _refused(Refusal(413, "media", "reading this body takes more memory than is allowed here"))
    answered.write(found.model_dump_json().encode() + b"\n")
    for plane in planes:
        answered.write(np.ascontiguousarray(plane).data)


def _refused(refusal: Refusal) -> Reading:
    numbers = dict(refusal.numbers)
    told = RefusalRead(status=refusal.status, code=refusal.code, text=refusal.text, numbers=numbers)
    return Reading(refusal=told)


def _limit(growth_bytes: int) -> None:
    """What this process may take: memory beyond what it has now, few files, nothing written, no core."""
    fields = Path("/proc/self/statm").read_text().split()
    most = int(fields[0]) * resource.getpagesize() + growth_bytes
    limits: dict[int, Any] = {
        resource.RLIMIT_AS: most,
        resource.RLIMIT_NOFILE: _MOST_FILES,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))
    os.nice(1)


def _allow_cpu(seconds: int) -> None:
    """So much processor time from now on; the kernel ends the process that takes more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds, hard))


if __name__ == "__main__":
    main()
