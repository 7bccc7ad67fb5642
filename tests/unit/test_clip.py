"""What a clip says about itself, and its timeline."""

from __future__ import annotations

import io
import os
import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from pydantic import TypeAdapter

from tests.clips import Caption, Chapter, numbered_clip, picture, repeatable_x264, video_frame
from vsr_hpc.errors import JobError, MediaError
from vsr_hpc.media.clip.clip import Clip
from vsr_hpc.media.clip.container_facts import Edit, Track, _has_crop, matroska_crops
from vsr_hpc.media.clip.interlace import Scan, judge_scan
from vsr_hpc.media.clip.probe import content_hash, index_clip, probe_clip
from vsr_hpc.media.picture import Colour, Mastering
from vsr_hpc.media.side_data import _dolby_vision_profile
from vsr_hpc.media.source import local_source
from vsr_hpc.media.timeline import Timeline, parse_position, select_range


def clip_and_timeline(path: Path) -> tuple[Clip, Timeline]:
    clip = probe_clip(local_source(path))
    return clip, index_clip(clip, local_source(path))


def test_everything_about_a_clip_round_trips_through_json(tmp_path: Path) -> None:
    path = numbered_clip(
        tmp_path / "a.mkv",
        audio="pcm_s16le",
        audio_language="deu",
        captions=[Caption(start_s=0.1, stop_s=0.5, text="hi")],
        chapters=[Chapter(start_s=0, stop_s=0.5, title="one")],
        metadata={"title": "T"},
        sample_aspect=Fraction(4, 3),
        colour=Colour(matrix=9, primaries=9, transfer=16, is_range_tagged=True),
    )
    clip = probe_clip(local_source(path))
    assert TypeAdapter(Clip).validate_json(TypeAdapter(Clip).dump_json(clip)) == clip
    assert [each.kind for each in clip.streams] == ["video", "audio", "subtitle"]
    assert clip.streams[1].language == "deu"
    assert dict(clip.metadata)["title"] == "T"
    assert dict(clip.chapters[0].metadata)["title"] == "one"
    assert clip.chapters[0].stop * clip.chapters[0].time_base == Fraction(1, 2)
    assert clip.picture.sample_aspect == Fraction(4, 3)
    colour = clip.picture.colour
    assert (colour.matrix, colour.primaries, colour.transfer, colour.is_full_range) == (9, 9, 16, False)
    assert colour.is_range_tagged


def test_hdr10_is_read_in_x265_units(tmp_path: Path) -> None:
    params = (
        "log-level=none:pools=1:frame-threads=1:max-cll=1000,400:"
        "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    )
    path = numbered_clip(
        tmp_path / "a.mp4", frames=4, codec="libx265", pix_fmt="yuv420p10le", options={"x265-params": params}
    )
    clip = probe_clip(local_source(path))
    assert clip.picture.light_level == (1000, 400)
    assert clip.picture.mastering == Mastering(
        red=(34000, 16000),
        green=(13250, 34500),
        blue=(7500, 3000),
        white=(15635, 16450),
        max_luminance=10_000_000,
        min_luminance=50,
    )
    assert clip.picture.pixel.depth == 10


@pytest.mark.parametrize(("value", "siting"), [("0", "left"), ("1", "center"), ("2", "topleft")])
def test_chroma_siting_is_read_from_the_bitstream(tmp_path: Path, value: str, siting: str) -> None:
    options = {"x264-params": f"chromaloc={value}", "preset": "ultrafast"}
    clip = probe_clip(local_source(numbered_clip(tmp_path / "a.mp4", frames=2, options=options)))
    assert clip.picture.colour.siting == siting


def test_film_grain_of_av1_is_noticed(tmp_path: Path) -> None:
    options = {"svtav1-params": "lp=1:film-grain=8"}
    grainy = numbered_clip(tmp_path / "a.mp4", frames=4, codec="libsvtav1", options=options)
    plain = numbered_clip(tmp_path / "b.mp4", frames=4, codec="libsvtav1")
    assert probe_clip(local_source(grainy)).has_film_grain
    assert not probe_clip(local_source(plain)).has_film_grain


def test_full_range_and_untagged_are_told_apart(tmp_path: Path) -> None:
    full = Colour(matrix=1, primaries=1, transfer=1, is_full_range=True, is_range_tagged=True)
    tagged = probe_clip(local_source(numbered_clip(tmp_path / "a.mp4", frames=2, colour=full))).picture.colour
    bare = probe_clip(local_source(numbered_clip(tmp_path / "b.mp4", frames=2))).picture.colour
    assert replace(tagged, siting="unspecified") == full
    assert not bare.is_range_tagged and not bare.is_full_range and bare.matrix == 2


def test_display_matrix_is_kept_as_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    shape = picture()
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=24, options=repeatable_x264({}))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write a display matrix")
        stream.set_display_rotation(90)
        for number in range(3):
            frame = video_frame(number, shape)
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    matrix = probe_clip(local_source(path)).picture.display_matrix
    assert matrix is not None and abs(matrix[1]) == 65536 and matrix[0] == 0


