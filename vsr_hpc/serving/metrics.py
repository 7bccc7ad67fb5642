"""Counters and histograms in Prometheus' text format. Small, since a server needs a dozen of them."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
FRAMES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
Labels = tuple[tuple[str, str], ...]


class Counter:
    """Grows only; one value for each combination of labels."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text
        self._values: dict[Labels, float] = {}
        self._lock = threading.Lock()

    def add(self, amount: float = 1.0, **labels: str) -> None:
        key = tuple(sorted(labels.items()))
        with self._lock:
            self._values[key] = self._values.get(key, 0.0) + amount

    def lines(self) -> list[str]:
        with self._lock:
            values = sorted(self._values.items()) or [((), 0.0)]
        head = [f"# HELP {self.name} {self.text}", f"# TYPE {self.name} counter"]
        return head + [f"{self.name}{_labels(key)} {_number(value)}" for key, value in values]


class Histogram:
    """How often values fell below each border."""

    def __init__(self, name: str, text: str, borders: Sequence[float]) -> None:
        self.name, self.text, self._borders = name, text, tuple(borders)
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}
        self._lock = threading.Lock()

    def see(self, value: float, **labels: str) -> None:
        key = tuple(sorted(labels.items()))
        with self._lock:
            counts = self._counts.setdefault(key, [0] * (len(self._borders) + 1))
            counts[bisect_left(self._borders, value)] += 1
            self._sums[key] = self._sums.get(key, 0.0) + value

    def lines(self) -> list[str]:
        with self._lock:
            found = [(key, list(counts), self._sums[key]) for key, counts in sorted(self._counts.items())]
        lines = [f"# HELP {self.name} {self.text}", f"# TYPE {self.name} histogram"]
        for key, counts, total in found:
            below = 0
            for border, count in zip((*self._borders, float("inf")), counts, strict=True):
                below += count
                shown = "+Inf" if border == float("inf") else _number(border)
                lines.append(f"{self.name}_bucket{_labels((*key, ('le', shown)))} {below}")
            lines.append(f"{self.name}_sum{_labels(key)} {_number(total)}")
            lines.append(f"{self.name}_count{_labels(key)} {below}")
        return lines


class Gauge:
    """A value read when somebody asks."""

    def __init__(self, name: str, text: str, read: Callable[[], float]) -> None:
        self.name, self.text, self._read = name, text, read

    def lines(self) -> list[str]:
        return [
            f"# HELP {self.name} {self.text}",
            f"# TYPE {self.name} gauge",
            f"{self.name} {_number(self._read())}",
        ]


class Metrics:
    """All that a server counts."""

    def __init__(self) -> None:
        self.requests = Counter("vsr_requests_total", "Requests answered, by route and status.")
        self.refusals = Counter("vsr_refusals_total", "Requests refused, by reason.")
        self.bytes_in = Counter("vsr_request_bytes_total", "Bytes of bodies that came in.")
        self.bytes_out = Counter("vsr_answer_bytes_total", "Bytes of answers that went out.")
        self.frames = Counter("vsr_frames_total", "Frames that went through the device.")
        self.device_s = Counter("vsr_device_seconds_total", "Seconds that the device was busy.")
        self.latency = Histogram(
            "vsr_request_seconds", "Seconds from a request's head to its answer, by kind.", SECONDS
        )
        self.batch = Histogram("vsr_batch_frames", "Frames in one pass through the device.", FRAMES)
        self.gauges: list[Gauge] = [
            Gauge("process_resident_memory_bytes", "Resident memory.", resident_bytes)
        ]

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        self.gauges.append(Gauge(name, text, read))

    def on_pass(self, frames: int, seconds: float) -> None:
        self.batch.see(frames)
        self.frames.add(frames)
        self.device_s.add(seconds)

    def text(self) -> str:
        counters = (self.requests, self.refusals, self.bytes_in, self.bytes_out, self.frames, self.device_s)
        lines = [line for each in counters for line in each.lines()]
        lines += self.latency.lines() + self.batch.lines()
        lines += [line for each in self.gauges for line in each.lines()]
        return "\n".join(lines) + "\n"


def resident_bytes() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
    return float(pages * 4096)


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    shown = ",".join(f'{key}="{_escaped(value)}"' for key, value in labels)
    return f"{{{shown}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(round(value, 6))
