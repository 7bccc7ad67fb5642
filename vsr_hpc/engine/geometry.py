"""Output size, sample aspect and colour tags: pure, decided before any work. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from vsr_hpc.errors import JobError, MediaError
from vsr_hpc.media.picture import MATRIX_NAMES, Colour, Picture, PixelFormat

MAX_SIDE = 16384
MAX_ASPECT_TERM = 65535
"""H.264, H.265 and AV1 store a sample aspect as two 16-bit numbers."""

LUMA_WEIGHTS = {  # (red, blue) of H.273 table 4
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The output picture, and what the user should be told about how it came to be."""

    picture: Picture
    notes: tuple[str, ...]


def output_geometry(
    picture: Picture,
    pixel: PixelFormat,
    *,
    scale: Fraction | float | int | None = None,
    size: tuple[int | None, int | None] | None = None,
    fits: bool = False,
    default_scale: int = 1,
    drops_alpha: bool = False,
) -> Geometry:
    """The output picture for a factor or a size (one side may be None: it follows), on the format's grid.

    With `fits`, the size is a box on the screen: the picture is shown inside it, in square pixels. Without
    it, the size is that of the stored picture, and the sample aspect keeps the display aspect. `drops_alpha`
    allows a pixel format without the source's alpha channel. Raises JobError with all findings.
    """
    _refuse_contradictions(picture, scale, size)
    width, height = _requested_size(picture, scale if scale is not None else default_scale, size, fits)
    step_w, step_h = _grid(pixel)
    rounded = (_to_grid(width, step_w), _to_grid(height, step_h))
    was_rounded = Fraction(rounded[0]) != width or Fraction(rounded[1]) != height
    is_same_size = width == picture.width and height == picture.height
    findings = _size_findings(picture, pixel, rounded, is_same_size and was_rounded)
    if findings:
        raise JobError.from_findings("output size", findings)
    notes: list[str] = []
    if size is not None and fits:
        return _fitted_geometry(
            picture, output_picture(picture, *rounded, pixel, drops_alpha=drops_alpha), size
        )
    if was_rounded:
        notes.append(
            f"output size {_decimal(width)}x{_decimal(height)} is rounded to {rounded[0]}x{rounded[1]}, "
            f"since {pixel.name} needs multiples of {step_w}x{step_h}"
        )
    out = output_picture(picture, *rounded, pixel, drops_alpha=drops_alpha)
    if out.sample_aspect != picture.sample_aspect:
        notes.append(
            f"sample aspect becomes {out.sample_aspect} (was {picture.sample_aspect}) "
            "to keep the display aspect"
        )
    return Geometry(picture=out, notes=(*notes, *_matrix_notes(picture, out)))


def _fitted_geometry(picture: Picture, out: Picture, box: tuple[int | None, int | None]) -> Geometry:
    notes = []
    if None not in box and not _fills(out, box):
        width, height = map(round, replace(out, sample_aspect=Fraction(1)).shown_size)
        notes.append(
            f"the picture keeps its shape: {width}x{height} fits inside {box[0]}x{box[1]}, "
            "--stretch fills it by pixels that are not square"
        )
    if picture.sample_aspect != 1:
        notes.append(f"pixels become square (their aspect was {picture.sample_aspect})")
    out = replace(out, sample_aspect=Fraction(1))
    return Geometry(picture=out, notes=(*notes, *_matrix_notes(picture, out)))


def _fills(out: Picture, box: tuple[int | None, int | None]) -> bool:
    """Whether both sides reach the box, but for what the grid takes away."""
    step = max(_grid(out.pixel))
    shown = replace(out, sample_aspect=Fraction(1)).shown_size
    return all(side is None or abs(side - have) < step for side, have in zip(box, shown, strict=True))


def _matrix_notes(picture: Picture, out: Picture) -> list[str]:
    if out.colour.matrix == picture.colour.matrix or out.pixel.kind != picture.pixel.kind:
        return []
    return [
        f"the source names no colour matrix; players take {MATRIX_NAMES[out.colour.matrix]} for its "
        "height and would take another for the output's, so the output says it"
    ]


def output_picture(
    picture: Picture, width: int, height: int, pixel: PixelFormat, *, drops_alpha: bool = False
) -> Picture:
    """What the output's frames have in common; the display aspect is the source's."""
    if picture.pixel.has_alpha and not pixel.has_alpha and not drops_alpha:
        raise JobError(
            f"pixel format {pixel.name} cannot carry the source's alpha ({picture.pixel.name}); "
            "choose one that can (yuva420p, gbrap) and a codec for it, or remove the alpha with --drop alpha"
        )
    return replace(
        picture,
        width=width,
        height=height,
        pixel=pixel,
        colour=output_colour(picture, height, pixel),
        sample_aspect=_output_aspect(picture, width, height, pixel),
    )


def output_colour(picture: Picture, height: int, pixel: PixelFormat) -> Colour:
    """The source's tags, kept; only what would change a picture's look is said where the source was silent.

    Players guess a missing matrix from the height. Where that guess differs between the source's height
    and the output's, the output names the source's.
    """
    colour, kind = picture.colour, picture.pixel.kind
    if kind != pixel.kind and "rgb" in (kind, pixel.kind):
        return _converted_colour(colour, height, pixel)
    if pixel.kind == "yuv" and colour.decoding_matrix(height) != colour.decoding_matrix(picture.height):
        return replace(colour, matrix=colour.decoding_matrix(picture.height))
    return colour


def is_full_range(picture: Picture) -> bool:
    """Whether codes span the whole depth. RGB and float do unless tagged otherwise."""
    if picture.pixel.depth == 32:
        return True
    if picture.pixel.kind == "rgb":
        return picture.colour.is_full_range or not picture.colour.is_range_tagged
    return picture.colour.is_full_range


