"""The bootstrap script in a chroot of the image's own distribution, with a real packed environment."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.require import require
from tests.tools import find_tool
from vsr_hpc.aws.cluster.instance_rules import pools
from vsr_hpc.aws.cluster.node_environment import pack
from vsr_hpc.aws.cluster.render import find_template, render
from vsr_hpc.aws.cluster.values import Values
from vsr_hpc.aws.cluster.yaml_document import parse
from vsr_hpc.aws.config_files import config_folder
from vsr_hpc.job.reading import load_job

STORE = "s3://vsr-hpc-data/vsr"
SUITE, MIRROR, PYTHON = "noble", "http://archive.ubuntu.com/ubuntu", "3.12"
OURS = ("opt/vsr", "etc/vsr", "scratch", "var/tmp/vsr", "usr/local/bin/vsr", "etc/systemd/system", "s3")
WEIGHTS = b"weights"
pytestmark = [pytest.mark.aws, pytest.mark.timeout(600)]


@pytest.fixture(scope="session")
def distribution() -> Path:
    """Ubuntu 24.04, as ParallelCluster's image; made once and kept in the user's cache."""
    if os.geteuid() != 0:
        require("aws", "a chroot needs root")
    tool = find_tool("debootstrap")
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vsr_hpc-tests" / SUITE
    if (kept / "usr/bin/python3").exists():
        return kept
    if tool is None:
        require("aws", "debootstrap is not installed")
    shutil.rmtree(kept, ignore_errors=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    making = kept.with_name(f"{SUITE}.making")
    shutil.rmtree(making, ignore_errors=True)
    # An older debootstrap knows no "noble"; all Ubuntu releases share one script.
    script = "/usr/share/debootstrap/scripts/gutsy"
    command = [tool, "--variant=minbase", "--include=systemd,python3", SUITE, str(making), MIRROR, script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    if done.returncode:
        require("ubuntu", f"debootstrap {SUITE} failed: {done.stdout.strip().splitlines()[-1:]}")
    making.rename(kept)
    return kept


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment that nodes unpack, with only what `vsr --help` imports."""
    kept = tmp_path_factory.mktemp("pack")
    with pack("gpu", lambda _: None, wanted=["typer"], python=PYTHON) as packed:
        shutil.copy(packed.path, kept / packed.name)
        (kept / "gpu.current").write_text(f"{packed.sha256} {packed.name}\n")
        (kept / "cpu.current").write_text(f"{packed.sha256} {packed.name}\n")
    return kept


