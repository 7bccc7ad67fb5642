from __future__ import annotations

from pathlib import Path

import pytest

from vsr_hpc.errors import JobError
from vsr_hpc.job.inputs import expand


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def test_one_input_and_a_file_are_taken_as_they_are() -> None:
    assert expand(["a.mkv", "b.mkv"]) == (("a.mkv", "b.mkv"),)


def test_what_is_not_there_is_left_for_the_probe_to_report() -> None:
    assert expand(["gone.mkv", "b.mkv"]) == (("gone.mkv", "b.mkv"),)


def test_a_folder_as_output_keeps_the_name_of_each_clip() -> None:
    _touch("a.mp4", "b.mov")
    assert expand(["a.mp4", "b.mov", "out"]) == (("a.mp4", "out/a.mp4"), ("b.mov", "out/b.mov"))
    assert expand(["a.mp4", "out/"]) == (("a.mp4", "out/a.mp4"),)
    Path("there").mkdir()
    assert expand(["a.mp4", "there"]) == (("a.mp4", "there/a.mp4"),)


def test_a_container_that_is_not_written_becomes_matroska() -> None:
    _touch("a.ts", "b.avi")
    assert [output for _, output in expand(["a.ts", "b.avi", "out/"])] == [
        "out/a.mkv",
        "out/b.mkv",
    ]


def test_a_folder_of_clips_is_all_its_clips_and_nothing_else() -> None:
    _touch("clips/b.mkv", "clips/a.MP4", "clips/notes.txt", "clips/a.jpg")
    assert [source for source, _ in expand(["clips", "out/"])] == ["clips/a.MP4", "clips/b.mkv"]


def test_a_folder_of_images_is_one_clip_also_into_a_folder() -> None:
    _touch("shots/1.png", "shots/2.png")
    Path("out").mkdir()
    assert expand(["shots", "out"]) == (("shots", "out"),)
    assert expand(["shots/%d.png", "out/"]) == (("shots/%d.png", "out/"),)
    assert expand(["shots/*.png", "out/"]) == (("shots/*.png", "out/"),)


def test_a_glob_of_clips_is_each_of_them() -> None:
    _touch("b.mkv", "a.mkv", "c.mp4", "d.mkv.txt")
    assert [source for source, _ in expand(["*.m*", "out/"])] == ["a.mkv", "b.mkv", "c.mp4"]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file() -> None:
    _touch("Show [1080p].mkv", "100%d.mkv", "what?.mkv")
    Path("out").mkdir()
    for name in ("Show [1080p].mkv", "100%d.mkv", "what?.mkv"):
        assert expand([name, "out"]) == ((name, f"out/{name}"),)


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["a.mkv", "b.mkv", "one.mkv"], "2 inputs cannot all become one.mkv; name a folder"),
        (["*.webm", "out/"], r"\*.webm: no clip or image matches this pattern$"),
        (["*.txt", "out/"], r"no clip or image matches this pattern, only x.txt"),
        (["a.mkv", "sub/a.mkv", "out/"], "several inputs would be written to out/a.mkv"),
    ],
)
def test_what_cannot_be_meant_is_refused(paths: list[str], said: str) -> None:
    _touch("a.mkv", "b.mkv", "sub/a.mkv", "x.txt")
    with pytest.raises(JobError, match=said):
        expand(paths)


def test_an_address_is_no_pattern() -> None:
    assert expand(["s3://films/a?.mkv", "out/"]) == (("s3://films/a?.mkv", "out/a?.mkv"),)
