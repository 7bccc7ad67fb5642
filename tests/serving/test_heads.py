"""Stills whose headers contradict each other: none of them gets more pixels decoded than are allowed."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from tests.serving.samples import still
from vsr_hpc.errors import MediaError
from vsr_hpc.media.picture import Colour, Picture
from vsr_hpc.media.pixels import pixel_format
from vsr_hpc.media.stills.still import encode_image, resolve_image_encoding
from vsr_hpc.serving import reading
from vsr_hpc.serving.reading import read_still
from vsr_hpc.serving.refusals import Refusal
from vsr_hpc.serving.request import Content

WIDTH, HEIGHT = 2600, 1800


def png_of_two_sizes() -> bytes:
    """What decoders see is large; behind its end it says once more that it is small."""

    def chunk(kind: bytes, body: bytes = b"") -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    def header(width: int, height: int) -> bytes:
        return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))

    rows = chunk(b"IDAT", zlib.compress(bytes((WIDTH + 1) * HEIGHT)))
    return b"\x89PNG\r\n\x1a\n" + header(WIDTH, HEIGHT) + rows + chunk(b"IEND") + header(1, 1)


def jpeg_of_two_sizes() -> bytes:
    """Its first frame header says 1x1, the one that decoders keep is large."""
    colour = Colour(matrix=2, is_full_range=True, is_range_tagged=True)
    shape = Picture(width=WIDTH, height=HEIGHT, pixel=pixel_format("gray"), colour=colour)
    plane = np.full((HEIGHT, WIDTH), 90, np.uint8)
    body = encode_image(resolve_image_encoding("x.jpeg", shape), shape, [plane])
    at = body.index(b"\xff\xc0")
    (length,) = struct.unpack_from(">H", body, at + 2)
    small = bytearray(body[at : at + 2 + length])
    struct.pack_into(">HH", small, 5, 1, 1)
    return body[:at] + bytes(small) + body[at:]


def test_a_png_is_refused_by_the_header_that_decoders_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "read_image", None)
    with pytest.raises(Refusal) as caught:
        read_still("png", png_of_two_sizes(), 1000)
    assert caught.value.numbers["found_pixels"] == WIDTH * HEIGHT


def test_a_jpeg_that_grows_behind_its_header_is_given_up_undecoded() -> None:
    body = jpeg_of_two_sizes()
    assert read_still("jpeg", body, WIDTH * HEIGHT)[0].width == WIDTH
    with pytest.raises(MediaError, match="jpeg cannot be decoded"):
        read_still("jpeg", body, 1000)


@pytest.mark.parametrize("content", ["png", "jpeg", "webp"])
def test_a_picture_of_just_as_many_pixels_as_are_allowed_is_taken(content: Content) -> None:
    """Its rows are no whole number of what decoders pad them to."""
    body = still(content, 65, 49)
    assert read_still(content, body, 65 * 49)[0].height == 49
    with pytest.raises(Refusal):
        read_still(content, body, 65 * 49 - 1)
