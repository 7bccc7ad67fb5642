"""Endpoints from a file on a moto SageMaker: created once, changed, rolled back, removed without a trace."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.moto_server import Moto
from tests.serving.endpoint_files import HURRY, ROLE, TOPIC, apply, document, kinds, pass_time, spec
from tests.serving.samples import still
from tests.serving.served import Served
from vsr_hpc.aws.calls import Clients
from vsr_hpc.aws.endpoint import endpoint as endpoints
from vsr_hpc.aws.endpoint import requests as wanted
from vsr_hpc.aws.endpoint import spec_file, transform
from vsr_hpc.aws.steps import Call
from vsr_hpc.cli import endpoint as cli_endpoint
from vsr_hpc.errors import BackendError, JobError
from vsr_hpc.serving.client import Question, invoke


def asked(folder: Path, **more: Any) -> Question:
    (folder / "in.png").write_bytes(still())
    chosen = {"source": folder / "in.png", "output": folder / "out.png", "timeout_s": 60.0, **more}
    return Question(**chosen)


def everything(aws: Moto) -> dict[str, list[str]]:
    """Names of all that an endpoint's file can make, in the whole account."""
    sagemaker, scaling = aws.client("sagemaker"), aws.client("application-autoscaling")
    return {
        "models": [each["ModelName"] for each in sagemaker.list_models()["Models"]],
        "configs": [
            each["EndpointConfigName"] for each in sagemaker.list_endpoint_configs()["EndpointConfigs"]
        ],
        "endpoints": [each["EndpointName"] for each in sagemaker.list_endpoints()["Endpoints"]],
        "groups": [
            each["ModelPackageGroupName"]
            for each in sagemaker.list_model_package_groups()["ModelPackageGroupSummaryList"]
        ],
        "alarms": [each["AlarmName"] for each in aws.client("cloudwatch").describe_alarms()["MetricAlarms"]],
        "targets": [
            each["ResourceId"]
            for each in scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
        ],
        "policies": [
            each["PolicyName"]
            for each in scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
        ],
        "schedules": [
            each["Name"]
            for each in aws.client("scheduler").list_schedule_groups()["ScheduleGroups"]
            if each["Name"] != "default"
        ],
    }


def full(url: str, name: str = "film", **more: Any) -> Any:
    """An asynchronous endpoint with everything that goes with one."""
    return spec(
        url, name=name, autoscale={"least": 0, "most": 3}, alarms={"topic": TOPIC},
        transform={
            "input": "s3://films/in/", "output": "s3://films/done/", "instance_type": "ml.g5.xlarge",
            "schedule": {"at": "cron(0 2 * * ? *)", "role": ROLE},
        },
        **{"async": {"output": "s3://films/out", "concurrency": 2}}, **more,
    )  # fmt: skip


def test_an_endpoint_is_created_once_and_serves(account: Moto, server: Served, tmp_path: Path) -> None:
    wanted_ = spec(server.url)
    assert kinds(endpoints.plan(wanted_)) == ["create model", "create configuration", "create endpoint"]
    apply(wanted_)
    assert apply(wanted_) == ()
    assert endpoints.status("film")["status"] == "InService"
    assert invoke("film", asked(tmp_path)).way == "real-time"
    assert (tmp_path / "out.png").read_bytes() == server.invoke(still(), "image/png").body


def test_a_change_makes_new_ones_updates_and_then_removes_the_old(account: Moto, server: Served) -> None:
    apply(spec(server.url))
    changed = spec(environment={"LOCAL_URL": server.url, "VSR_SERVE_QUEUE": "8"})
    assert kinds(apply(changed)) == [
        "create model", "create configuration", "update endpoint", "remove configuration", "remove model",
    ]  # fmt: skip
    assert endpoints.plan(changed) == ()


def test_a_container_that_never_gets_well_leaves_the_old_one_serving(
    account: Moto, server: Served, tmp_path: Path
) -> None:
    apply(spec(server.url))
    before = endpoints.status("film")["configuration"]
    with pytest.raises(BackendError, match=r"rolled back, film-\w+ still serves; .*ping health check"):
        apply(spec("http://127.0.0.1:1"))
    assert endpoints.status("film")["configuration"] == before
    assert invoke("film", asked(tmp_path)).size_bytes > 0
    assert kinds(apply(spec(server.url))) == ["remove configuration", "remove model"]


