"""The environment that nodes unpack: built once here, so that no node needs a package index at boot."""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from botocore.exceptions import ClientError

from vsr_hpc.aws.account import Say, client
from vsr_hpc.aws.config_files import config_folder
from vsr_hpc.aws.errors import OPERATOR_POLICY, error_code, explained
from vsr_hpc.errors import BackendError, JobError
from vsr_hpc.version import VERSION

log = logging.getLogger(__name__)

Flavour = Literal["gpu", "cpu"]

# Ubuntu 24.04's own Python, which ParallelCluster's image has at /usr/bin; wheels for its C library or older.
PYTHON = "3.12"
_PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17)),
    "manylinux2014_x86_64",
    "linux_x86_64",
)
_CPU_TORCH = "https://download.pytorch.org/whl/cpu"
_NODE_SETTINGS = """\
# Where this node keeps caches, said by its bootstrap; what a user has set wins.
import os

try:
    with open("/etc/vsr/node.env") as _file:
        for _line in _file:
            _name, _, _value = _line.strip().partition("=")
            if _name and _value:
                os.environ.setdefault(_name, _value)
except OSError:
    pass
"""
_LAUNCHER = """\
#!/bin/sh
exec "$(dirname "$(readlink -f "$0")")/python" -m vsr_hpc "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A packed environment: its file, its hash, and what it is called in the store."""

    flavour: Flavour
    path: Path
    sha256: str
    size_bytes: int

    @property
    def name(self) -> str:
        return f"{self.flavour}-{self.sha256[:16]}.tar.gz"


def flavours(word: str) -> tuple[Flavour, ...]:
    known: dict[str, tuple[Flavour, ...]] = {"gpu": ("gpu",), "cpu": ("cpu",), "both": ("gpu", "cpu")}
    if word not in known:
        raise JobError(f"flavour {word!r}: there are gpu, cpu and both")
    return known[word]


def requirements() -> tuple[str, ...]:
    """What vsr_hpc needs to run, without its test tools."""
    found = importlib.metadata.requires("vsr-hpc") or []
    return tuple(each for each in found if "extra ==" not in each)


@contextmanager
def pack(
    flavour: Flavour,
    say: Say,
    *,
    wanted: Sequence[str] | None = None,
    python: str = PYTHON,
    index: str | None = None,
) -> Iterator[Packed]:
    """Build an environment for nodes as one archive; equal contents make equal bytes."""
    with tempfile.TemporaryDirectory(prefix="vsr-pack-") as folder:
        root = Path(folder) / "root"
        site = root / "lib" / f"python{python}" / "site-packages"
        site.mkdir(parents=True)
        say(f"{flavour}: fetching wheels for Python {python}, Linux x86_64")
        _install(site, requirements() if wanted is None else wanted, flavour, python, index)
        _own_code(root, site)
        _skeleton(root, python)
        archive = Path(folder) / "environment.tar.gz"
        say(f"{flavour}: packing")
        _archive(root, archive)
        with archive.open("rb") as file:
            digest = _digest(file)
        yield Packed(
            flavour=flavour, path=archive, sha256=digest.hexdigest(), size_bytes=archive.stat().st_size
        )


def upload(packed: Packed, bucket: str, prefix: str, region: str, say: Say) -> str:
    """Put the archive, then the pointer that nodes read: a node sees the old one or the whole new one."""
    key = f"{prefix}/environments/{packed.name}"
    pointer = f"{prefix}/environments/{packed.flavour}.current"
    with _store(bucket, region) as s3:
        if not _exists(s3, bucket, key):
            say(f"{packed.flavour}: uploading {packed.size_bytes / 1e6:.0f} MB to s3://{bucket}/{key}")
            s3.upload_file(str(packed.path), bucket, key)
        s3.put_object(Bucket=bucket, Key=pointer, Body=f"{packed.sha256} {packed.name}\n".encode())
    return f"s3://{bucket}/{key}"


def upload_bootstrap(bucket: str, prefix: str, region: str, say: Say) -> None:
    """The scripts that root runs on a node."""
    files = sorted((config_folder() / "bootstrap").glob("*.sh"))
    with _store(bucket, region) as s3:
        for path in files:
            s3.put_object(Bucket=bucket, Key=f"{prefix}/bootstrap/{path.name}", Body=path.read_bytes())
    say(f"bootstrap: {', '.join(path.name for path in files)} in s3://{bucket}/{prefix}/bootstrap/")


