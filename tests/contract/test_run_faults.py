"""Faults that once gave a wrong output or a stuck run: late writers, changed sources, lost segments."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from tests import clips
from tests.commands import vsr
from tests.moto_server import Moto
from tests.runs import finished, planned_run, tiny_job
from vsr_hpc.errors import BackendError, JobError, ModelError, OutageError, SourceChangedError
from vsr_hpc.launch import ensure_plan, retry, run_here, submit
from vsr_hpc.media.clip.reader import read_segment
from vsr_hpc.models import weights
from vsr_hpc.run import model_copy
from vsr_hpc.run.run import Run
from vsr_hpc.storage.block_cache import SourceSettings
from vsr_hpc.storage.folder_store import FolderStore
from vsr_hpc.storage.opening import open_source
from vsr_hpc.storage.s3_connection import S3Options
from vsr_hpc.storage.s3_store import S3Store
from vsr_hpc.system.interrupts import Reason, StopFlag
from vsr_hpc.work import worker
from vsr_hpc.work.finish import ShardsLostError, finish
from vsr_hpc.work.worker import WorkerOptions, work

_LOSSLESS = {"video": {"lossless": True}}


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def _before_shard(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Call `act` in a worker of this process before it makes its shard of this number, from 1 on."""
    real, made = worker.make_segments, [0]

    def make(*args: Any, **named: Any) -> Any:
        made[0] += 1
        if made[0] == number:
            act()
        return real(*args, **named)

    monkeypatch.setattr(worker, "make_segments", make)


def _stop_after(monkeypatch: pytest.MonkeyPatch, shards: int) -> StopFlag:
    stop = StopFlag()
    _before_shard(monkeypatch, shards, lambda: stop.set(Reason.INTERRUPTED, 60))
    return stop


def _luma(path: Path | str) -> list[np.ndarray[Any, Any]]:
    return [frame.planes[0] for frame in read_segment(Path(path))]


# Frames of two plans


def test_a_worker_of_an_earlier_edition_writes_into_its_own_place_and_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = planned_run(tiny_job(tmp_path, **_LOSSLESS))
    newer: list[Run] = []

    def start_over() -> None:
        monkeypatch.setattr("vsr_hpc.launch._refuse_living", lambda run: None)  # it is silent for too long
        submitted = submit(tiny_job(tmp_path, model="bicubic", **_LOSSLESS), is_new=True)
        ensure_plan(submitted.run, is_new=True)
        newer.append(submitted.run)

    _before_shard(monkeypatch, 3, start_over)
    outcome = work(old.place_uri, WorkerOptions(threads=1, waits=False), StopFlag())
    assert not outcome.is_complete and newer[0].finished() == frozenset()
    assert not (tmp_path / "out.mkv").exists()
    done = finished(newer[0])
    alone = tiny_job(tmp_path, model="bicubic", output=str(tmp_path / "alone.mkv"), **_LOSSLESS)
    assert done.sha256 == finished(planned_run(alone)).sha256


def test_a_merge_of_an_earlier_edition_is_not_published(tmp_path: Path) -> None:
    old = planned_run(tiny_job(tmp_path))
    work(old.place_uri, WorkerOptions(threads=1, does_finish=False), StopFlag())
    kept = Run(FolderStore(Path(old.place_uri)), FolderStore(Path(old.uri)), old.number)
    receipts = kept.receipts()
    Run.create(FolderStore(Path(old.uri)), tiny_job(tmp_path, model="bicubic"), replaces=old)
    assert receipts and kept.is_superseded()
    with pytest.raises(JobError, match="newer run"):
        finish(kept)
    assert not (tmp_path / "out.mkv").exists()


