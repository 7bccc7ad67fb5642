"""How fast a worker would be on another machine, and how honestly that is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.test_profiles import profile
from vsr_hpc.aws.instances import find_instance
from vsr_hpc.forecast.worker_speed import (
    DENSE_FP16_TFLOPS,
    NETWORK_EFFICIENCY,
    FrameWork,
    effective_cores,
    pace_on,
)
from vsr_hpc.models.cards import find_card

CARD = find_card("realesr-animevideov3")
PIXELS = 320 * 180
NETWORK = FrameWork(
    pixels_in=PIXELS,
    pixels_out=16 * PIXELS,
    operations=float(CARD.operations_per_pixel) * PIXELS,
    is_filter=False,
    filter_cpu_s=0.0,
    decode_cpu_s=0.0001,
    encode_cpu_s=0.0005,
    check_cpu_s=0.0001,
    bytes_out=1e5,
)


def test_without_a_profile_the_published_rate_is_scaled_and_said_to_be() -> None:
    pace = pace_on(find_instance("g5.xlarge"), NETWORK, CARD, ())
    wanted = NETWORK.operations / (DENSE_FP16_TFLOPS["A10G"] * 1e12 * NETWORK_EFFICIENCY)
    assert pace.seconds_per_frame == pytest.approx(wanted, rel=0.1)
    assert pace.basis == "scaled" and "assumed" in pace.source


def test_a_profile_of_that_gpu_is_taken_and_scaled_by_pixels() -> None:
    known = profile(kind="cuda", device="NVIDIA A10G", network_fps=50.0, width=160, height=90)
    pace = pace_on(find_instance("g5.xlarge"), NETWORK, CARD, (known,))
    assert pace.basis == "profile" and "A10G" in pace.source
    assert pace.seconds_per_frame == pytest.approx(4 / 50.0, rel=0.1)


def test_a_profile_of_another_gpu_gives_its_share_of_the_published_rate() -> None:
    rate = 0.4 * DENSE_FP16_TFLOPS["H200"] * 1e12
    known = profile(
        kind="cuda", device="NVIDIA H200", operations_per_frame=NETWORK.operations,
        network_fps=rate / NETWORK.operations,
    )  # fmt: skip
    pace = pace_on(find_instance("g5.xlarge"), NETWORK, CARD, (known,))
    assert pace.basis == "scaled" and "40%" in pace.source and "H200" in pace.source
    wanted = NETWORK.operations / (0.4 * DENSE_FP16_TFLOPS["A10G"] * 1e12)
    assert pace.seconds_per_frame == pytest.approx(wanted, rel=0.15)


def test_a_profile_of_another_model_or_of_a_cpu_counts_for_nothing() -> None:
    others = (
        profile(kind="cuda", device="NVIDIA A10G", network_fps=50.0, card_hash="0" * 16),
        profile(kind="cpu", device="AMD EPYC", network_fps=50.0),
    )
    instance = find_instance("g5.xlarge")
    assert pace_on(instance, NETWORK, CARD, others) == pace_on(instance, NETWORK, CARD, ())


def test_l4_is_not_taken_for_l40s() -> None:
    known = profile(kind="cuda", device="NVIDIA L40S", network_fps=500.0)
    assert pace_on(find_instance("g6.xlarge"), NETWORK, CARD, (known,)).basis == "scaled"


def test_codecs_set_the_pace_where_they_are_slower_and_more_cores_help() -> None:
    heavy = replace(NETWORK, encode_cpu_s=1.0)
    small, large = (pace_on(find_instance(name), heavy, CARD, ()) for name in ("g5.xlarge", "g5.2xlarge"))
    assert small.slowest == large.slowest == "codecs"
    assert large.seconds_per_frame < small.seconds_per_frame
    assert small.basis == "scaled" and "cores" in small.source


def test_a_filter_is_counted_on_the_cores_of_the_machine() -> None:
    work = replace(NETWORK, is_filter=True, operations=0.0, filter_cpu_s=0.02)
    card = find_card("bicubic")
    small, large = (pace_on(find_instance(name), work, card, ()) for name in ("c7i.2xlarge", "c7i.4xlarge"))
    assert large.seconds_per_frame < small.seconds_per_frame
    assert small.slowest == "filter"


def test_two_threads_of_a_core_are_less_than_two_cores() -> None:
    assert effective_cores(find_instance("c7i.2xlarge")) == pytest.approx(4.8)
    assert effective_cores(find_instance("c7g.2xlarge")) == 8


def test_a_scaled_pace_has_the_widest_range_and_a_measured_one_the_narrowest() -> None:
    from vsr_hpc.forecast.worker_speed import SPREAD

    widths = {basis: high / low for basis, (low, high) in SPREAD.items()}
    assert widths["measured"] < widths["profile"] < widths["scaled"]
