"""What comes in through the live page: clips, previews and jobs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from vsr_hpc.errors import JobError, SpaceError, VsrError
from vsr_hpc.storage.s3_address import S3Address
from vsr_hpc.storage.s3_connection import S3Connection, S3Options
from vsr_hpc.storage.s3_errors import explained

log = logging.getLogger(__name__)


_PART_BYTES = 16 << 20
_MOST_PARTS = 9000
_URL_S = 12 * 3600
_KEPT_FREE_BYTES = 256 << 20


class Began(BaseModel):
    """An upload that is about to begin."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=1024)
    size: int = Field(ge=1, le=5 << 40)


def safe_name(text: str) -> str:
    """A plain file's name: no folder, no control character, never hidden."""
    name = re.sub(r"[\x00-\x1f\x7f/\\]", "_", text.replace("\\", "/").rpartition("/")[2]).strip().lstrip(".")
    kept = name.encode(errors="replace")[-200:].decode(errors="ignore")
    return kept or "clip"


class Folder:
    """Clips dropped onto the page go into a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def place(self) -> str:
        return str(self._folder)

    async def receive(self, name: str, size: int | None, body: AsyncIterator[bytes]) -> str:
        """The path of the whole clip; nothing is left of one that breaks off."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if size is not None and shutil.disk_usage(self._folder).free < size + _KEPT_FREE_BYTES:
            raise SpaceError(f"{self._folder}: no room for {size} bytes; free some space")
        temporary = self._folder / f".upload-{secrets.token_hex(8)}"
        try:
            taken = 0
            with temporary.open("xb") as file:
                async for piece in body:
                    taken += len(piece)
                    await asyncio.to_thread(file.write, piece)
            if taken == 0 or (size is not None and taken != size):
                raise JobError(f"{name}: {taken} of {size} bytes came; send it again")
            return str(_placed(temporary, self._folder, safe_name(name)))
        finally:
            temporary.unlink(missing_ok=True)


def _placed(temporary: Path, folder: Path, name: str) -> Path:
    """Give the file its name, or the next free one: nobody's file is replaced."""
    stem, suffix = Path(name).stem, Path(name).suffix
    for number in range(1, 10_000):
        target = folder / (name if number == 1 else f"{stem}-{number}{suffix}")
        with contextlib.suppress(FileExistsError):
            os.link(temporary, target)
            return target
    raise JobError(f"{folder / name}: ten thousand of that name are there")


class Bucket:
    """Clips go from the browser straight to S3, in parts, by signed addresses."""

    def __init__(self, uri: str) -> None:
        self._prefix = S3Address.from_uri(uri.rstrip("/") + "/x").uri.removesuffix("/x")
        self._connection = S3Connection(S3Options.from_environment())
        self._open: dict[str, tuple[S3Address, str, int]] = {}

    @property
    def place(self) -> str:
        return self._prefix

    @property
    def origin(self) -> str:
        """Where the browser sends to."""
        address = S3Address.from_uri(f"{self._prefix}/x")
        parts = urlsplit(self._signed(address, "x", 1))
        return f"{parts.scheme}://{parts.netloc}"

    def begin(self, wanted: Began) -> dict[str, Any]:
        """A multipart upload, and an address for each of its parts."""
        address = S3Address.from_uri(f"{self._prefix}/{secrets.token_hex(4)}/{safe_name(wanted.name)}")
        part = max(_PART_BYTES, -(-wanted.size // _MOST_PARTS))
        count = -(-wanted.size // part)
        with explained(address):
            answer = self._connection.client.create_multipart_upload(Bucket=address.bucket, Key=address.key)
        number = secrets.token_hex(8)
        self._open[number] = (address, answer["UploadId"], count)
        urls = [self._signed(address, answer["UploadId"], each) for each in range(1, count + 1)]
        return {"upload": number, "part_bytes": part, "urls": urls}

    def complete(self, number: str) -> str:
        """The clip's address once all parts are there. S3 is asked for them: the page need not know them."""
        address, upload, count = self._known(number)
        with explained(address):
            pages = self._connection.client.get_paginator("list_parts").paginate(
                Bucket=address.bucket, Key=address.key, UploadId=upload
            )
            parts = [
                {"PartNumber": part["PartNumber"], "ETag": part["ETag"]}
                for page in pages
                for part in page.get("Parts", ())
            ]
            if len(parts) != count:
                raise JobError(f"{address.uri}: {len(parts)} of {count} parts are there; send it again")
            self._connection.client.complete_multipart_upload(
                Bucket=address.bucket, Key=address.key, UploadId=upload, MultipartUpload={"Parts": parts}
            )
        del self._open[number]
        return address.uri

    def abort(self, number: str) -> None:
        address, upload, _ = self._known(number)
        with explained(address):
            self._connection.client.abort_multipart_upload(
                Bucket=address.bucket, Key=address.key, UploadId=upload
            )
        del self._open[number]

    def abort_all(self) -> None:
        """S3 bills parts that nobody completes."""
        for number in tuple(self._open):
            try:
                self.abort(number)
            except VsrError as exc:
                log.warning("an upload was not ended: %s", exc)

    def _known(self, number: str) -> tuple[S3Address, str, int]:
        if number not in self._open:
            raise JobError("this upload is not known any more; send the clip again")
        return self._open[number]

    def _signed(self, address: S3Address, upload: str, part: int) -> str:
        url: str = self._connection.client.generate_presigned_url(
            "upload_part",
            Params={"Bucket": address.bucket, "Key": address.key, "UploadId": upload, "PartNumber": part},
            ExpiresIn=_URL_S,
        )
        return url
