"""The source's other streams on their way into the output: what they start with, captions, sound, files."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
from av.filter import Graph

from vsr_hpc.media.ffmpeg_errors import reason
from vsr_hpc.media.merge.container_plan import StreamPlan, choose_layout
from vsr_hpc.media.merge.header_edits import NAME_PADDING, TrackEdit, edit_matroska_tracks
from vsr_hpc.media.merge.pgs import Screen
from vsr_hpc.media.merge.segment_packets import nearest
from vsr_hpc.media.source import Source, open_input
from vsr_hpc.system.progress import tick

log = logging.getLogger(__name__)


_BITEXACT = 1 << 23
_PEEK_PACKETS = 2000
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_MARKUP = re.compile(r"</?[a-zA-Z][^>]*>|\{\\[^}]*\}")
ASS_HEADER = (
    b"[Script Info]\r\nScriptType: v4.00+\r\nPlayResX: 384\r\nPlayResY: 288\r\n\r\n[V4+ Styles]\r\n"
    b"Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, "
    b"Italic, Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, "
    b"MarginL, MarginR, MarginV, Encoding\r\nStyle: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,"
    b"100,100,0,0,1,1,0,2,10,10,10,1\r\n\r\n[Events]\r\nFormat: Layer, Start, End, Style, Name, MarginL, "
    b"MarginR, MarginV, Effect, Text\r\n"
)


@dataclass(slots=True)
class Track:
    """One stream on its way from the source into the output."""

    plan: StreamPlan
    source: Any
    out: Any
    name: str
    last_dts: int | None = None
    next_pts: Fraction | None = None
    mended: int = 0
    encoder: Any = None
    samples: Fraction | None = None
    """How long the sound is, where its packets' own durations do not tell."""
    screen: Screen | None = None
    """Where what is shown at the beginning of a range was sent before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peek:
    """What the first packets of the source tell: where each stream starts, priming, cover pictures."""

    first: dict[int, Fraction]
    priming: dict[int, int]
    covers: dict[int, bytes]
    packets: dict[int, bytes]


@contextlib.contextmanager
def open_primed_template(stream: Any, packet: bytes, samples: int) -> Iterator[Any]:
    """The same stream from a Matroska header that states how many leading samples are to be skipped."""
    memory = io.BytesIO()
    with av.open(memory, "w", format="matroska", options={"fflags": "+bitexact"}) as small:
        copy = small.add_stream_from_template(stream, opaque=True)
        copy.metadata["title"] = NAME_PADDING
        first = av.Packet(packet)
        first.stream, first.pts, first.dts, first.time_base = copy, 0, 0, Fraction(1, 1000)
        small.mux_one(first)
    rate = stream.codec_context.sample_rate
    edit_matroska_tracks(memory, {0: TrackEdit(codec_delay_ns=samples * 10**9 // rate)})
    memory.seek(0)
    with av.open(memory) as template:
        yield template.streams[0]


def remove_opus_skip(head: bytes | None) -> bytes | None:
    """Opus's own header (RFC 7845, 5.1) with nothing to skip at the start."""
    if head is None or head[:8] != b"OpusHead":
        return head
    return head[:10] + b"\0\0" + head[12:]


def add_file(out: Any, stream: Any, plan: StreamPlan, peek: Peek) -> None:
    """An attached file, or a cover picture, which Matroska keeps as an attached file."""
    if plan.action == "attach":
        name, kind, data = stream.name or f"attachment{plan.index}", stream.mimetype, stream.data
    else:
        suffix = {"png": "png", "mjpeg": "jpg", "bmp": "bmp"}.get(plan.codec, plan.codec)
        name, data = stream.metadata.get("filename") or f"cover.{suffix}", peek.covers.get(plan.index, b"")
        kind = stream.metadata.get("mimetype") or f"image/{'jpeg' if suffix == 'jpg' else suffix}"
    added = out.add_attachment(name, kind or "application/octet-stream", data)
    added.metadata.update(
        {**stream.metadata, "filename": name, "mimetype": kind or "application/octet-stream"}
    )


def tta_length(stream: Any) -> Fraction | None:
    """Seconds of a TTA stream by its header. Its last frame is shorter than its packet's duration says.

    In Matroska FFmpeg makes that header from the file's duration, so a file that is too long decodes short.
    """
    header = bytes(stream.codec_context.extradata or b"")
    if not header.startswith(b"TTA") or len(header) < 18:
        return None
    rate, samples = struct.unpack_from("<II", header, 10)
    return Fraction(samples, rate) if rate else None


def track_position(out: Any, stream: Any) -> int:
    """The stream's place among the tracks of a Matroska file, where attachments are not tracks."""
    return sum(each.type != "attachment" for each in list(out.streams)[: stream.index])


