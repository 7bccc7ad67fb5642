from __future__ import annotations

from pathlib import Path

import pytest

from vsr_hpc.errors import JobError
from vsr_hpc.job import load_job, parse_job

JOBS = Path(__file__).parents[2] / "jobs"
LEAST = {"input": "in.mkv", "output": "out.mkv", "model": "bicubic"}


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_job_file_that_we_ship_loads(path: Path) -> None:
    assert load_job(path).model


def test_all_faults_of_a_job_are_reported_at_once() -> None:
    with pytest.raises(JobError) as caught:
        parse_job({"input": "a", "picture": {"scale": -1, "tlie": 3, "size": "12"}, "outptu": "b"}, "x.yaml")
    text = str(caught.value)
    assert text.startswith("x.yaml: 6 things to mend")
    for part in (
        "model: missing",
        "picture.scale",
        "did you mean tile?",
        "write WIDTHxHEIGHT",
        "did you mean output?",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "found an empty file"),
        ("- a\n- b\n", "found a list"),
        ("input: [", "not YAML"),
        ("a: &a [*a]\n", "unknown key"),
        ("!!python/object/apply:os.system [true]", "not YAML"),
        ("input: in.mkv\noutput: out.mkv\nmodel: bicubic\nrun: {workers: many}\n", "run.workers"),
        ("input: in.mkv\noutput: out.mkv\nmodel: bicubic\npicture: {scale: 2, size: 64x64}\n", "not both"),
        ("input: in.mkv\noutput: out.mkv\nmodel: bicubic\npicture: {scale: .inf}\n", "picture.scale"),
        ("input: in.mkv\noutput: out.mkv\nmodel: bicubic\nrange: {from: yesterday}\n", "range.from"),
    ],
)
def test_a_wrong_job_file_ends_in_a_sentence(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(JobError, match=expected):
        load_job(path)


def test_a_job_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(JobError, match="cannot be read"):
        load_job(path)


def test_relative_paths_start_from_the_job_file(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("input: in.mkv\noutput: s3://bucket/out.mkv\nmodel: bicubic\n")
    job = load_job(path)
    assert job.input == str(tmp_path / "in.mkv")
    assert job.output == "s3://bucket/out.mkv"
    assert job.model == "bicubic"


def test_numbers_are_taken_where_texts_are_meant() -> None:
    job = parse_job({**LEAST, "video": {"preset": 8, "params": {"aq-mode": 3}}, "range": {"from": 3.5}}, "x")
    assert job.video.preset == "8"
    assert job.video.params == {"aq-mode": "3"}
    assert job.range.start == "3.5"


def test_the_run_lies_beside_the_output_unless_told() -> None:
    assert parse_job(LEAST, "x").run_uri == "out.mkv.vsr"
    assert parse_job({**LEAST, "run": {"location": "/tmp/r"}}, "x").run_uri == "/tmp/r"
