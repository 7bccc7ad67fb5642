"""Compact (SRVGG), RRDB (ESRGAN) and SPAN of our own, and the one lean import of basicsr.

Compact and RRDB have BasicSR's keys. SwinIR, BasicVSR and IconVSR are basicsr's own.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vsr_hpc.errors import ModelError
from vsr_hpc.models.cards import Card
from vsr_hpc.models.network_costs import whole_numbers
from vsr_hpc.models.warping import deform_conv2d, flow_warp

_ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "prelu": nn.PReLU,
    "relu": lambda _: nn.ReLU(),
    "leakyrelu": lambda _: nn.LeakyReLU(0.1),
}


class Compact(nn.Module):
    """SRVGGNetCompact: convolutions at the input's size, one pixel shuffle, the nearest-scaled input added.

    The body runs in its weights' type; the input and the sum stay in the caller's (fp32), since eight
    significant bits would cost the picture itself.
    """

    def __init__(
        self, *, num_feat: int = 64, num_conv: int = 16, scale: int = 4, act_type: str = "prelu"
    ) -> None:
        super().__init__()
        self.scale = scale
        layers: list[nn.Module] = [_conv(3, num_feat), _ACTIVATIONS[act_type](num_feat)]
        for _ in range(num_conv):
            layers += [_conv(num_feat, num_feat), _ACTIVATIONS[act_type](num_feat)]
        layers.append(_conv(num_feat, 3 * scale * scale))
        self.body = nn.ModuleList(layers)

    def phases(self, x: Tensor) -> Tensor:
        """The residual before the pixel shuffle, in the weights' type: (frames, 3 scale², rows, columns)."""
        out = x.to(_dtype(self.body[0]))
        for layer in self.body:
            out = layer(out)
        return out

    def forward(self, x: Tensor) -> Tensor:
        residual = functional.pixel_shuffle(self.phases(x), self.scale).to(x.dtype)
        return residual + functional.interpolate(x, scale_factor=float(self.scale), mode="nearest")


