"""The job file: what a person asks for, checked at birth.

A job that loads is well-formed; whether it fits its clip, model and disk is `plan`'s question.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from vsr_hpc.errors import JobError


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


def _parse_size(value: object) -> object:
    if isinstance(value, str):
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", value.strip())
        if not match:
            raise ValueError(f"{value!r} is not a size; write WIDTHxHEIGHT, for example 1920x1080")
        return int(match[1]), int(match[2])
    return value


def _parse_text(value: object) -> object:
    """YAML reads `crf: 18` as a number where a text is wanted; both mean the same to the person."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


Size = Annotated[tuple[int, int], BeforeValidator(_parse_size)]
Text = Annotated[str, BeforeValidator(_parse_text)]
TimePoint = Annotated[str, BeforeValidator(_parse_text), Field(pattern=r"^((\d+:)?(\d+:)?\d+(\.\d+)?|\d+f)$")]
"""Seconds, [HH:]MM:SS.mmm, or a frame (250f)."""


class PictureSection(_Section):
    """How pictures are made: everything here may change the bytes of the output."""

    scale: float | None = Field(None, gt=0, le=16)
    size: Size | None = None
    tile: int | Literal["auto", "none"] = "auto"
    batch: int | Literal["auto"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    blend: float = Field(0.0, ge=0, le=1)
    grain: float = Field(0.0, ge=0, le=64)
    seed: int = 0
    deinterlace: bool = False
    field_order: Literal["auto", "progressive", "tff", "bff"] = "auto"

    @model_validator(mode="after")
    def _one_size(self) -> PictureSection:
        if self.scale is not None and self.size is not None:
            raise ValueError("give scale or size, not both")
        if isinstance(self.tile, int) and self.tile < 32:
            raise ValueError(f"tile {self.tile} is too small to pay; use 32 or more, auto or none")
        if isinstance(self.batch, int) and self.batch < 1:
            raise ValueError(f"batch {self.batch} must be 1 or more")
        return self


class VideoSection(_Section):
    """How the output is encoded."""

    codec: Literal["h264", "h265", "av1", "ffv1", "prores"] | None = None
    encoder: str | None = None
    crf: int | None = Field(None, ge=0, le=63)
    qp: int | None = Field(None, ge=0, le=255)
    lossless: bool = False
    preset: Text | None = None
    pix_fmt: str | None = None
    params: dict[str, Text] = Field(default_factory=dict)
    threads: int | None = Field(None, ge=1, le=64)


class StreamsSection(_Section):
    """What becomes of everything but the picture."""

    audio: Literal["copy", "aac", "opus", "none"] = "copy"
    drop: tuple[str, ...] = ()


class RangeSection(_Section):
    """A part of the clip; times are seconds or HH:MM:SS.mmm."""

    start: TimePoint | None = Field(None, alias="from")
    stop: TimePoint | None = Field(None, alias="to")
    frames: int | None = Field(None, ge=1)


class ImagesSection(_Section):
    """For folders and patterns of images."""

    rate: Text | None = Field(None, pattern=r"^\d+(/\d+|\.\d+)?$")
    allow_gaps: bool = False


class RunSection(_Section):
    """How the work is cut and kept; nothing here but `chunk_s` may change a byte of the output."""

    location: str | None = None
    workers: int = Field(1, ge=1, le=10_000)
    gpus: tuple[int, ...] | None = None
    threads: int | None = Field(None, ge=1, le=1024)
    chunk_s: float | None = Field(None, gt=0, le=600)
    shard_s: float = Field(45.0, gt=0)
    max_attempts: int = Field(4, ge=1, le=100)
    max_rounds: int = Field(8, ge=1, le=1000)
    reproducible: Literal["mixed", "strict"] = "mixed"
    keep_segments: bool = False


class ContainerSection(_Section):
    """An image in which workers run; what talks to Slurm and to the metadata service stays outside."""

    runtime: Literal["apptainer", "enroot"] = "apptainer"
    image: str
    args: tuple[str, ...] = ()
    """More arguments of `apptainer exec` or `enroot start`, for example --bind=/data."""


_SET_BY_VSR = frozenset(
    {
        "array", "begin", "cpus-per-task", "dependency", "error", "gpus-per-node", "job-name", "nodes",
        "ntasks", "ntasks-per-node", "no-requeue", "open-mode", "output", "requeue", "signal",
    }
)  # fmt: skip


class SlurmSection(_Section):
    """How Slurm starts the workers (`run.workers` says how many). Changes no byte of the output."""

    partitions: tuple[str, ...] = ()
    """In order of preference, Spot first; the cluster's default where empty."""
    standby_after_min: float = Field(15, ge=0, le=10_000)
    """After so many minutes without a Spot worker at work, workers on the next partition begin."""
    gpus: int | None = Field(None, ge=0, le=64)
    """For each worker; by default one for a network and none for a filter."""
    cpus: int = Field(4, ge=1, le=1024)
    memory_gib: float | None = Field(None, gt=0)
    time_limit_min: int = Field(240, ge=1)
    """Of one task; it requeues itself before that."""
    warning_s: int = Field(120, ge=10, le=3600)
    """How long before the time limit a worker is told."""
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    exclude: tuple[str, ...] = ()
    python: str | None = None
    """An interpreter with this package that all nodes see; the submitting one by default."""
    packed: str | None = None
    """A packed environment (.tar.gz) that all nodes see; each node unpacks it once on its own disk."""
    container: ContainerSection | None = None
    setup: tuple[str, ...] = ()
    """Lines of shell before the worker, for example `module load cuda`."""
    sbatch: dict[str, Text] = Field(default_factory=dict)
    """More keys for sbatch: {reservation: night}."""
    folder: str | None = None
    """Where job scripts and logs of Slurm go; must be seen by all nodes. A folder in the home by default."""

    @model_validator(mode="after")
    def _consistent(self) -> SlurmSection:
        if self.python is not None and self.packed is not None:
            raise ValueError("give python or packed, not both")
        own = sorted(key for key in self.sbatch if key.replace("_", "-") in _SET_BY_VSR)
        if own:
            raise ValueError(f"sbatch: {', '.join(own)} is set by vsr itself")
        return self


class JobSpec(_Section):
    """One job: a clip, a model, and how. Frozen; unknown keys are refused."""

    input: str
    output: str
    model: str
    on: Literal["local", "slurm", "aws-batch"] = "local"
    picture: PictureSection = PictureSection()
    video: VideoSection = VideoSection()
    streams: StreamsSection = StreamsSection()
    range: RangeSection = Field(default_factory=lambda: RangeSection.model_validate({}))
    images: ImagesSection = ImagesSection()
    run: RunSection = RunSection()
    slurm: SlurmSection = SlurmSection()
    overwrite: bool = False

    @property
    def run_uri(self) -> str:
        """Where this job's run lives unless it is told otherwise: beside its output."""
        return self.run.location or f"{self.output.rstrip('/')}.vsr"


def load_job(path: Path) -> JobSpec:
    """Read a job file; relative paths start from its own folder. Raises JobError with all findings."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise JobError(f"{path}: cannot be read as a job file: {exc}") from exc
    if len(text) > 1 << 20:
        raise JobError(f"{path}: {len(text)} characters is no job file")
    try:
        document = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as exc:
        raise JobError(f"{path}: not YAML: {_one_line(exc)}") from exc
    if not isinstance(document, dict):
        raise JobError(
            f"{path}: a job file is a mapping with input, output and model; found {_kind(document)}"
        )
    job = parse_job(document, str(path))
    return job.model_copy(
        update={"input": _beside(path, job.input), "output": _beside(path, job.output)}
        | ({"model": _beside(path, job.model)} if "/" in job.model else {})
    )


def parse_job(document: dict[str, Any], where: str) -> JobSpec:
    """Check a job given as plain values. Raises JobError with all findings at once."""
    try:
        return JobSpec.model_validate(document)
    except ValidationError as exc:
        raise JobError.from_findings(where, [_finding(error) for error in exc.errors()]) from exc


class _Loader(yaml.SafeLoader):
    """Safe YAML in which only true and false are truth values, so that `on:` is a word (as in YAML 1.2)."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$", re.I), list("tTfF"))


def _finding(error: Any) -> str:
    key = ".".join(
        str(part) for part in error["loc"] if not str(part).startswith(("function-", "constrained-"))
    )
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key{_close_keys(error['loc'])}"
    if error["type"] == "missing":
        return f"{key}: missing"
    found = repr(error["input"])
    text = error["msg"].removeprefix("Value error, ")
    return f"{key or 'job'}: {text}" + (f" (found {found[:60]})" if found not in text and key else "")


def _close_keys(location: tuple[Any, ...]) -> str:
    import difflib

    model: Any = JobSpec
    for part in location[:-1]:
        field = model.model_fields.get(part)
        if field is None:
            return ""
        model = field.annotation
    known = [field.alias or name for name, field in model.model_fields.items()]
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"


def _beside(path: Path, value: str) -> str:
    if "://" in value or Path(value).is_absolute():
        return value
    return str(path.parent / Path(value).expanduser())


def _kind(document: object) -> str:
    return "an empty file" if document is None else f"a {type(document).__name__}"


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())[:300]
