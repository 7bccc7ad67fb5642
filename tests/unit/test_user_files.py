"""Files that are replaced whole, their hashes, and the folders of a user."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from vsr_hpc.system.files import flush_and_hash, sha256_of_file, write_atomically
from vsr_hpc.system.user_folders import FolderKind, user_folder


def test_write_that_fails_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"half of the new"
        raise ConnectionError("the sender left")

    path = tmp_path / "kept.json"
    write_atomically(path, "old")
    with pytest.raises(ConnectionError):
        write_atomically(path, pieces())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_into_a_missing_folder_raises_the_systems_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "file", b"")


def test_new_file_takes_the_place_of_the_old_one_and_obeys_the_umask(tmp_path: Path) -> None:
    path, plain = tmp_path / "file", tmp_path / "plain"
    plain.touch()
    assert write_atomically(path, "ä") == 2
    assert write_atomically(path, [b"new", b"er"]) == 5
    assert path.read_bytes() == b"newer"
    assert path.stat().st_mode == plain.stat().st_mode


def test_hash_covers_every_block_of_a_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096 * 2 + b"the rest"  # two blocks and a part
    path = tmp_path / "large"
    path.write_bytes(content)
    wanted = hashlib.sha256(content).hexdigest()
    assert sha256_of_file(path) == wanted
    assert flush_and_hash(path) == (len(content), wanted)


@pytest.mark.parametrize(
    ("kind", "fallback"), [("cache", ".cache"), ("data", ".local/share"), ("state", ".local/state")]
)
def test_user_folder_follows_the_environment_and_else_the_home(
    kind: FolderKind, fallback: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(f"XDG_{kind.upper()}_HOME", raising=False)
    assert user_folder(kind) == tmp_path / "home" / fallback / "vsr_hpc"
    monkeypatch.setenv(f"XDG_{kind.upper()}_HOME", str(tmp_path / "elsewhere"))
    assert user_folder(kind) == tmp_path / "elsewhere" / "vsr_hpc"
