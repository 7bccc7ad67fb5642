"""Writes counts, durations, sizes and money for people."""

from __future__ import annotations

import math


def plural(count: int, noun: str) -> str:
    """1,440 frames, 1 frame."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size(size_bytes: int) -> str:
    """157 KiB, 2.4 MiB, 64 MiB, 1.5 GiB."""
    if size_bytes >= 1 << 30:
        return f"{size_bytes / 2**30:.1f} GiB"
    if size_bytes >= 10 << 20:
        return f"{size_bytes / 2**20:.0f} MiB"
    if size_bytes >= 1 << 20:
        return f"{size_bytes / 2**20:.1f}".removesuffix(".0") + " MiB"
    return f"{math.ceil(size_bytes / 2**10)} KiB"


def duration(seconds: float) -> str:
    """For people: 42 s, 7 min, 2 h 05."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d}"


def money(usd: float) -> str:
    return f"${usd:,.0f}" if usd >= 100 else f"${usd:.2f}" if usd >= 0.01 or usd == 0 else "<$0.01"


def clock(seconds: float) -> str:
    """As a clock shows it: 0:42, 7:05, 2:05:00."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
