"""A run that lives on S3, worked by a real Slurm; and tasks that Slurm brings back when they end with 75."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.moto_server import Moto, moto_server
from tests.slurm.fixtures import ROOT, DevCluster, Options
from tests.slurm.submitted import PATIENCE_S, Submitted
from vsr_hpc.executors.slurm.jobs import failures
from vsr_hpc.run.run import Run

pytestmark = pytest.mark.slurm

REQUEUES = Options(spot=1, ondemand=0, kill_wait_s=2, requeue_delay_s=5, extra=("RequeueExit=75",))
"""As cluster-config/*.yaml have it."""


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    with moto_server() as server:
        server.make_bucket("films")
        yield server


class OnS3(Submitted):
    """A job whose run is on S3; source and output are on the shared disk."""

    def __init__(
        self, moto: Moto, cluster: DevCluster, name: str, *, run: dict[str, Any], **how: Any
    ) -> None:
        self.moto, self.uri = moto, f"s3://films/{name}"
        super().__init__(cluster, name, run={**run, "location": self.uri}, **how)

    @property
    def run(self) -> Run:
        return Run.open(self.uri)

    def vsr(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.cluster.run_as_user(
            ["vsr", *argv], env=self.moto.environment, check=check, timeout_s=PATIENCE_S
        )


def test_three_workers_on_a_run_in_s3_make_the_bytes_of_a_run_in_a_folder(
    cluster: DevCluster, moto: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    film = OnS3(moto, cluster, "s3", frames=96, slow_s=0.15, run={"workers": 3})
    assert film.submit() == film.uri
    sha256 = film.wait_done()
    beats = film.run.heartbeats()
    assert film.run.rounds()[0].workers == 3
    assert {beat.node for beat in beats} <= set(cluster.spot_nodes)  # a slow start may come too late to help
    receipts = film.run.receipts()
    assert len(receipts) == film.run.plan.shard_count == 24
    assert {receipt.worker for receipt in receipts} <= {beat.worker for beat in beats}
    assert film.wait_ended(kind="finish") == ["CANCELLED"], "the worker that was last finishes the run"
    assert not (film.folder / ".vsr/out.mkv").exists(), "the run was to be on S3 alone"
    film.write()
    assert sha256 == film.alone()


def test_a_task_that_always_ends_with_75_does_not_come_back_for_ever(
    make_cluster: Callable[[Options], DevCluster],
) -> None:
    cluster = make_cluster(REQUEUES)
    film = Submitted(cluster, "sick", frames=24, sick=cluster.spot_nodes[0], run={"workers": 1})
    film.submit()
    assert film.wait_ended() == ["FAILED"]
    task = cluster.task(film.job())
    assert task.restarts == 3, "three restarts by RequeueExit, then an end that Slurm leaves alone"
    folder = Path(json.loads(film.run.store.read("jobs/1.json"))["folder"])
    (failure,) = [each for each in failures(folder) if each.job.startswith(film.job())]
    assert (failure.code, failure.times) == (1, 4) and "not tried again" in failure.text
    assert "avoid" in failure.text or "nonsense" in failure.text
    film.vsr("cancel", str(film.output))


@pytest.mark.parametrize("script", ["worker.sbatch", "upscale.sbatch"])
def test_a_plain_batch_script_that_came_back_too_often_ends_for_good(script: str, tmp_path: Path) -> None:
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\nexit 75\n")
    srun.chmod(0o755)
    for restarts, code in ((0, 75), (31, 1)):
        environment = {
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "SLURM_CPUS_PER_TASK": "1",
            "SLURM_RESTART_COUNT": str(restarts),
        }
        command = ["bash", str(ROOT / "slurm" / script), "in", "out"]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == code, ended.stderr
    assert "31 times" in ended.stderr
