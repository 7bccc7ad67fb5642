"""Stills as clips: folders, patterns and single pictures in, archives of stills as segments, folders out."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType

from vsr_hpc.errors import MediaError, VerifyError
from vsr_hpc.media.clip.clip import Clip
from vsr_hpc.media.picture import Frame, Picture
from vsr_hpc.media.segment import MergeReport, SegmentFacts, SegmentPart
from vsr_hpc.media.stills.gif import SUFFIX as GIF_SUFFIX
from vsr_hpc.media.stills.gif import TICK as GIF_TICK
from vsr_hpc.media.stills.gif import decode_gif, encode_gif, is_animation, join_gifs
from vsr_hpc.media.stills.metadata import StillMeta
from vsr_hpc.media.stills.names import ImageSequence, StillNames, is_pattern
from vsr_hpc.media.stills.still import (
    SUFFIXES,
    disk_error,
    encode_image,
    read_image,
    resolve_image_encoding,
    still_bytes,
    still_meta,
    write_then_rename,
)
from vsr_hpc.system.files import flush_and_hash, sha256_of_file
from vsr_hpc.system.progress import tick


class ArchiveWriter:
    """A chunk of stills as one file: a tar of the finished images, so that shards, receipts and hashes apply.

    Names come from `StillNames`; a still's profile and EXIF come from the source image of the same index.
    Same manners as SegmentWriter.
    """

    def __init__(self, path: Path | str, picture: Picture, clip: Clip, output: str) -> None:
        self.path = Path(path)
        self._picture = picture
        self._sequence: ImageSequence | None = clip.images
        self._is_animation = is_animation(output)
        self._names = StillNames(output, self._sequence)
        name = "any.png" if self._is_animation else f"any{self._names.suffix}"
        self._encoding = resolve_image_encoding(name, picture)
        self._frames = 0
        self._facts: SegmentFacts | None = None
        with _disk(self.path):
            self._file = self.path.open("wb")
            self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._facts is None:
            self.abort()

    def write(self, frame: Frame) -> None:
        """Encode the next still."""
        if self._is_animation:
            name, data = f"{frame.index:08d}{GIF_SUFFIX}", encode_gif(self._picture, frame.planes)
        else:
            name = self._names.name(frame.index)
            data = encode_image(self._encoding, self._picture, frame.planes, self._meta(frame.index))
        entry = tarfile.TarInfo(name)  # time 0, no owner: only name and bytes count
        entry.size = len(data)
        with _disk(self.path):
            self._tar.addfile(entry, io.BytesIO(data))
        self._frames += 1
        tick()

    def close(self) -> SegmentFacts:
        """Finish the file and say what is in it."""
        if self._facts is not None:
            return self._facts
        if not self._frames:
            self.abort()
            raise MediaError(f"{self.path}: no frame was written, so there is no segment")
        with _disk(self.path):
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        size, digest = self.path.stat().st_size, sha256_of_file(self.path)
        self._facts = SegmentFacts(frames=self._frames, packets=self._frames, size_bytes=size, sha256=digest)
        return self._facts

    def abort(self) -> None:
        """Stop and remove the file; harmless when called twice."""
        with contextlib.suppress(OSError):
            self._file.close()
        if self._facts is None:
            self.path.unlink(missing_ok=True)

    def _meta(self, index: int) -> StillMeta | None:
        if self._sequence is None:
            return None
        path = self._sequence.path(index)
        data = still_bytes(path)
        return still_meta(data, str(path))


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        path.unlink(missing_ok=True)
        raise disk_error(path, exc) from exc


def read_archive(path: Path | str, picture: Picture) -> Iterator[Frame]:
    """Every still of a segment as a frame, in order."""
    for number, (name, data) in enumerate(_members(Path(path))):
        if name.endswith(GIF_SUFFIX):
            planes = decode_gif(data, has_alpha=picture.pixel.has_alpha)
        else:
            _, planes, _ = read_image(io.BytesIO(data))
        yield Frame(index=number, planes=planes)


def extract_archives(parts: Sequence[SegmentPart], output: Path) -> MergeReport:
    """Unpack segments of stills into the folder `output`, or, where it is named like a still, to that file.

    The report's sha256 is over names and bytes in order.
    """
    digest, count, size = hashlib.sha256(), 0, 0
    is_single = output.suffix.lower() in SUFFIXES and not is_pattern(output.name)
    for name, data in _stills_of(parts):
        if not is_single:
            with _disk(output):
                output.mkdir(parents=True, exist_ok=True)
        write_then_rename(output if is_single else output / name, data)
        digest.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
        count, size = count + 1, size + len(data)
    if is_single and count == 1:
        digest = hashlib.sha256(output.read_bytes())
    return _report(count, size, digest.hexdigest(), tick=Fraction(1))


def join_animation(
    parts: Sequence[SegmentPart],
    output: Path,
    size: tuple[int, int],
    delays: Sequence[int],
    loops: int | None,
) -> MergeReport:
    """Join segments of GIF pictures to one animation of this size; on any error the file is removed."""
    with _disk(output):
        try:
            with output.open("wb") as file:
                pictures = (data for _, data in _stills_of(parts))
                for piece in join_gifs(pictures, delays, size, loops):
                    file.write(piece)
            size_bytes, digest = flush_and_hash(output)
        except BaseException:
            output.unlink(missing_ok=True)
            raise
    return _report(len(delays), size_bytes, digest, tick=GIF_TICK)


def _report(frames: int, size_bytes: int, sha256: str, *, tick: Fraction) -> MergeReport:
    return MergeReport(
        frames=frames,
        size_bytes=size_bytes,
        sha256=sha256,
        offset=Fraction(0),
        tick=tick,
        reorder_depth=0,
        notes=(),
    )


def _stills_of(parts: Sequence[SegmentPart]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every still of all segments, which are checked and counted on the way."""
    for part in parts:
        path = part.fetch()
        if part.sha256 is not None and sha256_of_file(path) != part.sha256:
            raise VerifyError(f"{path}: its sha256 is not the one of its receipt")
        count = 0
        for count, each in enumerate(_members(path), 1):  # noqa: B007
            yield each
        if count != part.frames:
            raise VerifyError(f"{path}: holds {count} stills, its receipt says {part.frames}")
        if part.done is not None:
            part.done(path)


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as tar:
            for entry in tar:
                file = tar.extractfile(entry)
                if file is None or Path(entry.name).name != entry.name:
                    raise MediaError(f"{path}: holds {entry.name!r}, which is no plain file name")
                tick()
                yield entry.name, file.read()
    except tarfile.TarError as exc:
        raise VerifyError(f"{path}: this segment of stills cannot be read ({exc})") from exc
