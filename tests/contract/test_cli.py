"""What the command line does and says when all is well: answers on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from tests.clips import frame_number, numbered_clip, numbered_planes, picture
from tests.commands import MODULE, process, vsr
from vsr_hpc import __version__
from vsr_hpc.bench.made_clip import make_demo_clip
from vsr_hpc.cli import main as cli
from vsr_hpc.errors import JobError, VsrError
from vsr_hpc.job.reading import load_job
from vsr_hpc.media.clip.reader import read_segment
from vsr_hpc.media.stills.still import read_image, write_image
from vsr_hpc.run.liveness import is_process_gone
from vsr_hpc.run.run import Run

_FAST = ("--model", "bicubic", "--preset", "ultrafast", "--scale", "2")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, as a new user."""
    for name in ("STATE", "CACHE", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return numbered_clip(tmp_path_factory.mktemp("clip") / "clip.mkv", frames=12, audio=True)


@pytest.fixture
def made(clip: Path, here: Path) -> Path:
    """A finished run in the present folder."""
    shutil.copy(clip, here / "in.mkv")
    assert vsr("upscale", "in.mkv", "out.mkv", *_FAST).code == 0
    return here / "out.mkv"


# Help, version, completion


def _commands() -> Iterator[tuple[str, Any]]:
    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        children = getattr(command, "commands", None)
        if children is None and not command.hidden:
            yield name, command
        for child, each in (children or {}).items():
            yield from walk(f"{name} {child}".strip(), each)

    yield from walk("", typer.main.get_command(cli.app))


@pytest.mark.parametrize(
    ("name", "command"), list(_commands()), ids=lambda each: each if isinstance(each, str) else ""
)
def test_every_command_explains_itself_with_an_example(name: str, command: Any) -> None:
    assert command.help
    assert f"vsr {name}" in command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name} {parameter.name} says nothing of itself"


def test_help_imports_no_library_that_is_slow_to_load() -> None:
    heavy = ["torch", "numpy", "av", "boto3", "submitit", "imageio", "starlette"]
    program = (
        "import sys; from vsr_hpc.cli.main import main; sys.argv = ['vsr', *sys.argv[1:]]\n"
        "try: main()\n"
        f"except SystemExit: print(sorted(set({heavy}) & set(sys.modules)))"
    )
    for arguments in (["--help"], ["upscale", "--help"], ["submit", "-h"], ["--version"]):
        said = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
        )
        assert said.stdout.splitlines()[-1] == "[]", arguments


def test_the_version_is_told() -> None:
    assert vsr("--version").out == f"vsr {__version__}\n"


def test_a_bare_vsr_shows_the_commands() -> None:
    said = vsr()
    assert "upscale" in said.out + said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete_commands(here: Path, shell: str) -> None:
    # by name: otherwise it is the shell that these tests were started from, which may be none of the three
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    said = process("--show-completion", shell, cwd=here, **named)
    assert said.code == 0, said.err
    assert "complet" in said.out


# Names that people type


def test_options_of_other_upscalers_mean_the_same(clip: Path, here: Path) -> None:
    for words in (["upscale"], []):
        said = vsr(*words, "-i", clip, "-o", "out.mkv", "-n", "bicubic", "-s", "2", "--preset", "ultrafast")
        assert (said.code, said.out) == (0, "out.mkv\n"), said.err


def test_a_clip_alone_is_upscaled_beside_itself(clip: Path, here: Path) -> None:
    shutil.copy(clip, "in.mkv")
    said = vsr("-v", "in.mkv", *_FAST)
    assert (said.code, said.out) == (0, "in-upscaled.mkv\n"), said.err


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        (("upscale", "a.mkv", "--scal", "2"), "did you mean --scale or"),
        (("statsu",), "Did you mean 'status'?"),
    ],
)
def test_a_wrong_name_suggests_the_right_one(here: Path, words: tuple[str, ...], suggestion: str) -> None:
    said = vsr(*words)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert suggestion in said.err


# What goes where


