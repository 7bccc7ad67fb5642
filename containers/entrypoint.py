"""The image's entry point: what SageMaker, Batch, enroot and people start it with becomes one `vsr` command.

It is the process itself, no shell and no second process before it, so signals arrive where they are obeyed.

    serve …            vsr serve …, on port 8080 or SAGEMAKER_BIND_TO_PORT
    train              a SageMaker training job: `vsr models train --key value …` from its hyperparameters, or
                       another command that one of them, `command`, names
    vsr …  worker …    vsr …, whatever stands there
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import Any, NoReturn, TextIO

ML = Path("/opt/ml")
WEIGHTS = Path("/opt/vsr/weights")
_LAST_WORDS = 1024  # what SageMaker shows of a failure


def command(arguments: Sequence[str], hyperparameters: Mapping[str, Any] | None) -> list[str]:
    """The arguments of `vsr` that the container's own arguments mean.

    enroot puts the entry point before a command that names its program already (`vsr worker …`).
    """
    words = list(arguments)
    if words and PurePosixPath(words[0]).name == "vsr":
        words = words[1:]
    if words[:1] != ["train"]:
        return words
    given = dict(hyperparameters or {})
    if "command" in given:
        return [*shlex.split(_plain(given["command"])), *_options(given), *words[1:]]
    if hyperparameters is not None:
        given = {"images": f"{ML}/input/data/training", "out": f"{ML}/model"} | given
    return ["models", "train", *_options(given), *words[1:]]


def _options(hyperparameters: Mapping[str, Any]) -> list[str]:
    """`--key value` of each; "true" is the option alone, "false" none. SageMaker's own are not for us."""
    words = []
    for key, value in hyperparameters.items():
        text = _plain(value)
        if key == "command" or key.startswith("sagemaker_") or text == "false":
            continue
        words += [f"--{key.replace('_', '-')}"] + ([] if text == "true" else [text])
    return words


def _plain(value: Any) -> str:
    """SageMaker's values are strings, to which its SDK adds JSON's quotes."""
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except ValueError:
            return text
    return text


def read_hyperparameters(folder: Path) -> dict[str, Any] | None:
    """A training job's, where this is one."""
    path = folder / "input" / "config" / "hyperparameters.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise SystemExit(f"{path}: is no JSON object")
    return found


def link_weights(baked: Path, environment: Mapping[str, str]) -> None:
    """Let the weights of the image stand in the cache, where they are looked for and checked."""
    if not baked.is_dir() or not any(baked.iterdir()):
        return
    cache = environment.get("XDG_CACHE_HOME") or f"{environment.get('HOME', '/tmp')}/.cache"
    folder = Path(cache) / "vsr_hpc" / "weights"
    try:
        for each in baked.iterdir():
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / each.name).exists():
                (folder / each.name).symlink_to(each)
    except OSError as exc:
        sys.stderr.write(f"vsr: the image's weights are not used, {folder}: {exc.strerror}\n")


class LastWords:
    """stderr that remembers the end of what was said."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.text = stream, ""

    def write(self, text: str) -> int:
        self.text = (self.text + text)[-_LAST_WORDS:]
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """A first process ignores signals that it has no handler for; commands that drain set their own."""
    raise SystemExit(128 + number)


def run(arguments: list[str]) -> None:
    from vsr_hpc.cli import main as cli

    sys.argv = ["vsr", *arguments]
    cli.main()


def train(arguments: list[str], folder: Path) -> None:
    """As `run`, but what went wrong is left where a training job's failure is looked for."""
    stderr = LastWords(sys.stderr)
    sys.stderr = stderr  # type: ignore[assignment]
    code: object = 1
    try:
        run(arguments)
        code = 0
    except SystemExit as ended:
        code = ended.code
        raise
    finally:
        if code:
            said = stderr.text.strip() or f"vsr {shlex.join(arguments)} ended with {code}"
            try:
                (folder / "output").mkdir(exist_ok=True)
                (folder / "output" / "failure").write_text(said, encoding="utf-8")
            except OSError as exc:
                sys.stderr.write(f"vsr: the failure could not be left in {folder}/output: {exc.strerror}\n")


def main() -> None:
    signal.signal(signal.SIGTERM, leave)
    link_weights(WEIGHTS, os.environ)
    asked = sys.argv[1:]
    hyperparameters = read_hyperparameters(ML) if asked[:1] == ["train"] else None
    arguments = command(asked, hyperparameters)
    if hyperparameters is None:
        run(arguments)
    else:
        train(arguments, ML)


if __name__ == "__main__":
    main()
