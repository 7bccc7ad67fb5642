"""Torch modules that a Python program passes as a model: their cards, found out by trying the module.

A module takes RGB pictures from 0 to 1, (pictures, 3, rows, columns), and returns them larger by a whole
factor. It is tried on small pictures, which tells its scale, the multiple that its input needs, and how far
its output pixels see. Tiles of a module that sees 64 pixels or less agree with the whole picture exactly.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vsr_hpc.errors import ModelError
from vsr_hpc.models.cards import MODULE_PREFIX, Card, Precision, card_name, keep_card_of_module

_MULTIPLES = (1, 2, 4, 8, 16, 32)
_ROWS, _COLUMNS = 64, 96
"""The size of the first trial: multiples of 32, and different, so that swapped sides show."""
_FARTHEST = 64
"""The largest reach in pixels that is measured; beyond it, tiles overlap by this and fade into each other."""

_modules: dict[str, nn.Module] = {}


class _Caller(nn.Module):
    """A user's module as the engine calls it: contiguous, in the type of its own weights, fp32 in and out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        weight = next((each for each in self.network.parameters() if each.is_floating_point()), None)
        dtype = x.dtype if weight is None else weight.dtype
        out: Tensor = self.network(x.contiguous().to(dtype))
        return out.to(x.dtype)


