from __future__ import annotations

from pathlib import Path

import pytest

from tests.clips import numbered_planes, picture
from vsr_hpc.errors import JobError
from vsr_hpc.job.inputs import expand
from vsr_hpc.media.stills.still import write_image


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


def _write(name: str, size: tuple[int, int] = (16, 12)) -> None:
    Path("in").mkdir(exist_ok=True)
    shape = picture(size, "gbrp")
    write_image(Path("in") / name, shape, numbered_planes(1, shape))


def test_numbered_images_of_one_size_are_the_frames_of_one_clip() -> None:
    for number in (1, 2, 3):
        _write(f"f_{number}.png")
    assert expand(["in", "out/"]) == (("in", "out/"),)
    assert expand(["in/*.png", "out/"]) == (("in/*.png", "out/"),)
    assert expand(["in/f_%d.png", "out/"]) == (("in/f_%d.png", "out/"),)
    Path("there").mkdir()
    assert expand(["in", "there"]) == (("in", "there"),)


@pytest.mark.parametrize(
    "others",
    [
        [("f_2.png", (18, 12))],  # another size
        [("f_3.png", (16, 12))],  # a gap
        [("g.png", (16, 12))],  # no number
        [("f_2.tif", (16, 12))],  # another format
    ],
)
def test_other_images_are_inputs_of_their_own(others: list[tuple[str, tuple[int, int]]]) -> None:
    _write("f_1.png")
    for name, size in others:
        _write(name, size)
    name = others[0][0]
    assert expand(["in", "out/"]) == (("in/f_1.png", "out/f_1.png"), (f"in/{name}", f"out/{name}"))
    assert expand(["in", "out/"], are_frames=True) == (("in", "out/"),)
    assert expand(["in", "out.mkv"]) == (("in", "out.mkv"),)
    assert expand(["in", "out/f_%03d.png"]) == (("in", "out/f_%03d.png"),)


def test_an_image_that_cannot_be_read_is_an_input_all_the_same() -> None:
    _write("f_1.png")
    Path("in/f_2.png").write_bytes(b"no image")
    Path("in/f_3.heic").write_bytes(b"none either")
    Path("in/notes.txt").write_text("not a picture")
    assert expand(["in", "out/"])[1:] == (("in/f_2.png", "out/f_2.png"), ("in/f_3.heic", "out/f_3.png"))


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
