"""Frames of several requests on one device: joined where they can be, apart where one is bad."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.serving.samples import rgb
from vsr_hpc.engine.device_facts import device_facts
from vsr_hpc.engine.settings import UpscaleRequest, resolve_settings
from vsr_hpc.errors import BackendError
from vsr_hpc.media.picture import Frame
from vsr_hpc.models.cards import find_card
from vsr_hpc.serving.batcher import Batcher
from vsr_hpc.serving.loaded_models import Bench, Model


def bench(batch: int = 4, name: str = "one") -> Bench:
    card, shown = find_card("nearest"), rgb()
    settings = replace(resolve_settings(UpscaleRequest(), card, shown, device_facts("cpu")), batch=batch)
    return Bench(Model(name=name, card=card, weights=None), shown, shown, settings)


def frame(index: int) -> Frame:
    return Frame(index=index, planes=(np.zeros((1, 1), np.uint8),))


class Device:
    """Stands in for the engine: notes passes, can be held, fails on frame 13."""

    def __init__(self) -> None:
        self.passes: list[tuple[str, list[int]]] = []
        self.free = threading.Event()
        self.free.set()
        self.began = threading.Event()

    def upscaler(self, bench: Bench) -> Any:
        def run(frames: Sequence[Frame]) -> list[Frame]:
            self.began.set()
            assert self.free.wait(10)
            self.passes.append((bench.model.name, [each.index for each in frames]))
            if any(each.index == 13 for each in frames):
                raise BackendError("bad frame")
            return [replace(each) for each in frames]

        return run


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def batcher(device: Device) -> Iterator[Batcher]:
    batcher = Batcher(device.upscaler, wait_s=0.2)
    yield batcher
    device.free.set()
    batcher.close()


def held(device: Device, batcher: Batcher) -> None:
    """The device is inside a pass, so that what comes now has to queue."""
    device.free.clear()
    batcher.submit(bench(1, "hold"), [frame(0)])
    assert device.began.wait(5)


def test_a_full_batch_does_not_wait(device: Device, batcher: Batcher) -> None:
    held(device, batcher)
    waiting = [batcher.submit(bench(), [frame(i)]) for i in range(1, 7)]
    device.free.set()
    assert [each.result(5)[0].index for each in waiting] == [1, 2, 3, 4, 5, 6]
    assert device.passes[1:] == [("one", [1, 2, 3, 4]), ("one", [5, 6])]


def test_shapes_are_not_mixed(device: Device, batcher: Batcher) -> None:
    held(device, batcher)
    waiting = [batcher.submit(bench(name=name), [frame(i)]) for i, name in enumerate("abab")]
    device.free.set()
    for each in waiting:
        each.result(5)
    assert sorted(device.passes[1:]) == [("a", [0, 2]), ("b", [1, 3])]


def test_one_bad_request_fails_alone(device: Device, batcher: Batcher) -> None:
    held(device, batcher)
    waiting = [batcher.submit(bench(), [frame(i)]) for i in (1, 13, 2)]
    device.free.set()
    assert waiting[0].result(5)[0].index == 1
    assert waiting[2].result(5)[0].index == 2
    with pytest.raises(BackendError, match="bad frame"):
        waiting[1].result(5)


def test_a_request_that_gave_up_is_not_computed(device: Device, batcher: Batcher) -> None:
    held(device, batcher)
    gone, stays = batcher.submit(bench(), [frame(1)]), batcher.submit(bench(), [frame(2)])
    gone.cancel()
    device.free.set()
    stays.result(5)
    assert device.passes[1:] == [("one", [2])]


def test_nobody_waits_for_company_that_is_not_coming(device: Device) -> None:
    batcher = Batcher(device.upscaler, wait_s=3600, on_the_way=lambda: 0)
    assert batcher.submit(bench(), [frame(1)]).result(90)[0].index == 1
    batcher.close()


def test_company_that_is_coming_is_waited_for(device: Device) -> None:
    batcher = Batcher(device.upscaler, wait_s=3600, on_the_way=lambda: 1)
    waiting = [batcher.submit(bench(), [frame(i)]) for i in range(4)]
    assert [each.result(90)[0].index for each in waiting] == [0, 1, 2, 3]
    batcher.close()
    assert device.passes == [("one", [0, 1, 2, 3])]


def test_several_faults_in_a_row_make_the_device_ill_and_a_good_pass_well(batcher: Batcher) -> None:
    for _ in range(3):
        with pytest.raises(BackendError):
            batcher.submit(bench(1), [frame(13)]).result(5)
    assert batcher.is_ill
    batcher.submit(bench(1), [frame(1)]).result(5)
    assert not batcher.is_ill


def test_what_waits_at_the_end_is_told(device: Device, batcher: Batcher) -> None:
    held(device, batcher)
    waiting = batcher.submit(bench(), [frame(1)])
    closing = threading.Thread(target=batcher.close)
    closing.start()
    closing.join(3)
    device.free.set()
    with pytest.raises(BackendError, match="ending"):
        waiting.result(5)
    with pytest.raises(BackendError, match="ending"):
        batcher.submit(bench(), [frame(2)])
