"""S3 by boto3: options, addresses, and a connection whose errors a person can act on.

Retries are bounded and counted, a broken answer is taken up where it broke. Nothing here ever logs a
credential or a signed address.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO, Literal, get_args

import boto3
import botocore.session
import urllib3.exceptions
from botocore import exceptions as aws
from botocore.config import Config

from vsr_hpc.errors import JobError, OutageError
from vsr_hpc.storage.s3_address import S3Address
from vsr_hpc.storage.s3_errors import ObjectChanged, explained, status
from vsr_hpc.system.aws_region import find_region, need_region
from vsr_hpc.system.progress import tick

log = logging.getLogger(__name__)


MIB = 1 << 20
Encryption = Literal["AES256", "aws:kms", "aws:kms:dsse"]
Checksum = Literal["SHA256", "CRC32", "CRC64NVME"]
_STREAM_TRIES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Options:
    """How to talk to S3. Address, profile and credentials come by boto3's own rules; the region by
    `system/aws_region.py`.
    """

    encryption: Encryption | None = None
    """None leaves it to the bucket's default, which is AES256 unless its owner chose a key."""
    kms_key: str | None = None
    is_accelerated: bool = False
    checksum: Checksum = "SHA256"
    """What S3 checks an upload against; CRC64NVME needs `pip install awscrt`."""
    tries: int = 8
    """Per request, the first included; waits grow to 20 s with jitter, about a minute in all."""
    part_bytes: int = 64 * MIB
    """A larger file goes up in parts of this size, four at a time."""
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if self.encryption is not None and self.encryption not in get_args(Encryption):
            raise JobError(
                f"s3: encryption {self.encryption!r} is unknown; try {', '.join(get_args(Encryption))}"
            )
        if self.kms_key and self.encryption not in ("aws:kms", "aws:kms:dsse"):
            raise JobError("s3: a KMS key needs encryption aws:kms or aws:kms:dsse")
        if self.part_bytes < 5 * MIB:
            raise JobError(f"s3: parts of {self.part_bytes} bytes are below S3's least, {5 * MIB}")
        if self.tries < 1:
            raise JobError(f"s3: {self.tries} tries are none; 1 is the least")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> S3Options:
        """VSR_S3_ENCRYPTION, VSR_S3_KMS_KEY, VSR_S3_ACCELERATE=1; a key alone means aws:kms."""
        named = os.environ if environment is None else environment
        key = named.get("VSR_S3_KMS_KEY") or None
        encryption = named.get("VSR_S3_ENCRYPTION") or ("aws:kms" if key else None)
        return cls(
            encryption=encryption,  # type: ignore[arg-type]  # checked in __post_init__
            kms_key=key,
            is_accelerated=named.get("VSR_S3_ACCELERATE", "") not in ("", "0", "false"),
        )


SHA256_MARK = "vsr-sha256"
RUN_MARK = "vsr-run"


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Facts:
    """What tells one content of an object from another."""

    size_bytes: int
    etag: str
    version: str | None
    sha256: str | None = None
    """Of the content, where whoever wrote it noted it (`SHA256_MARK`)."""
    run: str | None = None
    """Which edition of which run wrote it, where it is the output of one (`RUN_MARK`)."""


