"""What the writer promises: repeatable bytes, exact planes, true tags, every finding at once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from pydantic import TypeAdapter

from tests.clips import numbered_clip, repeatable_x264
from vsr_hpc.errors import BackendError, JobError, MediaError, SpaceError
from vsr_hpc.media.encode.encoder import encoder_options, nominal_rate
from vsr_hpc.media.encode.encoding import Encoding, VideoRequest
from vsr_hpc.media.encode.resolution import resolve_encoding
from vsr_hpc.media.encode.segment_writer import SegmentWriter, encoder_build
from vsr_hpc.media.picture import Colour, Frame, Mastering, Picture
from vsr_hpc.media.pixels import pixel_format
from vsr_hpc.media.segment import SegmentFacts
from vsr_hpc.media.side_data import read_side_data

HDR = Mastering(
    red=(34000, 16000),
    green=(13250, 34500),
    blue=(7500, 3000),
    white=(15635, 16450),
    max_luminance=10_000_000,
    min_luminance=50,
)
PQ = Colour(matrix=9, primaries=9, transfer=16, is_range_tagged=True, siting="topleft")


def picture(name: str, width: int = 64, height: int = 48, colour: Colour | None = None) -> Picture:
    return Picture(width=width, height=height, pixel=pixel_format(name), colour=colour or Colour())


def frames(of: Picture, count: int = 12) -> Iterator[Frame]:
    random = np.random.default_rng(7)
    tall = [
        random.integers(0, 1 << of.pixel.depth, (rows + count, columns)).astype(of.pixel.dtype)
        for rows, columns in of.plane_shapes()
    ]
    for index in range(count):
        planes = tuple(
            plane[index : index + rows] for plane, (rows, _) in zip(tall, of.plane_shapes(), strict=True)
        )
        yield Frame(index=index, planes=planes)


def write(path: Path, encoding: Encoding, of: Picture, count: int = 12) -> SegmentFacts:
    with SegmentWriter(path, encoding, of, time_base=Fraction(1001, 24000)) as writer:
        for frame in frames(of, count):
            writer.write(frame)
        return writer.close()


def planes_of(frame: av.VideoFrame, of: Picture) -> list[np.ndarray]:
    found = []
    for plane, (rows, columns) in zip(frame.planes, of.plane_shapes(), strict=True):
        samples = np.frombuffer(plane, of.pixel.dtype).reshape(plane.height, -1)
        found.append(samples[:rows, :columns])
    return found


CODECS = [
    ("h264", "yuv420p"),
    ("h264", "yuv422p10le"),
    ("h265", "yuv420p10le"),
    ("h265", "gbrp"),
    ("av1", "yuv420p"),
    ("av1", "yuv420p10le"),
    ("ffv1", "yuv444p"),
    ("ffv1", "gbrap"),
    ("prores", "yuv422p10le"),
    ("prores", "yuva444p10le"),
]


@pytest.mark.parametrize(("codec", "name"), CODECS)
def test_ten_encodes_give_one_hash(codec: str, name: str, tmp_path: Path) -> None:
    of = replace(picture(name, colour=PQ), mastering=HDR, light_level=(1000, 400))
    encoding = resolve_encoding(VideoRequest(codec=codec, threads=2), of)  # type: ignore[arg-type]
    facts = {write(tmp_path / f"{n}{encoding.suffix}", encoding, of) for n in range(10)}
    assert len(facts) == 1
    assert facts.pop().frames == 12


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4"])
def test_ten_clips_of_the_tests_themselves_have_one_hash(name: str, tmp_path: Path) -> None:
    """On a CPU with AVX-512 too: the chaos suite compares runs over clips that it makes anew."""
    clips = (numbered_clip(tmp_path / f"{i}-{name}", size=(320, 176), audio=True) for i in range(10))
    assert len({hashlib.sha256(clip.read_bytes()).hexdigest() for clip in clips}) == 1


@pytest.mark.parametrize("given", [{}, {"x264-params": "intra-refresh=1"}])
def test_on_a_cpu_with_avx512_x264_is_kept_from_it(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsr_hpc.media.encode.encoder._has_avx512", lambda: True)
    of = picture("yuv420p")
    params = encoder_options(resolve_encoding(VideoRequest(codec="h264"), of), of)["x264-params"]
    assert "asm=AVX2" in params.split(":")
    assert repeatable_x264(given)["x264-params"].split(":")[0] == "asm=AVX2"
    assert repeatable_x264(given)["x264-params"].endswith(given.get("x264-params", "AVX2"))


@pytest.mark.parametrize("codec", ["h264", "h265", "av1"])
@pytest.mark.parametrize("size", [(64, 64), (320, 176), (426, 240)])
def test_bytes_do_not_depend_on_what_lay_in_memory(codec: str, size: tuple[int, int], tmp_path: Path) -> None:
    """x264's AVX-512 code read memory that it had not written; seen at these sizes only."""
    of = replace(picture("yuv420p"), width=size[0], height=size[1])
    preset = "8" if codec == "av1" else "veryfast"
    encoding = resolve_encoding(VideoRequest(codec=codec, preset=preset, threads=1), of)  # type: ignore[arg-type]
    rows = np.arange(size[1])[:, None] * 3 + np.arange(size[0])[None, :] * 2
    hashes = set()
    for attempt in range(8):
        junk = [np.random.default_rng(attempt).bytes(1 << (12 + i)) for i in range(9)]
        del junk[::2]
        path = tmp_path / f"{attempt}.mp4"
        with SegmentWriter(path, encoding, of, time_base=Fraction(1, 24)) as writer:
            for i in range(12):
                luma = ((rows + 7 * i) % 200 + 16).astype(np.uint8)
                chroma = luma[::2, ::2]
                writer.write(Frame(index=i, planes=(luma, chroma, chroma)))
            hashes.add(writer.close().sha256)
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("codec", "name"),
    [
        ("h264", "yuv420p"),
        ("h264", "yuv444p10le"),
        ("h265", "yuv422p12le"),
        ("h265", "gbrp10le"),
        ("h265", "gray"),
        ("ffv1", "yuv420p"),
        ("ffv1", "yuv411p"),
        ("ffv1", "gray16le"),
        ("ffv1", "yuva444p12le"),
        ("ffv1", "gbrp16le"),
        ("ffv1", "gbrap10le"),
    ],
)
def test_lossless_segment_decodes_to_the_planes_written(codec: str, name: str, tmp_path: Path) -> None:
    of = picture(name, 70, 54) if "411" not in name else picture(name)
    encoding = resolve_encoding(VideoRequest(codec=codec, lossless=True), of)  # type: ignore[arg-type]
    path = tmp_path / f"segment{encoding.suffix}"
    write(path, encoding, of, 5)
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
    assert [frame.format.name for frame in decoded] == [name] * 5
    for frame, wanted in zip(decoded, frames(of, 5), strict=True):
        for plane, expected in zip(planes_of(frame, of), wanted.planes, strict=True):
            np.testing.assert_array_equal(plane, expected)


