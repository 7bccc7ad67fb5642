"""The tile grid: crops that a network sees, and where their cores go. Pure; tensors are the engine's."""

from __future__ import annotations

from dataclasses import dataclass


def smallest_tile(multiple_of: int) -> int:
    return -(-16 // multiple_of) * multiple_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One axis of a tile in input pixels: what it owns, and what the network sees."""

    start: int
    stop: int
    crop_start: int
    crop_stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A crop of a frame and the core of it that the result takes."""

    x: Span
    y: Span


def spans(length: int, tile: int | None, overlap: int, multiple_of: int) -> tuple[Span, ...]:
    """Cut one axis into cores of nearly equal length, none above `tile`, each seen with `overlap` beyond it.

    A crop ends at the picture's border, never beyond: there the network pads as it does for a whole frame,
    which is what makes tiled and whole agree.
    """
    if length % multiple_of:
        raise ValueError(f"length={length} is not padded to a multiple of {multiple_of}")
    if tile is None or tile >= length:
        return (Span(start=0, stop=length, crop_start=0, crop_stop=length),)
    count = -(-length // tile)
    step = -(-length // (count * multiple_of)) * multiple_of
    starts = range(0, length, step)
    return tuple(
        Span(
            start=start,
            stop=min(length, start + step),
            crop_start=max(0, start - overlap),
            crop_stop=min(length, start + step + overlap),
        )
        for start in starts
    )


def grid(width: int, height: int, tile: int | None, overlap: int, multiple_of: int) -> tuple[Tile, ...]:
    """All tiles, row by row; the cores cover the picture once."""
    return tuple(
        Tile(x=x, y=y)
        for y in spans(height, tile, overlap, multiple_of)
        for x in spans(width, tile, overlap, multiple_of)
    )


def pad_length(length: int, multiple_of: int) -> int:
    """The length that a network with this step can take."""
    return -(-length // multiple_of) * multiple_of


def feather(span: Span, reach: int, length: int) -> tuple[int, int, list[float]]:
    """(start, stop, weights) of a blended core: grown by `reach` into its neighbours, fading out linearly.

    At the picture's border nothing fades. The sum of all weights at a pixel is divided out afterwards.
    """
    low = min(reach, span.start)
    high = min(reach, length - span.stop)
    start, stop = span.start - low, span.stop + high
    weights = [1.0] * (stop - start)
    for i in range(min(2 * low, len(weights))):
        weights[i] *= (i + 0.5) / (2 * low)
    for i in range(min(2 * high, len(weights))):
        weights[len(weights) - 1 - i] *= (i + 0.5) / (2 * high)
    return start, stop, weights
