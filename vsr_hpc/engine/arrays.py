"""Upscales pictures that a Python program holds as numpy arrays or torch tensors."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vsr_hpc.engine.colour import shape, unshape
from vsr_hpc.engine.device_facts import DeviceFacts, DeviceKind, device_facts
from vsr_hpc.engine.geometry import output_picture
from vsr_hpc.engine.platform import torch_settings_kept, tune_allocator
from vsr_hpc.engine.settings import UpscaleRequest, choose_lanes, choose_precision, resolve_settings
from vsr_hpc.engine.upscaler import Upscaler, make_repeatable
from vsr_hpc.errors import JobError
from vsr_hpc.media.picture import Colour, Picture
from vsr_hpc.media.pixels import pixel_format
from vsr_hpc.models import weights
from vsr_hpc.models.cards import Card, Precision, find_card
from vsr_hpc.models.defaults import AUTO, default_model

ColourCoding = Literal["display", "linear"]
"""What values mean: as in PNG, JPEG and video, or scene-linear light as in EXR."""
Pictures = TypeVar("Pictures", NDArray[Any], Tensor)
"""One picture, (rows, columns, 3), or several, (pictures, rows, columns, 3)."""

_WHITE = {torch.uint8: 255.0, torch.uint16: 65535.0}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WINDOW = 16
"""Pictures that a video network makes at a time; it sees its context on both sides besides."""
_SIZES_HELD = 4


@dataclass(frozen=True, slots=True)
class _Ready:
    """A picture on its way through: samples on the device, and how to give the result back."""

    samples: Tensor
    """(rows, columns, 3) on the upscaler's device."""
    home: torch.device
    is_numpy: bool


