"""Whether the source is still the one that a run was planned with.

Sizes and modification times are compared. Where only a time differs, as after a copy, the content is hashed
once and the new time is remembered. A source on S3 is read by its ETag, so that nothing is compared here.
"""

from __future__ import annotations

import json
from pathlib import Path

from vsr_hpc.errors import MediaError, OutageError, SourceChangedError
from vsr_hpc.media.clip.clip import Clip
from vsr_hpc.media.clip.probe import content_hash
from vsr_hpc.media.source import FileStamp, local_source
from vsr_hpc.planning.plan import Plan


def take_stamps(clip: Clip) -> tuple[FileStamp, ...]:
    """One stamp for a file, one for each image of a sequence, none for an object on S3."""
    return tuple(FileStamp.of(path) for path in _paths(clip, 0, _count(clip)))


class SourceGuard:
    """Compares the source with the plan's stamps; it remembers what it has hashed."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stamps = list(plan.source_stamps)

    def check_file(self) -> None:
        """Compare a source that is one file; the images of a sequence are compared shard by shard."""
        if self._plan.clip.images is None:
            self.check(0, 1)

    def check(self, start: int, stop: int) -> None:
        """Compare what frames [start, stop) are read from.

        SourceChangedError where it is another source, OutageError where it cannot be read now.
        """
        first, last = (0, len(self._stamps)) if self._plan.clip.images is None else (start, stop)
        for number, path in zip(range(first, last), _paths(self._plan.clip, first, last), strict=True):
            try:
                found = FileStamp.of(path)
            except MediaError as exc:  # its disk may be back in a moment
                raise OutageError(f"{exc}; the run was planned with this source") from exc
            planned = self._stamps[number]
            if found.size_bytes != planned.size_bytes:
                raise SourceChangedError(
                    f"{path}: the source changed: it had {planned.size_bytes} bytes when the run was planned "
                    f"and has {found.size_bytes} now; put the old one back, or start over with --new"
                )
            if found.modified_ns != planned.modified_ns:
                self._accept_same_content(path)
                return

    def _accept_same_content(self, path: Path) -> None:
        """Hash the whole source, which somebody has written or copied, and take its present times."""
        clip = self._plan.clip
        stamps = take_stamps(clip)
        if content_hash(local_source(clip.uri)) != json.loads(self._plan.fingerprint["input"]):
            raise SourceChangedError(
                f"{path}: the source changed: its content is not what the run was planned with; "
                "put the old one back, or start over with --new"
            )
        self._stamps = list(stamps)


def _count(clip: Clip) -> int:
    if "://" in clip.uri:
        return 0
    return 1 if clip.images is None else len(clip.images)


def _paths(clip: Clip, first: int, last: int) -> list[Path]:
    if clip.images is None:
        return [Path(clip.uri)][first:last]
    return [clip.images.path(number) for number in range(first, last)]