@pytest.mark.parametrize(("name", "packed"), [("gbrp", "bgr0"), ("gbrap", "bgra")])
def test_eight_bit_rgb_reaches_ffv1_packed_and_exact(name: str, packed: str, tmp_path: Path) -> None:
    of = picture(name)
    encoding = resolve_encoding(VideoRequest(codec="ffv1"), of)
    write(tmp_path / "segment.mkv", encoding, of, 2)
    with av.open(str(tmp_path / "segment.mkv")) as container:
        frame = next(container.decode(video=0))
    assert frame.format.name == packed
    samples = np.frombuffer(frame.planes[0], np.uint8).reshape(48, -1, 4)[:, :64]
    green, blue, red, *alpha = next(frames(of, 2)).planes
    np.testing.assert_array_equal(samples[..., :3], np.stack([blue, green, red], axis=-1))
    if alpha:
        np.testing.assert_array_equal(samples[..., 3], alpha[0])


@pytest.mark.parametrize("codec", ["h264", "h265", "av1"])
def test_bitstream_carries_tags_siting_aspect_and_hdr10(codec: str, tmp_path: Path) -> None:
    name = "yuv420p10le"
    of = replace(
        picture(name, colour=PQ), mastering=HDR, light_level=(1000, 400), sample_aspect=Fraction(4, 3)
    )
    encoding = resolve_encoding(VideoRequest(codec=codec), of)  # type: ignore[arg-type]
    write(tmp_path / "segment.mp4", encoding, of)
    with av.open(str(tmp_path / "segment.mp4")) as container:
        stream = container.streams.video[0]
        packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
        extradata = stream.codec_context.extradata
        aspect = stream.sample_aspect_ratio
    decoder = av.CodecContext.create(
        stream.codec_context.name, "r"
    )  # no container: only what the stream says
    decoder.extradata = extradata
    shown = []
    for data in packets:
        shown += decoder.decode(av.Packet(data))
    shown += decoder.decode(None)
    frame = shown[0]
    assert (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range) == (9, 9, 16, 1)
    kinds = set(read_side_data(frame).names)
    assert {"MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL"} <= kinds
    assert aspect == Fraction(4, 3)
    assert "chroma_sample_location" in encoder_options(encoding, of)


