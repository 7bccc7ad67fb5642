"""The options that describe a job on the command line: one list, for every command that takes a job.

Only options that were given travel on: what is left out has one default, the job's own, and an option counts
for more than a job file.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from enum import Enum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from vsr_hpc.errors import JobError
from vsr_hpc.job.option_names import KEYS, as_option

if TYPE_CHECKING:
    from vsr_hpc.job.spec import JobSpec


class Codec(StrEnum):
    h264 = "h264"
    h265 = "h265"
    av1 = "av1"
    ffv1 = "ffv1"
    prores = "prores"


class Audio(StrEnum):
    copy = "copy"
    aac = "aac"
    opus = "opus"
    none = "none"


Model = Annotated[
    str, typer.Option("--model", "-m", help="A name (`vsr models list`), a weights file, or auto.")
]
Scale = Annotated[float | None, typer.Option("--scale", "-s", help="Factor; the model's own where left out.")]
Size = Annotated[str | None, typer.Option("--size", help="Output size instead of a factor: 1920x1080.")]
Tile = Annotated[str, typer.Option("--tile", help="Tile side in input pixels, auto or none.")]
Batch = Annotated[str, typer.Option("--batch", help="Frames per forward pass, or auto.")]
Precision = Annotated[str, typer.Option("--precision", help="fp32, bf16, fp16 or auto.")]
Blend = Annotated[float, typer.Option("--blend", help="Share of the plain bicubic picture, 0 to 1.")]
Grain = Annotated[float, typer.Option("--grain", help="Film grain to add, in 8-bit codes; seeded by frame.")]
Denoise = Annotated[
    float | None,
    typer.Option("--denoise", help="0 keeps noise, 1 removes it; for models with a variant (general-x4v3)."),
]
SkipDuplicates = Annotated[
    bool,
    typer.Option(
        "--skip-duplicates", help="Use a result again where a frame repeats bit by bit (animation)."
    ),
]
Window = Annotated[str, typer.Option("--window", help="Frames a video network makes at a time, or auto.")]
ContextFrames = Annotated[
    str, typer.Option("--context", help="Frames a video network sees on both sides of them, or auto.")
]
CodecOption = Annotated[
    Codec | None, typer.Option("--codec", help="By default one that holds the source's depth.")
]
Encoder = Annotated[str | None, typer.Option("--encoder", help="An FFmpeg encoder, for example h264_nvenc.")]
Crf = Annotated[int | None, typer.Option("--crf", help="Constant quality; lower is better.")]
Qp = Annotated[int | None, typer.Option("--qp", help="Constant quantiser.")]
Lossless = Annotated[bool, typer.Option("--lossless", help="Lose nothing in encoding.")]
Preset = Annotated[str | None, typer.Option("--preset", help="The encoder's preset.")]
PixFmt = Annotated[
    str | None, typer.Option("--pix-fmt", help="A planar FFmpeg pixel format; the source's if left out.")
]
EncoderParams = Annotated[str, typer.Option("--encoder-params", help="key=value:key=value for the encoder.")]
EncoderThreads = Annotated[
    int | None, typer.Option("--encoder-threads", help="Bytes depend on it; 4 by default.")
]
AudioOption = Annotated[Audio, typer.Option("--audio", help="What becomes of sound.")]
Drop = Annotated[
    list[str],
    typer.Option(
        "--drop", help="Leave out knowingly: data, attachment, cover, … (docs/cli.md); may be repeated."
    ),
]
Start = Annotated[str | None, typer.Option("--from", help="Begin here: seconds or HH:MM:SS.mmm.")]
Stop = Annotated[str | None, typer.Option("--to", help="Stop here: seconds or HH:MM:SS.mmm.")]
Frames = Annotated[int | None, typer.Option("--frames", help="At most this many frames.")]
Deinterlace = Annotated[bool, typer.Option("--deinterlace", help="Make whole frames of interlaced fields.")]
FieldOrder = Annotated[str, typer.Option("--field-order", help="auto, progressive, tff or bff.")]
Rate = Annotated[
    str | None, typer.Option("--rate", help="Frame rate of images or a raw stream, for example 24000/1001.")
]
AllowGaps = Annotated[bool, typer.Option("--allow-gaps", help="Accept missing numbers in an image sequence.")]
Workers = Annotated[
    int,
    typer.Option("--workers", "-w", help="Processes here, one per GPU at least; tasks on Slurm and Batch."),
]
Gpus = Annotated[str | None, typer.Option("--gpus", help="Which GPUs: 0,1.")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads for all workers together.")]
ChunkS = Annotated[
    float | None, typer.Option("--chunk-s", help="Seconds of clip in one chunk; about 10 by default.")
]
ShardS = Annotated[float, typer.Option("--shard-s", help="Seconds of work in one shard, about.")]
RunLocation = Annotated[str | None, typer.Option("--run", help="Where the run is kept; OUT.vsr by default.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that stands at the output.")]
KeepSegments = Annotated[bool, typer.Option("--keep-segments", help="Keep the segments after the merge.")]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Only workers on the first one's kind of device and software: equal bytes."
    ),
]

DEFAULT_MODEL = "auto"


def _options(  # only its signature counts
    model: Model = DEFAULT_MODEL,
    scale: Scale = None,
    size: Size = None,
    tile: Tile = "auto",
    batch: Batch = "auto",
    precision: Precision = "auto",
    blend: Blend = 0.0,
    grain: Grain = 0.0,
    denoise: Denoise = None,
    skip_duplicates: SkipDuplicates = False,
    window: Window = "auto",
    context_frames: ContextFrames = "auto",
    codec: CodecOption = None,
    encoder: Encoder = None,
    crf: Crf = None,
    qp: Qp = None,
    lossless: Lossless = False,
    preset: Preset = None,
    pix_fmt: PixFmt = None,
    encoder_params: EncoderParams = "",
    encoder_threads: EncoderThreads = None,
    audio: AudioOption = Audio.copy,
    drop: Drop = [],  # noqa: B006 - typer copies it
    start: Start = None,
    stop: Stop = None,
    frames: Frames = None,
    deinterlace: Deinterlace = False,
    field_order: FieldOrder = "auto",
    rate: Rate = None,
    allow_gaps: AllowGaps = False,
    workers: Workers = 1,
    gpus: Gpus = None,
    threads: Threads = None,
    chunk_s: ChunkS = None,
    shard_s: ShardS = 45.0,
    run: RunLocation = None,
    overwrite: Overwrite = False,
    keep_segments: KeepSegments = False,
    strict: Strict = False,
) -> None: ...


"""Which key of a job each option sets."""


def takes_job_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command have all of them; it gets those that were given as `given`."""
    theirs = inspect.signature(_options).parameters
    own = [each for name, each in inspect.signature(command).parameters.items() if name != "given"]

    @functools.wraps(command)
    def called(context: typer.Context, **values: Any) -> None:
        chosen = {name: values.pop(name) for name in theirs}
        command(**values, given={name: value for name, value in chosen.items() if _is_given(context, name)})

    split = next((i for i, each in enumerate(own) if each.default is not inspect.Parameter.empty), len(own))
    hints = {**get_type_hints(_options, include_extras=True), **get_type_hints(command, include_extras=True)}
    parameters = [
        each.replace(annotation=hints[each.name]) for each in (*own[:split], *theirs.values(), *own[split:])
    ]
    parameters.insert(
        0, inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    )
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    return called


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def document(given: dict[str, Any], source: str, output: str) -> dict[str, Any]:
    """A job's plain values from options and two places."""
    return _laid_over({"input": source, "output": output, "model": DEFAULT_MODEL}, given)