def test_stdout_is_the_answer_and_progress_goes_to_stderr(clip: Path, here: Path) -> None:
    said = process("upscale", clip, "out.mkv", *_FAST, cwd=here)
    assert (said.code, said.out) == (0, "out.mkv\n")
    lines = said.err.splitlines()
    assert re.fullmatch(
        r"clip\.mkv 64×48, 24 fps, about 1[23] frames → out\.mkv 128×96, bicubic \(.PU.*: .+\), "
        r"H\.264 CRF 18",
        lines[0],
    )
    phases = [line.split()[0] for line in lines[1:-1] if not re.match(r"\d+/12 frames", line)]
    assert phases == ["plan", "upscale", "merge", "verify", "report"]
    last = re.fullmatch(
        r"out\.mkv 128×96, \d+ KiB \(([\d,]+) bytes\), 12 frames at (\d+\.\d\d) fps, (\d+) s in all; "
        r"report: (\.vsr/out\.mkv/\S+/report\.html)",
        lines[-1],
    )
    assert last is not None, lines[-1]
    assert int(last[1].replace(",", "")) == (here / "out.mkv").stat().st_size
    assert Path(last[4]).is_file()
    status = vsr("status", "out.mkv").out
    assert f"speed: {last[2]} fps while upscaling\n" in status
    assert f"took: {last[3]} s, " in status
    assert f"({last[1]} bytes)" in status
    assert f"report: {here}/{last[4]}\n" in status
    assert "\x1b" not in said.err + said.out, "no colours or cursor moves where no terminal is"


def test_quiet_says_nothing_but_the_answer(clip: Path, here: Path) -> None:
    said = process("upscale", clip, "out.mkv", *_FAST, "-q", cwd=here)
    assert (said.code, said.out, said.err) == (0, "out.mkv\n", "")


def test_a_terminal_gets_a_bar(clip: Path, here: Path) -> None:
    ours, theirs = pty.openpty()
    command = [*MODULE, "upscale", str(clip), "out.mkv", *_FAST]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    with subprocess.Popen(
        command, cwd=here, env=environment, stdout=subprocess.PIPE, stderr=theirs
    ) as caller:
        os.close(theirs)
        shown = b""
        while caller.poll() is None:
            shown += _available(ours)
        shown += _available(ours)
        assert caller.stdout is not None
        assert caller.stdout.read() == b"out.mkv\n"
    os.close(ours)
    assert b"/12 frames" in shown
    assert b"\x1b[" in shown


def _available(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the other side is closed
        return b""


def test_json_is_one_document_on_stdout(made: Path) -> None:
    for command in (
        "upscale in.mkv out.mkv --model bicubic --preset ultrafast --scale 2",
        "resume out.mkv",
        "finish out.mkv",
    ):
        answer = vsr(*command.split(), "--json").json
        assert (answer["output"], answer["frames"]) == (str(made), 12)
    assert vsr("status", "out.mkv", "--json").json["state"] == "complete"
    assert vsr("verify", "in.mkv", "out.mkv", "--json").json["findings"] == []
    assert [each["state"] for each in vsr("runs", "--json").json] == ["complete"]
    assert {each["name"] for each in vsr("models", "list", "--json").json} >= {"bicubic", "RealESRGAN_x4plus"}
    assert vsr("models", "show", "bicubic", "--json").json["network"] == "bicubic"


def test_a_reader_that_closes_the_pipe_early_is_no_error(made: Path) -> None:
    command = f"{sys.executable} -m vsr_hpc status out.mkv --json | head -c 1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, check=False
    )
    assert (said.stdout, said.stderr) == ("{", "")


# Runs


def test_a_second_call_finds_nothing_to_do(made: Path) -> None:
    before = made.stat()
    said = vsr("upscale", "in.mkv", "out.mkv", *_FAST)
    assert (said.code, said.out, said.err) == (0, "out.mkv\n", "already complete, nothing to do\n")
    assert made.stat() == before


def test_a_run_is_known_by_its_folder_and_by_its_output(made: Path) -> None:
    for place in ("out.mkv", ".vsr/out.mkv", ".vsr/out.mkv/", made):
        said = vsr("status", place)
        assert said.code == 0, said.err
        assert "complete: 12/12 frames (100%)" in said.out


def test_lines_are_not_broken_for_a_program_that_reads_them(clip: Path, here: Path) -> None:
    deep = here / "/".join(["a-rather-long-name-of-a-folder"] * 6)
    assert vsr("upscale", clip, deep / "out.mkv", *_FAST).code == 0
    said = process("status", deep / "out.mkv", cwd=here)
    assert said.out.splitlines()[0] == f"{deep}/.vsr/out.mkv"


def test_the_logs_of_workers_are_shown(made: Path) -> None:
    said = vsr("logs", "out.mkv")
    assert "shard done shard=00000 frames=12" in said.out
    assert vsr("logs", "out.mkv", "--worker", "nobody").code == 2


