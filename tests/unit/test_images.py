"""Stills: every depth exact both ways, names and numbers kept, profiles and EXIF carried."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vsr_hpc.errors import JobError, MediaError, VerifyError
from vsr_hpc.media.encode.still_archive import ArchiveWriter, extract_archives, read_archive
from vsr_hpc.media.picture import Colour, Frame, Picture
from vsr_hpc.media.pixels import pixel_format
from vsr_hpc.media.segment import SegmentPart
from vsr_hpc.media.stills.metadata import StillMeta
from vsr_hpc.media.stills.names import ImageSequence, StillNames, find_sequence
from vsr_hpc.media.stills.sequence import read_still
from vsr_hpc.media.stills.still import (
    encode_image,
    read_image,
    resolve_image_encoding,
    still_picture,
    write_image,
)

PROFILE = b"not a real profile, but kept " * 9


def picture(name: str, width: int = 13, height: int = 7, **colour: Any) -> Picture:
    return Picture(width=width, height=height, pixel=pixel_format(name), colour=Colour(**colour))


def noise(of: Picture, seed: int = 3) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    if of.pixel.depth == 32:
        return tuple((random.random(shape) * 9 - 1).astype(np.float32) for shape in of.plane_shapes())
    top = 1 << of.pixel.depth
    return tuple(random.integers(0, top, shape).astype(of.pixel.dtype) for shape in of.plane_shapes())


@pytest.mark.parametrize(
    ("suffix", "name"),
    [
        (".png", "gray"),
        (".png", "gray16le"),
        (".png", "gbrp"),
        (".png", "gbrap"),
        (".png", "gbrp16le"),
        (".png", "gbrap16le"),
        (".png", "ya8"),
        (".png", "ya16le"),
        (".tif", "gray"),
        (".tif", "gray16le"),
        (".tif", "gbrp"),
        (".tif", "gbrap"),
        (".tif", "gbrp16le"),
        (".tif", "gbrap16le"),
        (".exr", "gbrpf32le"),
        (".exr", "gbrapf32le"),
        (".exr", "grayf32le"),
        (".webp", "gbrp"),
    ],
)
def test_still_comes_back_to_the_sample(suffix: str, name: str, tmp_path: Path) -> None:
    of = picture(name)
    planes = noise(of)
    write_image(tmp_path / f"still{suffix}", of, planes)
    found, read, _ = read_image(tmp_path / f"still{suffix}")
    assert (found.pixel.name, found.width, found.height) == (name, 13, 7)
    for plane, wanted in zip(read, planes, strict=True):
        np.testing.assert_array_equal(plane, wanted)
    assert [each.name for each in tmp_path.iterdir()] == [f"still{suffix}"]


def test_values_above_one_survive_in_exr_and_are_linear(tmp_path: Path) -> None:
    of = picture("gbrpf32le")
    planes = tuple(np.full((7, 13), value, np.float32) for value in (0.5, 4.0, 65000.0))
    write_image(tmp_path / "still.exr", of, planes)
    found, read, _ = read_image(tmp_path / "still.exr")
    assert found.colour.transfer == 8
    assert [float(plane[0, 0]) for plane in read] == [0.5, 4.0, 65000.0]


def test_ten_bits_are_stretched_to_sixteen_reversibly(tmp_path: Path) -> None:
    of = picture("gbrp10le", 32, 32)
    planes = tuple(np.arange(1024, dtype=np.uint16).reshape(32, 32) for _ in range(3))
    write_image(tmp_path / "still.png", of, planes)
    _, read, _ = read_image(tmp_path / "still.png")
    for plane in read:
        np.testing.assert_array_equal((plane.astype(np.uint32) * 1023 + 32767) // 65535, planes[0])


@pytest.mark.parametrize("name", ["yuv420p", "yuv444p", "gray"])
def test_jpeg_keeps_its_planes_within_its_own_loss(name: str, tmp_path: Path) -> None:
    of = picture(name, 48, 32, matrix=5, is_full_range=True, is_range_tagged=True)
    smooth = tuple(
        np.add.outer(np.arange(rows), np.arange(columns) * 2).astype(np.uint8) + 60
        for rows, columns in of.plane_shapes()
    )
    write_image(tmp_path / "still.jpg", of, smooth)
    found, read, _ = read_image(tmp_path / "still.jpg")
    assert (found.colour.matrix, found.colour.is_full_range) == (5, True)
    assert np.abs(read[0].astype(int) - smooth[0]).max() <= 3


def png_palette(colours: bytes, indices: bytes, width: int, alpha: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + indices[at : at + width] for at in range(0, len(indices), width))
    head = struct.pack(">IIBBBBB", width, len(indices) // width, 8, 3, 0, 0, 0)
    body = [(b"IHDR", head), (b"PLTE", colours), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    if alpha:
        body.insert(2, (b"tRNS", alpha))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in body)


def test_palette_becomes_colours_and_alpha_only_where_it_has_some(tmp_path: Path) -> None:
    colours = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255])
    (tmp_path / "plain.png").write_bytes(png_palette(colours, bytes([0, 1, 2, 0]), 2))
    (tmp_path / "clear.png").write_bytes(png_palette(colours, bytes([0, 1, 2, 0]), 2, bytes([9, 255, 255])))
    found, planes, _ = read_image(tmp_path / "plain.png")
    assert found.pixel.name == "gbrp"
    np.testing.assert_array_equal(planes[2], [[255, 0], [0, 255]])
    found, planes, _ = read_image(tmp_path / "clear.png")
    assert found.pixel.name == "gbrap"
    np.testing.assert_array_equal(planes[3], [[9, 255], [255, 9]])


def exif(orientation: int) -> bytes:
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_profile_and_orientation_are_carried(suffix: str, tmp_path: Path) -> None:
    name = "yuv444p" if suffix == ".jpg" else "gbrp"
    of = picture(name, 16, 8, matrix=5 if name == "yuv444p" else 0, is_full_range=True)
    planes = noise(of)
    meta = StillMeta(format="png", icc=PROFILE * 300, exif=exif(6), orientation=6)
    write_image(tmp_path / f"still{suffix}", of, planes, meta)
    found, read, kept = read_image(tmp_path / f"still{suffix}")
    assert kept.icc == PROFILE * 300
    assert kept.orientation == 6
    assert found.display_matrix is not None
    assert found.display_matrix[:2] == (0, 65536)
    if suffix != ".jpg":
        np.testing.assert_array_equal(read[0], planes[0])


def test_png_keeps_gamma_and_text(tmp_path: Path) -> None:
    of = picture("gbrp")
    chunks = ((b"gAMA", struct.pack(">I", 100000)), (b"tEXt", b"Title\0kept"))
    write_image(tmp_path / "still.png", of, noise(of), StillMeta(format="png", chunks=chunks))
    assert read_image(tmp_path / "still.png")[2].chunks == chunks


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".exr"])
def test_ten_encodes_of_a_still_give_one_file(suffix: str) -> None:
    of = picture("gbrpf32le" if suffix == ".exr" else "gbrp", 32, 24)
    of = still_picture(f"a{suffix}", of)
    encoding = resolve_image_encoding(f"a{suffix}", of)
    planes = noise(of)
    assert len({encode_image(encoding, of, planes) for _ in range(10)}) == 1


def folder(path: Path, names: list[str], size: tuple[int, int] = (4, 4)) -> Path:
    path.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        of = picture("gbrp", *size)
        write_image(path / name, of, noise(of, number))
    return path


def test_folder_is_sorted_by_number_whatever_its_zeros(tmp_path: Path) -> None:
    names = ["f_10.png", "f_8.png", "f_9.png"]
    assert find_sequence(folder(tmp_path / "in", names)).names == ("f_8.png", "f_9.png", "f_10.png")


@pytest.mark.parametrize("pattern", ["f_%05d.png", "f_%d.png", "f_*.png"])
def test_pattern_and_glob_find_the_numbered_images(pattern: str, tmp_path: Path) -> None:
    made = folder(tmp_path / "in", ["f_00007.png", "f_00008.png", "other.png"])
    assert find_sequence(made / pattern).names == ("f_00007.png", "f_00008.png")


def test_single_still_is_one_frame(tmp_path: Path) -> None:
    made = folder(tmp_path / "in", ["a_001.png", "a_002.png"])
    assert find_sequence(made / "a_001.png") == ImageSequence(
        folder=str(made), names=("a_001.png",), is_still=True
    )


def test_gap_is_refused_unless_allowed(tmp_path: Path) -> None:
    made = folder(tmp_path / "in", ["f_1.png", "f_2.png", "f_5.png"])
    with pytest.raises(MediaError, match=r"2 images are missing between f_2\.png and f_5\.png"):
        find_sequence(made)
    assert len(find_sequence(made, allow_gaps=True)) == 3


def test_folder_of_two_formats_is_refused(tmp_path: Path) -> None:
    made = folder(tmp_path / "in", ["f_1.png", "f_2.tif"])
    with pytest.raises(MediaError, match=r"png and tiff images; choose with a glob"):
        find_sequence(made)


@pytest.mark.parametrize("name", ["missing.png", "none_%04d.png", "none_*.png"])
def test_name_that_finds_nothing_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(MediaError):
        find_sequence(tmp_path / name)


def test_image_of_another_size_in_a_sequence_is_refused(tmp_path: Path) -> None:
    made = folder(tmp_path / "in", ["f_1.png"])
    folder(made, ["f_2.png"], (8, 4))
    sequence = find_sequence(made)
    first, _, _ = read_image(sequence.path(0))
    assert read_still(sequence, 0, first).index == 0
    with pytest.raises(MediaError, match="is 8x4 gbrp, the first image is 4x4 gbrp"):
        read_still(sequence, 1, first)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"hello", "is no PNG"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"II*\0\xff\xff\xff\x7f", "damaged"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "cannot be decoded|no picture"),
        (b"v/1\x01rubbish", "cannot be decoded|no picture"),
        (b"RIFF\0\0\0\0WEBPVP8L", "damaged|cannot be decoded|no picture"),
    ],
)
def test_damaged_image_is_a_media_error(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(data)
    with pytest.raises(MediaError, match=said):
        read_image(tmp_path / "bad.png")


def _with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return png[:33] + chunk + png[33:]


@pytest.mark.parametrize(("kind", "is_read"), [(b"zTXt", True), (b"iCCP", False)])
def test_what_inflates_without_end_is_not_inflated(kind: bytes, is_read: bool, tmp_path: Path) -> None:
    target, packer = tmp_path / "still.png", zlib.compressobj(9)
    write_image(target, picture("rgb24"), noise(picture("rgb24")), None)
    bomb = b"x\0\0" + b"".join(packer.compress(bytes(1 << 24)) for _ in range(64)) + packer.flush()
    target.write_bytes(_with_chunk(target.read_bytes(), kind, bomb))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew; the bomb holds 1 GiB
    before = _peak_kib()
    if is_read:
        np.testing.assert_array_equal(read_image(target)[1][0], noise(picture("rgb24"))[0])
    else:
        with pytest.raises(MediaError, match="larger than 16 MiB"):
            read_image(target)
    assert _peak_kib() - before < 256 << 10


def _peak_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def test_truncated_png_is_a_media_error(tmp_path: Path) -> None:
    of = picture("gbrp", 64, 64)
    data = encode_image(resolve_image_encoding("a.png", of), of, noise(of))
    with pytest.raises(MediaError):
        read_image(io.BytesIO(data[: len(data) // 3]))


@pytest.mark.parametrize(
    ("output", "name"),
    [("a.jpg", "gbrap"), ("a.jpg", "gbrp16le"), ("a.exr", "gbrp"), ("a.png", "gbrpf32le"), ("a.gif", "gbrp")],
)
def test_format_that_would_lose_depth_or_alpha_is_refused(output: str, name: str) -> None:
    with pytest.raises(JobError):
        resolve_image_encoding(output, picture(name))


@pytest.mark.parametrize(
    ("output", "name", "wanted"),
    [
        ("out/", "yuv420p", "gbrp"),
        ("a.png", "yuv420p10le", "gbrp16le"),
        ("a.tif", "yuva444p", "gbrap"),
        ("a.jpg", "gbrp", "yuv444p"),
        ("a.jpg", "yuv420p", "yuv420p"),
        ("a.png", "gray16le", "gray16le"),
    ],
)
def test_picture_for_stills_has_a_layout_that_the_format_holds(output: str, name: str, wanted: str) -> None:
    assert still_picture(output, picture(name)).pixel.name == wanted


@dataclass(frozen=True)
class FakeClip:
    images: ImageSequence | None = None


def archive(path: Path, output: str, clip: Any, count: int = 3, first: int = 0) -> SegmentPart:
    of = picture("gbrp")
    with ArchiveWriter(path, of, clip, output) as writer:
        for index in range(first, first + count):
            writer.write(Frame(index=index, planes=noise(of, index)))
        facts = writer.close()
    return SegmentPart(fetch=lambda: path, frames=count, sha256=facts.sha256)


def test_stills_of_all_segments_are_unpacked_under_their_names(tmp_path: Path) -> None:
    clip = FakeClip(find_sequence(folder(tmp_path / "in", [f"shot_{n:04d}.png" for n in range(41, 47)])))
    parts = [
        archive(tmp_path / "one.tar", "out/", clip),
        archive(tmp_path / "two.tar", "out/", clip, first=3),
    ]
    report = extract_archives(parts, tmp_path / "out")
    assert report.frames == 6
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [
        f"shot_{n:04d}.png" for n in range(41, 47)
    ]
    assert extract_archives(parts, tmp_path / "again").sha256 == report.sha256
    frames = list(read_archive(tmp_path / "two.tar", picture("gbrp")))
    np.testing.assert_array_equal(frames[0].planes[0], noise(picture("gbrp"), 3)[0])


def test_archive_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    parts = [archive(tmp_path / f"{n}.tar", "out_%04d.png", FakeClip()) for n in range(3)]
    assert len({part.sha256 for part in parts}) == 1


def test_names_of_output_stills(tmp_path: Path) -> None:
    sequence = ImageSequence(folder="in", names=("s_0007.tif", "s_0008.tif"))
    assert StillNames("out/", sequence).name(1) == "s_0008.tif"
    assert StillNames("out/x_%03d.png", sequence).name(1) == "x_008.png"
    assert StillNames("out/x_%03d.png", None).name(1) == "x_002.png"
    assert StillNames("out/", None).name(0) == "000001.png"
    assert StillNames("big.png", replace(sequence, names=("a.png",))).name(0) == "big.png"


def test_single_still_is_unpacked_to_the_file_named(tmp_path: Path) -> None:
    clip = FakeClip(ImageSequence(folder="x", names=("a.png",)))
    folder(tmp_path / "in", ["a.png"])
    clip = FakeClip(find_sequence(tmp_path / "in" / "a.png"))
    part = archive(tmp_path / "one.tar", "big.png", clip, count=1)
    extract_archives([part], tmp_path / "big.png")
    np.testing.assert_array_equal(read_image(tmp_path / "big.png")[1][0], noise(picture("gbrp"), 0)[0])


def test_archive_that_is_not_its_receipt_is_refused(tmp_path: Path) -> None:
    part = archive(tmp_path / "one.tar", "out/", FakeClip())
    with pytest.raises(VerifyError, match="sha256"):
        extract_archives([replace(part, sha256="0" * 64)], tmp_path / "out")
    with pytest.raises(VerifyError, match="holds 3 stills"):
        extract_archives([replace(part, frames=4)], tmp_path / "out")
