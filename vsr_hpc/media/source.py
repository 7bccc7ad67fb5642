"""Where the bytes of a clip come from, and opening them so that nothing else is opened with them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import av
import av.error
from av.container import InputContainer

from vsr_hpc.errors import MediaError
from vsr_hpc.system.files import describe_missing, sha256_of_stream

MAX_SIDE = 16384
MAX_PIXELS = 1 << 28
"""Larger pictures are refused: decoders allocate several frames before anybody can say no."""

# Tags that are no UTF-8 are read with replacement characters; PyAV 19 always does so.
_TEXT_OPTIONS: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)

# Demuxers that open other files or addresses named inside the file, read devices, or make text into pictures.
# A hostile playlist renamed to clip.mp4 would be followed otherwise: FFmpeg goes by content, not by name.
_FOLLOWERS = frozenset(
    {
        "hls",
        "applehttp",
        "concat",
        "dash",
        "imf",
        "sdp",
        "rtp",
        "rtsp",
        "sap",
        "lavfi",
        "image2",
        "image2pipe",
        "tty",
        "ansi",
        "bin",
        "adf",
        "idf",
        "xbin",
        "vobsub",
        "ffmetadata",
        "avisynth",
        "vapoursynth",
        "webm_dash_manifest",
        "mpjpeg",
        "alsa",
        "fbdev",
        "iec61883",
        "jack",
        "kmsgrab",
        "openal",
        "oss",
        "pulse",
        "sndio",
        "v4l2",
        "video4linux2",
        "x11grab",
        "xcbgrab",
        "libcdio",
        "libdc1394",
        "decklink",
        "dshow",
        "gdigrab",
        "vfwcap",
        "avfoundation",
        "android_camera",
        "rawvideo",
        "data",
    }
)


class Source(Protocol):
    """A clip's bytes: a local path, or a seekable file object that reads by range."""

    @property
    def uri(self) -> str: ...

    @property
    def etag(self) -> str | None:
        """S3's name for this content; a disk has none."""

    def open(self) -> str | BinaryIO: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSource:
    """A local file. The path is made absolute, since FFmpeg takes `name:rest` for a protocol."""

    uri: str
    etag: None = None

    def open(self) -> str | BinaryIO:
        return str(Path(self.uri).absolute())


def local_source(path: str | os.PathLike[str]) -> FileSource:
    return FileSource(uri=str(Path(path)))


@contextlib.contextmanager
def raw_bytes(source: Source) -> Iterator[BinaryIO]:
    """The source as a seekable binary file, closed afterwards."""
    opened = source.open()
    if isinstance(opened, str):
        check_readable(opened, source.uri)
        with Path(opened).open("rb") as file:
            yield file
        return
    with opened as given:
        yield given


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStamp:
    """Size and modification time of a file: equal stamps mean that nobody has written to it."""

    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        try:
            found = path.stat()
        except OSError as exc:
            raise MediaError(f"{path}: cannot be read ({exc.strerror})") from exc
        return cls(size_bytes=found.st_size, modified_ns=found.st_mtime_ns)


def size_bytes(source: Source) -> int:
    with raw_bytes(source) as file:
        return file.seek(0, os.SEEK_END)


def file_hash(source: Source) -> str:
    """sha256 over every byte of the source, in hex."""
    with raw_bytes(source) as file:
        file.seek(0)
        return sha256_of_stream(file)


def check_readable(path: str, shown: str) -> None:
    """Refuse what is no regular, readable file: FFmpeg would hang on a pipe and mumble about a folder."""
    target = Path(path)
    try:
        is_there = target.exists()
    except OSError as exc:  # a folder that may not be entered, a name that is too long
        raise MediaError(f"{shown}: cannot be reached ({exc.strerror})") from exc
    if not is_there:
        raise MediaError(f"{shown}: {describe_missing(target)}")
    if target.is_dir():
        raise MediaError(f"{shown}: is a folder without images that we know; give a video file")
    if not target.is_file():
        raise MediaError(f"{shown}: is no regular file (a pipe or a device); copy it to a file first")
    if not os.access(target, os.R_OK):
        raise MediaError(f"{shown}: may not be read by this user")
    if target.stat().st_size == 0:
        raise MediaError(f"{shown}: is empty (0 bytes)")


@contextlib.contextmanager
def open_input(source: Source) -> Iterator[InputContainer]:
    """Open a clip for demuxing. Only its own bytes are read: no playlists, addresses or devices."""
    opened = source.open()
    if isinstance(opened, str):
        check_readable(opened, source.uri)
    formats = ",".join(sorted(name for name in av.formats_available if name not in _FOLLOWERS))
    options = {"protocol_whitelist": "file,fd", "format_whitelist": formats}
    try:
        container: Any = av.open(opened, "r", options=options, **_TEXT_OPTIONS)
    except (av.error.FFmpegError, ValueError) as exc:
        if not isinstance(opened, str):
            opened.close()
        raise MediaError(
            f"{source.uri}: FFmpeg cannot open this as a video ({_reason(exc)}); "
            "if it plays elsewhere, remux it first: ffmpeg -i IN -map 0 -c copy OUT.mkv"
        ) from exc
    try:
        yield container
    finally:
        container.close()
        if not isinstance(opened, str):
            opened.close()


def _reason(exc: Exception) -> str:
    text = getattr(exc, "strerror", None) or str(exc)
    return {
        "Invalid data found when processing input": "its content is no known video, damaged, or cut off",
        "End of file": "it ends before its first frame",
        "Device or resource busy": "its header claims a picture that is too large for FFmpeg",
        "Invalid argument": "its content is of a kind that is not read here, such as a playlist",
    }.get(text, text)
