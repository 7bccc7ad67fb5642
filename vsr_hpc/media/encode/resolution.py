"""What was asked of the encoder becomes one resolved `Encoding`, or one error with every finding.

Everything that decides bytes stands in `Encoding` and `Picture`; nothing is left to the machine (thread
counts, rate control that races, SEI that names the CPU).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction

import av.logging

from vsr_hpc.errors import JobError, VsrError
from vsr_hpc.media.encode.encoder import PARAM_OPTION, encoder_layout, open_encoder
from vsr_hpc.media.encode.encoding import ENCODERS, SUFFIXES, Encoding, RateKind, VideoCodec, VideoRequest
from vsr_hpc.media.picture import Picture, PixelFormat
from vsr_hpc.media.pixels import planar_format

_CODECS_WITH_LOSSLESS = ("libx264", "libx265", "ffv1", "h264_nvenc", "hevc_nvenc")
_X26X_PRESETS = (
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
    "placebo",
)
_PRESETS: dict[str, Sequence[str]] = {
    "libx264": _X26X_PRESETS,
    "libx265": _X26X_PRESETS,
    "libsvtav1": [str(n) for n in range(14)],
    "h264_nvenc": [f"p{n}" for n in range(1, 8)],
    "hevc_nvenc": [f"p{n}" for n in range(1, 8)],
    "av1_nvenc": [f"p{n}" for n in range(1, 8)],
}
_DEFAULT_PRESET = {"libx264": "medium", "libx265": "medium", "libsvtav1": "8"}
_DEFAULT_CRF = {"libx264": 18.0, "libx265": 20.0, "libsvtav1": 28.0, "h264_nvenc": 19.0, "hevc_nvenc": 21.0}
_CRF_RANGE = {"libx264": 51.0, "libx265": 51.0, "libsvtav1": 63.0}
_DEFAULT_THREADS = 4
_KEYFRAME_INTERVAL = 250
_MINIMUM_SIZE = {"libx264": (1, 1), "libx265": (64, 48), "libsvtav1": (4, 4), "ffv1": (4, 4)}
_MAXIMUM_SIZE = {
    "libx264": (16384, 16384),
    "libx265": (16384, 16384),
    "libsvtav1": (16384, 8704),
    "prores_ks": (16384, 16384),
    "h264_nvenc": (4096, 4096),
    "hevc_nvenc": (8192, 8192),
    "av1_nvenc": (8192, 8192),
}

_THREAD_PARAMS = (
    "threads lookahead-threads sliced-threads pools numa-pools frame-threads wpp lp pin pmode pme"
)
_PICTURE_PARAMS = (
    "colormatrix colorprim transfer range fullrange input-range chromaloc sar videoformat color-primaries "
    "color-range color_range colorspace color_primaries color_trc color-trc transfer-characteristics "
    "matrix-coefficients chroma-sample-position mastering-display master-display max-cll cll content-light "
    "hdr10 fps input-depth input-csp output-csp profile-bits pix_fmt aspect"
)
_INTERLACE_PARAMS = "interlaced interlace tff bff fake-interlaced field field_order"
_FILE_PARAMS = (
    "stats multi-pass-stats qpfile zonefile csv log-file recon dump-yuv analysis-save analysis-load "
    "analysis-reuse-file scaling-list cqmfile lambda-file dhdr10-info film-grain fgs-table opencl "
    "opencl-clbin passlogfile"
)
_BITRATE_PARAMS = "bitrate b abr-ladder tbr mbr target-bitrate b:v strict-cbr rc-grain abr"
_VBV_PARAMS = (
    "vbv-maxrate vbv-bufsize vbv-init vbv-end maxrate bufsize minrate max-bitrate buf-sz buf-initial-sz"
)
_PASS_PARAMS = "pass passes multi-pass-opt-analysis multi-pass-opt-distortion slow-firstpass multipass"
_HRD_PARAMS = "nal-hrd hrd filler nal_hrd hrd-concat cbr"
_THEN_ENCODE = (
    "every segment is encoded on its own, so nothing can hold a rate over the whole film; "
    "use --crf, or upscale with --lossless and encode that file once afterwards"
)


# --- resolving what was asked
def resolve_encoding(request: VideoRequest, picture: Picture) -> Encoding:
    """Settle every open choice for pictures like `picture`, or raise one JobError with all findings."""
    findings: list[str] = []
    pixel = _resolve_pixel(request, picture, findings)
    codec = _resolve_codec(request, pixel, picture)
    encoder = _resolve_encoder(request, codec, findings)
    pixel = _check_pixel(encoder, codec, pixel, request, findings)
    threads = _DEFAULT_THREADS if request.threads is None else request.threads
    if threads < 1:
        findings.append(
            f"encoder threads are {threads}; bytes depend on them, so name 1 or more (no automatic count)"
        )
    rate_kind, rate = _resolve_rate(request, encoder, pixel, findings)
    preset = _resolve_preset(request, encoder, findings)
    findings += _size_findings(encoder, codec, replace(picture, pixel=pixel))
    findings += _param_findings(encoder, request.encoder_params, threads)
    encoding = Encoding(
        codec=codec,
        encoder=encoder,
        pixel=pixel,
        preset=preset,
        rate_kind=rate_kind,
        rate=rate,
        keyframe_interval=1 if codec in ("ffv1", "prores") else _KEYFRAME_INTERVAL,
        params=tuple(request.encoder_params),
        threads=threads,
        suffix=SUFFIXES[codec],
    )
    if not findings:
        findings += _trial_findings(encoding, replace(picture, pixel=pixel), request.is_encoded_here)
    if findings:
        raise JobError.from_findings("video encoder", findings)
    return encoding


def _resolve_pixel(request: VideoRequest, picture: Picture, findings: list[str]) -> PixelFormat:
    if request.pix_fmt is None:
        return picture.pixel
    try:
        wanted = planar_format(request.pix_fmt)
    except ValueError as exc:
        findings.append(f"--pix-fmt: {exc}")
        return picture.pixel
    if picture.pixel.has_alpha and not wanted.has_alpha:
        findings.append(
            f"--pix-fmt {wanted.name} has no alpha, but the source has ({picture.pixel.name}); "
            "choose yuva444p10le (prores, ffv1), or remove the alpha channel with --drop alpha"
        )
    return wanted


def _resolve_codec(request: VideoRequest, pixel: PixelFormat, picture: Picture) -> VideoCodec:
    if request.codec is not None:
        return request.codec
    for codec, encoders in ENCODERS.items():
        if request.encoder in encoders:
            return codec
    is_hdr = picture.colour.transfer in (16, 18) or picture.mastering is not None
    wanted: tuple[VideoCodec, ...] = ("h265",) if pixel.depth > 8 or is_hdr else ("h264", "h265")
    return next((codec for codec in wanted if _takes(ENCODERS[codec][0], pixel)), "ffv1")


def _resolve_encoder(request: VideoRequest, codec: VideoCodec, findings: list[str]) -> str:
    if request.encoder is not None and request.encoder not in ENCODERS[codec]:
        known = ", ".join(name for names in ENCODERS.values() for name in names)
        findings.append(f"encoder {request.encoder!r} does not make {codec}; known encoders: {known}")
        return ENCODERS[codec][0]
    encoder = request.encoder or ENCODERS[codec][0]
    if encoder not in av.codecs_available:
        findings.append(
            f"this FFmpeg (PyAV {av.__version__}) was built without {encoder}; choose another codec"
        )
    return encoder


def _takes(encoder: str, pixel: PixelFormat) -> bool:
    if pixel.has_alpha and encoder not in ("ffv1", "prores_ks"):
        return False  # x265 lists yuva420p, but no player of ours reads that second layer back
    if pixel.kind == "rgb" and encoder.endswith("_nvenc"):
        return False  # it would convert to 4:2:0 inside
    if pixel.kind == "grey" and encoder == "libx264":
        return False  # FFmpeg decodes monochrome H.264 as 4:2:0 and loses its matrix
    if pixel.depth == 32:
        return False  # ffv1 has float only in its experimental version 4
    return encoder_layout(encoder, pixel) in _formats(encoder)


def _formats(encoder: str) -> tuple[str, ...]:
    try:
        return tuple(each.name for each in av.Codec(encoder, "w").video_formats or ())
    except ValueError:  # av.codec.UnknownCodecError
        return ()


def _check_pixel(
    encoder: str, codec: VideoCodec, pixel: PixelFormat, request: VideoRequest, findings: list[str]
) -> PixelFormat:
    if codec == "prores" and request.pix_fmt is None:
        # ProRes has three formats; every source that fits into one without loss is widened into it.
        return _prores_pixel(pixel, findings)
    if not _takes(encoder, pixel):
        fits = [name for name, encoders in ENCODERS.items() if _takes(encoders[0], pixel)]
        way_out = f"codecs that do: {', '.join(fits)}" if fits else "no codec here does; choose --pix-fmt"
        known = ", ".join(name for name in _formats(encoder) if _is_offered(encoder, name))
        findings.append(f"{encoder} does not take {pixel.name}; {way_out}; it takes {known}")
    return pixel


def _is_offered(encoder: str, name: str) -> bool:
    try:
        return _takes(encoder, planar_format(name))
    except ValueError:
        return False


def _prores_pixel(pixel: PixelFormat, findings: list[str]) -> PixelFormat:
    is_wide = pixel.log2_chroma_w == 0 and pixel.kind == "yuv"
    name = "yuva444p10le" if pixel.has_alpha else "yuv444p10le" if is_wide else "yuv422p10le"
    if pixel.kind != "yuv" or pixel.depth > 10 or (pixel.log2_chroma_w > 1):
        findings.append(
            f"prores holds 10-bit 4:2:2 or 4:4:4 YUV, the source is {pixel.name}; use --codec ffv1, "
            f"or accept the conversion with --pix-fmt {name}"
        )
    return planar_format(name)


def _resolve_rate(
    request: VideoRequest, encoder: str, pixel: PixelFormat, findings: list[str]
) -> tuple[RateKind, float]:
    asked = [
        name
        for name, is_set in (
            ("--crf", request.crf is not None),
            ("--qp", request.qp is not None),
            ("--lossless", request.lossless),
        )
        if is_set
    ]
    if len(asked) > 1:
        findings.append(f"{' and '.join(asked)} exclude each other; keep one")
    if encoder == "ffv1":
        if request.crf is not None or request.qp is not None:
            findings.append("ffv1 is always lossless; leave --crf and --qp out")
        return "lossless", 0.0
    if encoder == "prores_ks":
        if asked:
            findings.append(
                f"{asked[0]} means nothing to prores; choose a profile with --encoder-params profile=3"
            )
        profile = dict(request.encoder_params).get("profile", "4" if "444" in pixel.name else "3")
        if profile not in ("0", "1", "2", "3", "4", "5"):
            findings.append(
                f"prores profile {profile!r} is none of 0 (proxy) 1 (lt) 2 3 (hq) 4 (4444) 5 (4444 xq)"
            )
            profile = "3"
        return "profile", float(profile)
    if request.lossless:
        if encoder not in _CODECS_WITH_LOSSLESS:
            findings.append(f"{encoder} has no lossless mode here; use --codec ffv1, h264 or h265")
        return "lossless", 0.0
    if request.qp is not None:
        if not 0 <= request.qp <= (63 if encoder == "libsvtav1" else 51):
            findings.append(f"--qp {request.qp} is outside 0 to {63 if encoder == 'libsvtav1' else 51}")
        return "qp", float(request.qp)
    crf = _DEFAULT_CRF.get(encoder, 28.0) if request.crf is None else float(request.crf)
    top = _CRF_RANGE.get(encoder, 51.0)
    if not 0 <= crf <= top:
        findings.append(f"--crf {crf:g} is outside 0 to {top:g} of {encoder}")
    return "crf", crf


def _resolve_preset(request: VideoRequest, encoder: str, findings: list[str]) -> str:
    known = _PRESETS.get(encoder)
    if known is None:
        if request.preset is not None:
            findings.append(f"{encoder} has no presets; leave --preset out")
        return ""
    preset = request.preset or _DEFAULT_PRESET.get(encoder, "p5")
    if preset not in known:
        findings.append(f"preset {preset!r} is none of {encoder}'s: {', '.join(known)}")
    return preset


def _size_findings(encoder: str, codec: VideoCodec, picture: Picture) -> list[str]:
    found = []
    pixel, width, height = picture.pixel, picture.width, picture.height
    low = _MINIMUM_SIZE.get(encoder, (1, 1))
    high = _MAXIMUM_SIZE.get(encoder, (1 << 15, 1 << 15))
    if width < low[0] or height < low[1]:
        found.append(
            f"{width}x{height} is below {encoder}'s minimum of {low[0]}x{low[1]}; "
            "use --codec ffv1 (from 4x4) or a larger scale"
        )
    if width > high[0] or height > high[1]:
        found.append(
            f"{width}x{height} is above {encoder}'s maximum of {high[0]}x{high[1]}; choose a smaller scale"
        )
    if codec in ("h264", "h265", "av1", "prores"):
        step_w = 1 << pixel.log2_chroma_w
        step_h = 1 << pixel.log2_chroma_h
        if width % step_w or height % step_h:
            found.append(
                f"{width}x{height} in {pixel.name} needs a size divisible by {step_w}x{step_h} for {codec}; "
                f"use --size {width - width % step_w or step_w}x{height - height % step_h or step_h}, "
                "a pixel format without subsampling (--pix-fmt), or --codec ffv1"
            )
    return found


def _param_findings(encoder: str, params: tuple[tuple[str, str], ...], threads: int) -> list[str]:
    found = []
    seen: set[str] = set()
    for key, value in params:
        name = key.replace("_", "-") if encoder in PARAM_OPTION else key
        if name in seen:
            found.append(f"encoder parameter {key} is given twice")
        seen.add(name)
        reason = _param_reason(encoder, name, value, threads)
        if reason:
            found.append(f"encoder parameter {key}={value} is refused: {reason}")
        if encoder in PARAM_OPTION and (":" in value or "=" in value or ":" in key or "=" in key):
            found.append(f"encoder parameter {key}={value} holds ':' or '='; give one parameter each")
    return found


def _param_reason(encoder: str, name: str, value: str, threads: int) -> str:
    if name in _BITRATE_PARAMS.split():
        return _THEN_ENCODE
    if name in _PASS_PARAMS.split():
        return f"two passes need one encoder over the whole film; {_THEN_ENCODE}"
    if name in _HRD_PARAMS.split():
        return f"a buffer model over the whole film cannot be kept across segments; {_THEN_ENCODE}"
    if name == "rc" and value not in ("0", "constqp"):
        return _THEN_ENCODE
    if name in _VBV_PARAMS.split():
        if encoder == "libx264" and threads == 1:
            return ""
        return (
            "VBV on several threads gives other bytes on every run (tried: six runs, six files); "
            "use libx264 with one encoder thread, or leave it out"
        )
    if name in _THREAD_PARAMS.split():
        return "the number of threads belongs to the plan; use --encoder-threads"
    if name in _PICTURE_PARAMS.split():
        return "colour, HDR, aspect and rate tags are the source's and are set from it"
    if name in _INTERLACE_PARAMS.split():
        return "interlaced coding is not offered; deinterlace with --deinterlace"
    if name in _FILE_PARAMS.split():
        return "it reads or writes a file or device that other workers do not have"
    if name in ("crf", "qp", "lossless", "preset", "tune-preset", "qscale", "cq"):
        return f"use --{'crf' if name == 'cq' else name} instead"
    if name == "stitchable" and value not in ("1", "true"):
        return "segments could not be joined without it"
    if name in ("info", "repeat-headers", "annexb", "aud", "force-cfr"):
        return "it belongs to how segments join"
    return ""


def _trial_findings(encoding: Encoding, picture: Picture, is_encoded_here: bool) -> list[str]:
    """Ask the library itself: open it on a small picture and read what it complains about."""
    is_of_gpu = encoding.encoder.endswith("_nvenc")
    if is_of_gpu and not is_encoded_here:
        return []  # a head node need not have the GPU of the workers
    os.environ.setdefault("SVT_LOG", "1")
    side = 256 if is_of_gpu else 128  # some encoders of GPUs begin at 145 pixels
    small = replace(picture, width=min(picture.width, side), height=min(picture.height, side))
    unknown: list[str] = []
    error: VsrError | None = None
    with _captured_warnings() as lines:
        try:
            context = open_encoder(encoding, small, Fraction(1, 25))
        except VsrError as exc:
            error = exc
        else:  # what avcodec_open2 did not take stays in its dictionary
            unknown = [f"encoder {encoding.encoder} knows no parameter {key}" for key in context.options]
    if error is not None and is_of_gpu:
        why = "; ".join(dict.fromkeys(each.strip() for each in lines)) or str(error)
        usual = ENCODERS[encoding.codec][0]
        return [
            f"{encoding.encoder} does not open on this machine ({why}); it needs an NVIDIA GPU that encodes "
            f"video, and its driver. Without --encoder, {usual} encodes on the CPU"
        ]
    if error is not None:
        return [f"{encoding.encoder} does not open with these settings: {error}", *_complaints(lines)]
    return unknown + _complaints(lines)


def _complaints(lines: list[str]) -> list[str]:
    pattern = re.compile(r"unknown option|error parsing option|invalid value|bad value|unrecogni[sz]ed", re.I)
    return [f"encoder says: {each.strip()}" for each in lines if pattern.search(each)]


@contextmanager
def _captured_warnings() -> Iterator[list[str]]:
    lines: list[str] = []
    before = av.logging.get_level()
    av.logging.set_level(av.logging.WARNING)
    try:
        with av.logging.Capture() as records:
            try:
                yield lines
            finally:
                lines += [message for _, _, message in records]
    finally:
        av.logging.set_level(before)
