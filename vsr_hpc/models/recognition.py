"""What network a file of weights holds, by its keys and shapes alone: nothing is run, no torch needed."""

from __future__ import annotations

import collections
import io
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from vsr_hpc.errors import ModelError
from vsr_hpc.models.network_costs import theoretical_radius, unshuffle

Shapes = Mapping[str, tuple[int, ...]]

_MAX_HEADER_BYTES = 64 << 20
_WRAPPERS = ("params_ema", "params", "state_dict", "model")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecognisedNetwork:
    """A network that its keys and shapes gave away."""

    network: Literal["compact", "rrdb", "span", "swinir", "basicvsr", "iconvsr"]
    scale: int
    parameters: tuple[tuple[str, int | str], ...]
    overlap: int
    multiple_of: int
    kind: Literal["image", "recurrent"] = "image"
    context: int = 0
    precisions: tuple[Literal["fp32", "bf16", "fp16"], ...] = ("bf16", "fp16", "fp32")


class UnknownNetworkError(ModelError):
    """Weights of a network that is none of ours; spandrel may know it."""


def recognise(shapes: Shapes, where: str = "the file") -> RecognisedNetwork:
    """Network, scale and sizes of a state dict (BasicSR's names); ModelError says what was met instead."""
    if "body.0.weight" in shapes and "conv_first.weight" not in shapes:
        return _recognise_compact(shapes, where)
    if "conv_first.weight" in shapes and "body.0.rdb1.conv1.weight" in shapes:
        return _recognise_rrdb(shapes, where)
    if "block_6.c3.weight" in shapes and "conv_cat.weight" in shapes:
        return _recognise_span(shapes, where)
    if "spynet.basic_module.0.basic_module.0.weight" in shapes and "backward_trunk.main.0.weight" in shapes:
        return _recognise_recurrent(shapes, where)
    if "layers.0.residual_group.blocks.0.attn.relative_position_bias_table" in shapes:
        return _recognise_swinir(shapes, where)
    first = ", ".join(sorted(shapes)[:4]) or "none"
    raise UnknownNetworkError(
        f"{where}: not a Compact (SRVGG), RRDB (ESRGAN), SPAN, SwinIR, BasicVSR or IconVSR network; its "
        f"first keys are {first}"
    )


def plain_names(names: Mapping[str, Any] | list[str], where: str = "the file") -> dict[str, str]:
    """Key -> BasicSR's key, for every key of a state dict (DataParallel prefix, ESRGAN's older namings)."""
    keys = list(names)
    if keys and all(key.startswith("module.") for key in keys):
        inner = plain_names([key.removeprefix("module.") for key in keys], where)
        return {f"module.{old}": new for old, new in inner.items()}
    if "model.0.weight" in keys:
        return {key: _from_first_esrgan(key, keys, where) for key in keys}
    if any(key.startswith("RRDB_trunk.") for key in keys):
        return {key: _from_second_esrgan(key) for key in keys}
    return {key: key for key in keys}