def describe_module(module: nn.Module, *, precision: Precision = "fp32") -> Card:
    """Make the card of a module, which is copied: the caller's own is not changed. ModelError if unusable."""
    name = type(module).__name__
    network = _copy(module, name)
    digest = _digest(network)
    key = f"{MODULE_PREFIX}{card_name(name)}-{digest[:12]}-{precision}"
    with torch.inference_mode():
        scale = _scale_of(_call(network, _noise(_ROWS, _COLUMNS), name), name)
        multiple = _multiple_of(network, scale, name)
        radius = _radius_of(network, scale, multiple)
    parameters: dict[str, int | str] = {
        "class": f"{type(module).__module__}.{type(module).__qualname__}",
        "sha256": digest,
        "weights": sum(each.numel() for each in network.parameters()),
    }
    if radius is not None:
        parameters["radius"] = radius
    overlap = -(-(_FARTHEST if radius is None else radius) // multiple) * multiple
    card = Card(
        name=key,
        kind="image",
        network="module",
        scale=scale,
        parameters=parameters,
        licence="unknown (a module of the calling program)",
        overlap=overlap,
        multiple_of=multiple,
        precisions=(precision,),
        psnr_floor=10,
        description=f"torch module {parameters['class']}",
        limits="" if radius is not None else f"It sees farther than {_FARTHEST} pixels; tiles may differ.",
    )
    _modules[key] = network
    keep_card_of_module(card)
    return card


def open_module(card: Card) -> nn.Module:
    """A copy of the module, ready for the engine, which moves it and changes its type."""
    if card.name not in _modules:
        raise ModelError(
            f"model {card.name} is a torch module of another Python program; call vsr_hpc.upscale() with "
            "the same module there to continue"
        )
    return _Caller(_copy(_modules[card.name], card.name)).eval()


def _copy(module: nn.Module, name: str) -> nn.Module:
    try:
        return copy.deepcopy(module).cpu().float().eval()
    except Exception as exc:  # a foreign class decides what it raises
        raise ModelError(f"module {name}: copy.deepcopy() of it fails: {exc}") from exc


def _call(network: nn.Module, pictures: Tensor, name: str) -> Tensor:
    try:
        made = network(pictures)
    except Exception as exc:  # a foreign network decides what it raises
        raise ModelError(
            f"module {name}: fails on RGB pictures of shape {tuple(pictures.shape)}: "
            f"{type(exc).__name__}: {exc}"
        ) from exc
    if not isinstance(made, Tensor):
        raise ModelError(f"module {name}: returns {type(made).__name__}, not a tensor of pictures")
    return made


def _scale_of(made: Tensor, name: str) -> int:
    sides = tuple(made.shape[-2:])
    if made.ndim != 4 or tuple(made.shape[:2]) != (1, 3):
        raise ModelError(
            f"module {name}: makes {tuple(made.shape)} of (1, 3, {_ROWS}, {_COLUMNS}); RGB pictures of shape "
            "(1, 3, rows, columns) are wanted"
        )
    scale, rest = divmod(sides[0], _ROWS)
    if rest or not 1 <= scale <= 16 or sides != (_ROWS * scale, _COLUMNS * scale):
        raise ModelError(
            f"module {name}: makes {sides[1]}x{sides[0]} of {_COLUMNS}x{_ROWS}, which is "
            f"{sides[1] / _COLUMNS:g} times the width and {sides[0] / _ROWS:g} times the height; one whole "
            "factor from 1 to 16 for both sides is wanted"
        )
    return scale


def _multiple_of(network: nn.Module, scale: int, name: str) -> int:
    """The smallest multiple of which sides must be, among powers of two."""
    for multiple in _MULTIPLES:
        rows, columns = _ROWS + multiple, _COLUMNS + multiple
        try:
            made = _call(network, _noise(rows, columns), name)
        except ModelError:
            continue
        if made.shape[-2:] == (rows * scale, columns * scale):
            return multiple
    raise ModelError(
        f"module {name}: takes {_COLUMNS}x{_ROWS} but no other size that is a multiple of {_MULTIPLES[-1]}"
    )


def _radius_of(network: nn.Module, scale: int, multiple: int) -> int | None:
    """Input pixels in each direction on which an output pixel depends; None where they are too many.

    Not-a-number in one block of the input reaches every output pixel that depends on the block.
    """
    reach = -(-_FARTHEST // multiple) * multiple + multiple
    side = 2 * reach + multiple
    pictures = torch.full((1, 3, side, side), 0.5)
    pictures[..., reach : reach + multiple, reach : reach + multiple] = float("nan")
    touched = network(pictures)[0].isnan().any(dim=0)
    spans = []
    for axis in (0, 1):
        found = touched.any(dim=1 - axis).nonzero()
        if len(found) == 0:
            return None  # the module removes what is not a number: nothing is known of its reach
        low, high = int(found.min()) // scale, int(found.max()) // scale
        spans += [reach - low, high - (reach + multiple - 1)]
    radius = max(0, *spans)
    is_near = radius <= _FARTHEST and _do_tiles_agree(network, scale, multiple, radius)
    return radius if is_near else None


def _do_tiles_agree(network: nn.Module, scale: int, multiple: int, radius: int) -> bool:
    """Whether the middle of a crop equals the same part of the whole picture."""
    overlap = -(-radius // multiple) * multiple
    half = -(-2 * _FARTHEST // multiple) * multiple  # far more than the crop sees
    pictures = _noise(2 * half, 2 * half)
    whole = network(pictures)
    cut = slice(half - overlap - multiple, half + overlap + multiple)
    crop = network(pictures[..., cut, cut])
    inner = slice(overlap * scale, (overlap + 2 * multiple) * scale)
    outer = slice((half - multiple) * scale, (half + multiple) * scale)
    return torch.allclose(crop[..., inner, inner], whole[..., outer, outer], atol=1e-4)


def _noise(rows: int, columns: int) -> Tensor:
    """One picture of noise; the program's own random numbers are left alone."""
    return torch.rand(1, 3, rows, columns, generator=torch.Generator().manual_seed(1))


def _digest(network: nn.Module) -> str:
    """What a module is: its classes' source as far as Python knows it, and all numbers that it holds."""
    digest = hashlib.sha256()
    for text in sorted(_sources(network)):
        digest.update(text.encode())
    for key, value in network.state_dict().items():
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    digest.update(repr(network).encode())
    return digest.hexdigest()


def _sources(network: nn.Module) -> Iterator[str]:
    for kind in {type(each) for each in network.modules()}:
        if kind.__module__.startswith("torch."):
            continue
        yield kind.__qualname__
        try:
            yield inspect.getsource(kind)
        except (OSError, TypeError):
            continue
