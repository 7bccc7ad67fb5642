"""Packets of two files held against each other: the same bytes, at the same time beside the picture."""

from __future__ import annotations

import hashlib
import re
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av.error
import numpy as np

from vsr_hpc.errors import MediaError
from vsr_hpc.media.clip.clip import Stream
from vsr_hpc.media.merge.container_plan import format_name
from vsr_hpc.media.source import Source, open_input
from vsr_hpc.media.timeline import Timeline

_SHOWN = 5
_TRANSCODE_SLACK_S = Fraction(2, 1000)
_PRIMING_SAMPLES = (1024, 312)
"""Of FFmpeg's AAC encoder and of libopus."""
_LENGTH_SLACK_S = Fraction(1, 20)
_FIRST_PACKETS = 50
_MARKUP = re.compile(r"</?[a-zA-Z][^>]*>|\{\\[^}]*\}")
_TEXT_FORM = frozenset({"subrip", "mov_text", "text", "webvtt"})


@dataclass(slots=True)
class Track:
    """What a pass over a stream's packets leaves: a time and a digest each, and one digest of all bytes."""

    time_base: Fraction
    pts: array[int] = field(default_factory=lambda: array("q"))
    stops: array[int] = field(default_factory=lambda: array("q"))
    digests: array[int] = field(default_factory=lambda: array("Q"))
    size_bytes: int = 0
    whole: Any = field(default_factory=hashlib.sha256)
    texts: list[str] | None = None
    skip: int = 0
    """Samples to leave out at the start."""
    trim: int = 0
    """Samples to leave out at the end."""
    rate: int = 0
    heard_s: Fraction | None = None
    """When its first decoded sample is due, where that was looked up."""

    def add(self, data: bytes, pts: int, duration: int) -> None:
        self.pts.append(pts)
        self.stops.append(pts + duration)
        self.digests.append(int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big"))
        self.size_bytes += len(data)
        self.whole.update(data)

    @property
    def start_s(self) -> Fraction:
        return self.pts[0] * self.time_base

    @property
    def stop_s(self) -> Fraction:
        return max(self.stops) * self.time_base


def read_tracks(
    source: Source, streams: Sequence[Stream], window: tuple[Fraction, Fraction] | None
) -> dict[int, Track]:
    """Read every packet of the named streams in one pass; with a window, those that a copy of it holds."""
    tracks: dict[int, Track] = {}
    with open_input(source) as container:
        for stream in streams:
            each: Any = container.streams[stream.index]
            track = tracks[stream.index] = Track(time_base=Fraction(each.time_base or Fraction(1, 1000)))
            track.rate = stream.sample_rate or 0
            if stream.kind == "attachment":
                track.add(bytes(each.data), 0, 0)
            elif stream.kind == "subtitle" and format_name(stream.codec) in _TEXT_FORM:
                track.texts = []
        by_index = {each.index: each for each in streams if each.kind != "attachment"}
        if by_index:
            _read_packets(source.uri, container, by_index, tracks, window)
    return tracks


def states_durations(source: Source, stream: int, shown: Timeline) -> bool:
    """Whether a file's packets last as long as its frames are shown. Matroska need not say it."""
    lasts = {}
    with open_input(source) as container:
        for packet in container.demux(container.streams[stream]):
            if packet.size and packet.pts is not None:
                lasts[packet.pts] = packet.duration or 0
    pairs = zip(shown.pts[:-1].tolist(), shown.durations[:-1].tolist(), strict=True)
    return all(abs(lasts.get(pts, 0) - duration) <= 1 for pts, duration in pairs)


def _read_packets(
    uri: str,
    container: Any,
    streams: dict[int, Stream],
    tracks: dict[int, Track],
    window: tuple[Fraction, Fraction] | None,
) -> None:
    forms = {
        number: _form(format_name(each.codec), container.streams[number]) for number, each in streams.items()
    }
    packets = container.demux([container.streams[number] for number in streams])
    following: dict[int, int] = {}
    keys: dict[int, int] = {}
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as exc:
            raise MediaError(f"{uri}: its streams cannot be read to the end ({exc.strerror})") from exc
        if packet is None:
            return
        if not packet.size or packet.stream_index not in streams:
            continue
        number = packet.stream_index
        pts = packet.pts if packet.pts is not None else packet.dts
        pts = following.get(number) if pts is None else pts
        if pts is None:
            continue
        following[number] = pts + (packet.duration or 0)
        track, stream = tracks[number], streams[number]
        if track.texts is not None:
            text = _text(format_name(stream.codec), bytes(packet))
            if not text and format_name(stream.codec) == "mov_text":
                continue  # MP4's gaps between captions
        first, last = pts, pts + (packet.duration or 0)
        if window is not None and not stream.is_attached_picture:
            low, high = (each / track.time_base for each in window)
            if stream.kind == "subtitle":
                if first >= high or (last <= low and first < low):
                    continue
                first = max(first, round(low))
            elif stream.kind == "video":
                # a copy begins at a key picture, and keeps what others refer to until its end
                if packet.is_keyframe and low <= first < high:
                    keys.setdefault(number, first)
                decoded = first if packet.dts is None else packet.dts
                if number not in keys or first < keys[number] or decoded >= high:
                    continue
            elif not low <= first < high:
                continue
        if track.texts is not None:
            track.texts.append(text)
        _note_skips(packet, track)
        track.add(forms[number](bytes(packet)), first, last - first)


def _text(codec: str, data: bytes) -> str:
    if codec == "mov_text":
        data = data[2 : 2 + int.from_bytes(data[:2], "big")]
    plain = _MARKUP.sub("", data.decode("utf-8", "replace"))
    return "\n".join(plain.replace("\r\n", "\n").strip("\n").split("\n"))


def _note_skips(packet: Any, track: Track) -> None:
    if track.rate and packet.has_sidedata("skip_samples"):
        start, end = struct.unpack_from("<II", bytes(packet.get_sidedata("skip_samples")))
        if not track.pts:
            track.skip = start
        track.trim = end


def _form(codec: str, stream: Any) -> Callable[[bytes], bytes]:
    """How to bring a packet into the one form that both containers share."""
    extradata = bytes(getattr(stream.codec_context, "extradata", None) or b"")
    if codec == "aac" and not extradata:
        return _without_adts
    if codec in ("h264", "hevc"):
        prefix = 0
        if extradata[:1] == b"\x01":
            at = 4 if codec == "h264" else 21
            prefix = (extradata[at] & 3) + 1 if len(extradata) > at else 4
        return lambda data: _units(data, prefix)
    return lambda data: data


def _without_adts(data: bytes) -> bytes:
    if len(data) > 7 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:
        return data[7 if data[1] & 1 else 9 :]
    return data


def _units(data: bytes, prefix: int) -> bytes:
    """NAL units with one kind of border, whether they came with start codes or lengths."""
    if prefix:
        units, at = [], 0
        while at + prefix < len(data):
            size = int.from_bytes(data[at : at + prefix], "big")
            units.append(data[at + prefix : at + prefix + size])
            at += prefix + size
    else:
        units = [each for each in re.split(rb"\x00\x00\x01", data) if each]
    return b"\x00\x00\x01".join(each.rstrip(b"\x00") for each in units if each.strip(b"\x00"))


def packet_faults(ours: Track, theirs: Track) -> Iterator[str]:
    if ours.digests == theirs.digests:
        return
    if ours.size_bytes == theirs.size_bytes and ours.whole.digest() == theirs.whole.digest():
        return  # the same bytes in packets of another length (PCM)
    differ = [i for i, (a, b) in enumerate(zip(ours.digests, theirs.digests, strict=False)) if a != b]
    if len(ours.digests) != len(theirs.digests):
        yield f"{len(theirs.digests)} packets, the source has {len(ours.digests)}"
    if differ and len(ours.digests) == len(theirs.digests):
        places = some([str(i) for i in differ])
        yield f"{len(differ)} packets differ from the source's: {places}"
    elif differ:
        yield f"packets differ from the source's from number {differ[0]} on"


def text_faults(ours: Track, theirs: Track) -> Iterator[str]:
    before = [each for each in ours.texts or () if each.strip()]
    after = [each for each in theirs.texts or () if each.strip()]
    if len(before) != len(after):
        yield f"{len(after)} captions, the source has {len(before)}"
    differ = [i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b]
    if differ:
        i = differ[0]
        yield f"{len(differ)} captions differ; number {i} was {before[i]!r}, is {after[i]!r}"


def step_faults(ours: Track, theirs: Track, offset: Fraction, tick: Fraction) -> Iterator[str]:
    """Whether each packet comes when it should, measured against the picture."""
    if not ours.pts or not theirs.pts:
        return
    allowed = max(tick, theirs.time_base, ours.time_base)
    if len(ours.pts) != len(theirs.pts):
        late = theirs.start_s - ours.start_s - offset
        if abs(late) > allowed:
            yield f"begins {_late(late)} against the picture"
        return
    before = np.array(ours.pts, dtype=np.float64) * float(ours.time_base) + float(offset)
    drift = np.array(theirs.pts, dtype=np.float64) * float(theirs.time_base) - before
    slack = float(allowed) * 1.0001 + 1e-9
    wrong = np.flatnonzero(np.abs(drift) > slack)
    if not len(wrong):
        return
    late = Fraction(drift[wrong[0]]).limit_denominator(10**6)
    if len(wrong) == len(drift):
        yield f"is {_late(late)} against the picture, {ms(allowed)} are allowed"
    else:
        share = f"{len(wrong)} of {len(drift)} packets"
        yield f"{share} are out of step, the first (number {wrong[0]}) {_late(late)}"


def duration_faults(
    ours: Track, theirs: Track, tick: Fraction, window: tuple[Fraction, Fraction] | None = None
) -> Iterator[str]:
    """How long each caption is shown, where the source says it; one may be cut where the window ends."""
    if len(ours.pts) != len(theirs.pts):
        return
    slack = 2 * max(tick, ours.time_base, theirs.time_base)  # both ends are rounded
    wrong = []
    for place in range(len(ours.pts)):
        start, was = ours.pts[place] * ours.time_base, _lasts(ours, place)
        now = _lasts(theirs, place)
        due = {was, min(was, window[1] - start)} if window is not None else {was}
        if was and all(abs(now - each) > slack for each in due):
            wrong.append((place, was, now))
    if wrong:
        place, was, now = wrong[0]
        share = f"{len(wrong)} of {len(ours.pts)} captions are"
        yield f"{share} shown for another time, the first (number {place}) for {ms(now)} instead of {ms(was)}"


def _lasts(track: Track, place: int) -> Fraction:
    return (track.stops[place] - track.pts[place]) * track.time_base


def recoded_faults(
    ours: Track, theirs: Track, offset: Fraction, window: tuple[Fraction, Fraction] | None = None
) -> Iterator[str]:
    """Sound that was encoded anew: it begins and ends where the source's does, or where the window does."""
    if not ours.pts:
        return
    begin, end = _heard_s(ours), ours.stop_s
    if window is not None:
        begin, end = max(begin, window[0]), min(end, window[1])
    if not theirs.pts:
        if begin < end:
            yield "is empty"
        return
    heard = _heard_s(theirs)
    late = heard - begin - offset
    # MP4 cannot skip priming where sound begins after the picture: it plays as silence, and all is in step
    primed = (0, *(_PRIMING_SAMPLES if not theirs.skip else ()))
    if all(abs(late + Fraction(each, theirs.rate or 1)) > _TRANSCODE_SLACK_S for each in primed):
        yield f"begins {_late(late)} against the picture"
    length = (theirs.stop_s - heard) - (end - begin)
    filled = (theirs.stops[0] - theirs.pts[0]) * theirs.time_base  # the last packet may be
    if not -_LENGTH_SLACK_S <= length <= max(_LENGTH_SLACK_S, filled):
        yield f"lasts {ms(abs(length))} {'longer' if length > 0 else 'shorter'} than the source's"


def _heard_s(track: Track) -> Fraction:
    return track.start_s + Fraction(track.skip, track.rate or 1) if track.heard_s is None else track.heard_s


def first_sound(source: Source, stream: Stream) -> Fraction | None:
    """When the first sample is heard. Not every decoder gives sound for its first packet."""
    with open_input(source) as container:
        each: Any = container.streams[stream.index]
        for number, packet in enumerate(container.demux(each)):
            try:
                for frame in packet.decode():
                    return None if frame.pts is None else Fraction(frame.pts * frame.time_base)
            except av.error.FFmpegError:
                continue
            if number > _FIRST_PACKETS:
                break
    return None


def skip_faults(ours: Track, theirs: Track) -> Iterator[str]:
    """Encoder delay that players leave out must stay left out, as exactly as both clocks can say it."""
    clock = max(ours.time_base, theirs.time_base) * max(ours.rate, theirs.rate)
    if abs(ours.skip - theirs.skip) > max(Fraction(1), clock):
        yield f"players left out its first {ours.skip} samples, now {theirs.skip}"


def ms(seconds: Fraction) -> str:
    return f"{float(seconds) * 1000:.3f} ms"


def _late(seconds: Fraction) -> str:
    return f"{ms(abs(seconds))} {'late' if seconds > 0 else 'early'}"


def some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
