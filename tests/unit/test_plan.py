from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr_hpc.planning.cutting import chunk_borders, shard_borders
from vsr_hpc.planning.plan import PlanError

LIGHT, HEAVY = 1e6, 1e13


@given(
    start=st.integers(0, 1000),
    frames=st.integers(1, 100_000),
    rate=st.sampled_from([Fraction(24), Fraction(30000, 1001), Fraction(1), Fraction(240)]),
    operations=st.sampled_from([LIGHT, HEAVY, 1e16]),
    chunk_s=st.one_of(st.none(), st.floats(0.01, 600)),
)
@settings(max_examples=300, deadline=None)
def test_chunks_cover_every_frame_once_and_are_never_one_frame_beside_others(
    start: int, frames: int, rate: Fraction, operations: float, chunk_s: float | None
) -> None:
    borders = chunk_borders(
        start, start + frames, frame_rate=rate, operations_per_frame=operations, chunk_s=chunk_s
    )
    lengths = [after - before for before, after in itertools.pairwise(borders)]
    assert borders[0] == start
    assert borders[-1] == start + frames
    assert min(lengths) >= min(2, frames)
    assert max(lengths) - min(lengths) <= 1


def test_chunks_are_about_ten_seconds_and_shorter_for_heavy_networks() -> None:
    light = chunk_borders(0, 2400, frame_rate=Fraction(24), operations_per_frame=LIGHT)
    heavy = chunk_borders(0, 2400, frame_rate=Fraction(24), operations_per_frame=HEAVY)
    assert len(light) - 1 == 10
    assert len(heavy) - 1 == 60


def test_an_empty_range_has_no_chunks() -> None:
    with pytest.raises(PlanError, match="empty"):
        chunk_borders(5, 5, frame_rate=Fraction(24), operations_per_frame=LIGHT)


@given(
    chunks=st.integers(1, 5000),
    speed=st.one_of(st.none(), st.floats(1e-4, 100)),
    shard_s=st.floats(1, 600),
    workers=st.integers(1, 100),
)
@settings(max_examples=300, deadline=None)
def test_shards_are_whole_chunks_and_leave_work_for_every_worker(
    chunks: int, speed: float | None, shard_s: float, workers: int
) -> None:
    borders = shard_borders(
        tuple(range(0, 24 * chunks + 1, 24)), seconds_per_frame=speed, shard_s=shard_s, workers=workers
    )
    assert borders[0] == 0
    assert borders[-1] == chunks
    assert all(after > before for before, after in itertools.pairwise(borders))
    assert len(borders) - 1 >= min(chunks, workers)


def test_chunk_borders_do_not_move_with_speed_or_workers() -> None:
    chunks = chunk_borders(0, 5000, frame_rate=Fraction(25), operations_per_frame=LIGHT)
    slow = shard_borders(chunks, seconds_per_frame=1.0, shard_s=45, workers=1)
    fast = shard_borders(chunks, seconds_per_frame=0.001, shard_s=45, workers=1)
    assert len(slow) > len(fast)
    assert {chunks[at] for at in slow} >= {chunks[0], chunks[-1]}
    assert {chunks[at] for at in fast} <= set(chunks)
