"""Sound that Matroska holds in the form of Windows' codecs (A_MS/ACM): WMA, ADPCM, A-law, mu-law and others.

FFmpeg's muxer writes it, but PyAV asks first whether the format names the codec, and Matroska names none of
these. So the muxer is handed the codec's WAVE header as the private data of a codec that it names, and the
name is corrected in the finished header.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from typing import Any

import av

CODEC_ID = "A_MS/ACM"
_LISTED_TAG = 0x50  # MPEG layer 2, whose private data the muxer copies as it is


@contextlib.contextmanager
def open_acm_template(stream: Any) -> Iterator[Any]:
    """A stream of the same rate and channels that the Matroska muxer accepts, with the WAVE header inside."""
    memory = io.BytesIO()
    with av.open(memory, "w", format="wav", options={"fflags": "+bitexact"}) as wave:
        wave.add_stream_from_template(stream, opaque=True)
        wave.start_encoding()
    header = _format_chunk(memory.getvalue())
    _, channels, rate, byte_rate, align, bits = struct.unpack_from("<HHIIHH", header)
    listed = (
        struct.pack("<HHIIHHH", _LISTED_TAG, channels, rate, byte_rate, align, bits, len(header)) + header
    )
    body = b"WAVE" + b"fmt " + struct.pack("<I", len(listed)) + listed + b"data" + struct.pack("<I", 0)
    with av.open(io.BytesIO(b"RIFF" + struct.pack("<I", len(body)) + body)) as template:
        yield template.streams.audio[0]


def _format_chunk(wave: bytes) -> bytes:
    at = 12
    while at + 8 <= len(wave):
        kind, size = struct.unpack_from("<4sI", wave, at)
        if kind == b"fmt ":
            return wave[at + 8 : at + 8 + size]
        at += 8 + size + (size & 1)
    raise ValueError("FFmpeg's WAVE muxer wrote no format chunk")
