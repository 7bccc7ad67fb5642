"""`import vsr_hpc` as a library: what the commands do, as values; and the examples of docs/python.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vsr_hpc
from tests.clips import numbered_clip
from tests.commands import vsr
from tests.runs import planned_run, tiny_job
from tests.unit.test_arrays import Tripler
from vsr_hpc import launch


@pytest.fixture(autouse=True)
def _homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA", "CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))


def test_importing_is_light_and_names_are_there() -> None:
    program = (
        "import sys, vsr_hpc\n"
        "assert set(dir(vsr_hpc)) >= {'upscale', 'Upscaler', 'submit', 'open_run', 'JobError'}\n"
        "vsr_hpc.upscale, vsr_hpc.submit, vsr_hpc.open_run\n"
        "assert 'torch' not in sys.modules\n"
        "vsr_hpc.Upscaler\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (Path(vsr_hpc.__file__).parent / "py.typed").is_file()
    with pytest.raises(AttributeError, match="no attribute 'upscaler'"):
        vsr_hpc.upscaler  # noqa: B018


def test_a_file_is_upscaled_as_by_the_command(tmp_path: Path) -> None:
    clip = numbered_clip(tmp_path / "in.mkv", frames=12)
    told: list[tuple[int, int]] = []
    threads = torch.get_num_threads()
    made = vsr_hpc.upscale(
        clip,
        tmp_path / "out.mkv",
        scale=2,
        model="bicubic",
        settings={"video.crf": 20},
        on_progress=lambda done, frames: told.append((done, frames)),
    )
    assert torch.get_num_threads() == threads
    done = vsr("upscale", clip, tmp_path / "b.mkv", "-s", 2, "-m", "bicubic", "--crf", 20, "--json")
    assert (made.frames, made.sha256) == (12, done.json["sha256"])
    assert told[-1] == (12, 12)
    assert {"decode", "device", "encode", "merge"} <= made.seconds.keys()
    assert made.report is not None and Path(made.report).is_file()
    again = vsr_hpc.upscale(clip, tmp_path / "out.mkv", scale=2, model="bicubic", settings={"video.crf": 20})
    assert again.run.uri == made.run.uri
    with pytest.raises(vsr_hpc.JobError, match=r"scale|size"):
        vsr_hpc.upscale(clip, tmp_path / "out.mkv", scale=3, model="bicubic", settings={"video.crf": 20})


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    clip = numbered_clip(tmp_path / "in.mkv", frames=4)
    with pytest.raises(vsr_hpc.JobError, match=r"video\.crff: unknown key; did you mean crf"):
        vsr_hpc.upscale(clip, tmp_path / "out.mkv", settings={"video.crff": 20})


def test_a_module_upscales_a_clip_and_only_the_same_module_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = numbered_clip(tmp_path / "in.mkv", frames=8)
    made = vsr_hpc.upscale(clip, tmp_path / "out.mkv", model=Tripler())
    assert (made.frames, made.run.run.plan.picture.width) == (8, 192)
    assert vsr_hpc.upscale(clip, tmp_path / "out.mkv", model=Tripler()).sha256 == made.sha256
    other = Tripler()
    with torch.no_grad():
        other.outer.weight.mul_(2)
    with pytest.raises(vsr_hpc.JobError, match="model"):
        vsr_hpc.upscale(clip, tmp_path / "out.mkv", model=other)
    name = made.run.run.job().model
    monkeypatch.setattr("vsr_hpc.models.cards._cards_of_modules", {})  # as in another process
    with pytest.raises(vsr_hpc.JobError, match="torch module of the Python program that began the run"):
        vsr_hpc.upscale(clip, tmp_path / "c.mkv", model=name)


def test_a_submitted_job_is_watched_to_its_end(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    run = vsr_hpc.submit({**job.model_dump(by_alias=True, exclude_unset=True)}, on="local")
    assert run.status().state != "complete"
    result = run.result(timeout_s=120)
    assert result.frames == 24
    opened = vsr_hpc.open_run(job.output)
    assert opened.result(timeout_s=1).sha256 == result.sha256
    assert opened.cancel() is False


def test_a_run_that_fails_raises_what_the_command_said(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    run = vsr_hpc.submit(job, on="local")
    Path(job.input).write_bytes(b"another file takes its place while the run begins")
    with pytest.raises(vsr_hpc.VsrError, match=r"clip\.mkv"):
        run.result(timeout_s=120)


def test_a_run_on_which_nobody_works_ends_the_waiting(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, run={"lease_window_s": 1})
    launch.submit(job)
    opened = vsr_hpc.open_run(job.output)
    with pytest.raises(TimeoutError):
        opened.wait(timeout_s=0)
    with pytest.raises(vsr_hpc.JobError, match=r"nobody works on the run; resume\(\) continues it"):
        opened.wait(timeout_s=120)


def test_a_cancelled_run_ends_the_waiting(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    opened = vsr_hpc.open_run(run.uri)
    assert opened.cancel()
    with pytest.raises(vsr_hpc.JobError, match="cancelled"):
        opened.wait(timeout_s=120)


def test_the_examples_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them in one process, as somebody would who pastes them one after the other."""
    guide = (Path(__file__).parents[2] / "docs/python.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    assert len(examples) >= 7
    numbered_clip(tmp_path / "in.mkv", frames=6)
    (tmp_path / "guide.py").write_text("\n".join(examples), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "guide.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 frames" in done.stdout
    assert len(list(tmp_path.glob("frame-*.png"))) == 6
    assert (tmp_path / "task-in.mkv").is_file()
