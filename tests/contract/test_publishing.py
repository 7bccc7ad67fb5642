"""An output is published once, by the newest edition of its run, and is compared with it afterwards."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.commands import vsr
from tests.moto_server import Moto
from tests.runs import finished, planned_run, tiny_job
from vsr_hpc.errors import JobError
from vsr_hpc.run.documents import Done, encode_document
from vsr_hpc.run.run import Run
from vsr_hpc.run.status import read_status
from vsr_hpc.storage.opening import open_output
from vsr_hpc.storage.output import LocalOutput, Output, Published, Publisher
from vsr_hpc.storage.s3_connection import MIB, S3Options
from vsr_hpc.storage.s3_errors import ObjectChanged
from vsr_hpc.storage.s3_store import S3Store
from vsr_hpc.storage.store import MissingObject
from vsr_hpc.system.interrupts import StopFlag
from vsr_hpc.work import worker
from vsr_hpc.work.finish import ShardsLostError, finish, finish_patiently, is_in_place

LIMIT_S = 120.0


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "out.mkv")
    request.getfixturevalue("moto").heal()
    return f"s3://films/{uuid.uuid4().hex}/out.mkv"


def _publisher(
    number: int = 1, *, replaces: bool = False, check: Callable[[], None] = lambda: None
) -> Publisher:
    return Publisher(run_uri="/films/.vsr/out.mkv", number=number, replaces=replaces, check=check)


def _whole(content: bytes) -> Published:
    import hashlib

    return Published(frames=1, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def _publish(output: Output, content: bytes, publisher: Publisher) -> Published:
    partial = output.partial()
    partial.write_bytes(content)
    return output.publish(partial, _whole(content), publisher)


def _content(place: str) -> bytes:
    if "://" not in place:
        return Path(place).read_bytes()
    folder, _, name = place.rpartition("/")
    return S3Store.from_uri(folder).read(name)


def test_what_appears_between_the_last_look_and_the_publishing_is_not_replaced(place: str) -> None:
    output = open_output(place)
    begun = threading.Event()

    def another() -> None:
        if not begun.is_set():
            begun.set()
            _publish(open_output(place), b"another's", Publisher(
                run_uri="/elsewhere", number=1, replaces=False, check=lambda: None,
            ))  # fmt: skip

    with pytest.raises(JobError, match="has appeared here since the job began"):
        _publish(output, b"ours", _publisher(check=another))
    assert _content(place) == b"another's"


def test_an_equal_output_of_another_finisher_is_kept(place: str) -> None:
    first = _publish(open_output(place), b"frames", _publisher())
    assert _publish(open_output(place), b"frames", _publisher(replaces=True)) == first
    assert open_output(place).compare(first) == "same"


def test_an_output_is_replaced_where_the_job_says_so(place: str) -> None:
    first = _publish(open_output(place), b"old", _publisher())
    second = _publish(open_output(place), b"new and longer", _publisher(replaces=True))
    output = open_output(place)
    assert (_content(place), output.compare(second), output.compare(first)) == (
        b"new and longer",
        "same",
        "other",
    )


def test_on_s3_an_edition_that_is_late_cannot_replace_the_output_of_a_newer_one(moto: Moto) -> None:
    """Its last look, its question whether it is late, and its upload are one step for S3."""
    moto.heal()
    place = f"s3://films/{uuid.uuid4().hex}/out.mkv"
    looks: list[int] = []

    def newer_is_faster() -> None:
        looks.append(1)
        if len(looks) == 1:
            _publish(open_output(place), b"of the newer edition", _publisher(2, replaces=True))
        else:
            raise JobError("a newer run has taken the place of this one")

    with pytest.raises(JobError, match="newer run"):
        _publish(open_output(place), b"of the older one", _publisher(1, replaces=True, check=newer_is_faster))
    assert _content(place) == b"of the newer edition"


def test_on_s3_a_newer_edition_replaces_what_a_late_one_has_published(moto: Moto) -> None:
    moto.heal()
    place = f"s3://films/{uuid.uuid4().hex}/out.mkv"
    _publish(open_output(place), b"of the older one", _publisher(1))
    _publish(open_output(place), b"of the newer edition", _publisher(2))
    assert _content(place) == b"of the newer edition"
    with pytest.raises(JobError, match="has appeared"):
        _publish(open_output(place), b"of the older one", _publisher(1))


@pytest.mark.parametrize("size_bytes", [1000, 6 * MIB])
def test_an_upload_in_one_or_several_parts_keeps_its_condition(moto: Moto, size_bytes: int) -> None:
    moto.heal()
    store = S3Store.from_uri(f"s3://films/{uuid.uuid4().hex}", S3Options(part_bytes=5 * MIB))
    path = store.scratch / "part"

    def publish(over: str | None, name: str = "out.mkv") -> None:
        path.write_bytes(os.urandom(size_bytes))
        store.publish_file(name, path, sha256="0", run="r.1", over=over)

    publish(None)
    etag = store.facts("out.mkv").etag
    with pytest.raises(ObjectChanged):
        publish(None)
    assert path.exists() and store.facts("out.mkv").etag == etag
    publish(etag)
    with pytest.raises(ObjectChanged):
        publish(etag)
    with pytest.raises((ObjectChanged, MissingObject)):
        publish(etag, "never.mkv")
    store.put_file("free.mkv", path)
    assert store.facts("out.mkv").run == "r.1"


# Runs


def _made(tmp_path: Path) -> Run:
    run = planned_run(tiny_job(tmp_path, frames=8))
    worker.work(run.uri, worker.WorkerOptions(threads=1, does_finish=False), StopFlag())
    return run


def test_a_late_merge_takes_its_output_back_where_a_newer_run_began_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _made(tmp_path)
    publish = LocalOutput.publish

    def then_new(output: LocalOutput, *args: object) -> Published:
        made = publish(output, *args)  # type: ignore[arg-type]
        Run.create(run._folder, tiny_job(tmp_path, model="bicubic"), replaces=run)  # type: ignore[arg-type]
        return made

    monkeypatch.setattr(LocalOutput, "publish", then_new)
    with pytest.raises(JobError, match="newer run"):
        finish(run)
    assert [path.name for path in tmp_path.iterdir() if "out.mkv" in path.name] == []


def test_two_finishers_of_one_run_both_end_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is silent after it has published, and ends the run under the hands of the second."""
    run = _made(tmp_path)
    published, second_merges, first_ended = threading.Event(), threading.Event(), threading.Event()
    write_done, merge = Run.write_done, finish_patiently.__globals__["_merge"]

    def late(self: Run, done: Done) -> None:
        published.set()
        assert second_merges.wait(LIMIT_S)
        write_done(self, done)

    def slow(*args: object) -> object:
        if published.is_set():
            second_merges.set()
            assert first_ended.wait(LIMIT_S)
        return merge(*args)

    monkeypatch.setattr(Run, "write_done", late)
    monkeypatch.setattr("vsr_hpc.work.finish._merge", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(finish_patiently, run, "first")
        assert published.wait(LIMIT_S)
        (holder,) = (run.holder("finish", 1).worker,)
        monkeypatch.setattr("vsr_hpc.run.liveness.Liveness.is_stale", lambda self, worker: worker == holder)
        second = pool.submit(finish_patiently, run, "second")
        first.result(LIMIT_S)
        assert run.store.list("segments/") == ()
        first_ended.set()
        assert second.result(LIMIT_S) == first.result()
    done = run.done()
    assert done is not None and is_in_place(done) and read_status(run).state == "complete"


def test_a_finisher_that_was_taken_over_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _made(tmp_path)
    merge = finish_patiently.__globals__["_merge"]

    def then_taken(*args: object) -> object:
        report = merge(*args)
        if run.leases()["finish"].generation == 1:
            taken = run.take("finish", 2, "finish-other", "n9")
            assert taken is not None
            run.give_back(taken, "stopped", "n9")
            assert not (tmp_path / "out.mkv").exists()
        return report

    monkeypatch.setattr("vsr_hpc.work.finish._merge", then_taken)
    done = finish_patiently(run, "n1")
    assert run.leases()["finish"].generation == 3 and is_in_place(done)


def test_status_compares_the_output_with_what_was_published(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path, frames=8))
    done = finished(run)
    out = tmp_path / "out.mkv"
    assert (read_status(run).state, read_status(run).output_state) == ("complete", "same")
    os.utime(out, ns=(1, 1))
    assert read_status(run).output_state == "touched" and is_in_place(done)
    assert "another modification time" in vsr("status", run.uri).out
    content = bytearray(out.read_bytes())
    content[-1] ^= 1
    out.write_bytes(content)
    assert not is_in_place(done)
    out.write_bytes(b"other")
    assert vsr("status", run.uri, "--json").json["state"] == "output changed"
    out.unlink()
    assert "output gone" in vsr("status", run.uri).out
    assert "starts over" in vsr("resume", run.uri).err


