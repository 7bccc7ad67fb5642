"""`verify` accepts what holds its promise and names each thing that does not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests import clips
from vsr_hpc.errors import MediaError
from vsr_hpc.media.merge.container_plan import StreamsRequest
from vsr_hpc.media.picture import Colour
from vsr_hpc.media.stills.still import write_image
from vsr_hpc.verification.headers import picture_faults, picture_warnings
from vsr_hpc.verification.packets import Track, recoded_faults, skip_faults, text_faults
from vsr_hpc.verification.verify import Promise, Verification, verify

Sheets = list[NDArray[np.uint8]]
BT709 = Colour(matrix=1, primaries=1, transfer=1, is_range_tagged=True)
FRAMES = 24


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tagged clip with sound, captions and chapters."""
    return clips.numbered_clip(
        tmp_path_factory.mktemp("source") / "in.mkv",
        frames=FRAMES,
        colour=BT709,
        audio=True,
        audio_language="deu",
        captions=(
            clips.Caption(start_s=0.1, stop_s=0.4, text="one"),
            clips.Caption(start_s=0.5, stop_s=0.9, text="two <i>words</i>"),
        ),
        chapters=(
            clips.Chapter(start_s=0, stop_s=0.5, title="a"),
            clips.Chapter(start_s=0.5, stop_s=1, title="b"),
        ),
        metadata={"title": "a clip", "comment": "kept"},
    )


def enlarge(
    source: Path,
    output: Path,
    *,
    edit: Callable[[Sheets], Sheets] = lambda sheets: sheets,
    retime: Callable[[list[int]], list[int]] = lambda pts: pts,
    colour: Colour | None = BT709,
    sound_delay_s: Fraction = Fraction(0),
    has_sound: bool = True,
    language: str = "deu",
    chapters: Sequence[clips.Chapter] | None = None,
    metadata: dict[str, str] | None = None,
    spoil: Callable[[int, bytes], bytes] = lambda number, data: data,
    crf: int = 18,
    aspect: Fraction | None = None,
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] | None = None,
) -> Path:
    """An output made by other code than the product's: each frame twice as large, everything else copied."""
    with av.open(str(source)) as read, av.open(str(output), "w") as out:
        writer: Any = out
        video = read.streams.video[0]
        context: Any = video.codec_context
        options = clips.repeatable_x264({"crf": str(crf), "preset": "veryfast"})
        stream: Any = writer.add_stream("libx264", rate=24, options=options)
        width, height = size or (2 * context.width, 2 * context.height)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.time_base = stream.codec_context.time_base = video.time_base
        stream.codec_context.thread_count = 1
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if colour:
            clips._tag(stream.codec_context, colour)
        others = {
            each.index: writer.add_stream_from_template(each, opaque=True)
            for each in read.streams
            if each.type != "video" and (has_sound or each.type != "audio")
        }
        for each in read.streams.audio:
            if each.index in others:
                others[each.index].metadata["language"] = language
        writer.metadata.update(metadata if metadata is not None else dict(read.metadata))
        given = (
            read.chapters() if chapters is None else [clips._chapter(i, c) for i, c in enumerate(chapters)]
        )
        writer.set_chapters(given)
        sheets, pts, packets = [], [], []
        for packet in read.demux():
            if packet.stream is video:
                for frame in packet.decode():
                    sheets.append(frame.to_ndarray(format="yuv420p"))
                    pts.append(frame.pts)
            elif packet.size and packet.stream_index in others:
                packets.append(packet)
        for number, packet in enumerate(packets):
            made: Any = av.Packet(spoil(number, bytes(packet)))
            delay = round(sound_delay_s / packet.time_base) if packet.stream.type == "audio" else 0
            made.pts, made.dts = packet.pts + delay, packet.dts + delay
            made.duration, made.time_base = packet.duration, packet.time_base
            made.is_keyframe, made.stream = packet.is_keyframe, others[packet.stream_index]
            writer.mux(made)
        for sheet, stamp in zip(edit(sheets), retime(pts), strict=False):
            small = av.VideoFrame.from_ndarray(sheet, format="yuv420p")
            frame = small.reformat(width=width, height=height, format=pix_fmt, interpolation="POINT")
            frame.pts, frame.time_base = stamp, video.time_base
            if colour:
                clips._tag(frame, colour)
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode(None))
    return output


