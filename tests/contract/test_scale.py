from __future__ import annotations

from pathlib import Path

import pytest

from tests.scale import on_folder, on_s3


@pytest.mark.parametrize("place", [on_folder, on_s3], ids=["folder", "s3"])
def test_a_shard_costs_at_most_six_requests_and_is_made_once(place, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with place(tmp_path, 500, 8) as scale:
        assert scale.missing == 0
        assert scale.made_twice == 0
        assert scale.requests_per_shard <= 6, scale.requests
