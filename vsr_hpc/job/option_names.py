"""The command-line option of every key of a job file."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vsr_hpc.job.spec import JobSpec

KEYS = {
    "model": "model", "overwrite": "overwrite",
    "scale": "picture.scale", "size": "picture.size", "tile": "picture.tile", "batch": "picture.batch",
    "precision": "picture.precision", "blend": "picture.blend", "grain": "picture.grain",
    "denoise": "picture.denoise", "skip_duplicates": "picture.skip_duplicates",
    "window": "picture.window", "context_frames": "picture.context",
    "deinterlace": "picture.deinterlace", "field_order": "picture.field_order",
    "codec": "video.codec", "encoder": "video.encoder", "crf": "video.crf", "qp": "video.qp",
    "lossless": "video.lossless", "preset": "video.preset", "pix_fmt": "video.pix_fmt",
    "encoder_params": "video.params", "encoder_threads": "video.threads",
    "audio": "streams.audio", "drop": "streams.drop",
    "start": "range.from", "stop": "range.to", "frames": "range.frames",
    "rate": "images.rate", "allow_gaps": "images.allow_gaps",
    "run": "run.location", "workers": "run.workers", "gpus": "run.gpus", "threads": "run.threads",
    "chunk_s": "run.chunk_s", "shard_s": "run.shard_s", "keep_segments": "run.keep_segments",
    "strict": "run.reproducible",
}  # fmt: skip


def as_option(key: str) -> str:
    """The option that sets a job's key: people see what they typed."""
    if "." not in key:
        return key
    name = next((name for name, place in KEYS.items() if place == key), key.split(".")[1])
    odd = {"start": "from", "stop": "to", "context_frames": "context"}
    return f"--{odd.get(name, name).replace('_', '-')}"


_ODD_FLAGS = {
    "run.location": "--run",
    "video.params": "--encoder-params",
    "video.threads": "--encoder-threads",
}


def command_line(job: JobSpec) -> str:
    if job.on != "local":
        return f"vsr submit job.yaml --on {job.on}"
    words = ["vsr", "upscale", job.input, job.output, "--model", job.model]
    for section in ("picture", "video", "streams", "range", "images", "run"):
        values = getattr(job, section).model_dump(mode="json", by_alias=True, exclude_defaults=True)
        for key, value in values.items():
            words += _flag(section, key, value)
    return shlex.join(words)


def _flag(section: str, key: str, value: Any) -> list[str]:
    flag = _ODD_FLAGS.get(f"{section}.{key}", f"--{key.replace('_', '-')}")
    if (section, key) in _NO_FLAG:
        return []
    if (section, key) == ("run", "reproducible"):
        return ["--strict"] if value == "strict" else []
    if isinstance(value, bool):
        return [flag] if value else []
    if isinstance(value, dict):
        return [flag, ":".join(f"{each}={text}" for each, text in value.items())] if value else []
    if (section, key) == ("picture", "size"):
        return [flag, "x".join("" if side is None else str(side) for side in value)]
    if (section, key) == ("run", "gpus"):
        return [flag, ",".join(map(str, value))]
    if isinstance(value, list):
        return [word for each in value for word in (flag, str(each))]
    return [flag, str(value)]


_NO_FLAG = {("picture", "seed"), ("run", "max_attempts"), ("run", "max_rounds"), ("run", "hang_s")}
