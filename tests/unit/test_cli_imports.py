from __future__ import annotations

import subprocess
import sys


def test_help_needs_nothing_beside_typer() -> None:
    """A packed environment proves itself by `vsr --help`, and a head node answers at once."""
    heavy = ("torch", "numpy", "av", "yaml", "pydantic", "boto3", "submitit")
    script = (
        "import sys; from vsr_hpc.cli.main import main; sys.argv = ['vsr', '--help']\n"
        "try: main()\n"
        f"except SystemExit: print([name for name in {heavy} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
