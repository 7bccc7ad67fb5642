"""What workers ask of S3 over a whole run, by the real claims code on a simulated clock."""

from __future__ import annotations

from pathlib import Path

from tests.waiting import simulate


def test_the_cost_of_waiting_does_not_grow_with_the_workers(tmp_path: Path) -> None:
    small = simulate(tmp_path, 40, 200)
    large = simulate(tmp_path, 120, 600)
    assert small.made == 200 and large.made == 600, "a dead worker's shard was not taken over"
    assert large.per_shard < 8.5 and large.per_shard < 1.25 * small.per_shard
