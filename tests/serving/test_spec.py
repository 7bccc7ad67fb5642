"""The endpoint file: examples load, faults are told together, prices and policies follow from it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.serving.endpoint_files import ROLE, document, spec
from vsr_hpc.aws import calls
from vsr_hpc.aws.calls import check, findings
from vsr_hpc.aws.endpoint import bill as costs
from vsr_hpc.aws.endpoint import changes as diff
from vsr_hpc.aws.endpoint import endpoint as endpoints
from vsr_hpc.aws.endpoint import roles, transform
from vsr_hpc.aws.endpoint.requests import alarm_requests, config_request, model_request
from vsr_hpc.aws.endpoint.spec_file import load_spec, parse_spec
from vsr_hpc.cli import endpoint as cli_endpoint
from vsr_hpc.errors import JobError

EXAMPLES = sorted((Path(__file__).parents[2] / "jobs").glob("endpoint-*.yaml"))
REGION = "eu-central-1"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_loads_and_every_call_it_makes_is_one_that_aws_takes(path: Path) -> None:
    wanted = load_spec(path)
    steps = diff.steps(wanted, diff.EndpointInventory())
    assert steps
    check(steps, path.name)
    assert costs.bill(wanted, REGION).total.high_usd
    if wanted.transform:
        job = transform.job_request(wanted, transform.job_name(wanted.name))
        assert not list(
            findings(calls.Call(service="sagemaker", operation="create_transform_job", parameters=job))
        )


def test_a_file_is_refused_with_all_its_findings_of_shape_and_of_sense(tmp_path: Path) -> None:
    path = tmp_path / "endpoint.yaml"
    path.write_text(
        "name: a b\nimage: x\nrole: me\ninstance_type: g5.xlarge\ninstances: 3\n"
        "async: {output: s3://films/out}\ncapture: {to: 's3://films/seen', percents: 3}\n"
        "autoscale: {least: 5, most: 2}\n"
    )
    with pytest.raises(JobError, match="problems") as caught:
        load_spec(path)
    for text in (
        "name:",
        "role:",
        "instance_type:",
        "instances: there is no such setting",
        "capture.percents",
        "least=5 is more than most=2",
    ):
        assert text in str(caught.value)
    fits = document(autoscale={"least": 5, "most": 2}, instances=3)
    with pytest.raises(JobError, match=r"(?s)instances: there is no such.*least=5 is more than most=2"):
        parse_spec(fits, "x")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"autoscale": {"least": 0, "most": 2}}, "only an asynchronous endpoint can sleep"),
        ({"serverless": {}}, "instance_type: serverless endpoints cannot have it"),
        ({"instance_type": None}, "name one"),
        ({"multi_model": "s3://films/m"}, "Triton alone"),
        ({"variants": [{"name": "a"}, {"name": "a"}]}, "a is there twice"),
        ({"variants": [{"name": "a", "weight": 0}]}, "nobody would be asked"),
        ({"variants": [{"name": "a"}], "async": {"output": "s3://films/o"}}, "name no variant"),
        ({"rollout": {"traffic": "canary"}}, "nothing would turn it back"),
        ({"rollout": {"traffic": "linear", "percent": 5}, "alarms": {}}, "a linear step is 10 to 50"),
        ({"rollout": {"traffic": "linear", "bake_s": 3600}, "alarms": {}}, "do not fit into the 8 hours"),
        ({"kms_key": "arn:aws:kms:eu-central-1:123456789012:key/a"}, "encrypts its own disks in hardware"),
        ({"promote": {"staging": "film", "psnr_db": 30, "p95_ms": 9}}, "this endpoint itself"),
        ({"alarms": {"p99_ms": None, "errors_percent": None}}, "neither p99_ms nor errors_percent"),
        (
            {"transform": {"input": "s3://f11/a", "output": "s3://f11/a/b", "instance_type": "ml.g5.xlarge"}},
            "take the answers for questions",
        ),
        (
            {
                "transform": {
                    "input": "s3://f11/a", "output": "s3://f11/b", "instance_type": "ml.g5.xlarge",
                    "payload_mb": 60,
                }
            },
            "take side_by_side: 1",
        ),
    ],
)  # fmt: skip
def test_what_sagemaker_would_refuse_is_refused_with_the_way_out(changes: Any, sentence: str) -> None:
    with pytest.raises(JobError, match=sentence):
        parse_spec(document(**changes), "endpoint.yaml")


def test_serverless_takes_a_model_that_a_cpu_can_run_in_time_and_no_other() -> None:
    def asked(model: str, memory_mb: int) -> Any:
        changes = {"instance_type": None, "serverless": {"memory_mb": memory_mb}}
        return parse_spec(document(environment={"VSR_SERVE_MODELS": model}, **changes), "endpoint.yaml")

    assert asked("realesr-animevideov3", 6144).serverless
    with pytest.raises(JobError, match=r"realesr-general-x4v3 takes about \d+ s .*take memory_mb: 2048"):
        asked("realesr-general-x4v3", 1024)
    with pytest.raises(JobError, match=r"RealESRGAN_x4plus takes about \d+ s .*name an instance_type"):
        asked("RealESRGAN_x4plus", 6144)


def test_names_follow_from_content_alone() -> None:
    one, other = spec(), spec(tags={"team": "film"})
    assert model_request(one) == model_request(other)
    assert config_request(one) == config_request(other)
    assert model_request(one)["ModelName"] != model_request(spec(isolated=True))["ModelName"]
    assert len(config_request(spec(name="n" * 41))["EndpointConfigName"]) <= 63  # type: ignore[index]


def test_a_sleeping_endpoint_has_no_alarm_for_having_no_instances() -> None:
    awake = spec(alarms={})
    asleep = spec(alarms={}, autoscale={"least": 0, "most": 1}, **{"async": {"output": "s3://films/out"}})
    metrics = [{each["MetricName"] for each in alarm_requests(one)} for one in (awake, asleep)]
    assert metrics[0] - metrics[1] == {"CPUUtilization", "ModelLatency"}
    assert metrics[1] - metrics[0] == {
        "HasBacklogWithoutCapacity",
        "ApproximateAgeOfOldestRequest",
        "InvocationFailures",
    }


def test_a_request_that_may_take_an_hour_has_no_alarm_at_thirty_seconds_unless_the_file_says_so() -> None:
    later = {"async": {"output": "s3://films/out"}}
    assert not [
        each for each in alarm_requests(spec(alarms={}, **later)) if each["MetricName"] == "ModelLatency"
    ]
    (asked,) = [
        each
        for each in alarm_requests(spec(alarms={"p99_ms": 600_000}, **later))
        if each["MetricName"] == "ModelLatency"
    ]
    assert asked["Threshold"] == 6e8


@pytest.mark.parametrize("length", [10, 26, 27, 41])
def test_a_scheduled_job_has_a_name_that_sagemaker_takes(length: int) -> None:
    night = {
        "input": "s3://films/in/", "output": "s3://films/done/", "instance_type": "ml.g5.xlarge",
        "schedule": {"at": "cron(0 2 * * ? *)", "role": ROLE},
    }  # fmt: skip
    wanted = spec(name="n" * length, transform=night)
    steps = diff.steps(wanted, diff.EndpointInventory())
    check(steps, "endpoint.yaml")
    request = transform.schedule_request(wanted)
    assert request is not None
    late = json.loads(request["Target"]["Input"])
    late["TransformJobName"] = "n" * 27 + "-<aws.scheduler.execution-id>"
    request["Target"]["Input"] = json.dumps(late)
    found = list(findings(calls.Call(service="scheduler", operation="create_schedule", parameters=request)))
    assert any("TransformJobName: 64 characters are more than 63" in text for text in found)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"isolated": True}, "isolated: the container would download realesr-animevideov3"),
        (
            {"vpc": {"subnets": ["subnet-0aaaaaaaa"], "security_groups": ["sg-0aaaaaaaa"]}},
            "vpc.internet: true",
        ),
    ],
)
def test_a_container_without_internet_is_refused_weights_that_it_would_download(
    changes: dict[str, Any], wanted: str
) -> None:
    named = {"environment": {"VSR_SERVE_MODELS": "realesr-animevideov3 vsr-video-x4"}, **changes}
    with pytest.raises(JobError, match=re.escape(wanted)) as caught:
        spec(**named)
    assert "vsr-video-x4" not in str(caught.value)
    assert spec(**named, models_in_image=["realesr-animevideov3"])


def test_no_example_downloads_weights_from_the_internet_at_every_start() -> None:
    for path in EXAMPLES:
        assert "VSR_SERVE_MODELS" not in load_spec(path).environment, path.name


def test_the_price_is_that_of_the_instances_at_rest_and_at_most() -> None:
    fixed = costs.bill(spec(instance_count=2), REGION).total
    assert fixed.low_usd == fixed.high_usd and fixed.low_usd and fixed.low_usd > 2
    moving = costs.bill(spec(autoscale={"least": 1, "most": 4}), REGION).total
    assert moving.high_usd == pytest.approx(4 * (moving.low_usd or 0))
    unknown = costs.bill(spec(instance_type="ml.zz9.xlarge"), REGION)
    assert unknown.total.low_usd is None
    assert "no price known" in str(unknown.lines[0])


# Policies ---------------------------------------------------------------------------------------------------

# Actions to which IAM gives no narrower resource than "*" (service authorization reference).
UNNARROWABLE = {
    "ecr:GetAuthorizationToken", "sagemaker:ListModels", "sagemaker:ListEndpointConfigs",
    "cloudwatch:DescribeAlarms", "cloudwatch:PutMetricData",
    "application-autoscaling:DescribeScalableTargets", "application-autoscaling:DescribeScalingPolicies",
    "ec2:DescribeDhcpOptions",
    "ec2:DescribeNetworkInterfaces", "ec2:DescribeSecurityGroups", "ec2:DescribeSubnets", "ec2:DescribeVpcs",
}  # fmt: skip


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.parametrize("whose", roles.WHOSE)
def test_no_allowed_action_or_resource_is_wider_than_it_can_be_made(path: Path, whose: str) -> None:
    document = roles.document(load_spec(path), whose)
    names = [each["Sid"] for each in document["Statement"]]
    assert len(set(names)) == len(names)
    for statement in document["Statement"]:
        assert not [each for each in statement["Action"] if "*" in each], statement["Sid"]
        if "*" in statement["Resource"]:
            assert set(statement["Action"]) <= UNNARROWABLE, statement["Sid"]
        for resource in statement["Resource"]:
            assert resource == "*" or re.match(r"arn:aws:[a-z0-9-]+:[a-z0-9-]*:(\d{12})?:[\w-]", resource)
            assert resource == "*" or re.fullmatch(r"[^*]*\*?", resource), resource
    assert len(json.dumps(document)) < 10_240, "the most that a role's inline policies hold"


def test_the_containers_role_reads_its_model_and_writes_its_answers_and_no_more() -> None:
    wanted = load_spec(next(each for each in EXAMPLES if each.stem == "endpoint-realtime"))
    allowed = {
        action: statement["Resource"]
        for statement in roles.document(wanted, "endpoint")["Statement"]
        for action in statement["Action"]
    }
    assert allowed["s3:GetObject"] == ["arn:aws:s3:::films/models/animevideo.tar.gz"]
    assert allowed["s3:PutObject"] == ["arn:aws:s3:::films/seen/*"]
    assert not [each for each in allowed if each.startswith(("sagemaker:", "iam:", "ec2:"))]
    trust = roles.document(wanted, "endpoint", is_trust=True)["Statement"][0]
    assert trust["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    assert trust["Condition"]["StringEquals"]["aws:SourceAccount"] == "123456789012"


def test_whoever_asks_may_see_that_an_answer_is_not_there_yet_and_lets_sagemaker_use_the_key() -> None:
    key = "arn:aws:kms:eu-central-1:123456789012:key/abcd"
    places = {"output": "s3://films/out", "failure": "s3://other/failed/"}
    wanted = spec(kms_key=key, instance_type="ml.m5.xlarge", **{"async": places})
    found = {each["Sid"]: each for each in roles.document(wanted, "you")["Statement"]}
    for name, bucket, prefix in (("SeeAnswers", "films", "out/*"), ("SeeFailures", "other", "failed/*")):
        assert found[name]["Action"] == ["s3:ListBucket"]
        assert found[name]["Resource"] == [f"arn:aws:s3:::{bucket}"]
        assert found[name]["Condition"] == {"StringLike": {"s3:prefix": [prefix]}}
    assert found["FetchFailures"]["Action"] == ["s3:GetObject"]
    assert found["FetchFailures"]["Resource"] == ["arn:aws:s3:::other/failed/*"]
    assert found["LetSageMakerUseTheKey"]["Condition"] == {"Bool": {"kms:GrantIsForAWSResource": "true"}}
    assert found["LetSageMakerUseTheKey"]["Action"] == ["kms:CreateGrant"]
    assert set(found["UseTheKey"]["Action"]) == {"kms:Decrypt", "kms:GenerateDataKey"}
    assert found["UseTheKey"]["Resource"] == found["LetSageMakerUseTheKey"]["Resource"] == [key]
    (own,) = [each for each in roles.document(wanted, "endpoint")["Statement"] if each["Sid"] == "UseTheKey"]
    assert set(own["Action"]) == {"kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey"}
    plain = {each["Sid"] for each in roles.document(spec(), "you")["Statement"]}
    assert not plain & {"SeeAnswers", "SeeFailures", "UseTheKey", "LetSageMakerUseTheKey"}


def test_the_role_command_prints_a_policy_and_refuses_who_it_does_not_know(tmp_path: Path) -> None:
    path = str(EXAMPLES[0])
    found = CliRunner().invoke(cli_endpoint.app, ["role", path, "--for", "you"])
    assert json.loads(found.stdout)["Version"] == "2012-10-17"
    with pytest.raises(JobError, match="one of endpoint, schedule, you"):
        roles.document(load_spec(EXAMPLES[0]), "everybody")


def test_update_keeps_the_number_of_instances_where_they_scale_by_themselves() -> None:
    scaled = spec(autoscale={"most": 3})
    there = diff.Endpoint(
        config="film-old", status="InService", is_ours=True, weights={"all": 1.0}, counts={"all": 2}
    )
    targets = {"endpoint/film/variant/all": {"MinCapacity": 1, "MaxCapacity": 3}}

    def update(wanted: Any, found: diff.EndpointInventory) -> Any:
        steps = diff.steps(wanted, found)
        check(steps, "x")
        return next(each.calls[0].parameters for each in steps if each.action == "update" and each.calls)

    kept = update(scaled, diff.EndpointInventory(endpoint=there, targets=targets))
    assert kept["RetainAllVariantProperties"] is True
    assert "RetainAllVariantProperties" not in update(spec(), diff.EndpointInventory(endpoint=there))
    assert ROLE and endpoints


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: one\nname: two\n", "'name' is there twice"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("- one\n", "an endpoint file is a mapping with name, image and role"),
        ("x" * (2 << 20), "is no endpoint file"),
    ],
    ids=["twice", "deep", "list", "large"],
)
def test_a_file_that_is_hostile_or_mistaken_ends_in_a_sentence(
    text: str, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "endpoint.yaml"
    path.write_text(text)
    with pytest.raises(JobError, match=sentence):
        load_spec(path)
