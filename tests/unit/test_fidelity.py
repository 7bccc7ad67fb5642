"""Frames that are not the upscaled input are found; lossy coding, texture, fades and noise are no faults."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests import clips
from tests.clips import repeatable_x264
from vsr_hpc.engine.geometry import LUMA_WEIGHTS
from vsr_hpc.media.picture import Colour, Frame
from vsr_hpc.verification.frame_match import Matcher, compare, luma_thumbnail, thumbnail, thumbnail_shape
from vsr_hpc.verification.looks import common_grid

Pictures = NDArray[np.float32]
WIDTH, HEIGHT = 160, 96


def scene(frames: int = 30, *, pan: float = 1.5, noise: float = 0, cut: int | None = None) -> Pictures:
    """A textured picture that pans, with a small ball that flies across it."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    out = []
    for i in range(frames):
        shift = x + pan * i + (400 if cut is not None and i >= cut else 0)
        picture = 115 + 45 * np.sin(shift / 11) * np.cos(y / 9) + 25 * np.sin((shift + y) / 4)
        picture[np.hypot(x - 10 - 3 * i, y - 30 - i) < 6] = 220
        out.append(np.clip(picture + rng.normal(0, noise, picture.shape), 0, 255) if noise else picture)
    return np.stack(out).astype(np.float32)


def textured(pictures: Pictures, amount: float = 6) -> Pictures:
    """What a network adds: texture that belongs to each picture, a little more contrast, a little darker."""
    rng = np.random.default_rng(2)
    texture = rng.normal(0, amount, pictures.shape[1:]).astype(np.float32)
    return (pictures - 128) * 1.06 + 124 + texture + rng.normal(0, 1, pictures.shape).astype(np.float32)


def coded(pictures: Pictures, crf: int, scale: int = 2, codec: str = "libx264") -> Pictures:
    """Thumbnails of the pictures after a real encoder, enlarged `scale` times with nearest before it."""
    encoder: Any = av.CodecContext.create(codec, "w")
    height, width = pictures.shape[1] * scale, pictures.shape[2] * scale
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.framerate, encoder.thread_count = Fraction(1, 25), Fraction(25), 1
    encoder.options = repeatable_x264({"crf": str(crf), "preset": "veryfast"})
    decoder: Any = av.CodecContext.create("h264", "r")
    decoded = []
    sheet = np.full((height * 3 // 2, width), 128, np.uint8)
    for i, picture in enumerate([*pictures, None]):
        frame = None
        if picture is not None:
            sheet[:height] = np.rint(np.clip(picture, 0, 255)).repeat(scale, 0).repeat(scale, 1)
            frame = av.VideoFrame.from_ndarray(sheet, format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, 25)
        for packet in encoder.encode(frame):
            decoded += decoder.decode(packet)
    decoded += decoder.decode(None)
    planes = [frame.to_ndarray()[:height] for frame in decoded]
    return np.stack([thumbnail(plane, (HEIGHT, WIDTH)) for plane in planes])


def shuffled(outputs: Pictures, order: dict[int, int]) -> Pictures:
    return outputs[[order.get(i, i) for i in range(len(outputs))]]


def test_thumbnail_is_the_area_average_for_any_ratio() -> None:
    plane = np.random.default_rng(0).integers(0, 256, (101, 83)).astype(np.uint8)
    fine = plane.repeat(7, 0).repeat(5, 1).astype(np.float64)
    exact = fine.reshape(7, 101, 5, 83).mean(axis=(1, 3))
    assert np.allclose(thumbnail(plane, (7, 5)), exact, atol=0.01)
    assert np.array_equal(thumbnail(plane, plane.shape), plane)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_thumbnail_of_an_enlarged_plane_equals_that_of_the_plane(dtype: str) -> None:
    plane = np.random.default_rng(0).integers(0, 200, (90, 160)).astype(dtype)
    large = plane.repeat(4, 0).repeat(4, 1)
    assert np.abs(thumbnail(large, (45, 80)) - thumbnail(plane, (45, 80))).max() < 0.01


@pytest.mark.parametrize("matrix", [1, 6])
def test_a_saturated_colour_has_the_same_luma_in_rgb_and_in_yuv(matrix: int) -> None:
    """A picture in one of both is compared with the other, as a HEIC still and its PNG are."""
    red, blue = LUMA_WEIGHTS[matrix]
    yuv = clips.picture((32, 32), "yuv420p", Colour(matrix=matrix, is_full_range=True))
    rgb = clips.picture((32, 32), "gbrp", Colour(matrix=0, is_full_range=True))
    luma = np.full((32, 32), round(255 * (1 - red - blue)), np.uint8)
    grid = common_grid(yuv, rgb, 64)
    neutral = np.full((16, 16), 128, np.uint8)
    none = np.zeros((32, 32), np.uint8)
    was = grid.look_at(Frame(index=0, planes=(luma, neutral, neutral)), yuv)
    now = grid.look_at(Frame(index=0, planes=(np.full((32, 32), 255, np.uint8), none, none)), rgb)
    assert np.abs(was.luma - now.luma).max() < 1


def test_thumbnails_are_never_larger_than_the_input() -> None:
    assert thumbnail_shape(64, 48) == (48, 64)
    assert thumbnail_shape(1920, 1080) == (108, 192)
    assert thumbnail_shape(1080, 1920) == (192, 108)
    assert thumbnail_shape(4000, 1) == (1, 192)


@pytest.mark.parametrize(
    "pix_fmt", ["yuv420p", "yuvj420p", "yuv444p10le", "gray", "gray16le", "gbrp", "gbrp12le"]
)
def test_white_and_black_are_the_same_codes_in_every_format(pix_fmt: str) -> None:
    full = pix_fmt in ("yuvj420p", "gray", "gray16le")
    picture = clips.picture((32, 16), pix_fmt, Colour(is_full_range=full, is_range_tagged=True))
    depth = picture.pixel.depth
    rgb_or_full = full or picture.pixel.kind == "rgb"
    black, white = (0, (1 << depth) - 1) if rgb_or_full else (16 << depth - 8, 235 << depth - 8)
    for code, expected in ((black, 0), (white, 255)):
        planes = tuple(np.full(shape, code, picture.pixel.dtype) for shape in picture.plane_shapes())
        assert np.allclose(
            luma_thumbnail(Frame(index=0, planes=planes), picture, (4, 4)), expected, atol=0.01
        )


@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param(scene(), id="pan"),
        pytest.param(scene(pan=0), id="small-mover"),
        pytest.param(scene(pan=0, noise=4), id="static-noise"),
        pytest.param(scene(noise=10), id="pan-noise"),
        pytest.param(np.repeat(scene(1), 30, 0), id="static"),
        pytest.param(scene() * np.linspace(1, 0, 30, dtype=np.float32)[:, None, None], id="fade-to-black"),
        pytest.param(scene(cut=13), id="cut"),
        pytest.param(np.zeros((30, HEIGHT, WIDTH), np.float32), id="black"),
    ],
)
def test_right_frames_are_accepted_after_coding_and_texture(inputs: Pictures) -> None:
    for outputs in (inputs, coded(inputs, 23), coded(inputs, 35), textured(inputs)):
        found = compare(inputs, outputs)
        assert found.wrong == ()
        assert found.frames == 30


