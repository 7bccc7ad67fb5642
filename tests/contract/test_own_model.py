"""A model that only the submitting machine has goes with the run: workers elsewhere plan and work with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.test_repeats import small_card
from tests.runs import tiny_job
from vsr_hpc.run import model_copy as staging
from vsr_hpc.run.run import Run
from vsr_hpc.storage.folder_store import FolderStore
from vsr_hpc.system.interrupts import StopFlag
from vsr_hpc.work import worker


@pytest.mark.parametrize("kind", ["a file", "an imported card"])
def test_a_worker_plans_with_a_model_of_another_machines_own(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small_card(tmp_path, "mine", seed=3)
    job = tiny_job(tmp_path, model="mine" if kind == "an imported card" else str(tmp_path / "mine.pth"))
    run = Run.create(FolderStore(tmp_path / "run"), job)
    staging.stage(run, job.model)

    (tmp_path / "mine.pth").unlink()  # and now elsewhere
    for each in ("DATA", "CACHE"):
        monkeypatch.setenv(f"XDG_{each}_HOME", str(tmp_path / f"other-{each}"))
    outcome = worker.work(run.uri, worker.WorkerOptions(threads=1), StopFlag())
    assert outcome.is_complete
    assert run.done() is not None
    assert run.plan.card.name == "mine"


def test_a_model_of_the_package_needs_no_card_in_the_run(tmp_path: Path) -> None:
    run = Run.create(FolderStore(tmp_path / "run"), tiny_job(tmp_path))
    staging.stage(run, "bicubic")
    assert staging.card_of(run) is None
