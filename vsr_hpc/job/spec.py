"""The job: what a person asks for, as a job file or as command-line options.

Each field here is the only source for a key of the job file: its type and limits, its description and, by its
`Option`, its command-line option. `vsr_hpc.job.options` makes the rest from these fields: the options of
`vsr upscale`, `submit` and `plan`, their help, the tables of docs/cli.md and the command that a report shows.

A job that loads is well-formed. `vsr_hpc.planning` decides whether it fits its clip, model and disk.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
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

from vsr_hpc.storage.store import RUNS_FOLDER

Panel = Literal["Picture", "Model", "Encoding", "Streams", "Part of a clip", "Machine", "Slurm", "Run"]
"""A group of options in the help of a command; the help shows them in this order."""


@dataclass(frozen=True, slots=True)
class Option:
    """The command-line option of a key of the job file."""

    panel: Panel
    name: str | None = None
    """The long name; `--` and the key by default."""
    also: tuple[str, ...] = ()
    """More names, for example `-s`."""
    metavar: str | None = None
    """What the help shows for the value; by default, the choices or the type."""
    flag_value: str | None = None
    """The value that the option sets, where it takes none on the command line."""
    separator: str | None = None
    """What stands between several values. Without it, the option is repeated."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_control_characters(cls, value: object, info: ValidationInfo) -> object:
        """Names and settings reach batch scripts, headers and logs, where a line break begins a line."""
        allowed = "\n\t" if info.field_name == "setup" else ""
        for text in _texts(value):
            found = next(
                (each for each in text if unicodedata.category(each) == "Cc" and each not in allowed), None
            )
            if found is not None:
                raise ValueError(f"{text!r} holds the control character {found!r}; take it out")
        return value


def _texts(value: object) -> Iterator[str]:
    """A text, or the texts of a list; deeper lists fit no field, and YAML's aliases can make them endless."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        yield from (each for each in value if isinstance(each, str))


SIZE_NAMES: dict[str, tuple[int, int]] = {
    "480p": (854, 480),
    "720p": (1280, 720),
    "1080p": (1920, 1080),
    "1440p": (2560, 1440),
    "2160p": (3840, 2160),
    "4k": (3840, 2160),
    "4320p": (7680, 4320),
    "8k": (7680, 4320),
}
"""Sizes that have a name, lying; an upright clip takes them upright."""


def _parse_size(value: object) -> object:
    if isinstance(value, str):
        text = value.strip().lower().replace("×", "x")
        if text in SIZE_NAMES:
            return text
        match = re.fullmatch(r"(\d{1,5})?x(\d{1,5})?", text)
        if not match or not (match[1] or match[2]):
            raise ValueError(
                f"{value!r} is not a size; write WIDTHxHEIGHT, for example 1920x1080, "
                f"one side, which the other follows (1920x or x1080), or a name: {', '.join(SIZE_NAMES)}"
            )
        return tuple(None if side is None else int(side) for side in match.groups())
    return value


def _parse_text(value: object) -> object:
    """YAML reads `crf: 18` as a number where a text is wanted; both mean the same to the person."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _parse_numbers(value: object) -> object:
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdecimal() for part in parts):
            raise ValueError(
                f"{value!r} is not a list of numbers; write numbers with commas, for example 0,1"
            )
        return tuple(map(int, parts))
    return value


def _parse_pairs(value: object) -> object:
    if not isinstance(value, str):
        return value
    pairs = {}
    for part in filter(None, value.split(":")):
        key, separator, text = part.partition("=")
        if not separator:
            raise ValueError(f"{part!r} is not key=value; write key=value:key=value")
        pairs[key] = text
    return pairs


_CODEC_NAMES = {
    "hevc": "h265",
    "x265": "h265",
    "h.265": "h265",
    "avc": "h264",
    "x264": "h264",
    "h.264": "h264",
}


def _parse_codec(value: object) -> object:
    return _CODEC_NAMES.get(value.lower(), value.lower()) if isinstance(value, str) else value