@pytest.mark.parametrize("order", ["tff", "bff"])
def test_interlaced_clip_is_seen_with_its_order(tmp_path: Path, order: str) -> None:
    path = numbered_clip(tmp_path / "a.mkv", codec="ffv1", interlaced=order)  # type: ignore[arg-type]
    assert probe_clip(local_source(path)).interlace == order


def test_combed_frames_without_flags_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    shape = picture((128, 96))
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(24):
            frame = video_frame(number, shape, field_shift=2)
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    clip = probe_clip(local_source(path))
    assert clip.interlace == "tff"
    assert "flagged progressive" in clip.findings[0]


def test_idet_alone_does_not_make_a_clip_interlaced() -> None:
    assert judge_scan(Scan(flagged="progressive", tff=30))[0] == "progressive"
    assert judge_scan(Scan(flagged="progressive", tff=30, is_zigzag=True))[0] == "tff"


def test_hard_telecine_is_named() -> None:
    seen = Scan(flagged="tff", tff=12, progressive=18, repeated=12)
    assert judge_scan(seen)[:2] == ("tff", True)


def test_flags_yield_to_a_sample_without_combs() -> None:
    interlace, _, findings = judge_scan(Scan(flagged="tff", progressive=30))
    assert interlace == "progressive" and "taken as progressive" in findings[0]


CODECS = [
    ("a.mp4", {"codec": "libx264", "b_frames": 3}),
    ("a.mkv", {"codec": "libx264", "b_frames": 3, "open_gop": True}),
    ("a.ts", {"codec": "libx264", "b_frames": 2}),
    ("b.ts", {"codec": "mpeg2video", "b_frames": 2, "rate": 25}),
    ("a.mpg", {"codec": "mpeg2video", "b_frames": 2, "rate": 25}),
    ("b.mp4", {"codec": "libx265", "b_frames": 2, "open_gop": True}),
    ("a.webm", {"codec": "libvpx-vp9"}),
    (
        "b.webm",
        {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "8", "deadline": "good"}},
    ),
    ("c.mp4", {"codec": "libsvtav1"}),
    ("a.avi", {"codec": "mpeg4", "b_frames": 2}),
    ("a.mov", {"codec": "prores_ks", "pix_fmt": "yuv422p10le"}),
    ("d.mkv", {"codec": "ffv1"}),
    ("vfr.mp4", {"pts": [0, 10, 1010, 1020, 2020, 2030, 2040, 9000], "time_base": Fraction(1, 1000)}),
]


@pytest.mark.parametrize(("name", "options"), CODECS, ids=[name for name, _ in CODECS])
def test_timeline_equals_a_decode_from_the_start(
    tmp_path: Path, name: str, options: dict[str, object]
) -> None:
    path = numbered_clip(tmp_path / name, **options)  # type: ignore[arg-type]
    clip, timeline = clip_and_timeline(path)
    with av.open(str(path)) as container:
        decoded = [frame.pts for frame in container.decode(container.streams[clip.video])]
    assert timeline.pts.tolist() == decoded
    assert timeline.last_duration > 0


def test_packets_are_trusted_where_they_are_frames_and_decoded_elsewhere(tmp_path: Path) -> None:
    _, exact = clip_and_timeline(numbered_clip(tmp_path / "a.mp4"))
    _, stream = clip_and_timeline(numbered_clip(tmp_path / "a.ts"))
    assert not exact.was_decoded
    assert stream.was_decoded


