"""AWS for tests of Batch and Step Functions: one moto server for the session, its jobs real processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from tests.clips import numbered_clip
from tests.commands import Said, vsr
from tests.moto_server import Moto, moto_server
from vsr_hpc.aws.account import Account
from vsr_hpc.aws.batch.installation import init
from vsr_hpc.aws.batch.resources import BatchSettings
from vsr_hpc.job.reading import load_job
from vsr_hpc.launch import ensure_plan, run_here, submit
from vsr_hpc.run.run import Run
from vsr_hpc.storage.s3_store import S3Store
from vsr_hpc.system.interrupts import StopFlag

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
REGION = "eu-central-1"
BUCKET, PREFIX = "films", "vsr"
PATIENCE_S = 150.0
# S3 is asked every 30 s, which would be most of a test's time; and with SLOW_S the device takes its time
# without using the CPU, so that faults meet workers at work.
HOOK = """import importlib.abc, importlib.machinery, os, sys, time
def shorten(module):
    module.S3Store.poll_s = 0.5
def slow(module):
    upscale = module.Upscaler.__call__
    def slowly(self, frames):
        time.sleep(float(os.environ.get("SLOW_S", "0")) * len(frames))
        return upscale(self, frames)
    module.Upscaler.__call__ = slowly
CHANGES = {"vsr_hpc.storage.s3_store": shorten, "vsr_hpc.engine.upscaler": slow}
class Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in CHANGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            CHANGES[name](module)
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Hook())
"""


@dataclass(frozen=True)
class Cloud:
    """The account, and the folder in which a test is the sky over Batch (`batch_local`)."""

    moto: Moto
    folder: Path
    settings: BatchSettings

    def client(self, service: str) -> Any:
        return self.moto.client(service)

    def containers_get(self, **environment: str) -> None:
        """What every container that starts from now on finds in its environment, too."""
        given = {"PYTHONPATH": f"{self.folder / 'hook'}:{REPOSITORY}", **environment}
        (self.folder / "environment").write_text("".join(f"{k}={v}\n" for k, v in given.items()))

    def lose_host(self, job: str) -> None:
        (self.folder / "lost").mkdir(exist_ok=True)
        (self.folder / "lost" / job).touch()

    @contextlib.contextmanager
    def no_capacity(self, *environments: str) -> Iterator[None]:
        (self.folder / "no-capacity").mkdir(exist_ok=True)
        marks = [self.folder / "no-capacity" / each for each in environments]
        for mark in marks:
            mark.touch()
        try:
            yield
        finally:
            for mark in marks:
                mark.unlink()

    @contextlib.contextmanager
    def waits(self, *queues: str, minutes: int) -> Iterator[None]:
        """While in the block, these queues give a job without capacity so many minutes."""
        batch = self.client("batch")
        key = "jobStateTimeLimitActions"
        before = {each["jobQueueName"]: each[key] for each in batch.describe_job_queues()["jobQueues"]}
        limit = {
            "reason": "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY",
            "state": "RUNNABLE",
            "maxTimeSeconds": minutes * 60,
            "action": "CANCEL",
        }
        for each in queues:
            batch.update_job_queue(jobQueue=each, **{key: [limit]})
        try:
            yield
        finally:
            for each in queues:
                batch.update_job_queue(jobQueue=each, **{key: before[each]})

    def job(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client("batch").describe_jobs(jobs=[job])["jobs"][0]
        return found

    def wait_until(self, is_so: Callable[[], object], what: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < until, f"waited {PATIENCE_S:.0f} s for {what}"
            time.sleep(0.2)

    def wait_status(self, job: str, *wanted: str) -> dict[str, Any]:
        self.wait_until(lambda: self.job(job)["status"] in wanted, f"{job} to be {' or '.join(wanted)}")
        return self.job(job)

    def read(self, uri: str) -> bytes:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return bytes(self.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read())

    def put(self, path: Path, key: str) -> str:
        self.client("s3").put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
        return f"s3://{BUCKET}/{key}"

    def end_jobs(self) -> None:
        batch = self.client("batch")
        for queue in batch.describe_job_queues()["jobQueues"]:
            for each in batch.list_jobs(jobQueue=queue["jobQueueName"])["jobSummaryList"]:
                if each["status"] not in ("SUCCEEDED", "FAILED"):
                    batch.terminate_job(jobId=each["jobId"], reason="the test is over")


@pytest.fixture(scope="session")
def installed_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("batch")
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(HOOK)
    preload = [str(HERE / name) for name in ("batch_local.py", "workflow_local.py") if (HERE / name).exists()]
    with moto_server({"VSR_BATCH_LOCAL": str(folder)}, preload) as moto:
        moto.make_bucket(BUCKET)
        ec2 = moto.client("ec2")
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
        with mock.patch.dict(os.environ, moto.environment):
            account = Account(region=REGION, pause=lambda _: None)
            settings = BatchSettings(
                name="vsr",
                region=REGION,
                account=account.number(),
                bucket=BUCKET,
                prefix=PREFIX,
                subnets=(subnet,),
                image=f"123456789012.dkr.ecr.{REGION}.amazonaws.com/vsr-hpc:1",
                capacity_wait_min=10,
            )
            init(settings, account, lambda _: None)
        yield Cloud(moto=moto, folder=folder, settings=settings)


@pytest.fixture
def cloud(installed_cloud: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cloud]:
    """The session's cloud, given back without jobs; this process is a laptop whose shell knows it."""
    for name, value in installed_cloud.moto.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(S3Store, "poll_s", 0.5)
    installed_cloud.containers_get()
    yield installed_cloud
    installed_cloud.end_jobs()


