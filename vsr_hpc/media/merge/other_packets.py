"""The packets of the source's other streams: shifted, cut to the range, converted where that is planned."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import av

from vsr_hpc.errors import MediaError
from vsr_hpc.media.ffmpeg_errors import reason
from vsr_hpc.media.merge.container_plan import ContainerPlan
from vsr_hpc.media.merge.other_streams import Track, convert_text, first_keys, trimmed
from vsr_hpc.media.merge.request import MergeRequest
from vsr_hpc.media.merge.segment_packets import nearest
from vsr_hpc.system.progress import tick

log = logging.getLogger(__name__)

_PREROLL_S = Fraction(1, 4)
"""Sound decoded before a range, for decoders that need a while to be right."""
_COPIED_VIDEO = ("video", "copy", False)


class OtherPackets:
    """Carries the packets of `tracks`. `keys` says when each copied video shows its first key picture."""

    def __init__(
        self,
        request: MergeRequest,
        muxer: str,
        tracks: dict[int, Track],
        keys: dict[int, Fraction],
        offset: Fraction,
    ) -> None:
        self.request, self.muxer, self.tracks, self.keys, self.offset = request, muxer, tracks, keys, offset
        self.span = request.span

    def read(self, container: Any) -> Iterator[tuple[Fraction, Any]]:
        """Packets of the source's other streams, shifted, cut to the range, converted where planned."""
        if not self.tracks:
            return
        for stream in container.streams:
            if stream.index not in self.tracks:
                stream.discard = av.stream.Discard.all
        last = Fraction(0)
        for packet in self._demux(container):
            track = self.tracks[packet.stream_index]
            for made in self._carry(track, packet):
                if made.dts is not None:
                    last = made.dts * made.time_base
                yield last, made
        for track in self.tracks.values():
            for made in self._show_screen(track):
                yield last, made
            if track.encoder is not None:
                for made in track.encoder.encode(None):
                    yield last, self._place(track, made)

    def _demux(self, container: Any) -> Iterator[Any]:
        streams = [container.streams[index] for index in self.tracks]
        iterator = container.demux(*streams)
        try:
            for packet in iterator:
                tick()
                if packet.size and packet.stream_index in self.tracks:
                    yield packet
        except av.FFmpegError as exc:
            raise MediaError(
                f"{self.request.source.uri}: its other streams cannot be read ({reason(exc)}); "
                "leave them out with --audio none and --drop KIND"
            ) from exc
        finally:
            iterator.close()  # see decoder.py

    def _carry(self, track: Track, packet: Any) -> Iterator[Any]:
        base = packet.time_base
        if packet.pts is None:
            packet.pts = packet.dts
        if packet.pts is None:
            packet.pts = packet.dts = nearest((track.next_pts or Fraction(0)) / base)
        begin = packet.pts * base
        if track.samples is not None:
            rest = track.samples - begin
            packet.duration = min(packet.duration or 0, nearest(max(rest, Fraction(0)) / base))
        duration = (packet.duration or 0) * base
        track.next_pts = begin + duration
        if track.plan.is_cover:
            packet.pts = packet.dts = nearest(-self.offset / base)
        elif track.screen is not None and begin <= self.span.window[0]:
            track.screen.note(packet)
            return
        elif self.span.is_cut and not self._is_inside(track, packet, begin, begin + duration):
            return
        yield from self._show_screen(track)
        if track.plan.action == "transcode":
            yield from self._recode(track, packet)
            return
        if track.plan.action == "text":
            converted = convert_text(packet, track)
            if converted is None:
                return
            packet = converted
        if self.span.is_cut and track.plan.kind == "subtitle":
            first, last = max(begin, self.span.window[0]), min(begin + duration, self.span.window[1])
            packet.pts = packet.dts = nearest(first / base)
            packet.duration = nearest(max(last - first, Fraction(0)) / base)
        yield self._place(track, packet)

    def _show_screen(self, track: Track) -> Iterator[Any]:
        """What a subtitle track shows when the range begins."""
        first, last = self.span.window
        for packet in track.screen.take() if track.screen is not None else ():
            base = packet.time_base
            end = (packet.pts + packet.duration) * base if packet.duration else None
            if end is not None and end <= first:
                continue
            packet.pts = packet.dts = nearest(first / base)
            packet.duration = 0 if end is None else nearest((min(end, last) - first) / base)
            yield self._place(track, packet)

    def _is_inside(self, track: Track, packet: Any, begin: Fraction, end: Fraction) -> bool:
        first, last = self.span.window
        if track.plan.kind == "subtitle":
            return begin < last and (end > first or begin >= first)
        if track.plan.action == "transcode":  # what is decoded is cut to the sample
            return end > first - _PREROLL_S and begin < last
        if track.plan.kind == "video":
            # whole groups in decoding order: without what they refer to, pictures are lost anyway
            decoded = begin if packet.dts is None else packet.dts * packet.time_base
            return begin >= self.keys[track.plan.index] and decoded < last
        return first <= begin < last

    def _place(self, track: Track, packet: Any) -> Any:
        """The packet in the output's clock; dts made to rise where a broken source's does not.

        Matroska takes equal ones, and has many where packets are shorter than its tick (TrueHD: 1200 per s).
        """
        base, out = packet.time_base, track.out.time_base
        least = int(self.muxer in ("mp4", "mov") and track.plan.kind != "subtitle")
        pts = nearest((packet.pts * base + self.offset) / out)
        dts = pts if packet.dts is None else nearest((packet.dts * base + self.offset) / out)
        if track.last_dts is not None and dts < track.last_dts + least:
            dts = track.last_dts + least
            track.mended += 1
        pts = max(pts, dts)
        packet.duration = nearest((packet.duration or 0) * base / out)
        packet.pts, packet.dts, packet.time_base = pts, dts, out
        packet.stream = track.out
        track.last_dts = dts
        return packet

    def _recode(self, track: Track, packet: Any) -> Iterator[Any]:
        try:
            decoded = packet.decode()
        except av.FFmpegError as exc:
            track.mended += 1
            log.warning("sound packet lost stream=%s error=%s", track.name, reason(exc))
            return
        for frame in decoded:
            if self.span.is_cut:
                frame = trimmed(frame, self.span.window)
            if frame is None:
                continue
            for made in track.encoder.encode(frame):
                yield self._place(track, made)


def drop_videos_without_key(
    request: MergeRequest, plan: ContainerPlan, notes: list[str]
) -> tuple[ContainerPlan, dict[int, Fraction]]:
    """Copied videos of a range begin at a key picture; one that has none there is left out of the plan."""
    span = request.span
    if not span.is_cut:
        return plan, {}
    videos = [e.index for e in plan.streams if (e.kind, e.action, e.is_cover) == _COPIED_VIDEO]
    keys = first_keys(request.source, videos, span.window)
    for index in videos:
        name = f"stream {index} (video)"
        if index not in keys:
            notes.append(f"{name}: left out, no key picture of it lies in the range")
        elif keys[index] > span.begin:
            late = float(keys[index] - span.begin)
            notes.append(f"{name}: begins {late:.3f} s late, at its first key picture")
    lost = set(videos) - set(keys)
    return replace(plan, streams=tuple(each for each in plan.streams if each.index not in lost)), keys