def test_a_frozen_worker_that_wakes_after_new_leaves_the_new_output_alone(tmp_path: Path) -> None:
    """A real process, stopped for longer than its lease, as a suspended laptop is."""
    job = tiny_job(tmp_path, frames=96, run={"lease_window_s": 1.0}, **_LOSSLESS)
    old = planned_run(job)
    frozen = subprocess.Popen(
        [sys.executable, "-m", "vsr_hpc", "worker", old.place_uri, "--threads", "1", "-q"],
        stdout=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 90
        while not old.finished() and frozen.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(frozen.pid, signal.SIGSTOP)
        assert len(old.finished()) < old.plan.shard_count, "it was frozen too late to show anything"
        time.sleep(1.5)
        other = tiny_job(tmp_path, frames=96, model="bicubic", run={"lease_window_s": 1.0}, **_LOSSLESS)
        new = submit(other, is_new=True).run
        ensure_plan(new, is_new=True)
        done = run_here(new, StopFlag())
        os.kill(frozen.pid, signal.SIGCONT)
        frozen.wait(60)
    finally:
        frozen.kill()
        frozen.wait()
    assert done is not None
    alone = planned_run(tiny_job(tmp_path, model="bicubic", output=str(tmp_path / "alone.mkv"), **_LOSSLESS))
    assert finished(alone).sha256 == done.sha256
    assert vsr("verify", job.input, job.output, "--deep").code == 0
    assert Run.open(job.output).done() == done


def test_a_run_of_an_older_version_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "old.mkv.vsr").mkdir()
    (tmp_path / "old.mkv.vsr/job.json").write_text("{}")
    for named in ("old.mkv", "old.mkv.vsr"):
        with pytest.raises(JobError, match="older version of vsr_hpc"):
            Run.open(str(tmp_path / named))


# The source


def _replace_clip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = clips.numbered_planes
    monkeypatch.setattr(clips, "numbered_planes", lambda number, *a, **k: real(number + 1000, *a, **k))
    (folder / "clip.mkv").unlink()
    clips.numbered_clip(folder / "clip.mkv", frames=24)


def test_a_source_replaced_between_two_calls_stops_the_run_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned_run(tiny_job(tmp_path, **_LOSSLESS))
    work(run.uri, WorkerOptions(threads=1), _stop_after(monkeypatch, 3))
    assert 0 < len(run.finished()) < run.plan.shard_count
    before = _luma(tmp_path / "clip.mkv")
    _replace_clip(tmp_path, monkeypatch)
    assert not np.array_equal(before[0], _luma(tmp_path / "clip.mkv")[0])
    for words in (("resume", run.uri), ("worker", run.uri), ("resume", run.uri)):
        answer = vsr(*words, "-q")
        assert answer.code == 3 and "clip.mkv: the source changed" in answer.err, answer
    assert not (tmp_path / "out.mkv").exists() and run.poisoned() == ()


def test_a_source_replaced_while_a_shard_is_made_gets_no_receipt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned_run(tiny_job(tmp_path))
    _before_shard(monkeypatch, 3, lambda: _replace_clip(tmp_path, monkeypatch))
    with pytest.raises(SourceChangedError):
        work(run.uri, WorkerOptions(threads=1), StopFlag())
    assert len(run.finished()) == 2


def test_a_source_whose_disk_is_away_for_a_while_is_an_outage_and_blames_no_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned_run(tiny_job(tmp_path))
    clip, away = tmp_path / "clip.mkv", tmp_path / "away.mkv"
    monkeypatch.setattr(worker, "_BACK_OFF_S", 0.01)
    _before_shard(monkeypatch, 3, lambda: clip.rename(away))
    with pytest.raises(OutageError, match=r"clip\.mkv"):
        work(run.uri, WorkerOptions(threads=1), StopFlag())
    with pytest.raises(OutageError, match=r"clip\.mkv"):
        work(run.uri, WorkerOptions(threads=1), StopFlag())
    assert len(run.finished()) == 2 and run.poisoned() == ()
    ends = [run.ending(name, lease.generation) for name, lease in run.leases().items() if lease.is_ended]
    assert {end.cause for end in ends if end is not None} == {"backend"}
    away.rename(clip)
    assert finished(run).frames == 24


def test_a_source_replaced_before_the_merge_is_not_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned_run(tiny_job(tmp_path))
    work(run.uri, WorkerOptions(threads=1, does_finish=False), StopFlag())
    _replace_clip(tmp_path, monkeypatch)
    with pytest.raises(SourceChangedError):
        finish(run)


