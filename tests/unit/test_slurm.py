"""What the Slurm executor decides without a Slurm: names, parameters, clean environments, containers."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest
from safetensors.torch import save_file

from tests.runs import planned_run, tiny_job
from vsr_hpc.errors import JobError
from vsr_hpc.executors.rounds import why_no_other_round
from vsr_hpc.executors.slurm import commands as slurm_commands
from vsr_hpc.executors.slurm.commands import QueuedTask
from vsr_hpc.executors.slurm.finish_task import conclude, is_cancelled_by_user
from vsr_hpc.executors.slurm.jobs import RoundJobs, failures, names_of
from vsr_hpc.executors.slurm.submission import parameters, pin_environment, unpack_lines
from vsr_hpc.executors.slurm.task_life import TaskLife
from vsr_hpc.executors.slurm.worker_task import WorkerTask, inside
from vsr_hpc.job.reading import parse_job
from vsr_hpc.job.spec import ContainerSection, SlurmSection
from vsr_hpc.models import weights
from vsr_hpc.models.networks import Compact
from vsr_hpc.run.documents import Heartbeat, Poison, Receipt
from vsr_hpc.run.liveness import Process
from vsr_hpc.run.model_copy import bring, stage
from vsr_hpc.run.run import Run
from vsr_hpc.system.interrupts import Reason, StopFlag
from vsr_hpc.work import finish
from vsr_hpc.work.worker import WorkerOptions, work


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


def packed(folder: Path, word: str) -> Path:
    """A packed environment whose `bin/say` prints a word."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin/say").write_text(word)
    with tarfile.open(folder / "env.tar.gz", "w:gz") as tar:
        tar.add(folder / "bin/say", "bin/say")
    return folder / "env.tar.gz"


def test_packed_environment_of_the_first_round_binds_all_rounds(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    first = pin_environment(run, str(packed(tmp_path, "old")))
    assert pin_environment(run, str(tmp_path / "env.tar.gz")) == first
    with pytest.raises(JobError, match=r"another environment .* the run began with; put that one back"):
        pin_environment(run, str(packed(tmp_path, "new")))


def test_node_unpacks_an_environment_once_and_refuses_one_that_was_replaced(tmp_path: Path) -> None:
    archive, disk = packed(tmp_path, "old"), tmp_path / "disk"
    disk.mkdir()
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    script = "\n".join([*unpack_lines(str(archive), sha256), 'cat "$vsr_env/bin/say"'])

    def call(place: Path) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "TMPDIR": str(place)}
        command = ["bash", "-c", script]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert call(disk).stdout == "old"
    packed(tmp_path, "new")
    assert call(disk).stdout == "old", "what was unpacked stays"
    (tmp_path / "other").mkdir()
    refused = call(tmp_path / "other")
    assert refused.returncode == 2 and "is not the environment that the run began with" in refused.stderr


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
    first = TaskLife.read()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = TaskLife.read()
    assert (first.task, first.restart) == ("c-12_3", 0) and (again.task, again.restart) == ("c-12_3", 1)


def test_container_runs_the_worker_behind_its_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    image = ContainerSection(image="v.sif", args=("--bind=/data",))
    assert inside(image, ["vsr"]) == ["apptainer", "exec", "--nv", "--bind=/data", "v.sif", "vsr"]
    assert inside(image.model_copy(update={"runtime": "enroot"}), ["vsr"])[:2] == ["enroot", "start"]


def test_commands_that_are_not_there_answer_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert slurm_commands.queue(["x"]) == () and slurm_commands.read_setting("KillWait") is None
    assert not slurm_commands.cancel(["x"], only_pending=True)


def recorded_round(run: Run, *, array: str = "7", folder: str = "") -> None:
    """Let the run's first round be an array of two workers that Slurm has accepted."""
    made = RoundJobs(round=1, folder=folder, workers=(array,), slurm=run.job().slurm, run=run.job().run)
    run.store.create("jobs/1.json", made.model_dump_json().encode())


def beat_of(restart: int, *, shards: int = 0, task: str = "c-7_0", note: str = "time limit") -> Heartbeat:
    """The last heartbeat of a task's life."""
    beat = Process.current().heartbeat(f"{task}-{restart}", "n", task=task, round=1, restart=restart)
    return beat.model_copy(update={"state": "left", "note": note, "shards": shards})


def life_of(tmp_path: Path, restart: int) -> TaskLife:
    return TaskLife(job="7_0", array="7", cluster="c", node="n", restart=restart, folder=str(tmp_path))


@pytest.mark.parametrize(("restart", "fruitful", "is_back"), [(3, 0, True), (4, 0, False), (3, None, False)])
def test_a_task_comes_back_until_four_lives_in_a_row_made_no_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: int, fruitful: int | None, is_back: bool
) -> None:
    run = planned_run(tiny_job(tmp_path, run={"workers": 2}))
    recorded_round(run)
    run.beat(beat_of(7, shards=5, task="c-7_1"))  # another task's shards do not count
    if fruitful is not None:
        run.beat(beat_of(fruitful, shards=1))
    requeued: list[str] = []
    monkeypatch.setattr(slurm_commands, "requeue", requeued.append)

    def cut_off(self: WorkerTask, life: TaskLife, stop: StopFlag) -> int:
        stop.set(Reason.TIME_LIMIT)
        return 0

    monkeypatch.setattr(WorkerTask, "_work", cut_off)
    task = WorkerTask(uri=run.uri, names=names_of(run), threads=1)
    task._live(life_of(tmp_path, restart), StopFlag())
    assert requeued == ["7_0"] * is_back


