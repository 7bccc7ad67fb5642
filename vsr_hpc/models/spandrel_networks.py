"""Networks that are not ours: spandrel recognises them by their keys and builds them. An optional extra.

spandrel imports torchvision for two networks that upscale nothing. Where it is absent, or built for another
torch, three empty modules stand in for the time of the import.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vsr_hpc.errors import ModelError
from vsr_hpc.models.cards import IMPORT_HINT, Precision

_OVERLAP = 32
"""Input pixels beyond a tile's core: twice the window of the usual transformers. Tiles are feathered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignFacts:
    """What a card needs to know of a network that spandrel built."""

    architecture: str
    scale: int
    overlap: int
    multiple_of: int
    precisions: tuple[Precision, ...]
    weights: int
    """How many numbers it has."""
    limits: str


class ForeignNetwork(nn.Module):
    """A network for inference in its own type; fp32 in and out, one picture after the other."""

    def __init__(self, descriptor: Any) -> None:
        super().__init__()
        self.descriptor = descriptor
        self.network: nn.Module = descriptor.model

    def forward(self, x: Tensor) -> Tensor:
        dtype = next(self.network.parameters()).dtype
        made = [self.descriptor(each[None].contiguous().to(dtype)) for each in x]
        return torch.cat(made).to(x.dtype)


def build_foreign(tree: object, where: str) -> ForeignNetwork:
    """The network of a state dict, loaded; ModelError where spandrel does not know it or it does not fit."""
    return ForeignNetwork(_descriptor(tree, where)).eval()


def describe_foreign(tree: object, where: str) -> ForeignFacts:
    """What spandrel says of a state dict, with the overlap and types that we allow it."""
    found = _descriptor(tree, where)
    if (found.input_channels, found.output_channels) != (3, 3) or found.purpose not in ("SR", "Restoration"):
        raise ModelError(
            f"{where}: a {found.architecture.name} network for {found.purpose} with {found.input_channels} "
            f"input and {found.output_channels} output channels; only RGB to RGB upscalers can be used"
        )
    if found.size_requirements.square or not 1 <= found.scale <= 16:
        raise ModelError(f"{where}: {found.architecture.name} takes square pictures only, or scales oddly")
    step = found.size_requirements.multiple_of
    tiling = {
        "SUPPORTED": "",
        "DISCOURAGED": " It looks at the whole picture: tiles may show, --tile none avoids them.",
        "INTERNAL": " It cuts tiles of its own: take --tile none.",
    }[found.tiling.name]
    return ForeignFacts(
        architecture=found.architecture.name,
        scale=found.scale,
        overlap=-(-max(_OVERLAP, step) // step) * step,
        multiple_of=step,
        # Not bf16, though many allow it: the picture itself would lose all but eight bits.
        precisions=("fp16", "fp32") if found.supports_half else ("fp32",),
        weights=sum(each.numel() for each in found.model.parameters()),
        limits=f"The overlap of {_OVERLAP} px is a rule, not measured with these weights.{tiling}",
    )


def _descriptor(tree: object, where: str) -> Any:
    spandrel = _spandrel()
    if not isinstance(tree, dict):
        raise ModelError(f"{where}: holds no state dict")
    try:
        from spandrel.__helpers.canonicalize import canonicalize_state_dict

        found = spandrel.ModelLoader(device="cpu").load_from_state_dict(canonicalize_state_dict(tree))
    except spandrel.UnsupportedModelError as exc:
        raise ModelError(f"{where}: spandrel does not know this network either") from exc
    except Exception as exc:  # keys and shapes of a stranger's file may break any of fifty constructors
        raise ModelError(
            f"{where}: spandrel cannot build its network ({type(exc).__name__}: {str(exc)[:200]})"
        ) from exc
    if not isinstance(found, spandrel.ImageModelDescriptor):
        raise ModelError(f"{where}: a {found.architecture.name} network, which upscales no pictures")
    return found


def _spandrel() -> Any:
    """spandrel, imported without torchvision where that is absent or broken."""
    if "spandrel" in sys.modules:
        return sys.modules["spandrel"]
    with contextlib.nullcontext() if _has_torchvision() else _stand_ins():
        try:
            return importlib.import_module("spandrel")
        except ImportError as exc:
            raise ModelError(f"spandrel is not installed; {IMPORT_HINT}") from exc


def _has_torchvision() -> bool:
    try:
        importlib.import_module("torchvision.transforms.functional")
    except Exception:  # one built for another torch raises RuntimeError
        return False
    return True


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    before = {name: sys.modules.get(name) for name in names}
    modules = {name: types.ModuleType(name) for name in names}
    for used in ("InterpolationMode", "rotate", "normalize"):
        setattr(modules[names[-1]], used, _missing)
    modules[names[0]].transforms = modules[names[1]]  # type: ignore[attr-defined]
    modules[names[1]].functional = modules[names[2]]  # type: ignore[attr-defined]
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


def _missing(*args: object, **kwargs: object) -> Any:
    raise ModelError("this network needs torchvision, which is not installed")
