"""`vsr bench`: how fast a model runs here, alone and from file to file, stage by stage, against its floor.

What is measured is what a worker does: its upscaler, decoder, encoder and check. Each figure is the median of
several rounds. Nothing measured here changes a byte of any output.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from vsr_hpc.bench.device_rates import Floor, matrix_gflops, memory_gb_per_s, network_floor, seconds_of
from vsr_hpc.bench.made_clip import make_demo_clip
from vsr_hpc.engine.device_facts import device_facts
from vsr_hpc.engine.upscaler import Upscaler
from vsr_hpc.errors import BackendError, JobError
from vsr_hpc.forecast.profiles import Profile
from vsr_hpc.job.reading import parse_job
from vsr_hpc.job.spec import JobSpec
from vsr_hpc.media.clip.reader import read_frames
from vsr_hpc.media.merge.merge import merge
from vsr_hpc.media.merge.request import MergeRequest
from vsr_hpc.media.picture import Frame
from vsr_hpc.media.segment import SegmentFacts as WrittenFacts
from vsr_hpc.media.segment import SegmentPart
from vsr_hpc.media.timeline import Timeline
from vsr_hpc.models.cards import card_hash
from vsr_hpc.planning.plan import Plan, Shard
from vsr_hpc.planning.planner import make_plan
from vsr_hpc.planning.preparation import prepare
from vsr_hpc.planning.requests import streams_request
from vsr_hpc.version import VERSION
from vsr_hpc.work.pipeline import Workbench, make_segments
from vsr_hpc.work.workbench import build_upscaler, workbench

_HELD_FRAMES = 24
"""At most so many frames are held, in and out, while a stage is measured alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedMeasurement:
    """A profile, and what it does not keep."""

    profile: Profile
    floor: Floor | None
    startup: dict[str, float]
    """Seconds of a worker's start, part by part."""
    frames: int
    rounds: int
    lanes: int
    cpu_s_per_frame: float
    """Of the whole pipeline: seconds of all cores together, in this process."""
    load: float
    """Processes that wanted a core while the measurement ran, this one among them."""

    @property
    def slowest_fps(self) -> float:
        """Of the stages, each on its own with the whole machine: the most that a pipeline could reach."""
        profile = self.profile
        return min(1 / seconds for stage, seconds in profile.stage_seconds.items() if seconds > 0)


def bench_job(
    clip: Path, folder: Path, model: str, picture: dict[str, object], video: dict[str, object]
) -> JobSpec:
    """The job that is measured; its output lies in `folder`, which is thrown away."""
    document = {
        "input": str(clip.resolve()),
        "output": str(folder / "out.mkv"),
        "model": model,
        "picture": {key: value for key, value in picture.items() if value is not None},
        "video": {key: value for key, value in video.items() if value is not None},
    }
    return parse_job(document, "vsr bench")


def measure(
    model: str,
    *,
    clip: Path | None = None,
    size: tuple[int, int] = (320, 180),
    picture: dict[str, object] | None = None,
    video: dict[str, object] | None = None,
    frames: int = 48,
    rounds: int = 3,
    threads: int = 0,
    has_encoder: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> SpeedMeasurement:
    """Measure a model on a clip, or on a made-up one of `size`."""
    threads = threads or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="vsr-bench-") as name:
        folder = Path(name)
        if clip is None:
            say(f"making a clip of {frames} frames of {size[0]}x{size[1]}")
            clip = make_demo_clip(folder / "clip.mp4", seconds=frames / 24, size=size, audio=False)
        job = bench_job(clip, folder, model, picture or {}, video or {})
        say("starting a worker's parts in a process of their own")
        startup = worker_startup(job, folder, threads)
        return _measure(job, folder, threads, frames, rounds, has_encoder, startup, say)


