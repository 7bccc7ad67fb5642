"""Build a timeline: one demux pass where packets can be trusted to be frames, one decode where they can't.

The rule: the timeline holds exactly the frames that a decode from the start yields. Packets are believed only
for codecs and containers in which one packet is one shown frame; the head and the tail are then decoded and
compared. A few seeks are tried against a plain decode across them. Whatever fails is decoded whole.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import islice, pairwise
from typing import Any

import numpy as np

from vsr_hpc.errors import MediaError
from vsr_hpc.media.clip import bitstream
from vsr_hpc.media.clip.container_facts import cut_off, mp4_tracks
from vsr_hpc.media.decoder import SeekMissed, frames_from, open_decoder
from vsr_hpc.media.pixels import frame_digest
from vsr_hpc.media.source import Source, raw_bytes
from vsr_hpc.media.timeline import Ticks, Timeline

log = logging.getLogger(__name__)


_INTRA = frozenset(
    {"prores", "ffv1", "mjpeg", "dnxhd", "rawvideo", "v210", "v410", "v308", "v408", "huffyuv", "ffvhuff"}
    | {"utvideo", "png", "cfhd", "dvvideo", "qtrle", "magicyuv", "jpeg2000", "r210", "hap", "tiff", "exr"}
)
_ONE_FRAME_A_PACKET = _INTRA | {"h264", "hevc", "vvc", "av1", "vp9", "vp8"}
_EXACT_CONTAINERS = frozenset({"mov", "mp4", "matroska", "webm", "mxf"})
_HEAD_FRAMES = 24
_TAIL_FRAMES = 1000
_PROBED_SEEKS = 3
_MAX_FRAMES = 1 << 28
_MAX_SECONDS = 10_000_000
_FALLBACK_RATE = Fraction(25)
_REORDERED_FRAMES = 17
"""Frames before the end among which one may be missing that is coded after a later one."""
_MP4_BEGINNINGS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is to be indexed: one video stream of one source, and what the probe knows of it."""

    source: Source
    stream: int
    codec: str
    container: str
    decoder: str | None
    is_interlaced: bool
    frame_rate: Fraction | None
    is_rate_given: bool = False
    """By somebody who knows, for a source without timestamps; those that FFmpeg makes up don't count then."""
    is_cut_off: bool = False
    """A file without its end is decoded whole, and its frames end before the first that is missing there."""


@dataclass(slots=True, kw_only=True)
class _Packets:
    """The stream's packets that show a frame, as demuxed."""

    time_base: Fraction
    pts: array[int] = field(default_factory=lambda: array("q"))
    durations: dict[int, int] = field(default_factory=dict)
    keys: list[tuple[int, int]] = field(default_factory=list)
    count: int = 0
    without_pts: int = 0
    corrupt: int = 0
    first_dts: int | None = None
    starts_with_key: bool = False
    container_end_s: Fraction | None = None


def build(target: Target, *, decode: bool = False) -> Timeline:
    """The timeline of a clip's video stream. `decode` counts by decoding, whatever the packets say."""
    refuse_cut_off(target.source, salvage=target.is_cut_off)
    packets = _demux(target)
    findings: list[str] = []
    if packets.corrupt:
        findings.append(
            f"the container marks {packets.corrupt} packets as damaged; frames may be missing there"
        )
    timeline = None
    if not decode and not target.is_cut_off and _is_trusted(target, packets):
        timeline = _from_packets(target, packets, findings)
        if timeline is None:
            log.info("packets are not frames here, decoding the whole clip uri=%s", target.source.uri)
    if timeline is None:
        timeline = _from_decode(target, packets, findings)
    return _up_to_last_whole_frame(timeline) if target.is_cut_off else timeline


def is_cut_off(source: Source) -> bool:
    """Whether a file is shorter than its own header says."""
    with raw_bytes(source) as file:
        return cut_off(file) is not None


def refuse_cut_off(source: Source, *, salvage: bool = False) -> None:
    """MediaError for a file that is shorter than its own header says; `salvage` admits what can be read."""
    with raw_bytes(source) as file:
        sizes = cut_off(file)
        file.seek(4)
        has_index = file.read(4) not in _MP4_BEGINNINGS or bool(mp4_tracks(file))
    if sizes is not None and not (salvage and has_index):
        way_out = (
            "--salvage upscales what can be read, up to the last whole frame"
            if has_index
            else "the list of its frames stood at its end, so nothing can be read of it here"
        )
        raise MediaError(
            f"{source.uri}: the file is cut off: {sizes[0]} bytes are there, its header promises "
            f"{sizes[1]}. Fetch it again; {way_out}"
        )


