"""Colour through whole runs: the same samples out as in, every tag kept, RGB within its stated bar.

Bars and ramps are drawn here from H.273's formulas, not with the product's code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from tests.clips import _tag, picture, repeatable_x264
from tests.runs import finished, planned_run, tiny_job
from vsr_hpc.media.clip.probe import probe_clip
from vsr_hpc.media.clip.reader import read_segment
from vsr_hpc.media.merge.header_edits import add_track_header
from vsr_hpc.media.picture import Colour, Frame, Mastering, Picture
from vsr_hpc.media.source import local_source
from vsr_hpc.models.cards import Card, find_card
from vsr_hpc.models.networks import build
from vsr_hpc.verification.verify import verify

Planes = tuple[NDArray[Any], ...]
Siting = Literal["left", "center", "topleft"]

WIDTH, HEIGHT, FRAMES = 160, 72, 5
WEIGHTS = {6: (0.299, 0.114), 1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}
"""Red's and blue's share of luma in BT.601, BT.709 and BT.2020."""
TAGS = {6: (6, 6), 1: (1, 1), 9: (9, 14)}
SITED: dict[int, Siting] = {6: "center", 1: "left", 9: "topleft"}
LAYOUTS = list(product((6, 1, 9), (False, True), (8, 10), ("420", "422", "444")))
CODECS = ("h264", "h265", "ffv1")
EDGE_CODES = {("420", "center"): 25, ("420", "left"): 19, ("420", "topleft"): 14, ("422", "left"): 8}
"""Measured: the most, in 8-bit codes, that chroma beside a saturated edge changes on the way through RGB."""
HDR = Mastering(
    red=(34000, 16000),
    green=(13250, 34500),
    blue=(7500, 3000),
    white=(15635, 16450),
    max_luminance=10_000_000,
    min_luminance=50,
)


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def shape_of(matrix: int, full: bool, depth: int, sub: str) -> Picture:
    primaries, transfer = TAGS[matrix]
    colour = Colour(
        matrix=matrix,
        primaries=primaries,
        transfer=transfer,
        is_full_range=full,
        is_range_tagged=True,
        siting=SITED[matrix] if sub == "420" else "left" if sub == "422" else "unspecified",
    )
    name = f"yuv{sub}p{'10le' if depth == 10 else ''}"
    return replace(picture((WIDTH, HEIGHT), name), colour=colour)


def drawn(number: int) -> NDArray[np.float64]:
    """Bars above the same at 75 % in reverse order, then ramps of each colour; all move with the number."""
    corners = np.array(list(product((1.0, 0.0), repeat=3))).T
    bars = corners.repeat(WIDTH // 8, axis=1)[:, None, :].repeat(HEIGHT // 3, axis=1)
    ramp = np.linspace(0, 1, WIDTH)
    ramps = np.stack([ramp, ramp[::-1], np.abs(2 * ramp - 1)])[:, None, :].repeat(HEIGHT // 3, axis=1)
    sheet = np.concatenate([bars, bars[..., ::-1] * 0.75, ramps], axis=1)
    return np.roll(sheet, WIDTH // 8 * number, axis=2)


def coded(rgb: NDArray[np.float64], shape: Picture) -> Planes:
    """H.273's equations 8.3, with chroma averaged onto its sites."""
    red_share, blue_share = WEIGHTS[shape.colour.matrix]
    red, green, blue = rgb
    luma = red_share * red + (1 - red_share - blue_share) * green + blue_share * blue
    chroma = [(blue - luma) / (2 - 2 * blue_share), (red - luma) / (2 - 2 * red_share)]
    unit, peak = 1 << (shape.pixel.depth - 8), (1 << shape.pixel.depth) - 1
    full = shape.colour.is_full_range
    planes = [luma * (peak if full else 219 * unit) + (0 if full else 16 * unit)]
    for each in chroma:
        sited = _sited(each, shape) * (peak if full else 224 * unit) + 128 * unit
        planes.append(sited)
    return tuple(np.clip(np.floor(each + 0.5), 0, peak).astype(shape.pixel.dtype) for each in planes)


def _sited(sheet: NDArray[np.float64], shape: Picture) -> NDArray[np.float64]:
    if shape.pixel.log2_chroma_h:
        sheet = _halved(sheet.T, is_between=shape.colour.siting != "topleft").T
    if shape.pixel.log2_chroma_w:
        sheet = _halved(sheet, is_between=shape.colour.siting == "center")
    return sheet


