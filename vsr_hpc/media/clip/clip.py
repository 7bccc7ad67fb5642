"""What a clip is: its streams, chapters, picture and timeline."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from vsr_hpc.media.clip.container_facts import Edit
from vsr_hpc.media.clip.interlace import Interlace
from vsr_hpc.media.picture import Picture
from vsr_hpc.media.stills.names import ImageSequence

StreamKind = Literal["video", "audio", "subtitle", "data", "attachment", "unknown"]
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One stream of the container, as it says itself. `start_pts` and `duration` are in `time_base`."""

    index: int
    id: int
    kind: StreamKind
    codec: str
    codec_tag: str = ""
    profile: str | None = None
    time_base: Fraction
    language: str = ""
    title: str = ""
    disposition: tuple[str, ...] = ()
    metadata: Pairs = ()
    start_pts: int | None = None
    duration: int | None = None
    sample_rate: int | None = None
    channels: int | None = None
    layout: str = ""
    width: int | None = None
    height: int | None = None
    edits: tuple[Edit, ...] = ()
    has_plain_edits: bool = True
    is_attached_picture: bool = False
    is_monochrome: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapter:
    """`start` and `stop` in `time_base`."""

    id: int
    start: int
    stop: int
    time_base: Fraction
    metadata: Pairs = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A clip as its headers and first frames tell it. Round-trips through JSON by pydantic's TypeAdapter."""

    uri: str
    container: str
    size_bytes: int
    video: int
    codec: str
    decoder: str | None = None
    """A decoder other than FFmpeg's choice, where alpha needs it."""
    picture: Picture
    frame_rate: Fraction | None
    is_rate_given: bool = False
    duration_s: Fraction | None = None
    start_s: Fraction | None = None
    streams: tuple[Stream, ...]
    chapters: tuple[Chapter, ...] = ()
    metadata: Pairs = ()
    interlace: Interlace = "progressive"
    has_hard_telecine: bool = False
    has_hdr10plus: bool = False
    dolby_vision_profile: int | None = None
    """None: no Dolby Vision; 0: there is some, of a profile that could not be told."""
    has_film_grain: bool = False
    side_data: tuple[str, ...] = ()
    """Kinds of side data on the first frames, by FFmpeg's names."""
    is_single_picture: bool = False
    """A HEIC or AVIF still: a container that holds one picture."""
    is_cut_off: bool = False
    """Whether the file is shorter than its header says; its frames end where they can no longer be read."""
    images: ImageSequence | None = None
    """Set where the clip is a folder, a pattern or a single still: there is no container then."""
    findings: tuple[str, ...] = ()

    @property
    def is_still(self) -> bool:
        """Whether it is one picture and not a clip of one frame."""
        return self.is_single_picture or (self.images is not None and self.images.is_still)

    @property
    def video_stream(self) -> Stream:
        return next(each for each in self.streams if each.index == self.video)