class ArrayUpscaler:
    """Upscales RGB pictures in memory; known to users as `vsr_hpc.Upscaler`.

    Pictures are numpy arrays or torch tensors of shape (rows, columns, 3) or (pictures, rows, columns, 3), in
    uint8, uint16 or floats from 0 to 1. The result has the same type, and a tensor stays on its device. It
    equals what `vsr upscale` makes of the same picture in a PNG file. One thread may use it at a time.
    """

    card: Card
    """The model."""
    scale: float
    """How many times larger a result is."""
    device: torch.device
    precision: Precision

    def __init__(
        self,
        model: str | Path | nn.Module,
        scale: float | None = None,
        *,
        device: str | torch.device | None = None,
        colour: ColourCoding = "display",
        precision: Precision | None = None,
        tile: int | None = None,
        batch: int | None = None,
        threads: int | None = None,
    ) -> None:
        """`model` is a name (`vsr models list`), a file of weights or a torch module; `auto` takes ours.

        Without `scale`, the model's own is used; another is reached by resampling its result. `tile` is the
        side of a tile in pixels (0: never cut), `batch` the pictures in one pass. Whatever is left out is
        chosen as for `vsr upscale`. `colour="linear"` says that floats are scene-linear light.
        """
        if colour not in ("display", "linear"):
            raise JobError(f"colour={colour!r} is not known; it is display or linear")
        self.device, self._facts = _device(device)
        self.card = card_of(model, scale, precision)
        self.precision = precision or choose_precision(self.card, self._facts)
        self.scale = float(self.card.scale if scale is None else scale)
        self._colour = colour
        self._request = UpscaleRequest(
            scale=Fraction(str(self.scale)).limit_denominator(10_000),
            tile=tile,
            batch=batch,
            precision=self.precision,
        )
        self._threads = threads or len(os.sched_getaffinity(0))
        self._weights = weights.ensure(self.card) if self.card.weights else None
        self._network: nn.Module | None = None
        self._engines: OrderedDict[tuple[int, int], Upscaler] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None
        tune_allocator()

    def __repr__(self) -> str:
        return (
            f"Upscaler({self.card.name!r}, scale={self.scale:g}, device={str(self.device)!r}, "
            f"precision={self.precision!r})"
        )

    def __call__(self, pictures: Pictures) -> Pictures:
        """Upscale one picture or several at once."""
        _check(pictures, (3, 4))
        if pictures.ndim == 3:
            return next(self.stream([pictures]))
        if len(pictures) == 0:
            raise JobError("there are no pictures in an array of shape " + str(tuple(pictures.shape)))
        out: Any = None
        each: Any
        for i, each in enumerate(self.stream(cast("Iterable[Pictures]", pictures))):
            if out is None:
                whole = (len(pictures), *each.shape)
                out = each.new_empty(whole) if isinstance(each, Tensor) else np.empty(whole, each.dtype)
            out[i] = each
        return cast(Pictures, out)

    def stream(self, pictures: Iterable[Pictures]) -> Iterator[Pictures]:
        """Upscale pictures one after the other, as they are asked for; only a few are held at a time.

        Their sizes may differ, except with a video network, which takes them as the frames of one scene.
        """
        ready = (self._take(each) for each in pictures)
        made = self._windows(ready) if self.card.is_recurrent else self._batches(ready)
        for source, samples in made:
            yield cast(Pictures, _give_back(samples, source))

    # Image networks and filters ----------------------------------------------------------------------------

    def _batches(self, ready: Iterator[_Ready]) -> Iterator[tuple[_Ready, Tensor]]:
        """Several batches at once where that is faster, in order."""
        waiting: deque[tuple[list[_Ready], Future[Tensor]]] = deque()
        for group in self._groups(ready):
            engine = self._engine(group[0].samples)
            waiting.append((group, self._submit(engine, torch.stack([each.samples for each in group]))))
            if len(waiting) >= engine.lanes:
                yield from _pairs(*waiting.popleft())
        while waiting:
            yield from _pairs(*waiting.popleft())

    def _groups(self, ready: Iterator[_Ready]) -> Iterator[list[_Ready]]:
        """Pictures of one size and type, at most one batch of them."""
        group: list[_Ready] = []
        for each in ready:
            if group and not (
                _is_alike(group[0].samples, each.samples)
                and len(group) < self._engine(group[0].samples).batch
            ):
                yield group
                group = []
            group.append(each)
        if group:
            yield group

    def _submit(self, engine: Upscaler, samples: Tensor) -> Future[Tensor]:
        return self._workers(engine.lanes).submit(self._work, engine, samples)

    def _workers(self, lanes: int) -> ThreadPoolExecutor:
        """Threads of our own: the number of torch's threads in the caller's stays as it is."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=self._threads, thread_name_prefix="vsr-upscaler")
        return self._pool

    def _work(self, engine: Upscaler, samples: Tensor) -> Tensor:
        with self._settled():
            return self._samples_of(engine.upscale_rgb(self._rgb_of(samples)), samples.dtype)

    # Video networks ----------------------------------------------------------------------------------------

    def _windows(self, ready: Iterator[_Ready]) -> Iterator[tuple[_Ready, Tensor]]:
        """Windows of some frames, each seen with its neighbours."""
        context, held, start = self.card.context, list[_Ready](), 0
        is_over = False
        while not is_over or start < len(held):
            more = list(itertools.islice(ready, start + _WINDOW + context - len(held)))
            is_over = len(held) + len(more) < start + _WINDOW + context
            held += more
            core = held[start : start + _WINDOW]
            if not core:
                return
            if not all(_is_alike(held[0].samples, each.samples) for each in held):
                raise JobError(
                    f"{self.card.name} is a video network: all frames must have one size and type; "
                    "call it anew for each clip"
                )
            yield from zip(core, self._window(held, start, len(core)), strict=True)
            start += len(core)
            keep = max(0, start - context)
            held, start = held[keep:], start - keep

    def _window(self, held: list[_Ready], start: int, count: int) -> list[Tensor]:
        engine = self._engine(held[0].samples)
        samples = torch.stack([each.samples for each in held])

        def work() -> list[Tensor]:
            with self._settled():
                after = len(held) - start - count
                made = engine.upscale_rgb_window(self._rgb_of(samples), start, after)
                return [self._samples_of(each[None], samples.dtype)[0] for each in made]

        return self._workers(1).submit(work).result()

    # One batch ---------------------------------------------------------------------------------------------

    @property
    def _white(self) -> dict[torch.dtype, float]:
        """A filter works on the samples themselves, as it does on planes of a clip."""
        return {} if self.card.is_filter else _WHITE

    def _rgb_of(self, samples: Tensor) -> Tensor:
        """(pictures, rows, columns, 3) of samples as the engine takes them."""
        wide = samples.to(torch.int32) if samples.dtype == torch.uint16 else samples
        rgb = wide.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        if self._colour == "linear" and not self.card.is_filter:
            return shape(rgb)
        white = self._white.get(samples.dtype)
        return rgb if white is None else rgb / white

    def _samples_of(self, rgb: Tensor, dtype: torch.dtype) -> Tensor:
        if self._colour == "linear" and not self.card.is_filter:
            rgb = unshape(rgb)
        codes = rgb * self._white.get(dtype, 1.0)
        if dtype in _WHITE:
            codes = codes.round_().clamp_(0, _WHITE[dtype])
        if dtype == torch.uint16:
            codes = codes.to(torch.int32)
        return codes.permute(0, 2, 3, 1).to(dtype, memory_format=torch.contiguous_format)

    def _engine(self, samples: Tensor) -> Upscaler:
        """What upscales pictures of this size; the network is held once."""
        rows, columns = samples.shape[:2]
        engine = self._engines.get((rows, columns))
        if engine is None:
            engine = self._workers(1).submit(self._build, rows, columns).result()
            self._engines[rows, columns] = engine
            while len(self._engines) > _SIZES_HELD:
                self._engines.popitem(last=False)
        self._engines.move_to_end((rows, columns))
        return engine

    def _build(self, rows: int, columns: int) -> Upscaler:
        pixel = pixel_format("gbrp")
        colour = Colour(matrix=0, is_full_range=True, is_range_tagged=True)
        picture = Picture(width=columns, height=rows, pixel=pixel, colour=colour)
        settings = resolve_settings(self._request, self.card, picture, self._facts)
        out = output_picture(picture, settings.width, settings.height, pixel)
        lanes = choose_lanes(self.card, picture, settings, self._threads) if settings.device == "cpu" else 1
        threads = max(1, self._threads // lanes)
        with self._settled():
            engine = Upscaler(
                self.card, self._weights, picture, out, settings, threads, lanes=lanes, network=self._network
            )
        self._network = engine.network
        return engine

    @contextlib.contextmanager
    def _settled(self) -> Iterator[None]:
        """Torch's settings as repeatable results need them; the program's own come back afterwards."""
        on_device = torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()
        with torch_settings_kept(), on_device:
            make_repeatable()
            yield

    def _take(self, picture: Any) -> _Ready:
        _check(picture, (3,))
        is_numpy = isinstance(picture, np.ndarray)
        samples = torch.from_numpy(_plain(picture)) if is_numpy else picture.detach()
        if samples.dtype not in (*_WHITE, *_FLOATS):
            raise JobError(f"pictures of {picture.dtype} are not taken; uint8, uint16 and floats are")
        if self._colour == "linear" and samples.dtype in _WHITE:
            raise JobError(
                f"colour='linear' takes floats, since light has no end at {_WHITE[samples.dtype]:g}"
            )
        return _Ready(samples.to(self.device), samples.device, is_numpy)


def card_of(model: str | Path | nn.Module, scale: float | None, precision: Precision | None = None) -> Card:
    """The card of what a caller gives as a model."""
    if isinstance(model, nn.Module):
        from vsr_hpc.models.user_modules import describe_module

        return describe_module(model, precision=precision or "fp32")
    if model == AUTO:
        return find_card(default_model("video", scale or 2))
    return find_card(model)


def _device(wanted: str | torch.device | None) -> tuple[torch.device, DeviceFacts]:
    device = None if wanted is None else torch.device(wanted)
    if device is not None and device.type not in ("cpu", "cuda"):
        raise JobError(f"device {device} is not supported; use cpu, cuda or cuda:N")
    facts = device_facts(cast(DeviceKind, device.type) if device is not None else None)
    return device or torch.device(facts.kind), facts


def _check(pictures: Any, dimensions: tuple[int, ...]) -> None:
    if not isinstance(pictures, (np.ndarray, Tensor)):
        raise JobError(f"pictures are numpy arrays or torch tensors, not {type(pictures).__name__}")
    shape = tuple(pictures.shape)
    if len(shape) in dimensions and shape[-1] == 3:
        return
    hint = ""
    if len(shape) in dimensions and shape[-1] == 4:
        hint = "; leave alpha out: pictures[..., :3]"
    elif len(shape) in dimensions and shape[-3] == 3:
        hint = "; move colours to the end: pictures.transpose" + (
            "(1, 2, 0)" if len(shape) == 3 else "(0, 2, 3, 1)"
        )
    wanted = " or ".join({3: "(rows, columns, 3)", 4: "(pictures, rows, columns, 3)"}[n] for n in dimensions)
    raise JobError(f"an array of shape {shape} is not RGB pictures of shape {wanted}{hint}")


def _plain(picture: NDArray[Any]) -> NDArray[Any]:
    """An array that torch takes: contiguous, native byte order, writable."""
    native = picture.dtype.newbyteorder("=")
    plain = np.ascontiguousarray(picture, dtype=native)
    return plain if plain.flags.writeable else plain.copy()


def _is_alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _pairs(group: list[_Ready], made: Future[Tensor]) -> Iterator[tuple[_Ready, Tensor]]:
    return zip(group, made.result(), strict=True)


def _give_back(samples: Tensor, source: _Ready) -> NDArray[Any] | Tensor:
    home = samples.to(source.home)
    if source.is_numpy:
        return home.numpy()
    return home.clone()  # outside of inference mode, so that it may be used in training