class S3Connection:
    """One boto3 client; threads may share it, processes may not."""

    def __init__(self, options: S3Options) -> None:
        self.options = options
        self.requests: Counter[str] = Counter()
        """Requests sent, by operation; tries count each."""
        self._counting = threading.Lock()
        self._clock_ahead_s: float | None = None
        self._buckets: set[str] = set()
        self._conditions: dict[tuple[str, str], dict[str, str]] = {}
        self.client: Any = _client(options)
        self.client.meta.events.register("before-send.s3", self._count)
        self.client.meta.events.register("after-call.s3", self._observe_clock)
        for operation in ("PutObject", "CompleteMultipartUpload"):  # boto3's uploads take no conditions
            self.client.meta.events.register(f"provide-client-params.s3.{operation}", self._add_condition)

    def head(self, address: S3Address) -> S3Facts:
        with explained(address):
            answer = self.client.head_object(Bucket=address.bucket, Key=address.key)
        return S3Facts(
            size_bytes=answer["ContentLength"],
            etag=answer["ETag"],
            version=answer.get("VersionId"),
            sha256=answer.get("Metadata", {}).get(SHA256_MARK),
            run=answer.get("Metadata", {}).get(RUN_MARK),
        )

    @contextlib.contextmanager
    def writing_only_over(self, address: S3Address, etag: str | None) -> Iterator[None]:
        """In the block an upload of this object takes effect only over this content; None: over nothing."""
        key = (address.bucket, address.key)
        self._conditions[key] = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        try:
            yield
        finally:
            del self._conditions[key]

    def read_into(
        self,
        file: BinaryIO,
        address: S3Address,
        *,
        start: int = 0,
        length: int | None = None,
        etag: str | None = None,
    ) -> None:
        """Write the object, or `length` bytes of it from `start`, to `file` where it stands.

        A body that breaks off is taken up where it broke, with the same ETag, so no mix of two contents is
        ever written. Raises ObjectChanged where the ETag is not (or no longer) the wanted one.
        """
        begin, done, wanted = file.tell(), 0, etag
        for tries_left in reversed(range(_STREAM_TRIES)):
            asked = {"Bucket": address.bucket, "Key": address.key}
            if wanted is not None:
                asked["IfMatch"] = wanted
            if start + done or length is not None:
                asked["Range"] = f"bytes={start + done}-" + (
                    "" if length is None else f"{start + length - 1}"
                )
            try:
                with explained(address):
                    answer = self.client.get_object(**asked)
                wanted = answer["ETag"]
                with contextlib.closing(answer["Body"]) as body:
                    for piece in body.iter_chunks(MIB):
                        file.write(piece)
                        done += len(piece)
                        tick()
                return
            except ObjectChanged:
                if etag is not None or not tries_left:
                    raise
                wanted, done = None, 0  # replaced while we read: take the new one, whole
            except _BROKEN_STREAM as exc:
                if not tries_left:
                    raise OutageError(
                        f"{address.uri}: the answer broke off {_STREAM_TRIES} times, last after {done} bytes"
                    ) from exc
                log.warning("s3 answer broke off object=%s bytes=%d why=%s", address.uri, done, exc)
                if isinstance(exc, aws.FlexibleChecksumError):  # all there, and something in it wrong
                    done = 0
                pause(_STREAM_TRIES - tries_left)
            file.seek(begin + done)
            file.truncate()

    def now_s(self, bucket: str) -> float:
        """S3's clock, from the last answer's Date; asks only where there was none yet."""
        if self._clock_ahead_s is None:
            with explained(S3Address(bucket=bucket, key="")):
                self.client.head_bucket(Bucket=bucket)
        return time.monotonic() + (self._clock_ahead_s or 0.0)

    def check_bucket(self, bucket: str) -> None:
        """JobError where it is missing; asks once. 403 says that it is there: a policy that lets us list some
        names alone answers so, as no question for the bucket itself has a name.
        """
        if bucket not in self._buckets:
            with explained(S3Address(bucket=bucket, key="")):
                try:
                    self.client.head_bucket(Bucket=bucket)
                except aws.ClientError as exc:
                    if status(exc) != 403:
                        raise
            self._buckets.add(bucket)

    def _count(self, event_name: str, **_: object) -> None:
        with self._counting:
            self.requests[event_name.rpartition(".")[2]] += 1

    def _add_condition(self, params: dict[str, Any], **_: object) -> dict[str, Any]:
        return {**params, **self._conditions.get((params["Bucket"], params["Key"]), {})}

    def _observe_clock(self, parsed: dict[str, Any], **_: object) -> None:
        date = parsed.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
        with contextlib.suppress(TypeError, ValueError):
            self._clock_ahead_s = parsedate_to_datetime(date).timestamp() - time.monotonic()


_BROKEN_STREAM = (
    aws.ReadTimeoutError,
    aws.ResponseStreamingError,
    aws.IncompleteReadError,
    aws.FlexibleChecksumError,
    urllib3.exceptions.HTTPError,
    ConnectionError,
    TimeoutError,
)


def _client(options: S3Options) -> Any:
    session = botocore.session.Session()
    session.register_component("data_loader", _service_models())
    # Instance credentials: many workers of one node ask IMDS at once, and one lost answer must not end them.
    session.set_config_variable("metadata_service_num_attempts", 3)
    config = Config(
        retries={"mode": "standard", "total_max_attempts": options.tries},
        connect_timeout=options.connect_timeout_s,
        read_timeout=options.read_timeout_s,
        max_pool_connections=16,
        tcp_keepalive=True,
        s3={"use_accelerate_endpoint": True} if options.is_accelerated else None,
    )
    try:
        connect = boto3.Session(botocore_session=session).client
        # An object store that is not AWS's has no regions, but signatures name one: us-east-1 is usual there.
        made = connect("s3", config=config, region_name=find_region() or "us-east-1")
        if ".amazonaws.com" in made.meta.endpoint_url:
            need_region()
        return made
    except (aws.BotoCoreError, ValueError) as exc:
        raise JobError(f"s3: {exc}; mend the AWS settings of this shell") from exc


@functools.cache
def _service_models() -> Any:
    """S3's description, 1 MB of JSON, read once for all clients of this process."""
    return botocore.loaders.create_loader()


def pause(tried: int) -> None:
    time.sleep(random.uniform(0.5, 1.0) * min(5.0, 0.05 * 2**tried))
