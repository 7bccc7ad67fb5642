"""What the merge promises: the source's timestamps, every other stream, true tags, the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pytest

from tests.clips import Caption, Chapter, frame_number, numbered_clip, numbered_frame
from vsr_hpc.errors import JobError, SpaceError, VerifyError
from vsr_hpc.media.clip.clip import Clip
from vsr_hpc.media.clip.probe import index_clip, probe_clip
from vsr_hpc.media.clip.reader import read_segment
from vsr_hpc.media.encode.encoding import Encoding, VideoRequest
from vsr_hpc.media.encode.resolution import resolve_encoding
from vsr_hpc.media.encode.segment_writer import SegmentWriter
from vsr_hpc.media.merge.container_plan import StreamsRequest, check_container
from vsr_hpc.media.merge.merge import merge
from vsr_hpc.media.merge.request import MergeRequest
from vsr_hpc.media.picture import Colour, Frame, Mastering, Picture
from vsr_hpc.media.pixels import pixel_format, to_planes
from vsr_hpc.media.segment import MergeReport, SegmentPart
from vsr_hpc.media.side_data import read_side_data
from vsr_hpc.media.source import local_source
from vsr_hpc.media.stills.still import write_image
from vsr_hpc.media.timeline import Timeline

Codec = Literal["h264", "h265", "av1", "ffv1", "prores"]
HDR = Mastering(
    red=(34000, 16000),
    green=(13250, 34500),
    blue=(7500, 3000),
    white=(15635, 16450),
    max_luminance=10_000_000,
    min_luminance=50,
)
PQ = Colour(matrix=9, primaries=9, transfer=16, is_range_tagged=True, siting="topleft")
QUARTER_TURN = (0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30)
B_FRAMES = (("bframes", "3"), ("b-adapt", "0"))


@dataclass(frozen=True)
class Case:
    """A source and its segments, ready to be merged."""

    clip: Clip
    timeline: Timeline
    picture: Picture
    encoding: Encoding
    parts: tuple[SegmentPart, ...]

    def request(
        self, streams: StreamsRequest | None = None, frames: tuple[int, int] | None = None
    ) -> MergeRequest:
        return MergeRequest(
            clip=self.clip,
            timeline=self.timeline,
            source=local_source(self.clip.uri),
            picture=self.picture,
            encoding=self.encoding,
            streams=streams or StreamsRequest(),
            frames=frames,
        )

    def merge(
        self,
        output: Path,
        streams: StreamsRequest | None = None,
        *,
        frames: tuple[int, int] | None = None,
    ) -> MergeReport:
        return merge(self.parts, self.request(streams, frames), output)


def case(
    source: Path,
    codec: Codec = "h264",
    *,
    cuts: tuple[int, ...] = (5,),
    frames: tuple[int, int] | None = None,
    params: tuple[tuple[str, str], ...] = (),
    lossless: bool = False,
    **changes: Any,
) -> Case:
    clip = probe_clip(local_source(source))
    timeline = index_clip(clip, local_source(source))
    start, stop = frames or (0, len(timeline))
    shape = replace(clip.picture, **changes)
    request = VideoRequest(codec=codec, encoder_params=params, threads=1, lossless=lossless)
    encoding = resolve_encoding(request, shape)
    shape = replace(shape, pixel=encoding.pixel)
    parts = []
    for number, (first, last) in enumerate(pairwise([start, *cuts, stop])):
        path = source.parent / f"{source.stem}-{codec}-{number}{encoding.suffix}"
        with SegmentWriter(path, encoding, shape, time_base=Fraction(1, 24)) as writer:
            for each in range(first, last):
                writer.write(numbered_frame(each, shape))
            facts = writer.close()
        parts.append(SegmentPart(fetch=lambda path=path: path, frames=last - first, sha256=facts.sha256))
    return Case(clip, timeline, shape, encoding, tuple(parts))


def shown(path: Path, stream: int = 0) -> Iterator[tuple[Fraction, int]]:
    """(time, number in the pixels) of every frame."""
    with av.open(str(path)) as container:
        video = container.streams[stream]
        for frame in container.decode(video):
            assert frame.pts is not None and video.time_base is not None
            yield frame.pts * video.time_base, frame_number(Frame(index=0, planes=to_planes(frame)))


def sound(path: Path, stream: int = 0) -> tuple[float, np.ndarray]:
    """(time of the first sample, all samples) of one audio stream."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=stream))
    return float(frames[0].time), np.concatenate([frame.to_ndarray() for frame in frames], axis=1)


def packets(path: Path, stream: int) -> list[tuple[Fraction | None, bytes]]:
    with av.open(str(path)) as container:
        found = [each for each in container.demux(container.streams[stream]) if each.size]
        return [(None if p.pts is None else p.pts * p.time_base, bytes(p)) for p in found]


CONTAINERS = [
    ("h264", "yuv420p", ".mp4"),
    ("h264", "yuv420p", ".mov"),
    ("h264", "yuv420p", ".mkv"),
    ("h265", "yuv420p10le", ".mp4"),
    ("h265", "yuv420p10le", ".mov"),
    ("h265", "yuv420p10le", ".mkv"),
    ("av1", "yuv420p", ".mp4"),
    ("av1", "yuv420p", ".mkv"),
    ("av1", "yuv420p", ".webm"),
    ("ffv1", "yuv420p", ".mkv"),
    ("prores", "yuv422p10le", ".mov"),
    ("prores", "yuv422p10le", ".mkv"),
]


