"""Programs that tests run, found where our own set-up puts them."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def find_tool(*names: str) -> str | None:
    """The path of the first of these programs that is installed; None where none of them is.

    `make install` fills the virtual environment and tests/install-tools.sh fills .venv-node, so both come
    before the PATH of whoever runs the tests. Debian keeps some programs in sbin, which the PATH of an
    ordinary user lacks.
    """
    folders = (
        str(Path(sys.executable).parent),
        str(ROOT / ".venv-node/node_modules/.bin"),
        *os.environ.get("PATH", "").split(os.pathsep),
        "/usr/local/sbin",
        "/usr/sbin",
        "/sbin",
    )
    path = os.pathsep.join(folder for folder in folders if folder)
    return next((found for name in names if (found := shutil.which(name, path=path))), None)
