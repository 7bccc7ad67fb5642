"""What can be read of a file that is cut off is upscaled where a person says so."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from tests.clips import frame_number, numbered_clip
from tests.commands import vsr
from vsr_hpc.media.clip.reader import read_segment

_FAST = ("--model", "bicubic", "--preset", "ultrafast", "--scale", "2", "--no-report")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def _with_its_index_first(path: Path) -> None:
    first = path.with_name("first.mp4")
    with av.open(str(path)) as old, av.open(str(first), "w", options={"movflags": "faststart"}) as new:
        streams = {each.index: new.add_stream_from_template(each) for each in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                new.mux(packet)
    first.replace(path)


@pytest.mark.parametrize("name", ["in.mkv", "in.mp4"])
def test_the_whole_frames_of_a_cut_off_file_are_upscaled_with_their_sound(here: Path, name: str) -> None:
    clip = numbered_clip(here / name, frames=48, audio=True)
    if name.endswith("mp4"):
        _with_its_index_first(clip)
    _cut(clip, 0.6)
    refused = vsr("upscale", name, f"out-{name}", *_FAST)
    assert refused.code == 3
    assert "is cut off: " in refused.err
    assert refused.err.endswith("--salvage upscales what can be read, up to the last whole frame\n")
    said = vsr("upscale", name, f"out-{name}", *_FAST, "--salvage")
    assert said.code == 0, said.err
    numbers = [frame_number(frame) for frame in read_segment(here / f"out-{name}")]
    assert numbers == list(range(len(numbers))) and 5 < len(numbers) < 48
    assert f"note: the file is cut off: {len(numbers)} whole frames could be read, " in said.err
    assert "s of 2.0 s are missing" in said.err
    proof = vsr("verify", name, f"out-{name}", "--json").json
    assert (proof["findings"], proof["frames"]) == ([], len(numbers))
    assert proof["packets"] > 0, "sound goes with the picture"


def test_a_file_that_lost_the_list_of_its_frames_cannot_be_salvaged(here: Path) -> None:
    _cut(numbered_clip(here / "in.mp4", frames=48, audio=True), 0.6)
    for options in ((), ("--salvage",)):
        said = vsr("upscale", "in.mp4", "out.mp4", *_FAST, *options)
        assert said.code == 3
        assert "the list of its frames stood at its end, so nothing can be read of it here" in said.err


def test_a_whole_file_is_salvaged_as_a_whole(here: Path) -> None:
    numbered_clip(here / "in.mkv", frames=12)
    said = vsr("upscale", "in.mkv", "out.mkv", *_FAST, "--salvage")
    assert (said.code, "cut off" in said.err) == (0, False), said.err
    assert len(list(read_segment(here / "out.mkv"))) == 12
