"""`vsr serve`: a server for single pictures and short clips over HTTP."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from vsr_hpc.cli.completion import complete_models
from vsr_hpc.errors import JobError

if TYPE_CHECKING:
    from vsr_hpc.serving.limits import Limits
    from vsr_hpc.serving.service import ServeSettings

_MODELS, _LISTEN, _LIMITS, _MACHINE = "Models", "Address", "Limits of a request", "Machine"


class Device(StrEnum):
    cpu = "cpu"
    cuda = "cuda"


def _option(panel: str, name: str, help_text: str, *, variable: str = "", **more: Any) -> Any:
    """An option that an environment variable can set too: SageMaker starts containers without arguments."""
    named = variable or f"VSR_SERVE_{name.removeprefix('--').upper().replace('-', '_')}"
    return typer.Option(name, envvar=named, help=help_text, rich_help_panel=panel, show_envvar=True, **more)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The options of `vsr serve`, each once: its type, default, variable and help."""

    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            envvar="VSR_SERVE_MODELS",
            metavar="NAME",
            help="A model that requests can ask for. The first one is the default. May be repeated.",
            rich_help_panel=_MODELS,
            autocompletion=complete_models,
        ),
    ] = None
    model_dir: Annotated[
        Path,
        _option(
            _MODELS, "--model-dir", "A folder of weights and cards, which is only read.", metavar="FOLDER"
        ),
    ] = Path("/opt/ml/model")
    is_multi: Annotated[
        bool,
        _option(
            _MODELS,
            "--multi-model",
            "Take models by POST /models, as a multi-model endpoint does.",
            variable="SAGEMAKER_MULTI_MODEL",
        ),
    ] = False
    multi_dir: Annotated[
        Path,
        _option(_MODELS, "--multi-model-dir", "The folder below which those models lie.", metavar="FOLDER"),
    ] = Path("/opt/ml/models")
    resident: Annotated[
        int, _option(_MODELS, "--resident", "Networks that are kept in memory.", min=1, metavar="N")
    ] = 4
    max_models: Annotated[
        int,
        _option(_MODELS, "--max-models", "Models in all. One more is answered with 507.", min=1, metavar="N"),
    ] = 64
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.", rich_help_panel=_LISTEN)
    ] = "0.0.0.0"
    port: Annotated[
        int,
        _option(
            _LISTEN,
            "--port",
            "Port to listen on. 0: a free one.",
            variable="SAGEMAKER_BIND_TO_PORT",
            min=0,
            max=65535,
            metavar="N",
        ),
    ] = 8080
    token_file: Annotated[
        Path | None,
        _option(
            _LISTEN,
            "--token-file",
            "A file of tokens, one a line; requests need one of them. Read again when it changes.",
            metavar="FILE",
        ),
    ] = None
    cert: Annotated[
        Path | None, _option(_LISTEN, "--cert", "Certificate chain for HTTPS, as PEM.", metavar="FILE")
    ] = None
    key: Annotated[
        Path | None, _option(_LISTEN, "--key", "The private key of --cert, as PEM.", metavar="FILE")
    ] = None
    payload_mb: Annotated[
        float, _option(_LIMITS, "--max-payload-mb", "Largest body of a request, in MiB.", metavar="NUMBER")
    ] = 6
    answer_mb: Annotated[
        float | None,
        _option(
            _LIMITS,
            "--max-answer-mb",
            "Largest answer, in MiB. The largest body if left out.",
            metavar="NUMBER",
        ),
    ] = None
    megapixels_in: Annotated[
        float,
        _option(
            _LIMITS,
            "--max-megapixels",
            "Largest picture that is sent, in million pixels.",
            metavar="NUMBER",
        ),
    ] = 9.5
    megapixels_out: Annotated[
        float,
        _option(
            _LIMITS,
            "--max-megapixels-out",
            "Largest picture that is made, in million pixels.",
            metavar="NUMBER",
        ),
    ] = 36
    clip_s: Annotated[
        float, _option(_LIMITS, "--max-clip-s", "Longest clip, in seconds.", metavar="SECONDS")
    ] = 60
    clip_frames: Annotated[
        int, _option(_LIMITS, "--max-clip-frames", "Most frames of a clip.", metavar="N")
    ] = 3600
    queue: Annotated[
        int, _option(_LIMITS, "--queue", "Requests at a time. One more is answered with 429.", metavar="N")
    ] = 32
    deadline_s: Annotated[
        float, _option(_LIMITS, "--deadline-s", "Longest time of a request, in seconds.", metavar="SECONDS")
    ] = 55
    drain_s: Annotated[
        float,
        _option(
            _LIMITS,
            "--drain-s",
            "After SIGTERM, time for the requests that have begun, in seconds.",
            min=0,
            max=28,
            metavar="SECONDS",
        ),
    ] = 25
    clips: Annotated[int, _option(_MACHINE, "--clips", "Clips that are upscaled at a time.", metavar="N")] = 1
    batch: Annotated[
        str,
        _option(
            _MACHINE,
            "--batch",
            "Frames in one pass through the network, of several requests together.",
            metavar="1..64|auto",
        ),
    ] = "auto"
    batch_wait_ms: Annotated[
        float,
        _option(
            _MACHINE,
            "--batch-wait-ms",
            "How long a frame waits for others of its shape, in milliseconds.",
            min=0,
            max=1000,
            metavar="NUMBER",
        ),
    ] = 5
    threads: Annotated[
        int, _option(_MACHINE, "--threads", "CPU threads of the network. 0: all.", min=0, metavar="N")
    ] = 0
    device: Annotated[
        Device | None, _option(_MACHINE, "--device", "By default, a GPU where there is one.")
    ] = None
    scratch: Annotated[
        Path | None,
        _option(
            _MACHINE,
            "--scratch",
            "Folder for clips in hand. The system's temporary folder by default.",
            metavar="FOLDER",
        ),
    ] = None

    def settings(self) -> ServeSettings:
        """What the server takes."""
        from vsr_hpc.serving.service import ServeSettings

        return ServeSettings(
            models=tuple(self.models or ()),
            folder=self.model_dir,
            multi_root=self.multi_dir if self.is_multi else None,
            host=self.host,
            port=self.port,
            limits=self._limits(),
            batch=_parse_batch(self.batch),
            batch_wait_s=self.batch_wait_ms / 1000,
            threads=self.threads,
            device=None if self.device is None else self.device.value,
            resident=self.resident,
            max_models=self.max_models,
            drain_s=self.drain_s,
            scratch=self.scratch,
            token_file=self.token_file,
            certificate=self._certificate(),
        )

    def _certificate(self) -> tuple[Path, Path] | None:
        if self.cert is None and self.key is None:
            return None
        if self.cert is None or self.key is None:
            raise JobError("--cert and --key: give both, or neither")
        return self.cert, self.key

    def _limits(self) -> Limits:
        from vsr_hpc.serving.limits import MIB, Limits

        return Limits(
            payload_bytes=int(self.payload_mb * MIB),
            answer_bytes=int((self.payload_mb if self.answer_mb is None else self.answer_mb) * MIB),
            pixels_in=int(self.megapixels_in * 1e6),
            pixels_out=int(self.megapixels_out * 1e6),
            clip_s=self.clip_s,
            clip_frames=self.clip_frames,
            queue=self.queue,
            clips=self.clips,
            deadline_s=self.deadline_s,
        )