def asked_job(paths: list[str], given: dict[str, Any]) -> JobSpec:
    """The one job of `JOB.yaml`, of `IN OUT`, or of both, with the given options laid over it."""
    jobs = asked_jobs(paths, given)
    if len(jobs) > 1:
        raise JobError(
            f"{paths[-1]}: {len(jobs)} inputs are {len(jobs)} jobs; this is for one, name one input"
        )
    return jobs[0]


def asked_jobs(paths: list[str], given: dict[str, Any]) -> list[JobSpec]:
    """The jobs of `JOB.yaml`, of `IN... OUT`, or of both: then each input is done as the file says."""
    from vsr_hpc.job.inputs import expand
    from vsr_hpc.job.reading import load_job, parse_job

    has_file = len(paths) == 1 or Path(paths[0]).suffix.lower() in (".yaml", ".yml")
    if not has_file:
        return [parse_job(document(given, *pair), "", spelled=as_option) for pair in expand(paths)]
    job = load_job(Path(paths[0]))
    if len(paths) == 1 and not given:
        return [job]
    written = job.model_dump(mode="json", by_alias=True, exclude_unset=True)
    pairs = expand(paths[1:]) if len(paths) > 1 else ((written["input"], written["output"]),)
    if len(pairs) > 1 and job.run.location:
        raise JobError(f"{paths[0]}: run.location is one run's place; leave it out for {len(pairs)} inputs")
    return [
        parse_job(_laid_over({**written, "input": source, "output": output}, given), "", spelled=as_option)
        for source, output in pairs
    ]


def _laid_over(written: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    whole = {key: dict(value) if isinstance(value, dict) else value for key, value in written.items()}
    for name, value in given.items():
        section, _, key = KEYS[name].rpartition(".")
        (whole.setdefault(section, {}) if section else whole)[key] = _plain(name, value)
    return whole


def _plain(name: str, value: Any) -> Any:
    if name in ("tile", "batch", "window", "context_frames"):
        return _number_or_word(value)
    if name == "encoder_params":
        return _pairs(value)
    if name == "gpus":
        return _numbers(value)
    if name == "strict":
        return "strict" if value else "mixed"
    return value.value if isinstance(value, Enum) else tuple(value) if isinstance(value, list) else value


def _number_or_word(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as exc:
        raise JobError(f"--gpus {text!r}: write numbers with commas, for example 0,1") from exc


def _pairs(text: str) -> dict[str, str]:
    pairs = {}
    for part in filter(None, text.split(":")):
        key, separator, value = part.partition("=")
        if not separator:
            raise JobError(f"--encoder-params: {part!r} is not key=value")
        pairs[key] = value
    return pairs
