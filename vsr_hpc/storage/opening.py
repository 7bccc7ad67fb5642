"""Opens a store, a source or an output from its address; only this module knows which kind it is.

boto3 takes a third of a second to import, and is imported where something lies on S3.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vsr_hpc.errors import JobError
from vsr_hpc.media.source import FileSource, local_source
from vsr_hpc.storage.block_cache import SourceSettings
from vsr_hpc.storage.folder_store import FolderStore
from vsr_hpc.storage.output import LocalOutput, Output, S3Output
from vsr_hpc.storage.store import Store

if TYPE_CHECKING:
    from vsr_hpc.storage.s3_connection import S3Options
    from vsr_hpc.storage.s3_source import RangedSource


def open_store(uri: str, s3: S3Options | None = None) -> Store:
    """A folder's path or `s3://bucket/prefix`; `s3` says how to talk to S3, by default what VSR_S3_* say."""
    if uri.startswith("s3://"):
        from vsr_hpc.storage.s3_store import S3Store

        return S3Store.from_uri(uri, s3)
    if "://" in uri:
        raise JobError(f"{uri}: a run lives in a folder or under s3://bucket/prefix")
    return FolderStore(Path(uri))


def open_output(uri: str) -> Output:
    """A path or `s3://bucket/name`; asks nothing yet."""
    return S3Output(uri) if uri.startswith("s3://") else LocalOutput(uri)


def open_source(
    uri: str,
    s3: S3Options | None = None,
    settings: SourceSettings | None = None,
    etag: str | None = None,
) -> FileSource | RangedSource:
    """A path or `s3://bucket/name` as a Source.

    `etag` is the content that the plan was made for (`RangedSource.facts.etag`): another one under the same
    name raises MediaError. A local file has none.
    """
    if uri.startswith("s3://"):
        from vsr_hpc.storage.s3_address import S3Address
        from vsr_hpc.storage.s3_connection import S3Connection, S3Options
        from vsr_hpc.storage.s3_source import RangedSource

        connection = S3Connection(S3Options.from_environment() if s3 is None else s3)
        return RangedSource(S3Address.from_uri(uri), connection, settings or SourceSettings(), etag)
    if "://" in uri:
        raise JobError(f"{uri}: a clip is a local path or an object s3://bucket/name; download it first")
    return local_source(uri)
