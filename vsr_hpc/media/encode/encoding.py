"""What a user may ask of the encoder, and the encoding that a plan settles on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vsr_hpc.media.picture import PixelFormat, Siting

VideoCodec = Literal["h264", "h265", "av1", "ffv1", "prores"]
RateKind = Literal["crf", "qp", "lossless", "profile"]

ENCODERS: dict[VideoCodec, tuple[str, ...]] = {
    "h264": ("libx264", "h264_nvenc"),
    "h265": ("libx265", "hevc_nvenc"),
    "av1": ("libsvtav1", "av1_nvenc"),
    "ffv1": ("ffv1",),
    "prores": ("prores_ks",),
}
SUFFIXES: dict[VideoCodec, str] = {
    "h264": ".mp4",
    "h265": ".mp4",
    "av1": ".mp4",
    "ffv1": ".mkv",
    "prores": ".mov",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRequest:
    """What a person asked for; None leaves the choice to `resolve_encoding`."""

    codec: VideoCodec | None = None
    encoder: str | None = None
    crf: float | None = None
    qp: int | None = None
    lossless: bool = False
    preset: str | None = None
    pix_fmt: str | None = None
    encoder_params: tuple[tuple[str, str], ...] = ()
    threads: int | None = None
    is_encoded_here: bool = False
    """Whether this machine's hardware makes the video, so that an encoder of a GPU has to open on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """Everything about the encoder that decides bytes. With a `Picture` it gives the options in full."""

    codec: VideoCodec
    encoder: str
    pixel: PixelFormat
    preset: str
    rate_kind: RateKind
    rate: float
    keyframe_interval: int
    params: tuple[tuple[str, str], ...]
    threads: int
    suffix: str


def choose_siting(codec: VideoCodec, pixel: PixelFormat, siting: Siting) -> Siting:
    """The chroma siting of the output: the source's where the codec can state it, else the nearest it can.

    H.264 and H.265 state a siting for 4:2:0 alone and have "left" for other layouts, as ProRes does. AV1
    states "left" and "topleft". The container states FFV1's: Matroska has no word for the bottom ones.
    """
    if siting == "unspecified" or pixel.kind != "yuv" or not pixel.log2_chroma_w:
        return siting
    if codec == "ffv1":
        return {"bottomleft": "left", "bottom": "center"}.get(siting, siting)  # type: ignore[return-value]
    if not pixel.log2_chroma_h or codec == "prores":
        return "left"
    if codec == "av1":
        return "topleft" if siting in ("top", "topleft") else "left"
    return siting
