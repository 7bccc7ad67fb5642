"""What the endpoint, its schedule and whoever deploys it may do: IAM policies for one file. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vsr_hpc.aws.endpoint.inventory import group_name
from vsr_hpc.aws.endpoint.requests import alarm_prefix
from vsr_hpc.aws.endpoint.spec import Asynchronous, EndpointSpec
from vsr_hpc.aws.endpoint.transform import schedule_name
from vsr_hpc.aws.policies import Statement, allow, pulls, region_of
from vsr_hpc.errors import JobError

WHOSE = ("endpoint", "schedule", "you")


def document(spec: EndpointSpec, whose: str, region: str = "", *, is_trust: bool = False) -> dict[str, Any]:
    """A policy document: whose permissions, or (`is_trust`) who may take the role on."""
    if whose not in WHOSE:
        raise JobError(f"--for {whose}: it is one of {', '.join(WHOSE)}")
    if is_trust:
        statements = [_trust(spec, whose)]
    else:
        makers = {"endpoint": _endpoint, "schedule": _schedule, "you": _operator}
        statements = list(makers[whose](spec, region or region_of(spec.image)))
    return {"Version": "2012-10-17", "Statement": statements}


def _trust(spec: EndpointSpec, whose: str) -> Statement:
    services = {"endpoint": "sagemaker.amazonaws.com", "schedule": "scheduler.amazonaws.com"}
    if whose not in services:
        raise JobError("--trust: you are yourself; it is for endpoint and schedule")
    return {
        "Sid": "TakeOn",
        "Effect": "Allow",
        "Principal": {"Service": services[whose]},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"aws:SourceAccount": spec.account}},
    }


def _endpoint(spec: EndpointSpec, region: str) -> Iterator[Statement]:
    """Of the role that SageMaker runs the container with."""
    yield from pulls(spec.partition, {spec.image, *(each.image for each in spec.variants if each.image)})
    yield from _model(spec)
    yield from _answers(spec)
    if spec.kms_key:
        yield allow("UseTheKey", ["kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey"], [spec.kms_key])
    logs = _arn(spec, "logs", region)
    groups = [f"{logs}:log-group:/aws/sagemaker/Endpoints/{spec.name}:*"] if spec.is_served else []
    groups += [f"{logs}:log-group:/aws/sagemaker/TransformJobs:*"] if spec.transform else []
    actions = ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"]
    yield allow("WriteLogs", actions, groups)
    yield {
        **allow("CountRequests", ["cloudwatch:PutMetricData"], ["*"]),
        "Condition": {"StringLike": {"cloudwatch:namespace": ["AWS/SageMaker", "/aws/sagemaker/Endpoints"]}},
    }
    if spec.vpc:
        yield from _network(spec, region)


def _model(spec: EndpointSpec) -> Iterator[Statement]:
    archives = [spec.model_data, *(each.model_data for each in spec.variants)]
    keys = [_object(spec, each) for each in archives if each]
    if spec.multi_model:
        yield _listing(spec, "ListModels", spec.multi_model)
        keys.append(_below(spec, spec.multi_model))
    if keys:
        yield allow("ReadModels", ["s3:GetObject"], keys)


def _answers(spec: EndpointSpec) -> Iterator[Statement]:
    read, write = [], []
    if spec.asynchronous:
        read.append(_below(spec, f"{spec.asynchronous.output.rstrip('/')}/inputs"))
        write.append(_below(spec, spec.asynchronous.output))
        if spec.asynchronous.failure:
            write.append(_below(spec, spec.asynchronous.failure))
        topics = [spec.asynchronous.success_topic, spec.asynchronous.error_topic]
        if told := [each for each in topics if each]:
            yield allow("TellWhoWaits", ["sns:Publish"], told)
    if spec.capture:
        write.append(_below(spec, spec.capture.to))
    if spec.transform:
        yield _listing(spec, "ListInputs", spec.transform.input)
        read.append(_below(spec, spec.transform.input))
        write.append(_below(spec, spec.transform.output))
    if read:
        yield allow("ReadInputs", ["s3:GetObject"], read)
    if write:
        yield allow("WriteAnswers", ["s3:PutObject", "s3:AbortMultipartUpload"], write)


def _network(spec: EndpointSpec, region: str) -> Iterator[Statement]:
    """SageMaker's network interfaces in the given subnets."""
    assert spec.vpc is not None
    ec2 = _arn(spec, "ec2", region)
    places = [f"{ec2}:subnet/{each}" for each in spec.vpc.subnets]
    places += [f"{ec2}:security-group/{each}" for each in spec.vpc.security_groups]
    interfaces = f"{ec2}:network-interface/*"
    yield allow("PutInterfacesIntoTheSubnets", ["ec2:CreateNetworkInterface"], [*places, interfaces])
    changes = [
        "ec2:CreateNetworkInterfacePermission",
        "ec2:DeleteNetworkInterface",
        "ec2:DeleteNetworkInterfacePermission",
    ]
    yield {
        **allow("KeepThoseInterfaces", changes, [interfaces]),
        "Condition": {"ArnEquals": {"ec2:Subnet": [f"{ec2}:subnet/{each}" for each in spec.vpc.subnets]}},
    }
    looks = ["DhcpOptions", "NetworkInterfaces", "SecurityGroups", "Subnets", "Vpcs"]
    yield allow("LookAtTheNetwork", [f"ec2:Describe{each}" for each in looks], ["*"])


