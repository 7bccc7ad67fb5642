"""Batches through an accelerator: pinned memory, three streams, one CUDA graph. The host does no arithmetic.

What travels is the clip's own samples, in and out. Uploads, computing and downloads run on streams of their
own; callers from several threads (lanes) keep all three busy. Everything between upload and download is one
graph for one shape, captured at the first batch: a short batch is filled up with copies of its last frame, so
kernels, and with them bytes, never depend on how many frames came. The same code runs on a CPU, where streams
and graphs are nothing; tests use that.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vsr_hpc.media.picture import Plane

log = logging.getLogger(__name__)


Compute = Callable[[list[Tensor]], list[Tensor]]
"""From planes of samples on the device, (frames, rows, columns) each, to such planes."""
_WARM_UP = 3


class DevicePath:
    """One shape of batch on one device; safe to call from several threads."""

    is_graph: bool
    """Whether the work is replayed from a graph."""

    def __init__(self, compute: Compute, batch: int, device: torch.device, *, is_static: bool = True) -> None:
        """`is_static`: nothing in `compute` depends on values or moves data from the host."""
        self._compute, self.batch, self._device = compute, batch, device
        self._is_cuda = device.type == "cuda"
        self._lock = threading.Lock()
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._graph: Any = None
        self.is_graph = is_static and self._is_cuda
        self._up, self._work, self._down = (self._stream() for _ in range(3))

    @torch.inference_mode()
    def __call__(self, frames: Sequence[tuple[Plane, ...]]) -> list[tuple[Plane, ...]]:
        """At most `batch` frames' planes; their results."""
        host = [self._pack([frame[i] for frame in frames]) for i in range(len(frames[0]))]
        with self._lock:
            made, done = self._enqueue(host)
        if done is not None:
            done.synchronize()
        return [tuple(_numpy(plane[i]) for plane in made) for i in range(len(frames))]

    def _pack(self, planes: Sequence[Plane]) -> Tensor:
        """One plane of every frame in memory that the device reads by itself, filled up to the batch."""
        first = planes[0]
        kind = torch.int16 if first.dtype == np.uint16 else torch.from_numpy(first[:0].copy()).dtype
        packed = torch.empty((self.batch, *first.shape), dtype=kind, pin_memory=self._is_cuda)
        rows = packed.numpy().view(first.dtype)
        for i in range(self.batch):
            rows[i] = planes[min(i, len(planes) - 1)]
        return packed

    def _enqueue(self, host: list[Tensor]) -> tuple[list[Tensor], Any]:
        """Order everything for one batch; results are there once the event has come."""
        with self._on(self._up):
            sent = [each.to(self._device, non_blocking=True) for each in host]
            uploaded = self._event(self._up)
        with self._on(self._work):
            self._wait(self._work, uploaded)
            if not self._inputs:
                self._inputs = [torch.empty_like(each) for each in sent]
            for static, each in zip(self._inputs, sent, strict=True):
                static.copy_(each)
                self._keep(each, self._work)
            made = [each.clone() for each in self._run()]
            computed = self._event(self._work)
        if not self._is_cuda:
            return made, None
        with self._on(self._down):
            self._wait(self._down, computed)
            fetched = []
            for each in made:
                target = torch.empty(each.shape, dtype=each.dtype, pin_memory=True)
                target.copy_(each, non_blocking=True)
                self._keep(each, self._down)
                fetched.append(target)
            return fetched, self._event(self._down)

    def _run(self) -> list[Tensor]:
        if not self.is_graph:
            return self._compute(self._inputs)
        if self._graph is None:
            self._capture()
        if self._graph is None:
            return self._compute(self._inputs)
        self._graph.replay()
        return self._outputs

    def _capture(self) -> None:
        """Record the work once; where that fails, and memory is not short, go on without and say so."""
        for _ in range(_WARM_UP):
            self._compute(self._inputs)
        torch.cuda.synchronize(self._device)
        graph: Any = torch.cuda.CUDAGraph()
        try:
            # Other lanes may allocate or wait meanwhile, which only this mode allows.
            with torch.cuda.graph(graph, stream=self._work, capture_error_mode="thread_local"):
                self._outputs = self._compute(self._inputs)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as exc:
            self.is_graph = False
            log.warning("no CUDA graph, each kernel is launched anew error=%s", str(exc).splitlines()[0])
            return
        self._graph = graph

    # Streams, which are nothing on a CPU

    def _stream(self) -> Any:
        stream: Any = torch.cuda.Stream
        return stream(self._device) if self._is_cuda else None

    def _on(self, stream: Any) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.stream(stream) if self._is_cuda else contextlib.nullcontext()

    def _event(self, stream: Any) -> Any:
        return stream.record_event() if self._is_cuda else None

    def _wait(self, stream: Any, event: Any) -> None:
        if self._is_cuda:
            stream.wait_event(event)

    def _keep(self, tensor: Tensor, stream: Any) -> None:
        """The tensor's memory is not given to others before the stream is through with it."""
        if self._is_cuda:
            tensor.record_stream(stream)


def as_float(samples: Tensor) -> Tensor:
    """Samples as they travel, in float32: 16-bit ones come in int16 with the same bits."""
    if samples.dtype == torch.int16:
        return (samples.int() & 0xFFFF).float()
    return samples.float()


def as_samples(codes: Tensor, depth: int) -> Tensor:
    """Rounded codes as they travel."""
    if depth == 32 or not codes.is_floating_point():
        return codes
    return codes.to(torch.uint8) if depth == 8 else codes.to(torch.int32).to(torch.int16)


def _numpy(samples: Tensor) -> Plane:
    plane: Plane = samples.numpy()
    return plane.view(np.uint16) if samples.dtype == torch.int16 else plane