def test_edit_list_of_a_cut_file_drops_what_players_drop(tmp_path: Path) -> None:
    whole = numbered_clip(tmp_path / "a.mp4", b_frames=2, gop=12)
    cut = tmp_path / "b.mp4"
    with av.open(str(whole)) as given, av.open(str(cut), "w") as out:
        source = given.streams.video[0]
        target = out.add_stream_from_template(source)
        shift = 5 * 512  # the first five frames lie before zero: the muxer writes an edit list
        for packet in given.demux(source):
            if packet.dts is None:
                continue
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, target
            out.mux(packet)
    clip, timeline = clip_and_timeline(cut)
    with av.open(str(cut)) as container:
        decoded = [frame.pts for frame in container.decode(video=0)]
    assert clip.video_stream.edits
    assert timeline.pts.tolist() == decoded
    assert len(timeline) < 24


def test_edit_lists_of_several_parts_are_not_plain() -> None:
    def plain(*edits: tuple[int, float]) -> bool:
        parts = tuple(Edit(duration=10, media_time=time, rate=rate) for time, rate in edits)
        return Track(id=1, edits=parts).has_plain_edits

    assert plain() and plain((0, 1)) and plain((-1, 1), (5, 1))
    assert not plain((0, 1), (50, 1))
    assert not plain((0, 0.5))
    assert not plain((0, 1), (-1, 1))


def test_several_media_edits_are_refused_with_the_way_out(tmp_path: Path) -> None:
    path = numbered_clip(tmp_path / "a.mp4", b_frames=2)
    content = path.read_bytes()
    at = content.index(b"elst")
    assert content[at + 4 : at + 12] == struct.pack(">II", 0, 1)
    # a second entry over the box that follows would break it: make the one entry run at half speed instead
    changed = content[: at + 20] + struct.pack(">hH", 0, 32768) + content[at + 24 :]
    path.write_bytes(changed)
    with pytest.raises(MediaError, match=r"edit list.*ffmpeg"):
        probe_clip(local_source(path))


def test_raw_stream_gets_times_from_its_rate_and_says_so(tmp_path: Path) -> None:
    path = numbered_clip(tmp_path / "a.h264", b_frames=2, rate=Fraction(30000, 1001))
    _, timeline = clip_and_timeline(path)
    assert timeline.is_synthetic and timeline.reading == "scan"
    assert len(timeline) == 24 and timeline.time_base == Fraction(1001, 30000)
    assert "no timestamps" in timeline.findings[0]
    given = probe_clip(local_source(path), frame_rate=Fraction(50))
    assert index_clip(given, local_source(path)).time_base == Fraction(1, 50)


def test_clock_that_jumps_back_is_refused(tmp_path: Path) -> None:
    one = numbered_clip(tmp_path / "a.ts").read_bytes()
    path = tmp_path / "b.ts"
    path.write_bytes(one + one)
    with pytest.raises(MediaError, match=r"jumps back.*frame 24"):
        clip_and_timeline(path)


def test_missing_frame_is_a_finding(tmp_path: Path) -> None:
    stamps = [i for i in range(25) if i != 7]
    _, timeline = clip_and_timeline(numbered_clip(tmp_path / "a.mp4", pts=stamps))
    assert any("the first is 6" in each for each in timeline.findings)


def test_video_with_broken_sound_is_indexed(tmp_path: Path) -> None:
    path = numbered_clip(tmp_path / "a.mkv", audio="aac")
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(audio=0) if p.size and p.pos]
    for position, size in places[3:9]:
        content[position + 8 : position + size] = os.urandom(size - 8)
    path.write_bytes(content)
    _, timeline = clip_and_timeline(path)
    assert len(timeline) == 24


def test_timeline_bytes_round_trip_and_are_small(tmp_path: Path) -> None:
    _, timeline = clip_and_timeline(numbered_clip(tmp_path / "a.mp4", frames=30, b_frames=2))
    again = Timeline.from_bytes(timeline.to_bytes())
    assert again.pts.tolist() == timeline.pts.tolist()
    assert again.key_dts.tolist() == timeline.key_dts.tolist()
    assert again.identity() == timeline.identity()
    assert again.durations.tolist() == timeline.durations.tolist()
    assert (again.reading, again.time_base, again.findings) == (
        timeline.reading,
        timeline.time_base,
        timeline.findings,
    )
    long = replace(timeline, pts=np.arange(1_000_000, dtype=np.int64) * 512)
    assert len(long.to_bytes()) < 20_000


@pytest.mark.parametrize("place", [2, 20, 60, -1])
def test_damaged_timeline_is_refused(tmp_path: Path, place: int) -> None:
    _, timeline = clip_and_timeline(numbered_clip(tmp_path / "a.mp4", frames=3))
    damaged = bytearray(timeline.to_bytes())
    damaged[place] ^= 1
    with pytest.raises(MediaError, match="timeline"):
        Timeline.from_bytes(bytes(damaged))


