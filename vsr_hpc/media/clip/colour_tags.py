"""The colour tags of a decoded frame, and how two sets of them differ."""

from __future__ import annotations

import av

from vsr_hpc.media.picture import MATRIX_NAMES, Colour, Siting
from vsr_hpc.media.pixels import is_full_range_by_name, pixel_format

# Coded greyscale is limited unless tagged; greyscale from still and raw codecs is full.
_LIMITED_GREY_CODECS = frozenset({"h264", "hevc", "vvc", "av1", "vp9", "mpeg2video", "prores"})


def read_colour(frame: av.VideoFrame, codec: str, siting: Siting) -> Colour:
    """The frame's own tags. Where it names no range, the range that its codec and format imply."""
    name = frame.format.name
    form = pixel_format(name)
    tagged = int(frame.color_range or 0)
    is_full = tagged == 2 or is_full_range_by_name(name)
    if tagged == 0 and not is_full:
        is_full = form.kind == "rgb" or (form.kind == "grey" and codec not in _LIMITED_GREY_CODECS)
    return Colour(
        matrix=int(frame.colorspace),
        primaries=int(frame.color_primaries),
        transfer=int(frame.color_trc),
        is_full_range=is_full,
        is_range_tagged=tagged in (1, 2) or is_full_range_by_name(name),
        siting=siting,
    )


def describe_change(before: Colour, after: Colour) -> str:
    """What differs between two sets of tags, for a message; empty where nothing does."""

    def name_range(colour: Colour) -> str:
        return "full" if colour.is_full_range else "limited"

    pairs = (
        (
            "matrix",
            MATRIX_NAMES.get(before.matrix, before.matrix),
            MATRIX_NAMES.get(after.matrix, after.matrix),
        ),
        ("primaries", before.primaries, after.primaries),
        ("transfer", before.transfer, after.transfer),
        ("range", name_range(before), name_range(after)),
    )
    return ", ".join(f"{what} from {was} to {now}" for what, was, now in pairs if was != now)
