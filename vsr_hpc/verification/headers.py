"""What an output's headers must keep of its source's: colour, HDR10, geometry, chapters, tags. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Literal

from vsr_hpc.media.clip.clip import Chapter, Clip, Pairs, Stream
from vsr_hpc.media.merge.container_plan import format_name
from vsr_hpc.media.picture import MATRIX_NAMES, Colour, Picture

Check = Literal[
    "frames", "time", "streams", "sound", "tags", "colour", "geometry", "decode", "picture", "run"
]

# Tags that FFmpeg makes up about a file or an encoder; no promise is attached to them.
_STALE_TAGS = frozenset(
    {"major_brand", "minor_version", "compatible_brands", "duration", "encoder", "timecode"}
)
_CHAPTER_SLACK_S = Fraction(1, 1000)


def picture_faults(was: Picture, now: Picture, expected: Picture | None) -> Iterator[tuple[Check, str]]:
    """Colour tags, HDR10 data, depth, alpha, rotation and display aspect: kept, or as planned."""
    yield from (("colour", text) for text in _colour_faults(was, now))
    if now.mastering != was.mastering:
        yield "colour", f"mastering display was {was.mastering}, is {now.mastering}"
    if now.light_level != was.light_level:
        yield "colour", f"content light level was {was.light_level}, is {now.light_level}"
    yield from still_faults(was, now, expected)


def still_faults(
    was: Picture, now: Picture, expected: Picture | None, *, deepest: int = 32
) -> Iterator[tuple[Check, str]]:
    """What a picture has without a container around it: size, depth, alpha, rotation, display aspect.

    `deepest` is the depth that the output's format can hold.
    """
    if expected is not None and (now.width, now.height) != (expected.width, expected.height):
        yield "geometry", f"{now.width}x{now.height}, {expected.width}x{expected.height} was planned"
    depth = min(deepest, (expected or was).pixel.depth)
    if now.pixel.depth < depth:
        yield "colour", f"{now.pixel.depth} bit ({now.pixel.name}), {depth} bit is due ({was.pixel.name})"
    if was.pixel.has_alpha and not now.pixel.has_alpha and (expected is None or expected.pixel.has_alpha):
        yield "colour", f"alpha is lost: was {was.pixel.name}, is {now.pixel.name}"
    if _turn(was.display_matrix) != _turn(now.display_matrix):
        yield "geometry", f"rotation was {was.display_matrix}, is {now.display_matrix}"
    before = Fraction(was.width, was.height) * was.sample_aspect
    after = Fraction(now.width, now.height) * now.sample_aspect
    # sizes are rounded to the chroma grid: two samples either way
    slack = Fraction(2, now.width) + Fraction(2, now.height)
    if abs(after / before - 1) > slack:
        yield "geometry", f"display aspect was {float(before):.4f}, is {float(after):.4f}"


def _turn(matrix: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """A display matrix without its shift, which belongs to the picture's size."""
    return None if matrix is None else (*matrix[:6], matrix[8])


def _colour_faults(was: Picture, now: Picture) -> Iterator[str]:
    one, other = was.colour, now.colour
    if was.pixel.kind != "rgb" and now.pixel.kind != "rgb":
        allowed = {one.matrix, *([one.decoding_matrix(was.height)] if one.matrix == 2 else [])}
        if other.matrix not in allowed and now.pixel.kind != "grey":
            yield f"matrix was {MATRIX_NAMES.get(one.matrix)}, is {MATRIX_NAMES.get(other.matrix)}"
        is_lost = one.is_range_tagged and not other.is_range_tagged and not _is_bare(one)
        if one.is_full_range != other.is_full_range or is_lost:
            yield f"range was {_range(one)}, is {_range(other)}"
        sited, resited = _siting(was, now), _siting(now, was)
        if sited not in ("", "unspecified", resited) and resited:
            yield f"chroma siting was {sited}, is {resited}"
    if was.pixel.kind == now.pixel.kind == "rgb" and one.is_full_range != other.is_full_range:
        yield f"range was {_range(one)}, is {_range(other)}"
    for name, before, after in (
        ("primaries", one.primaries, other.primaries),
        ("transfer", one.transfer, other.transfer),
    ):
        if before != after:
            yield f"{name} was {before}, is {after} (H.273)"


