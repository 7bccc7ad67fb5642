"""Originals to measure and to train with, and what is left of them: made small, and coded as H.264.

Degradation is done in memory, on one thread, so that equal arguments give equal frames.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import imageio.v3 as imageio
import numpy as np
import torch

from vsr_hpc.bench.imresize import Picture8, shrink, whole
from vsr_hpc.engine.colour import Coding
from vsr_hpc.errors import BackendError, JobError, MediaError
from vsr_hpc.media.picture import Colour, Frame, Picture
from vsr_hpc.media.pixels import pixel_format, to_planes
from vsr_hpc.media.stills.still import read_image

STILLS = (".png", ".webp", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
CLIPS = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".y4m")
FRAMES_OF_A_CLIP = 12
_FRAMES_OF_A_STILL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """Originals of one still (one frame) or of one clip."""

    name: str
    frames: tuple[Picture8, ...]
    is_clip: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Lows:
    """Small frames as the engine takes them: RGB where clean, 4:2:0 where coded."""

    picture: Picture
    frames: tuple[Frame, ...]
    measured: tuple[int, ...]
    """Which of them are compared: a still is coded as a short clip, and its last frame counts."""


def read_truth(path: Path, scale: int, *, is_coded: bool = False) -> Truth:
    """An original as RGB, cut to whole multiples of the scale (twice that where 4:2:0 needs it)."""
    is_clip = path.suffix.lower() in CLIPS
    step = 2 * scale if is_coded else scale
    pictures = _read_frames(path, FRAMES_OF_A_CLIP) if is_clip else [read_still(path)]
    frames = [np.ascontiguousarray(whole(pixels, step)) for pixels in pictures]
    if not frames or min(frames[0].shape[:2]) < 16 * scale:
        shown = "x".join(map(str, reversed(frames[0].shape[:2]))) if frames else "no frame"
        raise MediaError(
            f"{path}: {shown} is too small; {16 * scale} pixels in both directions are the least"
        )
    return Truth(name=path.name, frames=tuple(frames), is_clip=is_clip)


def read_still(path: Path) -> Picture8:
    """A still as 8-bit RGB; transparency is dropped.

    imageio reads stills of 8 bits. It would cut deeper ones to 8 bits without rounding, so those are read as
    a job reads them, and rounded.
    """
    try:
        with av.open(str(path)) as container:
            bits = max(each.bits for each in container.streams.video[0].format.components)
        if bits <= 8:
            pixels = imageio.imread(path, index=0, plugin="pillow", mode="RGB")
            return np.ascontiguousarray(pixels, dtype=np.uint8)
        picture, planes, _ = read_image(path)
        return to_rgb8(Frame(index=0, planes=planes), picture)
    except (av.FFmpegError, ValueError, OSError, IndexError, AttributeError) as exc:
        raise MediaError(f"{path}: cannot be read as an image ({exc})") from exc


def _read_frames(path: Path, most: int) -> list[Picture8]:
    """The first frames of a clip as 8-bit RGB."""
    try:
        with av.open(str(path)) as container:
            frames = itertools.islice(container.decode(video=0), most)
            return [np.asarray(each.reformat(format="rgb24").to_ndarray(), dtype=np.uint8) for each in frames]
    except (av.FFmpegError, ValueError, OSError, IndexError) as exc:
        raise MediaError(f"{path}: cannot be read ({exc})") from exc


def degrade_truth(truth: Truth, scale: int, crf: int | None = None) -> Lows:
    """What the models are given for an original."""
    lows = [shrink(frame, scale) for frame in truth.frames]
    if crf is None:
        height, width = lows[0].shape[:2]
        picture = Picture(
            width=width,
            height=height,
            pixel=pixel_format("gbrp"),
            colour=Colour(matrix=0, is_full_range=True, is_range_tagged=True),
        )
        frames = tuple(
            Frame(index=i, planes=tuple(np.ascontiguousarray(low[..., c]) for c in (1, 2, 0)))
            for i, low in enumerate(lows)
        )
        return Lows(picture=picture, frames=frames, measured=tuple(range(len(frames))))
    if not truth.is_clip:
        lows *= _FRAMES_OF_A_STILL
    picture, frames = through_h264(lows, crf=crf)
    measured = tuple(range(len(frames))) if truth.is_clip else (len(frames) - 1,)
    return Lows(picture=picture, frames=frames, measured=measured)


def through_h264(
    frames: Sequence[Picture8], *, crf: int, preset: str = "medium"
) -> tuple[Picture, tuple[Frame, ...]]:
    """RGB frames of even sides as 4:2:0 H.264, encoded in memory and decoded."""
    height, width = frames[0].shape[:2]
    picture = Picture(
        width=width,
        height=height,
        pixel=pixel_format("yuv420p"),
        colour=Colour(matrix=6, is_range_tagged=True, siting="left"),
    )
    coding = Coding(picture)
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, 25)
        stream.thread_count = 1
        stream.options = {"crf": str(crf), "preset": preset}
        for index, rgb in enumerate(frames):
            frame = _as_frame(rgb, coding)
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file, "r") as coded:
        coded.streams.video[0].thread_count = 1
        found = tuple(
            Frame(index=index, planes=to_planes(frame)) for index, frame in enumerate(coded.decode(video=0))
        )
    if len(found) != len(frames):
        raise BackendError(f"x264 gave {len(found)} frames for {len(frames)}")
    return picture, found


def to_rgb8(frame: Frame, picture: Picture) -> Picture8:
    """A frame's planes as 8-bit RGB."""
    tensors = [torch.from_numpy(np.ascontiguousarray(plane))[None].float() for plane in frame.planes]
    rgb = Coding(picture).to_rgb(tensors)[0].permute(1, 2, 0).mul(255).round().clamp(0, 255)
    return np.ascontiguousarray(rgb.to(torch.uint8).numpy())


def _as_frame(rgb: Picture8, coding: Coding) -> av.VideoFrame:
    tensor = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None].float() / 255
    planes = [plane[0].round().clamp(0, 255).to(torch.uint8).numpy() for plane in coding.from_rgb(tensor)]
    stacked = np.concatenate([plane.reshape(-1) for plane in planes])
    height, width = rgb.shape[:2]
    return av.VideoFrame.from_ndarray(stacked.reshape(height * 3 // 2, width), format="yuv420p")


def list_originals(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise JobError(f"{folder}: is no folder of originals")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (*STILLS, *CLIPS))
    if not paths:
        raise JobError(f"{folder}: holds neither stills nor clips ({' '.join((*STILLS, *CLIPS))})")
    return paths


def crf_of(degrade: str) -> int | None:
    if degrade == "clean":
        return None
    match = re.fullmatch(r"h264:(\d{1,2})", degrade)
    if match is None or int(match[1]) > 51:
        raise JobError(
            f"degrade={degrade!r}: write clean, or h264:CRF with a CRF of 0 to 51, such as h264:23"
        )
    return int(match[1])