def faults(result: Verification) -> list[tuple[str, str]]:
    return [(each.check, each.text) for each in result.findings]


def only(result: Verification) -> tuple[str, str]:
    assert len(result.findings) == 1, faults(result)
    return faults(result)[0]


def black(sheets: Sheets, number: int) -> Sheets:
    dark = sheets[number].copy()
    dark[:48], dark[48:] = 16, 128
    return [dark if i == number else each for i, each in enumerate(sheets)]


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
@pytest.mark.parametrize("crf", [10, 35])
def test_a_true_output_is_accepted(source: Path, tmp_path: Path, suffix: str, crf: int) -> None:
    if suffix == "mp4":  # which holds no SRT as it is
        source = clips.numbered_clip(
            tmp_path / "in.mp4", frames=FRAMES, colour=BT709, audio=True, audio_language="deu"
        )
    result = verify(source, enlarge(source, tmp_path / f"out.{suffix}", crf=crf))
    assert result.ok, faults(result)
    assert result.frames == FRAMES
    assert result.packets > 40
    assert result.undecided == 0
    assert result.worst_psnr is not None
    assert result.worst_psnr > 20
    assert not any("note" in line for line in result.lines())
    assert json.loads(json.dumps(asdict(result)))["frames"] == FRAMES


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda s: [*s[:9], s[8], *s[10:]], "frame 9 shows input frame 8"),
        (lambda s: black(s, 9), "frame 9 shows nothing like its input: black, flat or garbage"),
        (lambda s: [*s[:9], s[17], *s[10:]], "frame 9 shows input frame 17"),
        (lambda s: [*s[1:], s[-1]], "frames 0 to 22 show the input 1 frame later"),
    ],
    ids=["repeated", "black", "alien", "shifted"],
)
def test_a_wrong_picture_is_named(
    source: Path, tmp_path: Path, edit: Callable[[Sheets], Sheets], text: str
) -> None:
    output = enlarge(source, tmp_path / "out.mkv", edit=edit, crf=28)
    assert only(verify(source, output)) == ("picture", text)
    assert verify(source, output, deep=False).ok


def test_swapped_frames_are_both_named(source: Path, tmp_path: Path) -> None:
    output = enlarge(source, tmp_path / "out.mkv", edit=lambda s: [*s[:9], s[10], s[9], *s[11:]])
    assert faults(verify(source, output)) == [
        ("picture", "frame 9 shows input frame 10"),
        ("picture", "frame 10 shows input frame 9"),
    ]


def test_a_dropped_frame_is_missed_by_number(source: Path, tmp_path: Path) -> None:
    output = enlarge(
        source,
        tmp_path / "out.mkv",
        edit=lambda s: s[:9] + s[10:],
        retime=lambda pts: pts[:9] + pts[10:],
    )
    check, text = faults(verify(source, output, deep=False))[0]
    assert (check, text) == ("frames", "23 frames, the source has 24; nothing is shown at frame 9")
    assert ("picture", "frames 9 to 22 show the input 1 frame later") in faults(verify(source, output))


def test_a_frame_at_another_time_is_found(source: Path, tmp_path: Path) -> None:
    output = enlarge(
        source, tmp_path / "out.mkv", retime=lambda pts: [each + 5 * (i == 7) for i, each in enumerate(pts)]
    )
    check, text = only(verify(source, output))
    assert check == "time"
    assert "5.000 ms" in text
    assert text.endswith("first at frame 7")


