"""What the instances, and whoever starts them, may do: IAM policies for one ec2.yaml. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vsr_hpc.aws.ec2.spec import Ec2Spec
from vsr_hpc.aws.new_account import SPOT_ROLE
from vsr_hpc.aws.policies import Statement, allow, listing, literal, pulls, region_of
from vsr_hpc.errors import JobError
from vsr_hpc.job.spec import JobSpec


def document(
    spec: Ec2Spec, whose: str, region: str = "", *, job: JobSpec | None = None, is_trust: bool = False
) -> dict[str, Any]:
    """A policy document: whose permissions, or (`is_trust`) who may take the role on.

    `job` is that of the run that workers are for: it names what they read and write besides the run.
    """
    if whose not in ("instance", "you"):
        raise JobError(f"--for {whose}: it is one of instance, you")
    if is_trust:
        service = "ec2.amazonaws.com.cn" if spec.partition == "aws-cn" else "ec2.amazonaws.com"
        principal = {"Service": service}
        taken = {"Sid": "TakeOn", "Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole"}
        return {"Version": "2012-10-17", "Statement": [taken]}
    region = region or region_of(spec.image)
    statements = _instance(spec, region, job) if whose == "instance" else _operator(spec, region)
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _instance(spec: Ec2Spec, region: str, job: JobSpec | None) -> Iterator[Statement]:
    yield from pulls(spec.partition, [spec.image])
    verbs = ["CompleteLifecycleAction", "SetInstanceHealth", "TerminateInstanceInAutoScalingGroup"]
    yield allow("SayHowItIs", [f"autoscaling:{each}" for each in verbs], [_group(spec, region)])
    if spec.run:
        if job is None:
            raise JobError(f"{spec.run}: what its workers read and write besides it stands in its job")
        yield from _work(spec, spec.run, job)
    verbs = ["CreateControlChannel", "CreateDataChannel", "OpenControlChannel", "OpenDataChannel"]
    sessions = [f"ssmmessages:{each}" for each in verbs]
    yield allow("LetSessionsIn", ["ssm:UpdateInstanceInformation", *sessions], ["*"])


def _work(spec: Ec2Spec, run: str, job: JobSpec) -> Iterator[Statement]:
    """All of the run; its source, which is read by range; its output, which the last worker writes."""
    bucket, prefix = _place(spec, run)
    prefix = prefix.rstrip("/")
    yield listing("SeeTheRun", bucket, [prefix, f"{prefix}/*"])
    verbs = ["GetObject", "PutObject", "DeleteObject", "AbortMultipartUpload", "ListMultipartUploadParts"]
    yield allow("WorkOnTheRun", [f"s3:{each}" for each in verbs], [f"{bucket}/{prefix}/*"])
    for what, uri, verbs in (
        ("Source", job.input, ["GetObject"]),
        ("Output", job.output, ["GetObject", "PutObject", "AbortMultipartUpload"]),
    ):
        if uri.startswith("s3://"):
            bucket, key = _place(spec, uri)
            yield listing(f"SeeThe{what}", bucket, [key])
            yield allow(f"WorkOnThe{what}", [f"s3:{each}" for each in verbs], [f"{bucket}/{key}"])


def _place(spec: Ec2Spec, uri: str) -> tuple[str, str]:
    """The bucket's ARN, and the key as policies spell it."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return f"arn:{spec.partition}:s3:::{bucket}", literal(key)


