"""One line about a job before it begins: what goes in, what comes out, with which model and encoder."""

from __future__ import annotations

from fractions import Fraction

from vsr_hpc.job.spec import RangeSection
from vsr_hpc.media.clip.clip import Clip
from vsr_hpc.media.encode.encoding import ENCODERS, Encoding
from vsr_hpc.media.picture import Picture
from vsr_hpc.media.stills.names import StillNames
from vsr_hpc.media.stills.still import SUFFIXES
from vsr_hpc.media.timeline import parse_position
from vsr_hpc.planning.preparation import Prepared
from vsr_hpc.wording import plural

_CODECS = {"h264": "H.264", "h265": "H.265", "av1": "AV1", "ffv1": "FFV1", "prores": "ProRes"}
_PRORES_PROFILES = ("Proxy", "LT", "422", "422 HQ", "4444", "4444 XQ")


def summarise(prepared: Prepared, *, device: str, frames: int | None = None) -> str:
    """`in.mkv 640×272, 24 fps, 1,440 frames → out.mkv 1280×544, vsr-video-x2 (CPU: 2 cores), H.264 CRF 18`.

    `device` says what computes, in words. Without `frames`, their number is estimated from the headers.
    """
    job, clip = prepared.job, prepared.clip
    output = _last_part(job.output)
    how = describe_encoding(prepared.encoding) if prepared.encoding else _stills_kind(prepared)
    return (
        f"{_last_part(job.input)} {', '.join(_input_parts(clip, job.range, frames))} → "
        f"{output} {describe_size(prepared.picture)}, {prepared.card.name} ({device}), {how}"
    )


def describe_size(picture: Picture) -> str:
    """Width and height as players turn them; the sample aspect where pixels are not square."""
    sides = (picture.height, picture.width) if picture.is_turned else (picture.width, picture.height)
    aspect = picture.sample_aspect
    shape = "" if aspect == 1 else f" (sample aspect {aspect.numerator}:{aspect.denominator})"
    return f"{sides[0]}×{sides[1]}{shape}"


def describe_encoding(encoding: Encoding) -> str:
    """The codec and its quality: `H.264 CRF 18`, `ProRes 422 HQ`; an encoder of a GPU is named."""
    if encoding.rate_kind == "profile":
        rate = _PRORES_PROFILES[int(encoding.rate)]
    elif encoding.rate_kind == "lossless":
        rate = "lossless"
    else:
        rate = f"{encoding.rate_kind.upper()} {encoding.rate:g}"
    usual = encoding.encoder == ENCODERS[encoding.codec][0]
    return f"{_CODECS[encoding.codec]} {rate}{'' if usual else f' by {encoding.encoder}'}"


def estimate_frames(clip: Clip, wanted: RangeSection) -> int | None:
    """The number of frames that will be made, as far as the headers tell; None where they do not."""
    if clip.images is not None:
        whole = Fraction(len(clip.images))
    else:
        stream, rate = clip.video_stream, clip.frame_rate
        seconds = clip.duration_s if stream.duration is None else stream.duration * stream.time_base
        if seconds is None or rate is None:
            return None
        whole = seconds * rate
    begin = _frame_of(wanted.start, clip.frame_rate, Fraction(0))
    end = min(_frame_of(wanted.stop, clip.frame_rate, whole), whole)
    count = max(1, round(end - begin)) if end > begin else None  # only an index says that a range is empty
    return count if count is None or wanted.frames is None else min(count, wanted.frames)


def _frame_of(place: str | None, rate: Fraction | None, default: Fraction) -> Fraction:
    if place is None:
        return default
    position = parse_position(place)
    if isinstance(position, int):
        return Fraction(position)
    return default if rate is None else position * rate


def _input_parts(clip: Clip, wanted: RangeSection, frames: int | None) -> list[str]:
    parts = [describe_size(clip.picture)]
    if clip.is_still:
        return parts
    if clip.frame_rate is not None:
        parts.append(f"{float(clip.frame_rate):.3f}".rstrip("0").rstrip(".") + " fps")
    count = frames or estimate_frames(clip, wanted)
    if count is not None:
        parts.append(f"{'' if frames else 'about '}{plural(count, 'frame')}")
    return parts


def _stills_kind(prepared: Prepared) -> str:
    names = StillNames(prepared.job.output, prepared.clip.images)
    kind = SUFFIXES[names.suffix.lower()]
    return f"{'WebP' if kind == 'webp' else kind.upper()}{'' if names.is_single else ' images'}"


def _last_part(place: str) -> str:
    return place.rstrip("/").rpartition("/")[2] or place
