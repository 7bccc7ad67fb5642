"""Prices: the package's table, SageMaker's premium, and what AWS said when it was asked."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from vsr_hpc.aws.price_list import refresh, spot_prices
from vsr_hpc.aws.prices import Refreshed, hourly_price, prices, refreshed_path, save
from vsr_hpc.errors import BackendError, JobError


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_an_hour_of_one_instance_bought_in_each_way() -> None:
    assert hourly_price("g4dn.xlarge", "on-demand", "us-east-1") == 0.526
    assert hourly_price("g4dn.xlarge", "spot", "us-east-1") == pytest.approx(0.526 * 0.42)
    assert hourly_price("g4dn.xlarge", "sagemaker", "us-east-1") == pytest.approx(0.736, abs=0.001)
    assert hourly_price("ml.g4dn.xlarge", "on-demand", "us-east-1") == pytest.approx(0.736, abs=0.001)


def test_another_region_costs_its_factor_and_an_unknown_one_says_that_it_is_guessed() -> None:
    base = hourly_price("g5.xlarge", "on-demand", "us-east-1")
    assert base is not None
    assert hourly_price("g5.xlarge", "on-demand", "eu-central-1") == pytest.approx(base * 1.25)
    assert not prices("eu-central-1").is_guess
    assert prices("xx-north-9").is_guess and "guessed" in prices("xx-north-9").text()


def test_an_unknown_type_has_no_price() -> None:
    assert hourly_price("z9.huge", "on-demand", "us-east-1") is None


def test_what_aws_said_wins_and_what_it_left_out_follows_from_it() -> None:
    refreshed = Refreshed(
        region="us-east-1", date="2026-12-01", on_demand={"g5.xlarge": 1.0}, spot={}, sagemaker={}
    )
    assert save(refreshed) == refreshed_path("us-east-1")
    assert hourly_price("g5.xlarge", "on-demand", "us-east-1") == 1.0
    assert hourly_price("g5.xlarge", "spot", "us-east-1") == pytest.approx(0.45)
    assert hourly_price("ml.g5.xlarge", "on-demand", "us-east-1") == pytest.approx(1.4)
    assert hourly_price("g4dn.xlarge", "on-demand", "us-east-1") == 0.526
    assert prices("us-east-1").text() == "prices of 2026-12-01 from AWS, us-east-1"
    assert hourly_price("g5.xlarge", "on-demand", "us-west-2") == 1.006  # only that region was asked


def test_a_damaged_answer_is_left_out_aloud(caplog: pytest.LogCaptureFixture) -> None:
    path = refreshed_path("us-east-1")
    path.parent.mkdir(parents=True)
    path.write_text('{"version": 1}')
    assert hourly_price("g4dn.xlarge", "on-demand", "us-east-1") == 0.526
    assert str(path) in caplog.text


@pytest.mark.parametrize("region", ["../../etc", "us-east-1/..", "", "nowhere"])
def test_a_region_that_is_none_names_no_file(region: str) -> None:
    with pytest.raises(JobError, match="us-east-1"):
        refreshed_path(region)
    assert prices(region).is_guess  # nothing of the user's is read for it


def _product(usagetype: str, usd: str, unit: str = "Hrs") -> str:
    dimension = {"unit": unit, "pricePerUnit": {"USD": usd}}
    term = {"priceDimensions": {"a": dimension}}
    return json.dumps(
        {"product": {"attributes": {"usagetype": usagetype}}, "terms": {"OnDemand": {"t": term}}}
    )


class _Aws:
    """boto3 clients whose every request is checked and answered by botocore's own stubber."""

    def __init__(self) -> None:
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        self.pricing = boto3.client("pricing", region_name="us-east-1", **keys)
        self.ec2 = boto3.client("ec2", region_name="eu-west-1", **keys)
        self.pricing_stub, self.ec2_stub = Stubber(self.pricing), Stubber(self.ec2)
        self.pricing_stub.activate()
        self.ec2_stub.activate()

    def client(self, service: str, region: str) -> Any:
        assert (service, region) in {("pricing", "us-east-1"), ("ec2", "eu-west-1")}
        return self.pricing if service == "pricing" else self.ec2


def _spot(name: str, zone: str, usd: str, hour: int) -> dict[str, Any]:
    return {
        "InstanceType": name,
        "AvailabilityZone": zone,
        "SpotPrice": usd,
        "Timestamp": datetime.datetime(2026, 11, 21, hour, tzinfo=datetime.UTC),
    }


def test_aws_is_asked_for_on_demand_sagemaker_and_spot() -> None:
    aws = _Aws()
    aws.pricing_stub.add_response(
        "get_products", {"PriceList": [_product("EU-BoxUsage:g5.xlarge", "1.123"), _product("x", "0.0")]}
    )
    hosted = [_product("EU-Train:ml.g5.xlarge", "1.1"), _product("EU-Host:ml.g5.xlarge", "1.57")]
    aws.pricing_stub.add_response("get_products", {"PriceList": hosted})
    history = [_spot("g5.xlarge", "a", "0.5", 1), _spot("g5.xlarge", "a", "0.6", 2)]
    history += [_spot("g5.xlarge", "b", "0.4", 1)]
    aws.ec2_stub.add_response("describe_spot_price_history", {"SpotPriceHistory": history})
    found = refresh("eu-west-1", ["g5.xlarge"], make_client=aws.client)
    assert found.on_demand == {"g5.xlarge": 1.123}
    assert found.sagemaker == {"g5.xlarge": 1.57}
    assert found.spot == {"g5.xlarge": 0.5}  # the median of 0.6 and 0.4; the older price in a is gone


def test_a_region_that_sells_nothing_is_refused() -> None:
    aws = _Aws()
    for _ in range(2):
        aws.pricing_stub.add_response("get_products", {"PriceList": []})
    aws.ec2_stub.add_response("describe_spot_price_history", {"SpotPriceHistory": []})
    with pytest.raises(JobError, match="is it a region"):
        refresh("eu-west-1", ["g5.xlarge"], make_client=aws.client)


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("AccessDeniedException", JobError, "pricing:GetProducts"),
        ("ExpiredTokenException", JobError, "renew"),
        ("ThrottlingException", BackendError, "ThrottlingException"),
    ],
)
def test_a_refusal_says_whose_turn_it_is(code: str, kind: type[Exception], words: str) -> None:
    aws = _Aws()
    aws.pricing_stub.add_client_error("get_products", code)
    with pytest.raises(kind, match=words):
        refresh("eu-west-1", ["g5.xlarge"], make_client=aws.client)


def test_no_credentials_is_the_users_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", raising=False)
    monkeypatch.delenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", raising=False)
    with pytest.raises(JobError, match="credentials are needed"):
        refresh("us-east-1", ["g5.xlarge"])


def test_no_history_of_a_type_leaves_it_out() -> None:
    aws = _Aws()
    aws.ec2_stub.add_response("describe_spot_price_history", {"SpotPriceHistory": []})
    assert spot_prices(aws.ec2, ["p5.48xlarge"]) == {}
