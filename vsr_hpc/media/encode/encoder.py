"""Opens an encoder with the options that keep its bytes repeatable."""

from __future__ import annotations

import functools
from fractions import Fraction
from pathlib import Path
from typing import Any

import av.logging

from vsr_hpc.errors import BackendError
from vsr_hpc.media.encode.encoding import Encoding
from vsr_hpc.media.ffmpeg_errors import reason
from vsr_hpc.media.picture import Mastering, Picture, PixelFormat

PARAM_OPTION = {"libx264": "x264-params", "libx265": "x265-params", "libsvtav1": "svtav1-params"}

# What an encoder takes where it does not take the planes as they are; the reader unpacks them again.
_PACKED = {
    "ffv1": {"gbrp": "bgr0", "gbrap": "bgra"},
    "h264_nvenc": {"yuv420p10le": "p010le"},
    "hevc_nvenc": {"yuv420p10le": "p010le"},
    "av1_nvenc": {"yuv420p10le": "p010le"},
}


def encoder_layout(encoder: str, pixel: PixelFormat) -> str:
    """The pixel format in which this encoder is handed those planes."""
    return _PACKED.get(encoder, {}).get(pixel.name, pixel.name)


# --- what the encoder is told
def encoder_options(encoding: Encoding, picture: Picture) -> dict[str, str]:
    """Every option the encoder gets, in full; a pure function, so that a plan can show it."""
    options = {**_colour_options(picture), "threads": str(encoding.threads)}
    if encoding.encoder != "prores_ks":
        options["g"] = str(encoding.keyframe_interval)
    builder = {
        "libx264": _x264_options,
        "libx265": _x265_options,
        "libsvtav1": _svtav1_options,
        "ffv1": _ffv1_options,
        "prores_ks": _prores_options,
    }.get(encoding.encoder, _nvenc_options)
    options |= builder(encoding, picture)
    if encoding.encoder not in PARAM_OPTION:
        options |= {
            key: value for key, value in encoding.params if key != "profile" or encoding.codec != "prores"
        }
    return options


def _colour_options(picture: Picture) -> dict[str, str]:
    colour = picture.colour
    options = {}
    if picture.pixel.kind == "rgb":
        options["colorspace"] = "0"
    elif colour.matrix not in (0, 2):
        options["colorspace"] = str(colour.matrix)
    if colour.primaries != 2:
        options["color_primaries"] = str(colour.primaries)
    if colour.transfer != 2:
        options["color_trc"] = str(colour.transfer)
    if colour.is_range_tagged or colour.is_full_range:
        options["color_range"] = "2" if colour.is_full_range else "1"
    if colour.siting != "unspecified" and picture.pixel.log2_chroma_w:
        options["chroma_sample_location"] = colour.siting
    if picture.sample_aspect != 1:
        options["sar"] = f"{picture.sample_aspect.numerator}/{picture.sample_aspect.denominator}"
    return options


def _joined(own: dict[str, str], encoding: Encoding) -> str:
    return ":".join(f"{key}={value}" for key, value in {**own, **dict(encoding.params)}.items())


def _x264_options(encoding: Encoding, picture: Picture) -> dict[str, str]:
    own = {"stitchable": "1", **repeatable_x264_params()}
    colour = picture.colour
    is_bare = (colour.matrix, colour.primaries, colour.transfer) == (2, 2, 2)
    if is_bare and colour.is_range_tagged and not colour.is_full_range and picture.pixel.kind == "yuv":
        # x264 writes a limited range only beside another tag; "component" is what YUV planes are anyway
        own["videoformat"] = "component"
    if picture.mastering is not None:
        own["mastering-display"] = _mastering_text(picture.mastering)
    if picture.light_level is not None:
        own["cll"] = f"{picture.light_level[0]},{picture.light_level[1]}"
    rate = {"crf": "crf", "qp": "qp", "lossless": "qp"}[encoding.rate_kind]
    return {"preset": encoding.preset, rate: f"{encoding.rate:g}", "x264-params": _joined(own, encoding)}


def repeatable_x264_params() -> dict[str, str]:
    """The x264 parameters without which the same pictures give other bytes from run to run on this CPU.

    x264's AVX-512 look-ahead does so, on one thread too (tried: 320x176 and other small sizes; five hashes of
    fourteen runs). AVX2 costs about 5 % of its speed.
    """
    return {"asm": "AVX2"} if _has_avx512() else {}


@functools.lru_cache(maxsize=1)
def _has_avx512() -> bool:
    try:
        return " avx512f" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


