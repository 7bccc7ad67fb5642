"""What a worker's start consists of, timed in a fresh process. Run by `vsr bench`; prints JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Arguments: the job as JSON, threads, the time at which this process was asked for."""
    path, threads, asked_at = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    parts: dict[str, float] = {"interpreter": time.time() - asked_at}
    began = time.perf_counter()

    def note(part: str) -> None:
        nonlocal began
        now = time.perf_counter()
        parts[part], began = now - began, now

    from vsr_hpc.system.environment import set_thread_policy

    set_thread_policy()
    import torch  # noqa: F401

    note("torch")
    from vsr_hpc.job.spec import JobSpec
    from vsr_hpc.media.clip.probe import index_clip
    from vsr_hpc.media.clip.reader import read_frames
    from vsr_hpc.planning.preparation import prepare
    from vsr_hpc.work.workbench import build_upscaler

    note("other imports")
    prepared = prepare(JobSpec.model_validate_json(path.read_bytes()))
    timeline = index_clip(prepared.clip, prepared.source)
    note("clip")
    upscaler, _ = build_upscaler(prepared, threads)
    note("weights")
    upscaler.canary()
    note("canary")
    frames = list(read_frames(prepared.clip, timeline, prepared.source, 0, 1))
    note("first frame decoded")
    upscaler(frames)
    note("first frame upscaled")
    sys.stdout.write(json.dumps({part: round(spent, 4) for part, spent in parts.items()}) + "\n")
