"""What the instances, and whoever starts them, may do: IAM policies for one ec2.yaml. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vsr_hpc.errors import JobError
from vsr_hpc.serving.ec2_spec import Ec2Spec
from vsr_hpc.serving.statements import Statement, allow, pulls, region_of


def document(spec: Ec2Spec, whose: str, region: str = "", *, is_trust: bool = False) -> dict[str, Any]:
    """A policy document: whose permissions, or (`is_trust`) who may take the role on."""
    if whose not in ("instance", "you"):
        raise JobError(f"--for {whose}: it is one of instance, you")
    if is_trust:
        service = "ec2.amazonaws.com.cn" if spec.partition == "aws-cn" else "ec2.amazonaws.com"
        principal = {"Service": service}
        taken = {"Sid": "TakeOn", "Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole"}
        return {"Version": "2012-10-17", "Statement": [taken]}
    region = region or region_of(spec.image)
    statements = _instance(spec, region) if whose == "instance" else _operator(spec, region)
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _instance(spec: Ec2Spec, region: str) -> Iterator[Statement]:
    yield from pulls(spec.partition, [spec.image])
    verbs = ["CompleteLifecycleAction", "SetInstanceHealth", "TerminateInstanceInAutoScalingGroup"]
    yield allow("SayHowItIs", [f"autoscaling:{each}" for each in verbs], [_group(spec, region)])
    if spec.run:
        bucket, _, prefix = spec.run.removeprefix("s3://").partition("/")
        arn = f"arn:{spec.partition}:s3:::{bucket}"
        listing = allow("SeeTheRun", ["s3:ListBucket"], [arn])
        yield {**listing, "Condition": {"StringLike": {"s3:prefix": [prefix, f"{prefix}/*"]}}}
        verbs = ["GetObject", "PutObject", "DeleteObject", "AbortMultipartUpload", "ListMultipartUploadParts"]
        yield allow("WorkOnTheRun", [f"s3:{each}" for each in verbs], [f"{arn}/{prefix}/*"])
    verbs = ["CreateControlChannel", "CreateDataChannel", "OpenControlChannel", "OpenDataChannel"]
    sessions = [f"ssmmessages:{each}" for each in verbs]
    yield allow("LetSessionsIn", ["ssm:UpdateInstanceInformation", *sessions], ["*"])


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
    yield allow("Look", [*actions, "autoscaling:DescribeAutoScalingGroups"], ["*"])
    verbs = ["CreateAutoScalingGroup", "UpdateAutoScalingGroup", "DeleteAutoScalingGroup"]
    verbs += ["StartInstanceRefresh", "PutLifecycleHook", "CreateOrUpdateTags"]
    yield allow("KeepTheCount", [f"autoscaling:{each}" for each in verbs], [_group(spec, region)])
    instances = [f"{ec2}:{each}/*" for each in ("instance", "volume", "network-interface", "subnet")]
    image = f"arn:{spec.partition}:ec2:{region}::image/*"
    yield allow("LetTheGroupStartThem", ["ec2:RunInstances"], [*instances, *places[:2], image])
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
