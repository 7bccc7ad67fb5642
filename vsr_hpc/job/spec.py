"""The job file: what a person asks for, checked at birth.

A job that loads is well-formed; whether it fits its clip, model and disk is `plan`'s question.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


def _parse_size(value: object) -> object:
    if isinstance(value, str):
        match = re.fullmatch(r"(\d{1,5})?x(\d{1,5})?", value.strip())
        if not match or not (match[1] or match[2]):
            raise ValueError(
                f"{value!r} is not a size; write WIDTHxHEIGHT, for example 1920x1080, "
                "or one side, which the other follows: 1920x or x1080"
            )
        return tuple(None if side is None else int(side) for side in match.groups())
    return value


def _parse_text(value: object) -> object:
    """YAML reads `crf: 18` as a number where a text is wanted; both mean the same to the person."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _is_time_point(text: str) -> str:
    if not re.fullmatch(r"(\d+:)?(\d+:)?\d+(\.\d+)?|\d+f", text):
        raise ValueError(
            f"{text!r} is no time; write seconds (12.5), [HH:]MM:SS (1:30), or a frame's number (250f)"
        )
    return text


def _is_rate(text: str) -> str:
    if not re.fullmatch(r"\d+(/\d+|\.\d+)?", text) or not re.search(r"[1-9]", text) or text.endswith("/0"):
        raise ValueError(f"{text!r} is no frame rate; write 24, 29.97 or 24000/1001")
    return text


def _is_place(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("is empty" if not text else "holds a zero byte")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(f"{text!r} is not UTF-8, which a run's files need; rename it") from exc
    return text


Size = Annotated[tuple[int | None, int | None], BeforeValidator(_parse_size)]
"""Width and height; one of them may be None and follows."""
Text = Annotated[str, BeforeValidator(_parse_text)]
Place = Annotated[str, AfterValidator(_is_place)]
"""A path, an address or a model's name."""
TimePoint = Annotated[str, BeforeValidator(_parse_text), AfterValidator(_is_time_point)]
"""Seconds, [HH:]MM:SS.mmm, or a frame (250f)."""
Rate = Annotated[str, BeforeValidator(_parse_text), AfterValidator(_is_rate)]


class PictureSection(_Section):
    """How pictures are made: everything here may change the bytes of the output."""

    scale: float | None = Field(None, gt=0, le=16)
    size: Size | None = None
    tile: int | Literal["auto", "none"] = "auto"
    batch: int | Literal["auto"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    blend: float = Field(0.0, ge=0, le=1)
    grain: float = Field(0.0, ge=0, le=32)
    seed: int = 0
    denoise: float | None = Field(None, ge=0, le=1)
    """For models with a variant that keeps noise: 0 is that variant, 1 the model itself."""
    skip_duplicates: bool = False
    """Use a result again for the frames of its chunk that decode to the same bits."""
    window: int | Literal["auto"] = "auto"
    """Frames that a video network makes at a time; by memory."""
    context: int | Literal["auto"] = "auto"
    """Frames that it sees on both sides of them; the card's."""
    deinterlace: bool = False
    field_order: Literal["auto", "progressive", "tff", "bff"] = "auto"

    @model_validator(mode="after")
    def _one_size(self) -> PictureSection:
        if self.scale is not None and self.size is not None:
            raise ValueError("give scale or size, not both")
        return self

    @field_validator("tile")
    @classmethod
    def _pays(cls, tile: int | str) -> int | str:
        if isinstance(tile, int) and tile < 32:
            raise ValueError(f"{tile} is too small to pay; use 32 or more, auto or none")
        return tile

    @field_validator("window", "context")
    @classmethod
    def _is_bounded(cls, value: int | str, info: ValidationInfo) -> int | str:
        least = 2 if info.field_name == "window" else 0
        if isinstance(value, int) and not least <= value <= 10_000:
            raise ValueError(f"{value} must be from {least} to 10000 frames, or auto")
        return value

    @field_validator("batch")
    @classmethod
    def _is_some(cls, batch: int | str) -> int | str:
        if isinstance(batch, int) and batch < 1:
            raise ValueError(f"{batch} must be 1 or more, or auto")
        return batch


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

    rate: Rate | None = None
    """Also of a raw stream, which has no timestamps either."""
    allow_gaps: bool = False

    @property
    def frame_rate(self) -> Fraction | None:
        return None if self.rate is None else Fraction(self.rate)


class RunSection(_Section):
    """How the work is cut and kept; nothing here but `chunk_s` may change a byte of the output."""

    location: Place | None = None
    workers: int = Field(1, ge=1, le=10_000)
    gpus: tuple[int, ...] | None = None
    threads: int | None = Field(None, ge=1, le=1024)
    chunk_s: float | None = Field(None, gt=0, le=600)
    shard_s: float = Field(45.0, gt=0)
    max_attempts: int = Field(4, ge=1, le=100)
    max_rounds: int = Field(8, ge=1, le=1000)
    hang_s: float = Field(600.0, gt=0, le=1e6)
    """A worker ends itself after so long without progress, or 20 times the longest gap before, if longer."""
    reproducible: Literal["mixed", "strict"] = "mixed"
    keep_segments: bool = False
    metrics: Literal["none", "emf", "cloudwatch"] = "none"
    """How workers tell CloudWatch their figures: lines in the log, or the API."""
    prometheus: Place | None = None
    """A folder for the node exporter's textfile collector."""


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


class BatchSection(_Section):
    """How AWS Batch starts the workers (`run.workers` says how many). Changes no byte of the output."""

    name: str = Field("vsr", pattern=r"^[a-z][a-z0-9-]{0,39}$")
    """What `vsr batch init` made under this name: queues, job role, log group, the image."""
    region: Text | None = None
    image: Text | None = None
    """The container; the one told to `vsr batch init` by default."""
    queues: tuple[Text, ...] = ()
    """In order of preference; by default NAME, Spot first and on-demand next, or NAME-cpu without GPUs."""
    job_role: Text | None = None
    gpus: int | None = Field(None, ge=0, le=64)
    """For each worker; by default one for a network and none for a filter."""
    cpus: int = Field(4, ge=1, le=1024)
    memory_gib: float = Field(14, ge=0.25, le=4096)
    """A little less than the instance has: Batch keeps some for itself."""
    attempts: int = Field(10, ge=1, le=10)
    """Of each worker: a lost host and exit code 75 start it again, nothing else does."""
    timeout_min: int = Field(720, ge=5, le=100_000)
    """Of one attempt; a worker leaves before that and is started again."""
    warning_s: int = Field(120, ge=10, le=3600)
    """How long before the timeout it leaves."""


class JobSpec(_Section):
    """One job: a clip, a model, and how. Frozen; unknown keys are refused."""

    input: Place
    output: Place
    model: Place = "auto"
    """A name, a file of weights, or auto: the package's own model for the clip and the size."""
    on: Literal["local", "slurm", "aws-batch"] = "local"
    picture: PictureSection = PictureSection()
    video: VideoSection = VideoSection()
    streams: StreamsSection = StreamsSection()
    range: RangeSection = Field(default_factory=lambda: RangeSection.model_validate({}))
    images: ImagesSection = ImagesSection()
    run: RunSection = RunSection()
    slurm: SlurmSection = SlurmSection()
    batch: BatchSection = BatchSection()
    overwrite: bool = False

    @property
    def run_uri(self) -> str:
        """Where this job's run lives unless it is told otherwise: beside its output."""
        return self.run.location or f"{self.output.rstrip('/')}.vsr"