def _check_time_point(text: str) -> str:
    if not re.fullmatch(r"(\d+:)?(\d+:)?\d+(\.\d+)?|\d+f", text):
        raise ValueError(
            f"{text!r} is not a time; write seconds (12.5), [HH:]MM:SS (1:30), or a frame's number (250f)"
        )
    return text


def _check_rate(text: str) -> str:
    if not re.fullmatch(r"\d+(/\d+|\.\d+)?", text) or not re.search(r"[1-9]", text) or text.endswith("/0"):
        raise ValueError(f"{text!r} is not a frame rate; write 24, 29.97 or 24000/1001")
    return text


def _check_place(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("is empty" if not text else "holds a zero byte")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(f"{text!r} is not UTF-8, which a run's files need; rename it") from exc
    return text


def _parse_minutes(value: object) -> object:
    """Minutes from sbatch's MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS, rounded up."""
    if not isinstance(value, str) or value.strip().isdecimal():
        return value
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", value.strip())
    if not match:
        raise ValueError(f"{value!r} is not a time limit; write minutes, H:MM:SS or D-HH:MM:SS")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    else:
        hours, minutes, seconds = numbers if len(numbers) == 3 else (0, *numbers)
    return (int(days or 0) * 24 + hours) * 60 + minutes + (seconds > 0)


def _check_notify(text: str | None) -> str | None:
    """A command is split into words as a shell would, but no shell runs it."""
    if text is None or text.startswith(("http://", "https://")):
        return text
    try:
        words = shlex.split(text)
    except ValueError as exc:
        raise ValueError(f"{text!r} is not a command: {exc}") from exc
    if not words:
        raise ValueError("is empty; name a command or an address that begins with http:// or https://")
    return text


Size = Annotated[
    tuple[int | None, int | None] | Literal["480p", "720p", "1080p", "1440p", "2160p", "4k", "4320p", "8k"],
    BeforeValidator(_parse_size),
]
"""Width and height, of which one may be None and then follows the other; or one of SIZE_NAMES."""
Text = Annotated[str, BeforeValidator(_parse_text)]
Address = Annotated[str, AfterValidator(_check_place)]
"""A path, an S3 address or a model's name."""
TimePoint = Annotated[str, BeforeValidator(_parse_text), AfterValidator(_check_time_point)]
"""Seconds, [HH:]MM:SS.mmm, or a frame's number (250f)."""
Rate = Annotated[str, BeforeValidator(_parse_text), AfterValidator(_check_rate)]
Codec = Annotated[Literal["h264", "h265", "av1", "ffv1", "prores"], BeforeValidator(_parse_codec)]
Numbers = Annotated[tuple[int, ...], BeforeValidator(_parse_numbers)]
Pairs = Annotated[dict[str, Text], BeforeValidator(_parse_pairs)]


class PictureSection(_Section):
    """How pictures are made. Every key here may change the bytes of the output."""

    scale: Annotated[float | None, Option("Picture", also=("-s",))] = Field(
        None, gt=0, le=16, description="Enlargement factor. The model's own factor if left out."
    )
    size: Annotated[Size | None, Option("Picture", metavar="WxH", separator="x")] = Field(
        None,
        description="Size on the screen that the output fits inside, instead of a factor: 1920x1080, "
        "1080p, 4k, or one side (1920x, x1080).",
    )
    stretch: Annotated[bool, Option("Picture")] = Field(
        False,
        description="Fill --size exactly, by pixels that are not square. Players show the clip's own shape.",
    )
    tile: Annotated[int | Literal["auto", "none"], Option("Model")] = Field(
        "auto", description="Side of a tile in input pixels. auto: what fits the memory. none: whole frames."
    )
    batch: Annotated[int | Literal["auto"], Option("Model")] = Field(
        "auto", description="Frames in one pass through the network."
    )
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], Option("Model")] = Field(
        "auto", description="Number format in which the network computes."
    )
    blend: Annotated[float, Option("Picture")] = Field(
        0.0, ge=0, le=1, description="Share of the bicubic picture that is mixed into the network's."
    )
    grain: Annotated[float, Option("Picture")] = Field(
        0.0, ge=0, le=32, description="Strength of the film grain to add, in 8-bit code values."
    )
    seed: Annotated[int, Option("Picture")] = Field(0, description="Seed of the film grain.")
    denoise: Annotated[float | None, Option("Picture")] = Field(
        None,
        ge=0,
        le=1,
        description="Noise to remove, for models with a variant that keeps noise: 0 keeps it, 1 removes it.",
    )
    skip_duplicates: Annotated[bool, Option("Picture")] = Field(
        False, description="Upscale frames of a chunk that repeat bit by bit only once (animation)."
    )
    window: Annotated[int | Literal["auto"], Option("Model")] = Field(
        "auto", description="Frames that a video network makes at a time. auto: what fits the memory."
    )
    context: Annotated[int | Literal["auto"], Option("Model")] = Field(
        "auto",
        description="Frames that a video network sees before and after those. auto: the model's choice.",
    )
    deinterlace: Annotated[bool, Option("Picture")] = Field(
        False, description="Make whole frames from interlaced fields."
    )
    field_order: Annotated[Literal["auto", "progressive", "tff", "bff"], Option("Picture")] = Field(
        "auto", description="Which field comes first (top: tff, bottom: bff). auto: what the clip says."
    )

    @model_validator(mode="after")
    def _check_one_size(self) -> PictureSection:
        if self.scale is not None and self.size is not None:
            raise ValueError("give scale or size, not both")
        if self.stretch and (self.size is None or (isinstance(self.size, tuple) and None in self.size)):
            raise ValueError("stretch needs a size with both sides, for example --size 1920x1080")
        return self

    @field_validator("tile")
    @classmethod
    def _check_tile(cls, tile: int | str) -> int | str:
        if isinstance(tile, int) and tile < 32:
            raise ValueError(f"{tile} is too small to be efficient; use 32 or more, auto or none")
        return tile

    @field_validator("window", "context")
    @classmethod
    def _check_frames(cls, value: int | str, info: ValidationInfo) -> int | str:
        least = 2 if info.field_name == "window" else 0
        if isinstance(value, int) and not least <= value <= 10_000:
            raise ValueError(f"{value} must be from {least} to 10000 frames, or auto")
        return value

    @field_validator("batch")
    @classmethod
    def _check_batch(cls, batch: int | str) -> int | str:
        if isinstance(batch, int) and batch < 1:
            raise ValueError(f"{batch} must be 1 or more, or auto")
        return batch