def _up_to_last_whole_frame(timeline: Timeline) -> Timeline:
    """The frames before the first of the last ones that failed, or that a later one was decoded without."""
    count = len(timeline)
    near_end = max(1, count - _REORDERED_FRAMES)
    stop = next((each for each in timeline.broken if each >= near_end), count)
    steps = np.diff(timeline.pts[:stop])
    is_gap = steps > 1.5 * float(np.median(steps)) if len(steps) else np.zeros(0, bool)
    stop = next((at + 1 for at in range(near_end - 1, len(steps)) if is_gap[at]), stop)
    if stop == count:
        return timeline
    kept = timeline.key_pts <= timeline.pts[stop - 1]
    return replace(
        timeline,
        pts=timeline.pts[:stop],
        last_duration=max(1, int(np.median(np.diff(timeline.pts[:stop]))))
        if stop > 1
        else timeline.last_duration,
        key_pts=timeline.key_pts[kept],
        key_dts=timeline.key_dts[kept],
        broken=tuple(each for each in timeline.broken if each < stop),
    )


def _demux(target: Target) -> _Packets:
    with open_decoder(target.source, target.stream, decoder=target.decoder) as opened:
        found = _Packets(time_base=opened.stream.time_base)
        container = opened.container
        if container.duration is not None:
            found.container_end_s = Fraction(container.duration + (container.start_time or 0), 1_000_000)
        extradata = bytes(opened.context.extradata or b"")
        last_key: int | None = None
        for packet in opened.packets():
            if packet.size == 0:
                continue
            if found.count == 0:
                found.starts_with_key = packet.is_keyframe
            if found.first_dts is None:
                found.first_dts = packet.dts
            found.count += 1
            found.corrupt += packet.is_corrupt
            if packet.is_keyframe and packet.pts is not None:
                dts = packet.pts if packet.dts is None else packet.dts
                # one keyframe more to begin with where decoding may lean on what lies before
                is_soft = bitstream.is_soft_keyframe(target.codec, extradata, packet)
                found.keys.append((packet.pts, last_key if is_soft and last_key is not None else dts))
                last_key = dts
            if not packet.is_discard and not bitstream.is_hidden(target.codec, packet):
                _note(found, packet)
            if len(found.pts) > _MAX_FRAMES:
                raise MediaError(f"{target.source.uri}: more than {_MAX_FRAMES} frames; cut the clip first")
    return found


def _note(found: _Packets, packet: Any) -> None:
    if packet.pts is None:
        found.without_pts += 1
        return
    found.pts.append(packet.pts)
    if packet.duration:
        found.durations[packet.pts] = packet.duration
        if len(found.durations) > 64:  # only the last frame's is asked for: keep those of the latest packets
            del found.durations[min(found.durations)]


def _is_trusted(target: Target, packets: _Packets) -> bool:
    return (
        target.codec in _ONE_FRAME_A_PACKET
        and not _EXACT_CONTAINERS.isdisjoint(target.container.split(","))
        and not (target.is_interlaced and target.codec == "h264")  # fields may come as packets of their own
        and not packets.without_pts
        and packets.starts_with_key
        and len(packets.pts) > 0
        and len(set(packets.pts)) == len(packets.pts)
    )


def _from_packets(target: Target, packets: _Packets, findings: Sequence[str]) -> Timeline | None:
    """The timeline as the packets have it, or None where the decoded head or tail differs."""
    timeline = _build_timeline(target, packets, np.sort(np.array(packets.pts, np.int64)), findings)
    if not _matches(target, timeline, -1, _HEAD_FRAMES):
        return None
    key = len(timeline.key_pts) - 1
    tail = len(timeline) - int(np.searchsorted(timeline.pts, timeline.key_pts[key])) if key >= 0 else 0
    if key > 0 and tail <= _TAIL_FRAMES and not _matches(target, timeline, key, None):
        return None
    return _choose_reading(target, timeline)


def _matches(target: Target, timeline: Timeline, key: int, limit: int | None) -> bool:
    """Whether frames decoded from a key on carry the timestamps listed; to the end if there is no limit."""
    errors: list[str] = []
    last = -1
    with open_decoder(target.source, target.stream, decoder=target.decoder) as opened:
        try:
            numbered = frames_from(opened, timeline, key, lambda _, reason: errors.append(reason))
            last = max((number for number, _ in islice(numbered, limit)), default=-1)
        except SeekMissed:
            return bool(errors)  # damage: decoding the rest would not mend it, the reader names the frame
    end = len(timeline) if limit is None else min(limit, len(timeline))
    return bool(errors) or last == end - 1


