"""Which of AWS's refusals pass by themselves. Decided by what came back alone: no boto3 is needed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_PASSING = re.compile(
    r"Throttl|TooManyRequests|RequestLimitExceeded|SlowDown|ServerException|InternalError|InternalFailure|"
    r"ServiceUnavailable|RequestTimeout|ConcurrentModification"
)


def status(response: Mapping[str, Any]) -> int:
    """The HTTP status of an error's response (botocore's `ClientError.response`); 0 where it has none."""
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_passing(response: Mapping[str, Any]) -> bool:
    """Whether it was nobody's mistake and may be gone when one comes again.

    Some services throttle with 400 and a code. A quota (`ResourceLimitExceeded`) does not go away.
    """
    code = str(response.get("Error", {}).get("Code", ""))
    return bool(_PASSING.search(code)) or status(response) >= 500 or status(response) in (0, 429)