class VideoSection(_Section):
    """How the output is encoded."""

    codec: Annotated[Codec | None, Option("Encoding")] = Field(
        None, description="Codec of the output. By default one that holds the source's bit depth."
    )
    encoder: Annotated[str | None, Option("Encoding")] = Field(
        None, description="An FFmpeg encoder instead of the codec's usual one, for example h264_nvenc."
    )
    crf: Annotated[int | None, Option("Encoding")] = Field(
        None, ge=0, le=63, description="Constant quality. Lower is better and larger."
    )
    qp: Annotated[int | None, Option("Encoding")] = Field(
        None, ge=0, le=255, description="Constant quantiser, instead of constant quality."
    )
    lossless: Annotated[bool, Option("Encoding")] = Field(False, description="Encode without any loss.")
    preset: Annotated[Text | None, Option("Encoding")] = Field(
        None, description="The encoder's preset, which trades time for file size."
    )
    pix_fmt: Annotated[str | None, Option("Encoding", metavar="FORMAT")] = Field(
        None, description="A planar FFmpeg pixel format. The source's if left out."
    )
    params: Annotated[
        Pairs, Option("Encoding", name="--encoder-params", metavar="K=V:K=V", separator=":")
    ] = Field(default_factory=dict, description="More parameters of the encoder.")
    threads: Annotated[int | None, Option("Encoding", name="--encoder-threads")] = Field(
        None,
        ge=1,
        le=64,
        description="Threads of one encoder, 4 by default. The output's bytes depend on it.",
    )