def _choose_reading(target: Target, timeline: Timeline) -> Timeline:
    if timeline.reading == "seek" and not _seeks_are_sound(target, timeline):
        log.info("seeks are not exact, ranges are read from the start uri=%s", target.source.uri)
        return replace(timeline, reading="scan")
    return timeline


def _seeks_are_sound(target: Target, timeline: Timeline) -> bool:
    """Try a few keyframes: the frames after a seek must equal those of a decode that crosses it."""
    count = len(timeline.key_pts)
    if target.codec in _INTRA or count < 2:
        return True
    keys = sorted({1, count // 2, count - 1})[:_PROBED_SEEKS]
    starts = np.searchsorted(timeline.pts, timeline.key_pts, side="left")
    for key in keys:
        if starts[key] - starts[key - 1] > _TAIL_FRAMES:
            continue
        wanted = range(int(starts[key]), min(int(starts[key]) + 3, len(timeline)))
        near, far = _digests(target, timeline, key, wanted), _digests(target, timeline, key - 1, wanted)
        if near != far and far is not None:
            return False
    return True


def _digests(target: Target, timeline: Timeline, key: int, wanted: range) -> list[bytes] | None:
    """Digests of the wanted frames read from a key on; None where damage or a late landing spoils it."""
    found: list[bytes] = []
    errors: list[str] = []
    with open_decoder(target.source, target.stream, decoder=target.decoder) as opened:
        try:
            for number, frame in frames_from(opened, timeline, key, lambda _, why: errors.append(why)):
                if number in wanted:
                    found.append(frame_digest(frame))
                if number >= wanted.stop - 1:
                    break
        except SeekMissed:
            return None
    return None if errors else found


@dataclass(slots=True, kw_only=True)
class _Decoded:
    """What a decode from the start gave: one entry per frame, and the packets that failed."""

    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    last_duration: int = 0
    failed: list[tuple[int | None, int]] = field(default_factory=list)
    """(pts of the packet or frame, frames before it)"""
    reason: str = ""


def _from_decode(target: Target, packets: _Packets, findings: list[str]) -> Timeline:
    decoded = _decode_all(target)
    if not decoded.pts:
        why = f" ({decoded.reason})" if decoded.reason else ""
        raise MediaError(f"{target.source.uri}: its video stream holds no frame that can be decoded{why}")
    lost = sum(1 for _, before in decoded.failed if before == 0)
    if lost:
        findings.append(f"{lost} packets before the first frame can't be decoded and are left out")
        decoded.failed = [each for each in decoded.failed if each[1] > 0]
    times = [each for each in decoded.pts if each is not None]
    if target.is_rate_given or len(times) < len(decoded.pts):
        timeline = _without_times(target, packets, decoded, findings)
    elif all(a < b for a, b in pairwise(times)):
        timeline = _with_times(target, packets, decoded, times, findings)
    else:
        timeline = _mend(target, packets, decoded, times, findings)
    return _choose_reading(target, timeline)


def _decode_all(target: Target) -> _Decoded:
    found = _Decoded()

    def on_error(pts: int | None, reason: str) -> None:
        found.failed.append((pts, len(found.pts)))
        found.reason = reason

    with open_decoder(target.source, target.stream, decoder=target.decoder, threads=2) as opened:
        for frame in opened.frames(on_error):
            found.pts.append(frame.pts)
            found.dts.append(frame.dts)
            found.last_duration = frame.duration or 0
    return found


def _with_times(
    target: Target, packets: _Packets, decoded: _Decoded, times: list[int], findings: Sequence[str]
) -> Timeline:
    """Timestamps as decoded; a frame that failed keeps its place, so that nothing goes missing unseen."""
    broken = {pts for pts, _ in decoded.failed if pts is not None}
    pts = np.array(sorted(broken.union(times)), np.int64)
    timeline = _build_timeline(target, packets, pts, findings, decoded.last_duration)
    return replace(
        timeline,
        was_decoded=True,
        broken=tuple(int(np.searchsorted(pts, each)) for each in sorted(broken)),
        reading="seek" if len(timeline.key_pts) else "scan",
    )


def _mend(
    target: Target, packets: _Packets, decoded: _Decoded, times: list[int], findings: list[str]
) -> Timeline:
    """Repeated timestamps move on by one tick; a jump back means two clips in one file: refused."""
    rising = [b - a for a, b in pairwise(times) if b > a]
    tolerated = 2 * int(np.median(rising)) if rising else 0
    mended = [times[0]]
    changed = 0
    for number, each in enumerate(times[1:], 1):
        if times[number - 1] - each > tolerated:
            raise MediaError(
                f"{target.source.uri}: the clock jumps back by "
                f"{float((times[number - 1] - each) * packets.time_base):.3f} s at frame {number}: these "
                "are several recordings in one file. Split it there and take them one by one, or give it one "
                "clock by a lossless intermediate: ffmpeg -i IN -c:v ffv1 -c:a copy OUT.mkv"
            )
        changed += each <= mended[-1]
        mended.append(max(each, mended[-1] + 1))
    findings.append(
        f"{changed} of {len(times)} frames repeat a timestamp or step back; each was moved to one tick "
        f"({float(packets.time_base):.6f} s) after the frame before it"
    )
    timeline = _build_timeline(target, packets, np.array(mended, np.int64), findings, decoded.last_duration)
    return _as_counted(timeline, decoded)


def _without_times(target: Target, packets: _Packets, decoded: _Decoded, findings: list[str]) -> Timeline:
    """No timestamps: those of decoding where they rise, else a constant rate."""
    dts = [each for each in decoded.dts if each is not None]
    rises = len(dts) == len(decoded.dts) and all(a < b for a, b in pairwise(dts))
    if rises and not target.is_rate_given:
        shift = (packets.first_dts or 0) - dts[0]
        pts = np.array(dts, np.int64) + shift
        findings.append("frames carry no presentation time; the order and time of decoding were used")
        return _as_counted(_build_timeline(target, packets, pts, findings, decoded.last_duration), decoded)
    rate = target.frame_rate or _FALLBACK_RATE
    how = "as given" if target.is_rate_given else "from its header" if target.frame_rate else "a guess"
    findings.append(
        f"the file has no timestamps; {float(rate):.6g} frames a second were assumed ({how}); "
        "give the true rate with --rate if that is wrong"
    )
    counted = Timeline(
        time_base=1 / rate,
        pts=np.arange(len(decoded.pts), dtype=np.int64),
        last_duration=1,
        key_pts=np.zeros(0, np.int64),
        key_dts=np.zeros(0, np.int64),
        reading="scan",
        findings=tuple(findings),
    )
    return _as_counted(counted, decoded)


def _as_counted(timeline: Timeline, decoded: _Decoded) -> Timeline:
    """A timeline whose timestamps are not the file's: read from the start and count."""
    broken = sorted({min(before, len(timeline) - 1) for _, before in decoded.failed})
    none = np.zeros(0, np.int64)
    return replace(
        timeline,
        reading="scan",
        is_synthetic=True,
        was_decoded=True,
        broken=tuple(broken),
        key_pts=none,
        key_dts=none,
    )


def _build_timeline(
    target: Target, packets: _Packets, pts: Ticks, findings: Sequence[str], last_duration: int = 0
) -> Timeline:
    base = packets.time_base
    for edge in (int(pts[0]), int(pts[-1])):
        if abs(edge * base) > _MAX_SECONDS:
            raise MediaError(
                f"{target.source.uri}: a frame lies at {float(edge * base):.0f} s; that is damage. "
                "Give the clip a new clock: ffmpeg -fflags +genpts+igndts -i IN -map 0 -c copy OUT.mkv"
            )
    last = packets.durations.get(int(pts[-1]), 0) or last_duration
    if last <= 0 and len(pts) > 1:
        last = int(np.median(np.diff(pts)))
    if last <= 0:
        last = round(1 / (target.frame_rate or _FALLBACK_RATE) / base)
    keys = sorted(set(packets.keys))
    keys = [each for each in keys if each[0] <= int(pts[-1])]
    all_findings = [*findings, *_find_gaps(pts, base)]
    if packets.container_end_s is not None:
        short = packets.container_end_s - (int(pts[-1]) + last) * base
        if short > 2:
            all_findings.append(f"the picture ends {float(short):.2f} s before the file says that it does")
    return Timeline(
        time_base=base,
        pts=pts,
        last_duration=max(1, last),
        key_pts=np.array([each[0] for each in keys], np.int64),
        key_dts=np.array([each[1] for each in keys], np.int64),
        reading="seek",
        findings=tuple(all_findings),
    )


def _find_gaps(pts: Ticks, base: Fraction) -> list[str]:
    if len(pts) < 3:
        return []
    steps = np.diff(pts)
    usual = float(np.median(steps))
    long = steps > 1.9 * usual
    findings = []
    if np.mean(np.abs(steps - usual) <= max(1, 0.02 * usual)) > 0.9 and long.any():
        first = int(long.argmax())
        findings.append(
            f"{int(long.sum())} frames (the first is {first}) stay for more than one frame's time: frames "
            "were lost or left out when the clip was made"
        )
    widest = int(steps.argmax())
    seconds = float(int(steps[widest]) * base)
    if seconds > 10 and steps[widest] > 50 * np.median(steps):
        findings.append(f"frame {widest} is shown for {seconds:.1f} s: a gap, kept")
    return findings