class _Upright(nn.Module):
    """A network that views its tensors as rows of pixels: never channels-last, its own type inside."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x.contiguous().to(next(self.network.parameters()).dtype))
        return out.to(x.dtype)


def upright(network: nn.Module, card: Card) -> nn.Module:
    """The network as the engine calls it, whatever layout the engine prefers."""
    return _Upright(network).eval() if card.network == "swinir" else network


class _DenseBlock(nn.Module):
    def __init__(self, num_feat: int, num_grow_ch: int) -> None:
        super().__init__()
        self.conv1 = _conv(num_feat, num_grow_ch)
        self.conv2 = _conv(num_feat + num_grow_ch, num_grow_ch)
        self.conv3 = _conv(num_feat + 2 * num_grow_ch, num_grow_ch)
        self.conv4 = _conv(num_feat + 3 * num_grow_ch, num_grow_ch)
        self.conv5 = _conv(num_feat + 4 * num_grow_ch, num_feat)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat((seen, _leaky(conv(seen))), 1)
        last: Tensor = self.conv5(seen)
        return last * 0.2 + x


class _ResidualBlock(nn.Module):
    def __init__(self, num_feat: int, num_grow_ch: int) -> None:
        super().__init__()
        self.rdb1 = _DenseBlock(num_feat, num_grow_ch)
        self.rdb2 = _DenseBlock(num_feat, num_grow_ch)
        self.rdb3 = _DenseBlock(num_feat, num_grow_ch)

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.rdb3(self.rdb2(self.rdb1(x)))
        return inner * 0.2 + x


class Rrdb(nn.Module):
    """RRDBNet: ESRGAN's generator; x2 and x1 unshuffle the input and then scale by four."""

    def __init__(
        self, *, num_feat: int = 64, num_block: int = 23, num_grow_ch: int = 32, scale: int = 4
    ) -> None:
        super().__init__()
        self.unshuffle = {1: 4, 2: 2, 4: 1}[scale]
        self.conv_first = _conv(3 * self.unshuffle**2, num_feat)
        self.body = nn.Sequential(*(_ResidualBlock(num_feat, num_grow_ch) for _ in range(num_block)))
        self.conv_body = _conv(num_feat, num_feat)
        self.conv_up1 = _conv(num_feat, num_feat)
        self.conv_up2 = _conv(num_feat, num_feat)
        self.conv_hr = _conv(num_feat, num_feat)
        self.conv_last = _conv(num_feat, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = x.to(_dtype(self.conv_first))
        if self.unshuffle > 1:
            out = functional.pixel_unshuffle(out, self.unshuffle)
        first: Tensor = self.conv_first(out)
        out = first + self.conv_body(self.body(first))
        out = _leaky(self.conv_up1(functional.interpolate(out, scale_factor=2.0, mode="nearest")))
        out = _leaky(self.conv_up2(functional.interpolate(out, scale_factor=2.0, mode="nearest")))
        last: Tensor = self.conv_last(_leaky(self.conv_hr(out)))
        return last.to(x.dtype)


class _SpanBlock(nn.Module):
    """SPAN's block: three convolutions whose result is weighted by itself, without learnt attention."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = (_conv(num_feat, num_feat) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inner = functional.silu(self.c1(x))
        out: Tensor = self.c3(functional.silu(self.c2(inner)))
        return (out + x) * (torch.sigmoid(out) - 0.5), inner


class Span(nn.Module):
    """SPAN with each of its re-parameterised convolutions folded into one, as files for inference hold it."""

    def __init__(self, *, num_feat: int = 48, scale: int = 4) -> None:
        super().__init__()
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(3))
        self.conv_1, self.conv_2 = _conv(3, num_feat), _conv(num_feat, num_feat)
        for number in range(1, 7):
            self.add_module(f"block_{number}", _SpanBlock(num_feat))
        self.conv_cat = nn.Conv2d(4 * num_feat, num_feat, 1)
        self.upsampler = nn.Sequential(_conv(num_feat, 3 * scale * scale), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - self.mean.to(x.dtype).view(1, 3, 1, 1)
        first: Tensor = self.conv_1(centred.to(_dtype(self.conv_1)))
        out, inner, blocks = first, first, []
        for number in range(1, 7):
            out, inner = getattr(self, f"block_{number}")(out)
            blocks.append(out)
        seen = torch.cat((first, self.conv_2(out), blocks[0], inner), 1)
        enlarged: Tensor = self.upsampler(self.conv_cat(seen))
        return enlarged.to(x.dtype)


def build(card: Card) -> nn.Module:
    """The card's network, weights not yet loaded, ready for inference."""
    parameters = dict(card.parameters)
    try:
        if card.network == "compact":
            return Compact(scale=card.scale, **parameters).eval()  # type: ignore[arg-type]
        if card.network == "rrdb":
            return Rrdb(scale=card.scale, **parameters).eval()  # type: ignore[arg-type]
        if card.network == "span":
            return Span(scale=card.scale, **parameters).eval()  # type: ignore[arg-type]
        if card.network == "swinir":
            return _swinir(card.scale, parameters).eval()
        if card.network in ("basicvsr", "iconvsr"):
            return _recurrent(card.network, parameters).eval()
    except (TypeError, KeyError, ValueError) as exc:
        raise ModelError(
            f"model {card.name}: scale {card.scale} and {parameters} do not fit {card.network}"
        ) from exc
    raise ModelError(f"model {card.name}: {card.network} is a filter, not a network")


def _swinir(scale: int, parameters: dict[str, int | str]) -> nn.Module:
    arch = basicsr_module("basicsr.archs.swinir_arch")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)
        network: nn.Module = arch.SwinIR(
            upscale=scale,
            depths=whole_numbers(parameters["depths"]),
            num_heads=whole_numbers(parameters["num_heads"]),
            **{key: value for key, value in parameters.items() if key not in ("depths", "num_heads")},
        )
    return network


def _recurrent(name: str, parameters: dict[str, int | str]) -> nn.Module:
    arch = basicsr_module("basicsr.archs.basicvsr_arch")
    network: nn.Module = {"basicvsr": arch.BasicVSR, "iconvsr": arch.IconVSR}[name](**parameters)
    return network