def test_segment_timestamps_count_frames_in_a_constant_time_base(tmp_path: Path) -> None:
    of = picture("yuv420p")
    write(tmp_path / "segment.mp4", resolve_encoding(VideoRequest(codec="h265"), of), of)
    with av.open(str(tmp_path / "segment.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert sorted(packet.pts for packet in packets) == [1001 * n for n in range(12)]
    assert {packet.duration for packet in packets} == {1001}


@pytest.mark.parametrize(
    ("name", "colour", "codec"),
    [
        ("yuv420p", Colour(), "h264"),
        ("yuv444p", Colour(), "h264"),
        ("yuv420p", PQ, "h265"),
        ("yuv422p10le", Colour(), "h265"),
        ("gray", Colour(), "h265"),
        ("yuva420p", Colour(), "ffv1"),
        ("gray16le", Colour(), "ffv1"),
        ("yuv411p", Colour(), "ffv1"),
    ],
)
def test_default_codec_holds_the_source_without_loss_of_format(name: str, colour: Colour, codec: str) -> None:
    encoding = resolve_encoding(VideoRequest(), picture(name, colour=colour))
    assert (encoding.codec, encoding.pixel.name) == (codec, name)
    assert encoding.threads > 0


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (
            VideoRequest(codec="h264", encoder_params=(("bitrate", "4000"),)),
            "encode that file once afterwards",
        ),
        (VideoRequest(codec="h264", encoder_params=(("vbv-maxrate", "4000"),)), "six runs, six files"),
        (VideoRequest(codec="h265", encoder_params=(("pass", "2"),)), "two passes"),
        (VideoRequest(codec="h264", encoder_params=(("nal-hrd", "cbr"),)), "buffer model"),
        (VideoRequest(codec="h264", encoder_params=(("threads", "8"),)), "--encoder-threads"),
        (VideoRequest(codec="h264", encoder_params=(("colormatrix", "bt709"),)), "are the source's"),
        (VideoRequest(codec="h264", encoder_params=(("tff", "1"),)), "--deinterlace"),
        (VideoRequest(codec="h264", encoder_params=(("nonsense", "1"),)), "nonsense"),
        (VideoRequest(codec="h265", encoder_params=(("nonsense", "1"),)), "nonsense"),
        (VideoRequest(codec="av1", encoder_params=(("nonsense", "1"),)), "nonsense"),
        (VideoRequest(codec="ffv1", encoder_params=(("nonsense", "1"),)), "nonsense"),
        (VideoRequest(codec="h264", preset="turbo"), "preset 'turbo'"),
        (VideoRequest(codec="h264", crf=70), "outside 0 to 51"),
        (VideoRequest(codec="h264", crf=20, qp=20), "exclude each other"),
        (VideoRequest(codec="h264", threads=0), "no automatic count"),
        (VideoRequest(codec="av1", lossless=True), "no lossless mode"),
        (VideoRequest(codec="h264", encoder="libx265"), "does not make h264"),
        (VideoRequest(pix_fmt="nv12"), "is packed"),
        (VideoRequest(codec="av1", pix_fmt="yuv444p"), "codecs that do: h264, h265, ffv1"),
    ],
)
def test_request_that_cannot_join_or_repeat_is_refused_with_the_way_out(
    request_: VideoRequest, said: str
) -> None:
    with pytest.raises(JobError) as caught:
        resolve_encoding(request_, picture("yuv420p"))
    assert said in str(caught.value)


