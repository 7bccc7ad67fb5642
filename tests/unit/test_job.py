from __future__ import annotations

import os
from pathlib import Path

import pytest

from vsr_hpc.errors import JobError
from vsr_hpc.job.reading import load_job, parse_job

JOBS = Path(__file__).parents[2] / "jobs"
LEAST = {"input": "in.mkv", "output": "out.mkv", "model": "bicubic"}


OF_OTHERS = ("endpoint-", "ec2-", "values")  # loaded by the tests of serving and of clusters
JOB_FILES = sorted(path for path in JOBS.glob("*.yaml") if not path.name.startswith(OF_OTHERS))


@pytest.mark.parametrize("path", JOB_FILES, ids=lambda path: path.name)
def test_every_job_file_that_we_ship_loads(path: Path) -> None:
    assert load_job(path).model


def test_all_faults_of_a_job_are_reported_at_once() -> None:
    with pytest.raises(JobError) as caught:
        parse_job({"input": "a", "picture": {"scale": -1, "tlie": 3, "size": "12"}, "outptu": "b"}, "x.yaml")
    text = str(caught.value)
    assert text.startswith("x.yaml: 5 problems")
    for part in (
        "output: missing",
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
        ("input: in.mkv\noutput: out.mkv\nmodel: bicubic\ninput: b.mkv\n", "'input' is there twice"),
        ("input: 2026-99-99\n", "not YAML"),
        ("[" * 100_000, "nested too deeply"),
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
    with pytest.raises(JobError, match="is no text"):
        load_job(path)


def test_a_job_file_is_a_plain_file_of_modest_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b" " * (1 << 20) + b"a: b")
    for name, why in (("pipe", "this is none"), (".", "this is none"), ("gone", "no such file")):
        with pytest.raises(JobError, match=why):
            load_job(tmp_path / name)
    with pytest.raises(JobError, match="1048580 bytes is no job file"):
        load_job(tmp_path / "large")


def test_a_yaml_of_exponential_size_is_not_spelled_out(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
    path = tmp_path / "job.yaml"
    path.write_text("\n".join([*lines, "input: *a39"]))
    with pytest.raises(JobError, match="input: must be a text") as caught:
        load_job(path)
    assert len(str(caught.value)) < 10_000


def test_weights_beside_the_job_file_are_meant_by_their_name(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("input: in.mkv\noutput: out.mkv\nmodel: own.pth\n")
    assert load_job(path).model == "own.pth"
    (tmp_path / "own.pth").touch()
    assert load_job(path).model == str(tmp_path / "own.pth")


def test_one_side_of_a_size_may_follow_the_other() -> None:
    for text, size in (("1920x1080", (1920, 1080)), ("1920x", (1920, None)), ("x1080", (None, 1080))):
        assert parse_job({**LEAST, "picture": {"size": text}}, "x").picture.size == size


def test_sizes_have_names() -> None:
    for text, size in (("1080p", "1080p"), ("4K", "4k"), ("1920×1080", (1920, 1080))):
        assert parse_job({**LEAST, "picture": {"size": text}}, "x").picture.size == size
    with pytest.raises(JobError, match=r"is not a size; write WIDTHxHEIGHT, .* or a name: 480p, 720p, 1080p"):
        parse_job({**LEAST, "picture": {"size": "1081p"}}, "x")


def test_stretch_needs_both_sides() -> None:
    for size in (None, "x1080", "1920x"):
        with pytest.raises(JobError, match="stretch needs a size with both sides"):
            parse_job({**LEAST, "picture": {"size": size, "stretch": True}}, "x")


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"picture": {"tile": "no"}}, "picture.tile: must be a whole number or 'auto' or 'none', not 'no'"),
        ({"picture": {"tile": 3}}, "picture.tile: 3 is too small to be efficient; use 32 or more"),
        ({"picture": {"scale": 0}}, "picture.scale: must be more than 0, not 0"),
        ({"video": {"crf": 99}}, "video.crf: must be at most 63, not 99"),
        ({"streams": {"audio": 1}}, "streams.audio: must be 'copy', 'aac', 'opus' or 'none', not 1"),
        ({"video": {"params": {"a": []}}}, "video.params.a: must be a text, not []"),
        ({"run": []}, "run: must be a mapping of keys, not []"),
        (
            {"slurm": {"container": {"image": "a", "img": 1}}},
            "slurm.container.img: unknown key; did you mean image?",
        ),
        ({"input": "a\udcff"}, "input: 'a\\udcff' is not UTF-8, which a run's files need; rename it"),
        ({"images": {"rate": "24/0"}}, "images.rate: '24/0' is not a frame rate; write 24, 29.97 or "),
    ],
)
def test_a_wrong_value_is_told_in_plain_words(section: dict[str, object], said: str) -> None:
    with pytest.raises(JobError) as caught:
        parse_job({**LEAST, **section}, "x")
    assert str(caught.value).startswith(f"x: {said}")


def test_a_key_is_spelled_as_the_person_wrote_it() -> None:
    with pytest.raises(JobError, match=r"^--crf: must be at most 63, not 99$"):
        parse_job({**LEAST, "video": {"crf": 99}}, "", spell=lambda key: f"--{key.split('.')[-1]}")


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
    assert parse_job(LEAST, "x").run_uri == ".vsr/out.mkv"
    assert parse_job({**LEAST, "run": {"location": "/tmp/r"}}, "x").run_uri == "/tmp/r"


@pytest.mark.parametrize(
    "document",
    [
        {"output": "film\ntouch /tmp/owned #.mkv"},
        {"input": "in\x1b[2J.mkv"},
        {"run": {"location": "s3://films/runs\r\nx"}},
        {"slurm": {"partitions": ["spot\n#SBATCH --wrap=x"]}},
    ],
)
def test_control_characters_are_refused_wherever_they_reach_a_script(document: dict[str, object]) -> None:
    with pytest.raises(JobError, match="control character"):
        parse_job({**LEAST, **document}, "x")


def test_the_lines_of_slurm_setup_may_be_several() -> None:
    assert parse_job({**LEAST, "slurm": {"setup": ["module load a\nmodule load b"]}}, "x").slurm.setup