def pick_state(tree: Any, where: str = "the file") -> Mapping[str, Any]:
    """The state dict inside what a file holds: under params_ema, params, state_dict, model, or bare."""
    for wrapper in _WRAPPERS:
        if isinstance(tree, Mapping) and isinstance(tree.get(wrapper), Mapping):
            return pick_state(tree[wrapper], where) if wrapper == "model" else dict(tree[wrapper])
    if isinstance(tree, Mapping) and tree and all(isinstance(key, str) for key in tree):
        return tree
    raise ModelError(f"{where}: holds no state dict (looked for params_ema, params, state_dict, bare keys)")


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Key -> shape with BasicSR's names, read without torch and without running the file's pickle."""
    try:
        tree = _safetensors_shapes(path) if path.suffix == ".safetensors" else _pickle_shapes(path)
    except ModelError:
        raise
    except Exception as exc:  # a damaged pickle can raise anything; all of it means the same to the user
        raise ModelError(
            f"{path}: cannot be read as weights ({type(exc).__name__}: {exc}); download or export it again"
        ) from exc
    state = pick_state(tree, str(path))
    names = plain_names(state, str(path))
    return {names[key]: value.shape for key, value in state.items() if isinstance(value, _Tensor)}


# Recognition -----------------------------------------------------------------------------------------------
def _recognise_compact(shapes: Shapes, where: str) -> RecognisedNetwork:
    numbers = sorted(
        {int(m[1]) for key in shapes if (m := re.fullmatch(r"body\.(\d+)\.(?:weight|bias)", key))}
    )
    last = numbers[-1]
    feat, colours = shapes["body.0.weight"][:2]
    out = shapes[f"body.{last}.weight"][0]
    scale = round((out / 3) ** 0.5)
    if "body.1.weight" not in shapes:
        raise ModelError(
            f"{where}: a Compact network without PReLU weights; ReLU and LeakyReLU cannot be told apart "
            "by keys, so write a card with parameters.act_type instead"
        )
    if colours != 3 or out != 3 * scale * scale or last % 2 or last < 4:
        raise ModelError(
            f"{where}: looks like Compact, but has {colours} input and {out} output channels in "
            f"{last + 1} layers; wanted 3 and 3*scale*scale"
        )
    num_conv = (last - 2) // 2
    return RecognisedNetwork(
        network="compact",
        scale=scale,
        parameters=(("act_type", "prelu"), ("num_conv", num_conv), ("num_feat", feat)),
        overlap=num_conv + 2,
        multiple_of=1,
    )


def _recognise_rrdb(shapes: Shapes, where: str) -> RecognisedNetwork:
    feat, inputs = shapes["conv_first.weight"][:2]
    grow = shapes["body.0.rdb1.conv1.weight"][0]
    block = 1 + max(int(m[1]) for key in shapes if (m := re.match(r"body\.(\d+)\.", key)))
    scale = {3: 4, 12: 2, 48: 1}.get(inputs)
    if scale is None or shapes.get("conv_last.weight", (0,))[0] != 3:
        raise ModelError(
            f"{where}: an RRDB network with {inputs} input channels; wanted 3 (x4), 12 (x2) or 48 (x1)"
        )
    step = unshuffle(scale)
    return RecognisedNetwork(
        network="rrdb",
        scale=scale,
        parameters=(("num_block", block), ("num_feat", feat), ("num_grow_ch", grow)),
        overlap=32 * step,
        multiple_of=step,
    )


def _recognise_span(shapes: Shapes, where: str) -> RecognisedNetwork:
    feat, out = shapes["block_6.c3.weight"][0], shapes.get("upsampler.0.weight", (0,))[0]
    scale = round((out / 3) ** 0.5)
    if out != 3 * scale * scale or not scale or shapes.get("mean") != (3,):
        raise ModelError(f"{where}: looks like SPAN, but does not end in three colours")
    return RecognisedNetwork(
        network="span",
        scale=scale,
        parameters=(("num_feat", feat),),
        overlap=theoretical_radius("span", scale, {}),
        multiple_of=1,
        precisions=("fp16", "fp32"),
    )


def _recognise_recurrent(shapes: Shapes, where: str) -> RecognisedNetwork:
    feat = shapes["backward_trunk.main.0.weight"][0]
    block = _count(shapes, r"backward_trunk\.main\.2\.(\d+)\.conv1\.weight")
    if shapes.get("conv_last.weight", (0,))[0] != 3 or block < 1:
        raise ModelError(f"{where}: looks like BasicVSR, but has no trunk or does not end in three colours")
    parameters: list[tuple[str, int | str]] = [("num_block", block), ("num_feat", feat)]
    is_icon = "edvr.conv_first.weight" in shapes
    if is_icon:
        frames = shapes["edvr.fusion.feat_fusion.weight"][1] // feat
        parameters += [("keyframe_stride", 5), ("temporal_padding", (frames - 1) // 2)]
    return RecognisedNetwork(
        network="iconvsr" if is_icon else "basicvsr",
        scale=4,
        parameters=tuple(sorted(parameters)),
        overlap=64,
        multiple_of=4,
        kind="recurrent",
        context=CONTEXT,
        precisions=("fp16", "fp32"),
    )


def _recognise_swinir(shapes: Shapes, where: str) -> RecognisedNetwork:
    group = "layers.{}.residual_group.blocks.0.attn.relative_position_bias_table"
    layers = _count(shapes, r"layers\.(\d+)\.residual_group\..*")
    depths = [
        _count(shapes, rf"layers\.{i}\.residual_group\.blocks\.(\d+)\.norm1\.weight") for i in range(layers)
    ]
    places = shapes[group.format(0)][0]
    window = (round(places**0.5) + 1) // 2
    feat = shapes["conv_first.weight"][0]
    masks = shapes.get("layers.0.residual_group.blocks.1.attn_mask", (64,))[0]
    mlp = shapes["layers.0.residual_group.blocks.0.mlp.fc1.weight"][0]
    upsampler, scale = _swinir_end(shapes)
    if shapes["conv_first.weight"][1] != 3 or mlp % feat:
        raise ModelError(f"{where}: a SwinIR network for other than RGB pictures, or of an unusual shape")
    parameters: dict[str, int | str] = {
        "depths": ",".join(map(str, depths)),
        "embed_dim": feat,
        "img_size": round(masks**0.5) * window,
        "mlp_ratio": mlp // feat,
        "num_heads": ",".join(str(shapes[group.format(i)][1]) for i in range(layers)),
        "resi_connection": "1conv" if "conv_after_body.weight" in shapes else "3conv",
        "upsampler": upsampler,
        "window_size": window,
    }
    return RecognisedNetwork(
        network="swinir",
        scale=scale,
        parameters=tuple(sorted(parameters.items())),
        overlap=32 // window * window if window <= 32 else window,
        multiple_of=window,
        precisions=("fp32",),
    )


def _swinir_end(shapes: Shapes) -> tuple[str, int]:
    """How the network ends, and its factor."""
    if "conv_up1.weight" in shapes:
        return "nearest+conv", 4
    if "conv_before_upsample.0.weight" in shapes:
        steps = [shapes[key] for key in shapes if re.fullmatch(r"upsample\.\d+\.weight", key)]
        scale = 1
        for shape in steps:
            scale *= round((shape[0] / shape[1]) ** 0.5)
        return "pixelshuffle", scale
    if "upsample.0.weight" in shapes:
        return "pixelshuffledirect", round((shapes["upsample.0.weight"][0] / 3) ** 0.5)
    return "", 1


def _count(shapes: Shapes, pattern: str) -> int:
    return len({match[1] for key in shapes if (match := re.fullmatch(pattern, key))})


CONTEXT = 15
"""Frames on both sides of a window of a recurrent network; see docs/video-models.md for how it was chosen."""


def _from_first_esrgan(key: str, keys: list[str], where: str) -> str:
    """model.0, model.1.sub.N.RDBn.convm.0 and numbered upsampling layers (ESRGAN, 2018)."""
    if m := re.fullmatch(r"model\.1\.sub\.(\d+)\.RDB([123])\.conv([1-5])\.0\.(weight|bias)", key):
        return f"body.{m[1]}.rdb{m[2]}.conv{m[3]}.{m[4]}"
    if m := re.fullmatch(r"model\.1\.sub\.\d+\.(weight|bias)", key):
        return f"conv_body.{m[1]}"
    layers = {"0": "conv_first", "3": "conv_up1", "6": "conv_up2", "8": "conv_hr", "10": "conv_last"}
    m = re.fullmatch(r"model\.(\d+)\.(weight|bias)", key)
    if m is None or m[1] not in layers or "model.10.weight" not in keys:
        raise ModelError(
            f"{where}: an old ESRGAN file, but not a x4 network of the plain kind (met key {key})"
        )
    return f"{layers[m[1]]}.{m[2]}"


def _from_second_esrgan(key: str) -> str:
    """RRDB_trunk.N.RDBn.convm, trunk_conv, upconv1, HRconv (ESRGAN, 2019)."""
    key = re.sub(r"^RRDB_trunk\.(\d+)\.RDB([123])\.", r"body.\1.rdb\2.", key)
    for old, new in (("trunk_conv.", "conv_body."), ("upconv", "conv_up"), ("HRconv.", "conv_hr.")):
        key = key.replace(old, new, 1) if key.startswith(old) else key
    return key


# Reading keys and shapes -----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Tensor:
    shape: tuple[int, ...]


def _safetensors_shapes(path: Path) -> dict[str, _Tensor]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(_MAX_HEADER_BYTES, path.stat().st_size):
            raise ModelError(f"{path}: not a safetensors file, or cut off (header of {length} bytes)")
        header = json.loads(file.read(length))
    return {key: _Tensor(tuple(value["shape"])) for key, value in header.items() if key != "__metadata__"}


def _pickle_shapes(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
            if len(names) != 1 or archive.getinfo(names[0]).file_size > _MAX_HEADER_BYTES:
                raise ModelError(f"{path}: not a PyTorch file of weights (a zip without one data.pkl)")
            return _ShapeUnpickler(io.BytesIO(archive.read(names[0])), path).load()
    with path.open("rb") as file:
        if _ShapeUnpickler(file, path).load() != 0x1950A86A20F9469CFC6C:
            raise ModelError(f"{path}: not a PyTorch file of weights")
        for _ in range(2):  # protocol version, machine facts
            _ShapeUnpickler(file, path).load()
        return _ShapeUnpickler(file, path).load()


def _tensor(storage: object, offset: int, size: tuple[int, ...], *rest: object) -> _Tensor:
    return _Tensor(tuple(size))


def _parameter(value: _Tensor, *rest: object) -> _Tensor:
    return value


_HARMLESS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}


class _ShapeUnpickler(pickle.Unpickler):
    """Builds names and shapes only: no class of the file's choosing is ever looked up, so nothing can run."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _HARMLESS:
            return _HARMLESS[module, name]
        if module in ("torch", "torch.storage") and (name.endswith("Storage") or name == "Size"):
            return tuple if name == "Size" else _Tensor
        raise ModelError(
            f"{self._path}: refused: its pickle asks for {module}.{name}, which could run code; "
            "export the weights alone (a plain state dict or safetensors)"
        )

    def persistent_load(self, pid: Any) -> object:
        return pid