def _is_bare(colour: Colour) -> bool:
    """Whether nothing but the range is tagged. NVENC's H.264 cannot say limited range alone."""
    return (colour.matrix, colour.primaries, colour.transfer) == (2, 2, 2)


_COLUMNS = {
    "unspecified": "left",
    "topleft": "left",
    "bottomleft": "left",
    "top": "center",
    "bottom": "center",
}


def _siting(picture: Picture, beside: Picture) -> str:
    """Where a picture's chroma lies, as far as `beside` can say the same; nothing where it is not subsampled.

    Where one of the two has all chroma lines (4:2:2), only the column counts: MPEG-2 calls it `topleft` and
    H.264 `left`. H.264 and H.265 tag 4:2:0 alone (annex E): untagged 4:2:2 is co-sited.
    """
    if not picture.pixel.log2_chroma_w:
        return ""
    siting = picture.colour.siting
    has_all_lines = not picture.pixel.log2_chroma_h
    if has_all_lines or (not beside.pixel.log2_chroma_h and siting != "unspecified"):
        return _COLUMNS.get(siting, siting)
    return siting


def picture_notes(was: Picture, now: Picture) -> list[str]:
    notes = []
    if (now.pixel.log2_chroma_w, now.pixel.log2_chroma_h) > (
        was.pixel.log2_chroma_w,
        was.pixel.log2_chroma_h,
    ):
        notes.append(f"chroma has fewer samples: was {was.pixel.name}, is {now.pixel.name}")
    if (was.pixel.kind == "rgb") != (now.pixel.kind == "rgb"):
        notes.append(f"{was.pixel.kind} became {now.pixel.kind}; matrix and range cannot be compared")
        return notes
    return notes


def picture_warnings(was: Picture, now: Picture) -> Iterator[str]:
    """What players show alike, though the output does not say it."""
    ranges = (_range(was.colour), _range(now.colour))
    if (
        was.pixel.kind == now.pixel.kind == "yuv"
        and _is_bare(was.colour)
        and ranges == ("limited", "unspecified")
    ):
        yield "the tag of the limited range is lost; players assume that range"


def _range(colour: Colour) -> str:
    return "full" if colour.is_full_range else "limited" if colour.is_range_tagged else "unspecified"


def chapter_faults(
    was: Sequence[Chapter],
    now: Sequence[Chapter],
    offset: Fraction,
    window: tuple[Fraction, Fraction] | None,
    *,
    has_gaps: bool = True,
) -> Iterator[str]:
    """Each chapter with its title, at its time.

    Without `has_gaps`, the output's container lets each chapter last until the next one begins (MP4).
    """
    kept = [cut for chapter in was if (cut := _cut_chapter(chapter, offset, window)) is not None]
    if len(kept) != len(now):
        yield f"{len(now)} chapters, the source has {len(kept)}"
        return
    starts = [start for start, _, _ in kept]
    for number, ((start, stop, title), each) in enumerate(zip(kept, now, strict=True)):
        begins, ends = each.start * each.time_base, each.stop * each.time_base
        name = dict(each.metadata).get("title", "")
        if title != name:
            yield f"chapter {number} was {title!r}, is {name!r}"
        if abs(begins - start) > _CHAPTER_SLACK_S:
            yield f"chapter {number} begins at {float(begins):.3f} s, in the source at {float(start):.3f} s"
        if not has_gaps and number + 1 < len(starts):
            stop = starts[number + 1]
        if abs(ends - stop) > _CHAPTER_SLACK_S:
            yield f"chapter {number} ends at {float(ends):.3f} s, in the source at {float(stop):.3f} s"


