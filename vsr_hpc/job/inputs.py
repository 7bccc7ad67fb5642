"""Turns the places of a command line (files, folders, patterns, S3) into pairs of input and output."""

from __future__ import annotations

import glob
from pathlib import Path

from vsr_hpc.errors import JobError, MediaError

CLIP_SUFFIXES = frozenset(
    {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".vob", ".flv"}
    | {".wmv", ".h264", ".264", ".hevc", ".265", ".y4m", ".3gp", ".ogv", ".mxf"}
)
_KEPT_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".mkv"})
_IMAGE_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".exr", ".jpg", ".jpeg", ".webp", ".bmp"})
_PHOTO_SUFFIXES = frozenset({".heic", ".heif", ".avif"})
"""Stills that are read and not written: each becomes a PNG."""
UNREAD_SUFFIXES = frozenset({".jxl"})
"""Pictures that people have in such folders and that are not read; each is refused by its name."""


def expand(paths: list[str], *, are_frames: bool = False) -> tuple[tuple[str, str], ...]:
    """Pairs of input and output. The last path is the output: a file for one input, a folder for several.

    A folder of images is one clip where they are numbered frames of one size, where they become a video, or
    where `are_frames` says so; otherwise each image is an input of its own. One path alone is an input;
    `default_output` names its output. Raises JobError where an output is missing or several inputs would
    have the same one.
    """
    from vsr_hpc.media.stills.names import is_pattern

    if not paths:
        raise JobError("name an input and an output: vsr upscale IN OUT")
    *sources, output = paths if len(paths) > 1 else (*paths, default_output(paths[0]))
    is_clip = are_frames or Path(output).suffix.lower() in CLIP_SUFFIXES or is_pattern(output)
    found = [clip for source in sources for clip in _clips(source, is_clip=is_clip)]
    if len(found) == 1 and not _is_folder_for_clips(output, found[0]):
        return ((found[0], output),)
    if len(found) > 1 and Path(output).suffix.lower() in CLIP_SUFFIXES | _IMAGE_SUFFIXES:
        raise JobError(f"{len(found)} inputs cannot all become {output}; name a folder as the last argument")
    pairs = tuple((clip, _join(output, _output_name(clip))) for clip in found)
    doubled = {target for _, target in pairs if [other for _, other in pairs].count(target) > 1}
    if doubled:
        raise JobError(
            f"several inputs would be written to {', '.join(sorted(doubled))}; upscale them one by one"
        )
    return pairs


def default_output(source: str) -> str:
    """The output for an input that was given alone: `film.mp4` becomes `film-upscaled.mp4` beside it."""
    path = Path(source)
    if path.suffix.lower() in (".yaml", ".yml"):
        raise JobError(f"{source} is a job file: `vsr submit {source}` runs it")
    if "://" in source or (not path.exists() and any(mark in source for mark in "%*?[")):
        raise JobError(f"{source}: name an output, too: vsr upscale {source} OUT")
    if path.is_dir():
        return f"{source.rstrip('/')}-upscaled/"
    name = Path(_output_name(source))
    return str(path.with_name(f"{name.stem}-upscaled{name.suffix}"))


def looks_like_input(word: str) -> bool:
    """Whether a word of a command line names a clip, an image or something that exists."""
    path = Path(word)
    return not word.startswith("-") and (
        path.suffix.lower() in CLIP_SUFFIXES | _IMAGE_SUFFIXES | _PHOTO_SUFFIXES or path.exists()
    )


def _clips(source: str, *, is_clip: bool) -> list[str]:
    path = Path(source)
    if source.startswith("s3://") and source.endswith("/"):
        return _clips_on_s3(source)
    if "://" in source:
        return [source]
    if path.is_dir():
        entries = sorted((each for each in path.iterdir() if each.is_file()), key=_by_name)
        clips = [str(entry) for entry in entries if entry.suffix.lower() in CLIP_SUFFIXES]
        pictures = _IMAGE_SUFFIXES | _PHOTO_SUFFIXES | UNREAD_SUFFIXES
        stills = [each for each in entries if each.suffix.lower() in pictures]
        return clips or ([source] if is_clip or _is_one_clip(stills) else [str(each) for each in stills])
    if not path.exists() and any(mark in source for mark in "*?["):
        known = CLIP_SUFFIXES | _IMAGE_SUFFIXES | _PHOTO_SUFFIXES
        found = sorted(glob.glob(source))  # noqa: PTH207 - a pattern may be absolute
        matches = [match for match in found if Path(match).suffix.lower() in known]
        if not matches:
            other = f", only {found[0]} and the like" if found else ""
            raise JobError(f"{source}: no clip or image matches this pattern{other}")
        stills = [Path(match) for match in matches]
        are_stills = all(each.suffix.lower() in _IMAGE_SUFFIXES for each in stills)
        return [source] if are_stills and (is_clip or _is_one_clip(stills)) else matches
    return [source]


def _by_name(path: Path) -> tuple[str, str]:
    return path.name.casefold(), path.name


def _is_one_clip(stills: list[Path]) -> bool:
    """Whether images are the frames of one clip: numbered without a gap, of one format and one size."""
    from vsr_hpc.media.source import local_source
    from vsr_hpc.media.stills.names import are_numbered
    from vsr_hpc.media.stills.sequence import find_stills

    suffixes = {each.suffix.lower() for each in stills}
    if len(suffixes) != 1 or not are_numbered([each.name for each in stills]):
        return not stills  # a folder without images is refused where it is opened
    try:
        pattern = Path(glob.escape(str(stills[0].parent))) / f"*{stills[0].suffix}"
        return len(find_stills(local_source(pattern), allow_gaps=False).sequence) == len(stills)
    except MediaError:
        return False


def _clips_on_s3(folder: str) -> list[str]:
    """The clips directly below the prefix, not those in folders further down."""
    from vsr_hpc.storage.opening import open_store

    names = [each.name for each in open_store(folder.rstrip("/")).list("")]
    clips = [each for each in names if "/" not in each and Path(each).suffix.lower() in CLIP_SUFFIXES]
    if not clips:
        raise JobError(f"{folder}: holds no clip; known are {', '.join(sorted(CLIP_SUFFIXES))}")
    return [f"{folder}{each}" for each in clips]


def _is_folder_for_clips(output: str, source: str) -> bool:
    """A folder takes clips by name, but is itself the output of an image sequence."""
    is_folder = Path(output).is_dir() or output.endswith("/")
    return is_folder and not _is_sequence(source)


def _is_sequence(source: str) -> bool:
    """Whether it stands for several images. An existing file such as `Show [1080p].mkv` is not a pattern."""
    path = Path(source)
    if "://" in source:
        return False
    return path.is_dir() or (not path.is_file() and any(mark in source for mark in "%*?["))


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if "://" in folder else str(Path(folder) / name)


def _output_name(clip: str) -> str:
    path = Path(clip)
    if path.suffix.lower() in _PHOTO_SUFFIXES:
        return f"{path.stem}.png"
    keeps = path.suffix.lower() in _KEPT_SUFFIXES | _IMAGE_SUFFIXES | UNREAD_SUFFIXES
    return path.name if keeps else f"{path.stem}.mkv"
