"""The Batch executor against moto's records and real processes: submit, survive, resume."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.aws.batch_cloud import PREFIX, REGION, Cloud, Film
from tests.commands import vsr
from vsr_hpc.aws.batch.definition import Wanted, ensure_definition
from vsr_hpc.executors.aws_batch import submission as aws_batch
from vsr_hpc.executors.aws_batch.worker_task import Attempt, exit_code, work_here
from vsr_hpc.job.reading import load_job, with_absolute_paths
from vsr_hpc.job.spec import run_folder
from vsr_hpc.run.run import Run
from vsr_hpc.storage.opening import open_store
from vsr_hpc.system.interrupts import Reason

pytestmark = pytest.mark.aws

SLOW = "0.08"
"""Seconds for each frame: a clip of 24 frames keeps one worker busy for two."""


def test_worker_of_an_array_whose_host_is_lost_starts_again_and_the_bytes_are_one_machines(
    cloud: Cloud, tmp_path: Path
) -> None:
    cloud.containers_get(SLOW_S=SLOW)
    film = Film(cloud, tmp_path, "pair", frames=96)
    assert "round 1: 2 workers are job" in film.submit().err
    film.wait_receipts(2)
    struck = next(beat.task for beat in film.run.heartbeats() if beat.shards).removeprefix("batch-")
    cloud.lose_host(struck)
    sha256 = film.wait_done()
    facts = cloud.wait_status(film.job(), "SUCCEEDED", "FAILED")
    assert facts["status"] == "SUCCEEDED" and facts["arrayProperties"]["size"] == 2
    assert cloud.job(struck)["attempts"][0]["statusReason"].startswith("Host EC2")
    beats = film.run.heartbeats()
    assert {beat.task for beat in beats} == {f"batch-{film.job()}:{index}" for index in (0, 1)}
    assert {beat.restart for beat in beats if beat.task == f"batch-{struck}"} == {0, 1}
    assert len(film.run.rounds()) == 1
    assert sha256 == film.alone()


def test_cancelled_or_killed_workers_stay_away_until_resume_which_goes_on_where_they_were(
    cloud: Cloud, tmp_path: Path
) -> None:
    cloud.containers_get(SLOW_S="0.3")
    film = Film(cloud, tmp_path, "ends", frames=96, run={"workers": 1})
    film.submit()
    film.wait_receipts(1)
    assert vsr("cancel", film.run.uri).code == 0
    facts = cloud.wait_status(film.job(), "SUCCEEDED", "FAILED")
    assert len(facts["attempts"]) == 1  # its own exit code 75 is not taken for another try
    cloud.wait_until(lambda: film.status()["state"] == "cancelled", "the state")
    with ThreadPoolExecutor(2) as both:
        begun = list(both.map(lambda _: aws_batch.start(film.run, film.run.job()), range(2)))
    assert begun[0] == begun[1] and begun[0].round == 2  # two resumes at once are one
    done = len(film.run.finished())
    film.wait_receipts(done + 1)
    pid = next(beat.pid for beat in film.run.heartbeats() if beat.round == 2)
    os.kill(pid, signal.SIGKILL)  # as where it took more memory than it may
    facts = cloud.wait_status(film.job(2), "SUCCEEDED", "FAILED")
    assert (facts["status"], facts["container"]["exitCode"], len(facts["attempts"])) == ("FAILED", 137, 1)
    status = film.status()
    assert status["state"] == "incomplete"
    assert "a worker failed: Essential container in task exited, exit code 137" in "\n".join(status["queue"])
    cloud.containers_get()
    assert vsr("resume", film.run.uri).code == 0  # where it was last: on Batch
    film.wait_done()
    assert [each.executor for each in film.run.rounds()] == ["aws-batch"] * 3


def test_worker_near_its_time_limit_asks_to_be_started_again_and_takes_its_place_again(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = Film(cloud, tmp_path, "limit", frames=24)
    run = Run.create(open_store(run_folder(str(film.output))), with_absolute_paths(load_job(film.path)))
    run.start_round("aws-batch", 1, 0)
    monkeypatch.setenv("AWS_BATCH_JOB_ID", "0b1e:1")
    monkeypatch.setenv("VSR_BATCH_ATTEMPTS", "3")
    monkeypatch.setenv("VSR_BATCH_TIMEOUT_S", "60.001")
    monkeypatch.setenv("VSR_BATCH_WARNING_S", "60")
    assert work_here(run.uri, does_finish=True, after=None) == 75
    monkeypatch.setenv("VSR_BATCH_TIMEOUT_S", "600")
    monkeypatch.setenv("AWS_BATCH_JOB_ATTEMPT", "2")
    assert work_here(run.uri, does_finish=True, after=None) == 0
    beats = sorted(run.heartbeats(), key=lambda beat: beat.restart)
    assert [(beat.task, beat.restart) for beat in beats] == [("batch-0b1e:1", 0), ("batch-0b1e:1", 1)]
    assert beats[0].note == "time limit" and run.done() is not None


@pytest.mark.parametrize(
    ("reason", "is_over", "attempt", "code"),
    [
        (None, False, 1, 0),  # others hold what is missing
        (Reason.CANCELLED, False, 1, 0),
        (Reason.SPOT_NOTICE, False, 1, 75),
        (Reason.TERMINATED, False, 1, 75),
        (Reason.TIME_LIMIT, False, 3, 75),
        (Reason.SPOT_NOTICE, True, 1, 0),  # the run is complete or cancelled: nothing to come back for
    ],
)
def test_exit_code_tells_batch_whether_to_start_the_worker_again(
    reason: Reason | None, is_over: bool, attempt: int, code: int
) -> None:
    life = Attempt(job="0b1e", number=attempt, attempts=3, leaves_after_s=0)
    assert exit_code(reason, is_over=is_over, attempt=life) == code


def test_second_of_a_chain_begins_when_the_first_is_complete_and_takes_its_output(
    cloud: Cloud, tmp_path: Path
) -> None:
    first = Film(cloud, tmp_path, "first", frames=16, run={"workers": 1})
    second = Film(cloud, tmp_path, "second", frames=8, run={"workers": 1})
    second.write(input=first.output, run={"workers": 1})
    alone = vsr("submit", second.path, "--on", "aws-batch")
    assert alone.code == 3 and "there is no such object" in alone.err
    first.submit()
    said = second.submit("--after", first.run.uri)
    assert f"{first.output} is looked at once {first.run.uri} has made it" in said.err
    assert cloud.job(second.job())["dependsOn"] == [{"jobId": first.job()}]
    second.wait_done()
    ended, begun = cloud.job(first.job()), cloud.wait_status(second.job(), "SUCCEEDED", "FAILED")
    assert begun["status"] == "SUCCEEDED" and begun["startedAt"] >= ended["stoppedAt"]
    assert second.run.plan.clip.picture.width == 128 and second.run.plan.picture.width == 256


def test_dependent_of_a_failed_run_never_starts_and_its_status_says_so(cloud: Cloud, tmp_path: Path) -> None:
    first = Film(cloud, tmp_path, "bad", frames=8, run={"workers": 1})
    cloud.put(tmp_path / "bad.yaml", f"{PREFIX}/films/bad-clip.mkv")
    second = Film(cloud, tmp_path, "after-bad", frames=8, run={"workers": 1})
    second.write(input=first.output, run={"workers": 1})
    with cloud.no_capacity("vsr-spot", "vsr-ondemand"):
        first.submit()
        cloud.put(tmp_path / "bad.yaml", f"{PREFIX}/films/bad.mkv")  # no clip any more when the worker comes
        second.submit("--after", first.run.uri)
    cloud.wait_status(second.job(), "FAILED")
    assert any("Dependent Job failed" in line for line in second.status()["queue"])
    assert not second.run.heartbeats()
    told = "\n".join(first.status()["queue"])
    assert "a worker failed: Essential container in task exited, exit code 3" in told and "bad.mkv" in told


def test_array_that_finds_no_capacity_goes_on_elsewhere_after_one_wait_not_after_one_for_each_child(
    cloud: Cloud, tmp_path: Path
) -> None:
    film = Film(cloud, tmp_path, "starved", frames=12, run={"workers": 3})
    film.write(run={"workers": 3}, batch={"queues": ["vsr-spot", "vsr-ondemand"]})
    with cloud.no_capacity("vsr-spot"):
        film.submit()
        first = film.job()
        cloud.wait_until(lambda: cloud.job(f"{first}:0")["status"] == "FAILED", "the first child's end")
        with cloud.waits("vsr-spot", minutes=1440):  # long enough for what comes
            assert "RUNNABLE" in [cloud.job(f"{first}:{index}")["status"] for index in (1, 2)]
            way_out = f"`vsr resume {film.run.uri}` goes on in vsr-ondemand"
            assert way_out in "\n".join(film.status()["queue"])
            said = vsr("resume", film.run.uri)
        assert said.code == 0 and "3 workers are job" in said.err and "queue vsr-ondemand" in said.err
        film.wait_done()
    reasons = [cloud.job(f"{first}:{index}")["statusReason"] for index in range(3)]
    assert "CAPACITY:" in reasons[0] and reasons[2] == "no capacity in vsr-spot"


def test_places_that_instances_cannot_see_are_all_told_before_anything_is_made(
    cloud: Cloud, tmp_path: Path
) -> None:
    film = Film(cloud, tmp_path, "here", frames=8)
    film.write(input=str(tmp_path / "here-clip.mkv"), output=str(tmp_path / "out.mkv"))
    said = vsr("submit", film.path, "--on", "aws-batch")
    assert (
        said.code == 2
        and said.err.count("is on this machine, where AWS Batch's instances do not see it") == 2
    )
    film.write(batch={"name": "nobody"})
    said = vsr("submit", film.path, "--on", "aws-batch")
    assert said.code == 2 and "no job queue nobody-cpu in eu-central-1; `vsr batch init`" in said.err
    assert not cloud.client("s3").list_objects_v2(Bucket="films", Prefix="vsr/outgoing/here").get("Contents")


def test_definition_is_registered_once_and_again_only_when_something_changes(cloud: Cloud) -> None:
    batch = cloud.client("batch")
    wanted = Wanted(
        name="same", image="films/vsr:1", job_role="arn:aws:iam::123456789012:role/same-job", region=REGION,
        cpus=4, memory_gib=14, gpus=1, attempts=3, timeout_min=60, warning_s=120,
    )  # fmt: skip
    first = ensure_definition(batch, wanted)
    assert ensure_definition(batch, wanted) == first
    other = ensure_definition(batch, replace(wanted, image="films/vsr:2"))
    assert other != first and ensure_definition(batch, wanted) == first
    facts = batch.describe_job_definitions(jobDefinitions=[first])["jobDefinitions"][0]
    container = facts["containerProperties"]
    assert container["user"] == "10001:10001" and container["readonlyRootFilesystem"] is True
    assert not any("KEY" in each["name"] or "TOKEN" in each["name"] for each in container["environment"])
    rules = [
        (next(iter(rule.items())), rule["action"].upper())
        for rule in facts["retryStrategy"]["evaluateOnExit"]
    ]
    assert rules[-1] == (("onReason", "*"), "EXIT") and [action for _, action in rules] == [
        "RETRY",
        "RETRY",
        "EXIT",
    ]


def test_job_that_batch_has_forgotten_leaves_the_word_to_the_run(cloud: Cloud, tmp_path: Path) -> None:
    film = Film(cloud, tmp_path, "forgotten", frames=8)
    run = Run.create(open_store(run_folder(str(film.output))), with_absolute_paths(load_job(film.path)))
    run.start_round("aws-batch", 1, 0)
    made = aws_batch.RoundJob(round=1, region=REGION, queue="vsr", job="0b1e", workers=1)
    run.store.create("jobs/1.json", made.model_dump_json().encode())
    status = film.status()
    assert status["state"] == "waiting" and "batch: the job is over and forgotten" in status["queue"]
    assert aws_batch.ROUNDS.find_active(run) is None


def test_urgent_queue_goes_before_a_patient_one_on_the_same_instances(cloud: Cloud, tmp_path: Path) -> None:
    batch = cloud.client("batch")
    wanted = Wanted(
        name="order", image="films/vsr:1", job_role="arn:aws:iam::123456789012:role/vsr-job", region=REGION,
        cpus=128, memory_gib=1, gpus=0, attempts=1, timeout_min=60, warning_s=120,
    )  # fmt: skip
    definition = ensure_definition(batch, wanted)

    def put(queue: str, *command: str) -> str:
        return str(
            batch.submit_job(
                jobName="order", jobQueue=queue, jobDefinition=definition,
                containerOverrides={"command": list(command)},
            )["jobId"]
        )  # fmt: skip

    mark = tmp_path / "go"
    with cloud.no_capacity("vsr-ondemand"):
        busy = put("vsr-spot", "sh", "-c", f"while [ ! -e {mark} ]; do sleep 0.1; done")
        cloud.wait_status(busy, "RUNNING")
        patient, urgent = put("vsr-spot", "true"), put("vsr", "true")
        cloud.wait_status(urgent, "RUNNABLE")
        mark.touch()
        late, early = cloud.wait_status(patient, "SUCCEEDED"), cloud.wait_status(urgent, "SUCCEEDED")
    assert early["startedAt"] <= late["startedAt"] and early["stoppedAt"] <= late["stoppedAt"]
