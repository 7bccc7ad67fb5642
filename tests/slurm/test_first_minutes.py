"""The first ten minutes of a researcher who has weights of her own and a Slurm cluster."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from tests.clips import numbered_clip
from tests.slurm.fixtures import DevCluster
from tests.slurm.submitted import PATIENCE_S
from vsr_hpc.models.networks import Compact

pytestmark = pytest.mark.slurm


def test_somebody_with_weights_and_a_cluster(cluster: DevCluster) -> None:
    folder = cluster.home / "paper"
    cluster.run_as_user(["mkdir", str(folder)])
    numbered_clip(folder / "clip.mkv", frames=24)
    _write_weights(folder / "mine.pth")

    def says(line: str, code: int = 0) -> str:
        done = cluster.run_as_user(["vsr", *line.split()], cwd=folder, check=False, timeout_s=PATIENCE_S)
        print(f"$ vsr {line}\n{done.stdout}{done.stderr}")
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    assert says("models import mine.pth --name mine") == "mine: compact x4\n"
    assert re.search(r"mine\s", says("models list"))
    assert re.search(r"ok\s+slurm .*spot", says("doctor slurm"))

    says("init slurm -o job.yaml")
    text = (folder / "job.yaml").read_text()
    assert yaml.safe_load(text)["slurm"]["partitions"] == ["spot", "ondemand"]
    for was, now in (
        ("realesr-animevideov3", "mine"),
        ("codec: h265", "codec: h264"),
        ("cpus: 4", "cpus: 1"),
    ):
        assert was in text
        text = text.replace(was, now)
    (folder / "job.yaml").write_text(text)

    refused = says("submit job.yaml --partition nightly", 2)
    assert refused.count("invalid partition") == 1 and "this cluster has spot, ondemand" in refused
    assert "$" not in says("plan job.yaml")
    assert "this cluster, spot" in says("submit job.yaml --workers 2 --dry-run")
    says("submit job.yaml --workers 2 --chunk-s 0.25 --gpus-per-node 0")
    output = folder / "clip-x4.mkv"
    cluster.wait_until(output.exists, "the output", timeout_s=PATIENCE_S)
    cluster.wait_until(lambda: "complete" in says("status clip-x4.mkv"), "the end", timeout_s=PATIENCE_S)
    assert "shard done" in says("logs clip-x4.mkv")
    assert "24 frames" in says("verify clip.mkv clip-x4.mkv")
    assert "already complete" in says("submit job.yaml --workers 2 --chunk-s 0.25 --gpus-per-node 0")


def _write_weights(path: Path) -> None:
    torch.manual_seed(3)
    torch.save({"params": Compact(num_feat=8, num_conv=2, scale=4).state_dict()}, path)
