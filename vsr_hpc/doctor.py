"""What this machine can do: one check for each thing that a command may need, each with its way out.

Every check calls the function that refuses the same thing in a command: `connection_problem` for weights,
`resolve_encoding` and `open_encoder` for encoders, `has_slurm` for submissions, `account_number` for AWS.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from vsr_hpc.errors import JobError, VsrError
from vsr_hpc.version import VERSION
from vsr_hpc.wording import plural, size

State = Literal["ok", "absent", "problem"]
_LITTLE_SPACE_BYTES = 2 << 30
_WEIGHTS_SITE = "https://github.com"
_CODEC_ENCODERS = {
    "libx264": "H.264",
    "libx265": "H.265",
    "libsvtav1": "AV1",
    "ffv1": "FFV1",
    "prores_ks": "ProRes",
}
_GPU_ENCODERS = ("h264_nvenc", "hevc_nvenc", "av1_nvenc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found. `absent` is no fault: the thing is not here, and only some commands need it."""

    name: str
    state: State
    text: str
    way_out: str = ""


def diagnose(names: Sequence[str] = ()) -> tuple[Finding, ...]:
    """All checks, or those named; what is named and absent is a problem. They run side by side."""
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        raise JobError(f"there is no check {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    chosen = [(name, CHECKS[name]) for name in CHECKS if not names or name in names]
    with ThreadPoolExecutor(max_workers=len(chosen)) as pool:
        found = pool.map(lambda each: _examine(*each), chosen)
        return tuple(_needed(finding) if names else finding for finding in found)


def _needed(finding: Finding) -> Finding:
    if finding.state != "absent":
        return finding
    return Finding(name=finding.name, state="problem", text=finding.text, way_out=finding.way_out)


def _examine(name: str, check: Callable[[], tuple[State, str, str]]) -> Finding:
    try:
        state, text, way_out = check()
    except VsrError as exc:
        state, text, way_out = "problem", str(exc), ""
    return Finding(name=name, state=state, text=text, way_out=way_out)


def _python() -> tuple[State, str, str]:
    text = f"{platform.python_version()} at {sys.executable}, vsr {VERSION}"
    if sys.platform == "linux":
        return "ok", text, ""
    return "problem", f"{text}, on {sys.platform}", "use Linux, or WSL on Windows; others are not tried"


def _torch() -> tuple[State, str, str]:
    if importlib.util.find_spec("torch") is None:
        way_out = "pip install torch, to upscale on this machine; submitting to others does without"
        return "absent", "not installed", way_out
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as exc:
        return "problem", f"cannot be loaded: {exc}", "pip install --force-reinstall torch"
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return "ok", f"{torch.__version__}, {build}", ""


def _gpu() -> tuple[State, str, str]:
    from vsr_hpc.engine.device_facts import cpu_name, device_facts

    cores = plural(len(os.sched_getaffinity(0)), "core")
    driver = Path("/proc/driver/nvidia/version")
    if not driver.exists():
        way_out = "networks run on the CPU; for a GPU, install NVIDIA's driver, or submit to a cluster"
        return "absent", f"no NVIDIA driver; the CPU is {cpu_name()} with {cores}", way_out
    if importlib.util.find_spec("torch") is None:
        return "absent", "an NVIDIA driver is here, torch is not", "pip install torch"
    torch = importlib.import_module("torch")
    if not torch.version.cuda:
        way_out = "pip install --force-reinstall torch, from an index that has CUDA builds (pytorch.org)"
        return "problem", f"an NVIDIA driver is here, but torch {torch.__version__} is a CPU build", way_out
    if not torch.cuda.is_available():
        way_out = (
            f"CUDA {torch.version.cuda} needs a newer driver, or a torch for this driver; see nvidia-smi"
        )
        return "problem", "an NVIDIA driver is here, but torch sees no GPU", way_out
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return "ok", f"{', '.join(names)} ({device_facts('cuda').memory_gib} GiB)", ""


def _ffmpeg() -> tuple[State, str, str]:
    import av

    libraries = {name: ".".join(map(str, numbers)) for name, numbers in av.library_versions.items()}
    return "ok", f"libavcodec {libraries['libavcodec']} in PyAV {av.__version__}", ""


def _encoders() -> tuple[State, str, str]:
    problems = {name: encoder_problem(name) for name in (*_CODEC_ENCODERS, *_GPU_ENCODERS)}
    opened = [name for name, problem in problems.items() if problem is None]
    broken = [f"{name}: {problems[name]}" for name in _CODEC_ENCODERS if problems[name] is not None]
    if broken:
        way_out = "pip install --force-reinstall av, whose wheels hold these encoders"
        return "problem", "; ".join(broken), way_out
    gpu = (
        "" if any(name in opened for name in _GPU_ENCODERS) else "; NVENC needs an NVIDIA GPU and its driver"
    )
    return "ok", f"{', '.join(opened)}{gpu}", ""


def encoder_problem(name: str) -> str | None:
    """Why this encoder does not open here; None if it does."""
    from vsr_hpc.media.encode.encoder import open_encoder
    from vsr_hpc.media.encode.encoding import VideoRequest
    from vsr_hpc.media.encode.resolution import resolve_encoding
    from vsr_hpc.media.picture import Colour, Picture
    from vsr_hpc.media.pixels import pixel_format

    pixel = pixel_format("yuv422p10le" if name == "prores_ks" else "yuv420p")
    picture = Picture(width=320, height=192, pixel=pixel, colour=Colour())
    try:
        encoding = resolve_encoding(VideoRequest(encoder=name), picture)
        open_encoder(encoding, picture, Fraction(1, 25))
    except VsrError as exc:
        return str(exc)
    return None


def _space() -> tuple[State, str, str]:
    from vsr_hpc.system.user_folders import user_folder

    places = {"here": Path.cwd(), "cache": user_folder("cache"), "temporary": Path(tempfile.gettempdir())}
    free = {name: shutil.disk_usage(_existing(path)).free for name, path in places.items()}
    text = ", ".join(f"{name} {size(amount)}" for name, amount in free.items())
    short = [name for name, amount in free.items() if amount < _LITTLE_SPACE_BYTES]
    if short:
        way_out = "free some space, or set TMPDIR, XDG_CACHE_HOME, or another place for the run with --run"
        return "problem", f"{text}; a film needs more ({', '.join(short)})", way_out
    return "ok", f"{text} free", ""


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


def _weights() -> tuple[State, str, str]:
    from vsr_hpc.models.cards import all_cards
    from vsr_hpc.models.weights import cache_folder, is_at_hand

    networks = [card for card in all_cards() if not card.is_filter]
    here = [card.name for card in networks if is_at_hand(card)]
    text = f"{len(here)} of {len(networks)} networks on this disk: {', '.join(here)}"
    way_out = "" if len(here) == len(networks) else f"`vsr models pull NAME` fetches one to {cache_folder()}"
    return "ok", text, way_out


def _network() -> tuple[State, str, str]:
    from vsr_hpc.system.network import connection_problem

    problem = connection_problem(_WEIGHTS_SITE)
    if problem is None:
        return "ok", f"{_WEIGHTS_SITE.partition('//')[2]} can be reached, where most weights come from", ""
    way_out = "models on this disk work; `vsr models show NAME` says where to place the file of another"
    return "absent", problem, way_out


def _server() -> tuple[State, str, str]:
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        way_out = "pip install 'vsr-hpc[serve]', for `vsr serve` and `vsr dashboard`"
        return "absent", f"{' and '.join(missing)} not installed", way_out
    return "ok", f"starlette {importlib.metadata.version('starlette')}", ""


def _slurm() -> tuple[State, str, str]:
    from vsr_hpc.executors.slurm.commands import has_slurm, partitions

    if not has_slurm():
        return "absent", "sbatch is not on the PATH", "submit on a login or head node of a cluster"
    found = partitions()
    if not found:
        way_out = "ask the cluster's administrators, or look with `sinfo` and `scontrol ping`"
        return "problem", "sinfo names no partition: slurmctld does not answer, or has none", way_out
    rows = [f"{each.name} ({plural(each.nodes, 'node')}{_gpus(each.gpus)})" for each in found]
    return "ok", f"partitions {', '.join(rows)}", ""


def _gpus(resources: tuple[str, ...]) -> str:
    return f", {', '.join(resources)}" if resources else ", no GPU"


def _aws() -> tuple[State, str, str]:
    from vsr_hpc.aws.account import account_number, client, has_credentials
    from vsr_hpc.aws.errors import explained
    from vsr_hpc.aws.limits import vcpu_quota
    from vsr_hpc.system.aws_region import find_region

    region = find_region()
    if not has_credentials():
        where = f"region {region}, " if region else ""
        way_out = "run `aws configure` or `aws sso login`, or set AWS_PROFILE, to use AWS"
        return "absent", f"{where}no credentials", way_out
    if region is None:
        way_out = "set AWS_REGION, or a region in your AWS profile"
        return "problem", "credentials are here, but no region is set", way_out
    account = account_number(client("sts", region, timeout_s=5, attempts=1))
    with explained("read the account's quotas"):
        quotas = client("service-quotas", region, timeout_s=5, attempts=1)
        code, _ = vcpu_quota("G and VT", "spot")
        answer = quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)
    vcpus = answer["Quota"]["Value"]
    text = f"account {account}, region {region}, quota of Spot GPU vCPUs (G types) {vcpus:g}"
    if not vcpus:
        return "problem", text, f"ask for more in Service Quotas ({code}), or no Spot GPU starts"
    return "ok", text, ""


def _pcluster() -> tuple[State, str, str]:
    from vsr_hpc.aws.cluster.pcluster import SETUP, find_tool

    tool = find_tool()
    if tool is None:
        return "absent", "ParallelCluster is not installed", f"{SETUP}, to create clusters"
    if tool.node is None:
        return "problem", f"{tool.executable} finds no node.js", SETUP
    return "ok", str(tool.executable), ""


CHECKS: dict[str, Callable[[], tuple[State, str, str]]] = {
    "python": _python,
    "torch": _torch,
    "gpu": _gpu,
    "ffmpeg": _ffmpeg,
    "encoders": _encoders,
    "space": _space,
    "weights": _weights,
    "network": _network,
    "server": _server,
    "slurm": _slurm,
    "aws": _aws,
    "pcluster": _pcluster,
}
"""The checks in the order in which they are shown."""
