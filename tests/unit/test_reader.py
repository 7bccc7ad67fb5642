"""Frames by number, whatever the container makes of it."""

from __future__ import annotations

import gc
import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from pydantic import TypeAdapter

from tests.clips import frame_number, number_in, numbered_clip, numbered_planes, picture, video_frame
from vsr_hpc.errors import MediaError
from vsr_hpc.media.clip.clip import Clip
from vsr_hpc.media.clip.probe import content_hash, index_clip, probe_clip
from vsr_hpc.media.clip.reader import read_frames, read_segment
from vsr_hpc.media.picture import Frame
from vsr_hpc.media.pixels import pixel_format, to_planes
from vsr_hpc.media.source import local_source
from vsr_hpc.media.timeline import Timeline

REAL_CLIPS = Path(__file__).parents[2].parent / "shared" / "data" / "videos"

KINDS = [
    ("bframes.mp4", {"b_frames": 3}),
    ("open.mp4", {"b_frames": 3, "open_gop": True}),
    ("open.mkv", {"b_frames": 3, "open_gop": True}),
    ("h264.ts", {"b_frames": 2}),
    ("mpeg2.ts", {"codec": "mpeg2video", "b_frames": 2, "rate": 25}),
    ("mpeg2.mpg", {"codec": "mpeg2video", "b_frames": 2, "rate": 25}),
    ("raw.h264", {"b_frames": 2}),
    ("raw.hevc", {"codec": "libx265"}),
    ("hevc-open.mp4", {"codec": "libx265", "b_frames": 2, "open_gop": True}),
    ("vp9.webm", {"codec": "libvpx-vp9"}),
    ("vp8.webm", {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "8"}}),
    ("av1.mkv", {"codec": "libsvtav1"}),
    ("mpeg4.avi", {"codec": "mpeg4", "b_frames": 2}),
    ("prores.mov", {"codec": "prores_ks", "pix_fmt": "yuv422p10le"}),
    ("ffv1.mkv", {"codec": "ffv1", "pix_fmt": "gbrp12le"}),
    ("refresh.mkv", {"options": {"x264-params": "intra-refresh=1:scenecut=0", "preset": "veryfast"}}),
    ("vfr.mkv", {"pts": [i * 10 + (i // 4) * 990 for i in range(32)], "time_base": Fraction(1, 1000)}),
]


def opened(path: Path) -> tuple[Clip, Timeline]:
    clip = probe_clip(local_source(path))
    return clip, index_clip(clip, local_source(path))


def digest(frame: Frame) -> str:
    whole = hashlib.md5(usedforsecurity=False)
    for plane in frame.planes:
        whole.update(np.ascontiguousarray(plane).data)
    return whole.hexdigest()


def read(clip: Clip, timeline: Timeline, start: int, stop: int, threads: int = 1) -> list[Frame]:
    return list(read_frames(clip, timeline, local_source(clip.uri), start, stop, threads=threads))


@pytest.mark.parametrize(("name", "options"), KINDS, ids=[name for name, _ in KINDS])
def test_every_range_equals_the_slice_of_a_decode_from_the_start(
    tmp_path: Path, name: str, options: dict[str, object]
) -> None:
    path = numbered_clip(tmp_path / name, frames=32, **options)  # type: ignore[arg-type]
    clip, timeline = opened(path)
    whole = read(clip, timeline, 0, len(timeline))
    assert [frame_number(frame) for frame in whole] == list(range(32))
    digests = [digest(frame) for frame in whole]
    rng = random.Random(name)
    for threads in (1, 2):
        for _ in range(5):
            start = rng.randrange(32)
            stop = min(32, start + rng.randrange(1, 9))
            part = read(clip, timeline, start, stop, threads)
            assert [frame.index for frame in part] == list(range(start, stop))
            assert [digest(frame) for frame in part] == digests[start:stop]


def test_frames_outlive_their_decoder(tmp_path: Path) -> None:
    clip, timeline = opened(numbered_clip(tmp_path / "a.mkv", codec="ffv1", size=(70, 50)))
    frames = read(clip, timeline, 3, 20)
    gc.collect()
    shape = picture((70, 50))
    for frame in frames:
        for plane, wanted in zip(frame.planes, numbered_planes(frame.index, shape), strict=True):
            assert np.array_equal(plane, wanted)


def test_an_empty_range_reads_nothing_and_a_wrong_one_is_an_error(tmp_path: Path) -> None:
    clip, timeline = opened(numbered_clip(tmp_path / "a.mp4", frames=4))
    assert read(clip, timeline, 2, 2) == []
    with pytest.raises(ValueError, match="outside"):
        read(clip, timeline, 0, 5)


def test_clip_that_shrank_since_it_was_indexed_is_noticed(tmp_path: Path) -> None:
    path = numbered_clip(tmp_path / "a.ts", frames=24)
    clip, timeline = opened(path)
    numbered_clip(path, frames=16)
    with pytest.raises(MediaError, match="ends after frame 15"):
        read(clip, timeline, 10, 24)
    with pytest.raises(MediaError, match="ends before frame 20"):
        read(clip, timeline, 20, 21)


def test_a_seek_that_misses_right_after_its_first_frame_gives_that_frame_once(tmp_path: Path) -> None:
    clip, timeline = opened(numbered_clip(tmp_path / "a.mp4", frames=24, b_frames=0))
    pts = timeline.pts.copy()
    pts[17] += 1
    given = []
    with pytest.raises(MediaError, match=r"frame 17 .* is missing .*--to 17f"):
        for frame in read_frames(clip, replace(timeline, pts=pts), local_source(clip.uri), 16, 24):
            given.append(frame.index)
    assert given == [16]


def damage(path: Path, number: int) -> None:
    """Spoil the coded picture of packet `number` (in coding order)."""
    with av.open(str(path)) as container:
        place = [(p.pos, p.size) for p in container.demux(video=0) if p.size][number]
    content = bytearray(path.read_bytes())
    assert place[0] is not None
    for at in range(place[0] + 40, place[0] + place[1], 2):
        content[at] ^= 0x5A
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_damaged_frame_is_named_with_the_ways_around_it(tmp_path: Path, suffix: str) -> None:
    path = numbered_clip(tmp_path / f"a{suffix}", frames=32, size=(128, 96), b_frames=0)
    damage(path, 10)
    clip, timeline = opened(path)
    with pytest.raises(MediaError, match=r"frame 10 .*--to 10f and --from 16f"):
        read(clip, timeline, 8, 14)
    with pytest.raises(MediaError, match="frame 10"):
        read(clip, timeline, 12, 14)
    assert [frame_number(each) for each in read(clip, timeline, 16, 32)] == list(range(16, 32))
    assert [frame_number(each) for each in read(clip, timeline, 0, 8)] == list(range(8))


def test_damage_in_a_transport_stream_is_remembered_by_the_index(tmp_path: Path) -> None:
    path = numbered_clip(tmp_path / "a.ts", frames=32, size=(128, 96), b_frames=0)
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        places = [p.pos for p in container.demux(video=0) if p.size]
    assert places[10] is not None
    start = places[10] // 188 * 188
    for at in range(start + 100, start + 180):
        content[at] ^= 0x3C
    path.write_bytes(content)
    clip, timeline = opened(path)
    assert timeline.broken == (10,)
    with pytest.raises(MediaError, match="cannot be decoded"):
        read(clip, timeline, 0, 32)


def test_change_of_size_on_the_way_is_named(tmp_path: Path) -> None:
    small = numbered_clip(tmp_path / "a.h264", frames=8, size=(64, 48)).read_bytes()
    large = numbered_clip(tmp_path / "b.h264", frames=8, size=(96, 64)).read_bytes()
    path = tmp_path / "c.h264"
    path.write_bytes(small + large)
    clip, timeline = opened(path)
    assert len(read(clip, timeline, 0, 8)) == 8
    with pytest.raises(MediaError, match="changes at frame 8 from 64x48 yuv420p to 96x64"):
        read(clip, timeline, 0, len(timeline))


@pytest.mark.parametrize("name", ["a.mkv", "a.mpg"])
def test_deinterlaced_range_equals_the_slice_of_the_whole(tmp_path: Path, name: str) -> None:
    codec = "ffv1" if name == "a.mkv" else "mpeg2video"
    clip, timeline = opened(numbered_clip(tmp_path / name, codec=codec, interlaced="tff", rate=25))
    source = local_source(clip.uri)
    plain = read(clip, timeline, 0, 24)
    whole = list(read_frames(clip, timeline, source, 0, 24, deinterlace=True))
    assert [frame_number(each) for each in whole] == list(range(24))
    assert digest(whole[5]) != digest(plain[5])
    for start, stop in [(0, 1), (1, 3), (5, 9), (20, 24), (23, 24)]:
        part = list(read_frames(clip, timeline, source, start, stop, deinterlace=True))
        assert [digest(each) for each in part] == [digest(each) for each in whole[start:stop]]


def test_alpha_of_vp9_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.webm"
    try:
        numbered_clip(path, frames=6, codec="libvpx-vp9", pix_fmt="yuva420p")
    except (av.error.FFmpegError, ValueError) as exc:
        pytest.skip(f"this FFmpeg writes no alpha in WebM ({exc})")
    clip, timeline = opened(path)
    assert clip.picture.pixel.name == "yuva420p"
    assert read(clip, timeline, 2, 3)[0].planes[3].max() > 200


def write_pngs(folder: Path, numbers: Sequence[int], size: tuple[int, int] = (64, 48)) -> Path:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        encoder: Any = av.CodecContext.create("png", "w")
        encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = *size, "rgb24", Fraction(1, 25)
        frame = video_frame(number, picture(size, "gbrp")).reformat(format="rgb24", threads=1)
        packets = [*encoder.encode(frame), *encoder.encode(None)]
        (folder / f"f_{number:03d}.png").write_bytes(b"".join(bytes(each) for each in packets))
    return folder


@pytest.mark.parametrize("name", ["", "f_%03d.png", "f_*.png"])
def test_images_are_a_clip_with_one_frame_each(tmp_path: Path, name: str) -> None:
    clip, timeline = opened(write_pngs(tmp_path / "shots", range(7, 12)) / name)
    assert clip.images is not None and clip.picture.pixel.name == "gbrp"
    assert TypeAdapter(Clip).validate_json(TypeAdapter(Clip).dump_json(clip)) == clip
    assert [frame_number(each) for each in read(clip, timeline, 1, 4)] == [8, 9, 10]
    assert [each.index for each in read(clip, timeline, 1, 4)] == [1, 2, 3]
    source = local_source(clip.uri)
    assert index_clip(probe_clip(source, frame_rate=Fraction(24000, 1001)), source).time_base == Fraction(
        1001, 24000
    )


def test_gaps_and_mixed_sizes_of_images_are_refused(tmp_path: Path) -> None:
    folder = local_source(write_pngs(tmp_path / "shots", [1, 2, 4]))
    with pytest.raises(MediaError, match=r"missing between f_002.png and f_004.png"):
        probe_clip(folder)
    gaps = probe_clip(folder, allow_gaps=True)
    assert [frame_number(each) for each in read(gaps, index_clip(gaps, folder), 0, 3)] == [1, 2, 4]
    write_pngs(tmp_path / "shots", [3], size=(32, 48))
    with pytest.raises(MediaError, match=r"f_003.png: is 32x48, but f_001.png is 64x48"):
        probe_clip(folder)


def test_hash_of_images_covers_names_and_bytes(tmp_path: Path) -> None:
    folder = write_pngs(tmp_path / "shots", [1, 2])
    before = content_hash(local_source(folder))
    (folder / "f_002.png").rename(folder / "f_003.png")
    renamed = content_hash(local_source(folder))
    (folder / "f_003.png").write_bytes((folder / "f_001.png").read_bytes())
    assert len({before, renamed, content_hash(local_source(folder))}) == 3


def test_segment_is_read_without_an_index(tmp_path: Path) -> None:
    path = numbered_clip(tmp_path / "a.mp4", frames=9, b_frames=2)
    assert [frame_number(frame) for frame in read_segment(path)] == list(range(9))
    with pytest.raises(MediaError, match="changes at frame 0"):
        list(read_segment(path, picture((32, 32))))


PACKED = {
    "yuv420p": ["nv12", "nv21"],
    "yuv422p": ["yuyv422", "uyvy422", "yvyu422", "nv16"],
    "yuv444p": ["nv24", "nv42", "vuyx", "vyu444"],
    "yuv420p10le": ["p010le", "p010be", "yuv420p10be"],
    "yuv420p12le": ["p012le"],
    "yuv422p10le": ["p210le", "y210le", "nv20le"],
    "yuv444p10le": ["p410le", "yuv444p10be"],
    "yuv444p12le": ["xv36le"],
    "yuva444p": ["vuya", "ayuv"],
    "yuva444p16le": ["ayuv64le"],
    "gbrp": ["rgb24", "bgr24", "rgb0", "bgr0", "0rgb", "0bgr"],
    "gbrap": ["rgba", "bgra", "argb", "abgr"],
    "gbrp16le": ["rgb48le", "rgb48be", "bgr48le"],
    "gbrap16le": ["rgba64le", "bgra64be"],
    "gbrp10le": ["gbrp10be"],
    "gray16le": ["gray16be"],
    "gray": ["gray"],
}
PAIRS = [(planar, packed) for planar, names in PACKED.items() for packed in names]


@pytest.mark.parametrize(("planar", "packed"), PAIRS, ids=[packed for _, packed in PAIRS])
def test_packed_format_unpacks_to_the_samples_it_was_packed_from(planar: str, packed: str) -> None:
    shape = picture((36, 10), planar)
    original = video_frame(12345, shape)
    try:
        other = original.reformat(format=packed, threads=1)  # threaded stores came late once
    except (ValueError, av.error.FFmpegError) as exc:
        pytest.skip(f"swscale does not write {packed}: {exc}")
    assert pixel_format(packed).name == planar
    unpacked = to_planes(other)
    for plane, wanted in zip(unpacked, numbered_planes(12345, shape), strict=True):
        assert plane.dtype == wanted.dtype
        assert np.array_equal(plane, wanted)


def frame_of(name: str, width: int, height: int, rows: Sequence[bytes], plane: int = 0) -> av.VideoFrame:
    frame = av.VideoFrame(width, height, name)
    target = frame.planes[plane]
    target.update(
        b"".join(row.ljust(target.line_size, b"\0") for row in rows).ljust(target.buffer_size, b"\0")
    )
    return frame


def test_one_bit_formats_unpack_to_black_and_white() -> None:
    rows = [b"\xa0\x80", b"\x00\x00"]
    black = to_planes(frame_of("monob", 9, 2, rows))[0]
    assert black.tolist() == [[255, 0, 255, 0, 0, 0, 0, 0, 255], [0] * 9]
    assert np.array_equal(to_planes(frame_of("monow", 9, 2, rows))[0], 255 - black)


def test_grey_with_alpha_has_two_planes() -> None:
    planes = to_planes(frame_of("ya8", 3, 1, [b"\x01\xf1\x02\xf2\x03\xf3"]))
    assert [plane.tolist() for plane in planes] == [[[1, 2, 3]], [[0xF1, 0xF2, 0xF3]]]


def test_dv_style_packing_has_four_luma_samples_a_group() -> None:
    planes = to_planes(frame_of("uyyvyy411", 4, 1, [bytes([90, 1, 2, 200, 3, 4])]))
    assert [plane.tolist() for plane in planes] == [[[1, 2, 3, 4]], [[90]], [[200]]]


def test_palette_unpacks_to_its_colours() -> None:
    frame = frame_of("pal8", 2, 1, [b"\x00\x01"])
    palette = np.zeros(256, np.uint32)
    palette[0], palette[1] = 0xFF112233, 0x80AABBCC
    frame.planes[1].update(palette.tobytes().ljust(frame.planes[1].buffer_size, b"\0"))
    green, blue, red, alpha = (plane[0].tolist() for plane in to_planes(frame))
    assert (red, green, blue, alpha) == ([0x11, 0xAA], [0x22, 0xBB], [0x33, 0xCC], [0xFF, 0x80])


def test_planar_samples_are_views_that_keep_their_frame() -> None:
    planes = to_planes(video_frame(77, picture()))
    gc.collect()
    assert all(plane.base is not None for plane in planes)
    assert number_in(planes[0]) == 77


@pytest.mark.parametrize("name", ["rgb565le", "xyz12le", "bayer_rggb8", "rgb8"])
def test_format_without_planar_twin_is_refused_with_a_sentence(name: str) -> None:
    with pytest.raises(MediaError, match=f"{name} has no planar equivalent.*ffmpeg"):
        pixel_format(name)


@pytest.mark.skipif(not REAL_CLIPS.is_dir(), reason=f"{REAL_CLIPS} is not on this machine")
@pytest.mark.parametrize("path", sorted(REAL_CLIPS.glob("*.*")), ids=lambda path: path.name)
def test_real_clip_reads_like_a_decode_from_the_start(path: Path) -> None:
    clip, timeline = opened(path)
    if clip.picture.width * clip.picture.height * len(timeline) > 60_000_000:
        limit = 60_000_000 // (clip.picture.width * clip.picture.height)
    else:
        limit = len(timeline)
    plain: list[str] = []
    with av.open(str(path)) as container:
        stream = container.streams[clip.video]
        for frame, pts in zip(container.decode(stream), timeline.pts[:limit].tolist(), strict=False):
            assert frame.pts == pts
            plain.append(digest(Frame(index=0, planes=to_planes(frame))))
    rng = random.Random(path.name)
    for _ in range(4):
        start = rng.randrange(limit)
        stop = min(limit, start + rng.randrange(1, 6))
        part = read(clip, timeline, start, stop, threads=2)
        count = 3 if clip.decoder else len(part[0].planes)  # FFmpeg's own VP9 decoder leaves alpha out
        got = [digest(Frame(index=0, planes=each.planes[:count])) for each in part]
        assert got == plain[start:stop]
