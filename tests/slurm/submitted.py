"""Tiny jobs on the development cluster, submitted with the command line as its ordinary user."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.clips import numbered_clip
from tests.slurm.fixtures import DevCluster
from vsr_hpc.executors.slurm.jobs import names_of
from vsr_hpc.job.reading import load_job
from vsr_hpc.launch import ensure_plan, run_here, submit
from vsr_hpc.run.run import Run
from vsr_hpc.system.interrupts import StopFlag

PATIENCE_S = 300.0
HOOK = """import importlib.abc, importlib.machinery, os, sys, time
RESTART = os.environ.get("SLURM_RESTART_COUNT", "0")
JOB, ARRAY, INDEX = (os.environ.get(f"SLURM_{name}") for name in ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID"))
LIFE = f"{ARRAY}_{INDEX}-{RESTART}" if ARRAY else f"{JOB}-{RESTART}"
def slow_down(module):
    upscale = module.Upscaler.__call__
    def slowly(self, frames):
        until = time.monotonic() + SECONDS * len(frames)
        while time.monotonic() < until and not os.path.exists("FOLDER/fast"):
            time.sleep(min(0.1, SECONDS))
        while os.path.exists("FOLDER/hang-" + LIFE):
            time.sleep(0.1)
        return upscale(self, frames)
    def nonsense(self):
        from vsr_hpc.errors import BackendError
        raise BackendError("the device of this node answers nonsense")
    module.Upscaler.__call__ = slowly
    if os.environ.get("SLURMD_NODENAME") == "SICK":
        module.Upscaler.canary = nonsense
def hold_merge(module):
    merge = module._merge
    def slowly(*arguments):
        while os.path.exists("FOLDER/hold-merge") and RESTART == "0":
            time.sleep(0.1)
        return merge(*arguments)
    module._merge = slowly
CHANGES = {"vsr_hpc.engine.upscaler": slow_down, "vsr_hpc.work.finish": hold_merge}
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
"""Makes the device slow without using the CPU, so that faults meet workers at work. One node may be sick, one
life of a task may hang, and the first life of every merge may be held."""


class Submitted:
    """One job file, its run and its Slurm jobs, as the user and the test see them."""

    def __init__(
        self,
        cluster: DevCluster,
        name: str,
        *,
        frames: int,
        slow_s: float = 0.0,
        sick: str = "",
        **sections: Any,
    ) -> None:
        self.cluster, self.folder = cluster, cluster.home / name
        cluster.run_as_user(["mkdir", str(self.folder)])
        numbered_clip(self.folder / "clip.mkv", frames=frames)
        self.has_hook = bool(slow_s or sick)
        if self.has_hook:
            hook = HOOK.replace("SECONDS", str(slow_s)).replace("SICK", sick or "no node")
            hook = hook.replace("FOLDER", str(self.folder))
            (self.folder / "sitecustomize.py").write_text(hook)
        self.path = self.folder / "job.yaml"
        self.write(**sections)

    def write(self, **sections: Any) -> None:
        """(Re)write the job file: tiny chunks, each a shard; sections are merged into it."""
        document: dict[str, Any] = {
            "input": "clip.mkv",
            "output": "out.mkv",
            "model": "nearest",
            "picture": {"scale": 2},
            "video": {"preset": "ultrafast", "threads": 1},
            "run": {"workers": 3, "chunk_s": 4 / 24, "shard_s": 0.001, "threads": 1},
            "slurm": {"partitions": ["spot"], "cpus": 1, "gpus": 1},
        }
        for key, value in sections.items():
            document[key] = {**document.get(key, {}), **value} if isinstance(value, dict) else value
        if self.has_hook:
            setup = document["slurm"].get("setup", [])
            document["slurm"]["setup"] = [f"export PYTHONPATH={self.folder}:$PYTHONPATH", *setup]
        self.path.write_text(yaml.safe_dump(document))

    def hang(self, task: str, restart: int = 0) -> None:
        """Let the device hang for good in one life of a task."""
        (self.folder / f"hang-{task}-{restart}").touch()

    def speed_up(self) -> None:
        """Let the device be slow no longer: what had to meet workers at work has happened."""
        (self.folder / "fast").touch()

    def hold_merge(self) -> None:
        """Let a merge last for ever in a task that was not restarted."""
        (self.folder / "hold-merge").touch()

    @property
    def output(self) -> Path:
        return self.folder / "out.mkv"

    @property
    def run(self) -> Run:
        return Run.open(str(self.output))

    def vsr(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.cluster.run_as_user(["vsr", *argv], check=check, timeout_s=PATIENCE_S)

    def submit(self, *flags: str) -> str:
        """Submit; the run's URI as the command printed it."""
        return self.vsr("submit", str(self.path), "--on", "slurm", *flags).stdout.strip()

    def resume(self, *flags: str) -> subprocess.CompletedProcess[str]:
        return self.vsr("resume", str(self.output), *flags)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.vsr("status", str(self.output), "--json").stdout)
        return found

    def job(self, number: int = 1, kind: str = "workers") -> str:
        """The Slurm id of a round's workers, standby or finish."""
        jobs = json.loads(self.run.store.read(f"jobs/{number}.json"))
        return str(jobs[kind][0])

    def states(self, number: int = 1, kind: str = "workers") -> list[str]:
        return sorted(self.cluster.states(self.job(number, kind)).values())

    def names(self) -> tuple[str, str, str]:
        names = names_of(self.run)
        return names.workers, names.standby, names.finish

    def wait_receipts(self, count: int = 1) -> None:
        self.cluster.wait_until(
            lambda: len(self.run.finished()) >= count, f"{count} receipts", timeout_s=PATIENCE_S
        )

    def wait_done(self) -> str:
        """Wait for the end of the run; the output's sha256, which must be the file's own."""
        self.cluster.wait_until(lambda: self.run.done() is not None, "the run's end", timeout_s=PATIENCE_S)
        done = self.run.done()
        assert done is not None
        assert hashlib.sha256(self.output.read_bytes()).hexdigest() == done.sha256
        return done.sha256

    def wait_ended(self, number: int = 1, kind: str = "workers") -> list[str]:
        """Wait until all tasks of a job have ended; their states."""
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"}
        self.cluster.wait_until(
            lambda: set(self.states(number, kind)) <= over, f"the end of {kind}", timeout_s=PATIENCE_S
        )
        return self.states(number, kind)

    def alone(self) -> str:
        """The sha256 of the same job's output where this process makes it without Slurm."""
        job = load_job(self.path).model_copy(update={"output": str(self.folder / "alone.mkv"), "on": "local"})
        begun = submit(job.model_copy(update={"run": job.run.model_copy(update={"workers": 1})}))
        ensure_plan(begun.run)
        done = run_here(begun.run, StopFlag())
        assert done is not None
        return done.sha256
