"""Whole runs on this machine, with one worker in this process and with several processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.clips import frame_number, numbered_clip
from tests.commands import vsr
from tests.kills import killed, undisturbed
from tests.runs import finished, planned_run, tiny_job
from vsr_hpc.errors import BackendError, JobError, MediaError
from vsr_hpc.job.reading import parse_job
from vsr_hpc.launch import ensure_plan, run_here, submit, verify_here
from vsr_hpc.media.clip.reader import read_segment
from vsr_hpc.media.decoder import open_decoder
from vsr_hpc.media.picture import Frame
from vsr_hpc.media.source import Source
from vsr_hpc.models.networks import Compact
from vsr_hpc.planning.plan import Plan
from vsr_hpc.report.report import verify_whole
from vsr_hpc.run.liveness import is_process_gone
from vsr_hpc.run.run import Run
from vsr_hpc.run.status import read_status
from vsr_hpc.storage.opening import open_output
from vsr_hpc.system.interrupts import Reason, StopFlag
from vsr_hpc.verification.of_plan import verify_output, verify_run
from vsr_hpc.verification.verify import Finding, Verification, verify
from vsr_hpc.work import finish, run_plan, worker


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def _use_upscaler(monkeypatch: pytest.MonkeyPatch, build: Callable[..., object]) -> None:
    for module in (worker, run_plan):
        monkeypatch.setattr(module, "build_upscaler", build)


def test_every_frame_arrives_in_order(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    done = finished(planned_run(job))
    frames = list(read_segment(job.output))
    assert done.frames == 24
    assert [frame_number(frame) for frame in frames] == list(range(24))
    assert frames[0].planes[0].shape == (96, 128)
    assert verify(job.input, job.output).ok


def test_workers_and_shard_length_change_no_byte(tmp_path: Path) -> None:
    digests, shards = set(), []
    for name, workers, speed in (("one", 1, None), ("three", 3, None), ("long", 1, 0.001)):
        changes = {"workers": workers, "chunk_s": 2 / 24}
        job = tiny_job(tmp_path, output=str(tmp_path / f"{name}.mkv"), run=changes)
        run = planned_run(job, speed)
        shards.append(run.plan.shard_count)
        digests.add(finished(run).sha256)
    assert shards == [12, 12, 4]
    assert len(digests) == 1


def test_a_stopped_run_goes_on_and_keeps_what_was_done(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    stop = StopFlag()

    def stop_after_two_shards(heartbeat: object) -> None:
        if len(run.finished()) >= 2:
            stop.set(Reason.INTERRUPTED)

    assert run_here(run, stop, on_beat=stop_after_two_shards) is None
    before = {shard: run.receipt(shard) for shard in run.finished()}
    assert 2 <= len(before) < 6
    finished(run)
    assert {shard: run.receipt(shard) for shard in before} == before


def test_a_dropped_shard_is_given_back_and_counts_no_attempt(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    stop = StopFlag()

    def stop_inside_a_shard(heartbeat: object) -> None:
        stop.set(Reason.CANCELLED)

    run_here(run, stop, on_beat=stop_inside_a_shard)
    ends = [run.ending(name, state.generation) for name, state in run.leases().items()]
    assert [end.cause for end in ends if end] == ["stopped"] * len(ends)


def test_a_second_call_with_the_same_job_continues_and_with_another_is_refused(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    finished(planned_run(job))
    assert submit(job).is_continued
    other = tiny_job(tmp_path, video={"crf": 30})
    with pytest.raises(JobError, match=r"the quality was CRF 18, now CRF 30"):
        submit(other)
    assert not submit(other.model_copy(update={"overwrite": True}), is_new=True).is_continued


def test_another_input_under_the_same_name_is_refused(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    planned_run(job)
    numbered_clip(Path(job.input), frames=25)
    with pytest.raises(JobError, match="the content of the input has changed"):
        submit(job)


def test_where_the_output_is_gone_the_run_starts_over(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    finished(planned_run(job))
    Path(job.output).unlink()
    assert not submit(job).is_continued


def test_a_foreign_file_at_the_output_is_never_replaced(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    run = planned_run(job)
    Path(job.output).write_text("somebody's work")
    with pytest.raises(JobError, match="has appeared"):
        finished(run)
    assert Path(job.output).read_text() == "somebody's work"
    Path(job.output).unlink()
    assert finished(run).frames == 24


def test_a_merge_that_dies_leaves_no_output_and_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tiny_job(tmp_path)
    run = planned_run(job)

    def dies(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("vsr_hpc.work.finish.merge", dies)
        with pytest.raises(KeyboardInterrupt):
            finished(run)
    assert not Path(job.output).exists()
    assert finished(run).frames == 24


class _Differing:
    """An upscaler whose bytes depend on who runs it, as on two kinds of GPU."""

    def __init__(self, shade: int) -> None:
        self.shade, self.batch, self.clipped = shade, 1, 0

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        doubled = [tuple(p.repeat(2, axis=0).repeat(2, axis=1) for p in frame.planes) for frame in frames]
        return [
            replace(frame, planes=(np.minimum(planes[0], 250) + np.uint8(self.shade), *planes[1:]))
            for frame, planes in zip(frames, doubled, strict=True)
        ]

    def canary(self) -> str:
        return ""


def test_two_workers_making_other_bytes_for_one_shard_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned_run(tiny_job(tmp_path))
    shades = iter((1, 5))
    monkeypatch.setattr(
        worker, "build_upscaler", lambda plan, threads: (_Differing(next(shades)), {"device": "stub"})
    )
    barrier = threading.Barrier(2)
    taken = Run.take

    def take_both(self: Run, name: str, generation: int, who: str, node: str, *, round: int = 0) -> object:
        """Both workers believe that they hold the first shard."""
        if name == "00000" and generation == 1:
            barrier.wait(30)
            return taken(self, name, 1, who, node) or taken(self, name, 2, who, node)
        return taken(self, name, generation, who, node, round=round)

    monkeypatch.setattr(Run, "take", take_both)
    monkeypatch.setattr("vsr_hpc.run.claims.random.randrange", lambda count: 0)
    options = worker.WorkerOptions(threads=1)
    threads = [threading.Thread(target=worker.work, args=(run.uri, options, StopFlag())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    monkeypatch.undo()
    done = finished(run)
    assert done.frames == 24
    assert {state.generation for name, state in run.leases().items() if name == "00000"} == {2}
    assert verify(run.plan.job.input, run.plan.job.output).ok


def test_a_shard_that_cannot_be_made_is_set_aside_and_the_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned_run(tiny_job(tmp_path))

    class Picky(_Differing):
        def __call__(self, frames: list[Frame]) -> list[Frame]:
            if any(frame.index == 9 for frame in frames):
                raise MediaError("frame 9 is broken")
            return super().__call__(frames)

    _use_upscaler(monkeypatch, lambda plan, threads: (Picky(0), {"device": "stub"}))
    with pytest.raises(MediaError, match="shard 00002 cannot be made: frame 9 is broken"):
        finished(run)
    assert run.missing() == {2}
    assert read_status(run).state == "poisoned"


def test_a_wrong_picture_never_gets_a_receipt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned_run(tiny_job(tmp_path))

    class Repeating(_Differing):
        def __call__(self, frames: list[Frame]) -> list[Frame]:
            made = super().__call__(frames)
            if made[0].index == 6:
                made = [replace(made[0], planes=self.last.planes)]
            self.last = made[-1]
            return made

    _use_upscaler(monkeypatch, lambda plan, threads: (Repeating(0), {"device": "stub"}))
    with pytest.raises(MediaError, match="output frame 6 looks like input frame 5"):
        finished(run)
    assert run.missing() == {1}


def test_a_chunks_first_frame_that_shows_the_chunk_before_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both chunks lie in one shard; the picture before the border is what tells a repetition from damage."""
    run = planned_run(tiny_job(tmp_path, frames=48), 0.001)
    assert run.plan.chunk_borders[:4] == (0, 4, 8, 12)
    assert run.plan.shard_borders[1] == 3

    class Repeating(_Differing):
        def __call__(self, frames: list[Frame]) -> list[Frame]:
            made = super().__call__(frames)
            if made[0].index == 8:
                made = [replace(made[0], planes=self.last.planes)]
            self.last = made[-1]
            return made

    _use_upscaler(monkeypatch, lambda plan, threads: (Repeating(0), {"device": "stub"}))
    with pytest.raises(MediaError, match="output frame 8 looks like input frame 7"):
        finished(run)


