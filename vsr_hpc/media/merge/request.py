"""What is asked of a merge, and the part of the clip that it covers."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from vsr_hpc.media.clip.clip import Clip
from vsr_hpc.media.encode.encoding import Encoding
from vsr_hpc.media.merge.container_plan import StreamsRequest
from vsr_hpc.media.picture import Picture
from vsr_hpc.media.source import Source
from vsr_hpc.media.timeline import Timeline

_EVER = Fraction(10**9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Frames [start, stop) of a timeline, and the time that other streams are cut to.

    `begin` is the time of the first frame. Sound may begin, or be primed, before the clip's first picture,
    and go on after its last: `window` is open there.
    """

    start: int
    stop: int
    begin: Fraction
    window: tuple[Fraction, Fraction]
    is_cut: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergeRequest:
    """The source with its timeline, the segments' picture and encoding, and what other streams are wanted.

    `frames` is the range of the timeline that the segments cover; None is all of it.
    """

    clip: Clip
    timeline: Timeline
    source: Source
    picture: Picture
    encoding: Encoding
    streams: StreamsRequest
    frames: tuple[int, int] | None = None

    @property
    def span(self) -> Span:
        timeline = self.timeline
        start, stop = self.frames or (0, len(timeline))
        begin = int(timeline.pts[start]) * timeline.time_base
        end = int(timeline.pts[stop]) * timeline.time_base if stop < len(timeline) else _EVER
        return Span(
            start=start,
            stop=stop,
            begin=begin,
            window=(begin if start else -_EVER, end),
            is_cut=(start, stop) != (0, len(timeline)),
        )