def test_preempted_workers_that_slurm_forgot_are_followed_by_another_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned_run(tiny_job(tmp_path, run={"workers": 2, "max_rounds": 2}))
    recorded_round(run)
    receipt = Receipt(
        shard=0, worker="w", generation=1, segments=(), platform={}, seconds={}, started_s=0, finished_s=0
    )
    run.record(receipt)
    run.beat(beat_of(0, shards=1, note="terminated"))
    monkeypatch.setattr(slurm_commands, "queue", lambda names: ())
    assert not is_cancelled_by_user(run, 1)
    assert why_no_other_round(run, 1, is_cancelled_by_user=False) is None


def test_round_that_slurm_forgot_is_the_last_where_nothing_was_done_or_rounds_are_used_up(
    tmp_path: Path,
) -> None:
    run = planned_run(tiny_job(tmp_path, run={"workers": 2, "max_rounds": 1}))
    recorded_round(run)
    assert "max_rounds" in (why_no_other_round(run, 1, is_cancelled_by_user=False) or "")
    (tmp_path / "more").mkdir()
    run = planned_run(tiny_job(tmp_path / "more", run={"workers": 2}))
    recorded_round(run)
    assert "made no shard" in (why_no_other_round(run, 1, is_cancelled_by_user=False) or "")


def test_a_persons_scancel_that_slurm_remembers_means_no_other_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned_run(tiny_job(tmp_path))
    recorded_round(run)
    task = QueuedTask(job="7_0", name=names_of(run).workers, state="CANCELLED", reason="None", node="n")
    monkeypatch.setattr(slurm_commands, "queue", lambda names: (task,))
    assert is_cancelled_by_user(run, 1)
    assert "cancelled by a person" in (why_no_other_round(run, 1, is_cancelled_by_user=True) or "")


@pytest.mark.parametrize(("number", "is_back"), [(signal.SIGUSR2, True), (signal.SIGTERM, False)])
def test_a_merge_that_is_cut_off_gives_its_lease_back_and_requeues_at_the_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, is_back: bool
) -> None:
    run = complete_run(tmp_path)
    requeued: list[str] = []
    monkeypatch.setattr(slurm_commands, "requeue", requeued.append)
    interrupt_merge(monkeypatch, number)
    assert conclude(run, 1, life_of(tmp_path, 0)) is None
    assert run.leases()["finish"].is_ended and run.done() is None
    assert requeued == ["7_0"] * is_back
    monkeypatch.undo()
    assert conclude(run, 1, life_of(tmp_path, 1)) is not None and run.done() is not None


def test_a_merge_that_never_fits_its_time_limit_ends_with_the_key_to_raise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = complete_run(tmp_path)
    requeued: list[str] = []
    monkeypatch.setattr(slurm_commands, "requeue", requeued.append)
    interrupt_merge(monkeypatch, signal.SIGUSR2)
    for restart in range(3):
        assert conclude(run, 1, life_of(tmp_path, restart)) is None
    with pytest.raises(JobError, match=r"limit of 240 min .* 4 times; raise slurm\.time_limit_min"):
        conclude(run, 1, life_of(tmp_path, 3))
    assert len(requeued) == 3


def complete_run(tmp_path: Path) -> Run:
    """A run whose shards are all made, and whose round Slurm has accepted."""
    run = planned_run(tiny_job(tmp_path))
    recorded_round(run)
    work(run.uri, WorkerOptions(threads=1, does_finish=False), StopFlag())
    return run


def interrupt_merge(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    """Let Slurm's signal arrive in the midst of the merge."""

    def merge_for_ever(*arguments: object) -> NoReturn:
        os.kill(os.getpid(), number)
        threading.Event().wait()
        raise AssertionError("the signal did not end the merge")

    monkeypatch.setattr(finish, "_merge", merge_for_ever)


def test_hung_work_is_requeued_three_times_and_then_ends_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requeued: list[str] = []
    monkeypatch.setattr(slurm_commands, "requeue", requeued.append)
    codes = [life_of(tmp_path, restart).fail_hung("no progress for 600 s") for restart in range(4)]
    assert codes == [75, 75, 75, 1] and len(requeued) == 3
    (failure,) = failures(tmp_path)
    assert failure.times == 4 and "not tried again" in failure.text


def test_requeue_survives_the_sigterm_that_answers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\nkill -TERM $$\necho "$*" > {tmp_path}/said\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with ThreadPoolExecutor(1) as pool:  # as the watchdog calls it, beside a main thread that hangs
        assert pool.submit(slurm_commands.requeue, "7_0", tries=1).result()
    assert (tmp_path / "said").read_text() == "requeue 7_0\n"


def test_nothing_follows_where_all_that_is_missing_was_set_aside(tmp_path: Path) -> None:
    run = planned_run(tiny_job(tmp_path))
    for shard in run.missing():
        run.poison(Poison(shard=shard, generation=1, reason="x", nodes=("n",)))
    assert "--retry-poisoned" in (why_no_other_round(run, 1, is_cancelled_by_user=False) or "")


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