def test_a_common_offset_is_reported_and_sound_must_share_it(source: Path, tmp_path: Path) -> None:
    later = enlarge(
        source,
        tmp_path / "out.mkv",
        retime=lambda pts: [each + 100 for each in pts],
        has_sound=True,
        sound_delay_s=Fraction(1, 10),
    )
    result = verify(source, later)
    assert result.offset_s == pytest.approx(0.1)
    assert {check for check, _ in faults(result)} == {"time", "tags"}  # captions and chapters stayed behind


@pytest.mark.parametrize("delay_ms", [100, -20, 3])
def test_sound_out_of_step_is_found(source: Path, tmp_path: Path, delay_ms: int) -> None:
    output = enlarge(source, tmp_path / "out.mkv", sound_delay_s=Fraction(delay_ms, 1000))
    result = faults(verify(source, output, deep=False))
    ((check, text),) = [each for each in result if each[0] != "tags"]  # a muxer may shift all but chapters
    assert check == "sound"
    assert f"{abs(delay_ms)}.000 ms {'late' if delay_ms > 0 else 'early'}" in text


def test_lost_and_changed_packets_are_found(source: Path, tmp_path: Path) -> None:
    silent = enlarge(source, tmp_path / "silent.mkv", has_sound=False)
    assert only(verify(source, silent, deep=False)) == (
        "streams",
        "stream 1 (audio aac) is not in the output",
    )
    assert verify(source, silent, Promise(streams=StreamsRequest(audio="none")), deep=False).ok

    def spoil(number: int, data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1]) if number == 20 else data

    check, text = only(verify(source, enlarge(source, tmp_path / "out.mkv", spoil=spoil), deep=False))
    assert check == "streams"
    assert "1 packets differ" in text


def test_changed_tags_are_found(source: Path, tmp_path: Path) -> None:
    output = enlarge(
        source,
        tmp_path / "out.mkv",
        language="eng",
        chapters=(clips.Chapter(start_s=0, stop_s=0.5, title="a"),),
        metadata={"title": "another"},
    )
    assert faults(verify(source, output, deep=False)) == [
        ("tags", "1 chapters, the source has 2"),
        ("tags", "stream 1 (audio aac): language was deu, is eng"),
        ("tags", "tag title was 'a clip', is 'another'"),
        ("tags", "tag COMMENT was 'kept', is missing"),
    ]
    moved = (
        clips.Chapter(start_s=0, stop_s=0.4, title="a"),
        clips.Chapter(start_s=0.4, stop_s=1, title="c"),
    )
    assert faults(verify(source, enlarge(source, tmp_path / "b.mkv", chapters=moved), deep=False)) == [
        ("tags", "chapter 0 ends at 0.400 s, in the source at 0.500 s"),
        ("tags", "chapter 1 was 'b', is 'c'"),
        ("tags", "chapter 1 begins at 0.400 s, in the source at 0.500 s"),
    ]


@pytest.mark.parametrize(
    ("colour", "text"),
    [
        (Colour(matrix=6, primaries=1, transfer=1, is_range_tagged=True), "matrix was bt709, is smpte170m"),
        (Colour(matrix=1, primaries=9, transfer=1, is_range_tagged=True), "primaries was 1, is 9 (H.273)"),
        (
            Colour(matrix=1, primaries=1, transfer=1, is_range_tagged=True, is_full_range=True),
            "range was limited, is full",
        ),
        (None, "matrix was bt709, is unspecified"),
    ],
)
def test_changed_colour_tags_are_found(
    source: Path, tmp_path: Path, colour: Colour | None, text: str
) -> None:
    output = enlarge(source, tmp_path / "out.mkv", colour=colour)
    assert ("colour", text) in faults(verify(source, output, deep=False))


def test_a_missing_matrix_may_be_named_as_players_guess_it(tmp_path: Path) -> None:
    source = clips.numbered_clip(tmp_path / "in.mkv", frames=4)
    assert verify(source, enlarge(source, tmp_path / "a.mkv", colour=Colour(matrix=6)), deep=False).ok
    output = enlarge(source, tmp_path / "b.mkv", colour=Colour(matrix=1))
    assert only(verify(source, output, deep=False)) == ("colour", "matrix was unspecified, is bt709")


