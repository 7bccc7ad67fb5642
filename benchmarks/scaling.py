"""The same clip with 1, 2, 4 and 8 workers: what the machinery costs, a worker's start, the merge.

    python benchmarks/scaling.py                     a network stub that sleeps 250 ms per small frame
    python benchmarks/scaling.py --workers 1 2 --frames 96

Workers are real processes (`vsr worker`) with real leases, decoders, encoders, checks and receipts; only the
network is a stub that sleeps, so that cores do not decide. Efficiency is that of the steady state: frames
per second between the last worker's first frame and the first moment at which a worker finds nothing left.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

STUB = """
import os, sys, time
from vsr_hpc.system.environment import set_thread_policy
set_thread_policy()
import numpy as np
from vsr_hpc.work import worker
from vsr_hpc.system.interrupts import StopFlag
from vsr_hpc.media.picture import Frame

class Sleeps:
    batch, clipped, lanes = 1, 0, 1
    def __init__(self, seconds, factor, log):
        self.seconds, self.factor, self.log = seconds, factor, open(log, "a", buffering=1)
    def canary(self):  # the last step before the first lease: all workers begin together
        open(self.log.name + ".ready", "w").close()
        while not os.path.exists(go):
            time.sleep(0.01)
        return ""
    def __call__(self, frames):
        time.sleep(self.seconds * len(frames))
        block = np.ones((self.factor, self.factor), np.uint8)
        double = [Frame(index=f.index, planes=tuple(np.kron(p, block) for p in f.planes)) for f in frames]
        self.log.write(f"{time.time()}\\n" * len(frames))
        return double

run, seconds, go, log = sys.argv[1], float(sys.argv[2]), sys.argv[3], sys.argv[4]
worker.build_upscaler = lambda plan, threads: (Sleeps(seconds, 2, log), {"device": "stub"})
options = worker.WorkerOptions(threads=1, does_finish=False)
worker.work(run, options, StopFlag())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    workers: int
    frames: int
    fps: float
    wall_s: float
    ready_s: float
    """Until the slowest worker was ready for its first lease; all of them started at once."""


