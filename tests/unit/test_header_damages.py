"""`verify` sees damage of headers that real tools make: ffmpeg, mkvmerge and mkvpropedit."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests import clips
from tests.require import require
from tests.tools import find_tool
from vsr_hpc.media.picture import Colour
from vsr_hpc.verification.verify import Verification, verify

SUBTITLES = "1\n00:00:00,100 --> 00:00:00,400\none\n\n2\n00:00:00,500 --> 00:00:00,900\ntwo\n"
CHAPTERS = "".join(
    f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={start}\nEND={stop}\ntitle={title}\n"
    for start, stop, title in ((0, 400, "a"), (500, 900, "b"))
)
TAGGED = ("-color_range", "tv", "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709")


def run(name: str, *arguments: str | Path) -> None:
    """Run one of the tools; mkvmerge ends with 1 where it only warns."""
    program = find_tool(name)
    if program is None:
        require("media-tools", f"{name} is missing; tests/install-tools.sh installs it")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode in ((0, 1) if name.startswith("mkv") else (0,)), done.stdout + done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sound tracks, subtitles, chapters with a gap between them, and a font."""
    folder = tmp_path_factory.mktemp("headers")
    (folder / "in.srt").write_text(SUBTITLES)
    (folder / "chapters.txt").write_text(";FFMETADATA1\n" + CHAPTERS)
    (folder / "in.ttf").write_bytes(bytes(range(200)))
    picture = clips.numbered_clip(folder / "picture.mkv", frames=24)
    sound = ("-f", "lavfi", "-i", "sine=duration=1", "-f", "lavfi", "-i", "sine=880:duration=1")
    inputs = ("-i", picture, *sound, "-i", folder / "in.srt", "-i", folder / "chapters.txt")
    maps = ("-map", "0", "-map", "1", "-map", "2", "-map", "3", "-map_metadata", "4", "-map_chapters", "4")
    kinds = ("-disposition:a:0", "default", "-disposition:a:1", "0", "-disposition:s:0", "0")
    font = ("-attach", folder / "in.ttf", "-metadata:s:t", "mimetype=font/ttf")
    codecs = ("-c:v", "libx264", *TAGGED, "-c:a", "flac", "-c:s", "srt")
    run("ffmpeg", "-v", "error", *inputs, *maps, *codecs, *kinds, *font, folder / "in.mkv")
    return folder / "in.mkv"


def copied(source: Path, output: Path, *options: str | Path) -> None:
    run("ffmpeg", "-v", "error", "-i", source, "-map", "0", "-c", "copy", *options, output)


def edited(source: Path, output: Path, *edits: str) -> None:
    output.write_bytes(source.read_bytes())
    run("mkvpropedit", output, *edits)


def with_later_subtitle_ends(source: Path, output: Path) -> None:
    changed = output.with_suffix(".srt")
    changed.write_text(SUBTITLES.replace("00:00:00,900", "00:00:00,700"))
    maps = ("-map", "0:v", "-map", "0:a", "-map", "1", "-map", "0:t", "-disposition:s:0", "0")
    run("ffmpeg", "-v", "error", "-i", source, "-i", changed, *maps, "-c", "copy", output)


def with_moved_chapter_end(source: Path, output: Path) -> None:
    changed = output.with_suffix(".txt")
    changed.write_text(";FFMETADATA1\n" + CHAPTERS.replace("END=900", "END=700"))
    inputs = ("-i", source, "-i", changed)
    run("ffmpeg", "-v", "error", *inputs, "-map", "0", "-map_chapters", "1", "-c", "copy", output)


def merged(source: Path, output: Path, *options: str) -> None:
    run("mkvmerge", "-q", "-o", output, *options, source)


Make = Callable[[Path, Path], None]


def by(make: Callable[..., None], *options: str) -> Make:
    return lambda source, output: make(source, output, *options)


def texts(result: Verification) -> Sequence[str]:
    return [f"{each.check}: {each.text}" for each in result.findings]


@pytest.mark.parametrize("make", [by(copied), by(merged)], ids=["ffmpeg", "mkvmerge"])
def test_a_plain_copy_by_another_tool_is_accepted(source: Path, tmp_path: Path, make: Make) -> None:
    make(source, tmp_path / "out.mkv")
    assert texts(verify(source, tmp_path / "out.mkv", deep=False)) == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            by(
                edited,
                "--edit",
                "track:a1",
                "--set",
                "flag-default=0",
                "--edit",
                "track:a2",
                "--set",
                "flag-default=1",
            ),
            "tags: the default among the audio streams was 1, is 2",
        ),
        (
            by(merged, "--default-track-flag", "1:no", "--default-track-flag", "2:yes"),
            "tags: the default among the audio streams was 1, is 2",
        ),
        (
            by(edited, "--edit", "track:s1", "--set", "flag-forced=1"),
            "tags: stream 3 (subtitle subrip): disposition forced is added",
        ),
        (
            with_later_subtitle_ends,
            "time: stream 3 (subtitle subrip): 1 of 2 captions are shown for another time, "
            "the first (number 1) for 200.000 ms instead of 400.000 ms",
        ),
        (with_moved_chapter_end, "tags: chapter 1 ends at 0.700 s, in the source at 0.900 s"),
        (
            by(edited, "--attachment-name", "other.ttf", "--update-attachment", "1"),
            "tags: stream 4 (attachment unknown): file name was 'in.ttf', is 'other.ttf'",
        ),
        (
            by(edited, "--attachment-mime-type", "application/octet-stream", "--update-attachment", "1"),
            "tags: stream 4 (attachment unknown): MIME type was 'font/ttf', is 'application/octet-stream'",
        ),
    ],
    ids=[
        "default moved by mkvpropedit",
        "default moved by mkvmerge",
        "forced added",
        "subtitle durations",
        "chapter end",
        "font renamed",
        "font of another type",
    ],
)
def test_each_damage_of_headers_is_seen(source: Path, tmp_path: Path, make: Make, words: str) -> None:
    make(source, tmp_path / "out.mkv")
    assert texts(verify(source, tmp_path / "out.mkv", deep=False)) == [words]


def test_a_range_tag_that_only_the_container_holds_is_missed_when_it_is_removed(tmp_path: Path) -> None:
    """FFV1 has no tags of its own."""
    tags = Colour(matrix=1, primaries=1, transfer=1, is_range_tagged=True)
    source = clips.numbered_clip(tmp_path / "in.mkv", frames=4, codec="ffv1", colour=tags)
    edited(source, tmp_path / "out.mkv", "--edit", "track:v1", "--delete", "color-range")
    assert texts(verify(source, tmp_path / "out.mkv")) == ["colour: range was limited, is unspecified"]
