"""Weights in ncnn's format: a `.param` file names the layers of a network, a `.bin` file holds their numbers.

A graph is recognised by comparison: it must equal, wire by wire, the graph that one of our own networks has
in this format. Nothing of a file is run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vsr_hpc.errors import ModelError
from vsr_hpc.models.recognition import UnknownNetworkError

_MAGIC = "7767517"
_MAX_PARAM_BYTES = 4 << 20
_FP16_TAG, _FP32_TAGS = 0x01306B47, (0, 0x0002C056)
_LEAKY = 0.2
"""The slope of RRDB's activations."""

Array = NDArray[np.float32]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NcnnNetwork:
    """What a pair of files holds: one of our networks and its weights by our keys."""

    network: Literal["compact", "rrdb", "span"]
    scale: int
    parameters: tuple[tuple[str, int | str], ...]
    state: Mapping[str, Array]
    shrinks_by: float = 1.0
    """The file's own last step: 0.5 where a network that enlarges four times is used to enlarge twice."""


def read_network(param: Path) -> NcnnNetwork:
    """Recognise a `.param` file and read the `.bin` file beside it. ModelError says what does not fit."""
    layers = _read_layers(param)
    graph = _Graph()
    found = graph.trace(layers, str(param))
    for candidate in _candidates(found):
        keys: dict[int, str] = {}
        end = candidate.trace(graph, keys)
        if end not in (found.end, found.end_before_shrink):
            continue
        entries = [
            (f"{keys[node]}.{kind}".rstrip("."), shape) for node, kind, shape in found.weights if node in keys
        ]
        if len(entries) != len(found.weights):
            break
        binary = param.with_suffix(".bin")
        if not binary.is_file():
            raise ModelError(f"{binary}: no such file; the .bin file lies beside the .param file of its name")
        state = read_weights(binary.read_bytes(), str(binary), entries)
        return NcnnNetwork(
            network=candidate.network,
            scale=candidate.scale,
            parameters=candidate.parameters,
            state=candidate.fold(state),
            shrinks_by=1.0 if end == found.end else found.shrinks_by,
        )
    kinds = ", ".join(sorted({layer.kind for layer in layers}))
    raise UnknownNetworkError(
        f"{param}: not the graph of a Compact (SRVGG), RRDB (ESRGAN) or SPAN network; it has {len(layers)} "
        f"layers ({kinds})"
    )


def read_weights(numbers: bytes, binary: str, entries: Iterable[tuple[str, Shape]]) -> dict[str, Array]:
    """The content of a `.bin` file, which has no names: by keys and shapes, in the order of the layers.

    ModelError where the file ends too early or goes on.
    """
    content = memoryview(numbers)
    place, state = 0, {}
    for key, shape in entries:
        count = math.prod(shape)
        kind: np.dtype[np.floating] = np.dtype("<f4")
        if len(shape) == 4:  # a convolution says how its weights are stored; all else is fp32
            tag = int.from_bytes(content[place : place + 4], "little")
            if tag == _FP16_TAG:
                kind = np.dtype("<f2")
            elif tag not in _FP32_TAGS:
                raise ModelError(f"{binary}: {key} is quantised (tag {tag:#010x}); fp16 and fp32 are read")
            place += 4
        size = count * kind.itemsize
        if place + size > len(content):
            raise ModelError(f"{binary}: ends within {key}; it is cut off or belongs to another .param file")
        values = np.frombuffer(content[place : place + size], kind).astype(np.float32)
        if not np.isfinite(values).all():
            raise ModelError(f"{binary}: {key} holds values that are not numbers; download it again")
        state[key] = values.reshape(shape)
        place += -(-size // 4) * 4
    if place != len(content):
        raise ModelError(
            f"{binary}: goes on for {len(content) - place} bytes after the last layer; it belongs to another "
            "network"
        )
    return state


# The file's graph ------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Layer:
    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: Mapping[int, str]

    def whole(self, number: int, default: int = 0) -> int:
        return int(self.settings.get(number, default))

    def real(self, number: int, default: float = 0.0) -> float:
        return float(self.settings.get(number, default))

    def reals(self, number: int) -> tuple[float, ...]:
        """An array: its key is -23300 minus the number, its value begins with its length."""
        values = self.settings.get(-23300 - number, "0").split(",")
        return tuple(float(each) for each in values[1:])


def _read_layers(param: Path) -> list[_Layer]:
    if not param.is_file():
        raise ModelError(f"{param}: no such file")
    if param.stat().st_size > _MAX_PARAM_BYTES:
        raise ModelError(f"{param}: {param.stat().st_size} bytes are too many for a description of layers")
    try:
        lines = param.read_text(encoding="utf-8").split("\n")
        if lines[0].strip() != _MAGIC:
            raise ModelError(f"{param}: not a .param file of ncnn in text form (it begins with {_MAGIC})")
        return [_parse_layer(line.split()) for line in lines[2:] if line.strip()]
    except (ValueError, IndexError) as exc:
        raise ModelError(f"{param}: cannot be read as ncnn's layers ({exc}); download it again") from exc


def _parse_layer(words: Sequence[str]) -> _Layer:
    inputs, outputs = int(words[2]), int(words[3])
    settings = (word.partition("=") for word in words[4 + inputs + outputs :])
    return _Layer(
        kind=words[0],
        name=words[1],
        inputs=tuple(words[4 : 4 + inputs]),
        outputs=tuple(words[4 + inputs : 4 + inputs + outputs]),
        settings={int(number): text for number, _, text in settings},
    )


@dataclass(slots=True)
class _Traced:
    """A file's graph as nodes, with the weights that its layers read from the `.bin` file, in order."""

    end: int = -1
    end_before_shrink: int = -1
    shrinks_by: float = 1.0
    weights: list[tuple[int, str, Shape]] = field(default_factory=list)
    convolutions: list[Shape] = field(default_factory=list)
    shuffles: list[int] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)
    """What the file multiplies by: a SPAN network begins with one of them."""