def _operator(spec: Ec2Spec, region: str) -> Iterator[Statement]:
    here = f"{region}:{spec.account}"
    ec2 = f"arn:{spec.partition}:ec2:{here}"
    tagged = {"Condition": {"StringEquals": {"aws:ResourceTag/vsr:ec2": spec.name}}}
    verbs = ["CreateSecurityGroup", "CreateLaunchTemplate", "CreateTags"]
    places = [f"{ec2}:security-group/*", f"{ec2}:launch-template/*", f"{ec2}:vpc/*"]
    yield allow("MakeGroupAndTemplate", [f"ec2:{each}" for each in verbs], places)
    verbs = ["AuthorizeSecurityGroupIngress", "RevokeSecurityGroupIngress", "DeleteSecurityGroup"]
    verbs += ["CreateLaunchTemplateVersion", "DeleteLaunchTemplate"]
    yield {**allow("KeepWhatIsTagged", [f"ec2:{each}" for each in verbs], places[:2]), **tagged}
    looks = ["SecurityGroups", "LaunchTemplates", "LaunchTemplateVersions", "Subnets", "Instances"]
    actions = [f"ec2:Describe{each}" for each in looks]
    looks = ["AutoScalingGroups", "InstanceRefreshes", "LifecycleHooks", "ScalingActivities"]
    actions += [f"autoscaling:Describe{each}" for each in looks]
    yield allow("Look", actions, ["*"])
    verbs = ["CreateAutoScalingGroup", "UpdateAutoScalingGroup", "DeleteAutoScalingGroup"]
    verbs += ["StartInstanceRefresh", "CancelInstanceRefresh", "PutLifecycleHook", "CreateOrUpdateTags"]
    yield allow("KeepTheCount", [f"autoscaling:{each}" for each in verbs], [_group(spec, region)])
    instances = [f"{ec2}:{each}/*" for each in ("instance", "volume", "network-interface", "subnet")]
    image = f"arn:{spec.partition}:ec2:{region}::image/*"
    yield allow("LetTheGroupStartThem", ["ec2:RunInstances"], [*instances, *places[:2], image])
    started = {"Condition": {"StringEquals": {"ec2:CreateAction": "RunInstances"}}}
    yield {**allow("LetTheGroupTagThem", ["ec2:CreateTags"], instances[:2]), **started}
    linked = "role/aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling"
    first = {"Condition": {"StringEquals": {"iam:AWSServiceName": "autoscaling.amazonaws.com"}}}
    spot = f"arn:{spec.partition}:iam::{spec.account}:role/aws-service-role/spot.amazonaws.com/{SPOT_ROLE}"
    yield allow("SeeWhetherSpotHasItsRole", ["iam:GetRole"], [spot])
    once = {"Condition": {"StringEquals": {"iam:AWSServiceName": "spot.amazonaws.com"}}}
    yield {**allow("UseSpotForTheFirstTime", ["iam:CreateServiceLinkedRole"], [spot]), **once}
    quotas = f"arn:{spec.partition}:servicequotas:{region}:{spec.account}:ec2/*"
    yield allow("LookAtQuotas", ["servicequotas:GetServiceQuota"], [quotas])
    account = f"arn:{spec.partition}:iam::{spec.account}"
    yield {**allow("ScaleForTheFirstTime", ["iam:CreateServiceLinkedRole"], [f"{account}:{linked}"]), **first}
    role = spec.profile.replace(":instance-profile/", ":role/")
    passed = {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}
    yield {**allow("HandTheRoleOn", ["iam:PassRole"], [role]), "Condition": passed}
    parameter = spec.image_source.removeprefix("resolve:ssm:")
    if parameter.startswith("/"):
        owner = "" if parameter.startswith("/aws/service/") else spec.account
        arn = f"arn:{spec.partition}:ssm:{region}:{owner}:parameter{parameter}"
        yield allow("FindTheMachineImage", ["ssm:GetParameters"], [arn])
    actions = ["ssm:StartSession"]
    document = f"arn:{spec.partition}:ssm:{region}::document/AWS-StartPortForwardingSession"
    yield allow("ReachThem", actions, [f"{ec2}:instance/*", document])


def _group(spec: Ec2Spec, region: str) -> str:
    where = f"arn:{spec.partition}:autoscaling:{region}:{spec.account}"
    return f"{where}:autoScalingGroup:*:autoScalingGroupName/{spec.resource}"
