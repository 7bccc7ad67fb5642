"""Ten histories of random faults; `python -m tests.histories` plays as many as one likes."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.histories import Result, play_histories

HISTORIES = 10


@pytest.mark.timeout(1800)
def test_random_faults_leave_the_newest_plans_bytes_or_a_sentence_and_one_call_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seeds differ from run to run; VSR_HISTORIES_SEED plays those of a report again."""
    for name in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(name)
    first = int(os.environ.get("VSR_HISTORIES_SEED") or random.randrange(1_000_000))
    print(f"VSR_HISTORIES_SEED={first}")
    results = play_histories(range(first, first + HISTORIES), tmp_path)
    broken = [_report(each) for each in results if each.failure is not None]
    assert not broken, "\n".join((f"VSR_HISTORIES_SEED={first}", *broken))
    assert len(results) == HISTORIES
    assert sum(sum(each.faults.values()) for each in results) >= HISTORIES


def _report(result: Result) -> str:
    return "\n".join((str(result), *(f"    {line}" for line in result.log)))