@dataclass(frozen=True)
class Node:
    """A chroot that believes it is a node; /s3 is its bucket."""

    root: Path

    @property
    def store(self) -> Path:
        return self.root / "s3/vsr-hpc-data/vsr"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.command("bash", "/node.sh", *arguments)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        clean = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": "/root",
            "SYSTEMD_OFFLINE": "1",
        }
        # A mount of its own, gone with the process: /scratch, where there is one, plays the NVMe.
        nvme = '[ -d "$0/scratch" ] && mount --bind "$0/scratch" "$0/scratch"'
        script = f'mount --bind /proc "$0/proc"; {nvme}; exec chroot "$0" "$@"'
        command = ["unshare", "--mount", "/bin/sh", "-c", script, str(self.root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=clean)

    def boot(self, role: str, *more: str) -> subprocess.CompletedProcess[str]:
        return self.run("--role", role, "--store", STORE, "--region", "us-east-1", *more)

    def contents(self) -> dict[str, tuple[str, str]]:
        """Everything of ours: path -> (mode, what it is)."""
        found: dict[str, tuple[str, str]] = {}
        for top in OURS[:-1]:
            start = self.root / top
            for path in (start, *start.rglob("*")) if start.exists() or start.is_symlink() else ():
                if "__pycache__" in path.parts:
                    continue
                mode = stat.filemode(path.lstat().st_mode)
                what = str(path.readlink()) if path.is_symlink() else digest(path) if path.is_file() else ""
                found[str(path.relative_to(self.root))] = (mode, what)
        return found


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def chroot(distribution: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    root = tmp_path_factory.mktemp("node") / "root"
    subprocess.run(["cp", "-a", "--reflink=auto", str(distribution), str(root)], check=True)
    shutil.copy(config_folder() / "bootstrap/node.sh", root / "node.sh")
    stub = root / "usr/local/bin/aws"
    shutil.copy(Path(__file__).with_name("aws_stub.py"), stub)
    stub.chmod(0o755)
    yield Node(root)
    shutil.rmtree(root)


@pytest.fixture
def node(chroot: Node, archive: Path) -> Node:
    """As it comes from the image, with a packed environment and weights in its bucket."""
    for each in OURS:
        path = chroot.root / each
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif each != "etc/systemd/system":
            shutil.rmtree(path, ignore_errors=True)
    for folder in ("multi-user.target.wants", "."):
        (chroot.root / "etc/systemd/system" / folder / "spot-watch.service").unlink(missing_ok=True)
    shutil.copytree(archive, chroot.store / "environments")
    weights = chroot.store / "weights" / hashlib.sha256(WEIGHTS).hexdigest()
    weights.mkdir(parents=True)
    (weights / "net.pth").write_bytes(WEIGHTS)
    return chroot


def test_gpu_node_runs_twice_with_the_same_result(node: Node) -> None:
    first = node.boot("gpu", "--spot")
    assert first.returncode == 0, first.stderr
    before = node.contents()
    second = node.boot("gpu", "--spot")
    assert second.returncode == 0, second.stderr
    assert node.contents() == before
    assert "installed" in first.stderr and "installed" not in second.stderr


def test_vsr_runs_on_the_node_from_its_packed_environment(node: Node) -> None:
    assert node.boot("cpu").returncode == 0
    answer = node.command("vsr", "--help")
    assert answer.returncode == 0 and "upscale" in answer.stdout


def test_node_says_where_caches_lie_and_what_a_user_set_wins(node: Node) -> None:
    assert node.boot("gpu").returncode == 0
    code = "import os; print(os.environ['VSR_NODE_CACHE'], os.environ['XDG_CACHE_HOME'])"
    python = "/opt/vsr/current/bin/python"
    assert node.command(python, "-c", code).stdout.split() == ["/var/tmp/vsr", "/var/tmp/vsr/cache"]
    mine = node.command("env", "VSR_NODE_CACHE=/mine", python, "-c", code)
    assert mine.stdout.split() == ["/mine", "/var/tmp/vsr/cache"]


def test_programs_of_a_node_work_in_the_clusters_region(node: Node) -> None:
    assert node.boot("gpu").returncode == 0
    code = "import os; print(os.environ['AWS_REGION'], os.environ['AWS_DEFAULT_REGION'])"
    python = "/opt/vsr/current/bin/python"
    assert node.command(python, "-c", code).stdout.split() == ["us-east-1", "us-east-1"]


def test_nvme_is_used_where_the_instance_has_one(node: Node) -> None:
    (node.root / "scratch").mkdir()
    assert node.boot("gpu").returncode == 0
    assert "VSR_NODE_CACHE=/scratch/vsr\n" in (node.root / "etc/vsr/node.env").read_text()
    assert list((node.root / "scratch/vsr/cache/vsr_hpc/weights").glob("*/net.pth"))


def test_weights_are_warm_where_the_model_cache_looks(node: Node) -> None:
    assert node.boot("gpu").returncode == 0
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    assert (node.root / f"var/tmp/vsr/cache/vsr_hpc/weights/{sha256}/net.pth").read_bytes() == WEIGHTS


def test_spot_watch_is_installed_and_enabled_on_spot_nodes_only(node: Node) -> None:
    enabled = node.root / "etc/systemd/system/multi-user.target.wants/spot-watch.service"
    assert node.boot("gpu").returncode == 0
    assert not enabled.is_symlink()
    assert node.boot("gpu", "--spot").returncode == 0
    assert enabled.is_symlink()
    help_text = node.command("python3", "-I", "/opt/vsr/spot-watch/spot_watch.py", "--help")
    assert help_text.returncode == 0


def test_head_node_has_a_first_job_that_loads_and_fits_the_standard_cluster(
    node: Node, values: Values
) -> None:
    assert node.boot("head").returncode == 0
    job = load_job(node.root / "opt/vsr/first-job.yaml")
    assert job.input == f"{STORE}/incoming/clip.mp4" and job.run_uri == f"{STORE}/runs/clip"
    queues = {pool.queue for pool in pools(parse(render(find_template("spot-gpu"), values).text, "x"))}
    assert set(job.slurm.partitions) <= queues
    assert job.slurm.container is None


def test_first_job_runs_in_the_container_where_the_cluster_has_one(node: Node) -> None:
    assert node.boot("head", "--container", "registry.example.org/vsr-hpc:1").returncode == 0
    container = load_job(node.root / "opt/vsr/first-job.yaml").slurm.container
    assert container is not None
    assert (container.runtime, container.image) == ("enroot", "/opt/vsr/container.sqsh")
    assert node.boot("head").returncode == 0


def test_new_environment_is_switched_to_and_the_old_one_stays(node: Node) -> None:
    assert node.boot("cpu").returncode == 0
    old = (node.root / "opt/vsr/current").readlink()
    with pack("cpu", lambda _: None, wanted=[], python=PYTHON) as packed:
        shutil.copy(packed.path, node.store / "environments" / packed.name)
        (node.store / "environments/cpu.current").write_text(f"{packed.sha256} {packed.name}\n")
    refused = node.boot("cpu")  # it lacks typer: `vsr --help` does not run
    assert refused.returncode == 1 and "does not run here" in refused.stderr
    assert (node.root / "opt/vsr/current").readlink() == old


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        ("pointer", "could not be fetched; did `vsr cluster pack` run?"),
        ("nonsense", "is damaged"),
        ("archive", "is not what was packed"),
        ("weights", "are not what their name says"),
    ],
)
def test_node_that_cannot_be_whole_fails_loudly_and_leaves_its_log(node: Node, harm: str, says: str) -> None:
    environments = node.store / "environments"
    if harm == "pointer":
        (environments / "gpu.current").unlink()
    elif harm == "nonsense":
        (environments / "gpu.current").write_text("x ../../etc/passwd\n")
    elif harm == "archive":
        next(environments.glob("*.tar.gz")).write_bytes(b"not it")
    else:
        next(node.store.glob("weights/*/*")).write_bytes(b"other")
    done = node.boot("gpu")
    assert done.returncode == 1 and says in done.stderr, done.stderr
    assert says in next((node.store / "node-failures").iterdir()).read_text()
    assert harm == "weights" or not (node.root / "usr/local/bin/vsr").is_symlink()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--role", "king", "--store", STORE, "--region", "r"), "--role is head, gpu or cpu"),
        (("--role", "gpu", "--store", "/tmp", "--region", "r"), "--store is s3://BUCKET/PREFIX"),
        (("--role", "gpu", "--store", STORE), "--region is missing"),
        (("--role",), "--role wants a value"),
        (("--rolle", "gpu"), "unknown argument --rolle"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_touched(
    node: Node, arguments: tuple[str, ...], says: str
) -> None:
    done = node.run(*arguments)
    assert done.returncode == 1 and says in done.stderr
    assert not (node.root / "opt/vsr/current").is_symlink()


def test_container_without_a_runtime_fails_with_the_way_out(node: Node) -> None:
    done = node.boot("gpu", "--container", "registry.example.org/vsr-hpc:1")
    assert done.returncode == 1 and "use the packed environment" in done.stderr


REGISTRY = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
ENROOT = f"""#!/bin/sh
# Reads what enroot's src/docker.sh reads, and refuses as a private registry does where that is not there.
credentials=$ENROOT_CONFIG_PATH/.credentials
echo "$(stat -c %a "$ENROOT_CONFIG_PATH" "$credentials" | xargs) $@" >> /enroot.calls
grep -q "^machine {REGISTRY} login AWS password secret$" "$credentials" ||
  {{ echo "[ERROR] 401: authenticating with user: <anonymous>" >&2; exit 1; }}
[ ! -e "$3" ] || {{ echo "[ERROR] File already exists: $3" >&2; exit 1; }}
echo squash > "$3"
"""


def test_container_of_a_private_registry_is_pulled_once_and_leaves_no_password(node: Node) -> None:
    bin_folder = node.root / "usr/local/bin"
    enroot = bin_folder / "enroot"
    enroot.write_text(ENROOT)
    enroot.chmod(0o755)
    aws = bin_folder / "aws"
    plain = aws.read_text()
    aws.write_text('#!/bin/sh\ncase $1 in ecr) echo secret;; *) exec /usr/local/bin/aws.real "$@";; esac\n')
    (bin_folder / "aws.real").write_text(plain)
    (bin_folder / "aws.real").chmod(0o755)
    try:
        for _ in range(2):
            done = node.boot("gpu", "--container", f"{REGISTRY}/vsr-hpc:1")
            assert done.returncode == 0, done.stderr
        calls = (node.root / "enroot.calls").read_text().splitlines()
        assert len(calls) == 1 and f"docker://{REGISTRY}#vsr-hpc:1" in calls[0]
        assert calls[0].startswith("700 600 "), "others can read the password"
        assert not (node.root / "opt/vsr/.enroot").exists() and "secret" not in done.stderr
    finally:
        enroot.unlink()
        aws.write_text(plain)
        (bin_folder / "aws.real").unlink()


def test_equal_contents_pack_into_equal_bytes() -> None:
    digests = set()
    for _ in range(2):
        with pack("cpu", lambda _: None, wanted=[], python=PYTHON) as packed:
            digests.add(packed.sha256)
    assert len(digests) == 1


def test_packed_environment_names_no_path_of_the_machine_that_packed_it(tmp_path: Path) -> None:
    with pack("cpu", lambda _: None, wanted=[], python=PYTHON) as packed:
        subprocess.run(["tar", "-xzf", str(packed.path), "-C", str(tmp_path)], check=True)
    here = str(Path.home()).encode(), str(Path(sys.prefix)).encode()
    for path in tmp_path.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert not any(each in path.read_bytes() for each in here if len(each) > 6), path
