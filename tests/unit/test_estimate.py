"""Time and cost of a job in each place, and what meets a deadline or a budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runs import planned_run, tiny_job
from vsr_hpc.aws.prices import prices
from vsr_hpc.cli.plan_text import forecast_lines
from vsr_hpc.forecast.forecast import forecast, note
from vsr_hpc.forecast.job_ways import (
    WORKER_COUNTS,
    JobPlace,
    Option,
    Range,
    Work,
    cheapest,
    choose,
    local_option,
    option,
    options,
    places,
    refusal,
    round_option,
)
from vsr_hpc.forecast.worker_speed import FrameWork, Pace
from vsr_hpc.models.cards import find_card
from vsr_hpc.run.spending import read_estimate
from vsr_hpc.wording import duration, money

CARD = find_card("RealESRGAN_x4plus")
TABLE = prices("us-east-1")
PIXELS = 640 * 360
FRAME = FrameWork(
    pixels_in=PIXELS,
    pixels_out=16 * PIXELS,
    operations=float(CARD.operations_per_pixel) * PIXELS,
    is_filter=False,
    filter_cpu_s=0.0,
    decode_cpu_s=0.002,
    encode_cpu_s=0.05,
    check_cpu_s=0.01,
    bytes_out=1e5,
)
FILM = Work(
    card=CARD,
    frame=FRAME,
    chunks=tuple(range(0, 24 * 3600 + 1, 240)),
    shard_s=45.0,
    clip_s=3600.0,
    bytes_in=2_000_000_000,
    bytes_out=8_640_000_000,
    plan_s=30.0,
)
"""An hour of 360p through a heavy network."""
PACE = Pace(seconds_per_frame=2.0, basis="measured", slowest="network", source="", startup_s=5.0)


def place_of(where: str, purchase: str) -> JobPlace:
    return next(each for each in places(False) if (each.where, each.purchase) == (where, purchase))


def made(where: str, purchase: str, workers: int, instance: str = "g5.xlarge", work: Work = FILM) -> Option:
    found = option(place_of(where, purchase), instance, workers, work, TABLE)
    assert found is not None
    return found


def every() -> list[Option]:
    ways = [each for place in places(False) for each in options(place, FILM, TABLE, (), WORKER_COUNTS)]
    return [local_option(FILM, PACE, 1), *ways]


def test_this_machine_takes_its_frames_and_what_surrounds_them() -> None:
    here = local_option(FILM, PACE, 1)
    assert here.seconds.mid == pytest.approx(FILM.frames * 2.0 + 30 + 5 + FILM.finish_s)
    assert here.seconds.low < here.seconds.mid < here.seconds.high
    assert here.usd is None and here.cost.mid == 0


def test_shards_that_do_not_divide_leave_workers_idle() -> None:
    """Five chunks on two workers: one makes three of them."""
    short = replace(FILM, chunks=tuple(range(0, 1201, 240)), shard_s=1.0, plan_s=0.0)
    pace = replace(PACE, seconds_per_frame=0.5, startup_s=0.0)  # of both together
    assert local_option(short, pace, 2).seconds.mid == pytest.approx(3 * 240 * 1.0 + short.finish_s)


def test_more_workers_are_faster_and_cost_their_boots() -> None:
    one, eight = made("slurm", "spot", 1), made("slurm", "spot", 8)
    assert eight.seconds.mid < one.seconds.mid / 6
    assert eight.node_hours > one.node_hours


def test_spot_costs_less_than_on_demand_and_expects_interruptions() -> None:
    spot, demand = made("slurm", "spot", 4), made("slurm", "on-demand", 4)
    assert spot.cost.mid < 0.6 * demand.cost.mid
    assert spot.seconds.mid > demand.seconds.mid
    assert spot.interruptions > 0 == demand.interruptions


def test_the_same_instance_costs_more_from_sagemaker() -> None:
    endpoint, instance = made("sagemaker-async", "sagemaker", 1), made("ec2", "on-demand", 1)
    assert endpoint.cost.mid > instance.cost.mid


def test_a_cluster_is_charged_with_its_head_node() -> None:
    cluster, batch = made("slurm", "on-demand", 1), made("aws-batch", "on-demand", 1)
    assert cluster.cost.mid > batch.cost.mid


def test_workers_are_never_more_than_there_are_shards() -> None:
    short = replace(FILM, chunks=(0, 240, 480))
    assert made("slurm", "spot", 64, work=short).workers == 2


def test_a_filter_goes_to_cpu_instances_and_a_network_to_gpus() -> None:
    assert all(name.startswith("c") for place in places(True) for name in place.types)
    assert all(name.startswith("g") for place in places(False) for name in place.types)
    assert option(place_of("ec2", "spot"), "c7i.2xlarge", 1, FILM, TABLE) is None


def test_sagemaker_refuses_what_its_requests_cannot_hold() -> None:
    place = place_of("sagemaker-async", "sagemaker")
    found = made("sagemaker-async", "sagemaker", 1)
    large = refusal(place, FILM, found, 60.0)
    assert large is not None and "1.9 GiB" in large.reason
    long = refusal(place, replace(FILM, bytes_in=1000), found, 60.0)
    assert long is not None and "3600 s" in long.reason
    small = replace(FILM, bytes_in=1000, clip_s=10.0, chunks=(0, 120, 240))
    assert refusal(place, small, option(place, "g5.xlarge", 1, small, TABLE), 60.0) is None


def test_a_deadline_takes_the_cheapest_that_is_surely_in_time() -> None:
    found = choose(every(), deadline_s=2 * 3600, budget_usd=None)
    assert found.option is not None and found.is_certain
    assert found.option.seconds.high <= 2 * 3600
    in_time = [each for each in every() if each.seconds.high <= 2 * 3600]
    assert found.option.cost.mid == min(each.cost.mid for each in in_time)


def test_a_deadline_that_this_machine_meets_costs_nothing() -> None:
    found = choose(every(), deadline_s=100 * 3600, budget_usd=None)
    assert found.option is not None and found.option.where == "local"


def test_a_budget_takes_the_fastest_within_it() -> None:
    found = choose(every(), deadline_s=None, budget_usd=20.0)
    assert found.option is not None and found.option.cost.high <= 20
    affordable = [each for each in every() if each.cost.high <= 20]
    assert found.option.seconds.mid == min(each.seconds.mid for each in affordable)


def test_time_that_spot_may_not_keep_is_bought_on_demand() -> None:
    """Spot with its losses and on-demand differ at the far end; a deadline between them decides."""
    spot, demand = made("slurm", "spot", 8), made("slurm", "on-demand", 8)
    between = (spot.seconds.high + demand.seconds.high) / 2
    found = choose([spot, demand], deadline_s=between, budget_usd=None)
    assert found.option == demand


def test_what_is_only_met_as_expected_is_taken_and_said() -> None:
    one = made("slurm", "on-demand", 8)
    found = choose([one], deadline_s=(one.seconds.mid + one.seconds.high) / 2, budget_usd=None)
    assert found.option == one and not found.is_certain and "may not" in found.text


def test_where_nothing_fits_the_way_out_is_named() -> None:
    both = choose(every(), deadline_s=3600, budget_usd=0.5)
    assert both.option is None
    assert "cheapest in time" in both.text and "fastest within the budget" in both.text
    soon = choose(every(), deadline_s=10, budget_usd=None)
    assert soon.option is None and "the fastest is" in soon.text
    broke = choose([made("slurm", "spot", 1)], deadline_s=None, budget_usd=0.001)
    assert broke.option is None and "the cheapest of all" in broke.text


def test_nothing_to_choose_from_is_no_choice() -> None:
    assert choose([], deadline_s=10, budget_usd=1).option is None
    assert cheapest([]) is None


@given(
    frames=st.integers(2, 500_000),
    chunk=st.integers(2, 500),
    workers=st.integers(1, 300),
    pixels=st.integers(64 * 64, 4096 * 2160),
)
@settings(max_examples=60, deadline=None)
def test_every_figure_is_ordered_and_positive(frames: int, chunk: int, workers: int, pixels: int) -> None:
    borders = (*range(0, frames, chunk), frames)
    work = replace(FILM, chunks=borders, frame=replace(FRAME, pixels_in=pixels, pixels_out=16 * pixels))
    for place in places(False):
        found = option(place, "g4dn.xlarge", workers, work, TABLE)
        assert found is not None and 1 <= found.workers <= len(borders) - 1
        for values in (found.seconds, found.cost):
            assert 0 < values.low <= values.mid <= values.high
        assert round_option(found).seconds.mid == pytest.approx(found.seconds.mid, rel=0.01)


def test_lengths_and_money_for_people() -> None:
    assert [duration(each) for each in (0.4, 42, 420, 7500)] == ["0 s", "42 s", "7 min", "2 h 05"]
    assert [money(each) for each in (0, 0.001, 0.5, 12.345, 1234)] == [
        "$0.00", "<$0.01", "$0.50", "$12.35", "$1,234",
    ]  # fmt: skip


def test_ranges_add_and_scale() -> None:
    total = Range(low=1, mid=2, high=3) + Range(low=1, mid=1, high=1).scaled(2)
    assert total == Range(low=3, mid=4, high=5)


# A cluster of one's own ------------------------------------------------------------------------------------


def _install_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch, sinfo: str) -> None:
    """Commands that answer as Slurm does; tests/slurm asks a real one."""
    for name, text in (("sbatch", ""), ("sinfo", sinfo)):
        (folder / name).write_text(f"#!/bin/sh\nprintf '{text}'\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize("asks", [False, True])
def test_a_cluster_of_ones_own_has_no_dollars_unless_asked_and_names_its_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asks: bool
) -> None:
    _install_slurm(tmp_path, monkeypatch, "cpu|4|(null)\\nnight|8|gpu:l4:2\\n")
    job = tiny_job(tmp_path, model="vsr-video-x2", slurm={"partitions": ["night"]}, on="slurm")
    found = forecast(job, shows_aws=asks)
    text = "\n".join(forecast_lines(found))
    assert "this cluster, night (l4)" in text
    assert ("$" in text, "AWS Batch" in text) == (asks, asks)


def test_a_gpu_of_unknown_speed_is_said_and_not_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install_slurm(tmp_path, monkeypatch, "night|8|gpu:mi300x:8\\n")
    found = forecast(tiny_job(tmp_path, model="vsr-video-x2", on="slurm"))
    text = "\n".join(forecast_lines(found))
    assert "this cluster, night (mi300x)" in text and "no speed of this GPU is known" in text


def test_the_estimate_of_a_run_on_ones_own_cluster_has_no_price(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tiny_job(tmp_path, model="vsr-video-x2", on="slurm")
    run = planned_run(job)
    _install_slurm(tmp_path, monkeypatch, "night|8|gpu:l4:2\\n")
    note(run, job)
    estimate = read_estimate(run)
    assert estimate is not None and estimate.usd is None and "l4" in estimate.way