def test_all_findings_come_at_once() -> None:
    request = VideoRequest(codec="h264", crf=99, preset="turbo", encoder_params=(("bitrate", "1"),))
    with pytest.raises(JobError) as caught:
        resolve_encoding(request, picture("yuv420p", 63, 47))
    for said in ("--crf 99", "turbo", "bitrate=1", "divisible by 2x2"):
        assert said in str(caught.value)


def test_good_encoder_params_reach_the_encoder(tmp_path: Path) -> None:
    of = picture("yuv420p")
    request = VideoRequest(codec="h264", encoder_params=(("keyint", "4"), ("bframes", "0")))
    write(tmp_path / "segment.mp4", resolve_encoding(request, of), of)
    with av.open(str(tmp_path / "segment.mp4")) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert keys[::4] == [True, True, True]


@pytest.mark.parametrize(
    ("width", "height", "codec"), [(63, 48, "h264"), (8, 8, "h265"), (2, 2, "av1"), (20000, 64, "h264")]
)
def test_size_that_the_encoder_cannot_hold_is_refused_before_work(
    width: int, height: int, codec: str
) -> None:
    with pytest.raises(JobError, match=f"{width}x{height}"):
        resolve_encoding(VideoRequest(codec=codec), picture("yuv420p", width, height))  # type: ignore[arg-type]


def test_encoding_round_trips_through_json() -> None:
    encoding = resolve_encoding(VideoRequest(encoder_params=(("aq-mode", "3"),)), picture("yuv420p"))
    adapter = TypeAdapter(Encoding)
    assert adapter.validate_json(adapter.dump_json(encoding)) == encoding


def test_full_disk_is_a_space_error_and_leaves_no_file(tmp_path: Path) -> None:
    of = picture("yuv420p")
    path = tmp_path / "segment.mkv"
    path.symlink_to("/dev/full")
    with pytest.raises(SpaceError, match="disk is full"):
        write(path, resolve_encoding(VideoRequest(codec="ffv1"), of), of, 60)
    assert not path.is_symlink()


def test_abandoned_segment_leaves_no_file(tmp_path: Path) -> None:
    of = picture("yuv420p")
    encoding = resolve_encoding(VideoRequest(), of)
    path = tmp_path / "segment.mp4"
    with pytest.raises(RuntimeError), SegmentWriter(path, encoding, of, time_base=Fraction(1, 25)) as writer:
        writer.write(next(frames(of)))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_frame_of_another_size_is_refused(tmp_path: Path) -> None:
    of = picture("yuv420p")
    encoding = resolve_encoding(VideoRequest(), of)
    with (
        pytest.raises(MediaError, match="planes are"),
        SegmentWriter(tmp_path / "segment.mp4", encoding, of, time_base=Fraction(1, 25)) as writer,
    ):
        writer.write(next(frames(picture("yuv420p", 32, 32))))


def test_folder_that_is_missing_is_a_backend_error(tmp_path: Path) -> None:
    of = picture("yuv420p")
    with pytest.raises(BackendError, match="No such file"):
        write(tmp_path / "missing" / "segment.mp4", resolve_encoding(VideoRequest(), of), of)


@pytest.mark.parametrize(
    ("time_base", "rate"),
    [
        (Fraction(1001, 24000), Fraction(24000, 1001)),
        (Fraction(1, 90000), Fraction(240)),
        (Fraction(60), Fraction(1)),
    ],
)
def test_nominal_rate_is_what_encoders_take(time_base: Fraction, rate: Fraction) -> None:
    assert nominal_rate(time_base) == rate


def test_encoder_build_names_ffmpeg_and_the_encoders() -> None:
    assert "libavcodec-" in encoder_build()