def _halved(sheet: NDArray[np.float64], *, is_between: bool) -> NDArray[np.float64]:
    """Every second sample, or the mean of two; on a sample's site with its neighbours' share."""
    wide = np.pad(sheet, ((0, 0), (1, 1)), mode="edge")
    if is_between:
        return (wide[:, 1:-1:2] + wide[:, 2::2]) / 2
    return (wide[:, :-2:2] + 2 * wide[:, 1:-1:2] + wide[:, 2::2]) / 4


def with_extremes(planes: Planes, shape: Picture) -> Planes:
    """Every code from 0 to the peak in the lowest lines, head- and footroom included."""
    peak = (1 << shape.pixel.depth) - 1
    made = []
    for plane in planes:
        copy = plane.copy()
        copy[-2:] = np.linspace(0, peak, copy[-2:].size).astype(plane.dtype).reshape(2, -1)
        made.append(copy)
    return tuple(made)


def clip_of(path: Path, sheets: list[Planes], shape: Picture, **more: str) -> Path:
    """A lossless, tagged H.264 clip of these planes."""
    options = {"qp": "0", "preset": "ultrafast", **more}
    if shape.colour.siting != "unspecified":
        options["chroma_sample_location"] = shape.colour.siting
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=24, options=repeatable_x264(options))
        stream.width, stream.height, stream.pix_fmt = shape.width, shape.height, shape.pixel.name
        stream.codec_context.thread_count = 1
        _tag(stream.codec_context, shape.colour)
        for number, planes in enumerate(sheets):
            frame = av.VideoFrame(shape.width, shape.height, shape.pixel.name)
            for target, plane in zip(frame.planes, planes, strict=True):
                lines = np.zeros((plane.shape[0], target.line_size), np.uint8)
                raw = np.ascontiguousarray(plane).view(np.uint8)
                lines[:, : raw.shape[1]] = raw
                target.update(lines.tobytes().ljust(target.buffer_size, b"\0"))
            _tag(frame, shape.colour)
            frame.pts, frame.time_base = number, Fraction(1, 24)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def upscaled(folder: Path, suffix: str = ".mkv", **sections: Any) -> Path:
    """`clip.mkv` of the folder through a whole run of two chunks, lossless where nothing else is said."""
    video = {"lossless": True, **sections.pop("video", {})}
    sections = {"video": video, "run": {"chunk_s": 3 / 24}, **sections}
    job = tiny_job(folder, output=str(folder / f"out{suffix}"), **sections)
    finished(planned_run(job))
    return Path(job.output)


def pairs(source: list[Planes], output: Path) -> Iterator[tuple[int, Any, Any]]:
    """(plane's number, before, after) of every plane of every frame."""
    frames: list[Frame] = list(read_segment(output))
    assert len(frames) == len(source)
    for before, frame in zip(source, frames, strict=True):
        assert len(before) == len(frame.planes)
        yield from ((i, a, b) for i, (a, b) in enumerate(zip(before, frame.planes, strict=True)))


def told(path: Path) -> Colour:
    """Colour as probed. Siting means something in 4:2:0 alone: 4:2:2 is co-sited, whatever decoders say."""
    found = probe_clip(local_source(path)).picture
    if found.pixel.log2_chroma_h:
        return found.colour
    return replace(found.colour, siting="left" if found.pixel.log2_chroma_w else "unspecified")


@pytest.mark.parametrize(("matrix", "full", "depth", "sub"), LAYOUTS)
def test_nearest_at_scale_1_gives_back_every_sample_and_tag(
    matrix: int, full: bool, depth: int, sub: str, tmp_path: Path
) -> None:
    shape = shape_of(matrix, full, depth, sub)
    codec = CODECS[LAYOUTS.index((matrix, full, depth, sub)) % 3]
    sheets = [with_extremes(coded(drawn(number), shape), shape) for number in range(FRAMES)]
    clip = clip_of(tmp_path / "clip.mkv", sheets, shape)
    video = {"codec": codec, **({"preset": None} if codec == "ffv1" else {})}
    output = upscaled(tmp_path, ".mkv" if codec == "ffv1" else ".mp4", picture={"scale": 1}, video=video)
    for _, before, after in pairs(sheets, output):
        np.testing.assert_array_equal(after, before)
    assert told(clip) == told(output) == shape.colour
    assert probe_clip(local_source(output)).picture.pixel == shape.pixel
    assert verify(clip, output).ok


