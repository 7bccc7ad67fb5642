"""What a test needs and this machine lacks: a skip with its reason, or a failure where it was promised."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def require(component: str, reason: str) -> NoReturn:
    """Skip for `reason`; fail instead when VSR_REQUIRE (e.g. "slurm,browser") names the component.

    if (reason := why_not()) is not None:
        require("slurm", reason)
    """
    if component in {each.strip() for each in os.environ.get("VSR_REQUIRE", "").split(",")}:
        pytest.fail(f"VSR_REQUIRE names {component}, but: {reason}", pytrace=False)
    pytest.skip(f"{component}: {reason}")
