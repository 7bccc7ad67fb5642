"""Which networks are in memory, whose they are, and that each is there once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recurrent import tiny_model
from tests.serving.samples import network_file, rgb
from vsr_hpc.engine.device_facts import device_facts
from vsr_hpc.errors import JobError
from vsr_hpc.serving.limits import Limits
from vsr_hpc.serving.loaded_models import Bench, Model, Shelf, model_named, models_in
from vsr_hpc.serving.refusals import Refusal
from vsr_hpc.serving.request import Options
from vsr_hpc.serving.stills import Still, bench_for, raw_planes

CPU = device_facts("cpu")


def bench(model: Model, width: int = 64) -> Bench:
    shape = rgb(width, 48)
    frame = raw_planes(bytes(width * 48 * 3), _described(width), Limits()).frame
    still = Still(content="planes", picture=shape, frame=frame, meta=None)
    return bench_for(
        model, Options.model_validate({}), still, "planes", device=CPU, batch=None, limits=Limits()
    )


def _described(width: int) -> dict[str, str]:
    return {"width": str(width), "height": "48", "pixel": "gbrp"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        network_file(tmp_path / name / "net.safetensors", num_conv=1 if name == "a" else 2)
    return tmp_path


def test_pictures_of_all_shapes_share_one_network(root: Path) -> None:
    (model,) = models_in(root / "a")
    shelf = Shelf((model,), threads=1, device=CPU)
    one, other = shelf.upscaler(bench(model, 64)), shelf.upscaler(bench(model, 32))
    assert one is not other
    assert one.network is not None and one.network is other.network
    assert shelf.resident_count == 1


def test_a_model_let_go_is_not_kept_though_somebody_still_asks_for_it(root: Path) -> None:
    shelf = Shelf((), threads=1, device=CPU, root=root)
    model = shelf.load("x", str(root / "a"))
    shelf.upscaler(bench(model))
    shelf.unload("x")
    late = shelf.upscaler(bench(model))
    assert late.network is not None
    assert shelf.resident_count == 0


def test_another_model_under_the_same_name_gets_its_own_network(root: Path) -> None:
    shelf = Shelf((), threads=1, device=CPU, root=root)
    old = shelf.load("x", str(root / "a"))
    shelf.unload("x")
    new = shelf.load("x", str(root / "b"))
    newer, late = shelf.upscaler(bench(new)), shelf.upscaler(bench(old))
    assert newer.network is not late.network
    assert shelf.upscaler(bench(new, 32)).network is newer.network


def test_a_model_that_is_not_there_is_named_with_those_that_are(root: Path) -> None:
    shelf = Shelf(models_in(root / "a"), threads=1, device=CPU)
    with pytest.raises(Refusal, match="'y' is not served here; served: net"):
        shelf.find("y")
    assert shelf.find(None).name == "net"


def test_a_video_network_is_not_served_and_the_way_out_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    card = tiny_model(tmp_path)
    with pytest.raises(JobError, match=r"tiny-vsr is a video network.*vsr upscale"):
        model_named(card.name)
    with pytest.raises(JobError, match="video network"):
        models_in(tmp_path)