def _measure(
    job: JobSpec,
    folder: Path,
    threads: int,
    frames: int,
    rounds: int,
    has_encoder: bool,
    startup: dict[str, float],
    say: Callable[[str], None],
) -> SpeedMeasurement:
    prepared = prepare(job)
    if prepared.encoding is None:
        raise JobError("vsr bench: measures clips, not folders of stills; give a clip, or none")
    plan, packed = make_plan(prepared, lambda ready, timeline: None)
    timeline = Timeline.from_bytes(packed)
    frames = min(frames, plan.frames)
    plan = plan.model_copy(update={"chunk_borders": (0, frames), "shard_borders": (0, 1)})
    upscaler, record = build_upscaler(plan, threads)
    bench = workbench(plan, timeline, upscaler, folder, threads)
    if not has_encoder:
        bench = _without_encoder(bench, frames)
    device, card = torch.device(record["device"]), plan.card
    held = list(itertools.islice(_decode(bench, frames), _HELD_FRAMES))
    say("each stage alone")
    stages = _stages(bench, upscaler, held, frames, rounds)
    network_fps = None
    floor = None
    gflops = matrix_gflops(device, upscaler.precision, lanes=bench.lanes)
    bandwidth = memory_gb_per_s(device)
    if upscaler.network is not None:
        say("the network alone")
        run = upscaler.network_pass()
        spent = statistics.median(seconds_of(run, device, rounds=2 * rounds, lanes=bench.lanes))
        network_fps = upscaler.batch / spent
        picture = plan.clip.picture
        if card.kind == "image":
            floor = network_floor(
                card,
                upscaler.network,
                (picture.width, picture.height),
                gflops=gflops,
                gb_per_s=bandwidth,
            )
    say(f"the whole pipeline, {rounds} times {frames} frames")
    whole, cpu_s, merge_rate = _pipeline(bench, folder, frames, rounds, has_encoder)
    source, out = plan.clip.picture, plan.picture
    profile = Profile(
        model=card.name,
        card_hash=card_hash(card),
        device=device_facts().name,
        kind=device_facts().kind,
        threads=threads,
        width=source.width,
        height=source.height,
        out_width=out.width,
        out_height=out.height,
        scale=out.width / source.width,
        precision=upscaler.precision,
        batch=upscaler.batch,
        codec=prepared.encoding.encoder if has_encoder else "",
        operations_per_frame=float(card.operations_per_pixel) * source.width * source.height,
        network_fps=network_fps,
        pipeline_fps=frames / whole,
        stage_seconds=stages,
        matrix_gflops=gflops,
        memory_gb_per_s=bandwidth,
        floor_fps=1 / floor.seconds if floor else None,
        startup_s=round(sum(startup.values()), 3),
        merge_gb_per_s=merge_rate,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=_versions(),
    )
    return SpeedMeasurement(
        profile=profile,
        floor=floor,
        startup=startup,
        frames=frames,
        rounds=rounds,
        lanes=bench.lanes,
        cpu_s_per_frame=cpu_s / frames,
        load=os.getloadavg()[0],
    )


def _versions() -> dict[str, str]:
    found = {"vsr": VERSION, "python": platform.python_version()}
    for name in ("torch", "av", "numpy"):
        found[name] = importlib.metadata.version(name)
    return found


# Stages ----------------------------------------------------------------------------------------------------
def _decode(bench: Workbench, frames: int) -> Iterator[Frame]:
    return read_frames(
        bench.plan.clip, bench.timeline, bench.source, 0, frames, threads=bench.decoder_threads
    )


def _stages(
    bench: Workbench, upscaler: Upscaler, held: list[Frame], frames: int, rounds: int
) -> dict[str, float]:
    """Seconds per frame of each stage with the machine to itself."""
    bigger = _in_lanes(upscaler, held, bench.lanes)
    found = {
        "decode": _median(lambda: _count(_decode(bench, frames)), rounds) / frames,
        "device": _median(lambda: _in_lanes(upscaler, held, bench.lanes), rounds) / len(held),
    }
    path = bench.scratch / f"alone{bench.plan.encoding.suffix if bench.plan.encoding else ''}"

    def encode() -> None:
        path.unlink(missing_ok=True)
        writer = bench.new_writer(path)
        for frame in bigger:
            writer.write(frame)
        writer.close()

    found["encode"] = _median(encode, rounds) / len(bigger)
    if path.exists():
        found["check"] = _median(lambda: _count(bench.read_back(path)[1]), rounds) / len(bigger)
        path.unlink()
    return found