class _Graph:
    """Nodes by what they do and what goes in; equal graphs end in one node, which makes them easy to compare.

    A convolution is known by its position, which no other convolution of these networks has.
    """

    def __init__(self) -> None:
        self._nodes: dict[tuple[object, ...], int] = {}

    def node(self, kind: str, *attributes: object, of: Sequence[int] = ()) -> int:
        return self._nodes.setdefault((kind, attributes, tuple(of)), len(self._nodes))

    def convolution(self, of: int, outputs: int, kernel: int = 3) -> int:
        return self.node("convolution", outputs, kernel, of=(of,))

    def add(self, one: int, other: int) -> int:
        return self.node("add", of=sorted((one, other)))

    def trace(self, layers: Sequence[_Layer], where: str) -> _Traced:
        """Follow a file's layers from the picture to the last one."""
        found = _Traced()
        nodes: dict[str, int] = {}
        channels: dict[int, int] = {}
        node = -1
        for layer in layers:
            try:
                inputs = [nodes[name] for name in layer.inputs]
            except KeyError as exc:
                raise ModelError(
                    f"{where}: layer {layer.name} reads {exc}, which no layer before it makes"
                ) from exc
            node = self._layer(layer, inputs, channels, found)
            nodes.update(dict.fromkeys(layer.outputs, node))
        found.end = node
        return found

    def _layer(self, layer: _Layer, inputs: list[int], channels: dict[int, int], found: _Traced) -> int:
        match layer.kind:
            case "Input":
                node, width = self.node("picture"), 3
            case "Split":
                return inputs[0]
            case "Convolution":
                return self._convolution(layer, inputs[0], channels, found)
            case "PReLU":
                node, width = self.node("prelu", of=inputs), layer.whole(0)
                found.weights.append((node, "weight", (width,)))
            case "MemoryData":
                width = layer.whole(0) * max(1, layer.whole(1)) * max(1, layer.whole(2))
                node = self.node("constant", width)
                found.weights.append((node, "", (width,)))
            case "Concat":
                node, width = self.node("concat", of=inputs), sum(channels.get(each, 0) for each in inputs)
            case "PixelShuffle":
                found.shuffles.append(layer.whole(0))
                node, width = self.node("shuffle", layer.whole(0), of=inputs), 3
            case "Interp" if layer.whole(0) == 1:
                node = self.node("nearest", layer.real(1), layer.real(2), of=inputs)
                width = channels.get(inputs[0], 0)
            case "Interp":
                found.end_before_shrink, found.shrinks_by = inputs[0], layer.real(1)
                node, width = self.node("resize", layer.real(1), layer.real(2), of=inputs), 3
            case _:
                node, width = self._arithmetic(layer, inputs), channels.get(inputs[0], 0) if inputs else 0
                if layer.kind == "BinaryOp" and layer.whole(0) == 2 and layer.whole(1) == 1:
                    found.factors.append(layer.real(2))
        channels[node] = width
        return node

    def _convolution(self, layer: _Layer, of: int, channels: dict[int, int], found: _Traced) -> int:
        outputs, kernel, inputs = layer.whole(0), layer.whole(1), channels.get(of, 0)
        shape = (outputs, inputs, kernel, kernel)
        is_plain = (
            layer.whole(2, 1) == 1
            and layer.whole(3, 1) == 1
            and layer.whole(4) == kernel // 2
            and layer.whole(5) == 1
            and layer.whole(6) == math.prod(shape)
        )
        node = self.convolution(of, outputs, kernel) if is_plain else self.node("other", layer.name, of=(of,))
        found.weights += [(node, "weight", shape), (node, "bias", (outputs,))]
        found.convolutions.append(shape)
        channels[node] = outputs
        match layer.whole(9):
            case 0:
                return node
            case 2:
                after = self.node("leaky", *layer.reals(10), of=(node,))
            case activation:
                after = self.node("activation", activation, of=(node,))
        channels[after] = outputs
        return after

    def _arithmetic(self, layer: _Layer, inputs: list[int]) -> int:
        operation, has_scalar = layer.whole(0), layer.whole(1) == 1
        match layer.kind, operation:
            case "BinaryOp", 0 if not has_scalar and len(inputs) == 2:
                return self.add(*inputs)
            case "BinaryOp", 1 if has_scalar:
                return self.node("add-scalar", -layer.real(2), of=inputs)
            case "BinaryOp", 0 if has_scalar:
                return self.node("add-scalar", layer.real(2), of=inputs)
            case "BinaryOp", 1:
                return self.node("subtract", of=inputs)
            case "BinaryOp", 2 if has_scalar:
                return self.node("scale", layer.real(2), of=inputs)
            case "BinaryOp", 2:
                return self.node("multiply", of=sorted(inputs))
            case "Eltwise", 1 if len(inputs) == 2:
                factors = layer.reals(1) or (1.0, 1.0)
                parts = [
                    each if factor == 1 else self.node("scale", factor, of=(each,))
                    for each, factor in zip(inputs, factors, strict=True)
                ]
                return self.add(*parts)
            case "ReLU", _ if layer.real(0):
                return self.node("leaky", layer.real(0), of=inputs)
            case (("Swish" | "Sigmoid"), _):
                return self.node(layer.kind, of=inputs)
        return self.node(f"{layer.kind} {layer.name}", of=inputs)


