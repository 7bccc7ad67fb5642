"""Frames that repeat bit by bit: made once, within a chunk alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from vsr_hpc.engine.duplicates import REMEMBERED, Repeats
from vsr_hpc.media.picture import Frame


def frames(values: Sequence[int], first: int = 0) -> list[Frame]:
    return [
        Frame(index=first + i, planes=(np.full((4, 6), value, np.uint8), np.zeros((2, 3), np.uint8)))
        for i, value in enumerate(values)
    ]


def made(wanted: Sequence[Frame]) -> list[Frame]:
    return [Frame(index=each.index, planes=tuple(plane + 1 for plane in each.planes)) for each in wanted]


def through(repeats: Repeats, chunk: int, batch: list[Frame]) -> tuple[int, list[int]]:
    """(how many were made, the value of each result)."""
    chosen = repeats.sort(chunk, batch)
    done = repeats.complete(chosen, made(chosen.fresh))
    assert [each.index for each in done] == [each.index for each in batch]
    return len(chosen.fresh), [int(each.planes[0][0, 0]) for each in done]


def test_each_frame_gets_its_own_result_and_repeats_are_not_made() -> None:
    repeats = Repeats()
    assert through(repeats, 0, frames([5, 5, 5, 7, 7, 5])) == (2, [6, 6, 6, 8, 8, 6])
    assert repeats.saved == {0: 4}


def test_what_was_seen_in_an_earlier_batch_counts_and_an_earlier_chunk_does_not() -> None:
    repeats = Repeats()
    through(repeats, 0, frames([5]))
    assert through(repeats, 0, frames([5, 6], first=1)) == (1, [6, 7])
    assert through(repeats, 1, frames([5, 6], first=3)) == (2, [6, 7])
    assert repeats.saved == {0: 1, 1: 0}


def test_only_a_few_different_frames_are_remembered() -> None:
    repeats = Repeats()
    many = list(range(REMEMBERED + 1))
    assert through(repeats, 0, frames([*many, 0]))[0] == len(many) + 1


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_batches_and_results_that_lag_behind_change_nothing(size: int) -> None:
    values = [1, 1, 2, 1, 3, 4, 5, 6, 1, 6, 6, 2]
    repeats, begun, results = Repeats(), [], []
    for start in range(0, len(values), size):
        begun.append(repeats.sort(0, frames(values[start : start + size], first=start)))
        if len(begun) > 2:  # as lanes have it: sorted ahead, completed in order
            each = begun.pop(0)
            results += repeats.complete(each, made(each.fresh))
    for each in begun:
        results += repeats.complete(each, made(each.fresh))
    assert [int(each.planes[0][0, 0]) for each in results] == [value + 1 for value in values]


def test_one_bit_in_one_plane_makes_another_frame() -> None:
    one, other = frames([5, 5])
    other.planes[1][1, 1] = 1
    assert len(Repeats().sort(0, [one, other]).fresh) == 2
