"""The merge: segments' packets under the source's own timestamps, its other streams beside them.

Nothing is re-encoded here but sound on request. Packets stream through; memory does not grow with the clip.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Generator, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from vsr_hpc.errors import BackendError, JobError, MediaError, SpaceError, VerifyError
from vsr_hpc.media.ffmpeg_errors import reason
from vsr_hpc.media.merge.container_plan import ContainerPlan, plan_container
from vsr_hpc.media.merge.header_edits import edit_matroska_file, edit_mov_languages, remove_other_location
from vsr_hpc.media.merge.live_output import Outlet
from vsr_hpc.media.merge.other_packets import OtherPackets, drop_videos_without_key
from vsr_hpc.media.merge.other_streams import Peek, peek_source
from vsr_hpc.media.merge.output_header import OutputHeader
from vsr_hpc.media.merge.request import MergeRequest
from vsr_hpc.media.merge.segment_packets import (
    Fetched,
    numbered_packets,
    open_segment,
    output_ticks,
    retime,
)
from vsr_hpc.media.segment import MergeReport, SegmentPart
from vsr_hpc.media.source import open_input
from vsr_hpc.system.files import flush_and_hash

log = logging.getLogger(__name__)

_FROM_SOURCE = ("copy", "text", "transcode", "cover", "attach")


def merge(
    segments: Sequence[SegmentPart], request: MergeRequest, output: Path, *, name: Path | None = None
) -> MergeReport:
    """Write `output` (flushed to disk) from all segments in order and the source's other streams.

    `output` may be a temporary name; `name` is then the one whose suffix chooses the container. On any error
    the file is removed and nothing else touched.
    """
    work = _Merge(request, _plan(segments, request, name or output), is_live=False)
    try:
        with _translate_errors(output):
            return work.run(segments, output)
    except BaseException:
        output.unlink(missing_ok=True)
        raise


def stream_merge(
    segments: Sequence[SegmentPart], request: MergeRequest, name: Path
) -> Generator[bytes, None, None]:
    """What `merge` would write to `name`, in pieces for somebody who reads along.

    Packets and timestamps are the same; the container is one that needs no look back: MP4 in fragments, or
    Matroska without its index and duration. A segment is fetched when its turn comes, so it may still be in
    the making when the first piece goes out.
    """
    work = _Merge(request, _plan(segments, request, name), is_live=True)
    outlet = Outlet()
    with _translate_errors(name):
        for _ in work.write(segments, outlet):
            if piece := outlet.take(work.header.edits):
                yield piece
        if piece := outlet.rest(work.header.edits):
            yield piece


def _plan(segments: Sequence[SegmentPart], request: MergeRequest, name: Path) -> ContainerPlan:
    plan = plan_container(request.clip, request.encoding, name, request.streams)
    if plan.findings:
        raise JobError.from_findings(str(name), list(plan.findings))
    span = request.span
    counted = sum(part.frames for part in segments)
    if counted != span.stop - span.start or not counted:
        raise VerifyError(
            f"{name}: segments hold {counted} frames, frames [{span.start}, {span.stop}) were planned"
        )
    return plan


@contextlib.contextmanager
def _translate_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, av.FFmpegError) as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SpaceError(f"{output}: the disk is full; free space and call again") from exc
        raise BackendError(f"{output}: writing failed: {reason(exc)}") from exc


class _Merge:
    """The state of one merge; `run` is called once."""

    def __init__(self, request: MergeRequest, plan: ContainerPlan, *, is_live: bool) -> None:
        self.request, self.span = request, request.span
        self.notes = list(plan.notes)
        self.plan, self.keys = drop_videos_without_key(request, plan, self.notes)
        self.header = OutputHeader(request, self.plan, self.notes, is_live=is_live)
        self.written: set[int] = set()
        self.tick = Fraction(0)
        self.depth = 0

    def run(self, segments: Sequence[SegmentPart], output: Path) -> MergeReport:
        for _ in self.write(segments, str(output)):
            pass
        self._edit(output)
        for track in self.header.tracks.values():
            if track.last_dts is None:
                self.notes.append(f"{track.name}: holds nothing in what was asked for")
            if track.mended:
                self.notes.append(f"{track.name}: {track.mended} packets had timestamps out of order, mended")
        size, digest = flush_and_hash(output)
        frames = self.span.stop - self.span.start
        log.info("merge done output=%s frames=%d size=%d", output, frames, size)
        return MergeReport(
            frames=frames,
            size_bytes=size,
            sha256=digest,
            offset=self.header.offset,
            tick=self.tick,
            reorder_depth=self.depth,
            notes=tuple(self.notes),
        )

    def _edit(self, output: Path) -> None:
        """What the muxer cannot say, written into the finished file."""
        header = self.header
        if header.edits:
            edit_matroska_file(output, header.edits)
        if header.location is not None:
            remove_other_location(output, header.location)
        if header.languages:
            # the muxer leaves tracks without packets out, and keeps covers elsewhere
            covers = {each.out.index for each in header.tracks.values() if each.plan.is_cover}
            tracks = sorted(self.written - covers)
            edit_mov_languages(output, [header.languages.get(each, "") for each in tracks])

    def write(self, segments: Sequence[SegmentPart], target: str | Outlet) -> Iterator[None]:
        """Everything into `target`, a packet a step."""
        request, header = self.request, self.header
        wanted = [each for each in self.plan.streams if each.action in _FROM_SOURCE]
        with contextlib.ExitStack() as stack:
            fetched = Fetched(segments, stack)
            keeps_chapters = bool(request.clip.chapters) and "chapters" not in request.streams.drop
            container: Any = None
            peek = Peek(first={}, priming={}, covers={}, packets={})
            if wanted or keeps_chapters or request.clip.images is None:
                peek = peek_source(request.source, wanted)
                container = stack.enter_context(open_input(request.source))
            out: Any = av.open(target, "w", format=self.plan.muxer, options=header.options(container))
            stack.callback(_close_quietly, out)
            video = header.add_streams(out, container, fetched.path(0), peek, stack)
            header.describe(out, container)
            header.choose_offset(peek)
            if keeps_chapters:
                out.set_chapters(header.chapters(container))
            _write_header(out, self.plan.muxer)
            others = OtherPackets(request, self.plan.muxer, header.tracks, self.keys, header.offset)
            for packet in _by_time(self._read_video(fetched, video), others.read(container)):
                self._mux(out, packet)
                yield
            self.tick = video.time_base  # PyAV 19 tells it of an open container only
            out.close()

    def _read_video(self, fetched: Fetched, video: Any) -> Iterator[tuple[Fraction, Any]]:
        """Packets of all segments in coding order with the source's timestamps."""
        base = video.time_base
        shown = output_ticks(self.request.timeline, self.span.start, self.span.stop, self.header.offset, base)
        done = 0
        extradata: bytes | None = None
        for number, part in enumerate(fetched.segments):
            path = fetched.path(number)
            with open_segment(path) as segment:
                stream = segment.streams.video[0]
                if number == 0:
                    extradata = stream.codec_context.extradata
                    self.depth = int(stream.codec_context.reorder_depth)
                elif stream.codec_context.extradata != extradata:
                    raise VerifyError(
                        f"{path}: its codec headers differ from the first segment's, so one track cannot "
                        "hold both; segments of one run must come from one encoder (begin again with --new)"
                    )
                count = 0
                for local, packet in numbered_packets(segment, stream, path):
                    if local >= part.frames:
                        raise VerifyError(f"{path}: holds more than its {part.frames} frames")
                    retime(packet, shown, done + count, done + local, self.depth, base, path)
                    packet.stream = video
                    count += 1
                    yield packet.dts * base, packet
                if count != part.frames:
                    raise VerifyError(f"{path}: holds {count} frames, its receipt says {part.frames}")
            done += part.frames
            fetched.let_go(number)

    def _mux(self, out: Any, packet: Any) -> None:
        index = packet.stream_index
        self.written.add(index)
        try:
            out.mux_one(packet)
        except av.FFmpegError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            name = next((t.name for t in self.header.tracks.values() if t.out.index == index), None)
            if name is None:
                raise
            raise MediaError(
                f"{self.request.source.uri}: the {self.plan.muxer} muxer refuses a packet of {name} "
                f"({reason(exc)}); try another container or leave it out"
            ) from exc


def _write_header(out: Any, muxer: str) -> None:
    try:
        out.start_encoding()
    except av.FFmpegError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise JobError(
            f"the {muxer} muxer refuses these streams ({reason(exc)}); name another container (.mkv holds "
            "most) or leave streams out with --drop KIND"
        ) from exc


def _by_time(video: Iterator[tuple[Fraction, Any]], others: Iterator[tuple[Fraction, Any]]) -> Iterator[Any]:
    """Both in one order by decoding time; each keeps its own order, nothing is held back but two packets."""
    left, right = next(video, None), next(others, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left[0] <= right[0]):
            assert left is not None
            yield left[1]
            left = next(video, None)
        else:
            yield right[1]
            right = next(others, None)


def _close_quietly(out: Any) -> None:
    with contextlib.suppress(av.FFmpegError, OSError, ValueError):
        out.close()