# Our networks' graphs --------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Compact:
    feat: int
    conv: int
    scale: int
    network: Literal["compact"] = "compact"

    @property
    def parameters(self) -> tuple[tuple[str, int | str], ...]:
        return (("act_type", "prelu"), ("num_conv", self.conv), ("num_feat", self.feat))

    def fold(self, state: dict[str, Array]) -> dict[str, Array]:
        """The weights as our network has them."""
        return state

    def trace(self, graph: _Graph, keys: dict[int, str]) -> int:
        picture = node = graph.node("picture")
        for index in range(self.conv + 1):
            node = graph.convolution(node, self.feat)
            keys[node] = f"body.{2 * index}"
            node = graph.node("prelu", of=(node,))
            keys[node] = f"body.{2 * index + 1}"
        node = graph.convolution(node, 3 * self.scale**2)
        keys[node] = f"body.{2 * self.conv + 2}"
        base = graph.node("nearest", float(self.scale), float(self.scale), of=(picture,))
        return graph.add(graph.node("shuffle", self.scale, of=(node,)), base)


@dataclass(frozen=True, slots=True)
class _Rrdb:
    feat: int
    grow: int
    block: int
    scale: int = 4
    network: Literal["rrdb"] = "rrdb"

    @property
    def parameters(self) -> tuple[tuple[str, int | str], ...]:
        return (("num_block", self.block), ("num_feat", self.feat), ("num_grow_ch", self.grow))

    def fold(self, state: dict[str, Array]) -> dict[str, Array]:
        """The weights as our network has them."""
        return state

    def trace(self, graph: _Graph, keys: dict[int, str]) -> int:
        def convolution(key: str, of: int, outputs: int, *, is_leaky: bool = False) -> int:
            node = graph.convolution(of, outputs)
            keys[node] = key
            return graph.node("leaky", _LEAKY, of=(node,)) if is_leaky else node

        def added(scaled: int, other: int) -> int:
            return graph.add(graph.node("scale", _LEAKY, of=(scaled,)), other)

        first = node = convolution("conv_first", graph.node("picture"), self.feat)
        for block in range(self.block):
            before = node
            for dense in (1, 2, 3):
                name, seen = f"body.{block}.rdb{dense}", [node]
                for number in (1, 2, 3, 4):
                    given = seen[0] if number == 1 else graph.node("concat", of=seen)
                    seen.append(convolution(f"{name}.conv{number}", given, self.grow, is_leaky=True))
                last = convolution(f"{name}.conv5", graph.node("concat", of=seen), self.feat)
                node = added(last, node)
            node = added(node, before)
        node = graph.add(first, convolution("conv_body", node, self.feat))
        for name in ("conv_up1", "conv_up2"):
            larger = graph.node("nearest", 2.0, 2.0, of=(node,))
            node = convolution(name, larger, self.feat, is_leaky=True)
        node = convolution("conv_hr", node, self.feat, is_leaky=True)
        return convolution("conv_last", node, 3)