def test_an_endpoint_that_failed_at_birth_is_made_anew(account: Moto, server: Served) -> None:
    with pytest.raises(BackendError, match=r"Failed: .*ping health check"):
        apply(spec("http://127.0.0.1:1"))
    assert "remove endpoint" in kinds(apply(spec(server.url)))
    assert endpoints.status("film")["status"] == "InService"


def test_an_update_needs_something_to_change(account: Moto) -> None:
    with pytest.raises(JobError, match="no endpoint film to change"):
        apply(spec(), must_exist=True)
    assert everything(account)["models"] == []


def test_variants_share_the_traffic_by_their_weights_and_shift(
    account: Moto, server: Served, tmp_path: Path
) -> None:
    both = spec(server.url, variants=[{"name": "old", "weight": 9}, {"name": "new", "weight": 1}])
    apply(both)
    runtime = account.client("sagemaker-runtime")

    def seen(count: int) -> collections.Counter[str]:
        answers = [
            runtime.invoke_endpoint(EndpointName="film", Body=still("png", 16, 16), ContentType="image/png")
            for _ in range(count)
        ]
        return collections.Counter(each["InvokedProductionVariant"] for each in answers)

    assert seen(40)["old"] > 20
    steps = endpoints.shift("film", {"old": 0})
    assert str(steps[0]) == "update weights film: old 0 %, new 100 %"
    assert seen(5) == {"new": 5}
    assert invoke("film", asked(tmp_path, variant="old")).size_bytes > 0
    assert [each["share"] for each in endpoints.status("film")["variants"]] == [0.0, 1.0]
    assert [str(each) for each in apply(both)] == ["update weights film: old weight 0 to 9"]
    with pytest.raises(JobError, match="no variant blue; it has new, old"):
        endpoints.shift("film", {"blue": 1})
    with pytest.raises(JobError, match="nobody would be asked"):
        endpoints.shift("film", {"old": 0, "new": 0})


def test_a_number_of_instances_is_set_or_bounded_but_not_both(account: Moto, server: Served) -> None:
    apply(spec(server.url))
    assert str(endpoints.scale("film", count=3)[0]).endswith("all 1 to 3 instances")
    assert endpoints.scale("film", count=3) == ()
    with pytest.raises(JobError, match="does not scale by itself"):
        endpoints.scale("film", most=3)
    apply(spec(server.url, autoscale={"most": 3}))
    with pytest.raises(JobError, match="between 1 and 3"):
        endpoints.scale("film", count=2)
    endpoints.scale("film", least=2, most=8)
    assert endpoints.status("film")["variants"][0]["scaling"] == (2, 8)
    with pytest.raises(JobError, match="more than --most"):
        endpoints.scale("film", least=9)
    apply(spec(server.url))
    assert endpoints.status("film")["variants"][0]["scaling"] is None


def test_delete_removes_all_it_made_and_nothing_else(account: Moto, server: Served) -> None:
    sagemaker = account.client("sagemaker")
    other, film = full(server.url, "film-2"), full(server.url)
    apply(other)
    sagemaker.create_model(ModelName="film-by-hand", PrimaryContainer={"Image": "x"}, ExecutionRoleArn=ROLE)
    account.client("cloudwatch").put_metric_alarm(
        AlarmName="vsr/films", Namespace="x", MetricName="y", Statistic="Sum", Period=60,
        EvaluationPeriods=1, Threshold=1, ComparisonOperator="GreaterThanThreshold",
    )  # fmt: skip
    before = everything(account)
    apply(film)
    assert apply(film) == ()
    assert {key for key, names in everything(account).items() if len(names) > len(before[key])} == {
        "models", "configs", "endpoints", "alarms", "targets", "policies", "schedules",
    }  # fmt: skip
    endpoints.delete("film")
    assert everything(account) == before
    assert endpoints.plan(other) == ()
    assert endpoints.delete("film") == ()
    with pytest.raises(JobError, match="no endpoint"):
        endpoints.status("film")