# What `verify` says of a run's settings


@pytest.mark.parametrize("what", ["plan", "receipt", "end", "output"])
def test_verify_names_what_in_a_run_is_of_other_settings(tmp_path: Path, what: str) -> None:
    run = planned_run(tiny_job(tmp_path, frames=8))
    done = finished(run)
    assert vsr("verify", tmp_path / "clip.mkv", tmp_path / "out.mkv").code == 0
    place = Path(run.place_uri)
    if what == "plan":
        section = run.plan.job.picture.model_copy(update={"grain": 3.0})
        job = run.plan.job.model_copy(update={"picture": section})
        (place / "plan.json").write_bytes(run.plan.model_copy(update={"job": job}).to_json())
    elif what == "receipt":
        other = run.receipt(1).model_copy(update={"settings": "0123456789abcdef"})
        receipt = place / "receipts/00001.json"
        receipt.parent.mkdir(exist_ok=True)
        receipt.write_bytes(encode_document(other))
    elif what == "end":
        (place / "done.json").write_bytes(encode_document(done.model_copy(update={"settings": ""})))
    else:
        with (tmp_path / "out.mkv").open("ab") as file:
            file.write(b"\0")
    said = vsr("verify", tmp_path / "clip.mkv", tmp_path / "out.mkv")
    assert said.code == 5
    named = {
        "plan": "the plan's fingerprint has picture.grain",
        "receipt": "shard 00001 has a receipt of other settings",
        "end": "the output was merged with other settings",
        "output": "is not the file that the run published",
    }[what]
    assert named in said.out + said.err


def test_a_receipt_of_other_settings_is_voided_and_its_shard_made_again(tmp_path: Path) -> None:
    """As where a worker of another plan could write into this run's place."""
    run = _made(tmp_path)
    other = run.receipt(1).model_copy(update={"settings": "0123456789abcdef"})
    (Path(run.place_uri) / "receipts/00001.json").write_bytes(encode_document(other))
    with pytest.raises(ShardsLostError, match="shard 00001 has a receipt of other settings"):
        finish(run)
    finished(run)
    assert run.receipt(1, 1).settings == run.plan.settings_id
    assert vsr("verify", tmp_path / "clip.mkv", tmp_path / "out.mkv", "--deep").code == 0
