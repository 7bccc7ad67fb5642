"""`vsr bench`: measure the speed or the quality of models."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vsr_hpc.errors import JobError

if TYPE_CHECKING:
    from vsr_hpc.bench.speed import SpeedMeasurement


def bench(
    model: Annotated[
        str, typer.Option("--model", "-m", help="A model's name (`vsr models list`) or a weights file.")
    ] = "lanczos",
    clip: Annotated[
        Path | None, typer.Option("--input", help="A clip to measure with. A synthetic clip if left out.")
    ] = None,
    size: Annotated[
        str, typer.Option("--size", help="Size of the synthetic clip: WIDTHxHEIGHT.")
    ] = "320x180",
    scale: Annotated[
        float | None, typer.Option("--scale", "-s", help="Enlargement factor. The model's own if left out.")
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", help="Number format of the network: fp32, bf16, fp16 or auto.")
    ] = "auto",
    tile: Annotated[
        str, typer.Option("--tile", help="Side of a tile in input pixels, auto or none.")
    ] = "auto",
    batch: Annotated[
        str, typer.Option("--batch", help="Frames in one pass through the network, or auto.")
    ] = "auto",
    codec: Annotated[
        str | None, typer.Option("--codec", help="Codec of the output: h264, h265, av1, ffv1 or prores.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="An FFmpeg encoder, or none to measure without encoding.")
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
        typer.Option("--quality", help="Measure PSNR and SSIM against the originals in this folder instead."),
    ] = None,
    models: Annotated[
        str | None, typer.Option("--models", help="With --quality: models, a,b,c. Our own by default.")
    ] = None,
    degrade: Annotated[
        str,
        typer.Option(
            "--degrade", help="With --quality: clean, or h264:CRF to code the reduced pictures first."
        ),
    ] = "clean",
    is_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Measure how fast a model runs on this machine, stage by stage, and what limits it.

    It measures the network alone, every stage alone and the whole pipeline, and compares them with the limit
    that the device's measured matrix rate and memory set. `vsr plan` estimates from the saved profile.

    \b
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

    found = measure(
        model,
        clip=clip,
        size=_size(size),
        picture={
            "scale": scale,
            "precision": precision,
            "tile": _number_or_word(tile),
            "batch": _number_or_word(batch),
        },
        video={
            "codec": codec,
            "encoder": None if encoder == "none" else encoder,
            "preset": preset,
            "crf": crf,
            "threads": encoder_threads,
        },
        frames=frames,
        rounds=rounds,
        threads=threads,
        has_encoder=encoder != "none",
        say=_print_note,
    )
    path = save_profile(found.profile) if is_saved else None
    if is_json:
        typer.echo(_as_json(found))
    else:
        for line in table(found):
            typer.echo(line)
    if path is not None:
        _print_note(f"profile saved: {path}")


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


def _as_json(found: SpeedMeasurement) -> str:
    import json
    from dataclasses import asdict

    floor = asdict(found.floor) if found.floor else None
    return json.dumps(
        {
            "profile": found.profile.model_dump(mode="json"),
            "floor": floor,
            "startup": found.startup,
            "slowest_stage_fps": found.slowest_fps,
            "frames": found.frames,
            "rounds": found.rounds,
            "lanes": found.lanes,
            "cpu_s_per_frame": found.cpu_s_per_frame,
            "load": found.load,
        },
        indent=1,
    )


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and len(text) < 12):
        raise JobError(f"--size {text!r} is not WIDTHxHEIGHT; try 640x360")
    return int(width), int(height)


def _number_or_word(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _print_note(text: str) -> None:
    print(f"vsr: {text}", file=sys.stderr)  # noqa: T201


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
