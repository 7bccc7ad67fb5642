"""Many shards, many workers, no pixels: what the machinery alone asks of a store.

    python -m tests.scale --shards 10000 --workers 64 --on folder
    python -m tests.scale --shards 10000 --workers 64 --on s3         against a moto server on this machine

Real workers claim, publish a few bytes for a segment and write receipts; only the pixels are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from tests.moto_server import moto_server
from tests.runs import planned_run, tiny_job
from vsr_hpc.planning.plan import Shard
from vsr_hpc.run.documents import SegmentFacts
from vsr_hpc.run.run import Run
from vsr_hpc.run.status import read_status
from vsr_hpc.storage.folder_store import FolderStore
from vsr_hpc.storage.opening import open_store
from vsr_hpc.storage.store import Store
from vsr_hpc.system.interrupts import StopFlag
from vsr_hpc.work import worker
from vsr_hpc.work.pipeline import ShardWork, Workbench


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    shards: int
    workers: int
    seconds: float
    requests: Counter[str]
    made: Counter[int]
    """How often each shard was made."""
    missing: int
    status_s: float

    @property
    def requests_per_shard(self) -> float:
        return sum(self.requests.values()) / self.shards

    @property
    def made_twice(self) -> int:
        return sum(count > 1 for count in self.made.values())


class CountingFolder(FolderStore):
    """A folder that counts what is asked of it."""

    def __init__(self, root: Path, requests: Counter[str]) -> None:
        super().__init__(root)
        self.requests = requests

    def within(self, folder: str) -> CountingFolder:
        return CountingFolder(Path(self.uri) / folder, self.requests)


def _counted(name: str) -> Callable[..., Any]:
    original = getattr(FolderStore, name)

    def method(self: CountingFolder, *arguments: object) -> Any:
        self.requests[name] += 1
        return original(self, *arguments)

    return method


for _name in ("put", "create", "read", "exists", "list", "delete", "put_file"):
    setattr(CountingFolder, _name, _counted(_name))


def measure(run: Run, workers: int, stores: list[Store]) -> Scale:
    """Let `workers` workers empty the run; each of them opens one of `stores`."""
    made: Counter[int] = Counter()
    supply = iter(stores)

    def no_pixels(bench: Workbench, shard: Shard, **ignored: object) -> ShardWork:
        made[shard.index] += 1
        path = bench.scratch / f"{shard.name}-{threading.get_ident()}.mp4"
        path.write_bytes(b"segment")
        name = f"segments/{shard.first_chunk:06d}-{'0' * 16}.mp4"
        bench.publish(name, path)
        facts = SegmentFacts(
            chunk=shard.first_chunk, name=name, frames=shard.frames, size_bytes=7, sha256="0"
        )
        return ShardWork(segments=(facts,), seconds={}, clipped=0, repeated=0)

    stub = mock.Mock(batch=1, clipped=0, lanes=1)
    options = worker.WorkerOptions(threads=1, does_finish=False)
    with (
        mock.patch.object(worker, "make_segments", no_pixels),
        mock.patch.object(worker, "build_upscaler", lambda plan, threads: (stub, {"device": "none"})),
        mock.patch("vsr_hpc.run.run.open_store", lambda uri: next(supply)),
        mock.patch("vsr_hpc.work.workbench.open_source", mock.Mock()),
    ):
        threads = [
            threading.Thread(target=worker.work, args=(run.uri, options, StopFlag())) for _ in range(workers)
        ]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - began
    requests: Counter[str] = Counter()
    for store in {id(store): store for store in stores}.values():
        requests += store.requests  # type: ignore[attr-defined]
    began = time.monotonic()
    status = read_status(Run(open_store(run.place_uri)))
    return Scale(
        shards=run.plan.shard_count,
        workers=workers,
        seconds=seconds,
        requests=requests,
        made=made,
        missing=status.shards_missing,
        status_s=time.monotonic() - began,
    )


@contextlib.contextmanager
def on_folder(folder: Path, shards: int, workers: int) -> Iterator[Scale]:
    root = folder / "run"
    _plan_into(FolderStore(root), folder, shards, workers)
    counting = CountingFolder(root, Counter())
    yield measure(Run.open(str(root)), workers, [counting] * workers)


@contextlib.contextmanager
def on_s3(folder: Path, shards: int, workers: int) -> Iterator[Scale]:
    with moto_server() as moto, mock.patch.dict("os.environ", moto.environment):
        moto.make_bucket("scale")
        uri = "s3://scale/run"
        _plan_into(open_store(uri), folder, shards, workers)
        yield measure(Run.open(uri), workers, [open_store(uri) for _ in range(workers)])


def _plan_into(store: Store, folder: Path, shards: int, workers: int) -> None:
    small = planned_run(tiny_job(folder, run={"workers": workers}))
    plan = small.plan.model_copy(
        update={
            "chunk_borders": tuple(range(0, 2 * shards + 1, 2)),
            "shard_borders": tuple(range(shards + 1)),
        }
    )
    run = Run.create(store, small.job())
    run.write_plan(plan, small.timeline.to_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--on", choices=("folder", "s3"), default="folder")
    asked = parser.parse_args()
    place = on_folder if asked.on == "folder" else on_s3
    with tempfile.TemporaryDirectory() as name, place(Path(name), asked.shards, asked.workers) as scale:
        print(f"{asked.on}: {scale.shards} shards, {scale.workers} workers, {scale.seconds:.1f} s")
        print(f"requests per shard {scale.requests_per_shard:.2f}: {dict(scale.requests.most_common())}")
        print(f"made twice {scale.made_twice}, missing {scale.missing}, status took {scale.status_s:.2f} s")


if __name__ == "__main__":
    main()
