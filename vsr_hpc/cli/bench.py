"""`vsr bench`: arguments in, one library call, a table or JSON out."""

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
        Path | None, typer.Option("--input", help="A clip to measure with; made up if left out.")
    ] = None,
    size: Annotated[str, typer.Option("--size", help="Of the made-up clip: WIDTHxHEIGHT.")] = "320x180",
    scale: Annotated[
        float | None, typer.Option("--scale", "-s", help="Factor; the model's own where left out.")
    ] = None,
    precision: Annotated[str, typer.Option("--precision", help="fp32, bf16, fp16 or auto.")] = "auto",
    tile: Annotated[str, typer.Option("--tile", help="Tile side in input pixels, auto or none.")] = "auto",
    batch: Annotated[str, typer.Option("--batch", help="Frames per forward pass, or auto.")] = "auto",
    codec: Annotated[str | None, typer.Option("--codec", help="h264, h265, av1, ffv1 or prores.")] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="An FFmpeg encoder; `none` leaves encoding out.")
    ] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="The encoder's preset.")] = None,
    crf: Annotated[int | None, typer.Option("--crf", help="Constant quality; lower is better.")] = None,
    encoder_threads: Annotated[int | None, typer.Option("--encoder-threads", help="4 by default.")] = None,
    frames: Annotated[
        int, typer.Option("--frames", min=2, help="Frames in a round; more tell steadier figures.")
    ] = 48,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Each figure is the median of these.")] = 3,
    threads: Annotated[
        int, typer.Option("--threads", min=0, help="CPU threads; all that this process may use by default.")
    ] = 0,
    is_saved: Annotated[
        bool, typer.Option("--save/--no-save", help="Keep the profile for `vsr plan` and estimates.")
    ] = True,
    quality: Annotated[
        Path | None, typer.Option("--quality", help="Instead: PSNR and SSIM against these originals.")
    ] = None,
    models: Annotated[
        str | None, typer.Option("--models", help="With --quality: a,b,c; the package's own by default.")
    ] = None,
    degrade: Annotated[
        str, typer.Option("--degrade", help="With --quality: clean, or h264:CRF before upscaling.")
    ] = "clean",
    is_json: Annotated[bool, typer.Option("--json", help="Answer with JSON on stdout.")] = False,
) -> None:
    """Measure how fast a model runs on this machine, stage by stage, and what bounds it.

    Figures are the network alone, every stage alone and the whole pipeline, beside the floor that the
    device's measured matrix rate and memory set. The profile is saved for estimates.

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
        say=_say,
    )
    path = save_profile(found.profile) if is_saved else None
    if is_json:
        typer.echo(_as_json(found))
    else:
        for line in table(found):
            typer.echo(line)
    if path is not None:
        _say(f"profile saved: {path}")


def table(found: SpeedMeasurement) -> list[str]:
    """What was measured, for people."""
    profile = found.profile
    lines = [
        f"{profile.model} {profile.width}x{profile.height} -> {profile.out_width}x{profile.out_height}, "
        f"{profile.precision}, batch {profile.batch}, {profile.codec or 'no encoder'}; {profile.device}, "
        f"{profile.threads} threads in {found.lanes} lanes",
        f"{'':<18}{'frames/s':>10}{'ms/frame':>10}",
    ]
    rows: list[tuple[str, float | None, str]] = []
    if found.floor is not None:
        rows.append(("floor of network", profile.floor_fps, _floor_words(found)))
    if profile.network_fps is not None:
        share = f"{profile.network_fps / profile.floor_fps:.0%} of the floor" if profile.floor_fps else ""
        rows.append(("network alone", profile.network_fps, share))
    rows += [(f"{stage} alone", 1 / spent, "") for stage, spent in profile.stage_seconds.items()]
    slowest = f"{profile.pipeline_fps / found.slowest_fps:.0%} of its slowest stage alone"
    if profile.floor_fps:
        slowest += f", {profile.pipeline_fps / profile.floor_fps:.0%} of the network's floor"
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
        f"{floor.operations / 1e9:.1f} GFLOP at {profile.matrix_gflops:.0f} GFLOP/s; bound by {bound} "
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


def _say(text: str) -> None:
    print(f"vsr: {text}", file=sys.stderr)  # noqa: T201


def _measure_quality(
    folder: Path, *, models: str | None, scale: float | None, degrade: str, threads: int, is_json: bool
) -> None:
    """Print PSNR and SSIM (LPIPS where installed) of every model, as a table in Markdown or as JSON."""
    from vsr_hpc.bench.quality import measure_quality, rows_of_text
    from vsr_hpc.models.defaults import shipped_models

    factor = 4.0 if scale is None else scale
    if factor != int(factor):
        raise JobError(f"--quality measures whole factors; --scale {factor} is none")
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
    """Replace the line that was printed last."""
    typer.echo(f"\r\033[K{text}", nl=False, err=True)


def _finite(value: Any) -> Any:
    """JSON knows no infinity, which is the PSNR of equal pictures."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
