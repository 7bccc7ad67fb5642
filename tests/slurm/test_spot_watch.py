"""The root service for Spot nodes: on a notice the node drains, whatever else goes wrong."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.slurm.fixtures import ROOT, DevCluster

from mock_imds import MockImds  # isort: skip  (fixtures puts its folder on the path)

SCRIPT = ROOT / "slurm/spot-watch/spot_watch.py"


@pytest.fixture(scope="module")
def spot_watch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("spot_watch", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["spot_watch"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def imds(tmp_path: Path) -> Iterator[MockImds]:
    with MockImds(tmp_path) as imds:
        yield imds


@pytest.fixture
def drains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scontrol that writes down what it was asked, and refuses while the file `refuse` is there."""
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    refusal = f'if [ -e {tmp_path}/refuse ]; then echo "no controller" >&2; exit 1; fi'
    scontrol.write_text(f'#!/bin/sh\n{refusal}\necho "$*" >> {tmp_path}/drains\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:/usr/bin:/bin")
    return tmp_path / "drains"


def test_notice_drains_the_node_once(spot_watch: ModuleType, imds: MockImds, drains: Path) -> None:
    watch = spot_watch.Watch(spot_watch.Imds(imds.url), "node-1")
    watch.poll()
    assert not drains.exists()
    when = imds.notice()
    watch.poll()
    watch.poll()
    wanted = f"update nodename=node-1 state=drain reason=spot interruption {when}\n"
    assert drains.read_text() == wanted


def test_new_notice_drains_again(spot_watch: ModuleType, imds: MockImds, drains: Path) -> None:
    watch = spot_watch.Watch(spot_watch.Imds(imds.url), "node-1")
    for in_s in (60, 120):
        imds.notice(in_s=in_s)
        watch.poll()
    assert len(drains.read_text().splitlines()) == 2


@pytest.mark.parametrize("asked", [False, True])
def test_rebalance_drains_only_where_asked(
    spot_watch: ModuleType, imds: MockImds, drains: Path, asked: bool
) -> None:
    imds.rebalance()
    spot_watch.Watch(spot_watch.Imds(imds.url), "node-1", with_rebalance=asked).poll()
    assert drains.exists() == asked


def test_token_is_kept_and_renewed_when_refused(spot_watch: ModuleType, imds: MockImds, drains: Path) -> None:
    watch = spot_watch.Watch(spot_watch.Imds(imds.url), "node-1")
    watch.poll()
    watch.poll()
    assert sum(each.startswith("PUT") for each in imds.requests()) == 1
    imds.expire_tokens()
    imds.notice()
    watch.poll()
    assert sum(each.startswith("PUT") for each in imds.requests()) == 2
    assert drains.exists()


def test_refused_drain_is_tried_again_sooner(spot_watch: ModuleType, imds: MockImds, drains: Path) -> None:
    watch = spot_watch.Watch(spot_watch.Imds(imds.url), "node-1")
    refuse = drains.with_name("refuse")
    refuse.touch()
    imds.notice()
    assert watch.poll() < spot_watch.POLL_S
    refuse.unlink()
    assert watch.poll() == spot_watch.POLL_S
    assert len(drains.read_text().splitlines()) == 1


def test_trouble_is_told_once_and_its_end_too(
    spot_watch: ModuleType, imds: MockImds, drains: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = spot_watch.Watch(spot_watch.Imds(imds.url), "node-1")
    imds.fail(status=503)
    for _ in range(3):
        watch.poll()
    imds.clear()
    watch.poll()
    assert caplog.messages == [
        "metadata service: spot/instance-action: HTTP 503",
        "all well again",
    ]


def test_unreachable_service_is_no_notice(spot_watch: ModuleType, drains: Path) -> None:
    assert spot_watch.Watch(spot_watch.Imds("http://127.0.0.1:1"), "node-1").poll() == spot_watch.POLL_S
    assert not drains.exists()


@pytest.mark.parametrize("text", ["not json", "[]", "{}", json.dumps({"time": 'x" state=down'})])
def test_garbled_notice_still_drains_and_never_reaches_scontrol(
    spot_watch: ModuleType, imds: MockImds, drains: Path, text: str
) -> None:
    imds._merge({"spot/instance-action": text})
    spot_watch.Watch(spot_watch.Imds(imds.url), "node-1").poll()
    assert drains.read_text().endswith("reason=spot interruption at an unknown time\n")


def test_script_is_python_3_9_and_standard_library_only() -> None:
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 9))
    imports = {
        (each.module if isinstance(each, ast.ImportFrom) else each.names[0].name)
        for each in ast.walk(tree)
        if isinstance(each, ast.Import | ast.ImportFrom)
    }
    assert {str(each).partition(".")[0] for each in imports} <= set(sys.stdlib_module_names)


@pytest.mark.slurm
def test_node_with_a_notice_drains_and_starts_nothing_new(cluster: DevCluster) -> None:
    doomed, healthy, *_ = cluster.spot_nodes
    running = cluster.submit("sleep 60", f"--nodelist={doomed}")
    cluster.wait_until(lambda: cluster.task(running).state == "RUNNING", "the job")
    command = cluster.command([sys.executable, "-I", str(SCRIPT), "--poll-s=0.2"], node=doomed)
    env = {**cluster.env, "AWS_EC2_METADATA_SERVICE_ENDPOINT": cluster.imds_url(doomed)}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as watch:
        assert watch.stderr is not None
        assert f"watching node={doomed}" in watch.stderr.readline()  # its host name is its name in Slurm
        when = cluster.imds(doomed).notice()
        assert "node drained" in watch.stderr.readline()
        for pid in cluster.node_pids(doomed):
            if any("spot_watch" in each for each in Path(f"/proc/{pid}/cmdline").read_text().split("\0")):
                subprocess.run(["kill", str(pid)], check=True)
    assert cluster.node_state(doomed) == "draining"
    assert f"spot interruption {when}" in cluster.run(["sinfo", "-R", "-h", "-o", "%100E"]).stdout
    refused = cluster.submit("true", f"--nodelist={doomed}")
    elsewhere = cluster.submit("true", f"--nodelist={healthy}")
    cluster.wait_until(lambda: cluster.task(elsewhere).state == "COMPLETED", "the job elsewhere")
    assert (cluster.task(refused).state, cluster.task(running).state) == ("PENDING", "RUNNING")
