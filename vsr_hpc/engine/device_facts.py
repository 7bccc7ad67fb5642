"""What a CPU or GPU is: its name, memory class and instruction set."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vsr_hpc.errors import BackendError
from vsr_hpc.system.processes import visible_gpus
from vsr_hpc.wording import plural

log = logging.getLogger(__name__)


DeviceKind = Literal["cpu", "cuda"]
MEMORY_CLASSES_GIB = (4, 6, 8, 12, 16, 24, 32, 40, 48, 80, 96, 141)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What a device is good at: the capabilities that `auto` looks at, never a clock."""

    kind: DeviceKind
    name: str
    memory_gib: int
    """The memory class: devices of one class get one tile and batch."""
    has_fast_bf16: bool
    has_fast_fp16: bool


def device_facts(kind: DeviceKind | None = None) -> DeviceFacts:
    """This machine's device; torch is imported only where an NVIDIA driver lives or CUDA is asked for."""
    if kind == "cuda" or (kind is None and Path("/proc/driver/nvidia/version").exists()):
        facts = _cuda_facts()
        if facts is not None:
            return facts
        if kind == "cuda":
            raise BackendError(
                "device cuda: torch sees no CUDA device here; check the driver, or use device cpu"
            )
        log.warning("an NVIDIA driver is here, but torch sees no CUDA device; the CPU is used")
    flags = cpu_flags()
    return DeviceFacts(
        kind="cpu",
        name=cpu_name(),
        memory_gib=2,  # a tile of this size keeps its activations nearer to the caches than a whole frame
        has_fast_bf16=bool(flags & {"amx_bf16", "avx512_bf16"}),
        has_fast_fp16=False,  # measured: fp16 on a CPU is slower than fp32, also with avx512_fp16
    )


def describe_device(gpus: tuple[int, ...], threads: int) -> str:
    """What computes here, for people: `GPU 0: NVIDIA L4`, `CPU: 8 cores`."""
    facts = device_facts()
    if facts.kind == "cuda":
        return f"GPU {', '.join(map(str, gpus or (0,)))}: {facts.name}"
    return f"CPU: {plural(threads, 'core')}"


def gpu_findings(wanted: tuple[int, ...]) -> list[str]:
    """Which of the GPUs that were named are not on this machine, or cannot be used."""
    if not wanted:
        return []
    present = visible_gpus()
    missing = [number for number in wanted if number not in present]
    if missing:
        here = ", ".join(map(str, present))
        return [
            f"GPU {', '.join(map(str, missing))} is not on this machine, "
            + (f"which has GPU {here}" if present else "which has no NVIDIA GPU; leave it out to use the CPU")
        ]
    if device_facts().kind != "cuda":
        return ["this torch cannot use the NVIDIA GPU of this machine; leave it out to use the CPU"]
    return []


def cpu_flags() -> frozenset[str]:
    return frozenset(_cpu_field("flags").split())


def cpu_name() -> str:
    return _cpu_field("model name") or os.uname().machine


def _cpu_field(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == name), "")


def _cuda_facts() -> DeviceFacts | None:
    import torch

    if not torch.cuda.is_available():
        return None
    facts = torch.cuda.get_device_properties(0)
    memory_gib = facts.total_memory / 2**30
    fitting = [size for size in MEMORY_CLASSES_GIB if size <= memory_gib * 1.08]
    return DeviceFacts(
        kind="cuda",
        name=facts.name,
        memory_gib=fitting[-1] if fitting else MEMORY_CLASSES_GIB[0],
        has_fast_bf16=facts.major >= 8,
        has_fast_fp16=facts.major >= 7 or (facts.major, facts.minor) == (6, 0),
    )