def test_siting_is_held_to_where_the_formats_speak_of_it() -> None:
    def faults_of(pix_fmt: str, before: Any, after: Any) -> list[str]:
        shape = clips.picture(pix_fmt=pix_fmt)
        was, now = (replace(shape, colour=replace(shape.colour, siting=each)) for each in (before, after))
        return [text for _, text in picture_faults(was, now, None)]

    assert faults_of("yuv420p", "topleft", "left") == ["chroma siting was topleft, is left"]
    assert faults_of("yuv420p", "left", "unspecified") == ["chroma siting was left, is unspecified"]
    assert faults_of("yuv422p", "left", "unspecified") == []  # co-sited always; H.265 has no word for it
    assert faults_of("yuv422p", "center", "unspecified") == ["chroma siting was center, is left"]
    assert faults_of("yuv422p", "topleft", "left") == faults_of("yuv422p", "top", "center") == []
    assert faults_of("yuv422p", "topleft", "center") == ["chroma siting was left, is center"]
    assert faults_of("yuv444p", "left", "unspecified") == faults_of("yuv420p", "unspecified", "left") == []


def test_a_lost_range_tag_is_found() -> None:
    """Where nothing else is tagged, an encoder may be unable to say `limited`: that is a warning."""

    def told(before: Colour, after: Colour) -> tuple[list[str], list[str]]:
        was, now = (clips.picture(colour=each) for each in (before, after))
        return [text for _, text in picture_faults(was, now, None)], [*picture_warnings(was, now)]

    assert told(BT709, replace(BT709, is_range_tagged=False)) == (["range was limited, is unspecified"], [])
    full = Colour(is_full_range=True, is_range_tagged=True)
    assert told(full, Colour()) == (["range was full, is unspecified"], [])
    found, warnings = told(Colour(is_range_tagged=True), Colour())
    assert (found, len(warnings)) == ([], 1)


def test_lower_depth_and_another_aspect_are_found(tmp_path: Path) -> None:
    source = clips.numbered_clip(tmp_path / "in.mkv", frames=4, pix_fmt="yuv420p10le")
    output = enlarge(source, tmp_path / "out.mkv", colour=None, aspect=Fraction(4, 3))
    assert faults(verify(source, output, deep=False)) == [
        ("colour", "8 bit (yuv420p), 10 bit is due (yuv420p10le)"),
        ("geometry", "display aspect was 1.3333, is 1.7778"),
    ]


def test_any_output_size_is_accepted_that_keeps_the_display_aspect(tmp_path: Path) -> None:
    source = clips.numbered_clip(tmp_path / "in.mkv", frames=12)
    output = enlarge(source, tmp_path / "a.mkv", colour=None, size=(200, 100), aspect=Fraction(2, 3))
    assert verify(source, output).ok
    assert (
        only(verify(source, enlarge(source, tmp_path / "b.mkv", colour=None, size=(200, 100))))[0]
        == "geometry"
    )


def test_a_range_of_frames_is_compared_with_that_range(source: Path, tmp_path: Path) -> None:
    inside = clips.numbered_clip(tmp_path / "in.mkv", frames=FRAMES)
    output = enlarge(
        inside,
        tmp_path / "out.mkv",
        colour=None,
        edit=lambda s: s[6:18],
        retime=lambda pts: [each - pts[6] for each in pts[6:18]],
    )
    assert verify(inside, output, Promise(start="6f", stop="18f")).ok
    assert verify(inside, output, Promise(start="0.25", frames=12)).ok
    check, text = only(verify(inside, output, Promise(start="7f", stop="19f")))
    assert (check, text) == ("picture", "frames 7 to 18 show the input 1 frame earlier")
    assert faults(verify(inside, output, deep=False))[0][0] == "frames"


