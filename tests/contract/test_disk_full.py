"""A disk that fills up: refused before, or stopped in the middle with a sentence, and gone on with later."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clips import numbered_clip
from tests.commands import MODULE, Said, vsr
from tests.require import require
from tests.runs import planned_run, tiny_job
from vsr_hpc.run.documents import Receipt
from vsr_hpc.run.run import Run
from vsr_hpc.verification.verify import verify

FULL = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A small file system of its own."""

    folder: Path

    def resize(self, mebibytes: int) -> None:
        options = ["-o", f"remount,size={mebibytes}m"]
        subprocess.run(["mount", *options, str(self.folder)], check=True, capture_output=True)

    def fill(self) -> None:
        with (self.folder / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        (self.folder / "ballast").unlink()


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounting.returncode:
        require("tmpfs", f"a small disk cannot be mounted here: {mounting.stderr.decode().strip()}")
    yield Disk(folder=folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return numbered_clip(tmp_path_factory.mktemp("clip") / "clip.mkv", frames=48, audio=True)


def _wish(clip: Path, output: Path) -> tuple[str, ...]:
    options = ("--scale", "2", "--chunk-s", "0.25", "--shard-s", "0.001", "--preset", "ultrafast")
    return ("upscale", str(clip), str(output), *options, "-q")


def _is_stopped(said: Said) -> None:
    assert said.code == FULL, said.err
    assert said.out == ""
    assert said.err.startswith("vsr: ")
    assert said.err.count("\n") == 1
    assert "free; free some space" in said.err or "the disk is full; free" in said.err


def _is_whole(clip: Path, output: Path, tmp_path: Path) -> None:
    """Verified, with nothing beside it, and the bytes that a run on a large disk makes."""
    undisturbed = tmp_path / "undisturbed.mkv"
    assert vsr(*_wish(clip, undisturbed)).code == 0
    assert _sha256(output) == _sha256(undisturbed)
    assert verify(str(clip), str(output)).ok
    assert {path.name for path in output.parent.iterdir()} == {output.name, ".vsr"}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _filled_after(receipts: int, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full once so many shards are done."""
    record = Run.record

    def record_then_fill(run: Run, receipt: Receipt) -> bool:
        is_first = record(run, receipt)
        if len(run.finished()) == receipts:
            disk.fill()
        return is_first

    monkeypatch.setattr(Run, "record", record_then_fill)


def test_a_run_that_cannot_fit_is_refused_and_leaves_nothing(clip: Path, disk: Disk, tmp_path: Path) -> None:
    disk.resize(2)
    output = disk.folder / "out.mkv"
    _is_stopped(vsr(*_wish(clip, output)))
    assert list(disk.folder.iterdir()) == []
    disk.resize(40)
    assert vsr(*_wish(clip, output)).code == 0
    _is_whole(clip, output, tmp_path)


def test_an_output_on_a_disk_of_its_own_is_counted_too(clip: Path, disk: Disk, tmp_path: Path) -> None:
    disk.resize(2)
    said = vsr(*_wish(clip, disk.folder / "out.mkv"), "--run", tmp_path / "run")
    _is_stopped(said)
    assert "put the output elsewhere" in said.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("receipts", [2, 8], ids=["while shards are made", "before the merge"])
def test_a_disk_that_fills_up_stops_the_run_which_goes_on_once_there_is_space(
    clip: Path, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, receipts: int
) -> None:
    output = disk.folder / "out.mkv"
    with monkeypatch.context() as patched:
        _filled_after(receipts, disk, patched)
        _is_stopped(vsr(*_wish(clip, output)))
    run = Run.open(str(output))
    kept = {shard: run.receipt(shard) for shard in run.finished()}
    assert len(kept) == receipts
    assert not list(disk.folder.glob(".*partial*"))
    _is_stopped(vsr(*_wish(clip, output)))  # still full
    assert vsr("status", output, "--json").json["frames_done"] == receipts * 6
    disk.free()
    assert vsr(*_wish(clip, output)).code == 0
    assert {shard: run.receipt(shard) for shard in kept} == kept
    _is_whole(clip, output, tmp_path)


def test_a_full_disk_in_a_worker_process_ends_the_command_with_its_sentence(
    clip: Path, disk: Disk, tmp_path: Path
) -> None:
    output = disk.folder / "out.mkv"
    command = [*MODULE, *_wish(clip, output), "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes) as caller:
        while caller.poll() is None and not list(disk.folder.glob(".vsr/out.mkv/*/workers/*.json")):
            time.sleep(0.01)
        disk.fill()
        out, err = caller.communicate(timeout=120)
    _is_stopped(Said(code=caller.returncode, out=out, err=err))
    disk.free()
    assert vsr(*_wish(clip, output)).code == 0
    _is_whole(clip, output, tmp_path)


@pytest.mark.parametrize("how", ["read-only", "full"])
def test_status_and_logs_of_a_run_need_no_right_to_write_and_no_space(
    disk: Disk, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = planned_run(tiny_job(disk.folder, frames=8))
    assert vsr("worker", run.place_uri, "-q").code == 0
    shutil.rmtree(Path(run.place_uri) / "tmp", ignore_errors=True)
    options = "remount,ro" if how == "read-only" else "remount,nr_inodes=300"
    subprocess.run(["mount", "-o", options, str(disk.folder)], check=True)
    if how == "full":
        with contextlib.suppress(OSError):
            for number in itertools.count():
                (disk.folder / f"empty-{number}").touch()
    try:
        said = vsr("status", run.uri, "--json")
        assert (said.code, said.json["state"]) == (0, "complete"), said.err
        assert "ages are those of this machine's clock" in caplog.text
        assert "worker began" in vsr("logs", run.uri).out
        assert vsr("verify", disk.folder / "clip.mkv", disk.folder / "out.mkv").code == 0
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk.folder)], check=True)
