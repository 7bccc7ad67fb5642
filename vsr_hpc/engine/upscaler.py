"""Upscaler: frames in, frames out, planes on both sides; RGB exists only between them, for networks."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vsr_hpc.engine.colour import Coding, quantise
from vsr_hpc.engine.device_path import DevicePath, as_float, as_samples
from vsr_hpc.engine.filters import Filter, code_map, plane_axes, resample, scaling_axis
from vsr_hpc.engine.geometry import check_rgb_path, is_planewise
from vsr_hpc.engine.phase_planes import PhasePlanes, is_fusible
from vsr_hpc.engine.recurrent import Propagation, set_type
from vsr_hpc.engine.settings import UpscaleSettings
from vsr_hpc.engine.tiles import Tile, feather, grid, pad_length
from vsr_hpc.errors import BackendError, JobError, MediaError
from vsr_hpc.media.picture import Frame, Picture, Plane
from vsr_hpc.models import weights as weight_files
from vsr_hpc.models.cards import Card, Precision
from vsr_hpc.models.networks import Compact
from vsr_hpc.system.progress import tick

log = logging.getLogger(__name__)


Run = Callable[[Tensor], Tensor]
"""What makes of a crop its upscaled self."""
Made = TypeVar("Made")

_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Upscaler:
    """Upscales frames of one clip; what comes out depends on the arguments and the platform alone."""

    batch: int
    """Frames per pass; smaller than asked for after the device ran out of memory."""
    lanes: int
    """Calls that may run side by side; changes no byte."""
    clipped: int
    """Samples so far that lay outside the network's range (carried around it or clipped: settings)."""
    device_path: DevicePath | None
    """What batches take to an accelerator and back; None before the first, and on a CPU."""

    def __init__(
        self,
        card: Card,
        weights: Path | None,
        picture_in: Picture,
        picture_out: Picture,
        settings: UpscaleSettings,
        threads: int = 1,
        *,
        lanes: int = 1,
        network: nn.Module | None = None,
    ) -> None:
        """`network` is another upscaler's, of the same card, precision and device: weights are held once.

        With `lanes` above 1 it may be called from as many threads at once, each with `threads` of its own.
        """
        if (picture_out.width, picture_out.height) != (settings.width, settings.height):
            raise JobError(
                f"settings make {settings.width}x{settings.height}, the output is "
                f"{picture_out.width}x{picture_out.height}"
            )
        self._card, self._in, self._out, self._settings = card, picture_in, picture_out, settings
        self._device = torch.device(settings.device)
        self._goes_through_rgb = not card.is_filter or not is_planewise(picture_in, picture_out)
        if self._goes_through_rgb:
            check_rgb_path(picture_in)
            check_rgb_path(picture_out)
        torch.set_num_threads(threads)
        make_repeatable()
        self._network = None if card.is_filter else network or self._load(card, weights)
        self._propagation = Propagation(self._network, card) if card.is_recurrent and self._network else None
        self._planes = self._plane_maker()
        self.batch, self.lanes, self._threads = settings.batch, lanes, threads
        self.clipped = 0
        self._lock = threading.Lock()
        self.device_path = None
        self._has_path = self._device.type != "cpu" and not card.is_recurrent and not settings.grain

    def _plane_maker(self) -> PhasePlanes | None:
        """What makes planes straight from the last layer, where nothing else is wanted of the picture."""
        settings, scale = self._settings, self._card.scale
        is_plain = not settings.blend and not settings.grain and is_fusible(self._out)
        is_whole = (self._out.width, self._out.height) == (self._in.width * scale, self._in.height * scale)
        is_exact = self._card.is_tiled_exactly and self._card.multiple_of == 1
        if not (isinstance(self._network, Compact) and is_plain and is_whole and is_exact):
            return None
        return PhasePlanes(scale, self._out, self._device)

    @property
    def network(self) -> nn.Module | None:
        return self._network

    @property
    def precision(self) -> Precision:
        return self._settings.precision

    def network_pass(self) -> Callable[[], object]:
        """What runs the network alone over one batch of made-up pictures, for measurements."""
        dice = torch.Generator().manual_seed(1)
        shape = (self.batch, 3, self._in.height, self._in.width)
        rgb = torch.rand(shape, generator=dice).to(self._device)

        @torch.inference_mode()
        def run() -> Tensor:
            return self._forward(rgb) if self._planes is None else self._phases(rgb)

        return run

    def __call__(self, frames: Sequence[Frame]) -> list[Frame]:
        """Upscale any number of frames, `batch` at a time; short memory halves the batch and nothing else.

        A recurrent network takes them as one window.
        """
        if self._propagation is not None:
            return list(self.window(frames, 0, 0))
        done: list[Frame] = []
        while len(done) < len(frames):
            batch = self.batch
            part = frames[len(done) : len(done) + batch]
            try:
                done += self._through_device(part, batch) if self._has_path else self._pass(part)
            except (MemoryError, RuntimeError) as exc:
                self._overcome(exc, part[0].index, batch)
        return done

    @torch.inference_mode()
    def _through_device(self, frames: Sequence[Frame], batch: int) -> list[Frame]:
        for frame in frames:
            _check_shapes(frame, self._in)
        with self._lock:
            path = self.device_path
            if path is None or path.batch != batch:
                is_static = self._network is None or self._card.is_tiled_exactly or not self._settings.tile
                path = DevicePath(self._samples_of, batch, self._device, is_static=is_static)
                self.device_path = path
        made = path([frame.planes for frame in frames])
        self._count(sum(int(outside) for *_, outside in made))
        return [
            Frame(index=frame.index, planes=tuple(planes))
            for frame, (*planes, _) in zip(frames, made, strict=True)
        ]

    def _count(self, outside: int) -> None:
        with self._lock:
            self.clipped += outside

    def _samples_of(self, samples: list[Tensor]) -> list[Tensor]:
        """All that happens between upload and download: planes, and each frame's samples out of range."""
        depth = self._out.pixel.depth
        results, outside = self._results([as_float(each) for each in samples])
        rounded = [quantise(codes, depth) if codes.is_floating_point() else codes for codes in results]
        return [*(as_samples(codes, depth) for codes in rounded), outside]

    def window(self, frames: Sequence[Frame], before: int, after: int) -> Iterator[Frame]:
        """Upscale a window of one scene with a recurrent network, and give out its frames as they are made.

        The first `before` and the last `after` frames are context: seen, and not given out.
        """
        yield from self._window(
            lambda i: self._network_input(frames[i]),
            range(before, len(frames) - after),
            len(frames),
            frames[0].index,
            lambda i, run: self._pass([frames[i]], run)[0],
        )

    def upscale_rgb(self, rgb: Tensor) -> Tensor:
        """Upscale RGB pictures of this device, (pictures, 3, rows, columns) in float32, to the output's size.

        A network takes values from 0 to 1, a filter takes any. Short memory halves the batch, nothing else.
        """
        out = rgb.new_empty((len(rgb), 3, self._out.height, self._out.width))
        done = 0
        while done < len(rgb):
            batch = self.batch
            part = rgb[done : done + batch]
            try:
                out[done : done + len(part)] = self._rgb_pass(part)
            except (MemoryError, RuntimeError) as exc:
                self._overcome(exc, done, batch)
            else:
                done += len(part)
        return out

    def upscale_rgb_window(self, rgb: Tensor, before: int, after: int) -> Iterator[Tensor]:
        """Upscale RGB pictures as one window of a recurrent network; the pictures come one by one.

        The first `before` and the last `after` pictures are context: seen, and not given out.
        """
        yield from self._window(
            lambda i: self._pad(rgb[i : i + 1].clamp(0, 1)),
            range(before, len(rgb) - after),
            len(rgb),
            0,
            lambda i, run: self._rgb_pass(rgb[i : i + 1], run)[0],
        )

    def _window(
        self,
        make_input: Callable[[int], Tensor],
        core: range,
        count: int,
        first_index: int,
        finish: Callable[[int, Run], Made],
    ) -> Iterator[Made]:
        """Run a recurrent network over a window; `finish` makes what is given out of each frame's crops."""
        assert self._propagation is not None
        crops = [
            (slice(t.y.crop_start, t.y.crop_stop), slice(t.x.crop_start, t.x.crop_stop))
            for t in self._tiles(*self._padded_size(self._in.height, self._in.width))
        ]
        made = self._propagation.run(_RecentPictures(make_input), count, core, crops)
        for i in core:
            try:
                parts = iter(next(made))
                done = finish(i, lambda crop: next(parts))  # noqa: B023 - used at once
            except (MemoryError, RuntimeError) as exc:
                self._overcome(exc, first_index + i)
                raise
            yield done

    def canary(self) -> str:
        """Run one small made-up tile; its sha256. BackendError when the device computes rubbish."""
        side = 64 if self._propagation is not None else 32 * self._card.multiple_of
        ramp = torch.linspace(0, 1, side, device=self._device)
        rgb = torch.stack(
            [ramp.expand(side, side), ramp.expand(side, side).T, ramp.flip(0).expand(side, side)]
        )
        with torch.inference_mode():
            if self._propagation is not None:
                whole = (slice(0, side), slice(0, side))
                made = self._propagation.run(lambda i: rgb.unsqueeze(0), 2, range(2), [whole])
                out = list(made)[1][0]
            elif self._network is None:
                axis = scaling_axis(side, 2 * side)
                out = resample(rgb.unsqueeze(0), axis, axis, cast(Filter, self._card.network))
            else:
                out = self._forward(rgb.unsqueeze(0))
            values = out.float().cpu().numpy()
        if not np.isfinite(values).all() or float(values.std()) < 1e-6:
            fault = "a constant" if np.isfinite(values).all() else "a non-finite"
            raise BackendError(
                f"device {self._settings.device} gave {fault} result for {self._card.name} in "
                f"{self._settings.precision}; the node or the weights are bad (try --precision fp32)"
            )
        return hashlib.sha256(values.tobytes()).hexdigest()

    # One pass ----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _pass(self, frames: Sequence[Frame], run: Run | None = None) -> list[Frame]:
        self._take_threads()
        for frame in frames:
            _check_shapes(frame, self._in)
        planes = [self._upload([frame.planes[i] for frame in frames]) for i in range(len(frames[0].planes))]
        results, outside = self._results(planes, run)
        self._count(int(outside.sum()))
        if self._settings.grain:
            self._add_grain(results, frames)
        depth = self._out.pixel.depth
        rounded = [quantise(codes, depth) if codes.is_floating_point() else codes for codes in results]
        finished = [_download(codes, self._out.pixel.dtype) for codes in rounded]
        return [
            Frame(index=frame.index, planes=tuple(plane[i] for plane in finished))
            for i, frame in enumerate(frames)
        ]

    @torch.inference_mode()
    def _rgb_pass(self, rgb: Tensor, run: Run | None = None) -> Tensor:
        self._take_threads()
        if self._network is None:
            return self._resize(rgb, self._kind)
        inside = rgb.clamp(0, 1)
        excess = rgb - inside
        return self._network_rgb(inside, excess if self._carries(excess) else None, run or self._run)

    def _take_threads(self) -> None:
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)  # each calling thread has its own number

    def _results(self, planes: list[Tensor], run: Run | None = None) -> tuple[list[Tensor], Tensor]:
        """Code values of the output's planes, in float or in samples where they are rounded already; and how
        many samples of each frame lay outside the network's range.
        """
        if self._network is None:
            none = torch.zeros(len(planes[0]), dtype=torch.int64, device=self._device)
            return self._filter(planes, self._kind), none
        made, outside = self._network_planes(planes, run or self._run)
        share = self._settings.blend
        if not share:
            return made, outside
        plain = self._filter(planes, "bicubic")
        return [ours.lerp(filtered, share) for ours, filtered in zip(made, plain, strict=True)], outside

    @property
    def _kind(self) -> Filter:
        return cast(Filter, self._card.network)

    def _filter(self, planes: list[Tensor], kind: Filter) -> list[Tensor]:
        """The filter's picture as code values; through RGB only where the output's kind is another."""
        if is_planewise(self._in, self._out):
            return [self._filter_plane(planes, i, kind) for i in range(self._out.pixel.plane_count)]
        rgb = Coding(self._in).to_rgb(planes)
        return self._encode(self._resize(rgb, kind), planes)

    def _filter_plane(self, planes: list[Tensor], i: int, kind: Filter, target: int | None = None) -> Tensor:
        x, y = plane_axes(self._in, self._out, i)
        gain, offset = code_map(self._in, self._out, i)
        out = resample(planes[i], x, y, kind)
        return out if (gain, offset) == (1.0, 0.0) else out * gain + offset

    @torch.inference_mode()
    def _network_input(self, frame: Frame) -> Tensor:
        """One frame as a recurrent network sees it."""
        _check_shapes(frame, self._in)
        rgb = Coding(self._in).to_rgb([self._upload([plane]) for plane in frame.planes])
        return self._pad(rgb.clamp(0, 1))

    def _network_planes(self, planes: list[Tensor], run: Run) -> tuple[list[Tensor], Tensor]:
        coding = Coding(self._in)
        rgb = coding.to_rgb(planes)
        inside = rgb.clamp(0, 1)
        excess = rgb - inside
        outside = (excess.abs() > coding.half_code).flatten(1).sum(dim=1)
        carried = excess if self._carries(excess) else None
        if self._planes is not None:
            return self._planes(self._phases(inside), inside, carried), outside
        return self._encode(self._network_rgb(inside, carried, run), planes), outside

    def _carries(self, excess: Tensor) -> bool:
        """Whether what lies outside of the network's range is carried around it."""
        if self._settings.clip != "carry":
            return False
        return self._device.type != "cpu" or bool(excess.any())  # on a GPU nothing may wait for a value

    def _network_rgb(self, inside: Tensor, carried: Tensor | None, run: Run) -> Tensor:
        """The network's picture at the output's size."""
        out = self._resize(self._forward(inside, run), None).clamp_(0, 1)
        if carried is not None:
            out += self._resize(carried, "bicubic")
        return out

    def _encode(self, rgb: Tensor, planes: list[Tensor]) -> list[Tensor]:
        """RGB at the output's size as the output's planes, with alpha beside it."""
        codes = Coding(self._out).from_rgb(rgb)
        if self._in.pixel.has_alpha and self._out.pixel.has_alpha:
            codes.append(self._alpha(planes[-1]))
        elif self._out.pixel.has_alpha:
            opaque = 1.0 if self._out.pixel.depth == 32 else 2.0**self._out.pixel.depth - 1
            codes.append(torch.full_like(codes[0], opaque))
        return codes

    def _alpha(self, alpha: Tensor) -> Tensor:
        """Alpha is a mask, not a picture: it is scaled by the bicubic filter, whatever the network."""
        top = [1.0 if p.pixel.depth == 32 else 2.0**p.pixel.depth - 1 for p in (self._in, self._out)]
        return self._resize(alpha, "bicubic").clamp(0, top[0]) * (top[1] / top[0])

    def _resize(self, samples: Tensor, kind: Filter | None) -> Tensor:
        """To the output's size: by `kind`, or where that is None by what suits the direction best."""
        height, width = samples.shape[-2:]
        x, y = scaling_axis(width, self._out.width), scaling_axis(height, self._out.height)
        return resample(samples, x, y, kind or ("lanczos" if self._out.width < width else "bicubic"))

    def _padded_size(self, height: int, width: int) -> tuple[int, int]:
        return pad_length(height, self._card.multiple_of), pad_length(width, self._card.multiple_of)

    def _pad(self, rgb: Tensor) -> Tensor:
        height, width = rgb.shape[-2:]
        full = self._padded_size(height, width)
        if full == (height, width):
            return rgb
        return nn.functional.pad(rgb, (0, full[1] - width, 0, full[0] - height), mode="replicate")

    def _tiles(self, height: int, width: int) -> tuple[Tile, ...]:
        return grid(width, height, self._settings.tile, self._card.overlap, self._card.multiple_of)

    def _forward(self, rgb: Tensor, run: Run | None = None) -> Tensor:
        """The network over tiles, or `run` in its place; fp32 in and out."""
        run = run or self._run
        card, scale = self._card, self._card.scale
        height, width = rgb.shape[-2:]
        rgb = self._pad(rgb)
        full = (rgb.shape[-2], rgb.shape[-1])
        tiles = self._tiles(*full)
        if len(tiles) == 1:
            out = run(rgb)
        elif card.is_tiled_exactly:
            out = rgb.new_empty((*rgb.shape[:-2], full[0] * scale, full[1] * scale))
            for tile in tiles:
                x, y = tile.x, tile.y
                made = run(rgb[..., y.crop_start : y.crop_stop, x.crop_start : x.crop_stop])
                out[..., y.start * scale : y.stop * scale, x.start * scale : x.stop * scale] = made[
                    ...,
                    (y.start - y.crop_start) * scale : (y.stop - y.crop_start) * scale,
                    (x.start - x.crop_start) * scale : (x.stop - x.crop_start) * scale,
                ]
        else:
            out = _blend_tiles(rgb, full, scale, card.overlap // 2, self._settings.tile, card, run)
        return out[..., : height * scale, : width * scale]

    def _phases(self, rgb: Tensor) -> Tensor:
        """The network's last layer over tiles, not yet shuffled: (frames, 3 scale², rows, columns)."""
        assert isinstance(self._network, Compact)
        rgb = rgb.contiguous(memory_format=torch.channels_last)
        tiles = self._tiles(rgb.shape[-2], rgb.shape[-1])
        if len(tiles) == 1:
            return self._network.phases(rgb)
        shape = (len(rgb), 3 * self._card.scale**2, *rgb.shape[-2:])
        dtype = _DTYPES[self._settings.precision]
        out = torch.empty(shape, dtype=dtype, device=rgb.device, memory_format=torch.channels_last)
        for tile in tiles:
            x, y = tile.x, tile.y
            made = self._network.phases(rgb[..., y.crop_start : y.crop_stop, x.crop_start : x.crop_stop])
            out[..., y.start : y.stop, x.start : x.stop] = made[
                ...,
                y.start - y.crop_start : y.stop - y.crop_start,
                x.start - x.crop_start : x.stop - x.crop_start,
            ]
        return out

    def _run(self, rgb: Tensor) -> Tensor:
        assert self._network is not None
        out: Tensor = self._network(rgb.contiguous(memory_format=torch.channels_last))
        return out

    def _add_grain(self, results: list[Tensor], frames: Sequence[Frame]) -> None:
        """The same grain for a frame whatever the batch, worker or device: made on the CPU from its index."""
        pixel = self._out.pixel
        unit = 1 / 255 if pixel.depth == 32 else 2.0 ** (pixel.depth - 8)
        noise = np.stack([_noise(self._settings.seed, f.index, results[0].shape[-2:]) for f in frames])
        grain = torch.from_numpy(noise * np.float32(self._settings.grain * unit)).to(self._device)
        for i in range(3 if pixel.kind == "rgb" else 1):
            results[i] = results[i] + grain

    # Device ------------------------------------------------------------------------------------------------

    def _load(self, card: Card, path: Path | None) -> nn.Module:
        network = weight_files.open_network(card, path)
        network.requires_grad_(False)
        for layer in network.modules():
            layer.register_forward_hook(_tick)
        network.to(device=self._device)
        if card.is_recurrent:
            set_type(network, self._settings.precision)
        else:
            network.to(dtype=_DTYPES[self._settings.precision])
        for parameter in network.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return network

    def _upload(self, planes: Sequence[Plane]) -> Tensor:
        """(frames, rows, columns) in float32; over the bus go the clip's own samples."""
        stacked = np.stack(planes)
        if self._device.type == "cpu":
            return torch.from_numpy(stacked.astype(np.float32, copy=False))
        words = stacked.view(np.int16) if stacked.dtype == np.uint16 else stacked
        return as_float(torch.from_numpy(words).to(self._device))

    def _overcome(self, exc: Exception, index: int, batch: int | None = None) -> None:
        """Make room where memory is short; raise what another try on this device cannot mend."""
        if _is_out_of_memory(exc):
            with self._lock:
                if batch in (None, self.batch):  # otherwise another lane has seen to it
                    self.device_path = None
                    self._shrink_batch(exc)
        elif _is_device_fault(exc):
            raise BackendError(
                f"device {self._settings.device} failed at frame {index}: {_first_line(exc)}"
            ) from exc
        else:
            raise exc

    def _shrink_batch(self, exc: Exception) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if self.batch == 1:
            tile = self._settings.tile or max(self._in.width, self._in.height)
            raise BackendError(
                f"{self._card.name} does not fit into this {self._settings.device}'s memory with one frame "
                f"of {self._in.width}x{self._in.height} in tiles of {tile}: {_first_line(exc)}; "
                f"start the job anew with --tile {max(64, tile // 2 // 32 * 32)}, or use a larger machine"
            ) from exc
        self.batch = max(1, self.batch // 2)
        log.warning("out of memory, batch halved batch=%d model=%s", self.batch, self._card.name)


class _RecentPictures:
    """Pictures by number, made when first asked for; the last few are held."""

    def __init__(self, make: Callable[[int], Tensor], most: int = 8) -> None:
        self._make, self._most = make, most
        self._held: OrderedDict[int, Tensor] = OrderedDict()

    def __call__(self, number: int) -> Tensor:
        if number not in self._held:
            self._held[number] = self._make(number)
            while len(self._held) > self._most:
                self._held.popitem(last=False)
        self._held.move_to_end(number)
        return self._held[number]


def _tick(layer: nn.Module, inputs: object, output: object) -> None:
    tick()  # a whole pass of a large network takes minutes on a CPU


def make_repeatable() -> None:
    """Let cuDNN and cuBLAS choose nothing by measuring, and round nothing."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _is_out_of_memory(exc: Exception) -> bool:
    if isinstance(exc, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    text = str(exc).lower()
    return any(sign in text for sign in ("out of memory", "allocate memory", "alloc_failed"))


def _is_device_fault(exc: Exception) -> bool:
    return any(sign in str(exc) for sign in ("CUDA error", "cuDNN error", "CUBLAS_STATUS", "NVML"))


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0]


def _check_shapes(frame: Frame, shown: Picture) -> None:
    found = tuple(plane.shape for plane in frame.planes)
    if found != shown.plane_shapes():
        raise MediaError(
            f"frame {frame.index} has planes of {found}, the clip is {shown.width}x{shown.height} "
            f"{shown.pixel.name}; a clip whose size changes on the way cannot be upscaled in one piece"
        )


def _blend_tiles(
    rgb: Tensor,
    full: tuple[int, int],
    scale: int,
    reach: int,
    tile: int | None,
    card: Card,
    run: Callable[[Tensor], Tensor],
) -> Tensor:
    """Tiles whose cores fade into each other over half of the overlap; the outer half is context only."""
    height, width = full
    total = rgb.new_zeros((*rgb.shape[:-2], height * scale, width * scale))
    weight = rgb.new_zeros((height * scale, width * scale))
    for each in grid(width, height, tile, card.overlap, card.multiple_of):
        x, y = each.x, each.y
        left, right, across = feather(x, reach, width)
        top, bottom, down = feather(y, reach, height)
        fade = torch.outer(
            rgb.new_tensor(down).repeat_interleave(scale), rgb.new_tensor(across).repeat_interleave(scale)
        )
        made = run(rgb[..., y.crop_start : y.crop_stop, x.crop_start : x.crop_stop])
        rows, columns = slice(top * scale, bottom * scale), slice(left * scale, right * scale)
        total[..., rows, columns] += (
            fade
            * made[
                ...,
                (top - y.crop_start) * scale : (bottom - y.crop_start) * scale,
                (left - x.crop_start) * scale : (right - x.crop_start) * scale,
            ]
        )
        weight[rows, columns] += fade
    return total / weight


def _noise(seed: int, index: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """Nearly normal noise, unit variance, from Philox's raw integers, which numpy never changes."""
    raw = np.random.Philox(key=np.array([seed, index], dtype=np.uint64)).random_raw(shape[0] * shape[1])
    quarters = raw.view(np.uint16).reshape(shape[0], shape[1], 4).astype(np.float32).sum(axis=-1)
    variance = 4 * (65536**2 - 1) / 12
    noise: NDArray[np.float32] = (quarters - np.float32(2 * 65535)) / np.float32(variance**0.5)
    return noise


def _download(codes: Tensor, dtype: np.dtype[np.generic]) -> Plane:
    if dtype == np.float32:
        return codes.cpu().numpy()
    if codes.dtype == torch.int16:
        return codes.cpu().numpy().view(np.uint16)
    if dtype == np.uint8:
        return codes.to(torch.uint8).cpu().numpy()
    return codes.to(torch.int32).cpu().numpy().astype(np.uint16)
