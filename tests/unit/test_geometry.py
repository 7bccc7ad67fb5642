"""Output size, sample aspect and tags."""

from __future__ import annotations

from fractions import Fraction

import pytest

from vsr_hpc.engine.geometry import MAX_SIDE, output_geometry, output_picture
from vsr_hpc.errors import JobError
from vsr_hpc.media.picture import Colour, Picture, PixelFormat

YUV420 = PixelFormat(name="yuv420p", kind="yuv", depth=8, log2_chroma_w=1, log2_chroma_h=1)
YUV444 = PixelFormat(name="yuv444p", kind="yuv", depth=8)
YUVA420 = PixelFormat(name="yuva420p", kind="yuv", depth=8, log2_chroma_w=1, log2_chroma_h=1, has_alpha=True)
RGB = PixelFormat(name="gbrp", kind="rgb", depth=8)


def picture(width: int, height: int, pixel: PixelFormat = YUV420, **more: object) -> Picture:
    more.setdefault("colour", Colour(matrix=1))
    return Picture(width=width, height=height, pixel=pixel, **more)  # type: ignore[arg-type]


def test_scale_multiplies_both_sides_and_says_nothing() -> None:
    made = output_geometry(picture(640, 360), YUV420, scale=2)
    assert (made.picture.width, made.picture.height, made.notes) == (1280, 720, ())


def test_rounding_to_the_grid_is_said_and_keeps_the_sample_aspect() -> None:
    made = output_geometry(picture(427, 240), YUV420, scale=1.5)
    assert (made.picture.width, made.picture.height) == (640, 360)
    assert made.picture.sample_aspect == 1
    assert "640.50x360 is rounded to 640x360" in made.notes[0]


def test_size_that_stretches_adjusts_the_sample_aspect_to_keep_the_display_aspect() -> None:
    made = output_geometry(picture(640, 480), YUV420, size=(1920, 1080))
    aspect = Fraction(1920, 1080) * made.picture.sample_aspect
    assert aspect == Fraction(4, 3)
    assert any("sample aspect becomes 3/4" in note for note in made.notes)


def test_a_non_square_source_keeps_its_display_aspect() -> None:
    made = output_geometry(picture(720, 576, sample_aspect=Fraction(16, 15)), YUV420, size=(768, 576)).picture
    assert made.width * made.sample_aspect / made.height == Fraction(720, 576) * Fraction(16, 15)
    assert made.sample_aspect == 1


def test_one_side_alone_lets_the_other_follow() -> None:
    assert output_geometry(picture(640, 360), YUV420, size=(1920, None)).picture.height == 1080
    assert output_geometry(picture(640, 360), YUV420, size=(None, 1080)).picture.width == 1920


TURNED = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)


@pytest.mark.parametrize(
    ("clip", "box", "stored"),
    [
        (picture(640, 360), (1920, 1080), (1920, 1080)),
        (picture(640, 272), (1920, 1080), (1920, 816)),  # a wide film
        (picture(640, 480), (1920, 1080), (1440, 1080)),
        (picture(360, 640), (1080, 1920), (1080, 1920)),
        (picture(640, 360, display_matrix=TURNED), (1080, 1920), (1920, 1080)),  # from a phone held upright
        (picture(640, 360, display_matrix=TURNED), (1920, 1080), (1080, 608)),
        (picture(640, 360, display_matrix=TURNED), (1080, None), (1920, 1080)),
        (picture(720, 576, sample_aspect=Fraction(64, 45)), (1920, 1080), (1920, 1080)),  # a DVD
        (picture(720, 576, sample_aspect=Fraction(64, 45)), (None, 1080), (1920, 1080)),
        (picture(720, 480, sample_aspect=Fraction(8, 9)), (1920, 1080), (1440, 1080)),
    ],
)
def test_a_size_on_the_screen_is_fitted_with_square_pixels(
    clip: Picture, box: tuple[int | None, int | None], stored: tuple[int, int]
) -> None:
    made = output_geometry(clip, YUV420, size=box, fits=True).picture
    assert (made.width, made.height) == stored
    assert made.sample_aspect == 1
    assert made.display_matrix == clip.display_matrix


def test_a_picture_that_does_not_fill_its_box_says_how_it_would() -> None:
    notes = output_geometry(picture(640, 480), YUV420, size=(1920, 1080), fits=True).notes
    assert notes == (
        "the picture keeps its shape: 1440x1080 fits inside 1920x1080, "
        "--stretch fills it by pixels that are not square",
    )
    assert output_geometry(picture(640, 360), YUV420, size=(1920, 1080), fits=True).notes == ()
    assert output_geometry(picture(640, 360), YUV420, size=(1919, 1081), fits=True).notes == ()


def test_a_fitted_size_stays_inside_its_box_for_every_shape() -> None:
    for width in range(2, 400, 7):
        for clip in (picture(width, 100), picture(width, 100, display_matrix=TURNED)):
            made = output_geometry(clip, YUV420, size=(320, 240), fits=True).picture
            shown = made.shown_size
            assert shown[0] <= 320 and shown[1] <= 240
            assert max(shown[0] / 320, shown[1] / 240) > Fraction(99, 100)


def test_odd_420_at_scale_1_is_refused_with_the_way_out() -> None:
    with pytest.raises(JobError, match="yuv444p, or size 428x240"):
        output_geometry(picture(427, 240), YUV420, scale=1)
    assert output_geometry(picture(427, 240, YUV444), YUV444, scale=1).picture.width == 427


def test_every_finding_is_reported_at_once() -> None:
    with pytest.raises(JobError) as caught:
        output_geometry(picture(16000, 16000), YUV420, scale=4)
    assert str(caught.value).count(str(MAX_SIDE)) == 2


@pytest.mark.parametrize("bad", [{"scale": 0}, {"scale": -1}, {"size": (None, None)}, {"size": (0, 10)}])
def test_impossible_requests_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(JobError):
        output_geometry(picture(64, 48), YUV420, **bad)  # type: ignore[arg-type]


def test_alpha_is_never_dropped_in_silence() -> None:
    with pytest.raises(JobError, match="alpha"):
        output_picture(picture(64, 48, YUVA420), 128, 96, YUV420)


def test_tags_are_the_sources() -> None:
    colour = Colour(matrix=9, primaries=9, transfer=16, is_range_tagged=True, siting="topleft")
    assert output_picture(picture(64, 48, colour=colour), 128, 96, YUV420).colour == colour


def test_an_untagged_matrix_is_named_only_where_players_would_guess_another() -> None:
    source = picture(640, 360, colour=Colour())
    assert output_picture(source, 960, 540, YUV420).colour == Colour()
    made = output_geometry(source, YUV420, scale=2)
    assert made.picture.colour.matrix == 6
    assert "smpte170m" in made.notes[0]


def test_rgb_output_of_a_yuv_source_is_tagged_as_rgb() -> None:
    made = output_picture(picture(64, 48), 128, 96, RGB).colour
    assert (made.matrix, made.is_full_range) == (0, True)
