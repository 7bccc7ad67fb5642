"""Rollouts in simulated time with requests to real servers: canary, linear, alarm, back; and the gate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest

from tests.moto_server import Moto
from tests.serving.endpoint_files import HURRY, TOPIC, apply, broken_server, pass_time, spec
from tests.serving.samples import still
from tests.serving.served import Served
from vsr_hpc.aws.calls import Clients
from vsr_hpc.aws.endpoint import endpoint as endpoints
from vsr_hpc.aws.endpoint import inventory as accounts
from vsr_hpc.aws.endpoint import promotion, roles
from vsr_hpc.bench import served_quality
from vsr_hpc.errors import BackendError, JobError, VerifyError

CANARY = {"traffic": "canary", "percent": 10, "bake_s": 300}
ALARMS = {"errors_percent": 5, "minutes": 3, "topic": TOPIC}


def live(url: str, **more: Any) -> Any:
    return spec(url, **{"alarms": ALARMS, "rollout": CANARY, **more})


@pytest.fixture(scope="module")
def broken() -> Iterator[str]:
    with broken_server() as url:
        yield url


@pytest.mark.parametrize(
    ("rollout", "stages"),
    [
        (CANARY, ["0.1", "1"]),
        ({"traffic": "linear", "percent": 50, "bake_s": 120}, ["0.5", "1"]),
        ({"traffic": "all-at-once", "bake_s": 120}, ["1"]),
    ],
    ids=["canary", "linear", "all-at-once"],
)
def test_traffic_moves_by_the_steps_of_the_file(
    account: Moto, server: Served, rollout: Any, stages: list[str]
) -> None:
    apply(live(server.url, rollout=rollout))
    changed = live(server.url, rollout=rollout, environment={"LOCAL_URL": server.url, "VSR_SERVE_QUEUE": "8"})
    said: list[str] = []
    steps = apply(changed, must_exist=True, tell=said.append)
    update = next(each for each in steps if each.action == "update")
    assert str(rollout["bake_s"]) in update.detail and "back on an alarm" in update.detail
    baking = [each.rpartition(" ")[2] for each in said if "baking" in each]
    assert list(dict.fromkeys(baking)) == stages
    assert endpoints.plan(changed) == ()
    assert endpoints.status("film")["doing"] == "InService"


def test_a_canary_that_fails_trips_the_alarm_and_traffic_goes_back(
    account: Moto, server: Served, broken: str
) -> None:
    apply(live(server.url))
    before, said = endpoints.status("film")["configuration"], []
    with pytest.raises(BackendError, match=r"rolled back, film-\w+ still serves; .*vsr/film/all/errors"):
        apply(live(broken), tell=said.append)
    assert endpoints.status("film")["configuration"] == before
    assert not [each for each in said if each.endswith("moved 1")], "nine tenths never saw it"
    told = pass_time(account)["told"]
    assert [TOPIC, "vsr/film/all/errors", "ALARM"] in told
    pass_time(account, 5)
    assert [each.action for each in apply(live(server.url))] == ["remove", "remove"]


def test_without_steps_everybody_sees_the_fault_until_it_goes_back(
    account: Moto, server: Served, broken: str
) -> None:
    apply(live(server.url))
    with pytest.raises(BackendError, match="rolled back"):
        apply(live(broken, rollout={"traffic": "all-at-once", "bake_s": 300}))
    assert endpoints.status("film")["status"] == "InService"


def test_instances_that_scaled_stay_as_many_through_an_update(account: Moto, server: Served) -> None:
    scaled = {"autoscale": {"least": 1, "most": 5}}
    apply(live(server.url, **scaled))
    pass_time(account, instances={"film": {"all": 4}})
    apply(live(server.url, environment={"LOCAL_URL": server.url, "A": "b"}, **scaled))
    assert pass_time(account)["instances"] == {"film": {"all": 4}}


def test_traffic_cannot_move_in_steps_to_other_variants(account: Moto, server: Served) -> None:
    apply(live(server.url))
    with pytest.raises(JobError, match="the variants all; traffic moves canary only between the same"):
        endpoints.plan(live(server.url, variants=[{"name": "blue"}]))


def test_an_endpoint_that_somebody_changes_meanwhile_is_waited_for(account: Moto, server: Served) -> None:
    apply(live(server.url))
    other = live(server.url, environment={"LOCAL_URL": server.url, "A": "b"})
    steps = [each for each in endpoints.plan(other) if each.action in ("create", "update")]
    clients = Clients()
    for step in steps:
        for call in step.calls:
            clients.make(call)
    assert endpoints.status("film")["status"] == "Updating"
    with pytest.raises(BackendError, match="wait until it is InService"):
        endpoints.scale("film", count=2)
    said: list[str] = []
    assert {each.action for each in apply(other, tell=said.append)} == {"remove"}
    assert [each for each in said if each.startswith("Updating")]


# The gate ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("truth")
    for seed in range(3):
        (folder / f"{seed}.png").write_bytes(still("png", 96, 80, seed))
    return folder


def gated(url: str, **gate: Any) -> Any:
    thresholds = {"staging": "film-staging", "psnr_db": 20, "ssim": 0.3, "p95_ms": 60_000, **gate}
    return spec(url, promote=thresholds)


def quiet(line: str) -> None:
    return


def test_a_good_candidate_is_measured_registered_and_rolled_out(
    account: Moto, server: Served, truths: Path
) -> None:
    apply(spec(server.url, name="film-staging"))
    film = gated(server.url)
    said: list[str] = []
    measured = served_quality.measure(film, truths, said.append)
    assert (measured.pictures, len(said)) == (3, 3)
    assert 20 < measured.psnr_db < 60 and 0.3 < measured.ssim < 1 and 0 < measured.p50_ms <= measured.p95_ms
    planned = [str(each) for each in promotion.plan(film, measured)]
    assert planned[0] == "create registry vsr-film"
    steps = promotion.promote(film, measured, quiet, patience=HURRY)
    assert [str(each) for each in steps] == planned
    (approved,) = endpoints.status("film")["approved"]
    found = account.client("sagemaker").describe_model_package(ModelPackageName=approved)
    assert found["ModelApprovalStatus"] == "Approved"
    assert float(found["CustomerMetadataProperties"]["psnr-db"]) == measured.psnr_db
    assert found["InferenceSpecification"]["Containers"][0]["Image"] == film.image
    assert promotion.promote(film, measured, quiet, patience=HURRY) == ()
    endpoints.delete("film", patience=HURRY)
    groups = account.client("sagemaker").list_model_package_groups()
    assert groups["ModelPackageGroupSummaryList"] == []


def test_a_candidate_below_a_threshold_is_refused_with_its_numbers_and_nothing_changes(
    account: Moto, server: Served, truths: Path
) -> None:
    apply(spec(server.url, name="film-staging"))
    film = gated(server.url, psnr_db=70, ssim=0.999, p95_ms=0.001)
    measured = served_quality.measure(film, truths, quiet)
    pattern = r"PSNR \d+\.\d+ dB, at least 70 wanted; SSIM .* wanted; p95 \d+ ms, at most 0.001 wanted"
    for touch in (promotion.check, lambda *one: promotion.promote(*one, quiet)):
        with pytest.raises(VerifyError, match=pattern):
            touch(film, measured)
    assert VerifyError.exit_code == 5
    with pytest.raises(JobError, match="no endpoint"):
        endpoints.status("film")


def test_pairs_of_pictures_are_taken_as_they_are(
    account: Moto, server: Served, truths: Path, tmp_path: Path
) -> None:
    apply(spec(server.url, name="film-staging"))
    for name, size in (("low", (48, 40)), ("high", (96, 80))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(still("png", *size))
    film = gated(server.url, pictures=1)
    assert served_quality.measure(film, tmp_path, quiet).pictures == 1
    (tmp_path / "low" / "a.png").write_bytes(still("png", 32, 32))
    with pytest.raises(VerifyError, match="the answer is 64x64, the truth 96x80"):
        served_quality.measure(film, tmp_path, quiet)


def test_only_what_staging_serves_can_be_promoted(account: Moto, server: Served, truths: Path) -> None:
    film = gated(server.url)
    with pytest.raises(JobError, match="no endpoint film-staging"):
        served_quality.measure(film, truths, quiet)
    apply(spec(server.url, name="film-staging", model_data="s3://films/other.tar.gz"))
    with pytest.raises(JobError, match=r"model_data s3://films/other.tar.gz there, None here"):
        served_quality.measure(film, truths, quiet)
    with pytest.raises(JobError, match=r"3 pictures; promote.pictures asks for 9"):
        apply(spec(server.url, name="film-staging"))
        served_quality.measure(gated(server.url, pictures=9), truths, quiet)


def test_a_version_that_production_turns_back_is_rejected_again(
    account: Moto, server: Served, truths: Path, broken: str
) -> None:
    apply(spec(server.url, name="film-staging"))
    apply(live(server.url))
    film = live(broken, promote=gated(server.url).promote.model_dump())
    measured = served_quality.measure(film, truths, quiet)
    with pytest.raises(BackendError, match="rolled back"):
        promotion.promote(film, measured, quiet, patience=HURRY)
    (version,) = [each for each in accounts.packages(Clients(), "film") if ":model-package/" in each]
    found = account.client("sagemaker").describe_model_package(ModelPackageName=version)
    assert found["ModelApprovalStatus"] == "Rejected"
    assert "rolled back" in found["ApprovalDescription"]


def test_whoever_deploys_needs_no_action_beyond_the_printed_policy(
    account: Moto, server: Served, truths: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that a whole life makes is one that `vsr endpoint role --for you` allows."""
    made: set[str] = set()
    original = botocore.client.BaseClient._make_api_call

    def noting(self: Any, operation: str, parameters: Any) -> Any:
        model = self.meta.service_model
        is_renamed = model.service_name in ("application-autoscaling", "cloudwatch")
        service = model.service_name if is_renamed else model.signing_name
        made.add(f"{service}:{operation}")
        return original(self, operation, parameters)

    film = live(
        server.url, autoscale={"most": 3}, promote=gated(server.url).promote.model_dump(),
        transform={
            "input": "s3://films/in/", "output": "s3://films/done/", "instance_type": "ml.g5.xlarge",
            "schedule": {"at": "rate(1 day)", "role": spec().role},
        },
    )  # fmt: skip
    apply(spec(server.url, name="film-staging"))
    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", noting)
    promotion.promote(film, served_quality.measure(film, truths, quiet), quiet, patience=HURRY)
    apply(film.model_copy(update={"environment": {"LOCAL_URL": server.url, "A": "b"}}))
    endpoints.scale("film", most=4)
    endpoints.status("film")
    endpoints.delete("film", patience=HURRY)
    allowed = {action for each in roles.document(film, "you")["Statement"] for action in each["Action"]}
    assert made <= allowed, sorted(made - allowed)
    assert len(made) > 25
