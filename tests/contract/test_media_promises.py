"""Clips of every kind through whole runs: timestamps, streams, rotation, transparency, odd sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.clips import frame_number, numbered_clip
from tests.runs import finished, planned_run
from tests.unit.test_mux import QUARTER_TURN, rich_source
from vsr_hpc.errors import JobError
from vsr_hpc.executors.aws_batch.workflow_steps import verify_run
from vsr_hpc.job.reading import parse_job
from vsr_hpc.media.clip.probe import index_clip, probe_clip
from vsr_hpc.media.clip.reader import read_frames
from vsr_hpc.media.merge.container_plan import StreamsRequest
from vsr_hpc.media.merge.header_edits import add_track_header
from vsr_hpc.media.picture import Frame
from vsr_hpc.media.source import local_source
from vsr_hpc.report.report import verify_whole
from vsr_hpc.run.run import Run
from vsr_hpc.verification.verify import Promise, Verification, verify


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def upscaled(source: Path, output: Path, *, chunk_s: float = 4 / 24, **sections: Any) -> Run:
    """A finished run of several chunks that doubles the source."""
    document: dict[str, Any] = {
        "input": str(source),
        "output": str(output),
        "model": "nearest",
        "picture": {"scale": 2},
        "video": {"threads": 1},
        "run": {"chunk_s": chunk_s, "threads": 1},
    }
    for key, value in sections.items():
        document[key] = {**document.get(key, {}), **value} if isinstance(value, dict) else value
    run = planned_run(parse_job(document, "test"))
    finished(run)
    return run


def frames_of(path: Path) -> list[Frame]:
    source = local_source(path)
    clip = probe_clip(source)
    timeline = index_clip(clip, source)
    return list(read_frames(clip, timeline, source, 0, len(timeline)))


def times_of(path: Path) -> list[Fraction]:
    timeline = index_clip(probe_clip(local_source(path)), local_source(path))
    return [int(pts) * timeline.time_base for pts in timeline.pts]


def faults(result: Verification) -> Sequence[str]:
    return [f"{each.check}: {each.text}" for each in result.findings]


@pytest.mark.parametrize("codec", ["h264", "h265"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_ten_millisecond_frames_then_one_second_frames_keep_their_times(
    codec: str, suffix: str, tmp_path: Path
) -> None:
    pts = [n * 10 for n in range(8)] + [80 + n * 1000 for n in range(8)]
    source = numbered_clip(tmp_path / "in.mp4", pts=pts, time_base=Fraction(1, 1000), b_frames=2, audio=True)
    video = {"codec": codec, "preset": "veryfast", "params": {"bframes": "3", "b-adapt": "0"}}
    output = tmp_path / f"out{suffix}"
    run = upscaled(source, output, chunk_s=2.5, video=video)
    assert len(run.plan.chunk_borders) > 3
    assert times_of(output) == [Fraction(each, 1000) for each in pts]
    assert [frame_number(frame) for frame in frames_of(output)] == list(range(16))
    with av.open(str(output)) as made:
        coded = [packet.pts for packet in made.demux(video=0) if packet.size]
    assert coded != sorted(coded), "there are B-frames"
    assert verify(source, output).ok


@pytest.mark.parametrize(
    ("name", "codec", "b_frames", "audio"),
    [
        ("in.ts", "libx264", 2, True),
        ("in.ts", "mpeg2video", 2, "mp2"),
        ("in.avi", "mpeg4", 0, "libmp3lame"),
        ("in.avi", "mpeg4", 2, "pcm_s16le"),
        ("in.webm", "libvpx-vp9", None, "libopus"),
        ("in.flv", "libx264", 2, True),
    ],
)
def test_sources_of_other_containers_arrive_whole(
    name: str, codec: str, b_frames: int | None, audio: str | bool, tmp_path: Path
) -> None:
    source = numbered_clip(tmp_path / name, frames=14, codec=codec, b_frames=b_frames, audio=audio)
    for suffix, range_ in ((".mkv", {}), (".mkv", {"from": "0.2", "to": "0.45"})):
        output = tmp_path / f"out{len(range_)}{suffix}"
        run = upscaled(source, output, range=range_)
        first, last = run.plan.start, run.plan.stop
        assert [frame_number(frame) for frame in frames_of(output)] == list(range(14))[first:last]
        result = verify(source, output, Promise(start=range_.get("from"), stop=range_.get("to")))
        assert result.ok, faults(result)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_rotation_is_kept_and_never_applied(suffix: str, tmp_path: Path) -> None:
    plain = numbered_clip(tmp_path / "plain.mp4", frames=6)
    source = tmp_path / "in.mp4"
    header = add_track_header(
        plain.read_bytes(), display_matrix=QUARTER_TURN, mastering=None, light_level=None
    )
    source.write_bytes(header)
    output = tmp_path / f"out{suffix}"
    upscaled(source, output)
    made = probe_clip(local_source(output)).picture
    assert (made.width, made.height) == (128, 96)
    assert made.display_matrix is not None
    assert made.display_matrix[:6] == QUARTER_TURN[:6]
    assert verify(source, output).ok


def test_everything_beside_the_picture_goes_along(tmp_path: Path) -> None:
    source = rich_source(tmp_path / "in.mkv", tmp_path)
    upscaled(source, tmp_path / "out.mkv")
    result = verify(source, tmp_path / "out.mkv")
    assert result.ok, faults(result)
    made = probe_clip(local_source(tmp_path / "out.mkv"))
    assert [each.kind for each in made.streams] == ["video", "audio", "subtitle", "audio", "attachment"]
    assert [dict(each.metadata)["title"] for each in made.chapters] == ["One", "Two"]


def test_a_range_of_everything_into_mp4_drops_the_font_knowingly(tmp_path: Path) -> None:
    source = rich_source(tmp_path / "in.mkv", tmp_path)
    output = tmp_path / "out.mp4"
    with pytest.raises(JobError, match="--drop attachment"):
        upscaled(source, output)
    upscaled(source, output, streams={"drop": ["attachment"]}, range={"from": "0.2", "frames": 12})
    result = verify(
        source, output, Promise(streams=StreamsRequest(drop=("attachment",)), start="0.2", frames=12)
    )
    assert result.ok, faults(result)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov"])
def test_sound_that_begins_after_the_range_leaves_no_trace(suffix: str, tmp_path: Path) -> None:
    """MP4 and QuickTime have no empty tracks; what follows keeps its language."""
    one = numbered_clip(tmp_path / "one.mkv", frames=24, audio=True)
    source, output = tmp_path / "in.mkv", tmp_path / f"out{suffix}"
    with av.open(str(one)) as read, av.open(str(source), "w") as out:
        picture, late, whole = (out.add_stream_from_template(read.streams[i], opaque=True) for i in (0, 1, 1))
        late.metadata["language"], whole.metadata["language"] = "deu", "nld"
        for packet in (each for each in read.demux() if each.size):
            if packet.stream_index == 1 and packet.pts * packet.time_base > 0.6:
                twin = av.Packet(bytes(packet))
                twin.pts, twin.dts, twin.time_base = packet.pts, packet.dts, packet.time_base
                twin.duration, twin.stream = packet.duration, late
                out.mux(twin)
            packet.stream = (picture, whole)[packet.stream_index]
            out.mux(packet)
    upscaled(source, output, range={"to": "0.4"})
    result = verify(source, output, Promise(stop="0.4"))
    assert result.ok, faults(result)
    languages = [each.language for each in probe_clip(local_source(output)).streams if each.kind == "audio"]
    assert languages == ["deu", "nld"][suffix != ".mkv" :]
    assert any("holds nothing" in each for each in result.notes) == (suffix != ".mkv")


def test_transparency_is_upscaled_into_ffv1_and_refused_elsewhere(tmp_path: Path) -> None:
    source = numbered_clip(tmp_path / "in.mkv", frames=6, codec="ffv1", pix_fmt="yuva420p")
    upscaled(source, tmp_path / "out.mkv")
    for before, after in zip(frames_of(source), frames_of(tmp_path / "out.mkv"), strict=True):
        for small, large in zip(before.planes, after.planes, strict=True):
            np.testing.assert_array_equal(small.repeat(2, 0).repeat(2, 1), large)
    assert len(after.planes) == 4
    assert verify(source, tmp_path / "out.mkv").ok
    with pytest.raises(JobError, match="with transparency"):
        upscaled(source, tmp_path / "out.mp4")
    with pytest.raises(JobError, match="alpha"):
        upscaled(source, tmp_path / "other.mkv", video={"pix_fmt": "yuv420p"})


@pytest.mark.parametrize("model", ["nearest", "vsr-video-x2"])
def test_drop_alpha_gives_the_picture_without_its_transparency(model: str, tmp_path: Path) -> None:
    source = numbered_clip(tmp_path / "in.mkv", frames=6, codec="ffv1", pix_fmt="yuva420p")
    opaque = numbered_clip(tmp_path / "opaque.mkv", frames=6, codec="ffv1", pix_fmt="yuv420p")
    lossless: dict[str, Any] = {"model": model, "video": {"codec": "h264", "lossless": True}}
    upscaled(source, tmp_path / "out.mp4", streams={"drop": ["alpha"]}, **lossless)
    upscaled(opaque, tmp_path / "wanted.mp4", **lossless)
    made, wanted = frames_of(tmp_path / "out.mp4"), frames_of(tmp_path / "wanted.mp4")
    for one, other in zip(made, wanted, strict=True):
        for plane, same in zip(one.planes, other.planes, strict=True):
            np.testing.assert_array_equal(plane, same)
    promise = Promise(streams=StreamsRequest(drop=("alpha",)))
    assert verify(source, tmp_path / "out.mp4", promise).ok
    others: dict[str, Any] = {"f_%02d.jpg": {"threads": None}, "444.mkv": {"pix_fmt": "yuv444p"}}
    for name, video in others.items():
        upscaled(source, tmp_path / name, model=model, video=video, streams={"drop": ["alpha"]})


@pytest.mark.parametrize(("codec", "suffix"), [("ffv1", ".mkv"), ("h264", ".mp4")])
def test_odd_sizes_stay_where_the_format_allows_it(codec: str, suffix: str, tmp_path: Path) -> None:
    source = numbered_clip(tmp_path / "in.mkv", frames=6, size=(63, 47), codec="ffv1", pix_fmt="yuv444p")
    output = tmp_path / f"out{suffix}"
    upscaled(source, output, picture={"scale": 1}, video={"codec": codec, "lossless": True})
    for before, after in zip(frames_of(source), frames_of(output), strict=True):
        for plane, other in zip(before.planes, after.planes, strict=True):
            np.testing.assert_array_equal(plane, other)
    assert verify(source, output).ok


def test_odd_sizes_of_subsampled_chroma_become_even_or_are_refused(tmp_path: Path) -> None:
    source = numbered_clip(tmp_path / "in.mkv", frames=6, size=(63, 47), codec="ffv1")
    upscaled(source, tmp_path / "out.mp4")
    made = probe_clip(local_source(tmp_path / "out.mp4")).picture
    assert (made.width, made.height) == (126, 94)
    result = verify(source, tmp_path / "out.mp4")
    assert result.ok, faults(result)
    with pytest.raises(JobError, match="63x47"):
        upscaled(source, tmp_path / "odd.mp4", picture={"scale": 1})


@pytest.mark.parametrize(
    "prove", [verify_run, lambda uri: verify_whole(Run.open(uri))], ids=["workflow", "report"]
)
def test_a_raw_stream_made_at_a_given_rate_is_proved_at_that_rate(
    prove: Callable[[str], Verification], tmp_path: Path
) -> None:
    source = numbered_clip(tmp_path / "in.h264", b_frames=2)
    run = upscaled(source, tmp_path / "out.mkv", images={"rate": "50"})
    result = prove(run.uri)
    assert (faults(result), result.frames) == ([], 24)


def packed_clip(path: Path, codec: str, form: str, frames: int = 6) -> Path:
    """A clip whose coding has no planes: what GIF, raw AVI and QuickTime's animation codec hold."""
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, form
        for number in range(frames):
            flat = np.array([200, 120, 40 + 8 * number], np.uint8)
            sheet = np.broadcast_to(flat, (48, 64, 3)).copy()
            sheet[:24, : 8 * number + 8] = 20
            frame = av.VideoFrame.from_ndarray(sheet, format="rgb24").reformat(format=form)
            frame.pts, frame.time_base = number, Fraction(1, 24)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "form"),
    [("in.gif", "gif", "rgb8"), ("in.avi", "rawvideo", "bgr24"), ("in.mov", "qtrle", "rgb24")],
)
def test_the_output_of_an_rgb_source_without_tags_is_proved(
    name: str, codec: str, form: str, tmp_path: Path
) -> None:
    """RGB has no matrix: `unspecified` and `gbr` say the same of it."""
    source = packed_clip(tmp_path / name, codec, form)
    upscaled(source, tmp_path / "out.mkv")
    assert probe_clip(local_source(tmp_path / "out.mkv")).picture.colour.matrix == 0
    result = verify(source, tmp_path / "out.mkv")
    assert result.ok, faults(result)


def test_the_output_of_mpeg2_with_full_vertical_chroma_is_proved(tmp_path: Path) -> None:
    """Without vertical subsampling, `topleft` (MPEG-2) and `left` (H.264) are one place."""
    source = numbered_clip(tmp_path / "in.mkv", frames=8, codec="mpeg2video", pix_fmt="yuv422p")
    assert probe_clip(local_source(source)).picture.colour.siting == "topleft"
    upscaled(source, tmp_path / "out.mkv")
    result = verify(source, tmp_path / "out.mkv")
    assert result.ok, faults(result)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_a_limited_range_is_written_where_nothing_else_is_tagged(
    codec: str, suffix: str, tmp_path: Path
) -> None:
    source = numbered_clip(tmp_path / "in.mp4", frames=6, codec="libsvtav1")
    before = probe_clip(local_source(source)).picture.colour
    assert (before.matrix, before.is_range_tagged, before.is_full_range) == (2, True, False)
    output = tmp_path / f"out{suffix}"
    upscaled(source, output, video={"codec": codec})
    after = probe_clip(local_source(output)).picture.colour
    assert (after.matrix, after.is_range_tagged, after.is_full_range) == (2, True, False)
    result = verify(source, output)
    assert (faults(result), result.notes) == ([], ())
