"""Windows of recurrent networks: basicsr's own result, bounded memory, tiles, nothing carried over."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.require import require
from vsr_hpc.engine.recurrent import Propagation, set_type
from vsr_hpc.errors import ModelError
from vsr_hpc.models.cards import Card, Weights, all_cards
from vsr_hpc.models.networks import basicsr_module, build
from vsr_hpc.models.warping import deform_conv2d

ROWS, COLUMNS = 36, 44
WHOLE = [(slice(0, ROWS), slice(0, COLUMNS))]
ICON = {"keyframe_stride": 5, "temporal_padding": 2}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class QuickFlow(nn.Module):
    """In SpyNet's place, which is most of the work: motion of up to two pixels out of both pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(6, 2, 5, padding=2)

    def forward(self, here: Tensor, there: Tensor) -> Tensor:
        return self.look(torch.cat((here, there), dim=1)).sin() * 2


def tiny(network: str, *, is_quick: bool = True, **parameters: int) -> tuple[nn.Module, Card]:
    """A recurrent network of a few thousand weights, the same every time."""
    card = Card(
        name="tiny", kind="recurrent", network=network, scale=4,
        parameters={"num_feat": 8, "num_block": 1, **parameters}, weights=Weights(file="tiny.pth"),
        licence="none", overlap=16, multiple_of=4, context=2, psnr_floor=1, description="",
    )  # fmt: skip
    torch.manual_seed(3)
    try:
        net = build(card)
    except ModelError as exc:
        require("basicsr", str(exc))
    if is_quick:
        net.spynet = QuickFlow()  # type: ignore[assignment]
    return net, card


def clip(count: int) -> Tensor:
    torch.manual_seed(5)
    return torch.rand(1, count, 3, ROWS, COLUMNS)


def upscaled(runner: Propagation, x: Tensor, core: range, crops: list[tuple[slice, slice]] = WHOLE) -> Tensor:
    return torch.cat([made[0] for made in runner.run(lambda i: x[:, i], x.shape[1], core, crops)])


@pytest.mark.parametrize(
    ("network", "parameters"),
    [("basicvsr", {}), ("iconvsr", ICON), ("iconvsr", {"keyframe_stride": 3, "temporal_padding": 3})],
)
def test_a_whole_window_is_basicsrs_own_result_to_the_bit(network: str, parameters: dict[str, int]) -> None:
    net, card = tiny(network, **parameters)
    x = clip(7)
    with torch.inference_mode():
        wanted = net(x)[0]
    runner = Propagation(net, card)
    assert torch.equal(upscaled(runner, x, range(7)), wanted)
    assert torch.equal(upscaled(runner, x, range(3, 5)), wanted[3:5])


def test_with_its_own_optical_flow_too() -> None:
    net, card = tiny("basicvsr", is_quick=False)
    x = clip(3)
    with torch.inference_mode():
        wanted = net(x)[0]
    assert torch.equal(upscaled(Propagation(net, card), x, range(3)), wanted)


