"""`vsr report`, `vsr preview` and `vsr dashboard`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vsr_hpc.cli.answers import say
from vsr_hpc.cli.completion import complete_models, complete_runs
from vsr_hpc.errors import JobError
from vsr_hpc.system.files import write_atomically

RunUri = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="The run: its folder (.vsr/OUT), s3://bucket/prefix, or the output.",
        autocompletion=complete_runs,
    ),
]


def report(
    run_uri: RunUri,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Also write the report here. The run keeps one in any case."),
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option("--truth", help="The original at the output's size, to measure the quality against."),
    ] = None,
    does_verify: Annotated[
        bool, typer.Option("--verify", help="Run `vsr verify` on the whole output and include its findings.")
    ] = False,
) -> None:
    """Write one HTML file about a run: before and after, workers over time, time of stages, checks.

    \b
    vsr report out.mkv -o report.html
    vsr report out.mkv --truth original.mkv
    """
    from vsr_hpc.report import report as make
    from vsr_hpc.run.run import Run

    run = Run.open(run_uri)
    if not run.has_plan():
        raise JobError(
            f"{run.uri}: has no plan yet, so there is nothing to report; `vsr status` shows its state"
        )
    if truth is not None:
        make.measure(run, truth)
    if does_verify:
        make.verify_whole(run)
    content = make.write_report(run)
    if output is not None:
        _write(output, content)
    typer.echo(str(output) if output is not None else f"{run.place_uri.rstrip('/')}/{make.NAME}")


def preview(
    clip: Annotated[
        str, typer.Argument(metavar="IN", help="A clip, a still, a folder or pattern of images.")
    ],
    models: Annotated[
        str | None,
        typer.Option(
            "--models",
            "-m",
            help="Models with commas: a,b. By default our model for the clip and every model on this disk.",
            autocompletion=complete_models,
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--at", help="Seconds, HH:MM:SS or a frame (250f). By default a third into the clip."),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            "--scale", "-s", min=1, max=16, help="Enlargement factor. By default 2, or the --models' largest."
        ),
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(
            "--crop", help="WxH+X+Y, WxH or full, in input pixels. By default the 320x180 with most detail."
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option("--seconds", min=0, max=2, help="Also show this many seconds moving (.html, --json)."),
    ] = 0.0,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="A .png, .webp or .jpg file, or .html with a slider."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", help="CPU threads. 0: all.")] = 0,
    is_quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only the answer and errors.")
    ] = False,
    is_json: Annotated[bool, typer.Option("--json", help="Print pictures and times as JSON.")] = False,
) -> None:
    """Show several models side by side on the same frame and crop, to choose one.

    \b
    vsr preview in.mkv --at 12.5 --models bicubic,realesr-animevideov3 -o choice.png
    vsr preview in.mkv --models bicubic,lanczos --seconds 1 -o choice.html
    """
    from vsr_hpc.report import preview as previews
    from vsr_hpc.report.facts import name_of

    if output is None and not is_json:
        output = Path(f"{name_of(clip)}.preview.png")
    if output is not None and output.suffix.lower() not in previews.SUFFIXES:
        raise JobError(f"-o {output}: end it in {', '.join(previews.SUFFIXES)}")
    found = previews.preview(
        clip,
        None if models is None else tuple(filter(None, (each.strip() for each in models.split(",")))),
        at=at,
        scale=scale,
        crop=crop,
        seconds=seconds,
        threads=threads,
        on_model=lambda name: None if is_quiet else typer.echo(f"{name} ...", err=True),
        on_left_out=lambda reason: say(f"left out: {reason}"),
    )
    if output is not None:
        _write(output, previews.content(found, output.suffix.lower()))
    if is_json:
        typer.echo(json.dumps(previews.document(found)))
        return
    if not is_quiet:
        for pane in found.panes[1:]:
            typer.echo(previews.label(found, pane) + " for this part", err=True)
    typer.echo(str(output))


def dashboard(
    runs: Annotated[
        list[str], typer.Option("--run", help="Show this run. May be repeated. All your runs by default.")
    ] = [],  # noqa: B006 - typer copies it
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on. 0: a free one.")
    ] = 8765,
    host: Annotated[
        str,
        typer.Option("--host", help="Address to listen on. Any but a loopback address admits the network."),
    ] = "127.0.0.1",
    uploads: Annotated[
        str,
        typer.Option("--uploads", help="Where uploaded clips are stored: a folder, or s3://bucket/prefix."),
    ] = "vsr-uploads",
    names: Annotated[
        list[str],
        typer.Option("--name", help="Another host name of the page, behind a proxy. May be repeated."),
    ] = [],  # noqa: B006 - typer copies it
) -> None:
    """Serve a live page with your runs and a form for new ones. Open the address that it prints.

    \b
    vsr dashboard
    vsr dashboard --run out.mkv --port 0
    """
    try:
        from vsr_hpc.dashboard.server import Settings, serve
    except ImportError as exc:
        raise JobError(f"vsr dashboard needs {exc.name}: pip install 'vsr-hpc[serve]'") from exc
    from vsr_hpc.run.run import Run

    named = tuple(Run.open(each).uri for each in runs)
    typer.echo(
        "Anyone who has this address can start and cancel runs as you. Ctrl-C ends the page, not the runs.",
        err=True,
    )
    serve(
        Settings(runs=named, host=host, port=port, uploads=uploads, names=tuple(names)),
        lambda address: typer.echo(address),
    )


def _write(path: Path, content: bytes) -> None:
    """Write the whole file, or leave what was there."""
    if path.is_dir():
        raise JobError(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise JobError(f"{path.parent}: there is no such folder")
    write_atomically(path, content)
