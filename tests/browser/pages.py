"""Runs to look at: a small real one with interruptions, and the data of a very large one."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from tests.runs import finished, planned_run, tiny_job
from vsr_hpc.report.history import Bar, Break, Lane, assemble
from vsr_hpc.report.report import shown_history
from vsr_hpc.run.documents import Heartbeat
from vsr_hpc.run.liveness import Process
from vsr_hpc.run.run import Run


def made_run(folder: Path, **sections: Any) -> Run:
    """A finished run: one worker died on the way, another was stopped, a third made everything."""
    run = planned_run(tiny_job(folder, **sections))
    for name, shard, cause in (("node-7-4711-dead", 1, "died"), ("node-8-4712-gone", 3, "stopped")):
        run.beat(_beat(name, cause))
        lease = run.take(f"{shard:05d}", 1, name, name[:6])
        assert lease is not None
        if cause == "stopped":
            run.give_back(lease, "stopped", name[:6], "Reason.SPOT: the node is taken away in two minutes")
    finished(run)
    return run


def _beat(name: str, cause: str) -> Heartbeat:
    """Of a process that is known to be gone: its lease may be taken at once."""
    here, now = Process.current(), time.time()
    return Heartbeat(
        worker=name,
        host=here.host,
        node=name[:6],
        pid=2**22 + 1,
        process_start=1,
        boot=here.boot,
        round=1,
        started_s=now,
        updated_s=now + 0.2,
        state="left" if cause == "stopped" else "working",
        note="spot" if cause == "stopped" else "",
    )


def large_history(shards: int = 10_000, workers: int = 64) -> dict[str, Any]:
    """What a film of many hours leaves behind on a cluster of Spot nodes."""
    bars, breaks, free = [], [], [3.0 * lane for lane in range(workers)]
    for shard in range(shards):
        lane = min(range(workers), key=free.__getitem__)
        took = 40 + 8 * math.sin(shard / 37) + 5 * math.sin(lane)
        start = free[lane]
        if shard % 251 == 77:
            breaks.append(
                Break(
                    lane=lane,
                    start_s=start,
                    stop_s=start + took / 2,
                    shard=shard,
                    cause="died",
                    text="silence",
                )
            )
            start += took / 2 + 95
        psnr = 36 + 4 * math.sin(shard / 11)
        bars.append(
            Bar(
                lane=lane, start_s=start, stop_s=start + took, shard=shard, frames=1080,
                generation=1 + (shard % 251 == 77), worst_psnr_db=round(psnr, 2),
            )
        )  # fmt: skip
        free[lane] = start + took + 0.4
    made = [sum(1 for bar in bars if bar.lane == lane) for lane in range(workers)]
    lanes = tuple(
        Lane(
            worker=f"gpu-{lane:03d}-{4000 + lane}-5e{lane:02x}", node=f"gpu-{lane:03d}", device="NVIDIA L4",
            round=1, restart=0, start_s=3.0 * lane - 2, stop_s=free[lane], end="done", shards=made[lane],
            frames=1080 * made[lane],
            seconds={
                "decode": 5.0 * made[lane], "decode_wait": 33.0 * made[lane], "device": 37.0 * made[lane],
                "device_wait": 1.2 * made[lane], "encode": 21.0 * made[lane], "check": 6.0 * made[lane],
                "store": 0.8 * made[lane], "encode_wait": 10.0 * made[lane],
            },
        )
        for lane in range(workers)
    )  # fmt: skip
    return shown_history(assemble(lanes, tuple(bars), tuple(breaks)))