@pytest.mark.parametrize("outputs", [coded(scene(), 20), coded(scene(), 30), textured(scene())])
def test_repeated_swapped_and_lone_alien_frames_are_named(outputs: Pictures) -> None:
    inputs = scene()
    assert compare(inputs, shuffled(outputs, {9: 8})).wrong == ((9, 8),)
    assert compare(inputs, shuffled(outputs, {9: 10})).wrong == ((9, 10),)
    assert compare(inputs, shuffled(outputs, {14: 15, 15: 14})).wrong == ((14, 15), (15, 14))
    assert compare(inputs, shuffled(outputs, {20: 14})).wrong == ((20, 14),)


def test_a_missing_frame_shifts_all_that_follow() -> None:
    inputs, outputs = scene(), coded(scene(), 23)
    found = compare(inputs, shuffled(outputs, {i: min(i + 1, 29) for i in range(12, 30)}))
    assert {(i, i + 1) for i in range(14, 27)} <= set(found.wrong)
    assert all(index >= 12 for index, _ in found.wrong)


def test_a_shift_of_the_whole_chunk_is_found_with_context() -> None:
    inputs, outputs = scene(40), textured(scene(40))
    found = compare(inputs, outputs[9:31], first=108, context=8)  # output 108 shows input 109
    assert found.wrong == tuple((i, i + 1) for i in range(108, 130))


def test_a_repeat_of_a_small_mover_in_a_still_picture_is_found() -> None:
    inputs, outputs = scene(pan=0), coded(scene(pan=0), 23)
    assert compare(inputs, shuffled(outputs, {9: 8})).wrong == ((9, 8),)


@pytest.mark.parametrize("fill", [0, 128, 255])
def test_a_flat_frame_is_found(fill: int) -> None:
    inputs, outputs = scene(), coded(scene(), 30)
    outputs[7] = fill
    assert compare(inputs, outputs).wrong == ((7, None),)


def test_garbage_and_a_spoilt_tile_are_found() -> None:
    inputs, outputs = scene(), coded(scene(), 30)
    outputs[7] = np.random.default_rng(3).uniform(0, 255, outputs[7].shape)
    outputs[11, 32:64, 48:96] = 0
    assert compare(inputs, outputs).wrong == ((7, None), (11, None))


def test_a_frame_below_the_cards_floor_is_wrong() -> None:
    inputs = scene()
    outputs = inputs.copy()
    outputs[4] += 30  # the same picture, brighter: 18.6 dB
    assert compare(inputs, outputs).wrong == ()
    found = compare(inputs, outputs, psnr_floor=24)
    assert found.wrong == ((4, None),)
    assert (round(found.worst_psnr, 1), found.worst_frame) == (18.6, 4)


def test_frames_that_nobody_can_tell_apart_are_undecided_and_counted() -> None:
    still = np.repeat(scene(1), 12, 0)
    inputs = np.concatenate([still, scene(12)])
    assert compare(inputs, inputs).undecided == 13  # the first moving frame equals the still ones
    assert compare(scene(), scene()).undecided == 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_chunks_of_few_frames_are_judged(count: int) -> None:
    inputs, outputs = scene(30), coded(scene(30), 23)
    assert compare(inputs[: count + 8], outputs[:count]).wrong == ()
    found = compare(inputs[: count + 8], outputs[5 : 5 + count])
    assert found.wrong == tuple((i, i + 5) for i in range(count))


def test_one_frame_and_one_pixel_are_judged() -> None:
    assert compare(scene(1), scene(1)).wrong == ()
    assert compare(np.zeros((3, 1, 1), np.float32), np.zeros((3, 1, 1), np.float32)).wrong == ()


def test_fewer_inputs_than_outputs_are_refused() -> None:
    with pytest.raises(IndexError, match="output 3 has no input"):
        compare(scene(3), scene(4))


def test_a_matcher_keeps_no_more_than_the_reach_on_both_sides() -> None:
    pictures = scene(60)
    matcher = Matcher(first_input=0, first_output=0)
    for picture in pictures:
        matcher.add_input(picture)
        matcher.add_output(picture)
        assert len(matcher._inputs) <= 18
        assert len(matcher._waiting) <= 9
    assert matcher.finish().frames == 60