def expected_shapes(card: Card) -> dict[str, tuple[int, ...]]:
    """Key -> shape of every weight that the card's network has."""
    is_ours = card.network in ("compact", "rrdb", "span")  # basicsr's compute numbers while they are built
    with torch.device("meta" if is_ours else "cpu"):
        return {key: tuple(value.shape) for key, value in build(card).state_dict().items()}


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, 1, 1)


def _leaky(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.2, inplace=not torch.is_grad_enabled())


def _dtype(layer: nn.Module) -> torch.dtype:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.dtype


# basicsr, lean ---------------------------------------------------------------------------------------------

_STUBBED = ("torchvision", "cv2", "scipy", "lmdb", "requests", "tqdm", "yaml")
_PACKAGES = ("basicsr", "basicsr.archs", "basicsr.utils", "basicsr.ops", "basicsr.metrics")


def basicsr_module(name: str) -> types.ModuleType:
    """Import one module of basicsr 1.4.2 without its packages' own imports (torchvision, OpenCV, training).

    Its `__init__`s are passed over by bare packages, and what only training needs is stubbed for the time
    of the import where it is absent. ModelError where basicsr is not installed.
    """
    spec = (
        importlib.util.find_spec("basicsr")
        if "basicsr" not in sys.modules
        else sys.modules["basicsr"].__spec__
    )
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            "basicsr is not installed; with Python before 3.13: pip install setuptools wheel Cython, then "
            "pip install --no-deps --no-build-isolation basicsr==1.4.2"
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    for package in _PACKAGES:
        if package not in sys.modules:
            sys.modules[package] = _bare_package(package, root.joinpath(*package.split(".")[1:]))
    finder = _StubFinder(tuple(each for each in _STUBBED if not _is_importable(each)))
    sys.meta_path.append(finder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it imports distutils
            _mend(importlib.import_module("basicsr.archs.arch_util"))
            return importlib.import_module(name)
    finally:
        sys.meta_path.remove(finder)
        for stub in [each for each in sys.modules if isinstance(sys.modules[each], _Stub)]:
            del sys.modules[stub]


def _mend(arch_util: types.ModuleType) -> None:
    """Put our warp and deformable convolution where basicsr's networks look for them."""
    if arch_util.flow_warp is flow_warp:
        return
    arch_util.basicsr_flow_warp = arch_util.flow_warp  # type: ignore[attr-defined]
    arch_util.flow_warp = flow_warp  # type: ignore[attr-defined]
    ops = types.SimpleNamespace(deform_conv2d=deform_conv2d)
    arch_util.torchvision = types.SimpleNamespace(__version__="0.9.0", ops=ops)  # type: ignore[attr-defined]
    arch_util.LooseVersion = str  # type: ignore[attr-defined]  # setuptools' own, which warns at each use


def _bare_package(name: str, folder: Path) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__path__ = [str(folder)]
    module.__spec__ = importlib.util.spec_from_loader(name, loader=None, is_package=True)
    if module.__spec__ is not None:
        module.__spec__.submodule_search_locations = [str(folder)]
    if name == "basicsr.utils":
        module.get_root_logger = logging.getLogger  # type: ignore[attr-defined]
    return module


def _is_importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:  # a torchvision built for another torch raises RuntimeError
        return False
    return True


class _Stub(types.ModuleType):
    """Stands for an absent package: any name can be imported from it, none can be used."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "version":
            return "0.0.0"
        return _Stub(f"{self.__name__}.{name}")

    def __call__(self, *args: object, **kwargs: object) -> Any:
        raise ModelError(f"{self.__name__} is needed here, but its package is not installed")


class _StubFinder:
    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name.split(".")[0] not in self._names:
            return None
        return importlib.util.spec_from_loader(name, loader=self)  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> types.ModuleType:
        stub = _Stub(spec.name)
        stub.__version__ = "0.0.0"  # type: ignore[attr-defined]
        return stub

    def exec_module(self, module: types.ModuleType) -> None:
        pass