def test_a_source_that_was_only_copied_back_is_hashed_and_accepted(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    clip = tmp_path / "clip.mkv"
    content = clip.read_bytes()
    clip.unlink()
    clip.write_bytes(content)
    os.utime(clip, ns=(1, 1))
    assert finished(run).frames == 24


def test_one_replaced_image_of_a_sequence_stops_the_shard_that_reads_it(tmp_path: Path) -> None:
    from PIL import Image

    shots = tmp_path / "shots"
    shots.mkdir()
    for number in range(8):
        Image.new("RGB", (64, 48), (number * 9, 0, 0)).save(shots / f"{number:03d}.png")
    job = tiny_job(tmp_path, input=str(shots), images={"rate": 24})
    run = planned_run(job)
    Image.new("RGB", (64, 48), (0, 200, 0)).save(shots / "006.png")
    with pytest.raises(SourceChangedError, match=r"006\.png"):
        work(run.uri, WorkerOptions(threads=1), StopFlag())
    assert run.finished() == frozenset({0})


def _upload(moto: Moto, clip: Path) -> None:
    moto.client("s3").upload_file(str(clip), "films", "in/clip.mkv")


def _read_by_range(monkeypatch: pytest.MonkeyPatch, blocks_held: int = 1) -> None:
    """Workers read their source in blocks of 2 KiB and keep none, as they do with a source of 100 GiB."""
    settings = SourceSettings(
        whole_below_bytes=1, block_bytes=2048, blocks_ahead=0, blocks_held=blocks_held, cache_bytes=1
    )
    monkeypatch.setattr(
        "vsr_hpc.work.workbench.open_source",
        lambda uri, etag=None: open_source(uri, S3Options(tries=2), settings, etag),
    )


@pytest.fixture
def s3_run(moto: Moto, tmp_path: Path) -> Run:
    """A run in a folder whose source is an object, as a job of Slurm."""
    moto.heal()
    clips.numbered_clip(tmp_path / "clip.mkv", frames=240)
    _upload(moto, tmp_path / "clip.mkv")
    return planned_run(tiny_job(tmp_path, input="s3://films/in/clip.mkv", on="slurm", run={"chunk_s": 1.0}))


@pytest.mark.parametrize("is_ranged", [False, True])
def test_a_source_on_s3_that_is_replaced_stops_the_run_and_is_named(
    s3_run: Run, moto: Moto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_ranged: bool
) -> None:
    if is_ranged:
        _read_by_range(monkeypatch)

    def replace() -> None:
        _replace_clip(tmp_path, monkeypatch)
        _upload(moto, tmp_path / "clip.mkv")

    _before_shard(monkeypatch, 3, replace)
    if is_ranged:
        with pytest.raises(SourceChangedError, match=r"s3://films/in/clip\.mkv"):
            work(s3_run.uri, WorkerOptions(threads=1), StopFlag())
        assert len(s3_run.finished()) == 2
    else:  # its copy on this node is still the old one, whole
        work(s3_run.uri, WorkerOptions(threads=1, does_finish=False), StopFlag())
    answer = vsr("worker" if is_ranged else "finish", s3_run.uri)
    assert answer.code == 3 and "s3://films/in/clip.mkv" in answer.err, answer
    assert not (tmp_path / "out.mkv").exists() and s3_run.poisoned() == ()


def test_an_outage_of_a_source_that_is_read_by_range_is_nobodys_fault(
    s3_run: Run, moto: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_BACK_OFF_S", 0.0)
    _read_by_range(monkeypatch)
    _before_shard(
        monkeypatch,
        3,
        lambda: moto.fail(
            "status", method="GET", path="in/clip.mkv", times=10**6, status=503, code="SlowDown"
        ),
    )
    with pytest.raises(OutageError, match="503 SlowDown"):
        work(s3_run.uri, WorkerOptions(threads=1, node="gpu-1"), StopFlag())
    assert len(s3_run.finished()) == 2
    assert s3_run.poisoned() == () and s3_run.control().avoided == frozenset()
    moto.heal()
    work(s3_run.uri, WorkerOptions(threads=1), StopFlag())
    done = s3_run.done()
    assert done is not None and done.frames == 240


# Lost and damaged segments


@pytest.mark.parametrize("how", ["lost", "damaged", "receipt", "foreign receipt"])
def test_a_damaged_shard_is_made_again_and_only_that_one(how: str, tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    wanted = finished(planned_run(tiny_job(tmp_path, output=str(tmp_path / "whole.mkv"))))
    work(run.uri, WorkerOptions(threads=1, does_finish=False), StopFlag())
    segment = Path(run.place_uri) / run.receipt(2).segments[0].name
    receipt = Path(run.place_uri) / "receipts/00002.json"
    if how == "lost":
        segment.unlink()
    elif how == "damaged":
        content = bytearray(segment.read_bytes())
        content[len(content) // 2] ^= 1
        segment.write_bytes(content)
    elif how == "receipt":
        receipt.write_bytes(b"\0\0\0")
    else:
        receipt.write_bytes((Path(run.place_uri) / "receipts/00003.json").read_bytes())
    before = {shard: run.receipt(shard) for shard in run.finished() - {2}}
    with pytest.raises(ShardsLostError, match="00002"):
        finish(run)
    assert run.missing() == {2}
    done = run_here(run, StopFlag())
    assert done is not None and done.sha256 == wanted.sha256
    assert {shard: run.receipt(shard) for shard in before} == before
    assert run.receipt(2, 1).epoch == 1


def test_a_receipt_that_comes_after_its_epoch_was_closed_does_not_count(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    work(run.uri, WorkerOptions(threads=1, does_finish=False), StopFlag())
    late = run.receipt(2)
    run.void(2, 0, "lost its segment")
    run.store.delete("receipts/00002.json")
    assert run.record(late) and run.missing() == {2}
    assert run.record(late.model_copy(update={"epoch": 1})) and run.missing() == frozenset()


def test_resume_and_worker_make_a_lost_segment_again(tmp_path: Path) -> None:
    for command in ("resume", "worker"):
        run = planned_run(tiny_job(tmp_path, output=str(tmp_path / f"{command}.mkv")))
        work(run.uri, WorkerOptions(threads=1, does_finish=False), StopFlag())
        (Path(run.place_uri) / run.receipt(2).segments[0].name).unlink()
        answer = vsr(command, run.uri, "-q")
        assert answer.code == 0, answer
        assert run.done() is not None


# Outages, bans and kills


def test_an_outage_of_the_source_puts_no_node_on_the_avoid_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_BACK_OFF_S", 0.0)
    run = planned_run(tiny_job(tmp_path, on="slurm"))

    def fail(*args: Any, **named: Any) -> None:
        raise OutageError("s3://films/in.mkv: S3 answered 503 SlowDown to GetObject, 8 tries")

    monkeypatch.setattr(worker, "make_segments", fail)
    with pytest.raises(BackendError):
        work(run.uri, WorkerOptions(threads=1, node="gpu-1"), StopFlag())
    assert run.control().avoided == frozenset()


def test_a_node_is_avoided_for_the_round_that_saw_it_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_BACK_OFF_S", 0.0)
    run = planned_run(tiny_job(tmp_path, on="slurm"))

    def fail(*args: Any, **named: Any) -> None:
        raise BackendError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(worker, "make_segments", fail)
    with pytest.raises(BackendError):
        work(run.uri, WorkerOptions(threads=1, node="gpu-1"), StopFlag())
    assert run.control().avoided_in(1) == {"gpu-1"}
    run.start_round("slurm", 1, 1)
    assert run.control().avoided_in(run.round_number()) == frozenset()


def test_six_kills_before_the_first_shard_leave_a_run_that_goes_on(tmp_path: Path) -> None:
    """The whole process group is killed each time, as a person or an OOM of the session does it."""
    job = tiny_job(tmp_path, run={"lease_window_s": 1.0})
    run = planned_run(job)
    for _ in range(6):
        number = run.round_number()
        caller = subprocess.Popen(
            [sys.executable, "-m", "vsr_hpc", "resume", run.uri, "-q"],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 60
        while time.monotonic() < until and caller.poll() is None:
            held = [name for name in run.leases() if name[0].isdigit()]
            if run.round_number() > number and held and not run.finished():
                break
            time.sleep(0.002)
        os.killpg(caller.pid, signal.SIGKILL)
        caller.wait()
        for shard in run.finished():  # it was too quick: the first shard is to stay undone
            run.store.delete(f"receipts/{shard:05d}.json")
    answer = vsr("resume", run.uri, "-q")
    assert answer.code == 0, answer
    assert run.poisoned() == () and run.done() is not None


def test_a_stop_mark_does_not_outlive_the_call_of_a_person(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    run.store.put("control/stop", b"")
    assert work(run.uri, WorkerOptions(threads=1), StopFlag()).shards == 0
    retry(run)
    assert finished(run).frames == 24


def test_a_cancel_without_a_round_is_heard_by_workers_that_were_started_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tiny_job(tmp_path, run={"lease_window_s": 1.0})
    run = Run.create(FolderStore(Path(job.run_uri)), job)
    run.cancel()
    assert run.round_number() == 0 and run.is_cancelled()
    _before_shard(monkeypatch, 1, lambda: time.sleep(1.0))
    assert work(run.uri, WorkerOptions(threads=1), StopFlag()).reason is Reason.CANCELLED


# Names


@pytest.mark.parametrize(
    "name",
    [
        "receipts/.DS_Store", "receipts/Thumbs.db", "receipts/00000.json~", "receipts/._00000.json",
        "leases/.DS_Store", "leases/00000.g1.json~", "rounds/.DS_Store", "rounds/1.json.bak",
        "control/cancelled.txt", "control/poisoned~", "workers/.nfs000000000a1b2c3d00000001",
        "workers/.DS_Store", "places/.DS_Store", "places/2.json~",
    ],
)  # fmt: skip
def test_a_foreign_file_is_ignored_with_a_warning(name: str, tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    path = (Path(run.uri) if name.startswith("places/") else Path(run.place_uri)) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0")
    assert vsr("status", run.uri).code == 0
    assert finished(Run.open(run.uri)).frames == 24
    assert path.exists() and vsr("status", run.uri).code == 0


def test_a_million_shards_have_a_million_names(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    receipt = finished_receipt(run)
    plan = run.plan.model_copy(
        update={"chunk_borders": tuple(range(1_000_002)), "shard_borders": tuple(range(1_000_002))}
    )
    large = Run.create(FolderStore(tmp_path / "large"), run.job())
    large.write_plan(plan, run.timeline.to_bytes())
    for shard in (10_000, 99_999, 100_003, 1_000_000):
        assert large.record(receipt.model_copy(update={"shard": shard}))
        lease = large.take(f"{shard:05d}", 1, "w", "n")
        assert lease is not None and lease.shard == (shard, 0)
    assert large.finished() == {10_000, 99_999, 100_003, 1_000_000}
    assert len(large.missing()) == 1_000_001 - 4
    assert {"10000", "1000000"} <= large.leases().keys()


def finished_receipt(run: Run) -> Any:
    work(run.uri, WorkerOptions(threads=1, does_finish=False), StopFlag())
    return run.receipt(0)


# Weights


def _staged(folder: Path) -> tuple[Run, str]:
    """A run that holds the only copy of its weights; their sha256."""
    mine = folder / "mine.safetensors"
    shutil.copy(weights._SHIPPED / "vsr-clean-x2.safetensors", mine)
    job = tiny_job(folder, model=str(mine))
    run = planned_run(job)
    model_copy.stage(run, job.model)
    mine.unlink()
    (kept,) = run.store.list("weights/")
    return run, kept.name.split("/")[1]


def test_damaged_weights_in_the_cache_are_replaced_by_the_runs_good_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run, sha256 = _staged(tmp_path)
    cached = weights.cache_folder() / sha256 / "mine.safetensors"
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_bytes(b"")
    assert finished(run).frames == 24
    assert hashlib.sha256(cached.read_bytes()).hexdigest() == sha256


@pytest.fixture
def shared_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A node's cache as the bootstrap makes it, outside of the folders that only root may enter."""
    if os.geteuid() != 0:
        pytest.skip("only root can be several users")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for name, mode in (("cache", 0o1777), ("cache/vsr_hpc", 0o755), ("run", 0o755)):
        (folder / name).mkdir()
        (folder / name).chmod(mode)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    yield folder
    os.seteuid(0)
    shutil.rmtree(folder)


def test_users_of_a_node_neither_lock_each_other_out_nor_change_each_others_weights(
    shared_cache: Path,
) -> None:
    run, sha256 = _staged(shared_cache / "run")
    shutil.rmtree(shared_cache / "cache/vsr_hpc/weights", ignore_errors=True)
    card = model_copy.card_of(run)
    assert card is not None
    paths = []
    for user in (1001, 1002):
        os.seteuid(user)
        (weights.cache_folder() / sha256).mkdir(parents=True)  # its first worker died between two steps
        model_copy.bring(run)
        paths.append(weights.ensure(card))
        os.seteuid(0)
    assert [path.stat().st_uid for path in paths] == [1001, 1002]
    for path in paths:
        private = path.parents[2]
        assert (private.parent, private.stat().st_mode & 0o777) == (shared_cache / "cache", 0o700)
    os.seteuid(1001)
    with pytest.raises(PermissionError):
        paths[1].write_bytes(b"")


def test_weights_that_root_has_put_on_the_node_are_used_by_every_user(shared_cache: Path) -> None:
    run, sha256 = _staged(shared_cache / "run")
    card = model_copy.card_of(run)
    assert card is not None
    model_copy.bring(run)
    os.seteuid(1001)
    model_copy.bring(run)
    assert weights.ensure(card) == shared_cache / "cache/vsr_hpc/weights" / sha256 / "mine.safetensors"


def test_weights_that_change_after_their_check_are_not_computed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run, _ = _staged(tmp_path)
    model_copy.bring(run)
    card = model_copy.card_of(run)
    assert card is not None
    path = weights.ensure(card)
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file({name: value * 0 for name, value in tensors.items()}, path)
    with pytest.raises(ModelError, match="changed or damaged"):
        weights.open_network(card, path)


# Stores and loss of power


def test_a_store_that_ignores_if_none_match_is_refused_at_the_start(moto: Moto, tmp_path: Path) -> None:
    moto.heal()
    store = S3Store.from_uri(f"s3://films/{uuid.uuid4().hex}")

    def ignore(request: Any, **_: object) -> None:
        request.headers.pop("If-None-Match", None)

    store._client.meta.events.register("before-send.s3", ignore)
    with pytest.raises(JobError, match="ignores If-None-Match"):
        Run.create(store, tiny_job(tmp_path))
    assert store.list("") == ()


def test_what_must_last_is_on_the_disk_before_what_relies_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segment, then receipt; output, then done.json; done.json, then the removal of segments."""
    run = planned_run(tiny_job(tmp_path, frames=8))
    events: list[tuple[str, str]] = []

    def record(module: Any, name: str, what: str, of: Callable[..., str]) -> None:
        real = getattr(module, name)

        def call(*args: Any, **named: Any) -> Any:
            done = real(*args, **named)
            events.append((what, of(*args)))
            return done

        monkeypatch.setattr(module, name, call)

    record(os, "fsync", "flush", lambda fd: str(Path(f"/proc/self/fd/{fd}").readlink()))
    record(os, "replace", "name", lambda source, target: str(target))
    record(os, "link", "name", lambda source, target: str(target))
    record(os, "unlink", "remove", lambda path, **_: str(path))
    done = finished(run)
    place, out = Path(run.place_uri), done.output

    def at(what: str, path: Path | str, after: int = -1) -> int:
        return events.index((what, str(path)), after + 1)

    segment = place / run.receipt(0).segments[0].name
    named = at("name", segment)
    receipt = at("name", place / "receipts/00000.json", at("flush", segment.parent, named))
    assert receipt < at("flush", place / "receipts", receipt)
    published = at("name", out)
    partial = next(path for what, path in events if what == "flush" and "partial" in path)
    assert at("flush", partial) < published
    ended = at("name", place / "done.json", at("flush", tmp_path, published))
    assert at("flush", place, ended) < at("remove", segment)
