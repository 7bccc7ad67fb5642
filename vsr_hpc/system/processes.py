"""Identifies processes across reboots, and lists the visible GPUs."""

from __future__ import annotations

import os
from pathlib import Path


def visible_gpus() -> tuple[int, ...]:
    """GPUs of this machine that this process may use, without importing torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(range(len([part for part in named.split(",") if part.strip() not in ("", "-1")])))
    folder = Path("/proc/driver/nvidia/gpus")
    return tuple(range(len(list(folder.iterdir())))) if folder.is_dir() else ()


def boot_identity() -> str:
    """This boot of this kernel and this process namespace, in which a pid has a meaning."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def process_start(pid: int) -> int:
    """Clock ticks from boot to the start of a live process; 0 where there is none or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    fields = stat.rsplit(")", 1)[1].split()
    return 0 if fields[0] in "ZX" else int(fields[19])
