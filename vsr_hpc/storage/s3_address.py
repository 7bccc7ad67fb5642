"""An address of the form s3://bucket/key."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vsr_hpc.errors import JobError

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Address:
    bucket: str
    key: str

    @classmethod
    def from_uri(cls, uri: str) -> S3Address:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        if not uri.startswith("s3://") or not _BUCKET.fullmatch(bucket):
            raise JobError(f"{uri}: is not an S3 address; wanted s3://bucket/name, the bucket in lower case")
        if not key.strip("/"):
            raise JobError(f"{uri}: names a whole bucket; add a name below it, s3://{bucket}/name")
        if len(key.encode()) > 1024:
            raise JobError(f"{uri}: is longer than the 1024 bytes that S3 allows a name")
        return cls(bucket=bucket, key=key)

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}"