def main() -> None:
    wanted = _arguments()
    with tempfile.TemporaryDirectory(prefix="vsr-scaling-") as name:
        folder = Path(name)
        clip = _clip(folder, wanted.frames)
        found = []
        for count in wanted.workers:
            found.append(_measure(folder, clip, count, wanted))
            alone = found[0].fps / found[0].workers
            last = found[-1]
            print(
                f"{last.workers} workers: {last.fps:.2f} frames/s in steady state, efficiency "
                f"{last.fps / last.workers / alone:.1%}; from go to end {last.wall_s:.1f} s, "
                f"all ready after {last.ready_s:.1f} s; load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
        if wanted.has_startup:
            _startup(clip, folder, wanted.model)
        _merge(folder, wanted.merge_mib)


def _measure(folder: Path, clip: Path, count: int, wanted: argparse.Namespace) -> Steady:
    """One run with `count` workers of its own."""
    from vsr_hpc.job.reading import parse_job
    from vsr_hpc.planning.planner import make_plan
    from vsr_hpc.planning.preparation import prepare
    from vsr_hpc.run.run import Run
    from vsr_hpc.storage.folder_store import FolderStore

    place = folder / f"run{count}"
    job = parse_job(
        {
            "input": str(clip),
            "output": str(folder / f"out{count}.mkv"),
            "model": "nearest",
            "picture": {"scale": 2},
            "video": {"preset": "ultrafast", "threads": 1},
            "run": {
                "chunk_s": wanted.chunk_frames / 24,
                "shard_s": 1e-3,
                "location": str(place),
                "workers": count,
            },
        },
        "scaling",
    )
    run = Run.create(FolderStore(place), job)
    plan, timeline = make_plan(prepare(job), lambda prepared, index: None)
    run.write_plan(plan, timeline)
    run.start_round("local", count, plan.shard_count)
    began = time.time()
    logs = [folder / f"log{count}-{i}" for i in range(count)]
    go = folder / f"go{count}"
    command = [sys.executable, "-c", STUB, str(place), str(wanted.sleep_ms / 1e3), str(go)]
    workers = [subprocess.Popen([*command, str(log)]) for log in logs]
    try:
        while not all(log.with_name(f"{log.name}.ready").exists() for log in logs):
            if any(each.poll() is not None for each in workers):
                sys.exit("a worker ended before it began")
            time.sleep(0.05)
        ready = time.time()
        go.touch()
        codes = [each.wait() for each in workers]
    finally:
        for each in workers:
            each.kill()
            each.wait()
    wall = time.time() - ready
    if any(codes) or run.missing():
        sys.exit(f"workers ended with {codes}, {len(run.missing())} shards are missing")
    times = [[float(line) for line in log.read_text().split()] for log in logs]
    if not all(times):
        sys.exit("a worker found nothing left to do: use more --frames")
    start, stop = max(each[0] for each in times), min(each[-1] for each in times)
    inside = sum(start < moment <= stop for each in times for moment in each)
    shutil.rmtree(place)
    return Steady(
        workers=count,
        frames=plan.frames,
        fps=inside / (stop - start),
        wall_s=wall,
        ready_s=ready - began,
    )


def _startup(clip: Path, folder: Path, model: str) -> None:
    from vsr_hpc.bench.speed import bench_job, worker_startup

    job = bench_job(clip, folder, model, {}, {})
    rounds = [worker_startup(job, folder, len(os.sched_getaffinity(0))) for _ in range(3)]
    parts = {part: statistics.median(each[part] for each in rounds) for part in rounds[0]}
    print(f"start of a worker with {model}: {sum(parts.values()):.2f} s until its first frame:")
    print("  " + ", ".join(f"{part} {spent:.2f}" for part, spent in parts.items()))


def _merge(folder: Path, size_mib: int) -> None:
    """Packets of a large lossless segment merged, flushed and hashed, against `cp` and sync of the same."""
    from vsr_hpc.bench.made_clip import make_demo_clip
    from vsr_hpc.job.reading import parse_job
    from vsr_hpc.media.clip.reader import read_frames
    from vsr_hpc.media.encode.segment_writer import SegmentWriter
    from vsr_hpc.media.merge.merge import merge
    from vsr_hpc.media.merge.request import MergeRequest
    from vsr_hpc.media.segment import SegmentPart
    from vsr_hpc.media.timeline import Timeline
    from vsr_hpc.planning.planner import make_plan
    from vsr_hpc.planning.preparation import prepare
    from vsr_hpc.planning.requests import streams_request

    seconds = max(1.0, size_mib / 20)
    clip = make_demo_clip(folder / "large.mp4", seconds=seconds, size=(640, 360), audio=True)
    job = parse_job(
        {
            "input": str(clip),
            "output": str(folder / "merged.mkv"),
            "model": "nearest",
            "picture": {"scale": 2},
            "video": {"qp": 1, "preset": "ultrafast", "threads": 2},
        },
        "scaling",
    )
    prepared = prepare(job)
    plan, packed = make_plan(prepared, lambda ready, index: None)
    timeline = Timeline.from_bytes(packed)
    assert plan.encoding is not None
    from vsr_hpc.engine.settings import resolve_settings
    from vsr_hpc.engine.upscaler import Upscaler
    from vsr_hpc.planning.requests import upscale_request

    settings = resolve_settings(upscale_request(job, plan.picture), plan.card, plan.clip.picture)
    upscaler = Upscaler(plan.card, None, plan.clip.picture, plan.picture, settings, threads=1)
    segment = folder / "segment.mp4"
    rate = plan.clip.frame_rate
    assert rate is not None
    with SegmentWriter(segment, plan.encoding, plan.picture, time_base=1 / rate) as writer:
        for frame in read_frames(plan.clip, timeline, prepared.source, 0, len(timeline)):
            for bigger in upscaler([frame]):
                writer.write(bigger)
        facts = writer.close()
    merges, copies = [], []
    for _ in range(3):
        began = time.perf_counter()
        part = SegmentPart(
            fetch=lambda: segment, frames=facts.frames, sha256=facts.sha256, done=lambda path: None
        )
        request = MergeRequest(
            clip=plan.clip, timeline=timeline, source=prepared.source, picture=plan.picture,
            encoding=plan.encoding, streams=streams_request(job),
        )  # fmt: skip
        report = merge((part,), request, folder / "merged.mkv")
        merges.append(report.size_bytes / (time.perf_counter() - began) / 1e9)
        began = time.perf_counter()
        subprocess.run(["cp", str(segment), str(folder / "copy")], check=True)
        subprocess.run(["sync", str(folder / "copy")], check=True)
        copies.append(facts.size_bytes / (time.perf_counter() - began) / 1e9)
    print(
        f"merge of {facts.size_bytes / 2**20:.0f} MiB in {facts.frames} packets: {max(merges):.2f} GB/s "
        f"(read, checked by sha256, written, flushed, hashed); cp and sync: {max(copies):.2f} GB/s"
    )


def _clip(folder: Path, frames: int) -> Path:
    from vsr_hpc.bench.made_clip import make_demo_clip

    return make_demo_clip(folder / "clip.mp4", seconds=frames / 24, size=(96, 64), audio=False)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--frames", type=int, default=480)
    parser.add_argument("--chunk-frames", type=int, default=6)
    parser.add_argument("--sleep-ms", type=float, default=250)
    parser.add_argument("--model", default="lanczos", help="for a worker's start: a name or a weights file")
    parser.add_argument("--no-startup", dest="has_startup", action="store_false")
    parser.add_argument("--merge-mib", type=int, default=64, help="size of the merged segment, about")
    return parser.parse_args()


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    main()
