"""The `vsr` command as a person or a script meets it: in this process where that is enough, or as its own."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from tests.tools import find_tool
from vsr_hpc.cli import main as cli

MODULE = (sys.executable, "-m", "vsr_hpc")
_NO_OVERRIDE = "-dac_override,-dac_read_search"


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def vsr(*arguments: object) -> Said:
    """The command in this process."""
    out, err = io.StringIO(), io.StringIO()
    levels = {handler: handler.level for handler in logging.getLogger().handlers}
    with (
        mock.patch.object(sys, "argv", ["vsr", *map(str, arguments)]),
        mock.patch.dict(os.environ),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        finally:
            for handler, level in levels.items():
                handler.setLevel(level)
    return Said(code=code if isinstance(code, int) else 0, out=out.getvalue(), err=err.getvalue())


def process(*arguments: object, cwd: Path, before: tuple[str, ...] = (), **environment: str) -> Said:
    """The command as a process of its own, without a terminal; `before` stands in front of it."""
    done = subprocess.run(
        [*before, *MODULE, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )
    return Said(code=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())


def as_ordinary_user() -> tuple[str, ...] | None:
    """What makes permissions hold: nothing for a user, less capabilities for root; None where that fails.

    Root keeps its id, so that it may read an interpreter that lies in its home.
    """
    if os.geteuid() != 0:
        return ()
    if find_tool("setpriv") is None:
        return None
    command = ("setpriv", f"--bounding-set={_NO_OVERRIDE}", f"--inh-caps={_NO_OVERRIDE}")
    works = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    return command if works else None
