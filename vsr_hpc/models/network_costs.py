"""How far a network sees, what it costs and what it keeps, by its shape alone. Pure; no torch."""

from __future__ import annotations

from collections.abc import Mapping

Parameters = Mapping[str, int | str]

UNBOUNDED = 1 << 20
"""The radius of a network whose output pixels may depend on all of the picture."""

_FILTER_OPERATIONS = {"nearest": 2, "bicubic": 32, "lanczos": 48}


def theoretical_radius(network: str, scale: int, parameters: Parameters) -> int:
    """Input pixels in each direction that an output pixel can depend on."""
    if network == "compact":
        return int(parameters["num_conv"]) + 2
    if network == "span":  # 21 convolutions of three by three stand in a row
        return 21
    if network == "rrdb":
        # conv_first, 15 per block, conv_body at the body's size; two at 2x and two at 4x of it add at most 2.
        return (int(parameters["num_block"]) * 15 + 2 + 2) * unshuffle(scale)
    if network == "module":
        return int(parameters.get("radius", UNBOUNDED))
    return 0 if network in _FILTER_OPERATIONS else UNBOUNDED


def operations_per_pixel(network: str, scale: int, parameters: Parameters) -> int:
    """Multiplications and additions per input pixel."""
    if network == "compact":
        feat = int(parameters["num_feat"])
        inner = 3 * feat + int(parameters["num_conv"]) * feat * feat + feat * 3 * scale * scale
        return 2 * 9 * inner
    if network == "rrdb":
        feat, grow, block = (int(parameters[key]) for key in ("num_feat", "num_grow_ch", "num_block"))
        shrink = unshuffle(scale) ** 2
        dense = sum((feat + i * grow) * grow for i in range(4)) + (feat + 4 * grow) * feat
        body = 3 * shrink * feat + block * 3 * dense + feat * feat
        up = 4 * feat * feat + 16 * (2 * feat * feat + 3 * feat)
        return 2 * 9 * (body + up) // shrink
    if network == "span":
        feat = int(parameters["num_feat"])
        return 2 * (9 * (3 * feat + 19 * feat * feat + feat * 3 * scale * scale) + 4 * feat * feat)
    if network in ("basicvsr", "iconvsr"):
        return _recurrent_operations(network, parameters)
    if network == "swinir":
        feat, window = int(parameters["embed_dim"]), int(parameters["window_size"])
        layers = sum(whole_numbers(parameters["depths"]))
        attention = 4 * feat * feat + 2 * window * window * feat
        inner = layers * (attention + 2 * feat * int(parameters["mlp_ratio"]) * feat) + 9 * 8 * feat * feat
        return 2 * (inner + 9 * 64 * (feat + 64 * scale * scale * 2))
    if network in ("spandrel", "module"):
        return 2 * int(parameters["weights"])  # most weights are used once for each input pixel
    return _FILTER_OPERATIONS.get(network, 0)


def activation_bytes_per_pixel(network: str, scale: int, parameters: Parameters, sample_bytes: int) -> int:
    """A generous estimate of memory per input pixel of one frame in flight, without the weights."""
    ends = 4 * 3 * 6 * (1 + scale * scale)  # fp32 RGB in and out, conversions beside them
    if network == "compact":
        return sample_bytes * (4 * int(parameters["num_feat"]) + 6 * scale * scale) + ends
    if network == "span":  # four results that are kept for the end, four on their way
        return sample_bytes * (12 * int(parameters["num_feat"]) + 6 * scale * scale) + ends
    if network == "rrdb":
        feat, grow = int(parameters["num_feat"]), int(parameters["num_grow_ch"])
        body = 4 * feat + 2 * (feat + 4 * grow)
        return sample_bytes * (body + 16 * 3 * feat) // unshuffle(scale) ** 2 + ends
    if network in (
        "basicvsr",
        "iconvsr",
    ):  # SpyNet in fp32, the trunk, the end at 16 times the size
        return 4 * 128 * 2 + sample_bytes * (6 * int(parameters["num_feat"]) + 16 * 3 * 64) + ends
    if network == "swinir":  # queries, keys and values, and a row of scores for each head and neighbour
        feat, heads = int(parameters["embed_dim"]), max(whole_numbers(parameters["num_heads"]))
        scores = 2 * heads * int(parameters["window_size"]) ** 2
        return sample_bytes * (10 * feat + scores + 3 * 64 * scale * scale) + ends
    if network in ("spandrel", "module"):
        return 16 << 10
    return 64 * (1 + scale * scale)


def kept_bytes_per_pixel(network: str, parameters: Parameters, sample_bytes: int) -> int:
    """What a recurrent network keeps of every frame of a window, per input pixel."""
    if network not in ("basicvsr", "iconvsr"):
        return 0
    keyframes = 1 if network == "iconvsr" else 0  # one in five frames; counted in full
    return sample_bytes * int(parameters["num_feat"]) * (1 + keyframes)


def whole_numbers(text: int | str) -> tuple[int, ...]:
    """`6,6,6` in a card's parameters."""
    return tuple(int(part) for part in str(text).split(","))


def _recurrent_operations(network: str, parameters: Parameters) -> int:
    """Both directions, two flows, and the end at four times the size."""
    feat, block = int(parameters["num_feat"]), int(parameters["num_block"])
    trunk = 9 * ((feat + 3) * feat + 2 * block * feat * feat)
    flow = 49 * (8 * 32 + 32 * 64 + 64 * 32 + 32 * 16 + 16 * 2) * 4 // 3
    end = 9 * (4 * feat * feat + 4 * feat * 256 + 16 * (64 * 64 + 64 * 3))
    edvr = 0
    if network == "iconvsr":  # five or seven frames are aligned for one frame in `keyframe_stride`
        frames = 2 * int(parameters["temporal_padding"]) + 1
        edvr = frames * 9 * 40 * feat * feat // int(parameters["keyframe_stride"]) + 18 * 2 * feat * feat
    return 2 * (2 * trunk + 2 * flow + end + edvr)


def unshuffle(scale: int) -> int:
    return {1: 4, 2: 2}.get(scale, 1)
