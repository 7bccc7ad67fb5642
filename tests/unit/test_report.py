"""The report's data and page; how it looks and moves is tried in tests/browser."""

from __future__ import annotations

import json
import logging
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from PIL import Image
from typer.testing import CliRunner

from tests.clips import numbered_clip
from tests.runs import finished, planned_run, tiny_job
from vsr_hpc.cli.main import app
from vsr_hpc.errors import JobError
from vsr_hpc.job.reading import parse_job
from vsr_hpc.job.spec import JobSpec
from vsr_hpc.media.picture import Colour, Frame, Picture, PixelFormat
from vsr_hpc.report import page
from vsr_hpc.report import report as make
from vsr_hpc.report.facts import reproduce
from vsr_hpc.report.history import Bar, read_history, throughput
from vsr_hpc.report.pictures import busiest, spread
from vsr_hpc.report.report import NAME, gather, make_report
from vsr_hpc.report.srgb import data_uri, to_image, within
from vsr_hpc.report.truth import figures
from vsr_hpc.run.run import Run
from vsr_hpc.run.status import read_status
from vsr_hpc.verification.similarity import psnr, ssim


def data_of(content: bytes) -> dict[str, Any]:
    found = re.search(rb'<script type="application/json" id="data">(.*?)</script>', content, re.S)
    assert found is not None
    document: dict[str, Any] = json.loads(found[1])
    return document


def test_a_finished_run_has_its_report(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    done = finished(run)
    shown = data_of(run.store.read(NAME))
    assert (shown["state"], shown["frames"], shown["frames_done"]) == ("complete", 24, 24)
    assert len(shown["scenes"]) == 5
    assert [each["frame"] for each in shown["scenes"]] == sorted(each["frame"] for each in shown["scenes"])
    assert [bar[3] for bar in shown["history"]["bars"]] == list(range(run.plan.shard_count))
    assert any(done.sha256 in check["text"] for check in shown["checks"])


def test_a_report_that_fails_is_said_and_does_not_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*given: object) -> bytes:
        raise RuntimeError("no room for pictures")

    monkeypatch.setattr(make, "make_report", broken)
    run = planned_run(tiny_job(tmp_path))
    done = finished(run)
    assert done.frames == 24
    assert not run.store.exists(NAME)
    assert any(
        record.levelno == logging.WARNING and "no room for pictures" in record.message
        for record in caplog.records
    )


