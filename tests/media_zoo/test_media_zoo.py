"""Ten of the odd sources, one or two of a class; all of them: python -m tests.media_zoo."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.media_zoo.checking import Verdict, compare, missing_tools
from tests.media_zoo.sources import Source, all_sources
from tests.media_zoo.visiting import visit
from tests.require import require

NAMES = (
    "codecs: vp9-webm",
    "sample layouts: ffv1-gbrp10le",
    "colour: siting-center",
    "time: vfr-mp4",
    "sound: sound-wma2-asf",
    "sound: sound-tta-mkv",
    "beside the picture: location-mov",
    "shape: views-side_by_side_left_first",
    "stills: still-exr-half",
    "faults: fault-colour-changes",
)


@pytest.fixture(autouse=True)
def _tools() -> None:
    if (reason := missing_tools()) is not None:
        require("media", reason)


@pytest.mark.parametrize("name", NAMES)
def test_an_odd_source_is_kept_or_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    family, _, wanted = name.partition(": ")
    (source,) = (each for each in all_sources() if (each.family, each.name) == (family, wanted))
    made = visit(source, tmp_path / "visit")
    assert made.outcome == ("refused" if source.refused else "good"), made.said


def damaged(tmp_path: Path, *lines: str) -> Verdict:
    """The verdict on an output of twice the size that ffmpeg made with a fault."""
    source = Source(name="x", family="x", suffix=".mkv", lines=lines)
    for line in source.lines:
        _run(line.replace("{t}", str(tmp_path)))
    return compare(tmp_path / "in.mkv", tmp_path / "out.mkv")


def _run(line: str) -> None:
    subprocess.run(["sh", "-ec", line], check=True)


SOURCE = (
    "ffmpeg -v error -f lavfi -i testsrc2=s=64x48:r=10:d=1 -f lavfi -i sine=d=1 -c:v ffv1 -c:a flac "
    "-colorspace bt709 {t}/in.mkv"
)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ("-vf scale=128:96:flags=neighbor", ""),
        ("-vf scale=128:96:flags=bicubic", "pictures"),
        ("-vf scale=128:96:flags=neighbor -frames:v 9", "frames"),
        (
            "-vf \"scale=128:96:flags=neighbor,setpts='PTS+if(eq(N,5),0.03/TB,0)'\" -vsync vfr "
            "-enc_time_base 1/1000",
            "times",
        ),
        ("-vf scale=128:96:flags=neighbor,setsar=4/3", "shape"),
        ("-vf scale=128:96:flags=neighbor -colorspace smpte170m", "colour"),
        ("-vf scale=128:96:flags=neighbor -an", "sound"),
        ("-vf scale=128:96:flags=neighbor -af adelay=50", "sound"),
    ],
)
def test_the_checker_sees_each_fault(options: str, fault: str, tmp_path: Path) -> None:
    verdict = damaged(
        tmp_path, SOURCE, f"ffmpeg -v error -i {{t}}/in.mkv -c:v ffv1 -c:a flac {options} {{t}}/out.mkv"
    )
    assert [each.partition(":")[0] for each in verdict.faults if fault == "" or each.startswith(fault)] == (
        [fault] if fault else []
    ), verdict
