"""The folder store's own matters: full disks, file systems, the node's own folder."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.require import require
from vsr_hpc.errors import BackendError, JobError, SpaceError
from vsr_hpc.storage.folder_store import FolderStore
from vsr_hpc.storage.opening import open_store
from vsr_hpc.system.file_systems import file_system_among
from vsr_hpc.system.node_disk import node_folder, process_folder

_MOUNTS = r"""
proc /proc proc rw 0 0
/dev/nvme0n1p1 / ext4 rw 0 0
10.0.0.1:/ /shared nfs4 rw,vers=4.1 0 0
10.0.0.2@tcp:/fsx /fsx lustre rw 0 0
/dev/sdb /shared/local\040disk xfs rw 0 0
systemd-1 /auto autofs rw 0 0
server:/home /auto nfs rw 0 0
broken
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/a", "ext4"),
        ("/shared", "nfs4"),
        ("/shared/runs/film", "nfs4"),
        ("/shared/local disk/run", "xfs"),
        ("/sharedness", "ext4"),
        ("/fsx/run", "lustre"),
        ("/auto/run", "nfs"),
    ],
)
def test_file_system_is_the_longest_and_latest_mount_above(path: str, kind: str) -> None:
    assert file_system_among(_MOUNTS, path) == kind


def test_file_system_unknown_to_the_kernel_has_no_name() -> None:
    assert file_system_among("", "/anything") == ""


@pytest.mark.parametrize(
    ("kind", "window_s"), [("nfs4", 180.0), ("lustre", 180.0), ("ext4", 60.0), ("", 60.0)]
)
def test_shared_file_systems_get_a_longer_lease_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, window_s: float
) -> None:
    monkeypatch.setattr("vsr_hpc.storage.folder_store.file_system_of", lambda path: kind)
    assert FolderStore(tmp_path).lease_window_s == window_s


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        require("mount", f"a tiny disk cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_full_disk_is_a_space_error_and_leaves_nothing_half(tiny_disk: Path) -> None:
    store = FolderStore(tiny_disk / "run")
    store.put("plan.json", b"{}")
    with pytest.raises(SpaceError, match="full"):
        store.put("big", bytes(1 << 20))
    with pytest.raises(SpaceError, match="full"):
        store.create("big", bytes(1 << 20))
    assert [facts.name for facts in store.list("")] == ["plan.json"]
    assert sorted(path.name for path in (tiny_disk / "run").iterdir()) == ["plan.json"]


def test_full_disk_refuses_a_file_from_another_disk_and_keeps_it(tiny_disk: Path, tmp_path: Path) -> None:
    path = tmp_path / "segment.mp4"
    path.write_bytes(bytes(1 << 20))
    store = FolderStore(tiny_disk / "run")
    with pytest.raises(SpaceError):
        store.put_file("segments/a.mp4", path)
    assert path.stat().st_size == 1 << 20
    assert store.list("") == ()


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_file_system_without_hard_links_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(JobError, match="hard links"):
        FolderStore(tmp_path).create("leases/0", b"")
    assert list((tmp_path / "leases").iterdir()) == []


def test_link_that_succeeded_but_lost_its_answer_has_won(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_and_lose_the_answer(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "as NFS says after a retransmission")

    def stat_from_a_cache(path: Path, **named: bool) -> os.stat_result:
        found = stat(path, **named)
        return os.stat_result((*found[:3], 1, *found[4:]))  # one link, as before ours

    stat = Path.stat
    monkeypatch.setattr(os, "link", link_and_lose_the_answer)
    monkeypatch.setattr(Path, "stat", stat_from_a_cache)
    assert FolderStore(tmp_path).create("leases/0", b"me")


def test_stale_handle_of_a_replaced_object_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderStore(tmp_path)
    store.put("workers/a", b"new")
    read, stale = Path.read_bytes, [OSError(errno.ESTALE, "stale")] * 2

    def read_bytes(path: Path) -> bytes:
        if stale:
            raise stale.pop()
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert store.read("workers/a") == b"new"
    stale.extend([OSError(errno.ESTALE, "stale")] * 9)
    with pytest.raises(BackendError):
        store.read("workers/a")


def test_run_folder_honours_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o007)
    try:
        FolderStore(tmp_path / "run").put("receipts/0", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "run" / "receipts").stat().st_mode & 0o777 == 0o770
    assert (tmp_path / "run" / "receipts" / "0").stat().st_mode & 0o777 == 0o660


def test_a_file_in_the_runs_place_is_a_job_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(JobError):
        FolderStore(tmp_path / "run").put("plan.json", b"{}")
    assert not FolderStore(tmp_path / "run").exists("plan.json")


def test_unknown_schemes_are_refused() -> None:
    with pytest.raises(JobError, match="s3://bucket/prefix"):
        open_store("gs://films/run")


def test_node_folder_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSR_NODE_CACHE", str(tmp_path / "scratch"))
    folder = node_folder()
    assert folder == tmp_path / "scratch" / f"vsr-{os.geteuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    assert node_folder().stat().st_mode & 0o777 == 0o700


def test_node_folder_that_is_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSR_NODE_CACHE", str(tmp_path))
    (tmp_path / f"vsr-{os.geteuid()}").symlink_to("/tmp")
    with pytest.raises(JobError, match="not a folder of yours"):
        node_folder()


_DIES = """
import os
from vsr_hpc.system.node_disk import process_folder
(process_folder('scratch') / "half").write_bytes(b"half")
print(process_folder('scratch'), flush=True)
os.kill(os.getpid(), 9)
"""


def test_folder_of_a_killed_process_is_swept_and_of_a_living_one_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSR_NODE_CACHE", str(tmp_path))
    mine = process_folder("scratch")
    dead = subprocess.run([sys.executable, "-c", _DIES], stdout=subprocess.PIPE, text=True).stdout.strip()
    assert (Path(dead) / "half").exists()
    script = "from vsr_hpc.system.node_disk import process_folder; print(process_folder('scratch'))"
    other = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True).stdout.strip()
    assert not Path(dead).exists()
    assert not Path(other).exists(), "a process that ends well takes its folder with it"
    assert mine.is_dir()