class StreamsSection(_Section):
    """What happens to everything but the picture."""

    audio: Annotated[Literal["copy", "aac", "opus", "none"], Option("Streams")] = Field(
        "copy", description="Copy the sound, encode it again, or leave it out."
    )
    drop: Annotated[tuple[str, ...], Option("Streams", metavar="KIND")] = Field(
        (),
        description="Leave out what the output cannot hold: data, alpha, … (docs/cli.md). May be repeated.",
    )


class RangeSection(_Section):
    """The part of the clip that is upscaled."""

    start: Annotated[TimePoint | None, Option("Part of a clip", metavar="TIME")] = Field(
        None, alias="from", description="Begin here: seconds, HH:MM:SS.mmm, or a frame's number (250f)."
    )
    stop: Annotated[TimePoint | None, Option("Part of a clip", metavar="TIME")] = Field(
        None, alias="to", description="Stop before here: seconds, HH:MM:SS.mmm, or a frame's number."
    )
    frames: Annotated[int | None, Option("Part of a clip")] = Field(
        None, ge=1, description="Upscale at most this many frames."
    )
    salvage: Annotated[bool, Option("Part of a clip")] = Field(
        False, description="Upscale what can be read of a file that is cut off, up to the last whole frame."
    )


class ImagesSection(_Section):
    """How images in a folder or pattern, or a raw stream, become a clip."""

    rate: Annotated[Rate | None, Option("Part of a clip", metavar="FPS")] = Field(
        None, description="Frame rate of images or of a raw stream, which have no timestamps: 24000/1001."
    )
    allow_gaps: Annotated[bool, Option("Part of a clip")] = Field(
        False, description="Accept missing numbers in an image sequence."
    )

    @property
    def frame_rate(self) -> Fraction | None:
        return None if self.rate is None else Fraction(self.rate)


class RunSection(_Section):
    """How the work is divided and kept. Only `chunk_s` may change a byte of the output."""

    location: Annotated[Address | None, Option("Run", name="--run", metavar="PLACE")] = Field(
        None,
        description="Where the run keeps its files: a folder or s3://bucket/prefix. "
        "By default .vsr/NAME beside the output.",
    )
    workers: Annotated[int, Option("Machine", also=("-w",))] = Field(
        1,
        ge=1,
        le=10_000,
        description="Worker processes on this machine, at least one for each GPU; tasks on Slurm and Batch.",
    )
    gpus: Annotated[Numbers | None, Option("Machine", metavar="0,1", separator=",")] = Field(
        None, description="Numbers of the GPUs to use. All visible ones by default."
    )
    threads: Annotated[int | None, Option("Machine")] = Field(
        None, ge=1, le=1024, description="CPU threads for all workers together."
    )
    chunk_s: Annotated[float | None, Option("Machine")] = Field(
        None, gt=0, le=600, description="Seconds of the clip in one chunk, about 10 by default."
    )
    shard_s: Annotated[float, Option("Machine")] = Field(
        45.0, gt=0, description="Seconds of work in one shard, about. A finished shard is never done again."
    )
    max_attempts: int = Field(4, ge=1, le=100, description="Attempts at a shard before it is set aside.")
    max_rounds: int = Field(8, ge=1, le=1000, description="Rounds of workers before the run stops.")
    lease_window_s: float | None = Field(
        None,
        ge=1,
        le=3600,
        description="Silence after which a worker's shard is taken over. 60 or 180 by default, by the store.",
    )
    hang_s: float = Field(
        600.0,
        gt=0,
        le=1e6,
        description="A worker ends itself after so long without progress; at least 20 times the longest gap.",
    )
    reproducible: Annotated[
        Literal["mixed", "strict"], Option("Machine", name="--strict", flag_value="strict")
    ] = Field(
        "mixed",
        description="Only accept workers with the first one's device and software, so that bytes are equal.",
    )
    notify: Annotated[Text | None, AfterValidator(_check_notify), Option("Run", metavar="COMMAND|URL")] = (
        Field(
            None,
            description="Command or webhook to call once when the run is complete, stopped or stuck.",
        )
    )
    report: Annotated[Literal["html", "none"], Option("Run", name="--no-report", flag_value="none")] = Field(
        "html", description="Make no report (before and after, times, checks) of the finished run."
    )
    keep: Annotated[Literal["auto", "segments", "run", "report", "nothing"], Option("Run")] = Field(
        "auto",
        description="What stays of a finished run: its segments too, its files, its report and one file of "
        "records, or nothing. auto: report on this machine, run elsewhere.",
    )
    metrics: Literal["none", "emf"] = Field(
        "none", description="emf: workers write their figures for CloudWatch into their log."
    )
    prometheus: Address | None = Field(
        None,
        description="A folder of the Prometheus node exporter's textfile collector, for workers' figures.",
    )


