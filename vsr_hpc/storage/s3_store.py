"""A run's store under `s3://bucket/prefix`."""

from __future__ import annotations

import contextlib
import io
import logging
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from boto3.s3.transfer import ProgressCallbackInvoker, TransferConfig, create_transfer_manager
from botocore import exceptions as aws

from vsr_hpc.errors import OutageError, VsrError
from vsr_hpc.storage.s3_address import S3Address
from vsr_hpc.storage.s3_connection import RUN_MARK, SHA256_MARK, S3Connection, S3Facts, S3Options, pause
from vsr_hpc.storage.s3_errors import explained, refusal, retries, status
from vsr_hpc.storage.store import MissingObject, ObjectFacts, check_name
from vsr_hpc.system.files import temporary_name, translated
from vsr_hpc.system.node_disk import process_folder
from vsr_hpc.system.progress import tick

log = logging.getLogger(__name__)


_CONFLICT_TRIES = 10
_DELETED_AT_ONCE = 1000
_MARK = "vsr-created-by"


class S3Store:
    """A run under a prefix of a bucket; satisfies Store."""

    poll_s = 30.0
    lease_window_s = 60.0

    def __init__(self, address: S3Address, connection: S3Connection) -> None:
        self._root = address
        self._connection = connection
        self._client = connection.client
        self._uploads = create_transfer_manager(
            self._client,
            TransferConfig(
                multipart_threshold=connection.options.part_bytes,
                multipart_chunksize=connection.options.part_bytes,
                max_concurrency=4,
                preferred_transfer_client="classic",  # the other one would not count its requests
            ),
        )

    @classmethod
    def from_uri(cls, uri: str, options: S3Options | None = None) -> S3Store:
        """Sends nothing yet; the first request tells whether the bucket is there and open to us."""
        address = S3Address.from_uri(uri.rstrip("/"))
        return cls(address, S3Connection(S3Options.from_environment() if options is None else options))

    @property
    def uri(self) -> str:
        return self._root.uri

    @property
    def requests(self) -> Counter[str]:
        """Requests sent so far, by operation; tries count each."""
        return self._connection.requests

    @property
    def scratch(self) -> Path:
        """On the node's own disk; `put_file` uploads from there."""
        return process_folder("scratch")

    def within(self, folder: str) -> S3Store:
        return S3Store(self._address(folder), self._connection)

    def put(self, name: str, content: bytes) -> None:
        address = self._address(name)
        with explained(address):
            self._client.put_object(
                Bucket=address.bucket, Key=address.key, Body=content, **self._upload_settings()
            )

    def create(self, name: str, content: bytes) -> bool:
        """One conditional PUT; a try whose answer was lost finds its own mark on the object and has won."""
        address, mark = self._address(name), secrets.token_hex(16)
        is_unsure = False
        for tried in range(_CONFLICT_TRIES):
            with explained(address):
                try:
                    self._client.put_object(
                        Bucket=address.bucket,
                        Key=address.key,
                        Body=content,
                        IfNoneMatch="*",
                        Metadata={_MARK: mark},
                        **self._upload_settings(),
                    )
                    return True
                except aws.ClientError as exc:
                    if status(exc) not in (409, 412):
                        raise
                    is_unsure |= status(exc) == 409 or retries(exc) > 0
                    if status(exc) == 412 and not is_unsure:
                        return False
                    if status(exc) == 412:
                        return self._mark_on(address) == mark
            pause(tried)  # 409: another conditional PUT of this name was under way
        raise OutageError(f"{address.uri}: S3 answered {_CONFLICT_TRIES} times that others write it just now")

    def read(self, name: str) -> bytes:
        into = io.BytesIO()
        self._connection.read_into(into, self._address(name))
        return into.getvalue()

    def exists(self, name: str) -> bool:
        try:
            self.facts(name)
        except MissingObject:
            return False
        return True

    def list(self, prefix: str) -> tuple[ObjectFacts, ...]:
        return tuple(sorted(self._listed(prefix), key=lambda facts: facts.name))

    def delete(self, name: str) -> None:
        address = self._address(name)
        with explained(address):
            self._client.delete_object(Bucket=address.bucket, Key=address.key)

    def delete_many(self, names: Iterable[str]) -> None:
        left = iter(names)
        while batch := list(islice(left, _DELETED_AT_ONCE)):
            self._delete_batch(batch)

    def facts(self, name: str) -> S3Facts:
        """MissingObject where it is not there, JobError where the bucket is not."""
        try:
            return self._connection.head(self._address(name))
        except MissingObject:
            self._connection.check_bucket(self._root.bucket)  # a HEAD's 404 does not say which is missing
            raise

    def prove_writable(self, name: str) -> None:
        """Begin an upload of this name and drop it: needs the same rights, and leaves nothing."""
        address = self._address(name)
        with explained(address):
            begun = self._client.create_multipart_upload(
                Bucket=address.bucket, Key=address.key, **self._upload_settings()
            )
        try:
            self._client.abort_multipart_upload(
                Bucket=address.bucket, Key=address.key, UploadId=begun["UploadId"]
            )
        except (aws.ClientError, aws.BotoCoreError) as exc:
            log.warning("half upload not ended object=%s why=%s", address.uri, exc)

    def put_file(self, name: str, path: Path) -> None:
        self._upload(name, path, {})

    def publish_file(self, name: str, path: Path, *, sha256: str, run: str, over: str | None) -> None:
        """As `put_file`; ObjectChanged unless the object still has the ETag `over` (None: is absent)."""
        with self._connection.writing_only_over(self._address(name), over):
            self._upload(name, path, {SHA256_MARK: sha256, RUN_MARK: run})

    def _upload(self, name: str, path: Path, marks: dict[str, str]) -> None:
        """An upload that failed asks for its own mark first: the answer to a success may have been lost.

        After that S3 answers a repeated request with 404 NoSuchUpload, or 412 where it had a condition.
        """
        address, mark = self._address(name), secrets.token_hex(16)
        settings = {**self._upload_settings(), "Metadata": {**marks, _MARK: mark}}
        try:
            with explained(address), _reading(path):
                self._uploads.upload(
                    str(path), address.bucket, address.key, extra_args=settings, subscribers=[_SIGNS]
                ).result()
        except VsrError as exc:
            if not self._is_marked(address, mark):
                raise
            log.warning("an upload whose answer was lost is in place object=%s why=%s", address.uri, exc)
        path.unlink(missing_ok=True)

    def _is_marked(self, address: S3Address, mark: str) -> bool:
        try:
            return self._mark_on(address) == mark
        except (aws.ClientError, aws.BotoCoreError) as exc:
            log.info("object not asked object=%s why=%s", address.uri, exc)
            return False

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        address = self._address(name)
        path = self.scratch / f"{temporary_name()}{Path(name).suffix}"
        try:
            with _writing(path), path.open("xb") as file:
                self._connection.read_into(file, address)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def now_s(self) -> float:
        return self._connection.now_s(self._root.bucket)

    def free_bytes(self) -> int | None:
        return None

    def remove_all(self) -> None:
        """Also ends the uploads that dead workers left half done, which S3 bills until someone does."""
        self.delete_many(facts.name for facts in self._listed(""))
        self._end_uploads()

    def _delete_batch(self, names: Sequence[str]) -> None:
        keys = [{"Key": self._address(name).key} for name in names]
        with explained(self._root):
            answer = self._client.delete_objects(
                Bucket=self._root.bucket, Delete={"Objects": keys, "Quiet": True}
            )
        for failed in answer.get("Errors", ()):
            denied = {"Error": failed, "ResponseMetadata": {"HTTPStatusCode": 0}}
            raise refusal(aws.ClientError(denied, "DeleteObjects"), self._root)

    def _end_uploads(self) -> None:
        pages = self._client.get_paginator("list_multipart_uploads")
        try:
            for page in pages.paginate(Bucket=self._root.bucket, Prefix=self._root.key + "/"):
                for upload in page.get("Uploads", ()):
                    self._client.abort_multipart_upload(
                        Bucket=self._root.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
        except (aws.ClientError, aws.BotoCoreError) as exc:
            log.warning("half uploads not ended store=%s why=%s", self.uri, exc)

    def _listed(self, prefix: str) -> Iterator[ObjectFacts]:
        root = self._root.key + "/"
        pages = self._client.get_paginator("list_objects_v2")
        with explained(self._root):
            for page in pages.paginate(Bucket=self._root.bucket, Prefix=root + prefix):
                for found in page.get("Contents", ()):
                    name = found["Key"].removeprefix(root)
                    if name and not name.endswith("/"):  # the console's mark of an empty folder
                        yield ObjectFacts(
                            name=name,
                            size_bytes=found["Size"],
                            modified_s=found["LastModified"].timestamp(),
                        )

    def _mark_on(self, address: S3Address) -> str | None:
        try:
            answer = self._client.head_object(Bucket=address.bucket, Key=address.key)
        except aws.ClientError as exc:
            if status(exc) == 404:  # deleted since: whoever wrote it, it is gone
                return None
            raise
        mark: str | None = answer.get("Metadata", {}).get(_MARK)
        return mark

    def _address(self, name: str) -> S3Address:
        check_name(name)
        return S3Address(bucket=self._root.bucket, key=f"{self._root.key}/{name}".lstrip("/"))

    def _upload_settings(self) -> dict[str, str]:
        options = self._connection.options
        settings: dict[str, str] = {"ChecksumAlgorithm": options.checksum}
        if options.encryption is not None:
            settings["ServerSideEncryption"] = options.encryption
        if options.kms_key is not None:
            settings["SSEKMSKeyId"] = options.kms_key
        return settings


_SIGNS = ProgressCallbackInvoker(lambda count: tick())
"""Tells that an upload goes on."""


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as exc:
        raise OutageError(f"{path}: has gone before it was stored") from exc


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise translated(exc, path) from exc
