"""Load on a real server process: requests a second and latency at 1, 8 and 32 clients, batching on and off.

    python benchmarks/serving.py                          # the table, about two minutes
    python benchmarks/serving.py --minutes 10             # and memory under ten minutes of mixed load
    python benchmarks/serving.py --device cuda --size 480x270 --features 64 --convolutions 16

Weights are random: speed does not depend on them. Clients and server share the machine.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.serving.samples import clip, network_file, still
from tests.serving.served import Served, served


@dataclass
class Tally:
    seconds: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, status: int, seconds: float) -> None:
        with self.lock:
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if status == 200:
                self.seconds.append(seconds)


def client(server: Served, tally: Tally, until: float, bodies: list[tuple[bytes, str, str]]) -> None:
    """One client with one connection, sending as fast as it is answered."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    turn = 0
    while time.monotonic() < until:
        body, kind, path = bodies[turn % len(bodies)]
        turn += 1
        began = time.monotonic()
        connection.request("POST", path, body, {"Content-Type": kind, "Accept": kind})
        answer = connection.getresponse()
        answer.read()
        tally.note(answer.status, time.monotonic() - began)
    connection.close()


def load(server: Served, clients: int, seconds: float, bodies: list[tuple[bytes, str, str]]) -> Tally:
    tally, until = Tally(), time.monotonic() + seconds
    threads = [
        threading.Thread(target=client, args=(server, tally, until, bodies[i % len(bodies) :] + bodies))
        for i in range(clients)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return tally


def row(name: str, clients: int, tally: Tally, seconds: float, batch: float, busy: float) -> str:
    took = sorted(tally.seconds)
    p50, p99 = statistics.median(took), took[min(len(took) - 1, int(len(took) * 0.99))]
    return (
        f"| {name} | {clients} | {len(took) / seconds:.1f} | {p50 * 1000:.0f} | {p99 * 1000:.0f} "
        f"| {batch:.2f} | {busy:.0%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", default="160x120")
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--convolutions", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--batch", default="8")
    parser.add_argument("--minutes", type=float, default=0)
    wanted = parser.parse_args()
    width, _, height = wanted.size.partition("x")
    bodies = [
        (still("jpeg", int(width), int(height), seed), "image/jpeg", "/invocations?model=net")
        for seed in range(4)
    ]
    print("| batching | clients | requests/s | p50 ms | p99 ms | frames per pass | device busy |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        network_file(
            home / "model" / "net.safetensors",
            num_feat=wanted.features, num_conv=wanted.convolutions, scale=2,
        )  # fmt: skip
        common = ("--model-dir", str(home / "model"), "--model", "bicubic", "--queue", "64",
                  "--device", wanted.device, "--max-payload-mb", "32")  # fmt: skip
        for label, arguments in (("off", ("--batch", "1")), ("on", ("--batch", wanted.batch))):
            with served(home, *common, *arguments) as server:
                load(server, 8, 2, bodies)
                for clients in (1, 8, 32):
                    before = [server.metric(each) for each in _COUNTERS]
                    began = time.monotonic()
                    tally = load(server, clients, wanted.seconds, bodies)
                    took = time.monotonic() - began
                    passes, frames, busy = (
                        server.metric(each) - was for each, was in zip(_COUNTERS, before, strict=True)
                    )
                    print(row(label, clients, tally, took, frames / passes, busy / took), flush=True)
                    assert set(tally.statuses) == {200}, tally.statuses
        if wanted.minutes:
            with served(home, *common, "--batch", wanted.batch) as server:
                memory(server, wanted.minutes, bodies)


_COUNTERS = ("vsr_batch_frames_count", "vsr_batch_frames_sum", "vsr_device_seconds_total")


def memory(server: Served, minutes: float, bodies: list[tuple[bytes, str, str]]) -> None:
    """Stills of all types, clips whole and streamed, bad requests; resident memory minute by minute."""
    mixed = [
        *bodies,
        (still("png", 200, 150), "image/png", "/invocations?model=net"),
        (still("webp", 96, 64), "image/webp", "/invocations?scale=3"),
        (clip("mp4", 12), "video/mp4", "/invocations?preset=ultrafast"),
        (clip("mp4", 48), "video/mp4", "/invocations?preset=ultrafast&stream=true"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "image/png", "/invocations"),
    ]
    found = []
    for minute in range(max(2, round(minutes))):
        tally = load(server, 8, 60, mixed)
        found.append(server.metric("process_resident_memory_bytes") / 2**20)
        print(
            f"minute {minute + 1}: {found[-1]:.0f} MiB, answers {dict(sorted(tally.statuses.items()))}",
            flush=True,
        )
    growth = found[-1] - found[min(1, len(found) - 1)]
    print(f"growth after the second minute: {growth:+.0f} MiB")


if __name__ == "__main__":
    main()