def test_ranges_by_time_and_by_frame(tmp_path: Path) -> None:
    _, timeline = clip_and_timeline(numbered_clip(tmp_path / "a.mp4", frames=48))
    assert select_range(timeline, None, None) == (0, 48)
    assert select_range(timeline, parse_position("0.5"), parse_position("1")) == (12, 24)
    assert select_range(timeline, parse_position("00:00:01"), parse_position("30f")) == (24, 30)
    assert select_range(timeline, parse_position("0:01.01"), None) == (25, 48)
    assert select_range(timeline, 10, 1000) == (10, 48)
    with pytest.raises(JobError, match="48 frames"):
        select_range(timeline, parse_position("9"), None)
    with pytest.raises(JobError, match="no place in a clip"):
        parse_position("soon")


def test_content_hash_changes_with_one_bit(tmp_path: Path) -> None:
    path = numbered_clip(tmp_path / "a.mp4", frames=2)
    before = content_hash(local_source(path))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert content_hash(local_source(path)) != before


def test_source_may_be_a_file_object(tmp_path: Path) -> None:
    path = numbered_clip(tmp_path / "a.mp4", b_frames=2)

    class Opened:
        uri = "s3://bucket/a.mp4"

        def open(self) -> object:
            return path.open("rb")

    clip = probe_clip(Opened())  # type: ignore[arg-type]
    assert clip.size_bytes == path.stat().st_size
    assert len(index_clip(clip, Opened())) == 24  # type: ignore[arg-type]


def test_pixel_crop_of_matroska_is_seen(tmp_path: Path) -> None:
    path = numbered_clip(tmp_path / "a.mkv", frames=2, codec="ffv1")
    with path.open("rb") as file:
        assert matroska_crops(file) == frozenset()
    track = ebml(b"\xae", ebml(b"\xe0", ebml(b"\xb0", b"\x40") + ebml(b"\x54\xdd", b"\x08")))
    plain = ebml(b"\xae", ebml(b"\xe0", ebml(b"\xb0", b"\x40") + ebml(b"\x54\xdd", b"\x00")))
    tracks = ebml(b"\x16\x54\xae\x6b", plain + track)
    path.write_bytes(ebml(b"\x1a\x45\xdf\xa3", b"") + ebml(b"\x18\x53\x80\x67", tracks))
    with path.open("rb") as file:
        assert matroska_crops(file) == frozenset({1})


def test_crop_that_players_would_apply_is_refused(tmp_path: Path) -> None:
    def aperture(width: int) -> bytes:
        return struct.pack(">I4sIIIIiIiI", 40, b"clap", width, 1, 48, 1, 0, 1, 0, 1)

    entry = struct.pack(">I4s", 0, b"avc1") + bytes(24) + struct.pack(">HH", 64, 48) + bytes(50)
    assert not _has_crop(bytes(8) + entry + aperture(64))
    assert _has_crop(bytes(8) + entry + aperture(60))
    assert not _has_crop(bytes(8) + entry)


def test_dolby_vision_profile_is_told_from_its_rpu() -> None:
    def rpu(profile: int, full_range: int, vdr_depth: int, el_spatial: int, no_residual: int) -> bytes:
        header = struct.pack(
            "@BxH13B",
            2,
            18,
            profile,
            0,
            0,
            0,
            23,
            0,
            full_range,
            10,
            10,
            vdr_depth,
            0,
            el_spatial,
            no_residual,
        )
        return struct.pack("@N", 24) + bytes(16) + header + bytes(8)

    assert _dolby_vision_profile(rpu(0, 1, 12, 0, 1)) == 5
    assert _dolby_vision_profile(rpu(1, 0, 12, 1, 0)) == 7
    assert _dolby_vision_profile(rpu(1, 0, 12, 0, 1)) == 8
    assert _dolby_vision_profile(b"\xff" * 8) == 0


def ebml(name: bytes, content: bytes) -> bytes:
    return name + bytes([0x80 | len(content)]) + content