def test_pictures_that_cannot_be_read_are_said_in_the_report(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    finished(run)
    (tmp_path / "out.mkv").write_bytes(b"not a film")
    shown = gather(run)
    assert shown["scenes"] == []
    assert "out.mkv" in shown["why_no_pictures"]


def test_a_running_run_can_be_reported(tmp_path: Path) -> None:
    shown = data_of(make_report(planned_run(tiny_job(tmp_path))))
    assert shown["frames_done"] == 0
    assert shown["scenes"] == []
    assert shown["checks"][0]["title"] == "The run is not finished"


@pytest.mark.parametrize("name", ["</script><script>alert(1)</script>.mkv", "a\u2028b'\"<b>.mkv"])
def test_names_cannot_leave_their_place_in_the_page(tmp_path: Path, name: str) -> None:
    document = {"name": name}
    content = page.page(f"{name} · report", ("report.js",), document, f"about {name}").decode()
    assert content.count("<script") == 2 == content.count("</script")
    assert "<b>" not in content
    assert "\u2028" not in page.embedded(document)
    assert data_of(content.encode())["name"] == name


def test_the_page_allows_its_own_script_and_no_request(tmp_path: Path) -> None:
    content = page.page("t", ("report.js",), {}, "s").decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', content)
    assert policy is not None
    assert policy[1].startswith("default-src &#x27;none&#x27;; script-src &#x27;sha256-")
    assert "unsafe" not in policy[1]
    assert not re.search(r'(src|href|action)="', content)


def test_the_bundle_is_one_scope_without_imports() -> None:
    script = page.bundle((*page.SHARED, "report.js"))
    assert not re.search(r"^(import|export)\b", script, re.M)
    names = re.findall(r"^(?:async )?(?:function|const|let|class) (\w+)", script, re.M)
    assert len(names) == len(set(names)), "two modules have a top-level name in common"
    assert "innerHTML" not in script


def test_attempts_that_failed_are_breaks_in_their_workers_lanes(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    lost = run.take("00001", 1, "worker-that-died", "node-a")
    given = run.take("00002", 1, "worker-that-stopped", "node-b")
    assert lost is not None
    assert given is not None
    run.give_back(given, "stopped", "node-b", "Reason.TERMINATED")
    assert run.take("00001", 2, "worker-that-took-over", "node-b") is not None
    assert run.take("00002", 2, "worker-that-took-over", "node-b") is not None
    history = read_history(run, (), read_status(run).workers)
    found = {(history.lanes[each.lane].worker, each.shard, each.cause) for each in history.breaks}
    assert found == {("worker-that-died", 1, "died"), ("worker-that-stopped", 2, "stopped")}
    assert {lane.worker: lane.end for lane in history.lanes}["worker-that-died"] == "died"


def test_throughput_adds_up_to_all_frames() -> None:
    bars = [
        Bar(
            lane=0,
            start_s=3.0 * i,
            stop_s=3.0 * i + 2.5,
            shard=i,
            frames=50,
            generation=1,
            worst_psnr_db=None,
        )
        for i in range(7)
    ]
    step, fps = throughput(bars, 0.0, 30.0)
    assert sum(fps) * step == pytest.approx(350, rel=1e-3)
    assert fps[-1] == 0


def test_ten_thousand_shards_fit_into_three_megabytes() -> None:
    bars = [[i % 400, i * 1.23, i * 1.23 + 44.56, i, 1080, 1, 38.71] for i in range(10_000)]
    assert len(page.embedded({"bars": bars})) < 600_000


def flat(codes: tuple[int, int, int], pixel: PixelFormat, colour: Colour) -> tuple[int, ...]:
    shape = Picture(width=16, height=8, pixel=pixel, colour=colour)
    planes = tuple(
        np.full(size, code, pixel.dtype) for size, code in zip(shape.plane_shapes(), codes, strict=True)
    )
    found = to_image(Frame(index=0, planes=planes), shape).getpixel((7, 3))
    assert isinstance(found, tuple)
    return tuple(int(each) for each in found)


def test_limited_bt709_red_is_shown_red() -> None:
    pixel = PixelFormat(name="yuv420p", kind="yuv", depth=8, log2_chroma_w=1, log2_chroma_h=1)
    assert flat((63, 102, 240), pixel, Colour(matrix=1)) == pytest.approx((255, 0, 0), abs=2)


def test_ten_bits_of_full_range_grey_are_the_same_grey() -> None:
    pixel = PixelFormat(name="yuv444p10le", kind="yuv", depth=10)
    assert flat((512, 512, 512), pixel, Colour(matrix=9, is_full_range=True)) == pytest.approx(
        (128,) * 3, abs=1
    )


def test_graphics_white_of_pq_is_bright_and_darker_light_is_darker() -> None:
    pixel = PixelFormat(name="yuv420p10le", kind="yuv", depth=10, log2_chroma_w=1, log2_chroma_h=1)
    hdr = Colour(matrix=9, primaries=9, transfer=16)
    greys = [flat((code, 512, 512), pixel, hdr)[0] for code in (64, 300, 569, 940)]
    assert greys == sorted(greys)
    assert greys[0] == 0
    assert greys[2] > 150
    assert greys[3] == 255


def test_a_quarter_turn_of_the_display_matrix_is_applied() -> None:
    pixel = PixelFormat(name="gray", kind="grey", depth=8)
    turned = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)  # as phones write it: shown turned clockwise
    shape = Picture(width=4, height=2, pixel=pixel, colour=Colour(is_full_range=True), display_matrix=turned)
    plane = np.zeros((2, 4), np.uint8)
    plane[1, 0] = 255  # bottom left goes to top left
    shown = to_image(Frame(index=0, planes=(plane,)), shape)
    assert shown.size == (2, 4)
    assert shown.getpixel((0, 0)) == (255, 255, 255)


def test_scenes_that_differ_are_chosen_before_equal_ones() -> None:
    generator = np.random.default_rng(1)
    scene = generator.uniform(0, 255, (3, 64)).astype(np.float32)
    small = np.stack([scene[0], scene[0] + 1, scene[1], scene[1] + 1, scene[2], np.zeros(64, np.float32)])
    kept = spread(small, 3)
    assert {each // 2 for each in kept} == {0, 1, 2}
    assert 5 not in kept, "black tells nothing"


def test_the_busiest_part_is_where_the_detail_is() -> None:
    picture = np.full((60, 80, 3), 128, np.uint8)
    picture[40:50, 60:70] = np.random.default_rng(2).integers(0, 255, (10, 10, 3))
    left, top, right, bottom = busiest(Image.fromarray(picture), (16, 16))
    assert left <= 61
    assert top <= 41
    assert right >= 69
    assert bottom >= 49


def test_a_picture_is_made_to_fit_its_bytes() -> None:
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 255, (300, 400, 3)).astype(np.uint8))
    assert len(data_uri(noise, 40_000)) < len(data_uri(noise, 200_000)) <= 4 / 3 * 200_000 + 100
    assert within(noise, 100).size == (100, 75)


