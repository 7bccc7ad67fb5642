"""Does an output hold what its source promised? Both files are read again; nobody's word is taken.

Frames, timestamps, every packet of the copied streams, tags, colour, geometry, and (deep) each picture by the
relative rule. What is wrong becomes a finding; nothing is repaired.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from vsr_hpc.errors import MediaError
from vsr_hpc.media.clip.clip import Clip, Stream
from vsr_hpc.media.clip.interlace import Interlace
from vsr_hpc.media.clip.probe import index_clip, probe_clip
from vsr_hpc.media.clip.reader import read_frames
from vsr_hpc.media.encode.encoding import VideoCodec, choose_siting
from vsr_hpc.media.merge.container_plan import StreamsRequest, format_name
from vsr_hpc.media.picture import Picture
from vsr_hpc.media.pixels import without_alpha
from vsr_hpc.media.source import Source, local_source
from vsr_hpc.media.stills.names import ImageSequence, StillNames
from vsr_hpc.media.timeline import Timeline, parse_position, select_range
from vsr_hpc.verification.frame_match import REACH, ChunkFidelity, Matcher, thumbnail, thumbnail_shape
from vsr_hpc.verification.headers import (
    Check,
    attachment_faults,
    chapter_faults,
    default_faults,
    is_regenerated,
    picture_faults,
    picture_notes,
    picture_warnings,
    still_faults,
    stream_tag_faults,
    tag_faults,
    timecode,
)
from vsr_hpc.verification.looks import Look
from vsr_hpc.verification.packets import (
    Track,
    duration_faults,
    first_sound,
    packet_faults,
    read_tracks,
    recoded_faults,
    skip_faults,
    states_durations,
    step_faults,
    text_faults,
)
from vsr_hpc.verification.picture_damage import DamageFinder, MeasureName
from vsr_hpc.verification.timing import common_offset, timing_faults

Progress = Callable[[int, int], None]

_CODECS: Mapping[str, VideoCodec] = {
    "h264": "h264", "hevc": "h265", "av1": "av1", "ffv1": "ffv1", "prores": "prores",
}  # fmt: skip
_STILL_DEPTHS = {".exr": 32, ".jpg": 8, ".jpeg": 8, ".webp": 8}
_MPEG_LAYERS = frozenset({"mp1", "mp2", "mp3"})
"""MP4 has one name for all of them, and one decoder reads them all."""
_EVER_S = Fraction(10**9)
_SHOWN = 5
"""Faults of one kind that are named one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that the output does not keep."""

    check: Check
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was compared and what was found. The output is good where there are no findings.

    `offset_s` was added to every timestamp; `worst_psnr` is that of reduced pictures, no measure of quality.
    `undecided` frames look like their neighbours: they cannot be told apart.
    """

    input: str
    output: str
    findings: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    """What looks like damage, but may be in a true output too."""
    notes: tuple[str, ...]
    frames: int
    is_deep: bool
    offset_s: float | None
    packets: int
    worst_psnr: float | None
    worst_frame: int | None
    undecided: int
    measures: dict[MeasureName, float | None]
    """The worst frame's value of each measure of damage that docs/verify.md names."""

    @property
    def ok(self) -> bool:
        return not self.findings

    def lines(self) -> Iterator[str]:
        """The answer as text."""
        if self.ok:
            yield f"{self.output}: {self.frames} frames, each with its timestamp{_shift_text(self.offset_s)}"
            if self.packets:
                yield f"  {self.packets} packets of other streams equal the source's"
            if self.worst_psnr is not None:
                yield (
                    f"  every picture matches its own input best; {self.undecided} look like their "
                    f"neighbours; worst match: frame {self.worst_frame} "
                    f"(PSNR {self.worst_psnr:.1f} dB, reduced)"
                )
            elif not self.is_deep:
                yield "  pictures were not compared"
        else:
            count = len(self.findings)
            things = "1 thing differs" if count == 1 else f"{count} things differ"
            yield f"{self.output}: {things} from {self.input}"
        yield from (f"  {each.check}: {each.text}" for each in self.findings)
        yield from (f"  warning: {each.check}: {each.text}" for each in self.warnings)
        yield from (f"  note: {each}" for each in self.notes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What an output must keep of its source, as the request that made it said; by default, all of it."""

    streams: StreamsRequest = field(default_factory=StreamsRequest)
    start: str | None = None
    """The first frame that was asked for, as a time or as a frame number (`7f`)."""
    stop: str | None = None
    frames: int | None = None
    salvage: bool = False
    """Whether only the first part of a source that is cut off was asked for."""
    video_stream: int | None = None
    frame_rate: Fraction | None = None
    """The rate that was given for a source without timestamps: images, raw streams."""
    deinterlace: bool = False
    field_order: Interlace | None = None
    """The field order that was given; None where the source's own flags and frames decide."""
    picture: Picture | None = None
    """The planned output picture; without it, tags and depth must be the source's."""
    psnr_floor: float | None = None


def verify(
    source: Source | Path | str,
    output: Source | Path | str,
    promise: Promise | None = None,
    *,
    deep: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compare an output with its source.

    `deep` decodes both sides completely. A source that cannot be read raises MediaError; whatever is wrong
    with the output is a finding.
    """
    promise = promise or Promise()
    origin = local_source(source) if isinstance(source, str | Path) else source
    target = local_source(output) if isinstance(output, str | Path) else output
    clip = probe_clip(
        origin,
        video_stream=promise.video_stream,
        frame_rate=promise.frame_rate,
        allow_gaps=True,
        salvage=promise.salvage,
    )
    clip = clip if promise.field_order is None else replace(clip, interlace=promise.field_order)
    timeline = index_clip(clip, origin)
    begin, end = (None if each is None else parse_position(each) for each in (promise.start, promise.stop))
    first, last = select_range(timeline, begin, end)
    last = last if promise.frames is None else min(last, first + promise.frames)
    work = _Verify(origin, target, clip, timeline, (first, last), promise)
    work.look()
    if deep and work.made is not None:
        work.compare_pictures(threads or min(4, os.cpu_count() or 1), progress)
    fidelity = work.fidelity
    return Verification(
        input=origin.uri,
        output=target.uri,
        findings=tuple(work.findings),
        warnings=tuple(work.warnings),
        notes=tuple(work.notes),
        frames=work.counted,
        is_deep=deep,
        offset_s=None if work.offset is None else float(work.offset),
        packets=work.packets,
        worst_psnr=None if fidelity is None else round(fidelity.worst_psnr, 2),
        worst_frame=None if fidelity is None else fidelity.worst_frame,
        undecided=0 if fidelity is None else fidelity.undecided,
        measures=dict(work.measures),
    )


class _Verify:
    """One comparison and what it found so far."""

    def __init__(
        self,
        source: Source,
        target: Source,
        clip: Clip,
        timeline: Timeline,
        frames: tuple[int, int],
        promise: Promise,
    ) -> None:
        self.source, self.target, self.clip, self.timeline = source, target, clip, timeline
        self.start, self.stop = frames
        self.promise, self.request = promise, promise.streams
        self.findings: list[Finding] = []
        self.warnings: list[Finding] = []
        self.measures: dict[MeasureName, float | None] = {}
        self.notes: list[str] = []
        self.counted = 0
        self.packets = 0
        self.offset: Fraction | None = None
        self.fidelity: ChunkFidelity | None = None
        self.absent = self._without_keys()
        self.made: Clip | None = None
        self.shown: Timeline | None = None

    def find(self, check: Check, text: str) -> None:
        self.findings.append(Finding(check=check, text=text))

    def look(self) -> None:
        """All that headers and packets tell; `made` and `shown` stay None where the output is no clip."""
        try:
            made = self._probed_output()
            shown = index_clip(made, self.target)
        except MediaError as exc:
            self.find("decode", str(exc))
            return
        self.made, self.shown = made, shown
        self.counted = len(shown)
        if made.images is not None:
            self._look_at_stills(made.images, made.picture)
            return
        if self.clip.images is not None and not self.clip.is_rate_given and made.frame_rate:
            self.timeline = replace(self.timeline, time_base=1 / made.frame_rate)
            self.notes.append(f"images have no clock; the output's {made.frame_rate} a second was taken")
        track = made.video_stream
        track_end = None if track.duration is None else (track.start_pts or 0) + track.duration
        for check, text in timing_faults(self.timeline, (self.start, self.stop), shown, track_end):
            if check == "last" and not states_durations(self.target, made.video, shown):
                self.notes.append(f"the file does not say how long each frame is shown; {text}")
            else:
                self.find("time" if check == "last" else check, text)
        self.offset = common_offset(self.timeline, (self.start, self.stop), shown)[0]
        for check, text in picture_faults(self._due_picture(made), made.picture, self.promise.picture):
            self.find(check, text)
        for text in picture_warnings(self.clip.picture, made.picture):
            self.warnings.append(Finding(check="colour", text=text))
        self.notes += picture_notes(self.clip.picture, made.picture)
        self.absent |= self._without_packets(made)
        self._compare_streams(made, shown)
        self._compare_tags(made)

    def _look_at_stills(self, images: ImageSequence, picture: Picture) -> None:
        """Stills have names and numbers, and what a picture has; no clock, no sound, no tags."""
        wanted = self.stop - self.start
        if len(images) != wanted:
            self.find("frames", f"{len(images)} images, the source has {wanted} frames")
        names = StillNames(self.target.uri, self.clip.images)
        for number, name in zip(range(self.start, self.stop), images.names, strict=False):
            if name != names.name(number):
                self.find("frames", f"frame {number} is {name}, {names.name(number)} was due")
                break
        deepest = _STILL_DEPTHS.get(Path(images.names[0]).suffix.lower(), 16)
        for check, text in still_faults(self._due_picture(), picture, self.promise.picture, deepest=deepest):
            self.find(check, text)
        if any(each.kind != "video" for each in self.clip.streams):
            self.notes.append("images hold no sound, subtitles or tags")

    def _due_picture(self, made: Clip | None = None) -> Picture:
        """The source's picture: without alpha where that was to go, its chroma where `made` can state it."""
        picture = self.clip.picture
        if "alpha" in self.request.drop:
            picture = replace(picture, pixel=without_alpha(picture.pixel))
        codec = _CODECS.get(made.video_stream.codec) if made is not None and made.images is None else None
        if made is None or codec is None:
            return picture
        siting = choose_siting(codec, made.picture.pixel, picture.colour.siting)
        return replace(picture, colour=replace(picture.colour, siting=siting))

    def _probed_output(self) -> Clip:
        """The output, by the video stream that stands where the source's stood."""
        made = probe_clip(self.target, allow_gaps=True)
        drops_others = "video" in self.request.drop
        ours = [each for each in _videos(self.clip) if each not in self.absent]
        ours = [self.clip.video] if drops_others else ours
        theirs, place = _videos(made), ours.index(self.clip.video)
        if place < len(theirs) and theirs[place] != made.video:
            return probe_clip(self.target, video_stream=theirs[place])
        return made

    # --- pictures

    def compare_pictures(self, threads: int, progress: Progress | None) -> None:
        """Decode both sides in step and judge every frame that both have."""
        made, shown = self.made, self.shown
        if made is None or shown is None:
            return
        count = min(self.stop - self.start, len(shown))
        first, last = max(0, self.start - REACH), min(len(self.timeline), self.start + count + REACH)
        deinterlace = self.promise.deinterlace
        inputs = read_frames(
            self.clip, self.timeline, self.source, first, last, threads=threads, deinterlace=deinterlace
        )
        outputs = read_frames(made, shown, self.target, 0, len(shown), threads=threads)
        matcher = Matcher(first_input=first, first_output=self.start, psnr_floor=self.promise.psnr_floor)
        finder = DamageFinder(self.clip.picture, made.picture, first=self.start)
        grid = finder.grid
        shape = thumbnail_shape(*reversed(grid.luma))
        waiting: deque[Look] = deque()
        fed = first
        for place in range(len(shown)):
            try:
                frame = next(outputs)
            except (MediaError, StopIteration) as exc:
                self.find("decode", f"frame {place} cannot be decoded: {exc}")
                break
            if place >= count:
                continue
            while fed < min(last, self.start + place + REACH + 1):
                own = grid.look_at(next(inputs), self.clip.picture)
                matcher.add_input(thumbnail(own.luma, shape))
                if fed >= self.start:
                    waiting.append(own)
                fed += 1
            look = grid.look_at(frame, made.picture)
            matcher.add_output(thumbnail(look.luma, shape))
            finder.add(waiting.popleft(), look)
            if progress is not None:
                progress(place + 1, count)
        self.fidelity = matcher.finish()
        for text in fidelity_faults(self.fidelity):
            self.find("picture", text)
        if self.fidelity.wrong:
            return  # wrong frames have another place, colour and sharpness anyway
        self.measures = finder.values()
        for each in finder.damages():
            (self.findings if each.is_error else self.warnings).append(
                Finding(check="picture", text=each.text)
            )

    # --- the other streams

    def _compare_streams(self, made: Clip, shown: Timeline) -> None:
        pairs = self._paired(made)
        if not pairs:
            return
        recoded = [one for one, _ in pairs if self._is_recoded(one)]
        copied = [one for one, _ in pairs if not self._is_recoded(one)]
        ours = read_tracks(self.source, copied, self._window()) if copied else {}
        ours |= read_tracks(self.source, recoded, None) if recoded else {}
        try:
            theirs = read_tracks(self.target, [other for _, other in pairs], None)
        except MediaError as exc:
            self.find("decode", str(exc))
            return
        offset = self.offset or Fraction(0)
        for one, other in pairs:
            for check, text in self._track_faults(
                one, other, ours[one.index], theirs[other.index], offset, shown.time_base
            ):
                self.find(check, f"{_name(one)}: {text}")
            if not self._is_recoded(one):
                self.packets += len(theirs[other.index].pts)

    def _window(self) -> tuple[Fraction, Fraction] | None:
        """The time on the source's clock that was asked for; None where that is all of it.

        A range from the first frame has no lower end: sound may begin, or be primed, before the picture.
        Nor has one to the last frame an upper end.
        """
        if (self.start, self.stop) == (0, len(self.timeline)):
            return None
        base = self.timeline.time_base
        begin = int(self.timeline.pts[self.start]) * base if self.start else -_EVER_S
        end = int(self.timeline.pts[self.stop]) * base if self.stop < len(self.timeline) else _EVER_S
        return begin, end

    def _without_keys(self) -> frozenset[int]:
        """Videos beside the upscaled one that have no key picture in the range: a copy cannot begin."""
        window = self._window()
        others = [
            each
            for each in self.clip.streams
            if each.kind == "video" and not each.is_attached_picture and each.index != self.clip.video
        ]
        if window is None or not others or "video" in self.request.drop:
            return frozenset()
        tracks = read_tracks(self.source, others, window)
        found = frozenset(number for number, track in tracks.items() if not track.pts)
        for number in sorted(found):
            self.notes.append(f"stream {number} (video): left out, no key picture of it lies in the range")
        return found

    def _without_packets(self, made: Clip) -> frozenset[int]:
        """Streams that hold nothing in the range, where the output's container has left them out."""
        wanted, there = self._by_kind(self.clip), self._by_kind(made, is_output=True)
        missing = [kind for kind in wanted if len(there.get(kind, [])) < len(wanted[kind])]
        doubtful = [each for kind in missing for each in wanted[kind] if kind != "attachment"]
        if not doubtful:
            return frozenset()
        tracks = read_tracks(self.source, doubtful, self._window())
        found = frozenset(number for number, track in tracks.items() if not track.pts)
        for each in doubtful:
            if each.index in found:
                self.notes.append(f"{_name(each)}: holds nothing in what was asked for")
        return found

    def _paired(self, made: Clip) -> list[tuple[Stream, Stream]]:
        """Streams of the source and their counterparts: the n-th of a kind is the n-th of that kind."""
        pairs: list[tuple[Stream, Stream]] = []
        wanted, there = self._by_kind(self.clip), self._by_kind(made, is_output=True)
        for kind in sorted({*wanted, *there}):
            ones, others = wanted.get(kind, []), there.get(kind, [])
            for missing in ones[len(others) :]:
                self.find("streams", f"{_name(missing)} is not in the output")
            for extra in others[len(ones) :]:
                self.find(
                    "streams", f"the output has {_name(extra)}, which the source or the request has not"
                )
            pairs += zip(ones, others, strict=False)
        return pairs

    def _by_kind(self, clip: Clip, *, is_output: bool = False) -> dict[str, list[Stream]]:
        kinds: dict[str, list[Stream]] = {}
        for stream in clip.streams:
            kind = "cover" if stream.is_attached_picture else stream.kind
            if stream.index == clip.video or is_regenerated(stream, clip):
                continue
            if not is_output and stream.index in self.absent:
                continue
            is_unwanted = kind in self.request.drop or (kind == "audio" and self.request.audio == "none")
            if not is_output and is_unwanted:
                continue
            kinds.setdefault(kind, []).append(stream)
        return kinds

    def _is_recoded(self, stream: Stream) -> bool:
        return stream.kind == "audio" and self.request.audio in ("aac", "opus")

    def _track_faults(
        self, one: Stream, other: Stream, ours: Track, theirs: Track, offset: Fraction, tick: Fraction
    ) -> Iterator[tuple[Check, str]]:
        codec, made = format_name(one.codec), format_name(other.codec)
        if self._is_recoded(one):
            if made != self.request.audio:
                yield "sound", f"is {made}, {self.request.audio} was asked for"
            ours.heard_s, theirs.heard_s = first_sound(self.source, one), first_sound(self.target, other)
            for text in recoded_faults(ours, theirs, offset, self._window()):
                yield "sound", text
            return
        is_converted = codec != made and ours.texts is not None and theirs.texts is not None
        is_same = codec == made or {codec, made} <= _MPEG_LAYERS
        if not is_same and not is_converted:
            yield "streams", f"was {codec}, is {made}"
            return
        faults = text_faults(ours, theirs) if is_converted else packet_faults(ours, theirs)
        yield from (("streams", text) for text in faults)
        if one.kind != "attachment" and not one.is_attached_picture:
            check: Check = "sound" if one.kind == "audio" else "time"
            yield from ((check, text) for text in step_faults(ours, theirs, offset, tick))
        if one.kind == "subtitle":
            yield from (("time", text) for text in duration_faults(ours, theirs, tick, self._window()))
        yield from (("sound", text) for text in skip_faults(ours, theirs))

    # --- tags

    def _compare_tags(self, made: Clip) -> None:
        drop = self.request.drop
        if "chapters" not in drop:
            for text in chapter_faults(
                self.clip.chapters,
                made.chapters,
                self.offset or Fraction(0),
                self._window(),
                has_gaps="mp4" not in made.container,
            ):
                self.find("tags", text)
        pairs = self._kept_pairs(made)
        for stream, like in [(self.clip.video_stream, made.video_stream), *pairs]:
            for text in stream_tag_faults(stream, like, drop):
                self.find("tags", f"{_name(stream)}: {text}")
        for kind in ("audio", "subtitle") if "disposition" not in drop else ():
            for text in default_faults([pair for pair in pairs if pair[0].kind == kind]):
                self.find("tags", text)
        for stream, like in self._kept_pairs(made, ("attachment",)):
            for text in attachment_faults(stream, like):
                self.find("tags", f"{_name(stream)}: {text}")
        if "metadata" not in drop:
            for text in tag_faults(self.clip.metadata, made.metadata):
                self.find("tags", text)
        if "timecode" not in drop:
            was, now = timecode(self.clip), timecode(made)
            if was and now and was != now:
                self.find("tags", f"timecode was {was}, is {now}")

    def _kept_pairs(
        self, made: Clip, kinds: Sequence[str] = ("video", "audio", "subtitle", "unknown")
    ) -> list[tuple[Stream, Stream]]:
        wanted, there = self._by_kind(self.clip), self._by_kind(made, is_output=True)
        return [
            pair for kind in kinds for pair in zip(wanted.get(kind, []), there.get(kind, []), strict=False)
        ]


# --- pictures
def fidelity_faults(found: ChunkFidelity) -> Iterator[str]:
    """Wrong frames, with runs of the same fault told as one."""
    runs: list[tuple[int, int, int | None]] = []
    for number, best in found.wrong:
        lag = None if best is None else best - number
        if runs and runs[-1][1] == number - 1 and runs[-1][2] == lag:
            runs[-1] = (runs[-1][0], number, lag)
        else:
            runs.append((number, number, lag))
    for first, last, lag in runs[:_SHOWN]:
        name = f"frame {first} shows" if first == last else f"frames {first} to {last} show"
        if lag is None:
            yield f"{name} nothing like its input: black, flat or garbage"
        elif first == last:
            yield f"{name} input frame {first + lag}"
        else:
            way = "later" if lag > 0 else "earlier"
            yield f"{name} the input {abs(lag)} frame{'s' if abs(lag) > 1 else ''} {way}"
    if len(runs) > _SHOWN:
        yield f"and {len(runs) - _SHOWN} more places; {len(found.wrong)} frames in all"


# --- words
def _videos(clip: Clip) -> list[int]:
    return [each.index for each in clip.streams if each.kind == "video" and not each.is_attached_picture]


def _name(stream: Stream) -> str:
    kind = "cover" if stream.is_attached_picture else stream.kind
    return f"stream {stream.index} ({kind} {format_name(stream.codec)})"


def _shift_text(offset_s: float | None) -> str:
    return f" shifted by {offset_s:+.6f} s" if offset_s else ""
