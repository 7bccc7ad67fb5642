"""Which model is meant by `auto`: one of those in the package, by what comes in and how large it shall be."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

AUTO = "auto"
Kind = Literal["clean", "video"]
_NAMES: dict[Kind, dict[int, str]] = {
    "clean": {2: "vsr-clean-x2", 4: "vsr-clean-x4"},
    "video": {2: "vsr-video-x2", 4: "vsr-video-x4"},
}
_CODED_STILLS = (".jpg", ".jpeg")


def default_model(kind: Kind, factor: Fraction | float = 2) -> str:
    """x2 for up to twice the size, x4 above it; what remains to the wished size is rescaled."""
    return _NAMES[kind][2 if factor <= 2 else 4]


def kind_of_still(suffix: str) -> Kind:
    """A JPEG has lost to coding what a clip has lost; other stills are taken as they look."""
    return "video" if suffix.lower() in _CODED_STILLS else "clean"


def shipped_models(scale: int | None = None) -> tuple[str, ...]:
    """The package's own networks, those of one factor where that is named."""
    return tuple(
        name
        for names in _NAMES.values()
        for factor, name in names.items()
        if scale is None or factor == scale
    )