def is_planewise(source: Picture, target: Picture) -> bool:
    """Whether a filter can scale each plane by itself, without RGB. A plane of alpha may be left out."""
    same_kind = source.pixel.kind == target.pixel.kind and source.pixel.has_alpha >= target.pixel.has_alpha
    floats = (source.pixel.depth == 32) == (target.pixel.depth == 32)
    return (
        same_kind
        and floats
        and source.colour.decoding_matrix(source.height) == target.colour.decoding_matrix(target.height)
        and is_full_range(source) == is_full_range(target)
    )


def check_rgb_path(picture: Picture) -> None:
    """MediaError where a clip's coding cannot be taken to RGB; the message names it and the way out."""
    if picture.pixel.kind != "yuv":
        return
    matrix = picture.colour.decoding_matrix(picture.height)
    if matrix in LUMA_WEIGHTS or matrix == 8:
        return
    if matrix == 0 and not picture.pixel.log2_chroma_w and not picture.pixel.log2_chroma_h:
        return
    name = {10: "BT.2020 constant luminance", 14: "ICtCp"}.get(matrix, MATRIX_NAMES.get(matrix, "unknown"))
    raise MediaError(
        f"the clip's colour matrix is {name} ({matrix}), which is not converted to RGB for a network; "
        "use --model bicubic or lanczos, which need no RGB, or convert the clip to bt2020nc or bt709 first"
    )


def _converted_colour(colour: Colour, height: int, pixel: PixelFormat) -> Colour:
    if pixel.kind == "rgb":
        return replace(colour, matrix=0, is_full_range=True, is_range_tagged=True, siting="unspecified")
    matrix = replace(colour, matrix=2).decoding_matrix(height)
    return replace(colour, matrix=matrix, is_full_range=False, is_range_tagged=True)


def _refuse_contradictions(
    picture: Picture, scale: Fraction | float | int | None, size: tuple[int | None, int | None] | None
) -> None:
    findings = []
    if scale is not None and size is not None:
        findings.append("scale and size are both given; give one")
    if scale is not None and not 0 < scale <= MAX_SIDE:
        findings.append(f"scale={scale} is not a positive factor; try 2")
    if size is not None and (size == (None, None) or any(side is not None and side < 1 for side in size)):
        findings.append(f"size={size[0]}x{size[1]} has no positive side; try 1920x1080 or 1920x")
    if findings:
        raise JobError.from_findings("output size", findings)


def fitted_size(picture: Picture, box: tuple[int | None, int | None]) -> tuple[Fraction, Fraction]:
    """Width and height, as stored in square pixels, of the largest picture that is shown inside a box."""
    shown = picture.shown_size
    factor = min(side / have for side, have in zip(box, shown, strict=True) if side is not None)
    width, height = (side * factor for side in shown)
    return (height, width) if picture.is_turned else (width, height)


def _requested_size(
    picture: Picture,
    scale: Fraction | float | int,
    size: tuple[int | None, int | None] | None,
    fits: bool,
) -> tuple[Fraction, Fraction]:
    if size is None:
        factor = scale if isinstance(scale, Fraction) else Fraction(str(scale)).limit_denominator(10_000)
        return picture.width * factor, picture.height * factor
    if fits:
        return fitted_size(picture, size)
    width, height = size
    if width is None:
        assert height is not None
        return Fraction(picture.width * height, picture.height), Fraction(height)
    if height is None:
        return Fraction(width), Fraction(picture.height * width, picture.width)
    return Fraction(width), Fraction(height)


def _grid(pixel: PixelFormat) -> tuple[int, int]:
    if pixel.kind != "yuv":
        return 1, 1
    return 1 << pixel.log2_chroma_w, 1 << pixel.log2_chroma_h


def _to_grid(side: Fraction, step: int) -> int:
    """The nearest multiple, halves upwards."""
    return max(step, int((side / step + Fraction(1, 2)).__floor__()) * step)


def _size_findings(
    picture: Picture, pixel: PixelFormat, rounded: tuple[int, int], is_odd_at_scale_1: bool
) -> list[str]:
    findings = []
    for name, side in zip(("width", "height"), rounded, strict=True):
        if side > MAX_SIDE:
            findings.append(
                f"{name} would be {side}; at most {MAX_SIDE} is possible: choose a smaller scale or size"
            )
    if is_odd_at_scale_1:
        findings.append(
            f"{picture.width}x{picture.height} in {pixel.name} cannot stay as it is at scale 1, since the "
            f"format needs even sides; choose pixel format yuv444p, or size {rounded[0]}x{rounded[1]}"
        )
    return findings


def _output_aspect(picture: Picture, width: int, height: int, pixel: PixelFormat) -> Fraction:
    step_w, step_h = _grid(pixel)
    follows_w = abs(Fraction(picture.width * height, picture.height) - width) < max(step_w, 1)
    follows_h = abs(Fraction(picture.height * width, picture.width) - height) < max(step_h, 1)
    if follows_w or follows_h:
        return picture.sample_aspect  # only rounding: not worth an odd aspect that players would resample for
    exact = picture.sample_aspect * Fraction(picture.width * height, picture.height * width)
    return _limit_aspect(exact)


def _limit_aspect(aspect: Fraction) -> Fraction:
    if aspect.numerator <= MAX_ASPECT_TERM and aspect.denominator <= MAX_ASPECT_TERM:
        return aspect
    if aspect <= 1:
        return aspect.limit_denominator(MAX_ASPECT_TERM)
    return 1 / (1 / aspect).limit_denominator(MAX_ASPECT_TERM)


def _decimal(side: Fraction) -> str:
    return str(side.numerator) if side.denominator == 1 else f"{float(side):.2f}"