@pytest.mark.parametrize("sub", ["420", "422", "444"])
@pytest.mark.parametrize("matrix", [6, 1, 9])
def test_nearest_at_scale_2_repeats_every_sample(matrix: int, sub: str, tmp_path: Path) -> None:
    shape = shape_of(matrix, False, 8, sub)
    sheets = [coded(drawn(number), shape) for number in range(FRAMES)]
    clip_of(tmp_path / "clip.mkv", sheets, shape)
    output = upscaled(tmp_path)
    wanted = [tuple(plane.repeat(2, 0).repeat(2, 1) for plane in planes) for planes in sheets]
    for number, before, after in pairs(wanted, output):
        np.testing.assert_array_equal(after, before, f"plane {number}")
    assert told(output) == shape.colour


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a x1 network whose last layer adds nothing to its input: the RGB path and no more."""
    small = {"num_feat": 4, "num_conv": 1, "act_type": "prelu"}
    card = find_card("realesr-animevideov3").model_dump() | {"parameters": small, "scale": 1}
    network = build(Card.model_validate(card))
    state = network.state_dict()
    last = max((name for name in state if name.endswith("weight")), key=lambda name: int(name.split(".")[1]))
    for name in (last, last.replace("weight", "bias")):
        state[name] = torch.zeros_like(state[name])
    path = tmp_path_factory.mktemp("weights") / "identity.safetensors"
    save_file(state, path)
    return path


@pytest.mark.parametrize(("matrix", "full", "depth", "sub"), LAYOUTS)
def test_an_identity_network_keeps_luma_and_flat_colour_to_a_code(
    matrix: int, full: bool, depth: int, sub: str, identity: Path, tmp_path: Path
) -> None:
    shape = shape_of(matrix, full, depth, sub)
    sheets = [coded(drawn(number), shape) for number in range(FRAMES)]
    clip_of(tmp_path / "clip.mkv", sheets, shape)
    output = upscaled(tmp_path, model=str(identity), picture={"scale": 1})
    edge = EDGE_CODES.get((sub, shape.colour.siting), 1) << (depth - 8)
    for number, before, after in pairs(sheets, output):
        off = np.abs(before.astype(int) - after.astype(int))
        flat = is_flat(before) if number and sub != "444" else np.ones(before.shape, bool)
        assert flat.mean() > 0.05
        assert off[flat].max() <= 1
        assert off.max() <= edge
    assert told(output) == shape.colour


def is_flat(plane: NDArray[Any]) -> NDArray[np.bool_]:
    """Samples whose neighbours, four to each side, are like them: as far as both resamplings reach."""
    wide = np.pad(plane.astype(int), 4, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(wide, (9, 9))
    return np.asarray(np.ptp(windows, axis=(2, 3)) == 0)


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        ("h265", ".mp4"),
        ("h265", ".mkv"),
        ("h264", ".mov"),
        ("av1", ".mp4"),
        ("av1", ".webm"),
        ("ffv1", ".mkv"),
    ],
)
def test_static_hdr10_is_kept(codec: str, suffix: str, tmp_path: Path) -> None:
    colour = Colour(matrix=9, primaries=9, transfer=16, is_range_tagged=True, siting="topleft")
    shape = replace(shape_of(9, False, 10, "420"), colour=colour)
    sheets = [coded(drawn(number), shape) for number in range(FRAMES)]
    plain = clip_of(tmp_path / "plain.mp4", sheets, shape)
    header = add_track_header(plain.read_bytes(), display_matrix=None, mastering=HDR, light_level=(1000, 400))
    (tmp_path / "clip.mkv").write_bytes(header)
    clip = tmp_path / "clip.mkv"  # the suffix of an input means nothing
    video: dict[str, Any] = {"codec": codec, "lossless": codec in ("h265", "h264")}
    if codec in ("av1", "ffv1"):
        video["preset"] = {"av1": "10", "ffv1": None}[codec]
    output = upscaled(tmp_path, suffix, video=video, picture={"scale": 1 if codec != "av1" else 2})
    before, after = (probe_clip(local_source(each)).picture for each in (clip, output))
    assert (before.mastering, before.light_level) == (HDR, (1000, 400))
    assert (after.mastering, after.light_level, after.colour) == (HDR, (1000, 400), colour)
    assert verify(clip, output).ok
