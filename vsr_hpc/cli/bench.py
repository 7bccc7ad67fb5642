"""`vsr bench`: measure the speed or the quality of models."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vsr_hpc.cli.answers import say
from vsr_hpc.cli.completion import complete_models
from vsr_hpc.errors import JobError

if TYPE_CHECKING:
    from vsr_hpc.bench.speed import SpeedMeasurement


class Precision(StrEnum):
    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Codec(StrEnum):
    h264 = "h264"
    h265 = "h265"
    av1 = "av1"
    ffv1 = "ffv1"
    prores = "prores"


def bench(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="A model's name or a weights file. By default ours for clips and every one on this disk.",
            autocompletion=complete_models,
        ),
    ] = None,
    clip: Annotated[
        Path | None,
        typer.Option("--input", metavar="CLIP", help="A clip to measure with. A synthetic clip if left out."),
    ] = None,
    size: Annotated[
        str, typer.Option("--size", metavar="WxH", help="Size of the synthetic clip.")
    ] = "320x180",
    scale: Annotated[
        float | None, typer.Option("--scale", "-s", help="Enlargement factor. The model's own if left out.")
    ] = None,
    precision: Annotated[
        Precision, typer.Option("--precision", help="Number format in which the network computes.")
    ] = Precision.auto,
    tile: Annotated[
        str, typer.Option("--tile", metavar="N|auto|none", help="Side of a tile in input pixels.")
    ] = "auto",
    batch: Annotated[
        str, typer.Option("--batch", metavar="N|auto", help="Frames in one pass through the network.")
    ] = "auto",
    codec: Annotated[Codec | None, typer.Option("--codec", help="Codec of the output.")] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder", metavar="NAME|none", help="An FFmpeg encoder, or none to measure without encoding."
        ),
    ] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="The encoder's preset.")] = None,
    crf: Annotated[int | None, typer.Option("--crf", help="Constant quality; lower is better.")] = None,
    encoder_threads: Annotated[
        int | None, typer.Option("--encoder-threads", help="Threads of the encoder, 4 by default.")
    ] = None,
    frames: Annotated[
        int, typer.Option("--frames", min=2, help="Frames in one round. More frames give steadier figures.")
    ] = 48,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds. Each figure is their median.")] = 3,
    threads: Annotated[
        int, typer.Option("--threads", min=0, help="CPU threads. 0: all that this process may use.")
    ] = 0,
    is_saved: Annotated[
        bool, typer.Option("--save/--no-save", help="Save the profile, which `vsr plan` estimates from.")
    ] = True,
    quality: Annotated[
        Path | None,
        typer.Option(
            "--quality",
            metavar="FOLDER",
            help="Measure PSNR and SSIM against the originals in this folder instead.",
        ),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            "--models",
            metavar="A,B,C",
            help="With --quality: the models. Bicubic, Lanczos and our own by default.",
            autocompletion=complete_models,
        ),
    ] = None,
    degrade: Annotated[
        str,
        typer.Option(
            "--degrade",
            metavar="clean|h264:CRF",
            help="With --quality: clean, or h264:CRF to code the reduced pictures first.",
        ),
    ] = "clean",
    is_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Measure how fast a model runs on this machine, stage by stage, and what limits it.

    It measures the network alone, every stage alone and the whole pipeline, and compares them with the limit
    that the device's measured matrix rate and memory set. `vsr plan` estimates from the saved profile.

    \b
    vsr bench
    vsr bench --model realesr-animevideov3 --size 640x360
    vsr bench --quality originals/ --scale 4 --models bicubic,vsr-clean-x4 --degrade h264:23
    """
    if quality is not None:
        _measure_quality(
            quality, models=models, scale=scale, degrade=degrade, threads=threads, is_json=is_json
        )
        return
    from vsr_hpc.bench.speed import measure
    from vsr_hpc.forecast.profiles import save_profile

    measure_model = partial(
        measure,
        clip=clip,
        size=_size(size),
        picture={
            "scale": scale,
            "precision": precision.value,
            "tile": _number_or_word(tile),
            "batch": _number_or_word(batch),
        },
        video={
            "codec": None if codec is None else codec.value,
            "encoder": None if encoder == "none" else encoder,
            "preset": preset,
            "crf": crf,
            "threads": encoder_threads,
        },
        frames=frames,
        rounds=rounds,
        threads=threads,
        has_encoder=encoder != "none",
        say=say,
    )
    names = [model] if model is not None else models_at_hand()
    made = []
    for name in names:
        if model is None:
            say(f"model {name}")
        made.append(measure_model(name))
        if is_saved:
            say(f"profile saved: {save_profile(made[-1].profile)}")
    if is_json:
        rows = [_document(found) for found in made]
        typer.echo(json.dumps(rows[0] if model is not None else rows, indent=1))
        return
    for line in table(made[0]) if model is not None else comparison(made):
        typer.echo(line)


def models_at_hand() -> list[str]:
    """What `auto` means for a clip, then every other model that runs here without a download."""
    from vsr_hpc.models.cards import all_cards, find_card
    from vsr_hpc.models.defaults import AUTO
    from vsr_hpc.models.weights import is_at_hand

    ours = find_card(AUTO).name
    others = (card for card in all_cards() if is_at_hand(card) and card.network != "nearest")
    return [ours, *(card.name for card in others if card.name != ours)]


