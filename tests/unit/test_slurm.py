"""What the Slurm executor decides without a Slurm: names, parameters, clean environments, containers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.runs import planned_run, tiny_job
from vsr_hpc.errors import JobError
from vsr_hpc.executors.slurm import commands as slurm_commands
from vsr_hpc.executors.slurm.finish_task import was_cancelled_by_user, why_no_other_round
from vsr_hpc.executors.slurm.jobs import names_of
from vsr_hpc.executors.slurm.submission import parameters
from vsr_hpc.executors.slurm.worker_task import Place, inside
from vsr_hpc.job.reading import parse_job
from vsr_hpc.job.spec import ContainerSection, SlurmSection
from vsr_hpc.models import weights
from vsr_hpc.models.networks import Compact
from vsr_hpc.run.documents import Heartbeat, Poison
from vsr_hpc.run.model_copy import bring, stage


def given(section: SlurmSection, **flags: str) -> dict[str, object]:
    return parameters(
        section, name="vsr-x", uri="/x", partition="spot", gpus=1, workers=9, exclude=("n1",), flags=flags
    )


def test_every_task_takes_one_node_and_comes_back() -> None:
    made = given(SlurmSection(sbatch={"reservation": "night"}), begin="now+60")
    assert (made["nodes"], made["tasks_per_node"], made["slurm_array_parallelism"]) == (1, 1, 9)
    assert made["slurm_additional_parameters"] == {"requeue": True, "begin": "now+60", "reservation": "night"}
    assert made["slurm_exclude"] == "n1"


def test_keys_that_vsr_sets_itself_are_refused() -> None:
    document = {"input": "a", "output": "b", "model": "nearest", "slurm": {"sbatch": {"array": "0-9"}}}
    with pytest.raises(JobError, match="array is set by vsr itself"):
        parse_job(document, "test")


def test_job_names_tell_runs_of_equal_files_apart(tmp_path: Path) -> None:
    runs = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        runs.append(planned_run(tiny_job(folder)))
    first, second = (names_of(run) for run in runs)
    assert first.workers != second.workers and first.workers.startswith("vsr-out.mkv-")


def test_submission_inside_a_job_sees_nothing_of_that_job(monkeypatch: pytest.MonkeyPatch) -> None:
    leaking = {
        "SLURM_JOB_ID": "7",
        "SLURM_MEM_PER_CPU": "1",
        "SBATCH_PARTITION": "x",
        "CUDA_VISIBLE_DEVICES": "0",
    }
    kept = {"SLURM_CONF": "/etc/slurm.conf", "HOME": "/home/x"}
    for name, value in {**leaking, **kept}.items():
        monkeypatch.setenv(name, value)
    with slurm_commands.clean_environment():
        assert not set(leaking) & set(os.environ)
        assert all(os.environ[name] == value for name, value in kept.items())
    assert all(os.environ[name] == value for name, value in leaking.items())


def test_environment_of_a_login_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("SBATCH_ACCOUNT", "film")
    with slurm_commands.clean_environment():
        assert os.environ["SBATCH_ACCOUNT"] == "film"


def test_requeued_task_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ARRAY_JOB_ID": "12",
        "ARRAY_TASK_ID": "3",
        "JOB_ID": "15",
        "CLUSTER_NAME": "c",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    first = Place.here()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = Place.here()
    assert (first.task, first.restart) == ("c-12_3", 0) and (again.task, again.restart) == ("c-12_3", 1)


def test_container_runs_the_worker_behind_its_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    image = ContainerSection(image="v.sif", args=("--bind=/data",))
    assert inside(image, ["vsr"]) == ["apptainer", "exec", "--nv", "--bind=/data", "v.sif", "vsr"]
    assert inside(image.model_copy(update={"runtime": "enroot"}), ["vsr"])[:2] == ["enroot", "start"]


def test_commands_that_are_not_there_answer_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert slurm_commands.queue(["x"]) == () and slurm_commands.setting("KillWait") is None
    assert not slurm_commands.cancel(["x"], only_pending=True)


def test_workers_killed_by_a_person_mean_no_other_round_where_slurm_has_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    run = planned_run(tiny_job(tmp_path))
    beat = Heartbeat(worker="w", host="h", node="n", pid=1, process_start=1, boot="b", task="c-1_0", round=1)
    run.beat(beat.model_copy(update={"state": "left", "note": "time limit"}))
    assert not was_cancelled_by_user(run, 1)
    run.beat(beat.model_copy(update={"worker": "v", "restart": 1, "state": "left", "note": "terminated"}))
    assert was_cancelled_by_user(run, 1)
    assert "cancelled by a person" in (why_no_other_round(run, 1) or "")


def test_nothing_follows_where_all_that_is_missing_was_set_aside(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    for shard in run.missing():
        run.poison(Poison(shard=shard, generation=1, reason="x", nodes=("n",)))
    assert "--retry-poisoned" in (why_no_other_round(run, 1) or "")


def test_executor_and_its_tasks_import_no_torch() -> None:
    code = (
        "import sys, vsr_hpc.executors.slurm.submission, vsr_hpc.executors.slurm.worker_task, vsr_hpc.launch;"
        "print('torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"


def test_weights_travel_with_the_run_to_a_machine_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "submitter"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    file = tmp_path / "net.safetensors"
    save_file(Compact(scale=2, num_feat=4, num_conv=1).state_dict(), file)
    card = weights.import_weights(file, "tiny")
    run = planned_run(tiny_job(tmp_path))
    stage(run, card.name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node"))
    bring(run)
    found = weights.ensure(card)
    assert found.is_relative_to(tmp_path / "node") and found.read_bytes() == file.read_bytes()


def test_a_job_queued_by_the_old_layout_ends_with_one_sentence() -> None:
    pickled = b"cvsr_hpc.executors.slurm_task\nWorkerTask\n."
    answer = subprocess.run(
        [sys.executable, "-c", f"import pickle; pickle.loads({pickled!r})"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 2
    assert len(answer.stderr.splitlines()) == 1 and "vsr resume" in answer.stderr
