"""Where a history of `tests.histories` plays: a folder, a small disk of its own, or a bucket of moto's S3.

They are read and damaged here without the package's own code, since that code is what is tested.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.moto_server import Fault, Moto

DISK_MIB = 40
_BUCKET = "films"


class Place(Protocol):
    @property
    def poll_s(self) -> float:
        """How long the tester waits between two looks at the place."""
        ...

    def uri(self, name: str) -> str: ...
    def names(self, prefix: str) -> list[str]: ...
    def read(self, name: str) -> bytes | None: ...
    def write(self, name: str, content: bytes) -> None: ...
    def delete(self, name: str) -> None: ...
    def mend(self) -> None:
        """End every fault of the disk or the store."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderPlace:
    folder: Path
    poll_s: float = 0.02

    def uri(self, name: str) -> str:
        return str(self.folder / name)

    def names(self, prefix: str) -> list[str]:
        base = self.folder / prefix
        found = (Path(folder) / name for folder, _, names in os.walk(base) for name in names)
        return sorted(path.relative_to(self.folder).as_posix() for path in found)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        with contextlib.suppress(OSError):  # a full disk takes no foreign file either
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def delete(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def fill(self) -> None:
        """Leave no byte on the disk; only on a disk of its own."""
        with (self.folder / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def mend(self) -> None:
        self.delete("ballast")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Place:
    moto: Moto
    client: Any
    prefix: str
    poll_s: float = 0.2

    @classmethod
    def of(cls, moto: Moto, prefix: str) -> S3Place:
        return cls(moto=moto, client=moto.client("s3", is_spared=True), prefix=prefix)

    def fail(self, kind: Fault, word: str = "", **how: Any) -> None:
        """Let requests for names of this place that contain the word go wrong."""
        self.moto.fail(kind, path=f"{self.prefix}*{word}", **how)

    def uri(self, name: str) -> str:
        return f"s3://{_BUCKET}/{self.prefix}/{name}"

    def names(self, prefix: str) -> list[str]:
        root = f"{self.prefix}/"
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=_BUCKET, Prefix=root + prefix)
        return sorted(found["Key"].removeprefix(root) for page in pages for found in page.get("Contents", ()))

    def read(self, name: str) -> bytes | None:
        try:
            answer = self.client.get_object(Bucket=_BUCKET, Key=f"{self.prefix}/{name}")
        except self.client.exceptions.NoSuchKey:
            return None
        return bytes(answer["Body"].read())

    def write(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=_BUCKET, Key=f"{self.prefix}/{name}", Body=content)

    def delete(self, name: str) -> None:
        self.client.delete_object(Bucket=_BUCKET, Key=f"{self.prefix}/{name}")

    def mend(self) -> None:
        self.moto.heal(f"{self.prefix}*")


def make_bucket(moto: Moto) -> None:
    moto.make_bucket(_BUCKET)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A tmpfs of 40 MiB at the folder, where this user may mount one; whether it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs"]
    mounted = subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False)
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
