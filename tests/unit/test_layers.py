"""Who may import whom: every file has its place in one order, and no two need each other."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "vsr_hpc"

# A file imports only from rows above its own; a name with a stroke is a folder, whose files are among
# themselves and may import each other, but not in a circle. It is design.md's layout, with these changes:
# the worker imports `finish`, since whoever finds nothing missing finishes the run; `plan` imports what
# decides bytes (cards, clips); what lies between run and worker has its own rows.
ORDER = """
errors  aws_errors  environment  interrupts  matlab
yaml_file  similarity
job  instances  prices
price_list  store  s3  store_s3  media/  models/
inputs  source  fidelity  upscale/  profiles
originals
quality  training/
plan  pace
run  estimate  storage_choice  placement
outputs  ledger
prepare  status  runlog  claims  staging  pipeline  promises  packets  telemetry
verify  progress  sample
report/
finish
worker
executors/
forecast  serve_plan
launch  preview  plan_text
bench  startup
cluster/  image
batch/  workflow
workflow_life
workflow_runs
serving/
cli_quality
dashboard/
cli_cluster  cli_report  cli_serve  cli_endpoint  cli_ec2  cli_train  cli_job  cli_batch  cli_bench  cli_image
cli_plan  cli_workflow
cli
demo
__main__
"""

# Imports that look upwards on purpose, inside a function: (who, whom).
SEAMS = {
    ("store", "store_s3"): "open_store takes a URI and gives the backend that it means",
    ("executors.slurm_task", "executors.slurm"): "the last task of a round starts the next one",
}

ON_A_HEAD_NODE = """
job plan profiles prepare run forecast serve_plan ledger status launch progress verify finish
executors.local executors.slurm executors.slurm_task executors.aws_batch
batch.lifecycle batch.removal workflow_life
cluster.check cluster.lifecycle cluster.pack cluster.storage
cli cli_plan cli_cluster cli_serve cli_endpoint cli_ec2 cli_batch cli_image image
serving.endpoints serving.promotion serving.ec2
"""


def _modules() -> dict[str, Path]:
    names = {path: path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")}
    return {".".join(name.parts).removesuffix(".__init__"): path for path, name in names.items()}


MODULES = _modules()


def _imports(module: str) -> frozenset[str]:
    """Modules of this package that a module imports when it runs, also inside functions."""

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue  # for the type checker alone
            if isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module}: relative import"
                yield from (f"{child.module}.{each.name}" for each in child.names)
            elif isinstance(child, ast.Import):
                yield from (each.name for each in child.names)
            yield from visit(child)

    found = visit(ast.parse(MODULES[module].read_text(encoding="utf-8")))
    inner = {name.removeprefix("vsr_hpc.") for name in found if name.startswith("vsr_hpc.")}
    whole = {name if name in MODULES else name.rpartition(".")[0] for name in inner}
    return frozenset(name for name in whole if name)  # `from vsr_hpc import __version__` is no module


def _rows() -> dict[str, int]:
    return {name: row for row, line in enumerate(ORDER.strip().splitlines()) for name in line.split()}


def _row(module: str) -> int:
    folder, _, inside = module.partition(".")
    name = f"{folder}/" if inside or (PACKAGE / folder).is_dir() else folder
    assert name in _rows(), f"{module} has no place in ORDER: give it one"
    return _rows()[name]


def _is_allowed(module: str, imported: str) -> bool:
    own_folder = "." in module and module.partition(".")[0] == imported.partition(".")[0]
    is_store = {module, imported} <= {"store", "s3", "store_s3"}
    return _row(imported) < _row(module) or own_folder or is_store


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"__init__", ""}))
def test_a_file_imports_only_what_stands_above_it(module: str) -> None:
    wrong = {
        name for name in _imports(module) if not _is_allowed(module, name) and (module, name) not in SEAMS
    }
    assert not wrong, f"{module} (row {_row(module)}) imports {', '.join(sorted(wrong))}"


def test_no_two_files_need_each_other() -> None:
    left = {name: {each for each in _imports(name) if (name, each) not in SEAMS} for name in MODULES}
    while free := {name for name, needed in left.items() if not needed & left.keys()}:
        left = {name: needed for name, needed in left.items() if name not in free}
    assert not left, f"in a circle, or needing one: {', '.join(sorted(left))}"


def test_the_seams_are_all_in_use() -> None:
    assert {(who, whom) for who, whom in SEAMS if whom in _imports(who)} == set(SEAMS)


def test_every_place_is_taken() -> None:
    taken = {
        f"{name.partition('.')[0]}/" if (PACKAGE / name.partition(".")[0]).is_dir() else name
        for name in MODULES
    }
    assert set(_rows()) <= taken


def test_only_networks_import_basicsr() -> None:
    users = [
        name
        for name, path in MODULES.items()
        if "import basicsr" in path.read_text() or "from basicsr" in path.read_text()
    ]
    assert set(users) <= {"models.networks"}


def test_what_runs_on_a_head_node_imports_no_torch() -> None:
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(f'vsr_hpc.{name}')\n"
        "    assert 'torch' not in sys.modules, f'{name} imports torch'\n"
    )
    command = [sys.executable, "-c", program, *ON_A_HEAD_NODE.split()]
    said = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent, check=False)
    assert said.returncode == 0, said.stderr
