"""Stills as a clip: one size for all, a made-up clock, and one hash over names and bytes."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av.error
import numpy as np

from vsr_hpc.errors import MediaError
from vsr_hpc.media.picture import Frame, Picture
from vsr_hpc.media.source import MAX_PIXELS, MAX_SIDE, Source
from vsr_hpc.media.stills.names import ImageSequence, find_sequence
from vsr_hpc.media.stills.still import SUFFIXES, read_image
from vsr_hpc.media.timeline import Timeline

DEFAULT_RATE = Fraction(25)
"""What FFmpeg assumes of a folder of images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stills:
    """A sequence found on disk, the picture of its first image and the bytes of all."""

    sequence: ImageSequence
    picture: Picture
    size_bytes: int
    suffix: str


def means_stills(source: Source) -> bool:
    """Whether a source names images: a folder, or anything that ends like a still."""
    path = Path(source.uri)
    return path.is_dir() or path.suffix.lower() in SUFFIXES


def find_stills(source: Source, *, allow_gaps: bool) -> Stills:
    """The images that a source names; MediaError where there are none, gaps, or different sizes."""
    found = _find(source, allow_gaps)
    first = found.path(0)
    width, height = _size_of(first)
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        raise MediaError(
            f"{first}: {width}x{height} is larger than the {MAX_SIDE}x{MAX_SIDE} that are read; cut it first"
        )
    picture, _, _ = read_image(first)
    for number in range(1, len(found)):
        size = _size_of(found.path(number))
        if size != (width, height):
            raise MediaError(
                f"{found.path(number)}: is {size[0]}x{size[1]}, but {found.names[0]} is {width}x{height}; "
                "take images of one size at a time"
            )
    return Stills(
        sequence=found,
        picture=picture,
        size_bytes=sum(found.path(number).stat().st_size for number in range(len(found))),
        suffix=first.suffix.lower().lstrip("."),
    )


def stills_timeline(sequence: ImageSequence, rate: Fraction) -> Timeline:
    """One frame for each image, at a constant rate."""
    none = np.zeros(0, np.int64)
    return Timeline(
        time_base=1 / rate,
        pts=np.arange(len(sequence), dtype=np.int64),
        last_duration=1,
        key_pts=none,
        key_dts=none,
        reading="scan",
        is_synthetic=True,
    )


def read_still(sequence: ImageSequence, index: int, picture: Picture) -> Frame:
    """Frame `index`; MediaError where it is not like the first image."""
    found, planes, _ = read_image(sequence.path(index))
    if (found.width, found.height, found.pixel) != (picture.width, picture.height, picture.pixel):
        raise MediaError(
            f"{sequence.path(index)}: is {found.width}x{found.height} {found.pixel.name}, the first image is "
            f"{picture.width}x{picture.height} {picture.pixel.name}; images of one sequence must be alike"
        )
    return Frame(index=index, planes=planes)


def stills_hash(source: Source) -> str:
    """sha256 over every image's name, length and bytes, in order."""
    found = _find(source, allow_gaps=True)
    digest = hashlib.sha256()
    for number, name in enumerate(found.names):
        content = _read_content(found.path(number))
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _find(source: Source, allow_gaps: bool) -> ImageSequence:
    if "://" in source.uri:
        raise MediaError(
            f"{source.uri}: images are read from a folder on this machine; copy them there first"
        )
    found = find_sequence(source.uri, allow_gaps=allow_gaps)
    folder = str(Path(found.folder).absolute())
    return ImageSequence(folder=folder, names=found.names, is_still=found.is_still)


def _read_content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise MediaError(f"{path}: cannot be read ({exc.strerror})") from exc


def _size_of(path: Path) -> tuple[int, int]:
    """Width and height from a still's header, without decoding it where PNG says so plainly."""
    try:
        with path.open("rb") as file:
            head = file.read(24)
    except OSError as exc:
        raise MediaError(f"{path}: cannot be read ({exc.strerror})") from exc
    if not head:
        raise MediaError(f"{path}: is empty (0 bytes)")
    if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 24:
        width, height = struct.unpack(">II", head[16:24])
        return int(width), int(height)
    try:
        with av.open(str(path.absolute()), options={"protocol_whitelist": "file"}) as container:
            context = container.streams.video[0].codec_context
            return int(context.width), int(context.height)
    except (av.error.FFmpegError, ValueError, IndexError) as exc:
        raise MediaError(f"{path}: is no image that can be read ({exc})") from exc
