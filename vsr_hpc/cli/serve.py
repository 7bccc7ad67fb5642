"""`vsr serve`: arguments in, one library call, text and exit code out."""

from __future__ import annotations

import logging
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vsr_hpc.errors import JobError


class Device(StrEnum):
    cpu = "cpu"
    cuda = "cuda"


def serve(
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            envvar="VSR_SERVE_MODELS",
            help="A model that may be asked for; the first is the default. Those in --model-dir come after.",
        ),
    ] = None,
    model_dir: Annotated[
        Path, typer.Option("--model-dir", envvar="VSR_SERVE_MODEL_DIR", help="Weights and cards; only read.")
    ] = Path("/opt/ml/model"),
    is_multi: Annotated[
        bool,
        typer.Option("--multi-model", envvar="SAGEMAKER_MULTI_MODEL", help="Models come by POST /models."),
    ] = False,
    multi_dir: Annotated[
        Path, typer.Option("--multi-model-dir", envvar="VSR_SERVE_MULTI_MODEL_DIR", help="They lie below it.")
    ] = Path("/opt/ml/models"),
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[
        int,
        typer.Option("--port", envvar="SAGEMAKER_BIND_TO_PORT", min=0, max=65535, help="0 takes a free one."),
    ] = 8080,
    payload_mb: Annotated[
        float,
        typer.Option("--max-payload-mb", envvar="VSR_SERVE_MAX_PAYLOAD_MB", help="Of a request's body."),
    ] = 6,
    answer_mb: Annotated[
        float | None,
        typer.Option(
            "--max-answer-mb", envvar="VSR_SERVE_MAX_ANSWER_MB", help="As --max-payload-mb if left out."
        ),
    ] = None,
    megapixels_in: Annotated[
        float, typer.Option("--max-megapixels", envvar="VSR_SERVE_MAX_MEGAPIXELS", help="Of a picture sent.")
    ] = 9.5,
    megapixels_out: Annotated[
        float,
        typer.Option(
            "--max-megapixels-out", envvar="VSR_SERVE_MAX_MEGAPIXELS_OUT", help="Of a picture made."
        ),
    ] = 36,
    clip_s: Annotated[
        float, typer.Option("--max-clip-s", envvar="VSR_SERVE_MAX_CLIP_S", help="Length of a clip.")
    ] = 60,
    clip_frames: Annotated[
        int, typer.Option("--max-clip-frames", envvar="VSR_SERVE_MAX_CLIP_FRAMES", help="Frames of a clip.")
    ] = 3600,
    queue: Annotated[
        int, typer.Option("--queue", envvar="VSR_SERVE_QUEUE", help="Requests inside; further ones get 429.")
    ] = 32,
    clips: Annotated[
        int, typer.Option("--clips", envvar="VSR_SERVE_CLIPS", help="Clips at work side by side.")
    ] = 1,
    deadline_s: Annotated[
        float, typer.Option("--deadline-s", envvar="VSR_SERVE_DEADLINE_S", help="For one request.")
    ] = 55,
    batch: Annotated[
        str,
        typer.Option(
            "--batch", envvar="VSR_SERVE_BATCH", help="Frames of one pass, of several requests; or auto."
        ),
    ] = "auto",
    batch_wait_ms: Annotated[
        float,
        typer.Option(
            "--batch-wait-ms",
            envvar="VSR_SERVE_BATCH_WAIT_MS",
            min=0,
            max=1000,
            help="How long a frame waits for others of its shape.",
        ),
    ] = 5,
    threads: Annotated[
        int,
        typer.Option(
            "--threads", envvar="VSR_SERVE_THREADS", min=0, help="CPU threads of the network; 0: all."
        ),
    ] = 0,
    device: Annotated[
        Device | None,
        typer.Option("--device", envvar="VSR_SERVE_DEVICE", help="A GPU where there is one, by default."),
    ] = None,
    resident: Annotated[
        int, typer.Option("--resident", envvar="VSR_SERVE_RESIDENT", min=1, help="Networks kept in memory.")
    ] = 4,
    max_models: Annotated[
        int,
        typer.Option(
            "--max-models", envvar="VSR_SERVE_MAX_MODELS", min=1, help="Models in all; one more: 507."
        ),
    ] = 64,
    drain_s: Annotated[
        float,
        typer.Option(
            "--drain-s", envvar="VSR_SERVE_DRAIN_S", min=0, max=28, help="For requests inside after SIGTERM."
        ),
    ] = 25,
    scratch: Annotated[
        Path | None,
        typer.Option(
            "--scratch", envvar="VSR_SERVE_SCRATCH", help="Folder for clips at work; the system's own."
        ),
    ] = None,
) -> None:
    """Answer pictures and short clips over HTTP, as SageMaker's container contract wants it.

    \b
    vsr serve --model bicubic --port 8080
    curl --data-binary @in.png -H 'Content-Type: image/png' localhost:8080/invocations?scale=2 -o out.png
    """
    try:
        from vsr_hpc.serving.process import serve as run
    except ImportError as exc:
        raise JobError(f"vsr serve needs {exc.name}: pip install 'vsr-hpc[serve]'") from exc
    from vsr_hpc.serving.limits import MIB, Limits
    from vsr_hpc.serving.service import ServeSettings

    _log_to_stderr()
    settings = ServeSettings(
        models=tuple(models or ()),
        folder=model_dir,
        multi_root=multi_dir if is_multi else None,
        host=host,
        port=port,
        limits=Limits(
            payload_bytes=int(payload_mb * MIB),
            answer_bytes=int((payload_mb if answer_mb is None else answer_mb) * MIB),
            pixels_in=int(megapixels_in * 1e6),
            pixels_out=int(megapixels_out * 1e6),
            clip_s=clip_s,
            clip_frames=clip_frames,
            queue=queue,
            clips=clips,
            deadline_s=deadline_s,
        ),
        batch=_batch(batch),
        batch_wait_s=batch_wait_ms / 1000,
        threads=threads,
        device=None if device is None else device.value,
        resident=resident,
        max_models=max_models,
        drain_s=drain_s,
        scratch=scratch,
    )
    run(settings)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)  # everybody was answered; taking torch down takes seconds that a draining server lacks


def _batch(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdigit() or not 1 <= int(text) <= 64:
        raise JobError(f"--batch {text}: write 1 to 64, or auto")
    return int(text)


def _log_to_stderr() -> None:
    """The access log as bare JSON lines, everything else with its time before it."""
    lines = logging.getLogger("vsr_hpc.access")
    bare = logging.StreamHandler(sys.stderr)
    bare.setFormatter(logging.Formatter("%(message)s"))
    lines.addHandler(bare)
    lines.propagate = False
    lines.setLevel(logging.INFO)
