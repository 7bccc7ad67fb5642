"""What a laptop or a head node loads is light: no torch, no basicsr."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "vsr_hpc"

ON_A_HEAD_NODE = """
job.spec planning.plan planning.preparation forecast.profiles forecast.forecast forecast.serving_forecast
run.run run.status run.spending launch verification.verify work.finish
executors.local executors.slurm.submission executors.slurm.worker_task executors.aws_batch.submission
aws.batch.installation aws.batch.removal aws.workflow.installation aws.bucket aws.image_registry
aws.cluster.check aws.cluster.lifecycle aws.cluster.node_environment
aws.endpoint.endpoint aws.endpoint.promotion aws.ec2.fleet
cli.main cli.plan cli.cluster cli.serve cli.endpoint cli.ec2 cli.batch cli.image cli.progress
"""


def test_only_networks_import_basicsr() -> None:
    users = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "import basicsr" in path.read_text() or "from basicsr" in path.read_text()
    ]
    assert set(users) <= {"models/networks.py"}


def test_what_runs_on_a_head_node_imports_no_torch() -> None:
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(f'vsr_hpc.{name}')\n"
        "    assert 'torch' not in sys.modules, f'{name} imports torch'\n"
    )
    command = [sys.executable, "-c", program, *ON_A_HEAD_NODE.split()]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent, check=False)
    assert answer.returncode == 0, answer.stderr


def test_a_run_on_this_machine_imports_no_boto3() -> None:
    program = "import sys, vsr_hpc.launch, vsr_hpc.work.worker; assert 'boto3' not in sys.modules"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
