"""Our networks are BasicSR's, to the last bit, and run in two precisions."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from tests.require import require
from vsr_hpc.errors import ModelError
from vsr_hpc.models.cards import find_card
from vsr_hpc.models.networks import Compact, Rrdb, basicsr_module, build, expected_shapes


def reference(name: str) -> types.ModuleType:
    try:
        return basicsr_module(f"basicsr.archs.{name}")
    except ModelError as exc:
        require("basicsr", str(exc))


@pytest.mark.parametrize("act_type", ["prelu", "relu", "leakyrelu"])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_compact_is_basicsrs_to_the_bit(scale: int, act_type: str) -> None:
    torch.manual_seed(scale)
    sizes = {"num_feat": 8, "num_conv": 3, "act_type": act_type}
    theirs = reference("srvgg_arch").SRVGGNetCompact(upscale=scale, **sizes).eval()
    ours = Compact(scale=scale, num_feat=8, num_conv=3, act_type=act_type).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 3, 24, 32)
    with torch.inference_mode():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_rrdb_is_basicsrs_to_the_bit(scale: int) -> None:
    torch.manual_seed(scale)
    sizes = {"num_feat": 8, "num_block": 2, "num_grow_ch": 4}
    theirs = reference("rrdbnet_arch").RRDBNet(3, 3, scale=scale, **sizes).eval()
    ours = Rrdb(scale=scale, **sizes).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 3, 24, 32)
    with torch.inference_mode():
        assert torch.equal(ours(x), theirs(x))


def test_the_lean_import_leaves_no_stubs_behind() -> None:
    reference("rrdbnet_arch")
    torchvision = sys.modules.get("torchvision")
    assert torchvision is None or getattr(torchvision, "__version__", "0.0.0") != "0.0.0"


def test_bf16_keeps_the_input_in_fp32() -> None:
    torch.manual_seed(1)
    network = Compact(num_feat=8, num_conv=2, scale=2).eval()
    for parameter in network.parameters():
        parameter.data.mul_(0.0)  # only the skip is left
    x = torch.rand(1, 3, 8, 8)
    with torch.inference_mode():
        out = network.to(torch.bfloat16)(x)
    assert out.dtype == torch.float32
    assert torch.equal(out, x.repeat_interleave(2, -1).repeat_interleave(2, -2))


def test_the_published_models_have_the_published_number_of_weights() -> None:
    counts = {
        "realesr-animevideov3": 621_424,
        "RealESRGAN_x4plus": 16_697_987,
        "RealESRGAN_x2plus": 16_703_171,
    }
    for name, count in counts.items():
        shapes = expected_shapes(find_card(name))
        assert sum(torch.Size(shape).numel() for shape in shapes.values()) == count


def test_a_filter_is_no_network() -> None:
    with pytest.raises(ModelError, match="filter"):
        build(find_card("bicubic"))


def test_parameters_that_do_not_fit_are_a_model_error() -> None:
    card = find_card("realesr-animevideov3").model_copy(update={"parameters": (("num_block", 3),)})
    with pytest.raises(ModelError, match="num_block"):
        build(card)