def write_bad(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.mp4"
    good = numbered_clip(folder / "good.mp4", audio=True).read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(good[: len(good) // 2])
    elif kind == "cut_after_header":
        fast = numbered_clip(folder / "fast.mp4", container_options={"movflags": "+faststart"}).read_bytes()
        path.write_bytes(fast[: len(fast) * 3 // 4])
    elif kind == "text":
        path.write_text("this is no video\n" * 500)
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(1).bytes(50_000))
    elif kind == "sound_only":
        with av.open(str(folder / "good.mp4")) as given, av.open(str(path), "w") as out:
            target = out.add_stream_from_template(given.streams.audio[0])
            for packet in given.demux(audio=0):
                if packet.dts is not None:
                    packet.stream = target
                    out.mux(packet)
    elif kind == "playlist":
        path.write_text(
            f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{folder / 'good.mp4'}\n#EXT-X-ENDLIST\n"
        )
    elif kind == "concat":
        path.write_text(f"ffconcat version 1.0\nfile '{folder / 'good.mp4'}'\n")
    elif kind == "wide":
        return numbered_clip(folder / "wide.mkv", frames=1, size=(20000, 4), codec="ffv1", pix_fmt="gray")
    elif kind == "pipe":
        os.mkfifo(path)
    return path


BAD = [
    "empty",
    "cut",
    "cut_after_header",
    "text",
    "noise",
    "sound_only",
    "playlist",
    "concat",
    "wide",
    "pipe",
]


@pytest.mark.parametrize("kind", [*BAD, "missing"])
def test_what_is_no_clip_is_refused_with_a_sentence(tmp_path: Path, kind: str) -> None:
    path = write_bad(tmp_path, kind)
    with pytest.raises(MediaError) as refused:
        clip_and_timeline(path)
    assert str(refused.value).startswith(str(path))


@pytest.mark.parametrize("seed", range(20))
def test_random_damage_ends_in_a_timeline_or_a_sentence(tmp_path: Path, seed: int) -> None:
    suffix = (".mp4", ".mkv", ".ts", ".avi")[seed % 4]
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    path = numbered_clip(tmp_path / f"a{suffix}", frames=12, codec=codec)
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    for place in rng.integers(0, len(content), 20):
        content[place] = int(rng.integers(0, 256))
    path.write_bytes(content)
    try:
        _, timeline = clip_and_timeline(path)
    except MediaError as refused:
        assert str(path) in str(refused) or "damaged" in str(refused)
    else:
        assert 0 < len(timeline) <= 100


def test_header_that_claims_absurdly_many_frames_is_refused(tmp_path: Path) -> None:
    path = numbered_clip(tmp_path / "a.mp4", frames=4)
    content = bytearray(path.read_bytes())
    at = content.index(b"stsz")
    content[at + 8 : at + 16] = struct.pack(
        ">II", 1, 0xFFFFFFF0
    )  # every sample has 1 byte, four thousand million
    path.write_bytes(content)
    with pytest.raises(MediaError, match="claims"):
        probe_clip(local_source(path))


def nested(kind: bytes, count: int) -> bytes:
    """MP4 boxes in one another."""
    return b"".join((8 * (count - depth)).to_bytes(4, "big") + kind for depth in range(count))


def test_boxes_nested_without_end_are_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"\0\0\0\x10ftypisom\0\0\0\0" + nested(b"moov", 3000))
    with pytest.raises(MediaError, match="cannot open this as a video"):
        probe_clip(local_source(path))


def test_elements_nested_without_end_are_no_crop() -> None:
    video = b"\xe0\xff" * 3000 + ebml(b"\x54\xaa", b"\1")  # of unknown size: each reaches to the end
    head = b"\x1a\x45\xdf\xa3\x80" + b"\x18\x53\x80\x67\xff" + b"\x16\x54\xae\x6b\xff" + b"\xae\xff"
    assert matroska_crops(io.BytesIO(head + video[-6:])) == {0}
    assert matroska_crops(io.BytesIO(head + video)) == frozenset()


def test_one_pixel_is_a_clip(tmp_path: Path) -> None:
    path = numbered_clip(tmp_path / "a.mkv", frames=3, size=(1, 1), codec="ffv1")
    clip, timeline = clip_and_timeline(path)
    assert (clip.picture.width, clip.picture.height, len(timeline)) == (1, 1, 3)


def test_colon_in_a_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    numbered_clip(tmp_path / "a.mp4", frames=2).rename("http:clip.mp4")
    assert probe_clip(local_source("http:clip.mp4")).codec == "h264"


def test_video_stream_is_chosen_by_index(tmp_path: Path) -> None:
    path = numbered_clip(tmp_path / "a.mp4", frames=2, audio=True)
    with pytest.raises(MediaError, match="stream 1 is no video stream; video streams are 0"):
        probe_clip(local_source(path), video_stream=1)