def comparison(found: Sequence[SpeedMeasurement]) -> list[str]:
    """One row for each model."""
    first = found[0].profile
    lines = [
        f"{first.width}x{first.height} on {first.device} with {first.threads} threads, frames/s",
        f"{'model':<28}{'output':>11}  {'precision':<10}{'network':>9}{'pipeline':>10}  slowest stage",
    ]
    for each in found:
        profile = each.profile
        network = "-" if profile.network_fps is None else f"{profile.network_fps:.2f}"
        slowest = max(profile.stage_seconds, key=lambda stage: profile.stage_seconds[stage])
        lines.append(
            f"{profile.model:<28}{f'{profile.out_width}x{profile.out_height}':>11}  "
            f"{'-' if profile.network_fps is None else profile.precision:<10}{network:>9}"
            f"{profile.pipeline_fps:>10.2f}  {slowest}"
        )
    lines.append(f"median of {found[0].rounds} rounds; `vsr bench -m NAME` shows every stage of one model")
    return lines


def table(found: SpeedMeasurement) -> list[str]:
    """The measurements as lines of a table."""
    profile = found.profile
    lines = [
        f"{profile.model} {profile.width}x{profile.height} -> {profile.out_width}x{profile.out_height}, "
        f"{profile.precision}, batch {profile.batch}, {profile.codec or 'no encoder'}; {profile.device}, "
        f"{profile.threads} threads in {found.lanes} lanes",
        f"{'':<18}{'frames/s':>10}{'ms/frame':>10}",
    ]
    rows: list[tuple[str, float | None, str]] = []
    if found.floor is not None:
        rows.append(("limit of device", profile.floor_fps, _floor_words(found)))
    if profile.network_fps is not None:
        share = f"{profile.network_fps / profile.floor_fps:.0%} of the limit" if profile.floor_fps else ""
        rows.append(("network alone", profile.network_fps, share))
    rows += [(f"{stage} alone", 1 / spent, "") for stage, spent in profile.stage_seconds.items()]
    slowest = f"{profile.pipeline_fps / found.slowest_fps:.0%} of its slowest stage alone"
    if profile.floor_fps:
        slowest += f", {profile.pipeline_fps / profile.floor_fps:.0%} of the device's limit"
    rows.append(("whole pipeline", profile.pipeline_fps, slowest))
    lines += [
        f"{name:<18}{fps:>10.2f}{1e3 / fps:>10.2f}   {words}".rstrip() for name, fps, words in rows if fps
    ]
    parts = ", ".join(f"{part} {spent:.2f}" for part, spent in found.startup.items())
    lines.append(f"start-up {profile.startup_s:.2f} s: {parts}")
    lines.append(f"{found.cpu_s_per_frame:.3f} s of CPU time per frame of the whole pipeline")
    if profile.merge_gb_per_s:
        lines.append(f"merge {profile.merge_gb_per_s:.3g} GB/s")
    lines.append(
        f"median of {found.rounds} rounds of {found.frames} frames; load of this machine {found.load:.1f}"
    )
    return lines


def _floor_words(found: SpeedMeasurement) -> str:
    profile, floor = found.profile, found.floor
    assert floor is not None
    bound = "operations" if floor.operations_s >= floor.memory_s else "memory"
    return (
        f"{floor.operations / 1e9:.1f} GFLOP at {profile.matrix_gflops:.0f} GFLOP/s; limited by {bound} "
        f"({floor.bytes_moved / 1e6:.0f} MB layer by layer at {profile.memory_gb_per_s:.1f} GB/s)"
    )


def _document(found: SpeedMeasurement) -> dict[str, Any]:
    """The measurement as plain values for JSON."""
    return {
        "profile": found.profile.model_dump(mode="json"),
        "floor": dataclasses.asdict(found.floor) if found.floor else None,
        "startup": found.startup,
        "slowest_stage_fps": found.slowest_fps,
        "frames": found.frames,
        "rounds": found.rounds,
        "lanes": found.lanes,
        "cpu_s_per_frame": found.cpu_s_per_frame,
        "load": found.load,
    }


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and len(text) < 12):
        raise JobError(f"--size {text!r} is not WIDTHxHEIGHT; try 640x360")
    return int(width), int(height)


def _number_or_word(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _measure_quality(
    folder: Path, *, models: str | None, scale: float | None, degrade: str, threads: int, is_json: bool
) -> None:
    """Print PSNR and SSIM (LPIPS where installed) of every model, as a table in Markdown or as JSON."""
    from vsr_hpc.bench.quality import measure_quality, rows_of_text
    from vsr_hpc.models.defaults import shipped_models

    factor = 4.0 if scale is None else scale
    if factor != int(factor):
        raise JobError(f"--quality measures whole factors only; --scale {factor} is not one")
    names = models.split(",") if models else ["bicubic", "lanczos", *shipped_models(int(factor))]
    table = measure_quality(
        folder,
        [name.strip() for name in names],
        int(factor),
        degrade=degrade,
        threads=threads or len(os.sched_getaffinity(0)),
        tell=_replace_line if sys.stderr.isatty() else lambda _: None,
    )
    if sys.stderr.isatty():
        _replace_line("")
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


def _replace_line(text: str) -> None:
    """Print a line over the last one."""
    typer.echo(f"\r\033[K{text}", nl=False, err=True)


def _finite(value: Any) -> Any:
    """The value with None for infinity, which JSON lacks and which is the PSNR of equal pictures."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