def test_runs_lists_what_was_begun_and_is_still_there(clip: Path, here: Path) -> None:
    said = vsr("runs")
    assert (said.code, said.out, said.err) == (0, "", "no runs yet\n")
    for name in ("a.mkv", "b.mkv"):
        assert vsr("upscale", clip, name, *_FAST).code == 0
    shutil.rmtree(".vsr/a.mkv")
    assert vsr("runs").out == f"complete    100%  {here}/.vsr/b.mkv\n"


def test_a_cancelled_run_goes_on_with_resume_from_any_folder(
    clip: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(clip, here / "in.mkv")
    document = {"input": "in.mkv", "output": "out.mkv", "model": "nearest", "run": {"chunk_s": 0.125}}
    _begun(document)
    assert vsr("cancel", ".vsr/out.mkv").out.startswith("cancelled: ")
    assert vsr("status", ".vsr/out.mkv", "--json").json["state"] == "cancelled"
    monkeypatch.chdir(tmp_path)
    assert vsr("resume", here / ".vsr/out.mkv", "-q").out == "here/out.mkv\n"
    assert vsr("cancel", here / "out.mkv").out.startswith("already complete, nothing to cancel")


def _begun(document: dict[str, Any]) -> Run:
    """A run with its plan and a round, as if its workers had just been started."""
    from vsr_hpc.job.reading import parse_job
    from vsr_hpc.launch import ensure_plan, submit

    run = submit(parse_job(document, "test")).run
    ensure_plan(run)
    run.start_round("local", 1, run.plan.shard_count)
    return run


def test_a_second_ctrl_c_aborts_at_once_with_all_workers(here: Path) -> None:
    numbered_clip(here / "in.mkv", frames=96, size=(320, 180))
    options = ["--scale", "6", "--model", "lanczos", "--chunk-s", "2", "--workers", "2"]
    command = [*MODULE, "upscale", "in.mkv", "out.mkv", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as caller:
        assert caller.stderr is not None
        while caller.poll() is None and not _states(".vsr/out.mkv").count("working"):
            time.sleep(0.05)
        caller.send_signal(signal.SIGINT)
        while "stopping after the current frames" not in (line := caller.stderr.readline()):
            assert line, "it ended without a word"
        caller.send_signal(signal.SIGINT)
        said = caller.stderr.read()
    assert (caller.returncode, said) == (
        130,
        "vsr: aborted; the same command continues from the last finished shard\n",
    )
    assert all(is_process_gone(beat) for beat in Run.open("out.mkv").heartbeats())


def _states(uri: str) -> list[str]:
    try:
        return [beat.state for beat in Run.open(uri).heartbeats()]
    except JobError:  # the run is not there yet
        return []


def test_an_output_that_is_gone_is_not_taken_as_made(made: Path) -> None:
    made.unlink()
    for command in ("resume", "finish"):
        said = vsr(command, ".vsr/out.mkv")
        assert said.code == 2
        assert "is gone or was changed" in said.err
    assert vsr("upscale", "in.mkv", "out.mkv", *_FAST).code == 0
    assert made.exists()


def test_new_throws_the_earlier_run_away_only_for_a_job_that_can_run(made: Path) -> None:
    before = made.read_bytes()
    assert vsr("upscale", "in.mkv", "out.mkv", "--preset", "warp", "--new", "--overwrite").code == 2
    assert vsr("status", "out.mkv").code == 0
    assert vsr("upscale", "in.mkv", "out.mkv", *_FAST, "--crf", "40", "--new", "--overwrite", "-q").code == 0
    assert made.read_bytes() != before


def test_a_run_that_was_begun_with_other_settings_and_has_no_plan_is_not_continued(
    clip: Path, here: Path
) -> None:
    from vsr_hpc.job.reading import parse_job
    from vsr_hpc.launch import submit

    document: dict[str, Any] = {"input": str(clip), "output": "out.mkv", "model": "nearest"}
    submit(parse_job(document, "test"))  # and then the machine went down
    said = vsr("upscale", clip, "out.mkv", "--model", "bicubic")
    assert said.code == 2
    assert said.err.endswith("--overwrite makes it anew: --model was nearest, now bicubic\n")


def test_a_user_without_home_or_name_can_work(
    clip: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that was started with an id of its own."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in (
        "HOME",
        "LOGNAME",
        "USER",
        "LNAME",
        "USERNAME",
        "XDG_STATE_HOME",
        "XDG_DATA_HOME",
        "XDG_CACHE_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("pathlib.Path.mkdir", _not_below("/.local", Path.mkdir))
    said = vsr("upscale", clip, "out.mkv", *_FAST, "-q")
    assert (said.code, said.err) == (0, "")
    assert Run.open("out.mkv").rounds()[0].user == f"uid-{os.getuid()}"


def _not_below(closed: str, really: Any) -> Any:
    def mkdir(self: Path, *arguments: Any, **named: Any) -> None:
        if str(self).startswith(closed):
            raise PermissionError(13, "Permission denied", str(self))
        really(self, *arguments, **named)

    return mkdir


# Plans


def test_a_plan_is_shown_and_nothing_is_written(clip: Path, here: Path) -> None:
    job = here / "job.yaml"
    job.write_text(f"input: {clip}\noutput: out.mkv\nmodel: lanczos\npicture: {{scale: 3}}\n")
    for command in (["plan", job], ["submit", job, "--dry-run"]):
        said = vsr(*command)
        assert said.code == 0, said.err
        assert "64x48 yuv420p  12 frames" in said.out
        assert "192x144 yuv420p  libx264" in said.out
    answer = vsr("plan", job, "--json").json
    assert (answer["picture"]["width"], answer["chunk_borders"]) == (192, [0, 12])
    assert [path.name for path in here.iterdir()] == ["job.yaml"]


def test_the_job_file_for_this_machine_runs(here: Path) -> None:
    (here / "jobs").mkdir()
    (here / "demo").mkdir()
    shutil.copy(ROOT / "jobs" / "local.yaml", here / "jobs")
    make_demo_clip(here / "demo" / "clip.mkv", seconds=2)
    said = vsr("submit", "jobs/local.yaml", "-q")
    assert (said.code, said.err) == (0, "")
    output = Path(load_job(Path("jobs/local.yaml")).output)
    assert said.out == "demo/bigger.mkv\n"
    assert vsr("verify", "demo/clip.mkv", output).code == 0


# Several inputs


def test_several_inputs_go_into_a_folder(clip: Path, here: Path) -> None:
    shutil.copy(clip, "a.mkv")
    numbered_clip(here / "b.ts", frames=4, codec="mpeg2video")
    said = vsr("upscale", "a.mkv", "b.ts", "big/", *_FAST, "--json")
    assert [Path(each["output"]).name for each in said.json] == ["a.mkv", "b.mkv"]
    assert vsr("upscale", "a.mkv", "b.ts", "big/", *_FAST, "-q").out == "big/a.mkv\nbig/b.mkv\n"


def test_a_folder_and_a_glob_stand_for_their_clips(clip: Path, here: Path) -> None:
    (here / "clips").mkdir()
    for name in ("a.mkv", "b.mkv"):
        shutil.copy(clip, here / "clips" / name)
    assert vsr("upscale", "clips", "one/", *_FAST, "-q").out == "one/a.mkv\none/b.mkv\n"
    assert vsr("upscale", "clips/b*", "two/", *_FAST, "-q").out == "two/b.mkv\n"


def test_an_input_that_is_refused_does_not_stop_the_others(clip: Path, here: Path) -> None:
    (here / "a.mkv").write_text("no clip")
    shutil.copy(clip, "b.mkv")
    said = vsr("upscale", "a.mkv", "b.mkv", "big/", *_FAST, "-q")
    assert (said.code, said.out) == (3, "big/b.mkv\n")
    assert said.err.startswith("vsr: 1 of 2: a.mkv: FFmpeg cannot open this as a video")
    assert said.err.endswith("vsr: 1 of 2 inputs were not upscaled\n")


def test_a_model_that_is_not_known_is_said_once_for_all_inputs(clip: Path, here: Path) -> None:
    said = vsr("upscale", clip, clip.with_name("other.mkv"), "big/", "--model", "lancsoz")
    assert (said.code, said.err.count("did you mean")) == (2, 1)


# Stills


def _shots(folder: Path) -> None:
    folder.mkdir()
    shape = picture((32, 24), "gbrp16le")
    for number in (7, 8, 9):
        write_image(folder / f"shot_{number:04d}.png", shape, numbered_planes(number, shape))


def test_a_folder_of_pictures_keeps_their_names_and_depth(here: Path) -> None:
    _shots(here / "shots")
    said = vsr("upscale", "shots", "big/", "--scale", "2", "--model", "nearest")
    assert (said.code, said.out) == (0, "big\n")
    assert "images have no frame rate" in said.err
    names = [f"shot_{number:04d}.png" for number in (7, 8, 9)]
    assert sorted(path.name for path in (here / "big").iterdir()) == names
    for name in names:
        (_, before, _), (shape, after, _) = read_image(here / "shots" / name), read_image(here / "big" / name)
        assert shape.pixel.depth == 16
        for one, two in zip(before, after, strict=True):
            assert np.array_equal(one.repeat(2, axis=0).repeat(2, axis=1), two)


def test_pictures_become_a_film_at_the_rate_that_is_asked_for(here: Path) -> None:
    _shots(here / "shots")
    said = vsr(
        "upscale",
        "shots",
        "film.mkv",
        "--rate",
        "24000/1001",
        "--codec",
        "ffv1",
        "--model",
        "bicubic",
        "--scale",
        "2",
    )
    assert said.code == 0, said.err
    answer = vsr("verify", "shots", "film.mkv", "--json").json
    assert (answer["frames"], answer["findings"]) == (3, [])


def test_a_film_becomes_pictures_and_what_they_cannot_hold_is_said(clip: Path, here: Path) -> None:
    said = vsr("upscale", clip, "frames/f_%03d.png", "--model", "bicubic", "--scale", "2")
    assert (said.code, said.out) == (0, "frames/f_%03d.png\n")
    assert "these streams are left out: audio" in said.err
    names = sorted(path.name for path in (here / "frames").glob("*.png"))
    assert names == [f"f_{number:03d}.png" for number in range(1, 13)]


def test_photographs_of_any_size_and_format_keep_their_names_and_a_broken_one_stops_nobody(
    here: Path,
) -> None:
    (here / "photos").mkdir()
    for name, size in (("beach.jpg", (40, 30)), ("Zoo.png", (24, 32)), ("cat.webp", (32, 24))):
        shape = picture(size, "yuvj420p" if name == "beach.jpg" else "yuv420p" if "webp" in name else "gbrp")
        write_image(here / "photos" / name, shape, numbered_planes(7, shape))
    (here / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff and no more")
    (here / "photos" / "phone.jxl").write_bytes(b"\0\0\0\x0cJXL \r\n\x87\n")
    said = vsr("upscale", "photos", "big", "--scale", "2", "--no-report")
    assert (said.code, said.out) == (3, "big/beach.jpg\nbig/cat.webp\nbig/Zoo.png\n"), said.err
    lines = said.err.splitlines()
    assert [line.split(" (")[0] for line in lines if " → " in line] == [
        "1 of 5: beach.jpg 40×30 → beach.jpg 80×60, vsr-video-x2",
        "3 of 5: cat.webp 32×24 → cat.webp 64×48, vsr-clean-x2",
        "5 of 5: Zoo.png 24×32 → Zoo.png 48×64, vsr-clean-x2",
    ]
    assert sum("the model is vsr-clean-x2" in line for line in lines) == 1
    assert any(line.startswith(f"vsr: 2 of 5: {here}/photos/broken.jpg: ") for line in lines)
    assert any(line.startswith("vsr: 4 of 5: photos/phone.jxl: this kind of picture") for line in lines)
    assert lines[-1] == "vsr: 2 of 5 inputs were not upscaled"
    assert not any(line.split()[0] in ("plan", "merge") for line in lines)
    assert read_image(here / "big" / "Zoo.png")[0].height == 64


def test_a_single_still_goes_in_and_out_with_its_16_bits(here: Path) -> None:
    _shots(here / "shots")
    said = vsr("upscale", "shots/shot_0008.png", "big.png", "--model", "bicubic", "--scale", "3")
    assert (said.code, said.out) == (0, "big.png\n")
    shape, _, _ = read_image(here / "big.png")
    assert (shape.width, shape.height, shape.pixel.depth) == (96, 72, 16)


# Parts of a clip


def test_a_part_is_cut_by_time_or_by_frames(clip: Path, here: Path) -> None:
    for name, options, numbers in (
        ("a.mkv", ["--from", "3f", "--frames", "4"], [3, 4, 5, 6]),
        ("b.mkv", ["--from", "0:00.25", "--to", "0.5"], [6, 7, 8, 9, 10, 11]),
        ("c.mkv", ["--to", "2f"], [0, 1]),
    ):
        said = vsr("upscale", clip, name, *_FAST, *options)
        assert said.code == 0, said.err
        assert [frame_number(frame) for frame in read_segment(here / name)] == numbers


def test_one_side_of_the_size_may_be_left_to_follow(clip: Path, here: Path) -> None:
    assert (
        vsr("upscale", clip, "out.mkv", "--size", "160x", "--model", "bicubic", "--preset", "ultrafast").code
        == 0
    )
    answer = json.loads(Run.open("out.mkv").store.read("plan.json"))
    assert (answer["picture"]["width"], answer["picture"]["height"]) == (160, 120)


# The guide


def test_the_guide_names_every_command_exit_code_and_variable() -> None:
    guide = (ROOT / "docs" / "cli.md").read_text()
    for name, _ in _commands():
        group = name.split()[0]
        assert f"`vsr {name}" in guide or f"`vsr {group} …`" in guide, f"vsr {name} is not in docs/cli.md"
    for error in (VsrError, *VsrError.__subclasses__()):
        assert f"| {error.exit_code} |" in guide
    sources = "".join(path.read_text() for path in (ROOT / "vsr_hpc").rglob("*.py"))
    for variable in set(
        re.findall(r"\b(?:VSR_(?!SERVE|S3_\b)[A-Z0-9_]+[A-Z0-9]|XDG_[A-Z]+_HOME)\b", sources)
    ):
        assert f"`{variable}`" in guide, f"{variable} is not in docs/cli.md"
    for variable in re.findall(r"`(VSR_[A-Z0-9_]+|XDG_[A-Z_]+)`", guide):
        assert variable in sources, f"{variable} is in docs/cli.md and nowhere else"


def test_submit_takes_two_places_and_options_as_upscale_does(clip: Path, here: Path) -> None:
    said = vsr("submit", clip, "out.mkv", *_FAST)
    assert (said.code, said.out) == (0, "out.mkv\n"), said.err
    other = vsr("submit", clip, "out.mkv", *_FAST, "--crf", "30")
    assert other.code == 2
    assert other.err == (
        f"vsr: {here}/out.mkv was made with other settings; --overwrite makes it anew: "
        "the quality was CRF 18, now CRF 30\n"
    )
    again = vsr("submit", clip, "out.mkv", *_FAST, "--crf", "30", "--overwrite", "-q")
    assert (again.code, again.out) == (0, "out.mkv\n"), again.err


def test_options_count_for_more_than_the_job_file(clip: Path, here: Path) -> None:
    Path("job.yaml").write_text(
        f"input: {clip}\noutput: out.mkv\nmodel: nearest\nvideo: {{crf: 30, preset: medium}}\n"
    )
    shown = vsr(
        "submit", "job.yaml", "--dry-run", "--json", "--crf", "21", "--workers", "3", "--frames", "5"
    ).json
    job = shown["job"]
    assert (job["video"]["crf"], job["video"]["preset"], job["run"]["workers"]) == (21, "medium", 3)
    assert shown["job"]["range"]["frames"] == 5


def test_submit_makes_a_job_of_each_input_as_the_file_says(clip: Path, here: Path) -> None:
    (here / "clips").mkdir()
    for name in ("a.mkv", "b.mkv"):
        shutil.copy(clip, here / "clips" / name)
    Path("job.yaml").write_text("input: x.mkv\noutput: y.mkv\nmodel: nearest\nvideo: {preset: ultrafast}\n")
    said = vsr("submit", "job.yaml", "clips", "big/", "-q")
    assert (said.code, said.out) == (0, "big/a.mkv\nbig/b.mkv\n"), said.err
    shown = vsr("submit", "job.yaml", "clips/a.mkv", "c.mkv", "--dry-run", "--json").json["job"]
    assert (shown["input"], shown["output"], shown["model"]) == ("clips/a.mkv", "c.mkv", "nearest")


def test_several_inputs_cannot_share_one_file_or_one_runs_place(clip: Path, here: Path) -> None:
    said = vsr("submit", clip, clip, "out.mkv")
    assert (said.code, "cannot all become out.mkv" in said.err) == (2, True), said.err
    Path("job.yaml").write_text("input: x.mkv\noutput: y.mkv\nrun: {location: here}\n")
    shutil.copy(clip, "a.mkv")
    said = vsr("submit", "job.yaml", "a.mkv", clip, "big/")
    assert (said.code, "run.location can hold one run only" in said.err) == (2, True), said.err
    said = vsr("plan", "a.mkv", clip, "big/")
    assert (said.code, "2 inputs are 2 jobs" in said.err) == (2, True), said.err