@pytest.mark.parametrize(("gop", "kept"), [(8, 1), (24, 0)])
def test_a_copied_video_of_a_range_begins_at_its_first_key_picture(
    tmp_path: Path, gop: int, kept: int
) -> None:
    """Pictures before it cannot be decoded; where none lies in the range, the stream is left out."""
    large = clips.numbered_clip(tmp_path / "large.mkv", frames=FRAMES, size=(96, 64))
    small = clips.numbered_clip(tmp_path / "small.mkv", frames=FRAMES, gop=gop, b_frames=0)
    both = joined(tmp_path / "in.mkv", [(large, range(FRAMES)), (small, range(FRAMES))])
    cut = clips.numbered_clip(tmp_path / "cut.mkv", frames=12, size=(96, 64), first_number=6)
    output = joined(tmp_path / "out.mkv", [(cut, range(12)), *[(small, range(8, 18))] * kept], shift=6)
    result = verify(both, output, Promise(start="6f", stop="18f"))
    assert result.ok, faults(result)
    assert any("no key picture" in each for each in result.notes) != bool(kept)
    if kept:
        late = joined(tmp_path / "late.mkv", [(cut, range(12)), (small, range(9, 18))], shift=6)
        assert ("streams", "stream 1 (video h264): 9 packets, the source has 10") in faults(
            verify(both, late, Promise(start="6f", stop="18f"))
        )


def joined(path: Path, parts: Sequence[tuple[Path, range]], *, shift: int = 0) -> Path:
    """The named packets of each clip's picture beside each other; all but the first are moved forward."""
    with av.open(str(path), "w") as out:
        reads = [av.open(str(each)) for each, _ in parts]
        streams = [out.add_stream_from_template(each.streams.video[0], opaque=True) for each in reads]
        for number, (read, stream, (_, wanted)) in enumerate(zip(reads, streams, parts, strict=True)):
            for place, packet in enumerate(each for each in read.demux(video=0) if each.size):
                if place not in wanted:
                    continue
                if number:
                    back = round(Fraction(shift, 24) / packet.time_base)
                    packet.pts, packet.dts = packet.pts - back, packet.dts - back
                packet.stream = stream
                out.mux(packet)
            read.close()
    return path


def test_a_last_frame_whose_duration_the_file_does_not_say_is_noted(tmp_path: Path) -> None:
    """Matroska from a stream copy without a frame rate holds none."""
    pts = [*range(0, 60, 10), 1000]
    source = clips.numbered_clip(tmp_path / "in.mkv", codec="ffv1", pts=pts, time_base=Fraction(1, 1000))
    silent = joined(tmp_path / "out.mkv", [(source, range(7))])
    result = verify(source, silent)
    assert result.ok, faults(result)
    assert any("does not say how long" in each for each in result.notes)


def test_a_last_frame_that_stays_too_long_is_found(tmp_path: Path) -> None:
    source = clips.numbered_clip(tmp_path / "in.mp4", frames=8, b_frames=0)
    with av.open(str(source)) as read, av.open(str(tmp_path / "out.mp4"), "w") as out:
        stream = out.add_stream_from_template(read.streams.video[0], opaque=True)
        for number, packet in enumerate(each for each in read.demux(video=0) if each.size):
            packet.stream, packet.duration = stream, packet.duration * (3 if number == 7 else 1)
            out.mux(packet)
    assert only(verify(source, tmp_path / "out.mp4")) == (
        "time",
        "the last frame is shown for 125.000 ms, in the source for 41.667 ms",
    )