def _x265_options(encoding: Encoding, picture: Picture) -> dict[str, str]:
    # info=0: the SEI names the CPU. frame-threads decides bytes, pools only speed; both are fixed.
    own = {
        "info": "0",
        "log-level": "error",
        "pools": str(encoding.threads),
        "frame-threads": str(min(encoding.threads, 2)),
        "open-gop": "0",
    }
    if min(picture.width, picture.height) <= 64:
        # Pictures of one or two 64-pixel blocks come out differently from run to run, and below 64x48 x265
        # writes beyond its own memory (tried: 48x48 and 34x36 end in free()'s complaint).
        own["ctu"] = "16"
    if picture.mastering is not None:
        own["master-display"] = _mastering_text(picture.mastering)
    if picture.light_level is not None:
        own["max-cll"] = f"{picture.light_level[0]},{picture.light_level[1]}"
    options = {"preset": encoding.preset}
    if encoding.rate_kind == "lossless":
        own["lossless"] = "1"
    else:
        options[encoding.rate_kind] = f"{encoding.rate:g}"
    return {**options, "x265-params": _joined(own, encoding)}


def _svtav1_options(encoding: Encoding, picture: Picture) -> dict[str, str]:
    own = {"lp": str(encoding.threads)}
    if picture.mastering is not None:
        own["mastering-display"] = _mastering_text(picture.mastering, is_float=True)
    if picture.light_level is not None:
        own["content-light"] = f"{picture.light_level[0]},{picture.light_level[1]}"
    return {
        "preset": encoding.preset,
        encoding.rate_kind: f"{encoding.rate:g}",
        "svtav1-params": _joined(own, encoding),
    }


def _ffv1_options(encoding: Encoding, picture: Picture) -> dict[str, str]:
    return {"level": "3", "slices": "4", "slicecrc": "1", "coder": "1", "context": "0"}


def _prores_options(encoding: Encoding, picture: Picture) -> dict[str, str]:
    options = {"profile": f"{encoding.rate:g}", "vendor": "apl0"}
    return {**options, "alpha_bits": "16"} if picture.pixel.has_alpha else options


def _nvenc_options(encoding: Encoding, picture: Picture) -> dict[str, str]:
    rates = {
        "crf": {"rc": "vbr", "cq": f"{encoding.rate:g}", "b": "0"},
        "qp": {"rc": "constqp", "qp": f"{encoding.rate:g}"},
        "lossless": {"tune": "lossless"},
    }
    return {"preset": encoding.preset, **rates.get(encoding.rate_kind, {})}


def _mastering_text(mastering: Mastering, *, is_float: bool = False) -> str:
    def pair(values: tuple[int, int], unit: int) -> str:
        if is_float:
            return f"({values[0] / unit:.6f},{values[1] / unit:.6f})"
        return f"({values[0]},{values[1]})"

    m = mastering
    return (
        f"G{pair(m.green, 50000)}B{pair(m.blue, 50000)}R{pair(m.red, 50000)}WP{pair(m.white, 50000)}"
        f"L{pair((m.max_luminance, m.min_luminance), 10000)}"
    )


def nominal_rate(time_base: Fraction) -> Fraction:
    """The constant frame rate a segment is coded at: what encoders take, 1 to 240 per second.

    The merge sets the true timestamps; this one only steers rate control.
    """
    rate = min(max(1 / time_base, Fraction(1)), Fraction(240))
    return rate.limit_denominator(1001) if rate.numerator < 1 << 20 else Fraction(round(rate * 1001), 1001)


def open_encoder(encoding: Encoding, picture: Picture, time_base: Fraction) -> av.VideoCodecContext:
    rate = nominal_rate(time_base)
    try:
        context = av.CodecContext.create(encoding.encoder, "w")
        if not isinstance(context, av.VideoCodecContext):
            raise BackendError(f"{encoding.encoder} is no video encoder")
        set_up_encoder(context, encoding, picture, rate)
        context.flags |= 1 << 22  # AV_CODEC_FLAG_GLOBAL_HEADER
        context.open()
    except (av.FFmpegError, ValueError) as exc:
        raise BackendError(
            f"{encoding.encoder} cannot be opened for {picture_name(picture)}: {reason(exc)}"
        ) from exc
    return context


def set_up_encoder(context: Any, encoding: Encoding, picture: Picture, rate: Fraction) -> None:
    context.width = picture.width
    context.height = picture.height
    context.pix_fmt = encoder_layout(encoding.encoder, picture.pixel)
    context.time_base = 1 / rate
    context.framerate = rate
    context.thread_count = encoding.threads
    context.options = encoder_options(encoding, picture)


def picture_name(picture: Picture) -> str:
    return f"{picture.width}x{picture.height} {picture.pixel.name}"
