"""Which way of serving fits: a test for each rule of docs/costs.md."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vsr_hpc.aws.prices import prices
from vsr_hpc.forecast.serving_ways import LABELS, Offer, Placement, Rates, Shape, Traffic, Way, place

RATES = Rates.of(prices("us-east-1"), "g5.xlarge")
KB, MB, GB = 1_000, 1_000_000, 1_000_000_000

PICTURES = Traffic(
    latency_s=1.0,
    payload_bytes=500 * KB,
    answer_bytes=2 * MB,
    requests_per_day=50_000,
    shape="steady",
    gpu_s=0.06,
    cpu_s=2.0,
)
"""Stills that somebody waits for, all day."""


def offer(found: Placement, way: Way) -> Offer:
    return next(each for each in found.offers if each.way == way)


def advised(traffic: Traffic) -> Way | None:
    return place(traffic, RATES).advice


# Deployment options; trade-offs §2.3: SageMaker or EC2 with Docker


def test_a_small_gpu_costs_what_the_document_says_on_sagemaker_and_on_ec2() -> None:
    table = prices("us-east-1")
    assert table.per_hour("ml.g4dn.xlarge", "on-demand") == pytest.approx(0.736, abs=0.002)
    assert table.per_hour("g4dn.xlarge", "on-demand") == 0.526


def test_sagemaker_is_dearer_than_the_same_ec2_instance() -> None:
    found = place(PICTURES, RATES)
    own, managed = offer(found, "ec2").usd_per_month, offer(found, "real-time").usd_per_month
    assert own is not None and managed is not None and own < managed


def test_management_is_chosen_where_operations_matter_more_than_cost() -> None:
    assert advised(replace(PICTURES, priority="managed")) == "real-time"


def test_ec2_is_chosen_where_cost_has_priority() -> None:
    assert advised(replace(PICTURES, priority="cost")) == "ec2"


def test_ec2_is_chosen_for_full_control() -> None:
    assert advised(replace(PICTURES, priority="control")) == "ec2"


def test_sagemaker_serves_production_traffic_in_real_time() -> None:
    assert advised(PICTURES) == "real-time"
    assert advised(replace(PICTURES, shape="variable")) == "real-time"


def test_machines_of_ones_own_on_spot_do_bulk_work() -> None:
    bulk = replace(PICTURES, latency_s=12 * 3600, shape="scheduled", requests_per_day=20_000)
    found = place(bulk, RATES)
    assert found.advice in ("ec2", "slurm")
    assert "Spot" in offer(found, found.advice).reason


def test_no_spot_while_callers_wait_since_it_may_be_taken() -> None:
    found = place(PICTURES, RATES)
    assert "on demand" in offer(found, "ec2").reason
    patient = place(replace(PICTURES, latency_s=3600.0), RATES)
    assert "Spot" in offer(patient, "ec2").reason


# Orchestration options §1: Slurm for full control, managed batches to scale by themselves


def test_slurm_is_for_jobs_and_for_who_wants_control_of_bulk_work() -> None:
    bulk = replace(PICTURES, latency_s=12 * 3600, shape="scheduled")
    assert offer(place(bulk, RATES), "slurm").fits
    assert not offer(place(PICTURES, RATES), "slurm").fits
    assert advised(replace(bulk, priority="control")) in ("slurm", "ec2")


def test_managed_bulk_work_goes_to_batch_transform() -> None:
    bulk = replace(PICTURES, latency_s=12 * 3600, shape="scheduled", priority="managed")
    assert advised(bulk) == "batch-transform"


# Deployment strategies: the comparison matrix


def test_real_time_takes_no_payload_over_six_megabytes() -> None:
    found = place(replace(PICTURES, payload_bytes=7 * MB), RATES)
    assert not offer(found, "real-time").fits
    assert "7.0 MB" in offer(found, "real-time").reason and "6 MiB" in offer(found, "real-time").reason


def test_an_answer_over_the_limit_counts_as_much_as_a_payload() -> None:
    assert not offer(place(replace(PICTURES, answer_bytes=8 * MB), RATES), "real-time").fits


def test_real_time_answers_within_a_tenth_of_a_second() -> None:
    assert offer(place(replace(PICTURES, latency_s=0.1), RATES), "real-time").fits


def test_asynchronous_answers_take_seconds_to_minutes() -> None:
    assert not offer(place(replace(PICTURES, latency_s=1.0), RATES), "async").fits
    assert offer(place(replace(PICTURES, latency_s=60.0), RATES), "async").fits


def test_batch_transform_takes_minutes_to_hours_and_suits_periodic_bulk() -> None:
    periodic = replace(PICTURES, shape="scheduled", latency_s=4 * 3600)
    assert offer(place(periodic, RATES), "batch-transform").fits
    assert not offer(place(replace(periodic, latency_s=60.0), RATES), "batch-transform").fits
    assert not offer(place(replace(periodic, shape="steady"), RATES), "batch-transform").fits


def test_batch_transform_is_paid_for_only_while_it_runs() -> None:
    periodic = replace(PICTURES, shape="scheduled", latency_s=4 * 3600, requests_per_day=1000)
    found = place(periodic, RATES)
    cost = offer(found, "batch-transform").usd_per_month
    assert cost is not None and cost < RATES.sagemaker_hour * RATES.month_hours / 10


def test_asynchronous_endpoints_scale_to_zero_and_real_time_ones_do_not() -> None:
    rare = replace(PICTURES, requests_per_day=2, shape="intermittent", latency_s=1800.0)
    found = place(rare, RATES)
    asleep, awake = offer(found, "async"), offer(found, "real-time")
    assert asleep.instances < 0.1 and awake.instances == 1
    assert (asleep.usd_per_month or 0) < (awake.usd_per_month or 0) / 5


# Study guide: the table of inference types, the worked example, the checkpoint questions


def test_serverless_is_for_intermittent_traffic_with_small_payloads() -> None:
    small = replace(PICTURES, shape="intermittent", requests_per_day=200, latency_s=60.0, answer_bytes=1 * MB)
    assert advised(small) == "serverless"
    assert not offer(place(replace(small, payload_bytes=5 * MB), RATES), "serverless").fits


def test_serverless_is_not_for_constant_answers_within_ten_milliseconds() -> None:
    fast = replace(PICTURES, latency_s=0.01, gpu_s=0.005, cpu_s=0.005)
    refused = offer(place(fast, RATES), "serverless")
    assert not refused.fits and "cold start" in refused.reason


def test_serverless_has_no_gpu_and_little_memory() -> None:
    heavy = replace(PICTURES, cpu_s=90.0, latency_s=600.0)
    assert "no GPU" in offer(place(heavy, RATES), "serverless").reason
    large = replace(PICTURES, memory_gib=8.0, latency_s=600.0)
    assert "GiB" in offer(place(large, RATES), "serverless").reason


def test_large_images_that_take_minutes_and_come_now_and_then_go_to_asynchronous_inference() -> None:
    satellite = Traffic(
        latency_s=3600.0, payload_bytes=500 * MB, answer_bytes=900 * MB, requests_per_day=20,
        shape="intermittent", gpu_s=300.0, cpu_s=9000.0,
    )  # fmt: skip
    found = place(satellite, RATES)
    assert found.advice == "async"
    assert "scales to zero" in offer(found, "async").reason
    assert not offer(found, "real-time").fits and not offer(found, "serverless").fits


def test_asynchronous_payloads_end_at_a_gigabyte_and_work_at_an_hour() -> None:
    base = replace(PICTURES, latency_s=86400.0)
    assert not offer(place(replace(base, payload_bytes=2 * GB), RATES), "async").fits
    assert not offer(place(replace(base, gpu_s=4000.0), RATES), "async").fits


def test_real_time_work_ends_at_sixty_seconds() -> None:
    assert not offer(place(replace(PICTURES, gpu_s=61.0, latency_s=300.0), RATES), "real-time").fits


def test_persistent_traffic_keeps_real_time_cheaper_than_serverless() -> None:
    busy = replace(PICTURES, cpu_s=2.0, latency_s=30.0, requests_per_day=2_000_000, gpu_s=0.02)
    found = place(busy, RATES)
    serverless, real_time = offer(found, "serverless"), offer(found, "real-time")
    assert serverless.fits and real_time.fits
    assert (real_time.usd_per_month or 0) < (serverless.usd_per_month or 0)


# What no document says, but a user relies on


@pytest.mark.parametrize("shape", ["steady", "variable", "intermittent", "scheduled"])
def test_every_way_is_weighed_with_a_reason(shape: Shape) -> None:
    found = place(replace(PICTURES, shape=shape), RATES)
    assert {each.way for each in found.offers} == set(LABELS)
    assert all(each.reason for each in found.offers)
    assert all((each.usd_per_month is not None) for each in found.offers if each.fits)


def test_fitting_ways_come_first_and_cheapest_first() -> None:
    offers = place(replace(PICTURES, latency_s=3600.0), RATES).offers
    fits = [each.fits for each in offers]
    assert fits == sorted(fits, reverse=True)
    costs = [each.usd_per_month or 0 for each in offers if each.fits]
    assert costs == sorted(costs)


def test_a_budget_rules_out_what_is_over_it_and_says_what_the_least_is() -> None:
    found = place(replace(PICTURES, budget_usd=100.0), RATES)
    assert found.advice is None
    assert "budget" in found.reason and "EC2 with Docker" in found.reason


def test_where_nothing_is_fast_enough_the_advice_says_so() -> None:
    found = place(replace(PICTURES, latency_s=0.01), RATES)
    assert found.advice is None and "allow more time" in found.reason


def test_more_requests_never_cost_less() -> None:
    for shape in ("steady", "variable", "intermittent", "scheduled"):
        for way in LABELS:
            few, many = (
                offer(
                    place(replace(PICTURES, shape=shape, latency_s=1800.0, requests_per_day=count), RATES),
                    way,
                ).usd_per_month
                for count in (100, 1_000_000)
            )
            assert few is None or many is None or few <= many, (shape, way)