def test_cancel_stops_a_run_and_resume_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned_run(tiny_job(tmp_path, frames=120))

    class Slow(_Differing):
        def __call__(self, frames: list[Frame]) -> list[Frame]:
            time.sleep(0.05)
            return super().__call__(frames)

    _use_upscaler(monkeypatch, lambda plan, threads: (Slow(0), {"device": "stub"}))

    def cancel(heartbeat: object) -> None:
        if run.finished():
            run.cancel()

    stop = StopFlag()
    assert run_here(run, stop, on_beat=cancel) is None
    assert stop.reason is Reason.CANCELLED
    assert read_status(run).state == "cancelled"
    assert finished(run).frames == 120


def test_an_output_that_is_not_as_planned_is_kept_and_ends_with_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(plan: Plan, output: str, *, deep: bool) -> Verification:
        made = verify_output(plan, output, deep=deep)
        return replace(made, findings=(Finding(check="colour", text="the colour was lost"),))

    monkeypatch.setattr(finish, "verify_output", found)
    numbered_clip(tmp_path / "clip.mkv", frames=8)
    said = vsr("upscale", tmp_path / "clip.mkv", tmp_path / "out.mkv", "-n", "bicubic", "-s", "2")
    assert said.code == 5 and "not what was planned\n  - the colour was lost" in said.err, said.err
    assert (tmp_path / "out.mkv").is_file()
    assert "another process" not in said.err


