"""SwinIR by basicsr, and networks that spandrel builds: recognised, tiled rightly, never run by loading."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.clips import numbered_frame, picture
from tests.require import require
from vsr_hpc.engine.device_facts import device_facts
from vsr_hpc.engine.geometry import output_picture
from vsr_hpc.engine.settings import UpscaleRequest, resolve_settings
from vsr_hpc.engine.upscaler import Upscaler
from vsr_hpc.errors import ModelError
from vsr_hpc.models.cards import Card, Weights, card_of_file, find_card
from vsr_hpc.models.networks import build
from vsr_hpc.models.recognition import UnknownNetworkError
from vsr_hpc.models.weights import import_weights, load, open_network


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def swin(scale: int = 2, upsampler: str = "pixelshuffle") -> tuple[nn.Module, Card]:
    parameters = {
        "depths": "2,2", "num_heads": "2,2", "embed_dim": 12, "img_size": 16, "mlp_ratio": 2,
        "resi_connection": "1conv", "upsampler": upsampler, "window_size": 8,
    }  # fmt: skip
    card = Card(
        name="swin", kind="image", network="swinir", scale=scale, parameters=parameters,
        weights=Weights(file="swin.pth"), licence="none", overlap=32, multiple_of=8, psnr_floor=1,
        description="",
    )  # fmt: skip
    torch.manual_seed(4)
    try:
        return build(card), card
    except ModelError as exc:
        require("basicsr", str(exc))


def saved(network: nn.Module, path: Path) -> Path:
    torch.save({"params_ema": network.state_dict()}, path)
    return path


@pytest.mark.parametrize(
    ("scale", "upsampler"), [(2, "pixelshuffle"), (3, "pixelshuffledirect"), (4, "nearest+conv")]
)
def test_swinir_is_recognised_by_its_keys_and_loads(tmp_path: Path, scale: int, upsampler: str) -> None:
    network, card = swin(scale, upsampler)
    path = saved(network, tmp_path / "swin.pth")
    found = card_of_file(path)
    assert (found.network, found.scale, found.multiple_of) == ("swinir", scale, 8)
    assert found.parameters == card.parameters
    assert not found.is_tiled_exactly
    x = torch.rand(1, 3, 16, 24)
    with torch.inference_mode():
        assert torch.equal(open_network(found, path)(x), network(x))


def test_swinir_pads_to_its_windows_and_tiles_agree_with_the_whole_within_a_code(tmp_path: Path) -> None:
    network, _ = swin()
    path = saved(network, tmp_path / "swin.pth")
    card = card_of_file(path)
    shape, frame = picture((118, 60)), numbered_frame(3, picture((118, 60)))
    made = []
    for tile in (0, 32):
        request = UpscaleRequest(tile=tile, precision="fp32")
        settings = resolve_settings(request, card, shape, device_facts("cpu"))
        out = output_picture(shape, settings.width, settings.height, shape.pixel)
        made.append(Upscaler(card, path, shape, out, settings)([frame])[0])
    assert made[0].planes[0].shape == (120, 236)
    differences = np.abs(made[0].planes[0].astype(int) - made[1].planes[0].astype(int))
    assert differences.max() <= 1


def test_the_published_swinir_cards_fit_their_network() -> None:
    try:
        network = build(find_card("SwinIR-M_x4_real"))
    except ModelError as exc:
        require("basicsr", str(exc))
    assert sum(each.numel() for each in network.parameters()) == 11_715_559


# spandrel --------------------------------------------------------------------------------------------------


def need_spandrel() -> Any:
    try:
        from vsr_hpc.models.spandrel_networks import _spandrel

        return _spandrel()
    except ModelError as exc:
        require("spandrel", str(exc))


def span(folder: Path, suffix: str = ".pth") -> tuple[Path, Any]:
    """A SPAN network, which we have no definition of."""
    need_spandrel()
    from spandrel.architectures.SPAN import SPAN

    torch.manual_seed(5)
    network = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2).eval()
    path = folder / f"span{suffix}"
    if suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    else:
        torch.save({"params": network.state_dict()}, path)
    return path, network


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_network_that_only_spandrel_knows_is_imported_and_runs(tmp_path: Path, suffix: str) -> None:
    path, network = span(tmp_path, suffix)
    card = import_weights(path, "mine")
    assert find_card("mine") == card
    assert (card.network, card.scale, dict(card.parameters)["architecture"]) == ("spandrel", 2, "SPAN")
    assert "fp32" in card.precisions and "bf16" not in card.precisions
    assert card.overlap >= 32 and not card.is_tiled_exactly
    x = torch.rand(1, 3, 16, 20)
    with torch.inference_mode():
        wanted = network(x).clamp(0, 1)
        assert torch.allclose(open_network(card, path)(x), wanted, atol=1e-6)
    shape = picture((64, 48))
    settings = resolve_settings(UpscaleRequest(), card, shape, device_facts("cpu"))
    out = output_picture(shape, settings.width, settings.height, shape.pixel)
    upscaler = Upscaler(card, path, shape, out, settings)
    assert upscaler.canary()
    assert upscaler([numbered_frame(1, shape)])[0].planes[0].shape == (96, 128)


def test_a_file_given_as_a_model_names_the_import(tmp_path: Path) -> None:
    path, _ = span(tmp_path)
    with pytest.raises(UnknownNetworkError, match=r"vsr models import"):
        find_card(path)


def test_a_network_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    need_spandrel()
    path = tmp_path / "odd.pth"
    torch.save({"a.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(ModelError, match="spandrel does not know this network either"):
        import_weights(path)


def test_a_network_that_upscales_no_rgb_pictures_is_refused(tmp_path: Path) -> None:
    need_spandrel()
    from spandrel.architectures.SPAN import SPAN

    path = tmp_path / "grey.pth"
    torch.save(SPAN(num_in_ch=3, num_out_ch=1, feature_channels=8, upscale=2).state_dict(), path)
    with pytest.raises(ModelError, match="output channels; only RGB to RGB"):
        import_weights(path)


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_malicious_pickle_is_refused_with_exit_code_4_and_nothing_runs(
    tmp_path: Path, is_zip: bool
) -> None:
    path, network = span(tmp_path)
    trace = tmp_path / "ran"
    content = {"params": network.state_dict(), "extra": Evil(trace)}
    if is_zip:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ModelError, match=r"refused|not a PyTorch file") as caught:
        import_weights(path)
    assert caught.value.exit_code == 4
    assert not trace.exists()


def test_spandrel_loads_where_torchvision_is_absent_or_broken_and_no_stand_in_stays() -> None:
    need_spandrel()
    code = (
        "import sys\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torchvision':\n"
        "            raise RuntimeError('operator torchvision::nms does not exist')\n"
        "sys.meta_path.insert(0, Broken())\n"
        "from vsr_hpc.models.spandrel_networks import _spandrel\n"
        "print(len(_spandrel().MAIN_REGISTRY.architectures()) > 40, 'torchvision' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_where_spandrel_is_missing_the_import_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = span(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnknownNetworkError, match="pip install --no-deps spandrel einops"):
        import_weights(path)


def test_swinir_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    network, card = swin()
    path = saved(network, tmp_path / "swin.pth")
    other = card.model_copy(update={"parameters": tuple({**dict(card.parameters), "embed_dim": 16}.items())})
    with pytest.raises(ModelError, match="does not fit"):
        load(path, other)