@pytest.mark.parametrize("network", ["basicvsr", "iconvsr"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_short_scene_is_a_window_too(network: str, count: int) -> None:
    net, card = tiny(network, **(ICON if network == "iconvsr" else {}))
    made = upscaled(Propagation(net, card), clip(count), range(count))
    assert made.shape == (count, 3, 4 * ROWS, 4 * COLUMNS)
    assert made.isfinite().all()


def test_windows_know_nothing_of_each_other() -> None:
    net, card = tiny("basicvsr")
    runner, x = Propagation(net, card), clip(4)
    first = upscaled(runner, x, range(4))
    upscaled(runner, x.flip(1), range(4))
    assert torch.equal(upscaled(runner, x, range(4)), first)


def test_frames_outside_of_the_window_change_nothing_and_those_inside_do() -> None:
    net, card = tiny("basicvsr")
    runner, x = Propagation(net, card), clip(9)
    window = upscaled(runner, x[:, 2:7], range(2, 4))
    changed = x.clone()
    changed[:, 7:] = 0
    assert torch.equal(upscaled(runner, changed[:, 2:7], range(2, 4)), window)
    changed[:, 6] = 0
    assert not torch.equal(upscaled(runner, changed[:, 2:7], range(2, 4)), window)


def test_what_is_kept_is_bounded_by_the_core_not_by_the_context() -> None:
    net, card = tiny("basicvsr")
    runner = Propagation(net, card)
    upscaled(runner, clip(12), range(4, 7))
    assert runner.peak_kept_bytes == 3 * 8 * ROWS * COLUMNS * 4


def test_results_come_out_before_the_window_is_through() -> None:
    net, card = tiny("basicvsr")
    x, asked = clip(6), list[int]()

    def pictures(i: int) -> Tensor:
        asked.append(i)
        return x[:, i]

    results = Propagation(net, card).run(pictures, 6, range(6), WHOLE)
    next(results)
    behind = asked.copy()
    next(results)
    assert asked[len(behind) :] == [1, 0]  # one frame further, and its neighbour; no later one yet


def test_each_crop_has_states_of_its_own() -> None:
    net, card = tiny("basicvsr")
    x = clip(4)
    left, right = (slice(0, ROWS), slice(0, 40)), (slice(0, ROWS), slice(4, COLUMNS))
    both = list(Propagation(net, card).run(lambda i: x[:, i], 4, range(4), [left, right]))
    alone = upscaled(Propagation(net, card), x, range(4), [right])
    assert torch.equal(torch.cat([made[1] for made in both]), alone)


@pytest.mark.parametrize("network", ["basicvsr", "iconvsr"])
def test_half_precision_leaves_the_flow_and_the_picture_in_fp32(network: str) -> None:
    net, card = tiny(network, **(ICON if network == "iconvsr" else {}))
    x = clip(3)
    wanted = upscaled(Propagation(net, card), x, range(3))
    set_type(net, "bf16")
    assert next(net.get_submodule("spynet").parameters()).dtype == torch.float32
    made = upscaled(Propagation(net, card), x, range(3))
    assert made.dtype == torch.float32
    assert (made - wanted).abs().max() < 0.02
    assert not torch.equal(made, wanted)


# Warping ---------------------------------------------------------------------------------------------------


def naive_deform(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor, padding: int) -> Tensor:
    """The definition, sample by sample."""
    _, channels, height, width = x.shape
    out_channels, _, high, wide = weight.shape
    groups = offset.shape[1] // (2 * high * wide)
    rows, columns = offset.shape[-2:]
    out = torch.zeros(1, out_channels, rows, columns, dtype=x.dtype)

    def sample(c: int, y: float, z: float) -> Tensor:
        total = torch.zeros((), dtype=x.dtype)
        for yy in (int(y // 1), int(y // 1) + 1):
            for zz in (int(z // 1), int(z // 1) + 1):
                if 0 <= yy < height and 0 <= zz < width:
                    total += x[0, c, yy, zz] * (1 - abs(y - yy)) * (1 - abs(z - zz))
        return total

    for o in range(out_channels):
        for r in range(rows):
            for q in range(columns):
                for c in range(channels):
                    group = c // (channels // groups)
                    for k in range(high * wide):
                        place = group * high * wide + k
                        y = r - padding + k // wide + float(offset[0, 2 * place, r, q])
                        z = q - padding + k % wide + float(offset[0, 2 * place + 1, r, q])
                        gain = mask[0, place, r, q]
                        out[0, o, r, q] += weight[o, c, k // wide, k % wide] * gain * sample(c, y, z)
    return out


def test_deformable_convolution_is_its_definition() -> None:
    torch.manual_seed(1)
    x, weight = torch.rand(1, 4, 5, 6), torch.rand(2, 4, 3, 3)
    offset, mask = torch.randn(1, 2 * 2 * 9, 5, 6) * 2, torch.rand(1, 2 * 9, 5, 6)
    made = deform_conv2d(x, offset, weight, padding=1, mask=mask)
    assert torch.allclose(made, naive_deform(x, offset, weight, mask, 1), atol=1e-4)


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
def test_our_warp_is_basicsrs_in_fp32_and_keeps_its_place_in_half() -> None:
    tiny("basicvsr")
    arch_util = basicsr_module("basicsr.archs.arch_util")
    theirs: Callable[..., Tensor] = arch_util.basicsr_flow_warp
    torch.manual_seed(2)
    x, flow = torch.rand(1, 3, 20, 600), torch.randn(1, 20, 600, 2) * 4
    wanted = theirs(x, flow)
    assert torch.allclose(arch_util.flow_warp(x, flow), wanted, atol=1e-4)
    half = arch_util.flow_warp(x.bfloat16(), flow)
    assert half.dtype == torch.bfloat16
    assert (half.float() - wanted).abs().max() < 0.01  # basicsr's own would be whole pixels off at column 500


def test_the_lean_import_needs_no_torchvision() -> None:
    tiny("iconvsr", **ICON)
    assert getattr(sys.modules.get("torchvision"), "__version__", "0.0.0") != "0.9.0"


# Cards -----------------------------------------------------------------------------------------------------


def test_published_video_models_state_whence_and_what() -> None:
    cards = [card for card in all_cards() if card.is_recurrent]
    assert {card.network for card in cards} == {"basicvsr", "iconvsr"}
    for card in cards:
        assert card.weights is not None and card.weights.url and card.weights.sha256
        # Their publishers put the beginning of the file's sha256 into its name.
        assert card.weights.sha256.startswith(card.weights.file.rpartition("-")[2].removesuffix(".pth"))
        assert card.context > 0
        assert not card.is_tiled_exactly
        assert "clean" in card.limits