def _schedule(spec: EndpointSpec, region: str) -> Iterator[Statement]:
    jobs = f"{_arn(spec, 'sagemaker', region)}:transform-job/{spec.name}-*"
    yield allow("StartTheJob", ["sagemaker:CreateTransformJob", "sagemaker:AddTags"], [jobs])


def _operator(spec: EndpointSpec, region: str) -> Iterator[Statement]:
    """Of whoever runs `vsr endpoint` on this file."""
    name, sagemaker = spec.name, _arn(spec, "sagemaker", region)
    own = [f"{sagemaker}:{kind}/{name}-*" for kind in ("model", "endpoint-config")]
    endpoint, group = f"{sagemaker}:endpoint/{name}", f"{sagemaker}:model-package-group/{group_name(name)}"
    versions = f"{sagemaker}:model-package/{group_name(name)}/*"
    kinds = ["CreateModel", "DeleteModel", "DescribeModel", "CreateEndpointConfig", "DeleteEndpointConfig"]
    kinds += ["DescribeEndpointConfig"]
    yield allow("KeepModels", _sagemaker(kinds), own)
    kinds = ["CreateEndpoint", "UpdateEndpoint", "UpdateEndpointWeightsAndCapacities", "DeleteEndpoint"]
    kinds += ["DescribeEndpoint", "InvokeEndpoint", "InvokeEndpointAsync"]
    kinds += ["InvokeEndpointWithResponseStream"]
    yield allow("KeepTheEndpoint", _sagemaker(kinds), [endpoint, *own[1:]])
    yield allow("MarkWhatIsOurs", _sagemaker(["AddTags", "ListTags"]), [endpoint, *own, group, versions])
    yield allow("FindWhatIsOurs", _sagemaker(["ListModels", "ListEndpointConfigs"]), ["*"])
    kinds = ["CreateModelPackageGroup", "DescribeModelPackageGroup", "DeleteModelPackageGroup"]
    kinds += ["ListModelPackages", "CreateModelPackage", "DescribeModelPackage", "UpdateModelPackage"]
    yield allow("KeepApprovedVersions", _sagemaker([*kinds, "DeleteModelPackage"]), [group, versions])
    quotas = f"{_arn(spec, 'servicequotas', region)}:sagemaker/*"
    yield allow("LookAtQuotas", ["servicequotas:ListServiceQuotas"], [quotas])
    yield from _jobs(spec, region)
    yield from _watching(spec, region)
    yield {
        **allow("HandTheRoleOn", ["iam:PassRole"], [spec.role]),
        "Condition": {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}},
    }
    if spec.asynchronous:
        yield from _asking(spec, spec.asynchronous)
    if spec.kms_key:
        yield {
            **allow("LetSageMakerUseTheKey", ["kms:CreateGrant"], [spec.kms_key]),
            "Condition": {"Bool": {"kms:GrantIsForAWSResource": "true"}},
        }
        yield allow("UseTheKey", ["kms:Decrypt", "kms:GenerateDataKey"], [spec.kms_key])
    if spec.promote:
        staging = spec.promote.staging
        yield allow(
            "MeasureTheCandidate",
            _sagemaker(["DescribeEndpoint", "InvokeEndpoint", "DescribeEndpointConfig", "DescribeModel"]),
            [
                f"{sagemaker}:endpoint/{staging}",
                f"{sagemaker}:endpoint-config/{staging}-*",
                f"{sagemaker}:model/{staging}-*",
            ],
        )