class ContainerSection(_Section):
    """A container image in which workers run.

    The processes that talk to Slurm and to the metadata service stay outside.
    """

    runtime: Literal["apptainer", "enroot"] = Field("apptainer", description="The container runtime.")
    image: str = Field(description="The image: a file that all nodes see, or an address.")
    args: tuple[str, ...] = Field(
        (), description="More arguments of `apptainer exec` or `enroot start`, for example --bind=/data."
    )


_SET_BY_VSR = frozenset(
    {
        "array", "begin", "cpus-per-task", "dependency", "error", "gpus-per-node", "job-name", "nodes",
        "ntasks", "ntasks-per-node", "no-requeue", "open-mode", "output", "requeue", "signal",
    }
)  # fmt: skip


class SlurmSection(_Section):
    """How Slurm starts the workers (`run.workers` says how many). Changes no byte of the output."""

    partitions: Annotated[tuple[str, ...], Option("Slurm", name="--partition", metavar="NAME")] = Field(
        (), description="Partitions in order of preference, Spot first. The cluster's default if empty."
    )
    cpu_partition: Annotated[Text | None, Option("Slurm", name="--cpu-partition", metavar="NAME")] = Field(
        None,
        description="A partition without GPUs that plans, merges, verifies and reports. The workers' own if "
        "left out.",
    )
    standby_after_min: float = Field(
        15,
        ge=0,
        le=10_000,
        description="Minutes without a working Spot worker after which workers start on the next partition.",
    )
    gpus: Annotated[int | None, Option("Slurm", name="--gpus-per-node")] = Field(
        None, ge=0, le=64, description="GPUs of each worker. By default 1 for a network, 0 for a filter."
    )
    cpus: int = Field(4, ge=1, le=1024, description="CPU cores of each worker.")
    memory_gib: float | None = Field(None, gt=0, description="Memory of each worker.")
    time_limit_min: Annotated[
        int, BeforeValidator(_parse_minutes), Option("Slurm", name="--time", metavar="MIN|[D-]H:MM:SS")
    ] = Field(
        240,
        ge=1,
        description="Time limit of one task: minutes, or as sbatch takes it. It requeues itself before that.",
    )
    warning_s: int = Field(
        120, ge=10, le=3600, description="Seconds before the time limit at which a worker is warned."
    )
    account: Annotated[Text | None, Option("Slurm", metavar="NAME")] = Field(
        None, description="The Slurm account to charge."
    )
    qos: Text | None = Field(None, description="The quality of service.")
    constraint: Text | None = Field(None, description="Features that a node must have.")
    exclude: tuple[str, ...] = Field((), description="Nodes that are not used.")
    python: str | None = Field(
        None,
        description="A Python with this package that all nodes see. The one that submits by default.",
    )
    packed: str | None = Field(
        None,
        description="A packed environment (.tar.gz) that all nodes see. Each node unpacks it once.",
    )
    container: ContainerSection | None = Field(None, description="A container image in which workers run.")
    setup: tuple[str, ...] = Field(
        (), description="Lines of shell that run before the worker, for example `module load cuda`."
    )
    mail_type: Annotated[tuple[str, ...], Option("Slurm", metavar="EVENT")] = Field(
        (), description="Events of its jobs that Slurm mails: END, FAIL, TIME_LIMIT … May be repeated."
    )
    mail_user: Annotated[Text | None, Option("Slurm", metavar="ADDRESS")] = Field(
        None, description="Who gets Slurm's mail; whoever submits by default."
    )
    sbatch: dict[str, Text] = Field(
        default_factory=dict, description="More options of sbatch: {reservation: night}."
    )
    folder: str | None = Field(
        None,
        description="Folder of Slurm's job scripts and logs, which all nodes see. By default in your home.",
    )

    @model_validator(mode="after")
    def _check_consistent(self) -> SlurmSection:
        if self.python is not None and self.packed is not None:
            raise ValueError("give python or packed, not both")
        own = sorted(key for key in self.sbatch if key.replace("_", "-") in _SET_BY_VSR)
        if own:
            raise ValueError(f"sbatch: {', '.join(own)} is set by vsr itself")
        return self


