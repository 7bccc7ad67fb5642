"""Cuts a clip into chunks and shards; the borders depend on clip and settings alone."""

from __future__ import annotations

import itertools
from fractions import Fraction

from vsr_hpc.job.spec import JobSpec
from vsr_hpc.media.clip.clip import Clip
from vsr_hpc.models.cards import Card
from vsr_hpc.models.network_costs import kept_bytes_per_pixel
from vsr_hpc.planning.plan import PlanError, Temporal

WINDOW_BYTES = 6 << 30
_SMALLEST_WINDOW = 4

_CHUNK_S = 10.0
_SHORTEST_CHUNK_S = 1.0
_CHUNK_OPERATIONS = 4e14


def longest_window(card: Card, pixels: int) -> int:
    """How many frames' features fit into the memory that a window may take."""
    kept = kept_bytes_per_pixel(card.network, dict(card.parameters), sample_bytes=4)
    return max(_SMALLEST_WINDOW, WINDOW_BYTES // max(1, kept * pixels))


def window_of(job: JobSpec, card: Card, clip: Clip) -> tuple[int, int] | None:
    """(longest window, context) in frames of a video network; None for other models."""
    if not card.is_recurrent:
        return None
    longest, context = job.picture.window, job.picture.context
    if longest == "auto":
        longest = longest_window(card, clip.picture.width * clip.picture.height)
    return longest, card.context if context == "auto" else context


def chunk_borders(
    start: int,
    stop: int,
    *,
    frame_rate: Fraction,
    operations_per_frame: float,
    chunk_s: float | None = None,
    temporal: Temporal | None = None,
) -> tuple[int, ...]:
    """Cut frames [start, stop) into chunks of nearly equal length, from clip, card and settings alone.

    About ten seconds each; fewer frames where a frame is heavy; never a single frame beside others. For a
    video network at least four contexts long, and with borders at scene cuts near by: nothing is seen twice
    there.
    """
    frames = stop - start
    if frames < 1:
        raise PlanError(f"frames [{start}, {stop}) are empty")
    if chunk_s is None:
        affordable = Fraction(_CHUNK_OPERATIONS / max(operations_per_frame, 1.0))
        longest = Fraction(_CHUNK_S) * frame_rate
        wanted = max(min(longest, affordable), Fraction(_SHORTEST_CHUNK_S) * frame_rate, Fraction(2))
        wanted = max(wanted, Fraction(4 * temporal.context if temporal else 0))
    else:
        wanted = max(Fraction(chunk_s) * frame_rate, Fraction(2))
    count = max(1, min(round(frames / wanted), frames // 2))
    borders = tuple(start + frames * i // count for i in range(count + 1))
    return borders if temporal is None else _at_cuts(borders, temporal.cuts)


def _at_cuts(borders: tuple[int, ...], cuts: tuple[int, ...]) -> tuple[int, ...]:
    """Each inner border at the nearest cut within a quarter of a chunk, where there is one."""
    reach = min(stop - start for start, stop in itertools.pairwise(borders)) // 4
    moved = [
        min(
            (cut for cut in cuts if abs(cut - border) <= reach),
            key=lambda cut: abs(cut - border),
            default=border,
        )
        for border in borders[1:-1]
    ]
    return (borders[0], *moved, borders[-1])


def shard_borders(
    chunks: tuple[int, ...], *, seconds_per_frame: float | None, shard_s: float, workers: int
) -> tuple[int, ...]:
    """Group chunks into shards of about `shard_s` seconds of work; where it can be, four for each worker."""
    count = len(chunks) - 1
    frames_per_chunk = (chunks[-1] - chunks[0]) / count
    chunk_time_s = frames_per_chunk * (seconds_per_frame or 0.0)
    per_shard = max(1, int(shard_s / chunk_time_s)) if chunk_time_s else 1
    per_shard = max(1, min(per_shard, count // (4 * workers)))
    shards = -(-count // per_shard)
    return tuple(count * i // shards for i in range(shards + 1))