def test_killed_processes_cost_the_shard_in_hand_and_no_byte(tmp_path: Path) -> None:
    clip = numbered_clip(tmp_path / "clip.mkv", frames=96, size=(160, 90), audio=True)
    wanted = undisturbed(clip, tmp_path)
    for workers in (1, 3):
        result = killed(clip, tmp_path / f"out{workers}.mkv", workers, 2, random.Random(workers))
        assert (result.sha256, result.redone) == (wanted, 0)


def test_workers_leave_when_their_caller_is_killed(tmp_path: Path) -> None:
    clip = numbered_clip(tmp_path / "clip.mkv", frames=240, size=(160, 90))
    weights = tmp_path / "slow.pth"
    torch.manual_seed(1)
    torch.save({"params": Compact(num_feat=64, num_conv=32, scale=4).state_dict()}, weights)
    output = tmp_path / "out.mkv"
    options = ["--model", str(weights), "--precision", "fp32", "--chunk-s", "0.25", "--workers", "2", "-q"]
    caller = subprocess.Popen([sys.executable, "-m", "vsr_hpc", "upscale", str(clip), str(output), *options])
    try:
        run = _wait_for(lambda: Run.open(str(output)))
        beats = _wait_for(lambda: [beat for beat in run.heartbeats() if beat.state == "working"])
    finally:
        caller.kill()
        caller.wait()
    _wait_for(lambda: not read_status(run).alive)
    _wait_for(lambda: all(is_process_gone(beat) for beat in beats))
    assert run.done() is None


