"""Stills by name: which files a folder, a pattern or a glob means, and what an output's stills are called."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from vsr_hpc.errors import MediaError
from vsr_hpc.media.stills.still import SUFFIXES

_NUMBERED = re.compile(r"^(.*?)(\d+)$")
_PERCENT = re.compile(r"%(0?)(\d*)d")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSequence:
    """Files that are the frames of one clip, in order. `is_still`: one picture was named, no folder."""

    folder: str
    names: tuple[str, ...]
    is_still: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        return Path(self.folder) / self.names[index]


def is_pattern(name: str) -> bool:
    """Whether a file name has a place for a number, such as f_%05d.png."""
    return _PERCENT.search(name) is not None


def find_sequence(text: str | os.PathLike[str], *, allow_gaps: bool = False) -> ImageSequence:
    """The stills that a name means, sorted by their numbers; MediaError where it is unclear or has gaps."""
    path = Path(text)
    if path.is_dir():
        names = _images_in(path)
        return _sequence(path, names, allow_gaps, str(text))
    if path.is_file():
        return ImageSequence(folder=str(path.parent), names=(path.name,), is_still=True)
    if is_pattern(path.name):
        names = numbered_files(path)
    elif glob.has_magic(path.name):
        names = [each.name for each in path.parent.glob(path.name) if each.suffix.lower() in SUFFIXES]
    else:
        raise MediaError(
            f"{text}: there is no such file or folder; patterns look like f_%05d.png or 'f_*.png'"
        )
    if not names:
        raise MediaError(f"{text}: no image fits this pattern")
    return _sequence(path.parent, names, allow_gaps, str(text))


def numbered_files(pattern: Path) -> list[str]:
    """The names of the files that fit a pattern, in no order."""
    finder = _pattern_regex(pattern.name)
    return [each.name for each in _list_folder(pattern.parent) if finder.fullmatch(each.name)]


def _list_folder(folder: Path) -> list[Path]:
    try:
        return [each for each in folder.iterdir() if not each.name.startswith(".")]
    except OSError as exc:
        raise MediaError(f"{folder}: cannot be listed ({exc.strerror})") from exc


def _images_in(folder: Path) -> list[str]:
    images = [each for each in _list_folder(folder) if each.suffix.lower() in SUFFIXES]
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


def are_numbered(names: Sequence[str]) -> bool:
    """Whether names differ by a number alone, without a gap, as the frames of one clip do."""
    found = [_NUMBERED.fullmatch(Path(name).stem) for name in names]
    heads = {each[1] for each in found if each is not None}
    numbers = sorted(int(each[2]) for each in found if each is not None)
    is_run = all(two - one == 1 for one, two in pairwise(numbers))
    return len(numbers) == len(names) > 1 and len(heads) == 1 and is_run


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


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