def test_an_endpoint_that_somebody_else_made_is_left_alone(account: Moto, server: Served) -> None:
    sagemaker, film = account.client("sagemaker"), spec(server.url)
    sagemaker.create_model(**wanted.model_request(film))
    config = wanted.config_request(film)
    assert config is not None
    sagemaker.create_endpoint_config(**config)
    sagemaker.create_endpoint(EndpointName="film", EndpointConfigName=config["EndpointConfigName"])
    for touch in (
        lambda: endpoints.delete("film"), lambda: apply(film), lambda: endpoints.scale("film", count=2),
    ):  # fmt: skip
        with pytest.raises(JobError, match="left alone"):
            touch()
    assert endpoints.status("film")["status"] == "InService"


def test_a_new_account_is_told_what_to_ask_for_and_its_role_is_waited_for(
    account: Moto, server: Served, new_account: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    new_account(quotas={"ml.g4dn.xlarge for endpoint usage": 1})
    wanted = spec(server.url, instance_type="ml.g4dn.xlarge", instance_count=2)
    with pytest.raises(JobError) as refused:
        endpoints.apply(wanted, patience=HURRY)
    assert "`ml.g4dn.xlarge for endpoint usage` in eu-central-1 is 1 instances" in str(refused.value)
    assert "--service-code sagemaker" in str(refused.value) and "--desired-value 2" in str(refused.value)
    assert everything(account)["models"] == []
    one = spec(server.url, instance_type="ml.g4dn.xlarge")
    new_account(quotas={"ml.g4dn.xlarge for endpoint usage": 1}, unknown=2)
    endpoints.apply(one, patience=HURRY)
    changed = spec(server.url, instance_type="ml.g4dn.xlarge", environment={"A": "b"})
    with pytest.raises(JobError, match="--desired-value 2"):  # the new one beside the old one
        endpoints.plan(changed)
    new_account(may_read_quotas=False)
    endpoints.plan(changed)
    assert "quotas were not looked at" in caplog.text
    new_account(unknown=1000)
    with pytest.raises(JobError, match=r"CreateModel: AWS still does .*Could not assume role"):
        endpoints.apply(spec(server.url, name="other"), patience=HURRY)
    job = {"input": "s3://films/in/", "output": "s3://films/out", "instance_type": "ml.g5.xlarge"}
    new_account(quotas={"ml.g5.xlarge for transform job usage": 0})
    with pytest.raises(JobError, match=r"`ml.g5.xlarge for transform job usage` in eu-central-1 is 0"):
        transform.start(spec(server.url, instance_type=None, transform=job))


def test_a_plan_that_aws_would_refuse_is_refused_before_anything_is_made(account: Moto) -> None:
    with pytest.raises(JobError, match=r"AWS knows no 'ml.g5.tiny'; it knows ml.g5.xlarge"):
        apply(spec(instance_type="ml.g5.tiny"))
    elsewhere = document(image="123456789012.dkr.ecr.us-east-1.amazonaws.com/vsr:1")
    with pytest.raises(JobError, match="lies in us-east-1, and you are working in eu-central-1"):
        apply(spec_file.parse_spec(elsewhere, "endpoint.yaml"))
    assert not any(everything(account).values())


def test_every_kind_of_endpoint_is_made_and_unmade(account: Moto, server: Served) -> None:
    for film in (
        spec(server.url, name="less", instance_type=None, serverless={"memory_mb": 4096, "concurrency": 5}),
        spec(server.url, name="many", instance_type="ml.m5.xlarge", multi_model="s3://films/models"),
        spec(
            server.url, name="safe", instance_type="ml.m5.xlarge", isolated=True, tags={"team": "film"},
            kms_key="arn:aws:kms:eu-central-1:123456789012:key/abcd",
            vpc={"subnets": ["subnet-0123abcd"], "security_groups": ["sg-0123abcd"]},
            capture={"to": "s3://films/seen", "percent": 25}, alarms={},
        ),
        spec(
            server.url, name="jobs", instance_type=None,
            transform={"input": "s3://a11/in", "output": "s3://a11/out", "instance_type": "ml.g5.xlarge"},
        ),
    ):  # fmt: skip
        apply(film)
        assert apply(film) == ()
        assert bool(everything(account)["endpoints"]) == film.is_served
        endpoints.delete(film.name)
        assert not any(everything(account).values())


def test_a_multi_model_request_names_its_model(account: Moto, server: Served, tmp_path: Path) -> None:
    apply(spec(server.url, instance_type="ml.m5.xlarge", multi_model="s3://films/models"))
    reply = invoke("film", asked(tmp_path, target_model="nearest"))
    assert dict(reply.facts)["model"] == "nearest"


def test_an_asynchronous_endpoint_takes_what_is_too_large(
    account: Moto, server: Served, tmp_path: Path
) -> None:
    account.make_bucket("films")
    apply(spec(server.url, **{"async": {"output": "s3://films/out", "concurrency": 2}}))
    assert invoke("film", asked(tmp_path, payload_bytes=10)).way == "async"


def test_a_sleeping_endpoint_wakes_for_its_backlog_works_it_off_and_sleeps_again(
    account: Moto, server: Served, tmp_path: Path
) -> None:
    account.make_bucket("films")
    apply(full(server.url, environment={"LOCAL_URL": server.url, "SIM_PER_MINUTE": "2"}))
    pass_time(account, 20)  # nobody asks: the first instance goes

    assert pass_time(account)["instances"]["film"] == {"all": 0}
    s3, runtime = account.client("s3"), account.client("sagemaker-runtime")
    s3.put_object(Bucket="films", Key="a.png", Body=still("png", 16, 16))
    places = [
        runtime.invoke_endpoint_async(
            EndpointName="film", InputLocation="s3://films/a.png", ContentType="image/png"
        )["OutputLocation"]
        for _ in range(40)
    ]
    begun = pass_time(account, 1)
    assert (begun["queued"], begun["instances"]) == ({"film": 40}, {"film": {"all": 0}})
    counts = [pass_time(account, 1)["instances"]["film"]["all"] for _ in range(30)]
    assert max(counts) == 3, "the backlog per instance was above its target, up to the bound"
    found = s3.list_objects_v2(Bucket="films", Prefix="out/")["KeyCount"]
    assert found == len(places) == 40
    ended = pass_time(account, 40)
    assert (ended["queued"], ended["instances"]) == ({"film": 0}, {"film": {"all": 0}})


def test_an_input_stays_until_an_instance_has_read_it(account: Moto, server: Served, tmp_path: Path) -> None:
    account.make_bucket("films")
    apply(full(server.url))
    pass_time(account, 20)  # nobody asks: the first instance goes
    with pytest.raises(BackendError, match=r"no answer at s3://films/out/\S+ within 1 s"):
        invoke("film", asked(tmp_path, payload_bytes=10, timeout_s=1.0))
    s3 = account.client("s3")
    inputs = [each["Key"] for each in s3.list_objects_v2(Bucket="films", Prefix="out/inputs/")["Contents"]]
    assert len(inputs) == 1
    pass_time(account, 10)  # an instance comes and reads the input
    keys = {each["Key"] for each in s3.list_objects_v2(Bucket="films")["Contents"]} - set(inputs)
    (answer,) = keys
    assert answer.startswith("out/") and not answer.endswith("-error.out")


def test_work_that_waits_in_vain_wakes_somebody(account: Moto, server: Served) -> None:
    account.make_bucket("films")
    apply(full(server.url))
    pass_time(account, 20)
    account.client("application-autoscaling").deregister_scalable_target(
        ServiceNamespace="sagemaker", ResourceId="endpoint/film/variant/all",
        ScalableDimension="sagemaker:variant:DesiredInstanceCount",
    )  # fmt: skip
    account.client("s3").put_object(Bucket="films", Key="a.png", Body=still())
    account.client("sagemaker-runtime").invoke_endpoint_async(
        EndpointName="film", InputLocation="s3://films/a.png"
    )
    told = pass_time(account, 25)["told"]
    assert [TOPIC, "vsr/film/no-instances", "ALARM"] in told


def test_real_time_instances_follow_the_invocations(account: Moto, server: Served) -> None:
    apply(spec(server.url, autoscale={"least": 1, "most": 4, "invocations_per_instance": 3}))
    runtime = account.client("sagemaker-runtime")
    for _ in range(8):
        for _ in range(9):
            runtime.invoke_endpoint(EndpointName="film", Body=still("png", 16, 16), ContentType="image/png")
        pass_time(account, 1)
    assert endpoints.status("film")["variants"][0]["instances"] == 3
    pass_time(account, 40)
    assert endpoints.status("film")["variants"][0]["instances"] == 1


def test_another_instance_type_under_autoscaling_keeps_serving_and_scaling(
    account: Moto, server: Served
) -> None:
    scaled = {"autoscale": {"least": 1, "most": 4, "invocations_per_instance": 3}}
    apply(spec(server.url, instance_type="ml.g4dn.xlarge", **scaled))
    larger = spec(server.url, instance_type="ml.g5.xlarge", **scaled)
    done = kinds(apply(larger))
    assert done.index("remove autoscaling") < done.index("update endpoint") < done.index("create autoscaling")
    made = everything(account)
    assert len(made["targets"]) == 1 and len(made["policies"]) == 1
    assert kinds(endpoints.plan(larger)) == []


@pytest.mark.parametrize(
    "stops_before", ["update_endpoint", "register_scalable_target", "put_scaling_policy"]
)
def test_an_interrupted_change_of_the_instance_type_is_completed_by_the_next_call(
    account: Moto, server: Served, stops_before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    account.make_bucket("films")
    apply(full(server.url, instance_type="ml.g4dn.xlarge"))
    larger = full(server.url, instance_type="ml.g5.xlarge")
    make = Clients.make

    def stop(self: Clients, call: Call) -> Any:
        if call.operation == stops_before:
            raise KeyboardInterrupt
        return make(self, call)

    with monkeypatch.context() as patched:
        patched.setattr(Clients, "make", stop)
        with pytest.raises(KeyboardInterrupt):
            apply(larger)
    apply(larger)
    assert kinds(endpoints.plan(larger)) == []
    wake = account.client("cloudwatch").describe_alarms(AlarmNames=["vsr/film/no-instances", "vsr/film/wake"])
    policies = account.client("application-autoscaling").describe_scaling_policies(
        ServiceNamespace="sagemaker"
    )
    arns = {each["PolicyARN"] for each in policies["ScalingPolicies"]}
    started = {
        action
        for each in wake["MetricAlarms"]
        for action in each["AlarmActions"]
        if ":scalingPolicy:" in action
    }
    assert started and started <= arns


def test_alarms_tell_of_slow_answers_of_errors_and_of_missing_instances(
    account: Moto, server: Served
) -> None:
    apply(spec(server.url, alarms={"topic": TOPIC, "minutes": 2, "p99_ms": 100}))
    assert set(endpoints.status("film")["alarms"].values()) == {"OK"}
    where = {"EndpointName": "film", "VariantName": "all"}
    slow = {"metric": "ModelLatency", "value": 200_000.0, "where": where}
    wrong = {"metric": "Invocation5XXErrors", "value": 1.0, "where": where}
    assert pass_time(account, 1, metrics=[slow, wrong])["told"] == []
    told = pass_time(account, 1, metrics=[slow, wrong])["told"]
    assert sorted(alarm for _, alarm, _ in told) == ["vsr/film/all/errors", "vsr/film/all/latency"]
    pass_time(account, 3, instances={"film": {"all": 0}})
    states = endpoints.status("film")["alarms"]
    assert states["vsr/film/all/no-instances"] == "ALARM"
    assert states["vsr/film/all/errors"] == "OK"


def test_a_prefix_without_a_slash_takes_no_folder_whose_name_only_begins_so(
    account: Moto, server: Served
) -> None:
    account.make_bucket("films")
    job = {"input": "s3://films/in", "output": "s3://films/out", "instance_type": "ml.g5.xlarge"}
    film = spec(server.url, instance_type=None, transform=job)
    apply(film)
    s3 = account.client("s3")
    for key in ("in/a.png", "in-old/b.png"):
        s3.put_object(Bucket="films", Key=key, Body=still("png", 16, 16))
    transform.wait(transform.start(film), HURRY, lambda line: None)
    made = s3.list_objects_v2(Bucket="films", Prefix="out/")["Contents"]
    assert [each["Key"] for each in made] == ["out/a.png.out"]


def test_a_transform_job_answers_every_object_below_a_prefix(
    account: Moto, server: Served, tmp_path: Path
) -> None:
    account.make_bucket("films")
    s3 = account.client("s3")
    for name in ("a", "b/c"):
        s3.put_object(Bucket="films", Key=f"in/{name}.png", Body=still())
    film = spec(
        server.url, instance_type=None,
        transform={"input": "s3://films/in/", "output": "s3://films/out", "instance_type": "ml.g5.xlarge"},
    )  # fmt: skip
    with pytest.raises(JobError, match="Could not find model"):
        transform.start(film)
    apply(film)
    found = transform.wait(transform.start(film), HURRY, lambda line: None)
    assert found["status"] == "Completed"
    for name in ("a", "b/c"):
        made = s3.get_object(Bucket="films", Key=f"out/{name}.png.out")["Body"].read()
        assert made == server.invoke(still(), "image/png").body
    s3.put_object(Bucket="films", Key="bad/x.png", Body=b"no picture")
    job = transform.start(film, source="s3://films/bad/")
    with pytest.raises(BackendError, match="ended as Failed"):
        transform.wait(job, HURRY, lambda line: None)
    transform.stop(job)


def test_a_schedule_starts_the_same_job_and_follows_the_file(account: Moto, server: Served) -> None:
    film = full(server.url)
    apply(film)
    found = account.client("scheduler").get_schedule(Name="vsr-film", GroupName="vsr-film")
    assert found["Target"]["Arn"] == "arn:aws:scheduler:::aws-sdk:sagemaker:createTransformJob"
    job = json.loads(found["Target"]["Input"])
    job["TransformJobName"] = "film-1"
    account.make_bucket("films")
    account.client("sagemaker").create_transform_job(**job)
    later = full(server.url, tags={})
    changed = later.model_copy(
        update={"transform": later.transform.model_copy(update={"schedule": None, "payload_mb": 5})}
    )
    assert kinds(apply(changed)) == ["remove schedule"]


def test_a_version_that_was_rejected_is_not_called_approved(account: Moto, server: Served) -> None:
    apply(spec(server.url))
    sagemaker, group = account.client("sagemaker"), "vsr-film"
    sagemaker.create_model_package_group(ModelPackageGroupName=group)
    arns = {
        state: sagemaker.create_model_package(ModelPackageGroupName=group, ModelApprovalStatus=state)
        for state in ("Approved", "Rejected")
    }
    assert endpoints.status("film")["approved"] == [arns["Approved"]["ModelPackageArn"]]
    endpoints.delete("film")
    assert not any(everything(account).values())


def test_the_commands_say_what_they_do_and_what_it_costs(
    account: Moto, server: Served, tmp_path: Path
) -> None:
    path = tmp_path / "endpoint.yaml"
    path.write_text(yaml.safe_dump(document(server.url, autoscale={"most": 3}, alarms={"topic": TOPIC})))

    def ran(*arguments: str) -> str:
        done = CliRunner().invoke(cli_endpoint.app, [*arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    planned = json.loads(ran("create", str(path), "--plan", "--json"))
    assert planned["cost"]["high_usd"] > planned["cost"]["low_usd"] > 1
    assert "per hour" in ran("create", str(path), "--plan")
    assert ran("create", str(path)).count("\n") == len(planned["steps"]) == 8
    assert "nothing to do: the endpoint is as the file says" in ran("update", str(path), "--plan")
    shown = ran("status", "film")
    assert "all: 1 of 1 instances, 1 to 3, 100 % of the traffic" in shown
    assert "alarm vsr/film/all/errors: OK" in shown
    with pytest.raises(JobError, match="has no rollout"):
        ran("rollout", str(path))
    assert "remove endpoint film" in ran("delete", "film")
    assert not any(everything(account).values())
