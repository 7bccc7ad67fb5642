"""The first ten minutes of somebody with a clip, and of somebody who will have an AWS account, in a terminal.

A researcher on a Slurm cluster has hers in tests/slurm/test_first_minutes.py. `-s` prints what they see.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import av
import pytest

from tests.browser.chromium import Browser
from tests.clips import numbered_clip, numbered_planes, picture
from tests.terminal import CTRL_C, Terminal, vsr_in_terminal
from tests.tools import find_tool
from vsr_hpc.media.stills.still import read_image, write_image

pytestmark = pytest.mark.browser
SHORT = 48


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder and the home of somebody who has never used the command."""
    for name in ("STATE", "CACHE", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def says(here: Path, line: str, code: int = 0) -> str:
    """What a command line prints on a terminal, which must end with this code and without a traceback."""
    with vsr_in_terminal(*line.split(), cwd=here) as terminal:
        ended = terminal.end()
        print(f"$ vsr {line}\n{terminal.text}")
    assert ended == code, terminal.text
    assert "Traceback" not in terminal.text
    return terminal.text


def frames_in(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def interrupted(here: Path, line: str, at: Callable[[Terminal], None]) -> Terminal:
    with vsr_in_terminal(*line.split(), cwd=here) as terminal:
        at(terminal)
        terminal.press(CTRL_C)
        assert terminal.end() == 130, terminal.text
        print(f"$ vsr {line}\n{terminal.text}")
    return terminal


def test_somebody_with_a_clip(here: Path, chromium: Browser) -> None:
    numbered_clip(here / "holiday.mkv", frames=SHORT)

    help_ = says(here, "--help")
    assert help_.index("─ Upscale") < help_.index("─ Runs") < help_.index("─ Models")
    assert "did you mean --scale" in says(here, "holiday.mkv --scal 2", 2)
    assert "did you mean holiday.mkv?" in says(here, "holliday.mkv", 3)

    line = "holiday.mkv --chunk-s 0.3 --shard-s 0.01"
    first = interrupted(here, line, lambda it: it.wait_for(rf"(1[5-9]|[2-4]\d)/{SHORT} frames"))
    assert first.lines[0].startswith(
        "holiday.mkv 64×48, 24 fps, about 48 frames → holiday-upscaled.mkv 128×96"
    )
    assert re.search(r"fp32|bf16", first.lines[0]) and "CPU" in first.lines[0] and "CRF 18" in first.lines[0]
    missing = re.search(r"interrupted: (\d+) shards? of (\d+) (is|are) missing", first.text)
    assert missing and int(missing[1]) < int(missing[2]) and "the same command continues" in first.text
    assert not (here / "holiday-upscaled.mkv").exists()

    second = says(here, line)
    assert frames_in(here / "holiday-upscaled.mkv") == SHORT
    last = second.strip().splitlines()[-1]
    assert re.search(rf"128×96, .*bytes\), {SHORT} frames at [\d.]+ fps, .* report: (\S+)", last), last
    assert "already complete" in says(here, line)
    assert f"{SHORT} frames" in says(here, "verify holiday.mkv holiday-upscaled.mkv")
    assert "complete" in says(here, "runs")

    page = here / says(here, "report holiday-upscaled.mkv").strip().splitlines()[-1]
    chromium.open(page.as_uri())
    assert "vsr-video-x2" in chromium.text("main")
    assert chromium.console() == []


def test_somebody_with_a_phone_a_logo_and_a_folder(here: Path) -> None:
    phone = numbered_clip(here / "level.mp4", frames=6)
    turn = ["-i", str(phone), "-c", "copy", "-metadata:s:v", "rotate=90", str(here / "phone.mp4")]
    subprocess.run([str(find_tool("ffmpeg")), "-v", "error", "-nostdin", *turn], check=True)
    shown = says(here, "phone.mp4 tall.mp4 -n bicubic --size 96x128")
    assert "48×64" in shown and "tall.mp4 96×128" in shown

    logo = numbered_clip(here / "logo.mov", frames=3, codec="prores_ks", pix_fmt="yuva444p10le")
    refused = says(here, f"{logo.name} logo.mp4 -n bicubic", 2)
    assert "--drop alpha" in refused
    assert "logo.mp4" in says(here, f"{logo.name} logo.mp4 -n bicubic --drop alpha")

    photographs = here / "photos"
    photographs.mkdir()
    shape = picture((32, 24), "gbrp")
    for number, name in enumerate(("a.png", "b.jpg", "c.webp")):
        write_image(photographs / name, shape, numbered_planes(number, shape))
    encode = [str(find_tool("heif-enc")), str(photographs / "a.png"), "-o", str(photographs / "d.heic")]
    subprocess.run(encode, check=True, capture_output=True)
    (photographs / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    answered = says(here, "photos big/ -n bicubic", 3)
    assert "2 of 5" in answered
    assert sorted(path.name for path in (here / "big").iterdir() if path.is_file()) == [
        "a.png",
        "b.jpg",
        "c.webp",
        "d.png",
    ]
    assert read_image(here / "big/a.png")[0].width == 64


def test_somebody_who_sets_up_aws(here: Path) -> None:
    numbered_clip(here / "film.mkv", frames=SHORT)
    checked = says(here, "doctor python ffmpeg aws", 1)
    assert re.search(r"NO\s+aws\s+no credentials\s+→ run `aws configure`", checked)

    table = says(here, "plan film.mkv big.mkv -n vsr-video-x4 --deadline 2h --budget 5")
    assert "AWS Batch, Spot" in table and "$" in table and "advice" in table

    assert "vsr init values" in says(here, "cluster render", 2)
    says(here, "init values")
    placeholders = says(here, "cluster check --offline", 2)
    assert (
        "bucket=my-vsr-bucket is the example's value" in placeholders and "asleep, per month" in placeholders
    )
    text = (here / "values.yaml").read_text()
    for example, own in (("0aaaaaaaaaaaaaaa", "0a1b2c3d4e5f6071"), ("203.0.113.7", "198.51.100.7")):
        text = text.replace(example, own)
    text = text.replace("my-vsr-bucket", "films-of-mine").replace("you@example.org", "films@example.com")
    (here / "values.yaml").write_text(text)
    assert "error" not in says(here, "cluster check --offline")

    says(here, "init endpoint-realtime")
    assert "set AWS_REGION" in says(here, "endpoint create endpoint-realtime.yaml --plan", 2)