def serve(**given: Any) -> None:
    """Answer pictures and short clips over HTTP, as SageMaker expects of a container.

    \b
    vsr serve --model bicubic --port 8080
    curl --data-binary @in.png -H 'Content-Type: image/png' localhost:8080/invocations?scale=2 -o out.png
    """
    try:
        from vsr_hpc.serving.process import serve as run
    except ImportError as exc:
        raise JobError(f"vsr serve needs {exc.name}: pip install 'vsr-hpc[serve]'") from exc

    _log_to_stderr()
    run(ServeOptions(**given).settings())
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)  # all requests were answered; torch's own clean-up takes seconds that a draining server lacks


def _signature_of(options: type[ServeOptions]) -> inspect.Signature:
    """The parameters of a command that takes these options, as typer reads them."""
    hints = get_type_hints(options, include_extras=True)
    return inspect.Signature(
        [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
            for field in fields(options)
        ]
    )


serve.__signature__ = _signature_of(ServeOptions)  # type: ignore[attr-defined]
serve.__annotations__ = {
    name: parameter.annotation for name, parameter in _signature_of(ServeOptions).parameters.items()
}


def _parse_batch(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdigit() or not 1 <= int(text) <= 64:
        raise JobError(f"--batch {text}: write 1 to 64, or auto")
    return int(text)


def _log_to_stderr() -> None:
    """Write the access log as bare JSON lines, everything else with its time before it."""
    lines = logging.getLogger("vsr_hpc.access")
    bare = logging.StreamHandler(sys.stderr)
    bare.setFormatter(logging.Formatter("%(message)s"))
    lines.addHandler(bare)
    lines.propagate = False
    lines.setLevel(logging.INFO)
