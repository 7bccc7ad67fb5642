"""The image itself, built and run: what is in it, what it may do, and that it works under lock and key."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clips import numbered_clip
from tests.containers.conftest import SECRET
from tests.containers.files import ROOT
from tests.containers.running import IMAGE_VARIABLE, USER, container, hand_over, podman, surroundings
from tests.containers.test_files import services
from tests.moto_server import moto_server
from tests.runs import finished, planned_run, tiny_job
from tests.serving.samples import still
from tests.serving.served import served
from vsr_hpc.run.run import Run

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]

GIB = 1 << 30
WAIT_S = 120


def said(image: str, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """A container that ends by itself."""
    started = container(image, arguments, **more)
    try:
        return subprocess.run(
            started.command, env=surroundings(), capture_output=True, text=True, timeout=600, check=False
        )
    finally:
        started.remove()


def shown(image: str, script: str, *options: str) -> str:
    """What a script says inside, as the image's own user."""
    done = said(image, "-c", script, options=("--entrypoint", "/bin/sh", *options))
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def running(image: str, *arguments: str, **more: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A container that goes on, and its name; its stderr goes to this process's."""
    started = container(image, arguments, **more)
    process = subprocess.Popen(started.command, env=surroundings(), text=True, stdout=subprocess.DEVNULL)
    try:
        yield process, started.name
    finally:
        started.remove()
        process.kill()
        process.wait()


# What it is


def test_its_size_is_below_its_bound(facts: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{facts['RepoTags'][0]}: {facts['Size'] / 1e6:.0f} MB")
    if facts["Labels"]["vsr.variant"] == "cpu":
        assert facts["Size"] < 1.5 * GIB


def test_its_labels_are_those_that_sagemaker_reads(facts: dict[str, Any]) -> None:
    labels = facts["Labels"]
    for name in ("multi-models", "accept-bind-to-port"):
        assert labels[f"com.amazonaws.sagemaker.capabilities.{name}"] == "true"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0 AND GPL-3.0-or-later"
    assert re.match(r"[0-9a-f]{40}", labels["org.opencontainers.image.revision"])
    assert labels["org.opencontainers.image.version"] != "0"


def test_it_is_one_process_of_an_ordinary_user_with_a_health_check(facts: dict[str, Any]) -> None:
    config = facts["Config"]
    assert config["Entrypoint"] == ["/opt/vsr/bin/python", "/opt/vsr/libexec/entrypoint.py"]
    assert config["User"] == f"{USER}:{USER}"
    assert facts["Healthcheck"]["Test"][0] == "CMD"
    assert "8080/tcp" in config["ExposedPorts"]


def test_nothing_of_the_building_machine_is_in_its_history_or_environment(
    image: str, facts: dict[str, Any]
) -> None:
    history = podman("history", "--no-trunc", "--format", "{{.CreatedBy}}", image).stdout
    text = history + json.dumps(facts["Config"])
    hosts = set(re.findall(r"https?://([^/\s\"'@]+)", text))
    assert hosts <= {"download.pytorch.org"}
    assert "pip.conf" not in json.dumps(facts["Config"]) and SECRET not in text
    for name, value in os.environ.items():
        if name.startswith(("PIP_", "AWS_SECRET", "GITHUB_TOKEN")) and len(value) > 8:
            assert value not in text, f"the value of {name}"


def test_no_file_of_it_holds_what_only_the_build_was_told(image: str) -> None:
    script = (
        f"grep -rl --binary-files=without-match '{SECRET}' / --exclude-dir=proc --exclude-dir=sys; "
        "ls /etc/pip.conf /run/secrets/ca 2>/dev/null; true"
    )
    assert shown(image, script, "--user", "0:0") == ""


def test_it_has_no_compiler_no_installer_and_nothing_to_rise_with(image: str) -> None:
    script = (
        "for each in cc gcc g++ make ld pip pip3 curl wget git; do command -v $each; done; "
        "find / -xdev -type f -perm /6000 2>/dev/null; "
        "ls -d /opt/vsr/lib/python3*/site-packages/pip /root/.cache 2>/dev/null; "
        "find /var/lib/apt/lists /var/cache/apt -type f; true"
    )
    assert shown(image, script, "--user", "0:0") == ""


def test_its_packages_are_the_pinned_ones_and_listed_in_it(image: str) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.partition(";")[0].strip().lower().split("==") for line in lines if "==" in line)
    frozen = shown(image, "cat /opt/vsr/share/requirements.txt").split()
    found = dict(line.lower().split("==") for line in frozen)
    for name, version in found.items():
        plain = pins.get(name) or pins.get(name.replace("-", "_"))
        wanted = plain or {"basicsr": "1.4.2"}.get(name)
        assert wanted is not None, f"{name} {version} is not pinned"
        assert version.partition("+")[0] == wanted, name
    contents = json.loads(shown(image, "cat /opt/vsr/share/sbom.cdx.json"))["components"]
    listed = {each["purl"].partition("@")[0] for each in contents}
    assert {"pkg:pypi/torch", "pkg:pypi/vsr-hpc", "pkg:deb/debian/libc6"} <= listed
    assert {"x264", "x265", "SvtAv1Enc", "dav1d"} <= {each["name"] for each in contents}
    assert "GPL-3.0-or-later" in shown(image, "cat /opt/vsr/share/licenses/vsr-hpc/NOTICE")


def test_its_code_is_compiled(image: str) -> None:
    script = (
        "cd /opt/vsr/lib/python3*/site-packages/vsr_hpc; "
        "echo $(ls *.py | wc -l) $(ls __pycache__/*.pyc | wc -l)"
    )
    sources, compiled = shown(image, script).split()
    assert sources == compiled and int(sources) > 20


# What it may do


def test_it_writes_nowhere_but_below_tmp(image: str) -> None:
    script = (
        "import os, pathlib\n"
        "print(os.getuid(), os.getpid())\n"
        "for each in ('/', '/opt/vsr', '/data', '/var/tmp', '/opt/ml/model', '/tmp'):\n"
        "    try:\n"
        "        pathlib.Path(each, 'probe').write_text('x'); print(each)\n"
        "    except OSError: pass\n"
    )
    done = said(image, "-c", script, options=("--entrypoint", "/opt/vsr/bin/python"))
    assert done.stdout.split("\n")[:2] == [f"{USER} 1", "/tmp"], done.stderr


def test_any_words_are_vsrs_and_its_exit_codes_come_out(image: str) -> None:
    assert said(image, "--version").stdout.startswith("vsr ")
    assert said(image, "vsr", "models", "list").stdout.count("bicubic") >= 1
    assert said(image).stdout.count("upscale") >= 1
    wrong = said(image, "worker", "/data/no-run")
    assert wrong.returncode == 2 and "no-run" in wrong.stderr


def test_a_user_whom_it_does_not_know_may_use_it(image: str) -> None:
    done = said(image, "models", "list", options=("--user", "4242:4242"))
    assert done.returncode == 0 and "bicubic" in done.stdout, done.stderr


def test_a_process_without_a_handler_of_its_own_obeys_sigterm(image: str) -> None:
    """The first process of a container would ignore it; a command that only sleeps stands for any."""
    script = (
        "import runpy, sys, time\n"
        "from vsr_hpc.cli import main as cli\n"
        "cli.main = lambda: (open('/tmp/ready', 'w').close(), time.sleep(3600))\n"
        "sys.argv = ['entrypoint.py', 'anything']\n"
        "runpy.run_path('/opt/vsr/libexec/entrypoint.py', run_name='__main__')\n"
    )
    with running(image, "-c", script, options=("--entrypoint", "/opt/vsr/bin/python")) as (process, name):
        _until(lambda: podman("exec", name, "test", "-e", "/tmp/ready", check=False).returncode == 0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 143


# A worker


def test_a_worker_makes_the_file_that_this_machine_makes(image: str, tmp_path: Path) -> None:
    numbered_clip(tmp_path / "clip.mkv", frames=24)
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "clip.mkv", tmp_path / name)
    here = finished(planned_run(tiny_job(tmp_path / "here")))
    run = planned_run(tiny_job(tmp_path / "there"))
    hand_over(tmp_path / "there")
    place = tmp_path / "there"
    done = said(image, "worker", run.uri, mounts={place: str(place)})
    assert done.returncode == 0, done.stderr
    made = place / "out.mkv"
    assert made.stat().st_uid == USER
    assert made.read_bytes() == Path(here.output).read_bytes()


def test_a_worker_told_to_end_gives_its_shard_back_and_another_finishes(image: str, tmp_path: Path) -> None:
    numbered_clip(tmp_path / "clip.mkv", frames=960, size=(320, 240))
    job = tiny_job(tmp_path, frames=960, model="lanczos", picture={"scale": 4}, run={"chunk_s": 20})
    run = planned_run(job, seconds_per_frame=0.1)
    hand_over(tmp_path)
    mounts = {tmp_path: str(tmp_path)}
    with running(image, "worker", run.uri, "--threads", "1", mounts=mounts) as (process, _):
        _until(lambda: any(beat.shard is not None for beat in run.heartbeats()) or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, "SageMaker, Batch and Kubernetes kill after 30 s"
    reopened = Run.open(run.uri)
    assert reopened.missing() or reopened.done(), "neither given back nor done"
    done = said(image, "vsr", "worker", run.uri, mounts=mounts)
    assert done.returncode == 0, done.stderr
    assert Run.open(run.uri).done() is not None


def test_weights_of_the_image_stand_where_weights_are_looked_for(image: str, tmp_path: Path) -> None:
    """As the layer that WEIGHTS makes: weights/<sha256>/<file>."""
    from vsr_hpc.models.cards import find_card

    card = find_card("realesr-animevideov3")
    assert card.weights is not None and card.weights.sha256 is not None
    junk = tmp_path / card.weights.sha256 / card.weights.file
    junk.parent.mkdir()
    junk.write_bytes(b"other weights")
    hand_over(tmp_path)
    done = said(image, "-c", _LINKED, mounts={tmp_path: "/opt/vsr/weights:ro"},
                options=("--entrypoint", "/opt/vsr/bin/python"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [hashlib.sha256(b"other weights").hexdigest()]


_LINKED = """
import hashlib, os, pathlib, runpy
names = runpy.run_path('/opt/vsr/libexec/entrypoint.py', run_name='part')
names['link_weights'](names['WEIGHTS'], os.environ)
from vsr_hpc.models.weights import cache_folder
(file,) = cache_folder().glob('*/*.pth')
print(hashlib.sha256(file.read_bytes()).hexdigest())
"""


# A server, as SageMaker starts it


def test_serve_answers_on_the_port_that_it_is_told_and_its_health_follows(image: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"SAGEMAKER_BIND_TO_PORT": str(port), "VSR_SERVE_MODELS": "bicubic"}
    with running(image, "serve", environment=told) as (process, name):
        _until(lambda: _ping(port) == 200 or process.poll() is not None)
        checked = podman("exec", name, *_HEALTH, check=False)
        assert (checked.returncode, checked.stdout.strip()) == (0, "/ping: 200")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


_HEALTH = ("/opt/vsr/bin/python", "-I", "-S", "/opt/vsr/libexec/healthcheck.py")


def _ping(port: int) -> int | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code
    except OSError:
        return None


def test_sigterm_lets_in_nobody_new_and_answers_who_is_inside(
    image: str, tmp_path: Path, monkeypatch: Any
) -> None:
    """However slow this machine is: the request inside waits for its own body, not for work."""
    monkeypatch.setenv(IMAGE_VARIABLE, image)
    body = still()
    with served(tmp_path / "home", "--model", "bicubic") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) as inside:
            head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            inside.sendall(head.encode() + body[:100])
            server.wait_for("vsr_requests_inside", 1, timeout_s=WAIT_S)
            server.terminate()
            _until(lambda: server.request("GET", "/ping").status == 503)
            assert server.invoke(body, "image/png").error["code"] == "draining"
            inside.sendall(body[100:])
            assert inside.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        assert server.process.wait(30) == 0


# These two want seconds of work done within the drain or a deadline, which a busy machine cannot promise.
_NEED_AN_IDLE_MACHINE = (
    "test_a_clip_past_its_deadline_stops_using_the_device",
    "test_sigterm_answers_all_that_were_let_in_refuses_others_and_exits_in_time",
)


@pytest.mark.parametrize("module", ["test_contract.py", "test_life.py", "test_models.py"])
def test_the_serving_contract_holds_in_the_container(image: str, module: str, tmp_path: Path) -> None:
    """The same tests as without a container."""
    command = [
        sys.executable, "-m", "pytest", "-q", f"tests/serving/{module}", "--basetemp", str(tmp_path / "t"),
        "-p", "no:cacheprovider",
        *(f"--deselect=tests/serving/test_life.py::{name}" for name in _NEED_AN_IDLE_MACHINE),
    ]  # fmt: skip
    environment = {**os.environ, IMAGE_VARIABLE: image}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout


# A training job, as SageMaker starts it


def test_a_training_job_that_fails_leaves_its_reason(image: str, tmp_path: Path) -> None:
    (tmp_path / "input/config").mkdir(parents=True)
    found = {"command": '"models show no-such-model"'}
    (tmp_path / "input/config/hyperparameters.json").write_text(json.dumps(found))
    hand_over(tmp_path)
    done = said(image, "train", mounts={tmp_path: "/opt/ml"})
    assert done.returncode not in (0, 1), done.stderr
    assert "no-such-model" in (tmp_path / "output/failure").read_text()


# compose.yaml, service by service; there is no compose here, and no image of moto's


def test_composes_services_upscale_a_clip_through_s3(image: str, tmp_path: Path) -> None:
    numbered_clip(tmp_path / "film.mkv", frames=24, audio=True)
    hand_over(tmp_path)
    found = services()
    with moto_server() as moto:
        for name in ("bucket", "begin", "worker", "status"):
            service = found[name]
            entry = service.get("entrypoint")
            words = [*(entry[1:] if entry else []), *service["command"]]
            done = said(
                image, *words,
                mounts={tmp_path: "/data:ro"},
                environment={**service["environment"], "AWS_ENDPOINT_URL": moto.url},
                options=("--entrypoint", entry[0]) if entry else (),
            )  # fmt: skip
            assert done.returncode == 0, f"{name}: {done.stderr}"
        body = moto.client("s3").get_object(Bucket="vsr", Key="outgoing/film.mkv")["Body"].read()
    assert "complete" in done.stdout
    (tmp_path / "back.mkv").write_bytes(body)
    checked = said(image, "verify", "/data/film.mkv", "/data/back.mkv", mounts={tmp_path: "/data:ro"})
    assert checked.returncode == 0, checked.stdout + checked.stderr


def _until(is_so: Any) -> None:
    until = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.1)