def test_a_truncated_output_is_found(source: Path, tmp_path: Path) -> None:
    whole = enlarge(source, tmp_path / "out.mkv").read_bytes()
    short = tmp_path / "short.mkv"
    short.write_bytes(whole[: len(whole) * 2 // 3])
    result = verify(source, short)
    assert not result.ok
    assert {check for check, _ in faults(result)} & {"frames", "decode"}


def test_a_damaged_picture_is_found(source: Path, tmp_path: Path) -> None:
    output = enlarge(source, tmp_path / "out.mkv")
    data = bytearray(output.read_bytes())
    middle = len(data) * 3 // 4
    data[middle : middle + 400] = bytes(400)
    output.write_bytes(bytes(data))
    assert not verify(source, output).ok


def test_an_output_that_is_no_clip_is_a_finding_and_a_source_that_is_none_an_error(
    source: Path, tmp_path: Path
) -> None:
    text = tmp_path / "out.mkv"
    text.write_text("no clip")
    assert only(verify(source, text))[0] == "decode"
    assert only(verify(source, tmp_path / "absent.mkv"))[0] == "decode"
    with pytest.raises(MediaError, match="no such file"):
        verify(tmp_path / "absent.mkv", source)


def test_the_answer_names_every_finding_in_words(source: Path, tmp_path: Path) -> None:
    output = enlarge(source, tmp_path / "out.mkv", language="eng", edit=lambda s: black(s, 3))
    assert list(verify(source, output).lines()) == [
        f"{output}: 2 things differ from {source}",
        "  tags: stream 1 (audio aac): language was deu, is eng",
        "  picture: frame 3 shows nothing like its input: black, flat or garbage",
    ]


def test_progress_counts_to_the_end(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    verify(
        source, enlarge(source, tmp_path / "out.mkv"), progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(i + 1, FRAMES) for i in range(FRAMES)]


def folder(
    path: Path, numbers: Sequence[int], *, scale: int = 1, pix_fmt: str = "gbrp", first: int = 1
) -> Path:
    """PNG stills that show the given frame numbers, `scale` times as large."""
    path.mkdir()
    small = clips.picture((48, 32), pix_fmt)
    large = clips.picture((48 * scale, 32 * scale), pix_fmt)
    for place, number in enumerate(numbers):
        planes = (plane.repeat(scale, 0).repeat(scale, 1) for plane in clips.numbered_planes(number, small))
        write_image(path / f"shot_{first + place:04d}.png", large, tuple(planes))
    return path


def test_folders_of_stills_are_compared_by_name_and_picture(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", range(12))
    assert verify(source, folder(tmp_path / "out", range(12), scale=2)).ok
    short = folder(tmp_path / "short", range(11), scale=2)
    assert only(verify(source, short)) == ("frames", "11 images, the source has 12 frames")
    other = folder(tmp_path / "other", range(12), scale=2, first=5)
    assert only(verify(source, other)) == ("frames", "frame 0 is shot_0005.png, shot_0001.png was due")
    mixed = folder(tmp_path / "mixed", [0, 1, 2, 2, *range(4, 12)], scale=2)
    assert only(verify(source, mixed)) == ("picture", "frame 3 shows input frame 2")


def test_stills_of_lower_depth_are_found(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", range(3), pix_fmt="gbrp16le")
    assert verify(source, folder(tmp_path / "out", range(3), scale=2, pix_fmt="gbrp16le")).ok
    shallow = folder(tmp_path / "shallow", range(3), scale=2)
    assert only(verify(source, shallow)) == ("colour", "8 bit (gbrp), 16 bit is due (gbrp16le)")


def test_a_video_made_into_stills_and_stills_made_into_a_video(tmp_path: Path) -> None:
    clip = clips.numbered_clip(tmp_path / "in.mkv", frames=8, size=(48, 32))
    stills = folder(tmp_path / "out", range(8), scale=2)
    for number in range(8):
        (stills / f"shot_{number + 1:04d}.png").rename(stills / f"{number + 1:06d}.png")
    assert verify(clip, stills).ok
    video = clips.numbered_clip(tmp_path / "out.mkv", frames=8, size=(48, 32), rate=30)
    result = verify(folder(tmp_path / "in", range(8)), video)
    assert result.ok, faults(result)
    assert any("30 a second" in note for note in result.notes)
    asked = verify(tmp_path / "in", video, Promise(frame_rate=Fraction(24)))
    assert faults(asked)[0][0] == "time"


@pytest.mark.parametrize(("name", "audio"), [("in.ts", True), ("in.mov", "pcm_s16le")])
def test_packets_are_compared_in_the_form_that_both_containers_share(
    tmp_path: Path, name: str, audio: str | bool
) -> None:
    """MPEG-TS has ADTS headers, PCM has packets of any length."""
    source = clips.numbered_clip(tmp_path / name, frames=FRAMES, audio=audio)
    for suffix in ("mp4", "mkv"):
        result = verify(source, enlarge(source, tmp_path / f"out.{suffix}", colour=None), deep=False)
        assert result.packets > 10
        assert "streams" not in {check for check, _ in faults(result)}, faults(result)


def test_captions_are_compared_as_text_where_their_form_changes() -> None:
    ours = Track(time_base=Fraction(1, 1000), texts=["one", "two\nlines", " "])
    theirs = Track(time_base=Fraction(1, 1000), texts=["one", "two\nlines"])
    assert list(text_faults(ours, theirs)) == []
    theirs.texts = ["one", "two"]
    assert list(text_faults(ours, theirs)) == ["1 captions differ; number 1 was 'two\\nlines', is 'two'"]
    theirs.texts = ["one"]
    assert list(text_faults(ours, theirs)) == ["1 captions, the source has 2"]


def sound(start: int, packets: int, *, skip: int = 0) -> Track:
    track = Track(time_base=Fraction(1, 48000), rate=48000, skip=skip)
    for number in range(packets):
        track.add(bytes([number]), start + 1024 * number, 1024)
    return track


def test_recoded_sound_must_begin_and_end_with_the_sources() -> None:
    ours = sound(-1024, 100, skip=1024)
    assert list(recoded_faults(ours, sound(-1024, 101, skip=1024), Fraction(0))) == []
    assert list(recoded_faults(ours, sound(-1024, 100), Fraction(0))) == []  # priming that plays as silence
    assert list(recoded_faults(ours, Track(time_base=Fraction(1, 48000)), Fraction(0))) == ["is empty"]
    assert list(recoded_faults(ours, sound(4800, 99), Fraction(0))) == [
        "begins 100.000 ms late against the picture"
    ]
    assert list(recoded_faults(ours, sound(-1024, 90, skip=1024), Fraction(0))) == [
        "lasts 213.333 ms shorter than the source's"
    ]


def test_recoded_sound_of_a_range_is_held_to_the_range() -> None:
    ours, window = sound(0, 100), (Fraction(1, 2), Fraction(1))
    theirs = sound(-1024, 25, skip=1024)
    assert list(recoded_faults(ours, theirs, Fraction(-1, 2), window)) == []
    assert list(recoded_faults(ours, sound(960, 23), Fraction(-1, 2), window)) == [
        "begins 20.000 ms late against the picture"
    ]
    assert list(recoded_faults(ours, sound(-1024, 20, skip=1024), Fraction(-1, 2), window)) == [
        "lasts 94.667 ms shorter than the source's"
    ]
    coarse = Track(time_base=Fraction(1, 8000), rate=8000, skip=1024)
    for number in range(6):  # the last packet is filled up: 1024 samples are 128 ms here
        coarse.add(bytes([number]), 1024 * (number - 1), 1024)
    assert list(recoded_faults(ours, coarse, Fraction(-1, 2), window)) == [
        "lasts 140.000 ms longer than the source's"
    ]
    coarse.stops[-1] -= 128
    assert list(recoded_faults(ours, coarse, Fraction(-1, 2), window)) == []
    empty = Track(time_base=Fraction(1, 48000))
    assert list(recoded_faults(ours, empty, Fraction(-1, 2), window)) == ["is empty"]
    assert list(recoded_faults(ours, empty, Fraction(-9), (Fraction(9), Fraction(10)))) == []


def test_priming_that_is_no_longer_left_out_is_found() -> None:
    ours = sound(-1024, 10, skip=1024)
    assert list(skip_faults(ours, sound(-1024, 10, skip=1024))) == []
    assert list(skip_faults(ours, sound(-1024, 10))) == ["players left out its first 1024 samples, now 0"]
    coarse = Track(time_base=Fraction(1, 1000), rate=48000, skip=1008)  # Matroska's clock ticks at 1 ms
    assert list(skip_faults(ours, coarse)) == []
