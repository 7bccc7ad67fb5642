"""The fields of a job are the only source of its keys, options, help, docs and reproduced command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from vsr_hpc.cli.main import app
from vsr_hpc.cli.reference import reference, with_reference
from vsr_hpc.errors import JobError
from vsr_hpc.job.inputs import expand
from vsr_hpc.job.options import PANELS, command_line, job_keys, job_options, spell_option
from vsr_hpc.job.reading import load_job, parse_job
from vsr_hpc.job.spec import JobSpec, Option, PictureSection

LEAST = {"input": "in.mkv", "output": "out.mkv"}


class _Picture(PictureSection):
    halo: Annotated[int | None, Option("Picture", also=("-H",))] = Field(
        None, ge=1, le=9, description="How far the halo reaches."
    )


class _Job(JobSpec):
    picture: _Picture = _Picture()


def _params(*words: str) -> dict[str, Any]:
    command: Any = typer.main.get_command(app)
    found: dict[str, Any] = command.commands["upscale"].make_context("upscale", list(words)).params
    return found


def test_a_field_is_a_key_an_option_a_help_a_row_and_a_part_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsr_hpc.job.reading.JobSpec", _Job)
    monkeypatch.setattr("vsr_hpc.job.options.JobSpec", _Job)
    file = tmp_path / "job.yaml"
    file.write_text("input: in.mkv\noutput: out.mkv\npicture: {halo: 3}\n")
    job: Any = load_job(file)
    assert job.picture.halo == 3
    shown = CliRunner().invoke(app, ["upscale", "--help"], env={"COLUMNS": "200"}).output
    assert "--halo" in shown and "1..9" in shown and "How far the halo reaches." in shown
    assert _params("in.mkv", "out.mkv", "-H", "3")["picture__halo"] == "3"
    assert "| `--halo`, `-H` | `picture.halo` | `1..9` | How far the halo reaches. |" in reference()
    assert "--halo 3" in command_line(job)
    with pytest.raises(JobError, match=r"^--halo: must be at most 9, not 10$"):
        parse_job({**LEAST, "picture": {"halo": "10"}}, "", spell=spell_option)


def test_every_key_is_described_and_no_name_is_taken_twice() -> None:
    assert [key.key for key in job_keys() if not key.description] == []
    names = [name for key in job_options() for name in key.names]
    assert len(set(names)) == len(names)


def test_the_guide_has_the_tables_that_the_fields_make() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    assert with_reference(guide) == guide, "run: python -m vsr_hpc.cli.reference docs/cli.md"


@pytest.mark.parametrize("name", ["upscale", "submit", "plan"])
def test_options_stand_in_panels_of_at_most_ten(name: str) -> None:
    command: Any = typer.main.get_command(app)
    context = typer.Context(command.commands[name])
    panels: dict[str, list[str]] = {}
    for each in context.command.get_params(context):
        if each.param_type_name == "option" and not getattr(each, "hidden", False):
            panels.setdefault(getattr(each, "rich_help_panel", "") or "", []).append(each.opts[0])
    assert "" not in panels, f"without a panel: {panels['']}"
    expected = [panel for panel in PANELS if name == "submit" or panel != "Slurm"]
    assert [panel for panel in panels if panel in PANELS] == expected
    assert {panel: options for panel, options in panels.items() if len(options) > 10} == {}


def test_a_command_says_all_that_differs_from_the_defaults_and_can_be_read_back() -> None:
    sections: dict[str, Any] = {
        "model": "nearest",
        "picture": {"size": "1920x", "grain": 1.25, "seed": 3, "skip_duplicates": True},
        "video": {"codec": "hevc", "params": {"keyint": "48", "bframes": "0"}},
        "streams": {"drop": ["data", "cover"]},
        "range": {"from": "1:30"},
        "run": {"gpus": [0, 1], "reproducible": "strict", "workers": 2},
    }
    job = parse_job({**LEAST, **sections}, "test")
    found = _params(*shlex.split(command_line(job))[2:])
    given = {key: value for key, value in found.items() if value not in (None, [], False)}
    assert given.items() >= {
        "model": "nearest", "picture__size": "1920x", "picture__grain": "1.25", "picture__seed": "3",
        "picture__skip_duplicates": True, "video__codec": "h265", "range__from": "1:30", "run__gpus": "0,1",
        "run__reproducible": True, "run__workers": "2", "streams__drop": ["data", "cover"],
        "video__params": "keyint=48:bframes=0",
    }.items()  # fmt: skip


@pytest.mark.parametrize(
    ("word", "codec"), [("hevc", "h265"), ("x265", "h265"), ("avc", "h264"), ("H264", "h264"), ("av1", "av1")]
)
def test_codecs_have_the_names_that_people_type(word: str, codec: str) -> None:
    assert parse_job({**LEAST, "video": {"codec": word}}, "").video.codec == codec


def test_an_input_alone_has_an_output_beside_it(tmp_path: Path) -> None:
    assert expand(["films/in.mp4"]) == (("films/in.mp4", "films/in-upscaled.mp4"),)
    assert expand(["in.ts"]) == (("in.ts", "in-upscaled.mkv"),)
    frames = tmp_path / "frames"
    frames.mkdir()
    assert expand([str(frames)]) == ((str(frames), f"{frames}-upscaled/"),)
    (frames / "a.mkv").touch()
    assert expand([str(frames)]) == ((f"{frames}/a.mkv", f"{frames}-upscaled/a.mkv"),)
    for place, why in (("s3://films/in.mkv", "name an output"), ("job.yaml", "vsr submit job.yaml")):
        with pytest.raises(JobError, match=why):
            expand([place])