@pytest.mark.parametrize(("codec", "name", "suffix"), CONTAINERS)
def test_ten_merges_give_one_hash_and_the_frames_of_the_segments(
    codec: Codec, name: str, suffix: str, tmp_path: Path
) -> None:
    source = numbered_clip(
        tmp_path / "in.mkv",
        frames=12,
        codec="ffv1",
        pix_fmt=name,
        audio="ac3" if suffix == ".mov" else "libopus",
    )
    ready = case(source, codec, sample_aspect=Fraction(4, 3))
    reports = [ready.merge(tmp_path / f"out{n}{suffix}") for n in range(10)]
    assert len({report.sha256 for report in reports}) == 1
    joined = list(read_segment(tmp_path / f"out0{suffix}"))
    single = [frame for part in ready.parts for frame in read_segment(part.fetch())]
    assert len(joined) == len(single) == 12
    for left, right in zip(joined, single, strict=True):
        for plane, wanted in zip(left.planes, right.planes, strict=True):
            np.testing.assert_array_equal(plane, wanted)
    assert [number for _, number in shown(tmp_path / f"out0{suffix}")] == list(range(12))


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        *((codec, suffix) for codec in ("h264", "h265", "av1") for suffix in (".mp4", ".mkv")),
        ("ffv1", ".mkv"),
    ],
)
def test_ten_millisecond_frames_then_one_second_frames_join_with_b_frames(
    codec: Codec, suffix: str, tmp_path: Path
) -> None:
    pts = [n * 10 for n in range(8)] + [80 + n * 1000 for n in range(8)]
    source = numbered_clip(
        tmp_path / "in.mkv", frames=16, codec="ffv1", pts=pts, time_base=Fraction(1, 1000), audio=True
    )
    params = B_FRAMES if codec in ("h264", "h265") else ()
    report = case(source, codec, cuts=(3, 11), params=params).merge(tmp_path / f"out{suffix}")
    assert (report.reorder_depth > 0) == (codec in ("h264", "h265"))
    found = list(shown(tmp_path / f"out{suffix}"))
    assert found == [(Fraction(each, 1000), number) for number, each in enumerate(pts)]


def test_matroska_timestamps_are_the_sources_to_half_a_tick(tmp_path: Path) -> None:
    source = numbered_clip(tmp_path / "in.mp4", frames=24, rate=Fraction(24000, 1001))
    report = case(source, params=B_FRAMES).merge(tmp_path / "out.mkv")
    times = [time for time, _ in shown(tmp_path / "out.mkv")]
    assert report.tick == Fraction(1, 1000)
    wanted = [Fraction(1001 * n, 24000) + report.offset for n in range(24)]
    assert max(abs(a - b) for a, b in zip(times, wanted, strict=True)) <= report.tick / 2