@dataclass(frozen=True, slots=True)
class _Span:
    feat: int
    scale: int
    img_range: int
    network: Literal["span"] = "span"

    @property
    def parameters(self) -> tuple[tuple[str, int | str], ...]:
        return (("num_feat", self.feat),)

    def fold(self, state: dict[str, Array]) -> dict[str, Array]:
        """The weights as our network has them: its first convolution multiplies the picture by the range."""
        return state | {"conv_1.weight": state["conv_1.weight"] * np.float32(self.img_range)}

    def trace(self, graph: _Graph, keys: dict[int, str]) -> int:
        def convolution(key: str, of: int, outputs: int = self.feat, kernel: int = 3) -> int:
            node = graph.convolution(of, outputs, kernel)
            keys[node] = key
            return node

        mean = graph.node("constant", 3)
        keys[mean] = "mean"
        node = graph.node("subtract", of=(graph.node("picture"), mean))
        if self.img_range != 1:
            node = graph.node("scale", float(self.img_range), of=(node,))
        first = node = convolution("conv_1", node)
        blocks, inner = [], -1
        for block in range(1, 7):
            inner = graph.node("Swish", of=(convolution(f"block_{block}.c1", node),))
            after = graph.node("Swish", of=(convolution(f"block_{block}.c2", inner),))
            last = convolution(f"block_{block}.c3", after)
            weight = graph.node("add-scalar", -0.5, of=(graph.node("Sigmoid", of=(last,)),))
            node = graph.node("multiply", of=sorted((graph.add(last, node), weight)))
            blocks.append(node)
        seen = graph.node("concat", of=(first, convolution("conv_2", node), blocks[0], inner))
        node = convolution("conv_cat", seen, kernel=1)
        node = convolution("upsampler.0", node, 3 * self.scale**2)
        return graph.node("shuffle", self.scale, of=(node,))


def _candidates(found: _Traced) -> Iterator[_Compact | _Rrdb | _Span]:
    """The networks that a file could hold, by its first layers and the number of its convolutions."""
    shapes = found.convolutions
    if len(shapes) >= 3 and found.shuffles:
        yield _Compact(feat=shapes[0][0], conv=len(shapes) - 2, scale=found.shuffles[0])
        yield _Span(feat=shapes[0][0], scale=found.shuffles[0], img_range=int((*found.factors, 1)[0]))
    if len(shapes) >= 21 and (len(shapes) - 6) % 15 == 0:
        yield _Rrdb(feat=shapes[0][0], grow=shapes[1][0], block=(len(shapes) - 6) // 15)