class BatchSection(_Section):
    """How AWS Batch starts the workers (`run.workers` says how many). Changes no byte of the output."""

    name: str = Field(
        "vsr",
        pattern=r"^[a-z][a-z0-9-]{0,39}$",
        description="The name given to `vsr batch init`; queues, job role, log group and image bear it.",
    )
    region: Text | None = Field(None, description="The AWS region.")
    image: Text | None = Field(
        None, description="The container image. By default the one given to `vsr batch init`."
    )
    queues: tuple[Text, ...] = Field(
        (),
        description="Queues in order of preference. By default NAME, Spot first, or NAME-cpu without GPUs.",
    )
    job_role: Text | None = Field(None, description="The IAM role of the jobs.")
    gpus: int | None = Field(
        None, ge=0, le=64, description="GPUs of each worker. By default 1 for a network, 0 for a filter."
    )
    cpus: int = Field(4, ge=1, le=1024, description="CPU cores of each worker.")
    memory_gib: float = Field(
        14,
        ge=0.25,
        le=4096,
        description="Memory of each worker; a little less than the instance has, since Batch reserves some.",
    )
    attempts: int = Field(
        10, ge=1, le=10, description="Attempts of each worker. A lost host or exit code 75 starts it again."
    )
    timeout_min: int = Field(
        720,
        ge=5,
        le=100_000,
        description="Time limit of one attempt, in minutes. The worker leaves before it and starts again.",
    )
    warning_s: int = Field(
        120, ge=10, le=3600, description="Seconds before the time limit at which the worker leaves."
    )


class JobSpec(_Section):
    """One job: a clip, a model, and how to upscale it. Frozen; unknown keys are refused."""

    input: Address = Field(
        description="The clip, still, folder or pattern of images; a path or s3:// address."
    )
    output: Address = Field(description="Where the output is written; a path or s3:// address.")
    model: Annotated[Address, Option("Model", also=("-m", "-n"), metavar="NAME")] = Field(
        "auto",
        description="A model's name (`vsr models list`), a file of weights, or auto: our model for the size.",
    )
    on: Literal["local", "slurm", "aws-batch"] = Field(
        "local", description="Where workers run. `vsr submit --on` overrides it."
    )
    picture: PictureSection = PictureSection()
    video: VideoSection = VideoSection()
    streams: StreamsSection = StreamsSection()
    range: RangeSection = Field(default_factory=lambda: RangeSection.model_validate({}))
    images: ImagesSection = ImagesSection()
    run: RunSection = RunSection()
    slurm: SlurmSection = SlurmSection()
    batch: BatchSection = BatchSection()
    overwrite: Annotated[bool, Option("Run")] = Field(
        False, description="Replace a file that already exists at the output."
    )

    @property
    def run_uri(self) -> str:
        """Where the run keeps its files: `run.location`, or a folder beside the output."""
        return self.run.location or run_folder(self.output)


def run_folder(output: str) -> str:
    """Where the run of an output lies unless the job names another place: `.vsr/NAME` beside it."""
    above, slash, name = output.rstrip("/").rpartition("/")
    return f"{above}{slash}{RUNS_FOLDER}/{name}"
