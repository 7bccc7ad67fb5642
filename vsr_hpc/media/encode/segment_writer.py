"""Segments: frames become one closed file with nothing of the machine in it (no clock, no random id)."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vsr_hpc.errors import BackendError, JobError, MediaError, SpaceError
from vsr_hpc.media.encode.encoder import encoder_layout, nominal_rate, picture_name, set_up_encoder
from vsr_hpc.media.encode.encoding import Encoding
from vsr_hpc.media.ffmpeg_errors import reason
from vsr_hpc.media.picture import Colour, Frame, Picture, PixelFormat, Plane
from vsr_hpc.media.segment import SegmentFacts
from vsr_hpc.system.files import flush_and_hash
from vsr_hpc.system.progress import tick

log = logging.getLogger(__name__)


_MUXERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}


def encoder_build() -> str:
    """The versions of FFmpeg and of the encoder libraries in use, for the plan's toolchain record."""
    versions = " ".join(
        f"{name}-{'.'.join(map(str, numbers))}" for name, numbers in sorted(av.library_versions.items())
    )
    names = re.findall(
        r"/(lib(?:x264|x265|SvtAv1Enc|avcodec)[-.][^/\s]*)$", _mapped_libraries(), flags=re.MULTILINE
    )
    return " ".join([f"PyAV-{av.__version__}", versions, *sorted(set(names))])


def _mapped_libraries() -> str:
    try:
        return Path("/proc/self/maps").read_text()
    except OSError:
        return ""


class SegmentWriter:
    """Encode frames into one closed file; frame i has pts i in a constant time base.

    The file appears under `path` at once, so give a temporary name and rename it after `close`.
    Leaving the `with` block by an exception, or `abort`, removes it.
    """

    def __init__(
        self, path: Path | str, encoding: Encoding, picture: Picture, *, time_base: Fraction
    ) -> None:
        if picture.pixel != encoding.pixel:
            raise JobError(
                f"{path}: frames are {picture.pixel.name}, the encoder expects {encoding.pixel.name}"
            )
        self.path = Path(path)
        self._encoding, self._picture = encoding, picture
        self._layout = encoder_layout(encoding.encoder, picture.pixel)
        self._frames = self._packets = 0
        self._rate = nominal_rate(time_base)
        self._facts: SegmentFacts | None = None
        self._container: Any = None
        if encoding.encoder == "libsvtav1":
            os.environ.setdefault("SVT_LOG", "1")  # it prints ten lines per segment to stderr otherwise
        with self._translate_errors():
            self._container = av.open(
                str(self.path), "w", format=_MUXERS[encoding.suffix], options={"fflags": "+bitexact"}
            )
            self._stream: Any = self._container.add_stream(encoding.encoder, rate=self._rate)
            set_up_encoder(self._stream.codec_context, encoding, picture, self._rate)
            self._stream.time_base = 1 / self._rate
            self._stream.codec_context.open()

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._facts is None:
            self.abort()

    def write(self, frame: Frame) -> None:
        """Encode the next frame. Its planes are copied; the caller may reuse them."""
        shapes = tuple(plane.shape for plane in frame.planes)
        if shapes != self._picture.plane_shapes():
            raise MediaError(
                f"frame {frame.index}: planes are {shapes}, wanted {self._picture.plane_shapes()} "
                f"for {picture_name(self._picture)}"
            )
        with self._translate_errors():
            picture = _video_frame(frame.planes, self._picture, self._layout)
            picture.pts = self._frames
            picture.time_base = 1 / self._rate
            self._frames += 1
            self._mux(self._stream.encode(picture))
            tick()

    def close(self) -> SegmentFacts:
        """Flush the encoder, finish the file and say what is in it."""
        if self._facts is not None:
            return self._facts
        if not self._frames:
            self.abort()
            raise MediaError(f"{self.path}: no frame was written, so there is no segment")
        with self._translate_errors():
            self._mux(self._last_packets())
            self._container.close()
            size, digest = flush_and_hash(self.path)
        if self._packets != self._frames:
            packets = self._packets
            self.abort()
            raise BackendError(f"{self.path}: {self._frames} frames went in, {packets} packets came out")
        self._facts = SegmentFacts(frames=self._frames, packets=self._packets, size_bytes=size, sha256=digest)
        return self._facts

    def abort(self) -> None:
        """Stop and remove the file; harmless when called twice."""
        if self._container is not None and self._facts is None:
            try:
                self._container.close()
            except (av.FFmpegError, OSError, ValueError) as exc:
                log.debug("closing an abandoned segment path=%s error=%s", self.path, exc)
        self.path.unlink(missing_ok=True)

    def _last_packets(self) -> Iterator[Any]:
        """What the encoder still holds, one by one: a slow encoder may take minutes for all of it."""
        for packet in self._stream.codec_context.encode_lazy(None):
            packet.stream = self._stream
            yield packet

    def _mux(self, packets: Iterable[Any]) -> None:
        for packet in packets:
            tick()
            self._packets += 1
            self._container.mux_one(packet)

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """FFmpeg's and the system's errors in the words of this package; the file goes."""
        try:
            yield
        except BaseException as exc:
            self.abort()
            if isinstance(exc, OSError | av.FFmpegError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise SpaceError(f"{self.path}: the disk is full; free space and call again") from exc
            if isinstance(exc, av.FFmpegError | OSError | ValueError):
                raise BackendError(f"{self.path}: {self._encoding.encoder} failed: {reason(exc)}") from exc
            raise


def _video_frame(planes: tuple[Plane, ...], picture: Picture, layout: str) -> av.VideoFrame:
    frame = av.VideoFrame(picture.width, picture.height, layout)
    _tag(frame, picture.colour, picture.pixel)
    if layout in ("bgr0", "bgra"):
        _fill_packed(frame, planes)
    elif layout == "p010le":
        _rows(frame, 0, np.uint16)[...] = planes[0] << 6
        chroma = _rows(frame, 1, np.uint16, samples=2)
        chroma[:, 0::2], chroma[:, 1::2] = planes[1] << 6, planes[2] << 6
    else:
        for number, plane in enumerate(planes):
            _rows(frame, number, picture.pixel.dtype)[...] = plane
    return frame


def _fill_packed(frame: av.VideoFrame, planes: tuple[Plane, ...]) -> None:
    green, blue, red, *alpha = planes
    packed = _rows(frame, 0, np.uint8, samples=4)
    packed[:, 0::4], packed[:, 1::4], packed[:, 2::4] = blue, green, red
    packed[:, 3::4] = alpha[0] if alpha else 0


def _rows(frame: av.VideoFrame, number: int, dtype: Any, *, samples: int = 1) -> NDArray[Any]:
    """One plane of FFmpeg's buffer as a writable array, without the padding at the ends of its rows."""
    plane = frame.planes[number]
    buffer: NDArray[Any] = np.frombuffer(memoryview(plane), dtype=dtype)
    row = plane.line_size // np.dtype(dtype).itemsize
    return buffer[: row * plane.height].reshape(plane.height, row)[:, : plane.width * samples]


def _tag(frame: av.VideoFrame, colour: Colour, pixel: PixelFormat) -> None:
    frame.colorspace = 0 if pixel.kind == "rgb" else colour.matrix
    frame.color_primaries = colour.primaries
    frame.color_trc = colour.transfer
    if colour.is_range_tagged or colour.is_full_range:
        frame.color_range = 2 if colour.is_full_range else 1
