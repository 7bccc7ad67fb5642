"""What a picture is: sample layout, colour tags, geometry; and one frame of it.

Frames travel as the clip's own planes. Nothing here converts anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Siting = Literal["unspecified", "left", "center", "topleft", "top", "bottomleft", "bottom"]
"""Where a chroma sample lies among the luma samples that it belongs to."""

Plane = NDArray[Any]
"""A 2-D array of samples: uint8 (depth 8), uint16 (9 to 16, native endian) or float32 (32). May be a view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelFormat:
    """A planar FFmpeg pixel format. Packed ones (rgb24, nv12, pal8) are unpacked losslessly by the reader."""

    name: str
    kind: Literal["yuv", "rgb", "grey"]
    depth: int
    log2_chroma_w: int = 0
    log2_chroma_h: int = 0
    has_alpha: bool = False

    @property
    def plane_count(self) -> int:
        return (1 if self.kind == "grey" else 3) + self.has_alpha

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8 if self.depth == 8 else np.uint16 if self.depth <= 16 else np.float32)

    def plane_size(self, plane: int, width: int, height: int) -> tuple[int, int]:
        """(width, height) of one plane of a picture; FFmpeg rounds subsampled planes up."""
        if self.kind == "yuv" and plane in (1, 2):
            return -(-width >> self.log2_chroma_w), -(-height >> self.log2_chroma_h)
        return width, height


# H.273 code points, the numbers that FFmpeg, H.26x, AV1 and MP4's colr share. 2 is "unspecified".
MATRIX_NAMES = {
    0: "gbr",
    1: "bt709",
    2: "unspecified",
    4: "fcc",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "ycgco",
    9: "bt2020nc",
    10: "bt2020c",
    11: "smpte2085",
    12: "chroma-derived-nc",
    13: "chroma-derived-c",
    14: "ictcp",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Colour:
    """Colour tags exactly as the source carries them; 2 means that it does not say."""

    matrix: int = 2
    primaries: int = 2
    transfer: int = 2
    is_full_range: bool = False
    is_range_tagged: bool = False
    siting: Siting = "unspecified"

    def decoding_matrix(self, height: int) -> int:
        """The matrix to compute with: the tag, or what players assume from the height where it is missing."""
        if self.matrix != 2:
            return self.matrix
        if self.primaries in (1, 9):
            return {1: 1, 9: 9}[self.primaries]
        return 1 if height >= 720 else 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Mastering:
    """Static HDR10: mastering display (x265's units: 1/50000 for xy, 1/10000 cd/m² for luminance)."""

    red: tuple[int, int]
    green: tuple[int, int]
    blue: tuple[int, int]
    white: tuple[int, int]
    max_luminance: int
    min_luminance: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What every frame of a clip has in common."""

    width: int
    height: int
    pixel: PixelFormat
    colour: Colour
    sample_aspect: Fraction = Fraction(1)
    display_matrix: tuple[int, ...] | None = None
    mastering: Mastering | None = None
    light_level: tuple[int, int] | None = None
    """(MaxCLL, MaxFALL) in cd/m²."""

    @property
    def is_turned(self) -> bool:
        """Whether players turn the picture by a quarter, so that its width is shown as its height."""
        return self.display_matrix is not None and self.display_matrix[0] == self.display_matrix[4] == 0

    @property
    def shown_size(self) -> tuple[Fraction, Fraction]:
        """Width and height in square pixels, turned as players turn it."""
        width, height = self.width * self.sample_aspect, Fraction(self.height)
        return (height, width) if self.is_turned else (width, height)

    def plane_shapes(self) -> tuple[tuple[int, int], ...]:
        """numpy shapes (height, width) of every plane."""
        sizes = (self.pixel.plane_size(i, self.width, self.height) for i in range(self.pixel.plane_count))
        return tuple((height, width) for width, height in sizes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One frame: its number in the timeline and its planes in FFmpeg's order (Y U V or G B R, then alpha)."""

    index: int
    planes: tuple[Plane, ...]
