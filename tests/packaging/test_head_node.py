"""A machine that only submits and watches needs no torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.clips import numbered_clip
from tests.tools import ROOT
from tests.unit.test_profiles import profile
from vsr_hpc.forecast.profiles import save_profile

VALUES = """\
region: us-east-1
head_subnet: subnet-0a1b2c3d4e5f60711
compute_subnets: [subnet-0a1b2c3d4e5f60712]
key_name: vsr-hpc
ssh_from: 198.51.100.7/32
bucket: vsr-hpc-data
prefix: vsr
node_policy_arn: arn:aws:iam::123456789012:policy/vsr-node-vsr-hpc-data
"""


def needed(requirements: Iterable[str]) -> dict[str, Distribution]:
    """The distributions that pip would install for these requirements, from those of this environment."""
    found: dict[str, Distribution] = {}
    waiting = [Requirement(each) for each in requirements]
    while waiting:
        each = waiting.pop()
        name = canonicalize_name(each.name)
        if name in found or (each.marker and not each.marker.evaluate({"extra": ""})):
            continue
        found[name] = distribution(name)
        waiting += [Requirement(other) for other in found[name].requires or ()]
    return found


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has our package, what requirements-head-node.txt names and needs, and no more."""
    lines = (ROOT / "requirements-head-node.txt").read_text().splitlines()
    packages = needed(line for line in lines if line and not line.startswith("#"))
    assert "torch" not in packages
    place = tmp_path_factory.mktemp("head-node")
    venv.create(place, with_pip=False)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(place)}))
    for each in packages.values():
        for name in {file.parts[0] for file in each.files or ()} - {"..", "__pycache__"}:
            (site / name).symlink_to(Path(str(each.locate_file(name))))
    shutil.copytree(ROOT / "vsr_hpc", site / "vsr_hpc", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "share/vsr_hpc").mkdir(parents=True)
    (place / "share/vsr_hpc/cluster-config").symlink_to(ROOT / "cluster-config")
    return place / "bin/python"


class HeadNode:
    """A folder with a clip and a job, on a machine without torch, Slurm and an AWS account."""

    def __init__(self, folder: Path, interpreter: Path) -> None:
        self.folder, self.interpreter = folder, interpreter
        numbered_clip(folder / "in.mkv", frames=4)
        (folder / "job.yaml").write_text("input: in.mkv\noutput: out.mkv\nmodel: lanczos\n")
        (folder / "values.yaml").write_text(VALUES)
        homes = {f"XDG_{each}_HOME": str(folder / each.lower()) for each in ("DATA", "CACHE", "STATE")}
        kept = {name: text for name, text in os.environ.items() if not name.startswith(("AWS_", "SLURM_"))}
        (folder / "bin").mkdir()
        self.environment = {
            **kept,
            **homes,
            "PATH": str(folder / "bin"),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def vsr(self, words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.interpreter), "-m", "vsr_hpc", *words.split()],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def refusal(self, words: str) -> str:
        """What the command says on stderr; it must fail in one sentence, for a person."""
        done = self.vsr(words)
        assert done.returncode in (2, 75), f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, f"{words}:\n{done.stderr}"
        last = done.stderr.splitlines()[-1]
        assert last.startswith("vsr: "), f"{words}:\n{done.stderr}"
        return last


@pytest.fixture
def head_node(tmp_path: Path, interpreter: Path) -> HeadNode:
    return HeadNode(tmp_path, interpreter)


def test_a_run_is_submitted_to_slurm_watched_and_cancelled(head_node: HeadNode) -> None:
    assert "sbatch" in head_node.refusal("submit job.yaml --on slurm")
    shown = head_node.vsr("status out.mkv")
    assert shown.returncode == 0 and ".vsr/out.mkv" in shown.stdout, shown.stderr
    assert "sbatch" in head_node.refusal("resume out.mkv")
    assert head_node.vsr("cancel out.mkv").returncode == 0
    assert "no logs" in head_node.refusal("logs out.mkv")
    listed = head_node.vsr("runs")
    assert listed.returncode == 0 and ".vsr/out.mkv" in listed.stdout


def test_a_cluster_is_rendered_and_models_are_listed(head_node: HeadNode) -> None:
    rendered = head_node.vsr("cluster render --values values.yaml")
    assert rendered.returncode == 0 and "Scheduler: slurm" in rendered.stdout, rendered.stderr
    assert "vsr-video-x4" in head_node.vsr("models list").stdout
    workflow = head_node.vsr("workflow render job.yaml --bucket films")
    assert workflow.returncode == 0 and "StartAt" in workflow.stdout, workflow.stderr


def test_doctor_finds_no_fault_in_what_a_head_node_lacks(head_node: HeadNode) -> None:
    said = head_node.vsr("doctor")
    assert said.returncode == 0, said.stdout + said.stderr
    assert "pip install torch" in said.stdout


@pytest.mark.parametrize(
    "words",
    ["endpoint status film", "batch status", "prices refresh"],
)
def test_what_asks_aws_gets_as_far_as_the_missing_account(head_node: HeadNode, words: str) -> None:
    assert "torch" not in head_node.refusal(words)


@pytest.mark.parametrize(
    "words", ["plan in.mkv out.mkv --model vsr-video-x4", "submit job.yaml --on slurm --dry-run"]
)
def test_a_job_is_planned_without_trying_a_frame(head_node: HeadNode, words: str) -> None:
    planned = head_node.vsr(words)
    assert planned.returncode == 0, planned.stderr
    (here,) = [line for line in planned.stdout.splitlines() if line.startswith("this machine")]
    assert "pip install torch" in here
    assert "AWS Batch, Spot" in planned.stdout


def test_a_plan_uses_the_profiles_that_lie_here(head_node: HeadNode) -> None:
    folder = head_node.folder / "state/vsr_hpc/profiles"
    save_profile(profile(device="NVIDIA A10G", kind="cuda", network_fps=0.001, precision="fp16"), folder)
    planned = head_node.vsr("plan in.mkv out.mkv --model realesr-animevideov3 --json")
    assert planned.returncode == 0, planned.stderr
    ways = json.loads(planned.stdout)["estimate"]["elsewhere"]
    assert any("measured on a NVIDIA A10G" in way["source"] for way in ways), ways


@pytest.mark.parametrize(
    "words",
    [
        "upscale in.mkv out.mkv --model lanczos",
        "preview in.mkv --models bicubic -o x.png",
        "bench --model bicubic",
    ],
)
def test_what_runs_a_network_says_that_torch_is_missing(head_node: HeadNode, words: str) -> None:
    said = head_node.refusal(words)
    assert "torch" in said and "pip install torch" in said


def test_a_server_names_the_extra_that_it_needs(head_node: HeadNode) -> None:
    assert "pip install 'vsr-hpc[serve]'" in head_node.refusal("serve --model bicubic --port 0")