def upload_weights(models: Sequence[str], bucket: str, prefix: str, region: str, say: Say) -> None:
    """Weights of these models, fetched and checked here, for nodes to warm their cache with."""
    from vsr_hpc.models.cards import find_card
    from vsr_hpc.models.weights import ensure

    for name in models:
        card = find_card(name)
        if card.weights is None:
            raise JobError(f"model {name} has no weights to warm a cache with")
        path = ensure(card)
        with path.open("rb") as file:
            sha256 = _digest(file).hexdigest()
        key = f"{prefix}/weights/{sha256}/{card.weights.file}"
        with _store(bucket, region) as s3:
            if not _exists(s3, bucket, key):
                s3.upload_file(str(path), bucket, key)
        say(f"weights: {name} in s3://{bucket}/{key}")


@contextmanager
def _store(bucket: str, region: str) -> Iterator[Any]:
    """A client of S3 for uploads to this bucket."""
    with explained(f"upload to s3://{bucket}", hint=OPERATOR_POLICY):
        yield client("s3", region)


def spot_watch_files() -> tuple[Path, ...]:
    """spot-watch of the checkout, or what an installed package brought along."""
    for folder in (config_folder().parent / "slurm" / "spot-watch", config_folder() / "spot-watch"):
        if folder.is_dir():
            return tuple(
                path
                for path in sorted(folder.iterdir())
                if path.is_file() and path.suffix in (".py", ".service")
            )
    raise JobError(f"spot-watch is not beside {config_folder()}; pack from a checkout of vsr_hpc")


def _install(site: Path, wanted: Sequence[str], flavour: Flavour, python: str, index: str | None) -> None:
    if not wanted:
        return
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-compile",
    ]
    command += ["--target", str(site), "--only-binary=:all:", "--python-version", python]
    command += ["--implementation", "cp", *(part for each in _PLATFORMS for part in ("--platform", each))]
    if index:
        command += ["--index-url", index]
    if flavour == "cpu" and any(re.match(r"torch\b", each) for each in wanted):
        command += ["--extra-index-url", _CPU_TORCH]
    done = subprocess.run([*command, *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise BackendError(f"the wheels of the {flavour} environment could not be fetched:\n{last}")
    shutil.rmtree(site / "bin", ignore_errors=True)  # their shebangs name this machine's Python


def _own_code(root: Path, site: Path) -> None:
    own = Path(__file__).parents[2]
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(own, site / "vsr_hpc", ignore=ignore, dirs_exist_ok=True)
    facts = site / f"vsr_hpc-{VERSION}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vsr-hpc\nVersion: {VERSION}\n")
    watch = root / "share" / "spot-watch"
    watch.mkdir(parents=True)
    for path in spot_watch_files():
        shutil.copy(path, watch / path.name)


def _skeleton(root: Path, python: str) -> None:
    """A virtual environment by hand: it has no path of this machine in it, so it may be unpacked anywhere."""
    binaries = root / "bin"
    binaries.mkdir()
    (binaries / "python").symlink_to(f"/usr/bin/python{python}")
    (binaries / "python3").symlink_to("python")
    (binaries / "vsr").write_text(_LAUNCHER)
    (binaries / "vsr").chmod(0o755)
    settings = f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {python}\n"
    (root / "pyvenv.cfg").write_text(settings)
    site = root / "lib" / f"python{python}" / "site-packages"
    # Not sitecustomize: Ubuntu's Python has one of its own, which comes first.
    (site / "_vsr_node.py").write_text(_NODE_SETTINGS)
    (site / "_vsr_node.pth").write_text("import _vsr_node\n")
    packages = sorted(path.name.removesuffix(".dist-info") for path in site.glob("*.dist-info"))
    facts = {"python": python, "packages": packages}
    (root / "manifest.json").write_text(json.dumps(facts, sort_keys=True) + "\n")


def _archive(root: Path, archive: Path) -> None:
    with (
        archive.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(root.rglob("*")):
            member = tar.gettarinfo(str(path), arcname=str(path.relative_to(root)))
            member.mtime = member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mode = 0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644
            if member.isfile():
                with path.open("rb") as file:
                    tar.addfile(member, file)
            else:
                tar.addfile(member)


def _digest(file: Any) -> Any:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest


def _exists(s3: Any, bucket: str, key: str) -> bool:
    try:
        s3.head_object(Bucket=bucket, Key=key)
    except ClientError as exc:
        if error_code(exc) in ("404", "NoSuchKey"):
            return False
        raise
    return True