def _cut_chapter(
    chapter: Chapter, offset: Fraction, window: tuple[Fraction, Fraction] | None
) -> tuple[Fraction, Fraction, str] | None:
    """Where it begins and ends in the output, and its title; None where it lies outside of what was asked."""
    first, last = chapter.start * chapter.time_base, chapter.stop * chapter.time_base
    if window is not None:
        if last <= window[0] or first >= window[1]:
            return None
        first, last = max(first, window[0]), min(last, window[1])
    title = dict(chapter.metadata).get("title", "")
    return max(Fraction(0), first + offset), max(Fraction(0), last + offset), title


def stream_tag_faults(was: Stream, now: Stream, drop: Sequence[str]) -> Iterator[str]:
    """Language, title and what the stream is for; `default_faults` compares which one plays by default."""
    if _language(was) != _language(now):
        yield f"language was {_language(was) or 'unset'}, is {_language(now) or 'unset'}"
    before, after = _title(was), _title(now)
    if "metadata" not in drop and before and before != after:
        yield f"title was {before!r}, is {after!r}"
    if "disposition" in drop:
        return
    one, other = ({*each.disposition} - {"default"} for each in (was, now))
    if one - other:
        yield f"disposition {', '.join(sorted(one - other))} is lost"
    if other - one:
        yield f"disposition {', '.join(sorted(other - one))} is added"


def default_faults(pairs: Sequence[tuple[Stream, Stream]]) -> Iterator[str]:
    """Which streams of one kind play by default. Where the source names none, muxers name the first one."""
    was, now = (
        [place for place, pair in enumerate(pairs) if "default" in pair[side].disposition] for side in (0, 1)
    )
    if was != now and (was or now not in ([], [0])):
        names = [", ".join(str(pairs[place][0].index) for place in places) or "none" for places in (was, now)]
        yield f"the default among the {pairs[0][0].kind} streams was {names[0]}, is {names[1]}"


def attachment_faults(was: Stream, now: Stream) -> Iterator[str]:
    """An attached file's name and type: subtitles find their fonts by them."""
    before, after = dict(was.metadata), dict(now.metadata)
    for key, name in (("filename", "file name"), ("mimetype", "MIME type")):
        if key in before and before[key] != after.get(key):
            yield f"{name} was {before[key]!r}, is {after.get(key, 'missing')!r}"


def tag_faults(was: Pairs, now: Pairs) -> Iterator[str]:
    """Each of the container's own tags; Matroska writes their names in capitals."""
    theirs = {key.lower(): value for key, value in now}
    for key, value in was:
        is_unset = key.lower() == "creation_time" and value.startswith("1970-01-01T00:00:00")
        if is_unset or key.lower() in _STALE_TAGS or theirs.get(key.lower()) == value:
            continue
        found = theirs.get(key.lower())
        yield f"tag {key} was {value!r}, is {'missing' if found is None else repr(found)}"


def _title(stream: Stream) -> str:
    """FFmpeg reads the title of an MP4 track as its name."""
    return stream.title or dict(stream.metadata).get("name", "")


def _language(stream: Stream) -> str:
    return "" if stream.language == "und" else stream.language


def is_regenerated(stream: Stream, clip: Clip) -> bool:
    """Tracks that a muxer writes from tags: timecode, and QuickTime's chapter titles."""
    if stream.kind != "data":
        return False
    is_timecode = stream.codec in ("tmcd", "timecode") or stream.codec_tag == "tmcd"
    is_titles = bool(clip.chapters) and format_name(stream.codec) in (
        "bin_data",
        "text",
        "none",
        "unknown",
        "",
    )
    return is_timecode or "timecode" in dict(stream.metadata) or is_titles


def timecode(clip: Clip) -> str:
    for pairs in (clip.metadata, *(each.metadata for each in clip.streams)):
        for key, value in pairs:
            if key.lower() == "timecode":
                return value
    return ""