def test_ctrl_c_drains_and_says_how_to_go_on(tmp_path: Path) -> None:
    clip = numbered_clip(tmp_path / "clip.mkv", frames=240, size=(160, 90))
    output = tmp_path / "out.mkv"
    command = [
        sys.executable,
        "-m",
        "vsr_hpc",
        "upscale",
        str(clip),
        str(output),
        "--scale",
        "2",
        "--chunk-s",
        "0.25",
    ]
    caller = subprocess.Popen(command, stderr=subprocess.PIPE)
    run = _wait_for(lambda: Run.open(str(output)))
    _wait_for(lambda: run.finished())
    os.kill(caller.pid, signal.SIGINT)
    _, said = caller.communicate(timeout=60)
    assert caller.returncode == 130
    assert b"the same command continues" in said
    subprocess.run([*command, "--json"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    done = run.done()
    assert done is not None
    assert done.frames == 240


def test_status_answers_with_json(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    finished(run)
    command = [sys.executable, "-m", "vsr_hpc", "status", run.uri, "--json"]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert (answer["state"], answer["shards_done"], answer["frames"]) == ("complete", 6, 24)


def _wait_for(found, timeout_s: float = 90.0):  # type: ignore[no-untyped-def]
    until = time.monotonic() + timeout_s
    while True:
        try:
            if value := found():
                return value
        except JobError:
            pass
        if time.monotonic() > until:
            raise TimeoutError("it did not happen")
        time.sleep(0.05)


def test_a_strict_run_is_left_by_a_worker_on_another_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned_run(tiny_job(tmp_path, run={"reproducible": "strict"}))
    run.settle_platform({"device": "another"})
    _use_upscaler(monkeypatch, lambda plan, threads: (_Differing(0), {"device": "stub"}))
    outcome = worker.work(run.uri, worker.WorkerOptions(threads=1), StopFlag())
    assert (outcome.shards, outcome.is_complete) == (0, False)
    assert run.leases() == {}


def test_a_worker_leaves_after_two_backend_errors_and_its_shard_counts_no_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned_run(tiny_job(tmp_path))

    class Failing(_Differing):
        def __call__(self, frames: list[Frame]) -> list[Frame]:
            raise BackendError("the device fell off the bus")

    _use_upscaler(monkeypatch, lambda plan, threads: (Failing(0), {"device": "stub"}))
    monkeypatch.setattr(worker, "_BACK_OFF_S", 0.0)
    with pytest.raises(BackendError, match="fell off the bus"):
        worker.work(run.uri, worker.WorkerOptions(threads=1), StopFlag())
    ends = [run.ending(name, state.generation) for name, state in run.leases().items()]
    assert [end.cause for end in ends if end is not None] == ["backend", "backend"]
    assert run.poisoned() == ()


def test_a_still_of_another_layout_keeps_the_planned_size(tmp_path: Path) -> None:
    """35 x 1.1 rounds to 38 on a 4:2:0 grid and to 39 without one: the plan's size is the one."""
    clip = numbered_clip(tmp_path / "clip.mp4", frames=1, size=(70, 48))
    video = {"preset": None, "threads": None}
    output = str(tmp_path / "out_%02d.png")
    job = tiny_job(tmp_path, input=str(clip), output=output, picture={"scale": 1.1}, video=video)
    assert finished(planned_run(job)).frames == 1


def test_a_run_that_makes_another_output_is_refused_with_both_names(tmp_path: Path) -> None:
    location = {"location": str(tmp_path / "R")}
    job = tiny_job(tmp_path, output=str(tmp_path / "x.mkv"), run=location)
    begun = submit(job).run
    for is_planned in (False, True):
        if is_planned:
            ensure_plan(begun)
        with pytest.raises(JobError, match=r"makes \S+/x\.mkv, not \S+/y\.mkv; .*--run.*--new"):
            submit(tiny_job(tmp_path, output=str(tmp_path / "y.mkv"), run=location))
    assert submit(job).is_continued


def test_a_run_that_was_moved_with_its_output_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("old", "link/deep"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "old")
    places = {"output": "out.mkv", "run": {"location": "R"}}
    ensure_plan(submit(tiny_job(tmp_path, **places)).run)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").rename(tmp_path / "new")
    monkeypatch.chdir(tmp_path / "new")
    assert submit(tiny_job(tmp_path, **places)).is_continued
    (tmp_path / "link" / "deep").rmdir()
    (tmp_path / "link" / "deep").symlink_to(tmp_path / "new")
    other = {"output": str(tmp_path / "link" / "deep" / "out.mkv"), "run": {"location": "R"}}
    assert submit(tiny_job(tmp_path, **other)).is_continued


def test_a_raw_stream_made_at_a_rate_that_was_given_is_verified_at_that_rate(tmp_path: Path) -> None:
    clip = numbered_clip(tmp_path / "clip.h264", b_frames=2)
    run = planned_run(tiny_job(tmp_path, input=str(clip), images={"rate": "50"}))
    done = finished(run)
    asked = parse_job({"input": str(clip), "output": done.output}, "test")  # the run says the rate
    found = verify_here(asked, is_deep=True)
    assert (found.findings, found.frames, found.is_deep) == ((), 24, True)
    assert verify_whole(run).findings == ()
    away = tmp_path / "away.mkv"
    Path(done.output).rename(away)
    said = parse_job({"input": str(clip), "output": str(away), "images": {"rate": "50"}}, "test")
    assert verify_here(said, is_deep=True).ok
    silent = verify_here(parse_job({"input": str(clip), "output": str(away)}, "test"), is_deep=True)
    assert "time" in {each.check for each in silent.findings}


def test_a_run_that_lies_elsewhere_says_what_was_asked_for(tmp_path: Path) -> None:
    clip = numbered_clip(tmp_path / "clip.mkv")
    job = tiny_job(tmp_path, range={"from": "6f", "to": "18f"}, run={"location": str(tmp_path / "elsewhere")})
    run = submit(job).run
    ensure_plan(run)
    done = finished(run)
    assert verify_here(parse_job({"input": str(clip), "output": done.output}, "test"), is_deep=True).ok
    assert verify_run(run, deep=True).frames == 12


@pytest.mark.parametrize("deinterlace", [False, True])
def test_a_shard_of_several_chunks_reads_its_source_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deinterlace: bool
) -> None:
    changes = {"picture": {"deinterlace": deinterlace}, "run": {"chunk_s": 2 / 24}}
    single = planned_run(tiny_job(tmp_path, output=str(tmp_path / "single.mkv"), **changes))
    wanted = finished(single).sha256
    run = planned_run(tiny_job(tmp_path, **changes), 0.001)
    assert (single.plan.shard_count, run.plan.shard_count, run.plan.chunk_count) == (12, 4, 12)
    opened = []

    def noted(source: Source, *given: Any, **named: Any) -> Any:
        opened.append(source.uri)
        return open_decoder(source, *given, **named)

    monkeypatch.setattr("vsr_hpc.launch._conclude", lambda *given: None)  # verify and report read it, too
    monkeypatch.setattr("vsr_hpc.media.clip.reader.open_decoder", noted)
    assert finished(run).sha256 == wanted
    assert opened.count(run.plan.clip.uri) == run.plan.shard_count


def test_one_worker_sees_only_the_gpu_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a process of its own: this one may have made up its mind about devices already."""
    begun: list[str] = []
    popen = subprocess.Popen

    def noted(*given: Any, **named: Any) -> Any:
        begun.append(named["env"]["CUDA_VISIBLE_DEVICES"])
        return popen(*given, **named)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("vsr_hpc.executors.local.subprocess.Popen", noted)
    run = planned_run(tiny_job(tmp_path, frames=8, run={"gpus": [3]}))
    assert finished(run).frames == 8
    assert begun == ["3"]
    assert os.getpid() not in {beat.pid for beat in run.heartbeats() if beat.round}  # here it is merged only


@pytest.mark.parametrize("name", ["out.mkv", "out_%02d.png"])
def test_what_a_killed_merge_has_left_goes_with_the_next_one_of_the_same_run(
    tmp_path: Path, name: str
) -> None:
    video = {"preset": None, "threads": None} if name.endswith("png") else {}
    run = planned_run(tiny_job(tmp_path, frames=8, output=str(tmp_path / "to" / name), video=video))
    output = open_output(run.plan.job.output)
    names = [
        output.partial(uri)
        for uri in (run.place_uri, run.place_uri, f"{run.place_uri}-of-another", run.place_uri)
    ]
    left, folder, stranger, _ = names
    assert len(set(names)) == 4 and all(each.name.startswith(".") for each in names)
    left.touch()
    folder.mkdir()
    (folder / "1.png").touch()
    stranger.touch()
    assert finished(run).frames == 8
    assert [each.name for each in stranger.parent.glob(".*.partial*")] == [stranger.name]
