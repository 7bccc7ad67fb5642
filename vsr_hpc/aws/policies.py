"""What policy documents of endpoints and of instances are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vsr_hpc.system.aws_region import need_region

Statement = dict[str, Any]
_ECR = re.compile(r"(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/([a-z0-9._/-]+)[:@].*")


def allow(name: str, actions: Sequence[str], resources: Sequence[str]) -> Statement:
    return {"Sid": name, "Effect": "Allow", "Action": list(actions), "Resource": list(resources)}


def literal(key: str) -> str:
    """An object's key as policies spell it: what would stand for any characters stands for itself."""
    return re.sub(r"[*?$]", lambda found: f"${{{found[0]}}}", key)


def listing(name: str, bucket: str, keys: Sequence[str]) -> Statement:
    """To list these keys of a bucket (its ARN) alone, without which S3 answers 403 for what is not there."""
    found = allow(name, ["s3:ListBucket"], [bucket])
    return {**found, "Condition": {"StringLike": {"s3:prefix": list(keys)}}}


def pulls(partition: str, images: Iterable[str]) -> Iterator[Statement]:
    """To pull those of the images that lie in ECR."""
    repositories = []
    for image in sorted(images):
        if found := _ECR.fullmatch(image):
            account, where, name = found.groups()
            repositories.append(f"arn:{partition}:ecr:{where}:{account}:repository/{name}")
    if repositories:
        yield allow("LogIntoRegistry", ["ecr:GetAuthorizationToken"], ["*"])
        verbs = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
        yield allow("PullTheImage", verbs, repositories)


def region_of(image: str) -> str:
    """The region of the image's registry; for an image from elsewhere the region that the shell names."""
    if found := _ECR.fullmatch(image):
        return found.group(2)
    return need_region()