def test_packets_carry_durations_to_the_end_of_the_last_frame(tmp_path: Path) -> None:
    source = numbered_clip(tmp_path / "in.mp4", frames=12, rate=25)
    case(source, params=B_FRAMES).merge(tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.duration is not None and stream.time_base is not None
        assert stream.duration * stream.time_base == Fraction(12, 25)
        found = [each for each in container.demux(stream) if each.size]
        assert {each.duration * each.time_base for each in found} == {Fraction(1, 25)}


@pytest.mark.parametrize(
    ("source", "output"),
    [
        (".mp4", ".mp4"),
        (".mp4", ".mov"),
        (".mp4", ".mkv"),
        (".mov", ".mp4"),
        (".mkv", ".mkv"),
        (".mkv", ".mp4"),
        (".ts", ".mkv"),
        (".ts", ".mp4"),
    ],
)
def test_aac_decodes_to_the_same_samples_in_step_with_the_picture(
    source: str, output: str, tmp_path: Path
) -> None:
    made = numbered_clip(tmp_path / f"in{source}", frames=24, audio=True)
    ready = case(made)
    report = ready.merge(tmp_path / f"out{output}")
    before, samples = sound(made)
    after, copied = sound(tmp_path / f"out{output}")
    if (source, output) == (".mkv", ".mp4"):
        # Matroska's millisecond stamps round the priming of 1024 samples to 1008.
        assert abs(samples.shape[1] - copied.shape[1]) <= 48
    else:
        np.testing.assert_array_equal(copied, samples)
    first = int(ready.timeline.pts[0]) * ready.timeline.time_base
    picture = next(shown(tmp_path / f"out{output}"))[0]
    assert abs((picture - first) - (after - before)) <= 0.001
    assert abs(picture - first - report.offset) <= report.tick / 2


@pytest.mark.parametrize(
    ("codec", "source", "output"),
    [
        ("libopus", ".mkv", ".mkv"),
        ("libopus", ".mkv", ".mp4"),
        ("libopus", ".webm", ".mkv"),
        ("libmp3lame", ".mp4", ".mp4"),
        ("libmp3lame", ".mkv", ".mkv"),
        ("flac", ".mkv", ".mkv"),
        ("ac3", ".mp4", ".mkv"),
        ("pcm_s16le", ".mkv", ".mov"),
    ],
)
def test_copied_sound_decodes_to_the_same_samples(
    codec: str, source: str, output: str, tmp_path: Path
) -> None:
    video = "libvpx-vp9" if source == ".webm" else "libx264"
    made = numbered_clip(tmp_path / f"in{source}", frames=24, audio=codec, codec=video)
    case(made).merge(tmp_path / f"out{output}")
    _, samples = sound(made)
    _, copied = sound(tmp_path / f"out{output}")
    shorter = min(samples.shape[1], copied.shape[1])
    # FFmpeg reads MP4's edit list at the front to the sample, at the end to the packet.
    assert abs(samples.shape[1] - copied.shape[1]) <= (960 if (codec, output) == ("libopus", ".mp4") else 0)
    np.testing.assert_array_equal(copied[:, :shorter], samples[:, :shorter])


def test_packets_of_copied_streams_are_byte_equal_with_their_times(tmp_path: Path) -> None:
    source = numbered_clip(tmp_path / "in.mp4", frames=12, audio=True)
    report = case(source).merge(tmp_path / "out.mp4")
    before, after = packets(source, 1), packets(tmp_path / "out.mp4", 1)
    assert [data for _, data in after] == [data for _, data in before]
    assert [time for time, _ in after] == [time + report.offset for time, _ in before if time is not None]


@pytest.mark.parametrize(
    ("codec", "suffix"), [(c, s) for c, _, s in CONTAINERS if (c, s) != ("av1", ".webm")]
)
def test_container_carries_tags_aspect_rotation_and_hdr10(codec: Codec, suffix: str, tmp_path: Path) -> None:
    source = numbered_clip(tmp_path / "in.mkv", frames=6, codec="ffv1", pix_fmt="yuv422p10le")
    shape: dict[str, Any] = {"colour": PQ, "mastering": HDR, "light_level": (1000, 400)}
    shape |= {"sample_aspect": Fraction(4, 3), "display_matrix": QUARTER_TURN}
    if codec in ("h265", "av1", "h264"):
        shape["pixel"] = pixel_format("yuv420p10le")
    case(source, codec, cuts=(3,), **shape).merge(tmp_path / f"out{suffix}")
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
    assert (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range) == (9, 9, 16, 1)
    assert stream.sample_aspect_ratio == Fraction(4, 3)
    side = read_side_data(frame)
    assert abs(frame.rotation) == 90
    assert (side.mastering, side.light_level) == (HDR, (1000, 400))
    if suffix in (".mp4", ".mov"):
        data = (tmp_path / f"out{suffix}").read_bytes()
        assert all(box in data for box in (b"mdcv", b"clli", b"colr", b"pasp"))
        assert side.display_matrix == QUARTER_TURN


def test_track_name_is_given_back_after_the_header_was_edited(tmp_path: Path) -> None:
    source = numbered_clip(tmp_path / "in.mkv", frames=6)
    case(source, sample_aspect=Fraction(16, 11)).merge(tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert "title" not in container.streams.video[0].metadata
        assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 11)


def rich_source(path: Path, folder: Path) -> Path:
    """Two pictures, two sounds, captions, a font, chapters, tags, languages and dispositions."""
    main = numbered_clip(
        folder / "main.mkv",
        frames=24,
        audio=True,
        captions=[Caption(start_s=0.1, stop_s=0.6, text="<i>hello</i>\nthere")],
    )
    with av.open(str(main)) as one, av.open(str(path), "w") as out:
        out.metadata.update({"title": "A film", "MY_TAG": "kept"})
        made = [out.add_stream_from_template(each, opaque=True) for each in one.streams]
        second = out.add_stream_from_template(one.streams.audio[0], opaque=True)
        made[1].metadata.update(language="deu", title="Ton")
        second.metadata.update(language="jpn")
        second.disposition = int(av.stream.Disposition.comment)
        made[2].metadata.update(language="fra")
        made[2].disposition = int(av.stream.Disposition.forced)
        if path.suffix == ".mkv":
            out.add_attachment("font.ttf", "font/ttf", b"not really a font" * 9)
        out.set_chapters(
            [
                {
                    "id": 1,
                    "start": 0,
                    "end": 500,
                    "time_base": Fraction(1, 1000),
                    "metadata": {"title": "One"},
                },
                {
                    "id": 2,
                    "start": 500,
                    "end": 1000,
                    "time_base": Fraction(1, 1000),
                    "metadata": {"title": "Two"},
                },
            ]
        )
        for packet in one.demux():
            if not packet.size:
                continue
            number = packet.stream_index
            data, times = bytes(packet), (packet.pts, packet.dts, packet.duration, packet.time_base)
            packet.stream = made[number]
            out.mux_one(packet)
            if number == 1:
                twin = av.Packet(data)
                twin.pts, twin.dts, twin.duration, twin.time_base = times
                twin.stream = second
                out.mux_one(twin)
    return path


def test_everything_beside_the_picture_is_kept_in_matroska(tmp_path: Path) -> None:
    source = rich_source(tmp_path / "in.mkv", tmp_path)
    case(source).merge(tmp_path / "out.mkv")
    with av.open(str(source)) as before, av.open(str(tmp_path / "out.mkv")) as after:
        kinds = [(each.type, each.language, each.disposition) for each in before.streams]
        assert [(each.type, each.language, each.disposition) for each in after.streams] == kinds
        assert after.streams.audio[0].metadata["title"] == "Ton"
        assert after.metadata["title"] == "A film"
        assert after.metadata["MY_TAG"] == "kept"
        assert after.chapters() == before.chapters()
        font: Any = after.streams[4]
        assert (font.name, font.mimetype, font.data) == ("font.ttf", "font/ttf", b"not really a font" * 9)
    for stream in (1, 2, 3):
        assert packets(tmp_path / "out.mkv", stream) == packets(source, stream)


def test_matroska_to_mp4_needs_leave_to_drop_the_font_and_turns_captions_to_text(tmp_path: Path) -> None:
    source = rich_source(tmp_path / "in.mkv", tmp_path)
    ready = case(source)
    findings = check_container(ready.clip, ready.encoding, "out.mp4", StreamsRequest())
    assert len(findings) == 1
    assert "--drop attachment" in findings[0]
    report = ready.merge(tmp_path / "out.mp4", StreamsRequest(drop=("attachment",)))
    assert any("mov_text" in note for note in report.notes)
    with av.open(str(tmp_path / "out.mp4")) as after:
        assert after.metadata["title"] == "A film"
        assert after.metadata["MY_TAG"] == "kept"
        assert [each.language for each in after.streams][1:4] == ["deu", "fra", "jpn"]
        assert [each["metadata"]["title"] for each in after.chapters()] == ["One", "Two"]
        assert after.streams.subtitles[0].name == "mov_text"
    texts = [(time, data[2:]) for time, data in packets(tmp_path / "out.mp4", 2) if len(data) > 2]
    assert texts == [(Fraction(1, 10), b"hello\nthere")]


def test_mp4_captions_become_srt_in_matroska_and_chapters_stay(tmp_path: Path) -> None:
    source = rich_source(tmp_path / "in.mkv", tmp_path)
    case(source).merge(tmp_path / "middle.mp4", StreamsRequest(drop=("attachment",)))
    case(tmp_path / "middle.mp4").merge(tmp_path / "out.mkv")
    assert packets(tmp_path / "out.mkv", 2) == [(Fraction(1, 10), b"hello\nthere")]
    with av.open(str(tmp_path / "out.mkv")) as after:
        assert after.streams.subtitles[0].codec_context.name in ("srt", "subrip")
        assert [each["metadata"]["title"] for each in after.chapters()] == ["One", "Two"]
        assert {each.type for each in after.streams} == {"video", "audio", "subtitle"}


def test_captions_of_the_output_last_as_long_as_the_sources(tmp_path: Path) -> None:
    source = rich_source(tmp_path / "in.mkv", tmp_path)
    case(source).merge(tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as after:
        caption = next(each for each in after.demux(after.streams.subtitles[0]) if each.size)
        assert caption.duration * caption.time_base == Fraction(1, 2)


@pytest.mark.parametrize("mode", ["aac", "opus"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_recoded_sound_stays_in_step_and_repeats(mode: Any, suffix: str, tmp_path: Path) -> None:
    source = numbered_clip(tmp_path / "in.mkv", frames=24, audio="flac")
    ready = case(source)
    hashes = {ready.merge(tmp_path / f"out{suffix}", StreamsRequest(audio=mode)).sha256 for _ in range(3)}
    assert len(hashes) == 1
    start, samples = sound(tmp_path / f"out{suffix}")
    _, original = sound(source)
    assert abs(start) < 0.001
    wave, wanted = samples[0], original[0].astype(np.float32) / 32768
    length = min(len(wave), len(wanted)) - 2000
    shift = [float(np.corrcoef(wave[1000 + n : length + n], wanted[1000:length])[0, 1]) for n in (-20, 0, 20)]
    assert shift[1] > 0.99
    assert shift[1] == max(shift)


@pytest.mark.parametrize(
    ("codec", "name"), [("flac", "in.mkv"), (True, "in.mp4"), ("ac3", "in.mp4"), ("pcm_s16le", "in.mov")]
)
@pytest.mark.parametrize(("mode", "suffix"), [("aac", ".mp4"), ("aac", ".mkv"), ("opus", ".mkv")])
def test_recoded_sound_of_a_range_is_cut_to_the_sample(
    codec: Any, name: str, mode: Any, suffix: str, tmp_path: Path
) -> None:
    source = numbered_clip(tmp_path / name, frames=24, audio=codec)
    ready = case(source, frames=(7, 18), cuts=(12,))
    ready.merge(tmp_path / f"out{suffix}", StreamsRequest(audio=mode), frames=(7, 18))
    start, samples = sound(tmp_path / f"out{suffix}")
    _, original = sound(source)
    assert abs(start) < 0.001
    assert -24 <= samples.shape[1] - 22000 <= 1024 + 960  # 11 frames; the last packet may be filled up
    begin = round(int(ready.timeline.pts[7]) * ready.timeline.time_base * 48000)
    wave, wanted = samples[0], original[0].astype(np.float32)
    shift = [
        float(np.corrcoef(wave[1000:20000], wanted[begin + n + 1000 : begin + n + 20000])[0, 1])
        for n in (-20, 0, 20)
    ]
    assert shift[1] > 0.98
    assert shift[1] == max(shift)


@pytest.mark.parametrize("mode", ["aac", "opus"])
@pytest.mark.parametrize(
    ("layout", "rate"),
    [("1 channels", 48000), ("stereo", 37800), ("5.1(side)", 48000), ("2.1", 44100), ("7.1", 192000)],
)
def test_every_layout_and_rate_is_recoded(layout: str, rate: int, mode: Any, tmp_path: Path) -> None:
    """PCM without named speakers, the 5.1(side) of films, rates that no encoder takes."""
    plain = numbered_clip(tmp_path / "plain.mkv", frames=12)
    with av.open(str(plain)) as one, av.open(str(tmp_path / "in.mkv"), "w") as out:
        video = out.add_stream_from_template(one.streams.video[0], opaque=True)
        made = out.add_stream("pcm_s16le", rate=rate, layout="mono" if layout[0] == "1" else layout)
        channels = made.layout.nb_channels
        for packet in one.demux():
            if packet.size:
                packet.stream = video
                out.mux_one(packet)
        wave = np.sin(np.arange(rate // 2) * 2 * np.pi * 60 / rate) * 9000  # what a subwoofer keeps, too
        frame = av.AudioFrame.from_ndarray(
            wave.astype(np.int16).repeat(channels)[None], format="s16", layout=made.layout.name
        )
        frame.sample_rate, frame.pts = rate, 0
        out.mux(made.encode(frame))
    ready = case(tmp_path / "in.mkv")
    assert not check_container(ready.clip, ready.encoding, "out.mkv", StreamsRequest(audio=mode))
    ready.merge(tmp_path / "out.mkv", StreamsRequest(audio=mode))
    with av.open(str(tmp_path / "out.mkv")) as after:
        mixer = av.AudioResampler(format="flt", layout=after.streams.audio[0].layout.name)
        frames = [made for frame in after.decode(audio=0) for made in mixer.resample(frame)]
        found = after.streams.audio[0]
        assert abs(float(frames[0].time)) < 0.001
        assert abs(sum(frame.samples for frame in frames) / found.sample_rate - 0.5) < 0.05
        loudest = np.abs(frames[5].to_ndarray().reshape(-1, found.layout.nb_channels)).max(axis=0)
        assert (loudest > 0.05).sum() == channels


def test_more_channels_than_an_encoder_takes_are_refused(tmp_path: Path) -> None:
    ready = case(numbered_clip(tmp_path / "in.mkv", frames=6, audio="flac"), cuts=(3,))
    streams = tuple(replace(each, channels=16, layout="hexadecagonal") for each in ready.clip.streams)
    clip = replace(ready.clip, streams=streams)
    (finding,) = check_container(clip, ready.encoding, "out.mkv", StreamsRequest(audio="aac"))
    assert "16 channels are more than aac takes" in finding


@pytest.mark.parametrize(("mode", "suffix"), [("aac", ".webm"), ("opus", ".mov")])
def test_recoded_sound_that_the_container_cannot_hold_is_refused(
    mode: Any, suffix: str, tmp_path: Path
) -> None:
    codec: Codec = "av1" if suffix == ".webm" else "h264"
    ready = case(numbered_clip(tmp_path / "in.mkv", frames=6, audio="libopus"), codec, cuts=(3,))
    (finding,) = check_container(ready.clip, ready.encoding, f"out{suffix}", StreamsRequest(audio=mode))
    assert f"cannot hold {mode}" in finding
    assert f"--audio {'opus' if mode == 'aac' else 'aac'}" in finding


def test_sound_can_be_left_out(tmp_path: Path) -> None:
    source = numbered_clip(tmp_path / "in.mp4", frames=6, audio=True)
    case(source).merge(tmp_path / "out.mp4", StreamsRequest(audio="none"))
    with av.open(str(tmp_path / "out.mp4")) as after:
        assert [each.type for each in after.streams] == ["video"]


def test_damaged_sound_packets_are_copied_as_they_are(tmp_path: Path) -> None:
    made = numbered_clip(tmp_path / "good.mp4", frames=24, audio=True)
    broken = tmp_path / "in.mp4"
    with av.open(str(made)) as one, av.open(str(broken), "w") as out:
        streams = [out.add_stream_from_template(each, opaque=True) for each in one.streams]
        for packet in one.demux():
            if packet.size:
                number = packet.stream_index
                if number == 1 and packet.pts > 5000:
                    packet.update(bytes(reversed(bytes(packet))))
                packet.stream = streams[number]
                out.mux_one(packet)
    case(broken).merge(tmp_path / "out.mp4")
    assert packets(tmp_path / "out.mp4", 1) == packets(broken, 1)


def test_range_cuts_sound_captions_and_chapters_to_its_time(tmp_path: Path) -> None:
    source = rich_source(tmp_path / "in.mkv", tmp_path)
    ready = case(source, frames=(6, 18), cuts=(12,))
    report = ready.merge(tmp_path / "out.mkv", frames=(6, 18))
    begin = int(ready.timeline.pts[6]) * ready.timeline.time_base
    assert report.offset == -begin
    found = list(shown(tmp_path / "out.mkv"))
    assert [number for _, number in found] == list(range(6, 18))
    assert found[0][0] == 0
    times = [time for time, _ in packets(tmp_path / "out.mkv", 1) if time is not None]
    assert 0 <= times[0] < Fraction(1, 40)
    assert times[-1] < Fraction(1, 2)
    with av.open(str(tmp_path / "out.mkv")) as after:
        caption = next(each for each in after.demux(after.streams.subtitles[0]) if each.size)
        assert (caption.pts, caption.duration) == (0, 350)
        assert [(each["start"], each["end"]) for each in after.chapters()] == [
            (0, 250_000_000),
            (250_000_000, 500_000_000),
        ]


@pytest.mark.parametrize(
    ("codec", "source", "output"),
    [
        (True, ".mp4", ".mp4"),
        (True, ".mp4", ".mkv"),
        (True, ".mkv", ".mkv"),
        (True, ".mkv", ".mp4"),
        ("libopus", ".mkv", ".mkv"),
        ("libopus", ".mkv", ".mp4"),
    ],
)
@pytest.mark.parametrize("first", [0, 6])
def test_range_keeps_priming_where_it_begins_with_the_clip_and_skips_nothing_where_it_does_not(
    codec: Any, source: str, output: str, first: int, tmp_path: Path
) -> None:
    made = numbered_clip(tmp_path / f"in{source}", frames=24, audio=codec)
    ready = case(made, frames=(first, 12), cuts=(first + 3,))
    report = ready.merge(tmp_path / f"out{output}", frames=(first, 12))
    begin = int(ready.timeline.pts[first]) * ready.timeline.time_base if first else -1
    wanted = [(time, data) for time, data in packets(made, 1) if time is not None and begin <= time < 0.5]
    copied = packets(tmp_path / f"out{output}", 1)
    assert [data for _, data in copied] == [data for _, data in wanted]
    assert abs(copied[0][0] - wanted[0][0] - report.offset) <= Fraction(1, 1000)
    _, samples = sound(tmp_path / f"out{output}")
    length, priming = (960, 312) if codec == "libopus" else (1024, 1024)
    skipped = len(wanted) * length - samples.shape[1]
    assert abs(skipped - (0 if first else priming)) <= (24 if ".mkv" in (source, output) else 0)


def two_videos(path: Path, folder: Path, gop: int) -> Path:
    """A clip with a smaller second picture, which has a key picture every `gop` frames, and B-frames."""
    numbered_clip(folder / "main.mkv", frames=24, size=(96, 64))
    numbered_clip(folder / "small.mkv", frames=24, gop=gop, b_frames=2)
    with (
        av.open(str(folder / "main.mkv")) as one,
        av.open(str(folder / "small.mkv")) as two,
        av.open(str(path), "w") as out,
    ):
        for read in (one, two):
            out.add_stream_from_template(read.streams.video[0], opaque=True)
        for number, read in enumerate((one, two)):
            for packet in read.demux():
                if packet.size:
                    packet.stream = out.streams[number]
                    out.mux(packet)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_copied_video_of_a_range_begins_at_a_key_picture_and_decodes(suffix: str, tmp_path: Path) -> None:
    ready = case(two_videos(tmp_path / "in.mkv", tmp_path, gop=8), frames=(6, 18), cuts=(12,))
    report = ready.merge(tmp_path / f"out{suffix}", frames=(6, 18))
    numbers = [number for _, number in shown(tmp_path / f"out{suffix}", 1)]
    assert numbers[:10] == list(range(8, 18))
    assert any("begins 0.083 s late" in note for note in report.notes)


def test_copied_video_without_a_key_picture_in_the_range_is_left_out_and_said(tmp_path: Path) -> None:
    ready = case(two_videos(tmp_path / "in.mkv", tmp_path, gop=24), frames=(6, 18), cuts=(12,))
    report = ready.merge(tmp_path / "out.mkv", frames=(6, 18))
    assert any("stream 1 (video): left out" in note for note in report.notes)
    with av.open(str(tmp_path / "out.mkv")) as after:
        assert [each.type for each in after.streams] == ["video"]


@pytest.mark.skipif(
    int(av.__version__.split(".")[0]) < 18, reason="PyAV 17 cannot tell Matroska's muxer a frame rate"
)
@pytest.mark.parametrize("codec", ["h264", "h265", "av1", "ffv1", "prores"])
def test_matroska_keeps_how_long_the_last_frame_is_shown(codec: Codec, tmp_path: Path) -> None:
    pts = [*range(0, 60, 10), 60, 2000]
    source = numbered_clip(tmp_path / "in.mp4", frames=8, pts=pts, time_base=Fraction(1, 1000), audio=True)
    case(source, codec, frames=(0, 7), cuts=(3,)).merge(tmp_path / "out.mkv", frames=(0, 7))
    with av.open(str(tmp_path / "out.mkv")) as container:
        durations = {each.pts: each.duration for each in container.demux(video=0) if each.size}
    assert (max(durations), durations[60]) == (60, 1940)


@pytest.mark.parametrize("language", ["deu", "ger", "fra", "eng", "gsw"])
@pytest.mark.parametrize("suffix", [".mov", ".mp4", ".mkv"])
def test_every_container_keeps_the_languages_code(language: str, suffix: str, tmp_path: Path) -> None:
    source = numbered_clip(tmp_path / "in.mkv", frames=6, audio="ac3", audio_language=language)
    case(source, cuts=(3,)).merge(tmp_path / f"out{suffix}")
    with av.open(str(tmp_path / f"out{suffix}")) as after:
        assert after.streams.audio[0].language == language
        assert after.streams.video[0].language in (None, "und")


def test_a_tracks_title_goes_from_container_to_container(tmp_path: Path) -> None:
    """FFmpeg writes it into MP4 as a title and reads it back as a name."""
    case(rich_source(tmp_path / "in.mkv", tmp_path)).merge(
        tmp_path / "one.mp4", StreamsRequest(drop=("attachment",))
    )
    case(tmp_path / "one.mp4").merge(tmp_path / "two.mp4")
    case(tmp_path / "two.mp4").merge(tmp_path / "three.mkv")
    for name, key in (("one.mp4", "name"), ("two.mp4", "name"), ("three.mkv", "title")):
        with av.open(str(tmp_path / name)) as made:
            assert made.streams.audio[0].metadata[key] == "Ton", name


def test_far_start_is_moved_to_zero_and_said(tmp_path: Path) -> None:
    source = numbered_clip(tmp_path / "in.mkv", frames=12, pts=range(72, 84))
    ready = case(source)
    report = ready.merge(tmp_path / "out.mkv")
    assert report.offset == -3
    assert any("shifted by" in note for note in report.notes)
    assert next(shown(tmp_path / "out.mkv")) == (0, 0)


def test_cover_art_is_kept(tmp_path: Path) -> None:
    made = numbered_clip(tmp_path / "main.mp4", frames=6, audio=True)
    numbered_clip(
        tmp_path / "cover.mkv", frames=1, codec="mjpeg", pix_fmt="yuvj420p", options={"strict": "-1"}
    )
    with (
        av.open(str(made)) as one,
        av.open(str(tmp_path / "cover.mkv")) as two,
        av.open(str(tmp_path / "in.mp4"), "w") as out,
    ):
        streams = [out.add_stream_from_template(each, opaque=True) for each in one.streams]
        cover = out.add_stream_from_template(two.streams.video[0], opaque=True)
        cover.disposition = int(av.stream.Disposition.attached_pic)
        for packet in two.demux(video=0):
            if packet.size:
                picture = bytes(packet)
                packet.stream = cover
                out.mux_one(packet)
        for packet in one.demux():
            if packet.size:
                packet.stream = streams[packet.stream_index]
                out.mux_one(packet)
    ready = case(tmp_path / "in.mp4", cuts=(3,))
    for suffix in (".mp4", ".mkv"):
        ready.merge(tmp_path / f"out{suffix}")
        with av.open(str(tmp_path / f"out{suffix}")) as after:
            kept = [each for each in after.streams if each.disposition & av.stream.Disposition.attached_pic]
            assert len(kept) == 1
            packet = next(each for each in after.demux(kept[0]) if each.size)
            assert bytes(packet) == picture


@pytest.mark.parametrize(
    ("codec", "suffix", "said"),
    [
        ("ffv1", ".mp4", "name the output .mkv"),
        ("prores", ".mp4", "name the output .mov or .mkv"),
        ("h264", ".webm", "--codec av1"),
        ("h264", ".avi", "name it with one of .mp4"),
        ("h264", "", "without a suffix"),
    ],
)
def test_container_that_cannot_hold_the_picture_is_refused(
    codec: Codec, suffix: str, said: str, tmp_path: Path
) -> None:
    ready = case(numbered_clip(tmp_path / "in.mp4", frames=6), codec, cuts=(3,))
    findings = check_container(ready.clip, ready.encoding, f"out{suffix}", StreamsRequest())
    assert any(said in each for each in findings)
    with pytest.raises(JobError):
        ready.merge(tmp_path / f"out{suffix}")


def test_transparency_in_mp4_is_refused_with_the_containers_that_hold_it(tmp_path: Path) -> None:
    source = numbered_clip(tmp_path / "in.mkv", frames=6, codec="ffv1", pix_fmt="yuva420p")
    ready = case(source, "ffv1", cuts=(3,))
    (finding,) = check_container(ready.clip, ready.encoding, "out.mp4", StreamsRequest())
    assert "name the output .mkv, or .mov with --codec prores" in finding
    assert not check_container(ready.clip, ready.encoding, "out.mkv", StreamsRequest())


def test_sound_that_the_container_cannot_hold_names_the_ways_out(tmp_path: Path) -> None:
    ready = case(numbered_clip(tmp_path / "in.mkv", frames=6, audio="wavpack"), cuts=(3,))
    (finding,) = check_container(ready.clip, ready.encoding, "out.mp4", StreamsRequest())
    for said in ("wavpack", ".mkv", "--audio aac", "--drop audio"):
        assert said in finding
    assert not check_container(ready.clip, ready.encoding, "out.mp4", StreamsRequest(audio="aac"))


@pytest.mark.parametrize(
    ("output", "unsaid"),
    [("out.mkv", []), ("out.mp4", ["original"]), ("out.mov", ["original", "forced"])],
)
def test_dispositions_that_a_container_cannot_say_need_leave(
    output: str, unsaid: list[str], tmp_path: Path
) -> None:
    flags = av.stream.Disposition.forced | av.stream.Disposition.original
    plain = numbered_clip(tmp_path / "plain.mkv", frames=6, audio="ac3")
    with av.open(str(plain)) as one, av.open(str(tmp_path / "in.mkv"), "w") as out:
        made = [out.add_stream_from_template(each, opaque=True) for each in one.streams]
        made[1].disposition = int(flags)
        for packet in one.demux():
            if packet.size:
                packet.stream = made[packet.stream_index]
                out.mux_one(packet)
    ready = case(tmp_path / "in.mkv", cuts=(3,))
    findings = check_container(ready.clip, ready.encoding, output, StreamsRequest())
    assert [f"disposition {', '.join(unsaid)}; " in each for each in findings] == [True] * bool(unsaid)
    request = StreamsRequest(drop=("disposition",) if unsaid else ())
    ready.merge(tmp_path / output, request)
    with av.open(str(tmp_path / output)) as after:
        kept = [each for each in ("forced", "original") if each not in unsaid]
        found = after.streams.audio[0].disposition
        assert all(found & av.stream.Disposition[each] for each in kept)


def test_unknown_kind_to_drop_is_refused(tmp_path: Path) -> None:
    ready = case(numbered_clip(tmp_path / "in.mkv", frames=6), cuts=(3,))
    (finding,) = check_container(ready.clip, ready.encoding, "out.mkv", StreamsRequest(drop=("fonts",)))
    assert "attachment" in finding


def test_segments_with_other_codec_headers_stop_the_merge(tmp_path: Path) -> None:
    source = numbered_clip(tmp_path / "in.mp4", frames=12)
    ready = case(source)
    other = replace(ready.encoding, params=(("ref", "1"), ("bframes", "0")))
    path = tmp_path / "other.mp4"
    with SegmentWriter(path, other, ready.picture, time_base=Fraction(1, 24)) as writer:
        for number in range(5, 12):
            writer.write(numbered_frame(number, ready.picture))
        writer.close()
    mixed = replace(ready, parts=(ready.parts[0], SegmentPart(fetch=lambda: path, frames=7)))
    with pytest.raises(VerifyError, match="codec headers differ"):
        mixed.merge(tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [({"frames": 6}, "were planned"), ({"sha256": "0" * 64}, "its receipt says")],
)
def test_segment_that_is_not_its_receipt_stops_the_merge(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    ready = case(numbered_clip(tmp_path / "in.mp4", frames=12))
    wrong = replace(ready, parts=(replace(ready.parts[0], **change), ready.parts[1]))
    with pytest.raises(VerifyError, match=said):
        wrong.merge(tmp_path / "out.mp4")


def test_segment_with_a_frame_too_few_stops_the_merge(tmp_path: Path) -> None:
    ready = case(numbered_clip(tmp_path / "in.mp4", frames=12))
    first, second = ready.parts
    wrong = replace(
        ready, parts=(replace(first, frames=6, sha256=None), replace(second, frames=6, sha256=None))
    )
    with pytest.raises(VerifyError, match="holds 5 frames, its receipt says 6"):
        wrong.merge(tmp_path / "out.mp4")


def test_full_disk_is_a_space_error_and_leaves_no_file(tmp_path: Path) -> None:
    ready = case(numbered_clip(tmp_path / "in.mkv", frames=12, audio=True), "ffv1")
    (tmp_path / "out.mkv").symlink_to("/dev/full")
    with pytest.raises(SpaceError, match="disk is full"):
        ready.merge(tmp_path / "out.mkv")
    assert not (tmp_path / "out.mkv").is_symlink()


def test_segments_are_let_go_once_copied(tmp_path: Path) -> None:
    ready = case(numbered_clip(tmp_path / "in.mp4", frames=12))
    gone: list[Path] = []
    parts = tuple(replace(part, done=gone.append) for part in ready.parts)
    replace(ready, parts=parts).merge(tmp_path / "out.mp4")
    assert gone == [part.fetch() for part in parts]


def test_chapter_fixture_is_what_players_read(tmp_path: Path) -> None:
    source = numbered_clip(
        tmp_path / "in.mp4", frames=24, chapters=[Chapter(start_s=0.0, stop_s=0.5, title="Eins")]
    )
    case(source).merge(tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as after:
        assert [each["metadata"]["title"] for each in after.chapters()] == ["Eins"]


def test_stills_join_to_a_video_without_other_streams(tmp_path: Path) -> None:
    shape = replace(probe_clip(local_source(numbered_clip(tmp_path / "any.mkv", frames=2))).picture)
    shape = replace(shape, pixel=pixel_format("gbrp"), colour=Colour())
    (tmp_path / "in").mkdir()
    for number in range(12):
        write_image(tmp_path / "in" / f"f_{number:03d}.png", shape, numbered_frame(number, shape).planes)
    ready = case(tmp_path / "in", "ffv1")
    report = ready.merge(tmp_path / "out.mkv")
    assert report.frames == 12
    assert [number for _, number in shown(tmp_path / "out.mkv")] == list(range(12))


def with_short_packets(path: Path, folder: Path, count: int, samples: int) -> Path:
    """A clip whose sound comes in `count` packets of so many samples, at 48000 a second."""
    with (
        av.open(str(numbered_clip(folder / "long.mkv", frames=12, audio="libopus"))) as given,
        av.open(str(path), "w") as out,
    ):
        pairs = {each.index: out.add_stream_from_template(each, opaque=True) for each in given.streams}
        sound = next(each for each in given.streams if each.type == "audio")
        bodies = []
        for packet in given.demux():
            if packet.size and packet.stream_index == sound.index:
                bodies.append(bytes(packet))
            elif packet.size:
                packet.stream = pairs[packet.stream_index]
                out.mux(packet)
        for number in range(count):
            packet = av.Packet(bodies[number % len(bodies)])
            packet.stream, packet.time_base = pairs[sound.index], Fraction(1, 48000)
            packet.pts = packet.dts = number * samples
            packet.duration = samples
            out.mux(packet)
    return path


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".mp4"])
def test_sound_in_packets_shorter_than_a_tick_is_not_stretched(suffix: str, tmp_path: Path) -> None:
    source = with_short_packets(tmp_path / "in.mkv", tmp_path, 600, 40)
    codec: Codec = "av1" if suffix == ".webm" else "h264"
    report = case(source, codec).merge(tmp_path / f"out{suffix}")
    before, after = packets(source, 1), packets(tmp_path / f"out{suffix}", 1)
    assert [data for _, data in after] == [data for _, data in before]
    assert len({time for time, _ in before}) < len(before)  # Matroska cannot tell all of them apart
    for (old, _), (new, _) in zip(before, after, strict=True):
        assert old is not None and new is not None
        assert abs(new - old - report.offset) <= Fraction(1, 1000)