class Film:
    """One job file, its run and its Batch jobs, as the user and the test see them."""

    def __init__(self, cloud: Cloud, folder: Path, name: str, *, frames: int = 24, **sections: Any) -> None:
        self.cloud, self.folder, self.name = cloud, folder, name
        clip = folder / f"{name}-clip.mkv"
        numbered_clip(clip, frames=frames)
        self.input = cloud.put(clip, f"{PREFIX}/films/{name}.mkv")
        self.output = f"s3://{BUCKET}/{PREFIX}/outgoing/{name}.mkv"
        self.path = folder / f"{name}.yaml"
        self.write(**sections)

    def write(self, **sections: Any) -> None:
        document: dict[str, Any] = {
            "input": self.input,
            "output": self.output,
            "model": "nearest",
            "picture": {"scale": 2},
            "video": {"preset": "ultrafast", "threads": 1},
            "run": {"workers": 2, "chunk_s": 4 / 24, "shard_s": 0.001, "threads": 1},
            "batch": {"memory_gib": 1},
        }
        for key, value in sections.items():
            document[key] = {**document.get(key, {}), **value} if isinstance(value, dict) else value
        self.path.write_text(yaml.safe_dump(document))

    @property
    def run(self) -> Run:
        return Run.open(str(self.output))

    def submit(self, *flags: str) -> Said:
        said = vsr("submit", self.path, "--on", "aws-batch", *flags)
        assert said.code == 0, said.err
        assert said.out.strip() == self.run.uri
        return said

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = vsr("status", self.run.uri, "--json").json
        return found

    def job(self, number: int = 1) -> str:
        return str(json.loads(self.run.store.read(f"jobs/{number}.json"))["job"])

    def wait_receipts(self, count: int = 1) -> None:
        self.cloud.wait_until(
            lambda: self.run.has_plan() and len(self.run.finished()) >= count, f"{count} receipts"
        )

    def wait_done(self) -> str:
        """Wait for the end of the run; the sha256 of the output, which must be the object's own."""
        self.cloud.wait_until(lambda: self.run.done() is not None, f"the end of {self.name}")
        done = self.run.done()
        assert done is not None
        assert hashlib.sha256(self.cloud.read(self.output)).hexdigest() == done.sha256
        return done.sha256

    def alone(self) -> str:
        """The sha256 of the same job's output where this process makes it alone."""
        job = load_job(self.path).model_copy(
            update={"output": str(self.folder / f"{self.name}-alone.mkv"), "on": "local"}
        )
        begun = submit(job.model_copy(update={"run": job.run.model_copy(update={"workers": 1})}))
        ensure_plan(begun.run)
        done = run_here(begun.run, StopFlag())
        assert done is not None
        return done.sha256
