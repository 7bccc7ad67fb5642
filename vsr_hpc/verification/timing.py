"""Compares the timestamps of an output with those of its source."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import gcd
from typing import Literal

import numpy as np

from vsr_hpc.media.timeline import Timeline
from vsr_hpc.verification.headers import Check
from vsr_hpc.verification.packets import ms, some


# --- time
def common_offset(
    timeline: Timeline, frames: tuple[int, int], shown: Timeline
) -> tuple[Fraction | None, Fraction]:
    """What was added to every timestamp, and how far the frames stray from one common value (both in s)."""
    count = min(frames[1] - frames[0], len(shown))
    if not count:
        return None, Fraction(0)
    ours, theirs = timeline.time_base, shown.time_base
    unit = Fraction(gcd(ours.numerator * theirs.denominator, theirs.numerator * ours.denominator), 1)
    unit /= ours.denominator * theirs.denominator
    before = timeline.pts[frames[0] : frames[0] + count].astype(object) * int(ours / unit)
    after = shown.pts[:count].astype(object) * int(theirs / unit)
    drift = after - before
    ordered = sorted(int(each) for each in drift)
    low, high = ordered[0], ordered[-1]
    if (high - low) * unit > theirs:  # strays must not pull the rest along
        return ordered[count // 2] * unit, (high - low) * unit
    if max(abs(low), abs(high)) * unit <= theirs / 2:  # rounding to the output's tick, no offset
        return Fraction(0), (high - low) * unit
    return Fraction(low + high, 2) * unit, (high - low) * unit


def timing_faults(
    timeline: Timeline, frames: tuple[int, int], shown: Timeline, track_end: int | None = None
) -> Iterator[tuple[Check | Literal["last"], str]]:
    """Count, timestamps to half an output tick after one common offset, and the last frame's duration.

    MP4 keeps durations in coding order: that of the frame shown last is told by the end of the track.
    """
    start, stop = frames
    wanted, tick = stop - start, shown.time_base
    if len(shown) != wanted:
        yield "frames", f"{len(shown)} frames, the source has {wanted}{_lost(timeline, frames, shown)}"
        return
    _, spread = common_offset(timeline, frames, shown)
    if spread > tick:
        worst = _strayed(timeline, frames, shown)
        yield (
            "time",
            f"timestamps differ by {ms(spread)} beyond one common offset, one tick ({ms(tick)}) is "
            f"allowed; first at frame {worst}",
        )
    last = timeline.durations[stop - 1] * timeline.time_base
    ends = [shown.last_duration, *([] if track_end is None else [track_end - int(shown.pts[-1])])]
    off = min((each * tick - last for each in ends), key=abs)
    if abs(off) > tick:
        yield "last", f"the last frame is shown for {ms(last + off)}, in the source for {ms(last)}"


def _strayed(timeline: Timeline, frames: tuple[int, int], shown: Timeline) -> int:
    """The first frame whose shift is not that of most frames."""
    before = (timeline.pts[frames[0] : frames[1]] - timeline.pts[frames[0]]).astype(np.float64)
    after = (shown.pts - shown.pts[0]).astype(np.float64)
    drift = after * float(shown.time_base) - before * float(timeline.time_base)
    return int(np.argmax(np.abs(drift - np.median(drift)) > float(shown.time_base) * 0.51))


def _lost(timeline: Timeline, frames: tuple[int, int], shown: Timeline) -> str:
    """Which of the source's timestamps have no frame, as far as the clocks tell."""
    start, stop = frames
    if len(shown) > stop - start or not len(shown):
        return ""
    before = (timeline.pts[start:stop] - timeline.pts[start]) * float(timeline.time_base)
    after = (shown.pts - shown.pts[0]) * float(shown.time_base)
    slack = float(shown.time_base) * 1.01
    place = np.clip(np.searchsorted(after, before), 1, max(1, len(after) - 1))
    near = np.minimum(
        np.abs(after[np.minimum(place, len(after) - 1)] - before), np.abs(after[place - 1] - before)
    )
    lost = np.flatnonzero(near > slack)
    return f"; nothing is shown at frame {some([str(start + int(i)) for i in lost])}" if len(lost) else ""
