"""Sources that were once refused, or changed in silence: sound, subtitles, tags, siting, stills."""

from __future__ import annotations

import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.clips import numbered_clip, numbered_planes, pixel, video_frame
from tests.clips import picture as shape_of
from tests.unit.test_mux import case, packets, sound
from vsr_hpc.errors import JobError, MediaError
from vsr_hpc.job.reading import parse_job
from vsr_hpc.media.clip.probe import index_clip, probe_clip
from vsr_hpc.media.clip.reader import read_frames
from vsr_hpc.media.encode.encoding import choose_siting
from vsr_hpc.media.merge.container_plan import StreamsRequest, check_container
from vsr_hpc.media.merge.header_edits import NAME_PADDING, TrackEdit, edit_matroska_file
from vsr_hpc.media.picture import Colour, Siting
from vsr_hpc.media.source import local_source
from vsr_hpc.media.stills.still import read_image
from vsr_hpc.planning.preparation import Prepared, prepare

LOCATION = "+40.7388-074.0002+035.880/"


def prepared(source: Path, output: Path, **sections: Any) -> Prepared:
    document = {"input": str(source), "output": str(output), "model": "bicubic", "picture": {"scale": 2}}
    return prepare(parse_job({**document, **sections}, "test"))


def with_sound(path: Path, codec: str) -> Path:
    """A clip in AVI with a second of stereo noise."""
    plain = numbered_clip(path.with_suffix(".plain.avi"), codec="mpeg4", frames=24)
    noise = np.random.default_rng(0).integers(-9000, 9000, (1, 2 * 44100), dtype=np.int16)
    with av.open(str(plain)) as before, av.open(str(path), "w", options={"fflags": "+bitexact"}) as after:
        video = after.add_stream_from_template(before.streams.video[0], opaque=True)
        audio: Any = after.add_stream(codec, rate=44100, layout="stereo")
        audio.bit_rate = 96000
        for packet in before.demux(video=0):
            if packet.size:
                packet.stream = video
                after.mux(packet)
        frame = av.AudioFrame.from_ndarray(noise, format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 44100, 0, Fraction(1, 44100)
        after.mux([*audio.encode(frame), *audio.encode(None)])
    return path


@pytest.mark.parametrize("codec", ["wmav1", "wmav2", "adpcm_ms", "adpcm_ima_wav", "pcm_mulaw", "pcm_alaw"])
def test_sound_of_windows_codecs_is_copied_into_matroska(codec: str, tmp_path: Path) -> None:
    source = with_sound(tmp_path / "in.avi", codec)
    case(source).merge(tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert container.streams.audio[0].codec_context.name == codec
        assert "title" not in container.streams.audio[0].metadata
    assert [data for _, data in packets(tmp_path / "out.mkv", 1)] == [data for _, data in packets(source, 1)]
    np.testing.assert_array_equal(sound(tmp_path / "out.mkv")[1], sound(source)[1])


def test_tta_in_matroska_is_as_long_as_it_was(tmp_path: Path) -> None:
    source = numbered_clip(tmp_path / "in.mkv", audio="tta", frames=36)
    case(source).merge(tmp_path / "out.mkv")
    with av.open(str(source)) as before, av.open(str(tmp_path / "out.mkv")) as after:
        assert after.duration == before.duration
    np.testing.assert_array_equal(sound(tmp_path / "out.mkv")[1], sound(source)[1])


def test_a_part_of_tta_is_refused_with_the_way_out(tmp_path: Path) -> None:
    ready = case(numbered_clip(tmp_path / "in.mkv", audio="tta"))
    request = StreamsRequest(is_cut=True)
    (finding,) = check_container(ready.clip, ready.encoding, tmp_path / "out.mkv", request)
    assert "a part of TTA sound cannot be copied" in finding
    assert "--audio aac" in finding


@pytest.mark.parametrize("suffix", [".mov", ".mp4"])
@pytest.mark.parametrize("more", [{}, {"com.apple.quicktime.model": "A phone"}])
def test_a_location_is_kept_to_the_last_digit(more: dict[str, str], suffix: str, tmp_path: Path) -> None:
    source = numbered_clip(tmp_path / "in.mkv", metadata={"location": LOCATION, **more})
    ready = case(source)
    ready.merge(tmp_path / f"out{suffix}")
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        found = {key.lower(): value for key, value in container.metadata.items()}
    assert found["location"] == LOCATION
    assert all(found[key] == value for key, value in more.items())


@pytest.mark.parametrize(
    ("mode", "aspect"), [("left_right", 2), ("right_left", 2), ("top_bottom", Fraction(1, 2))]
)
@pytest.mark.parametrize("stated", [Fraction(1), Fraction(4, 3)])
def test_two_views_in_a_picture_keep_their_aspect(
    mode: str, aspect: Fraction, stated: Fraction, tmp_path: Path
) -> None:
    plain = numbered_clip(tmp_path / "plain.mkv")
    with av.open(str(plain)) as before, av.open(str(tmp_path / "in.mkv"), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0], opaque=True)
        stream.metadata.update({"stereo_mode": mode, "title": NAME_PADDING})
        for packet in before.demux(video=0):
            if packet.size:
                packet.stream = stream
                after.mux(packet)
    edit_matroska_file(tmp_path / "in.mkv", {0: TrackEdit(sample_aspect=stated * aspect, size=(64, 48))})
    ready = case(tmp_path / "in.mkv")
    assert ready.picture.sample_aspect == stated * aspect
    ready.merge(tmp_path / "out.mkv")
    out = probe_clip(local_source(tmp_path / "out.mkv"))
    assert out.picture.sample_aspect == stated * aspect
    assert dict(out.video_stream.metadata)["stereo_mode"] == mode
    said = prepared(tmp_path / "in.mkv", tmp_path / "other.mp4").notes
    assert any("stereoscopic layout is lost" in note for note in said)


@pytest.mark.parametrize(
    ("codec", "name", "before", "after"),
    [
        ("h264", "yuv420p", "center", "center"),
        ("h264", "yuv422p", "center", "left"),
        ("h265", "yuv422p10le", "topleft", "left"),
        ("h265", "yuv420p10le", "topleft", "topleft"),
        ("av1", "yuv420p", "center", "left"),
        ("av1", "yuv420p", "top", "topleft"),
        ("av1", "yuv420p", "unspecified", "unspecified"),
        ("prores", "yuv422p10le", "center", "left"),
        ("ffv1", "yuv422p", "center", "center"),
        ("h264", "yuv444p", "center", "center"),
    ],
)
def test_chroma_siting_is_one_that_the_codec_can_state(
    codec: Any, name: str, before: Siting, after: Siting
) -> None:
    assert choose_siting(codec, pixel(name), before) == after


def test_chroma_that_is_moved_is_said(tmp_path: Path) -> None:
    full = Colour(matrix=5, is_full_range=True, is_range_tagged=True)
    source = numbered_clip(tmp_path / "in.mov", codec="mjpeg", pix_fmt="yuvj422p", colour=full)
    made = prepared(source, tmp_path / "out.mkv")
    assert made.clip.picture.colour.siting == "center"
    assert made.picture.colour.siting == "left"
    assert any("moved from center to left" in note for note in made.notes)


def test_colour_tags_that_change_in_mid_stream_are_refused_at_their_frame(tmp_path: Path) -> None:
    parts = []
    for number, matrix in enumerate((1, 6)):
        colour = Colour(matrix=matrix, primaries=matrix, transfer=matrix, is_range_tagged=True)
        part = numbered_clip(tmp_path / f"{number}.h264", frames=6, colour=colour, container="h264")
        parts.append(part.read_bytes())
    joined = tmp_path / "in.h264"
    joined.write_bytes(b"".join(parts))
    clip = probe_clip(local_source(joined))
    timeline = index_clip(clip, local_source(joined))
    assert len(list(read_frames(clip, timeline, local_source(joined), 0, 6))) == 6
    with pytest.raises(MediaError, match=r"colour tags change at frame 6 .*bt709 to smpte170m.*--to 6f"):
        list(read_frames(clip, timeline, local_source(joined), 0, 12))


def test_half_floats_are_read_as_the_floats_they_are(tmp_path: Path) -> None:
    shape = shape_of(pix_fmt="gbrpf32le")
    context: Any = av.CodecContext.create("exr", "w")
    context.width, context.height, context.pix_fmt = shape.width, shape.height, "gbrpf32le"
    context.time_base, context.options = Fraction(1, 25), {"format": "half"}
    frame = video_frame(5, shape)
    frame.pts = 0
    data = b"".join(bytes(each) for each in [*context.encode(frame), *context.encode(None)])
    (tmp_path / "half.exr").write_bytes(data)
    found, planes, _ = read_image(tmp_path / "half.exr")
    assert found.pixel.name == "gbrpf32le"
    for plane, wanted in zip(planes, numbered_planes(5, shape), strict=True):
        np.testing.assert_array_equal(plane, plane.astype(np.float16).astype(np.float32))
        np.testing.assert_allclose(plane, wanted, rtol=1e-3)  # FFmpeg's encoder cuts the last bits off


def avif(path: Path, pictures: int = 1) -> Path:
    with av.open(str(path), "w", format="avif") as out:
        stream: Any = out.add_stream("libsvtav1", rate=25, options={"preset": "12"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(pictures):
            out.mux(stream.encode(video_frame(number, shape_of((64, 64)))))
        out.mux(stream.encode(None))
    return path


def test_an_avif_still_becomes_one_picture_and_an_animation_does_not(tmp_path: Path) -> None:
    assert prepared(avif(tmp_path / "one.avif"), tmp_path / "out.png").encoding is None
    animation = avif(tmp_path / "many.avif", pictures=3)
    with pytest.raises(JobError, match=r"one file cannot hold several pictures.*--frames 1"):
        prepared(animation, tmp_path / "other.png")
    assert prepared(animation, tmp_path / "other.png", range={"frames": 1}).encoding is None


def test_sound_that_begins_elsewhere_than_a_video_without_timestamps_is_said(tmp_path: Path) -> None:
    source = numbered_clip(tmp_path / "in.avi", codec="libx264", b_frames=2, audio="pcm_s16le")
    clip = probe_clip(local_source(source))

    def said(begin: Fraction) -> list[str]:
        picture, heard = clip.streams
        moved = replace(clip, streams=(picture, replace(heard, start_pts=int(begin / heard.time_base))))
        timeline = index_clip(moved, local_source(source))
        assert timeline.is_synthetic
        return [each for each in timeline.findings if "in step" in each]

    assert said(Fraction(1, 24)) == []  # where the video is taken to begin
    (finding,) = said(Fraction(-1, 5))
    assert "stream 1 begins at -0.200 s" in finding


# --- Blu-ray subtitles
def display_set(number: int, state: int, *, shows: bool) -> bytes:
    """The segments of one PGS display set, as a packet holds them: 8x2 pixels of one colour, or nothing."""

    def segment(kind: int, body: bytes) -> bytes:
        return struct.pack(">BH", kind, len(body)) + body

    objects = struct.pack(">HBBHH", 0, 0, 0, 4, 4) if shows else b""
    composition = struct.pack(">HHBHBBBB", 64, 48, 0x10, number, state, 0, 0, int(shows)) + objects
    window = struct.pack(">BBHHHH", 1, 0, 4, 4, 8, 2)
    if not shows:
        return segment(0x16, composition) + segment(0x17, window) + segment(0x80, b"")
    palette = bytes([0, 0, 1, 128, 128, 128, 255])
    lines = (b"\x00\x88\x01" + b"\x00\x00") * 2
    picture = struct.pack(">HBB", 0, 0, 0xC0) + (len(lines) + 4).to_bytes(3, "big") + struct.pack(">HH", 8, 2)
    return (
        segment(0x16, composition)
        + segment(0x17, window)
        + segment(0x14, palette)
        + segment(0x15, picture + lines)
        + segment(0x80, b"")
    )


def with_pgs(path: Path, folder: Path, cues: list[tuple[float, bytes]]) -> Path:
    """A clip of 48 frames, 24 a second, with these display sets; without durations, as discs have them."""
    plain = numbered_clip(folder / "plain.mkv", frames=48)
    with av.open(str(plain)) as before, av.open(str(path), "w") as after:
        video = after.add_stream_from_template(before.streams.video[0], opaque=True)
        words: Any = after.add_mux_stream("hdmv_pgs_subtitle")
        words.time_base = Fraction(1, 1000)
        waiting = list(cues)
        for packet in before.demux(video=0):
            while waiting and packet.size and packet.pts * packet.time_base >= waiting[0][0]:
                begin, data = waiting.pop(0)
                made = av.Packet(data)
                made.stream, made.time_base = words, Fraction(1, 1000)
                made.pts = made.dts = int(begin * 1000)
                after.mux(made)
            if packet.size:
                packet.stream = video
                after.mux(packet)
    return path


START, NORMAL = 0x80, 0x00


@pytest.mark.parametrize(
    ("cues", "wanted"),
    [
        # shown from 0.5 s on, the range begins at 1 s
        ([(0.5, START, True), (1.5, START, False)], [(0, 0), (0.5, 1)]),
        # gone before the range begins
        ([(0.25, START, True), (0.75, START, False)], []),
        # a change leans on what came before it: both are needed
        ([(0.25, START, True), (0.75, NORMAL, True), (1.5, START, False)], [(0, 0), (0, 1), (0.5, 2)]),
        # never taken off, and nothing comes after
        ([(0.5, START, True)], [(0, 0)]),
        # replaced exactly where the range begins
        ([(0.5, START, True), (1.0, START, True)], [(0, 1)]),
    ],
)
def test_blu_ray_subtitles_on_the_screen_when_a_range_begins_are_kept(
    cues: list[tuple[float, int, bool]], wanted: list[tuple[float, int]], tmp_path: Path
) -> None:
    sets = [(begin, display_set(i, state, shows=shows)) for i, (begin, state, shows) in enumerate(cues)]
    source = with_pgs(tmp_path / "in.mkv", tmp_path, sets)
    ready = case(source, cuts=(), frames=(24, 48))
    ready.merge(tmp_path / "out.mkv", frames=(24, 48))
    found = packets(tmp_path / "out.mkv", 1)
    assert found == [(Fraction(begin).limit_denominator(1000), sets[number][1]) for begin, number in wanted]