def test_equal_pictures_have_the_highest_figures() -> None:
    one = np.random.default_rng(4).uniform(0, 255, (32, 40)).astype(np.float32)
    assert figures(one, one) == (100, pytest.approx(1))
    assert psnr(one, one) == float("inf")
    assert psnr(one, one + 10) == pytest.approx(28.13, abs=0.01)
    assert ssim(one, one[::-1].copy()) < 0.5


def test_the_command_means_the_same_job(tmp_path: Path) -> None:
    job = tiny_job(
        tmp_path,
        video={"crf": 20, "params": {"keyint": "48"}},
        run={"workers": 2, "gpus": [0]},
        output="a b'c.mkv",
    )
    words = shlex.split(reproduce(job, "bicubic").command)
    assert words[:2] == ["vsr", "upscale"]
    command: Any = typer.main.get_command(app)
    given = command.commands["upscale"].make_context("upscale", words[2:]).params
    assert given["paths"] == [job.input, "a b'c.mkv"]
    named = [given[f"{section}__{key}"] for section, key in (("video", "crf"), ("run", "workers"))]
    assert (named, given["run__gpus"], given["video__params"]) == (["20", "2"], "0", "keyint=48")


def test_the_command_names_the_model_that_was_used(tmp_path: Path) -> None:
    again = reproduce(tiny_job(tmp_path, model="auto"), "vsr-video-x2")
    assert "--model vsr-video-x2" in again.command
    assert "model: vsr-video-x2" in again.job


def test_the_job_file_in_the_report_is_the_job(tmp_path: Path) -> None:
    job: JobSpec = tiny_job(tmp_path, range={"from": "0.25"})
    assert parse_job(yaml.safe_load(reproduce(job, "bicubic").job), "report") == job


def test_the_command_line_writes_a_report_and_measures_it(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    finished(run)
    truth = numbered_clip(tmp_path / "truth.mkv", frames=24, size=(128, 96))
    out = tmp_path / "r.html"
    said = CliRunner().invoke(
        app, ["report", str(tmp_path / "out.mkv"), "-o", str(out), "--truth", str(truth), "--verify"]
    )
    assert said.exit_code == 0, said.output
    shown = data_of(out.read_bytes())
    assert 10 < shown["quality"]["psnr_db"] < 60
    assert shown["verification"]["findings"] == []
    assert len(out.read_bytes()) < 3_000_000


def test_a_truth_of_another_size_is_refused(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    finished(run)
    with pytest.raises(JobError, match="64x48, the output 128x96"):
        make.measure(run, str(tmp_path / "clip.mkv"))


def test_receipts_alone_are_history_enough(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    finished(run)
    receipts = tuple(replace_worker(run))
    history = read_history(run, receipts, ())
    assert [lane.worker for lane in history.lanes] == ["gone"]
    assert history.lanes[0].frames == 24


def replace_worker(run: Run) -> list[Any]:
    return [receipt.model_copy(update={"worker": "gone"}) for receipt in run.receipts()]
