"""The AWS region that this process works in: resolved in one place and handed to every client.

boto3 reads AWS_DEFAULT_REGION and the profile, but not AWS_REGION, which the AWS CLI, the other SDKs and
AWS's own containers use. A client that boto3 resolves by itself can therefore work in another region than
the one that the user named.
"""

from __future__ import annotations

import os

from vsr_hpc.errors import JobError

VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
"""In the order in which they count."""


def find_region() -> str | None:
    """AWS_REGION, then AWS_DEFAULT_REGION, then the profile's region; None where none of them is set."""
    for name in VARIABLES:
        if os.environ.get(name):
            return os.environ[name]
    return _profile_region()


def need_region() -> str:
    """The region to work in. JobError where nothing names one."""
    found = find_region()
    if not found:
        raise JobError("no AWS region is set; set AWS_REGION, or a region in your AWS profile")
    return found


def region_environment(region: str) -> dict[str, str]:
    """The variables that make every AWS program of another machine or container work in this region."""
    return dict.fromkeys(VARIABLES, region)


def _profile_region() -> str | None:
    import botocore.session
    from botocore.exceptions import BotoCoreError

    try:
        found = botocore.session.Session().get_scoped_config().get("region")
    except BotoCoreError as exc:  # a profile that does not exist, a file that cannot be read
        raise JobError(
            f"the AWS profile cannot be read: {exc}; check AWS_PROFILE and AWS_CONFIG_FILE"
        ) from exc
    return str(found) if found else None
