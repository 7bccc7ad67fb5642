"""Where a run should lie: the storage part of the trade-off document, and what its prices make of it."""

from __future__ import annotations

from dataclasses import replace

from vsr_hpc.aws.prices import prices
from vsr_hpc.forecast.storage_ways import GB, Footprint, StorageOffer, storage_offers

TABLE = prices("us-east-1")
FILM = Footprint(
    kept_bytes=40 * GB, moved_bytes=60 * GB, requests=3000, workers=8, bytes_per_s_per_worker=5e6
)


def offer(run: Footprint, storage: str) -> StorageOffer:
    return next(each for each in storage_offers(run, TABLE) if each.storage == storage)


def test_s3_is_the_advice_for_a_run_on_many_nodes() -> None:
    assert storage_offers(FILM, TABLE)[0].storage == "s3"


def test_s3_is_the_advice_where_less_than_a_cent_decides() -> None:
    tiny = replace(FILM, kept_bytes=1_000_000, moved_bytes=1_000_000, requests=30)
    assert storage_offers(tiny, TABLE)[0].storage == "s3"


def test_prices_per_gigabyte_are_the_documents() -> None:
    assert offer(FILM, "s3").usd_per_month == 40 * 0.023
    assert offer(FILM, "efs").usd_per_month == 40 * 0.30
    assert TABLE.per_gb_month("ebs_gp2") == 0.10


def test_efs_costs_thirteen_times_as_much_as_s3_to_keep() -> None:
    assert 12 < offer(FILM, "efs").usd_per_month / offer(FILM, "s3").usd_per_month < 14
    assert "13 times" in offer(FILM, "efs").reason


def test_fsx_is_the_dearest_and_begins_at_1200_gib() -> None:
    assert max(storage_offers(FILM, TABLE), key=lambda each: each.usd_per_month).storage == "fsx"
    small = replace(FILM, kept_bytes=1 * GB)
    assert offer(small, "fsx").usd_per_month == offer(FILM, "fsx").usd_per_month
    assert offer(replace(FILM, kept_bytes=2000 * GB), "fsx").usd_per_month > 300


def test_ebs_serves_one_instance_alone() -> None:
    assert not offer(FILM, "ebs").fits
    assert offer(replace(FILM, workers=1), "ebs").fits


def test_where_workers_read_faster_than_s3_gives_another_is_advised() -> None:
    frames = replace(FILM, bytes_per_s_per_worker=600e6)
    assert not offer(frames, "s3").fits
    assert storage_offers(frames, TABLE)[0].storage in ("efs", "fsx")