def peek_source(source: Source, plans: Sequence[StreamPlan]) -> Peek:
    """Read the first packets of the wanted streams, until each has shown one or enough were read."""
    peek = Peek(first={}, priming={}, covers={}, packets={})
    waiting = {each.index for each in plans if each.action != "attach" and each.kind in ("audio", "video")}
    covers = {each.index for each in plans if each.action == "cover"}
    if not waiting:
        return peek
    with open_input(source) as container:
        try:
            demuxer: Any = container.demux()
            with contextlib.closing(demuxer) as packets:  # see decoder.py
                for number, packet in enumerate(packets):
                    index = packet.stream_index
                    if packet.size and index in waiting:
                        waiting.discard(index)
                        _note_first(peek, packet, index in covers)
                    if not waiting or number > _PEEK_PACKETS:
                        break
        except av.FFmpegError as exc:
            log.warning("source cannot be peeked uri=%s error=%s", source.uri, reason(exc))
    return peek


def first_keys(
    source: Source, indices: Sequence[int], window: tuple[Fraction, Fraction]
) -> dict[int, Fraction]:
    """When each of these videos shows its first key picture inside the window, where there is one."""
    found: dict[int, Fraction] = {}
    if not indices:
        return found
    with open_input(source) as container:
        try:
            streams = [container.streams[index] for index in indices]
            demuxer: Any = container.demux(streams)
            with contextlib.closing(demuxer) as packets:  # see decoder.py
                for packet in packets:
                    tick()
                    index = packet.stream_index
                    if packet.size and packet.is_keyframe and packet.pts is not None and index not in found:
                        shown = packet.pts * packet.time_base
                        if window[0] <= shown < window[1]:
                            found[index] = shown
                    if len(found) == len(indices):
                        break
        except av.FFmpegError as exc:
            log.warning("source cannot be scanned uri=%s error=%s", source.uri, reason(exc))
    return found


def _note_first(peek: Peek, packet: Any, is_cover: bool) -> None:
    index = packet.stream_index
    if is_cover:
        peek.covers[index] = bytes(packet)
    if packet.pts is not None:
        peek.first[index] = packet.pts * packet.time_base
    peek.packets[index] = bytes(packet)
    if packet.has_sidedata("skip_samples"):
        (samples,) = struct.unpack_from("<I", bytes(packet.get_sidedata("skip_samples")))
        peek.priming[index] = samples


def audio_encoder(out: Any, template: Any, codec: str) -> Any:
    context = template.codec_context
    layout = choose_layout(codec, context.layout.name, context.layout.nb_channels)
    rate = 48000
    if codec == "aac":
        rate = next((each for each in _AAC_RATES if each >= context.sample_rate), _AAC_RATES[-1])
    stream = out.add_stream({"opus": "libopus", "aac": "aac"}[codec], rate=rate)
    stream.layout = layout or "stereo"
    stream.bit_rate = (64000 if codec == "opus" else 96000) * stream.layout.nb_channels
    stream.codec_context.flags |= _BITEXACT
    stream.codec_context.thread_count = 1
    return stream


def trimmed(frame: Any, window: tuple[Fraction, Fraction]) -> Any:
    """The samples of a decoded frame that lie inside a window of time; None where none does."""
    rate = frame.sample_rate
    begin = (frame.pts or 0) * frame.time_base
    first, last = (nearest((each - begin) * rate) for each in window)
    first, last = max(0, first), min(frame.samples, last)
    if first >= last:
        return None
    made = frame if (first, last) == (0, frame.samples) else _cut(frame, first, last)
    made.pts, made.time_base = nearest(begin * rate) + first, Fraction(1, rate)
    return made


def _cut(frame: Any, first: int, last: int) -> Any:
    """Samples [first, last) of a frame, by FFmpeg's filter: PyAV reads beyond the end of eight channels."""
    graph = Graph()
    frame.pts, frame.time_base = 0, Fraction(1, frame.sample_rate)
    ends = (
        graph.add_abuffer(template=None, sample_rate=frame.sample_rate, format=frame.format,
                          layout=frame.layout, time_base=frame.time_base),
        graph.add("atrim", f"start_sample={first}:end_sample={last}"),
        graph.add("abuffersink"),
    )  # fmt: skip
    graph.link_nodes(*ends).configure()
    ends[0].push(frame)
    return ends[-1].pull()


def convert_text(packet: Any, track: Track) -> Any:
    """A caption as plain text in the other container's form; None for MP4's empty fillers."""
    text = bytes(packet)
    if track.source.codec_context.name == "mov_text":
        (length,) = struct.unpack_from(">H", text)
        text = text[2 : 2 + length]
    if not text.strip():
        return None
    if track.plan.codec == "mov_text":
        plain = _MARKUP.sub("", text.decode("utf-8", "replace")).replace("\r\n", "\n").strip("\n").encode()
        text = struct.pack(">H", len(plain[:65535])) + plain[:65535]
    made = av.Packet(text)
    made.pts, made.dts, made.duration, made.time_base = (
        packet.pts,
        packet.pts,
        packet.duration,
        packet.time_base,
    )
    made.is_keyframe = True
    return made