def _asking(spec: EndpointSpec, places: Asynchronous) -> Iterator[Statement]:
    """To send an input and to poll for what is not there yet: answer or failure."""
    actions = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
    yield allow("SendAndFetch", actions, [_below(spec, places.output)])
    yield _listing(spec, "SeeAnswers", places.output)
    if places.failure:
        yield allow("FetchFailures", ["s3:GetObject"], [_below(spec, places.failure)])
        yield _listing(spec, "SeeFailures", places.failure)


def _jobs(spec: EndpointSpec, region: str) -> Iterator[Statement]:
    """Transform jobs, and the group that their schedule lives in, which every plan looks for."""
    jobs = f"{_arn(spec, 'sagemaker', region)}:transform-job/{spec.name}-*"
    scheduler, called = _arn(spec, "scheduler", region), schedule_name(spec.name)
    kinds = ["CreateTransformJob", "DescribeTransformJob", "StopTransformJob", "AddTags"]
    if spec.transform:
        yield allow(
            "RunJobs", _sagemaker(kinds), [jobs, f"{_arn(spec, 'sagemaker', region)}:model/{spec.name}-*"]
        )
    verbs = ["CreateScheduleGroup", "GetScheduleGroup", "DeleteScheduleGroup", "CreateSchedule"]
    verbs += ["GetSchedule", "UpdateSchedule", "DeleteSchedule", "TagResource"]
    places = [f"{scheduler}:schedule-group/{called}", f"{scheduler}:schedule/{called}/{called}"]
    yield allow("KeepTheSchedule", [f"scheduler:{each}" for each in verbs], places)
    if spec.transform and spec.transform.schedule:
        yield {
            **allow("HandTheSchedulesRoleOn", ["iam:PassRole"], [spec.transform.schedule.role]),
            "Condition": {"StringEquals": {"iam:PassedToService": "scheduler.amazonaws.com"}},
        }


def _watching(spec: EndpointSpec, region: str) -> Iterator[Statement]:
    alarms = f"{_arn(spec, 'cloudwatch', region)}:alarm:{alarm_prefix(spec.name)}*"
    verbs = ["PutMetricAlarm", "DeleteAlarms", "TagResource"]
    yield allow("KeepAlarms", [f"cloudwatch:{each}" for each in verbs], [alarms])
    looks = [
        "application-autoscaling:DescribeScalableTargets",
        "application-autoscaling:DescribeScalingPolicies",
    ]
    yield allow("LookAtAlarmsAndScaling", ["cloudwatch:DescribeAlarms", *looks], ["*"])
    target = f"{_arn(spec, 'application-autoscaling', region)}:scalable-target/*"
    verbs = ["RegisterScalableTarget", "DeregisterScalableTarget", "PutScalingPolicy", "DeleteScalingPolicy"]
    yield {
        **allow("KeepScaling", [f"application-autoscaling:{each}" for each in verbs], [target]),
        "Condition": {
            "StringEquals": {
                "application-autoscaling:service-namespace": "sagemaker",
                "application-autoscaling:scalable-dimension": "sagemaker:variant:DesiredInstanceCount",
            }
        },
    }
    service = "sagemaker.application-autoscaling.amazonaws.com"
    linked = f"role/aws-service-role/{service}/AWSServiceRoleForApplicationAutoScaling_SageMakerEndpoint"
    yield {
        **allow(
            "ScaleForTheFirstTime",
            ["iam:CreateServiceLinkedRole"],
            [f"arn:{spec.partition}:iam::{spec.account}:{linked}"],
        ),
        "Condition": {"StringEquals": {"iam:AWSServiceName": service}},
    }


def _sagemaker(verbs: Sequence[str]) -> list[str]:
    return [f"sagemaker:{each}" for each in verbs]


def _arn(spec: EndpointSpec, service: str, region: str) -> str:
    return f"arn:{spec.partition}:{service}:{region}:{spec.account}"


def _object(spec: EndpointSpec, uri: str) -> str:
    return f"arn:{spec.partition}:s3:::{uri.removeprefix('s3://')}"


def _below(spec: EndpointSpec, uri: str) -> str:
    return f"{_object(spec, uri).rstrip('/')}/*"


def _listing(spec: EndpointSpec, name: str, uri: str) -> Statement:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    found = allow(name, ["s3:ListBucket"], [_object(spec, f"s3://{bucket}")])
    if not prefix:
        return found
    return {**found, "Condition": {"StringLike": {"s3:prefix": [f"{prefix.rstrip('/')}/*"]}}}
