"""One opened clip and its decoder: packets in, frames out, nothing lost in silence."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import av
import av.error
import numpy as np
from av.container import InputContainer

from vsr_hpc.errors import MediaError
from vsr_hpc.media.source import MAX_PIXELS, Source, open_input
from vsr_hpc.media.timeline import Timeline
from vsr_hpc.system.progress import tick

OnError = Callable[["int | None", str], None]
"""Called with a packet's pts (None where it has none) and the reason when that packet can't be decoded."""

# The decoders that FFmpeg picks for VP8 and VP9 leave the alpha channel out; libvpx's give it.
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


class SeekMissed(Exception):
    """Frames after a seek are not those that the timeline lists: begin earlier."""


class Decoder:
    """The video stream of one opened container. Not thread-safe; make it with `open_decoder`."""

    def __init__(
        self,
        container: InputContainer,
        stream: int,
        *,
        decoder: str | None = None,
        threads: int = 1,
        options: dict[str, str] | None = None,
    ) -> None:
        self.container = container
        self.stream: Any = container.streams[stream]
        self._context: Any = self.stream.codec_context
        if decoder is not None and self._context.name != decoder:
            template = self._context
            self._context = av.CodecContext.create(decoder, "r")
            if template.extradata:
                self._context.extradata = template.extradata
        self._context.options = {"max_pixels": str(MAX_PIXELS), **(options or {})}
        self._context.thread_count = max(1, threads)
        if threads > 1:
            self._context.thread_type = "AUTO"

    @property
    def context(self) -> Any:
        return self._context

    def seek(self, timestamp: int) -> None:
        """Go to the last place at or before `timestamp` (in stream ticks, on the dts axis)."""
        try:
            self.container.seek(timestamp, stream=self.stream, backward=True)
        except av.error.FFmpegError as exc:
            raise SeekMissed(f"cannot seek to {timestamp} ({exc.strerror})") from exc
        self._context.flush_buffers()

    def packets(self) -> Iterator[Any]:
        """The stream's packets to the end of the file; the last one is empty and drains the decoder."""
        iterator: Any = self.container.demux(self.stream)
        try:
            for packet in iterator:
                tick()
                yield packet
        except av.error.FFmpegError as exc:
            raise MediaError(
                f"{self.container.name}: the container is damaged ({exc.strerror}); what can be saved: "
                "ffmpeg -err_detect ignore_err -i IN -map 0 -c copy OUT.mkv"
            ) from exc
        finally:
            iterator.close()  # one that is only let go keeps a packet for ever (PyAV 18)

    def frames(self, on_error: OnError) -> Iterator[av.VideoFrame]:
        """Every frame that the decoder gives from here on, in display order.

        A packet that can't be decoded is reported to `on_error`, which raises or takes note; so is a frame
        that the decoder itself marks as corrupt, before it is yielded.
        """
        for packet in self.packets():
            is_last = packet.size == 0 and packet.dts is None
            if packet.size == 0 and not is_last:
                continue  # AVI's "show the last frame again"; FFmpeg would take it for the end
            try:
                decoded = self._context.decode(None if is_last else packet)
            except av.error.EOFError:
                return
            except (av.error.FFmpegError, ValueError) as exc:
                on_error(packet.pts, getattr(exc, "strerror", None) or str(exc))
                continue
            for frame in decoded:
                if frame.is_corrupt:
                    on_error(frame.pts, "the decoder marks the frame as corrupt")
                yield frame
            if is_last:
                return


@contextlib.contextmanager
def open_decoder(
    source: Source,
    stream: int,
    *,
    decoder: str | None = None,
    threads: int = 1,
    options: dict[str, str] | None = None,
) -> Iterator[Decoder]:
    with open_input(source) as container:
        yield Decoder(container, stream, decoder=decoder, threads=threads, options=options)


def frames_from(
    opened: Decoder, timeline: Timeline, key: int, on_error: OnError
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Numbered frames from a keyframe of the timeline on (-1: from the start), each checked by its timestamp.

    Frames shown before their keyframe lean on what lies before it (open GOP) and are left out. SeekMissed
    is raised as soon as a frame is not the one expected.
    """
    if key < 0:
        expected = 0
    else:
        opened.seek(int(timeline.key_dts[key]))
        expected = int(np.searchsorted(timeline.pts, timeline.key_pts[key], side="left"))
    has_begun = key < 0
    for frame in opened.frames(on_error):
        if timeline.is_synthetic:
            yield expected, frame
            expected += 1
            continue
        if expected >= len(timeline):
            raise SeekMissed(f"a frame after the last one, at pts {frame.pts}")
        wanted = int(timeline.pts[expected])
        if not has_begun and frame.pts is not None and frame.pts < wanted:
            continue
        if frame.pts != wanted:
            raise SeekMissed(f"frame {expected}: pts {frame.pts} instead of {wanted}")
        has_begun = True
        yield expected, frame
        expected += 1
