"""Stills as clips: folders, patterns and single pictures in, archives of stills as segments, folders out."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import os
import re
import tarfile
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from vsr_hpc.errors import JobError, MediaError, VerifyError
from vsr_hpc.media.picture import Frame, Picture
from vsr_hpc.media.sequence import ImageSequence
from vsr_hpc.media.stillmeta import StillMeta
from vsr_hpc.media.stills import (
    SUFFIXES,
    disk_error,
    encode_image,
    read_image,
    resolve_image_encoding,
    still_bytes,
    still_meta,
    still_picture,
    write_image,
    write_then_rename,
)
from vsr_hpc.media.writer import SegmentFacts

if TYPE_CHECKING:  # a clip knows its images, so these two may not be needed to make one
    from vsr_hpc.media.clip import Clip
    from vsr_hpc.media.mux import MergeReport, SegmentPart

__all__ = [
    "SUFFIXES",
    "ArchiveWriter",
    "ImageSequence",
    "StillNames",
    "encode_image",
    "extract_archives",
    "find_sequence",
    "is_image_input",
    "read_archive",
    "read_image",
    "resolve_image_encoding",
    "still_picture",
    "write_image",
]

_NUMBERED = re.compile(r"^(.*?)(\d+)$")
_PERCENT = re.compile(r"%(0?)(\d*)d")


# --- finding


def is_image_input(text: str | os.PathLike[str]) -> bool:
    """Whether a name means stills: an image file, a folder, a pattern such as `f_%05d.png`, or a glob."""
    path = Path(text)
    return path.is_dir() or path.suffix.lower() in SUFFIXES


def find_sequence(text: str | os.PathLike[str], *, allow_gaps: bool = False) -> ImageSequence:
    """The stills that a name means, sorted by their numbers; MediaError where it is unclear or has gaps."""
    path = Path(text)
    if path.is_dir():
        names = _in_folder(path)
        return _sequence(path, names, allow_gaps, str(text))
    if path.is_file():
        return ImageSequence(folder=str(path.parent), names=(path.name,), is_still=True)
    pattern = _PERCENT.search(path.name)
    if pattern is not None:
        finder = _pattern_regex(path.name)
        names = [each.name for each in _listed(path.parent) if finder.fullmatch(each.name)]
    elif glob.has_magic(path.name):
        names = [each.name for each in path.parent.glob(path.name) if each.suffix.lower() in SUFFIXES]
    else:
        raise MediaError(
            f"{text}: there is no such file or folder; patterns look like f_%05d.png or 'f_*.png'"
        )
    if not names:
        raise MediaError(f"{text}: no image fits this pattern")
    return _sequence(path.parent, names, allow_gaps, str(text))


def _listed(folder: Path) -> list[Path]:
    try:
        return [each for each in folder.iterdir() if not each.name.startswith(".")]
    except OSError as exc:
        raise MediaError(f"{folder}: cannot be listed ({exc.strerror})") from exc


def _in_folder(folder: Path) -> list[str]:
    images = [each for each in _listed(folder) if each.suffix.lower() in SUFFIXES]
    kinds = sorted({SUFFIXES[each.suffix.lower()] for each in images})
    if not kinds:
        known = " ".join(SUFFIXES)
        raise MediaError(f"{folder}: holds no image ({known})")
    if len(kinds) > 1:
        raise MediaError(
            f"{folder}: holds {' and '.join(kinds)} images; choose with a glob such as '*.{kinds[0]}'"
        )
    return [each.name for each in images]


def _pattern_regex(name: str) -> re.Pattern[str]:
    match = _PERCENT.search(name)
    assert match is not None
    width = int(match[2] or 0)
    digits = rf"\d{{{width},}}" if match[1] else r"\d+"
    return re.compile(re.escape(name[: match.start()]) + digits + re.escape(name[match.end() :]))


def _sequence(folder: Path, names: list[str], allow_gaps: bool, shown: str) -> ImageSequence:
    numbered = {name: _NUMBERED.fullmatch(Path(name).stem) for name in names}
    heads = {match[1] for match in numbered.values() if match is not None}
    if any(match is None for match in numbered.values()) or len(heads) != 1:
        return ImageSequence(folder=str(folder), names=tuple(sorted(names, key=_natural)))
    numbers = {name: int(match[2]) for name, match in numbered.items() if match is not None}
    ordered = sorted(names, key=lambda name: (numbers[name], name))
    for one, two in pairwise(ordered):
        if numbers[one] == numbers[two]:
            raise MediaError(f"{shown}: {one} and {two} have the same number; remove one")
        if numbers[two] != numbers[one] + 1 and not allow_gaps:
            missing = numbers[two] - numbers[one] - 1
            raise MediaError(
                f"{shown}: {missing} images are missing between {one} and {two}; "
                "add them, or go over gaps with --allow-gaps"
            )
    return ImageSequence(folder=str(folder), names=tuple(ordered))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


# --- segments of stills


class ArchiveWriter:
    """A chunk of stills as one file: a tar of the finished images, so that shards, receipts and hashes apply.

    Names come from `StillNames`; a still's profile and EXIF come from the source image of the same index.
    Same manners as SegmentWriter.
    """

    def __init__(self, path: Path | str, picture: Picture, clip: Clip, output: str) -> None:
        self.path = Path(path)
        self._picture = picture
        self._sequence: ImageSequence | None = clip.images
        self._names = StillNames(output, self._sequence)
        self._encoding = resolve_image_encoding(f"any{self._names.suffix}", picture)
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
        data = encode_image(self._encoding, self._picture, frame.planes, self._meta(frame.index))
        entry = tarfile.TarInfo(self._names.name(frame.index))  # time 0, no owner: only name and bytes count
        entry.size = len(data)
        with _disk(self.path):
            self._tar.addfile(entry, io.BytesIO(data))
        self._frames += 1

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
        size, digest = _sha256(self.path)
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


def _sha256(path: Path) -> tuple[int, str]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
        return file.tell(), digest.hexdigest()


class StillNames:
    """File names of output stills: a folder keeps the source's names, a pattern the source's numbers."""

    def __init__(self, output: str, sequence: ImageSequence | None) -> None:
        path = Path(output)
        self._sequence = sequence
        self._pattern: str | None = None
        self._single: str | None = None
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:  # a folder
            self.suffix = ".png"
            if sequence is not None and Path(sequence.names[0]).suffix.lower() in SUFFIXES:
                self.suffix = Path(sequence.names[0]).suffix
            return
        self.suffix = path.suffix
        if _PERCENT.search(path.name):
            self._pattern = path.name
        else:
            self._single = path.name
            if sequence is None or len(sequence) != 1:
                raise JobError(
                    f"{output}: one file cannot hold several pictures; name a folder (ending in /), "
                    f"a pattern such as {path.stem}_%05d{path.suffix}, or a video"
                )

    @property
    def is_single(self) -> bool:
        return self._single is not None

    def name(self, index: int) -> str:
        if self._single is not None:
            return self._single
        if self._pattern is not None:
            match = _PERCENT.search(self._pattern)
            assert match is not None
            digits = str(self._number(index)).zfill(int(match[2] or 0) if match[1] else 0)
            return self._pattern[: match.start()] + digits + self._pattern[match.end() :]
        if self._sequence is not None:
            return Path(self._sequence.names[index]).stem + self.suffix
        return f"{index + 1:06d}{self.suffix}"

    def _number(self, index: int) -> int:
        if self._sequence is not None:
            match = _NUMBERED.fullmatch(Path(self._sequence.names[index]).stem)
            if match is not None:
                return int(match[2])
        return index + 1


def read_archive(path: Path | str) -> Iterator[Frame]:
    """Every still of a segment as a frame, in order."""
    for number, (_, data) in enumerate(_members(Path(path))):
        _, planes, _ = read_image(io.BytesIO(data))
        yield Frame(index=number, planes=planes)


def extract_archives(parts: Sequence[SegmentPart], output: Path) -> MergeReport:
    """Unpack segments of stills into the folder `output`, or, where it is named like a still, to that file.

    The report's sha256 is over names and bytes in order.
    """
    from vsr_hpc.media.mux import MergeReport

    began = time.monotonic()
    digest, count, size = hashlib.sha256(), 0, 0
    is_single = output.suffix.lower() in SUFFIXES and _PERCENT.search(output.name) is None
    for part in parts:
        path = part.fetch()
        if part.sha256 is not None and _sha256(path)[1] != part.sha256:
            raise VerifyError(f"{path}: its sha256 is not the one of its receipt")
        before = count
        for name, data in _members(path):
            if not is_single:
                with _disk(output):
                    output.mkdir(parents=True, exist_ok=True)
            write_then_rename(output if is_single else output / name, data)
            digest.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
            count, size = count + 1, size + len(data)
        if count - before != part.frames:
            raise VerifyError(f"{path}: holds {count - before} stills, its receipt says {part.frames}")
        if part.done is not None:
            part.done(path)
    if is_single and count == 1:
        digest = hashlib.sha256(output.read_bytes())
    return MergeReport(
        frames=count,
        size_bytes=size,
        sha256=digest.hexdigest(),
        offset=Fraction(0),
        tick=Fraction(1),
        reorder_depth=0,
        notes=(),
        copy_s=time.monotonic() - began,
        hash_s=0.0,
    )


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as tar:
            for entry in tar:
                file = tar.extractfile(entry)
                if file is None or Path(entry.name).name != entry.name:
                    raise MediaError(f"{path}: holds {entry.name!r}, which is no plain file name")
                yield entry.name, file.read()
    except tarfile.TarError as exc:
        raise VerifyError(f"{path}: this segment of stills cannot be read ({exc})") from exc