def _in_lanes(upscaler: Upscaler, frames: list[Frame], lanes: int) -> list[Frame]:
    """All frames through the device as the pipeline sends them."""
    batches = [frames[i : i + upscaler.batch] for i in range(0, len(frames), upscaler.batch)]
    if lanes == 1:
        return [frame for batch in batches for frame in upscaler(batch)]
    with ThreadPoolExecutor(max_workers=lanes) as pool:
        return [frame for done in pool.map(upscaler, batches) for frame in done]


def _pipeline(
    bench: Workbench, folder: Path, frames: int, rounds: int, has_encoder: bool
) -> tuple[float, float, float | None]:
    """(median seconds of a shard, median seconds of CPU time of it, GB/s of a merge or None)."""
    shard = Shard(index=0, first_chunk=0, last_chunk=1, start=0, stop=frames)
    spent: list[float] = []
    cpu: list[float] = []
    rate: float | None = None
    kept: list[Path] = []
    bench = replace(bench, publish=lambda name, path: kept.append(path))
    for _ in range(rounds):
        began, began_cpu = time.perf_counter(), time.process_time()
        made = make_segments(bench, shard, on_frames=lambda count: None, should_drop=lambda left: False)
        spent.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
        if has_encoder:
            segment = made.segments[0]
            rate = max(rate or 0.0, _merge_rate(bench.plan, bench, kept[-1], segment.sha256, folder))
        for path in kept:
            path.unlink(missing_ok=True)
        kept.clear()
    return statistics.median(spent), statistics.median(cpu), rate


def _merge_rate(plan: Plan, bench: Workbench, path: Path, sha256: str, folder: Path) -> float:
    """GB/s of packets merged, flushed to disk and hashed; of a small file, so start-up weighs."""
    assert plan.encoding is not None
    part = SegmentPart(fetch=lambda: path, frames=plan.frames, sha256=sha256, done=lambda path: None)
    began = time.perf_counter()
    request = MergeRequest(
        clip=plan.clip,
        timeline=bench.timeline,
        source=bench.source,
        picture=plan.picture,
        encoding=plan.encoding,
        streams=streams_request(plan.job),
        frames=(plan.start, plan.stop),
    )
    report = merge((part,), request, folder / "merged.mkv")
    return report.size_bytes / (time.perf_counter() - began) / 1e9


def _without_encoder(bench: Workbench, frames: int) -> Workbench:
    """The same work with an encoder that forgets; the check then holds the inputs against themselves."""
    picture = bench.plan.clip.picture
    return replace(bench, new_writer=_NullWriter, read_back=lambda path: (picture, _decode(bench, frames)))


class _NullWriter:
    """Takes frames and forgets them: what remains is everything but the encoder."""

    def __init__(self, path: Path) -> None:
        self._frames = 0

    def write(self, frame: Frame) -> None:
        self._frames += 1

    def close(self) -> WrittenFacts:
        return WrittenFacts(frames=self._frames, packets=self._frames, size_bytes=0, sha256="0" * 64)

    def abort(self) -> None:
        pass


def _median(run: Callable[[], object], rounds: int) -> float:
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def _count(frames: Iterator[Frame]) -> int:
    return sum(1 for _ in frames)


# Start-up --------------------------------------------------------------------------------------------------
def worker_startup(job: JobSpec, folder: Path, threads: int) -> dict[str, float]:
    """Seconds until a fresh process has its first frame upscaled, part by part."""
    document = folder / "job.json"
    document.write_text(job.model_dump_json(by_alias=True), encoding="utf-8")
    program = "from vsr_hpc.bench.startup import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, str(document), str(threads), repr(time.time())],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise BackendError(f"a worker's parts did not start: {lines[-1] if lines else done.returncode}")
    parts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return parts
