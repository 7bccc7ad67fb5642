"""The one rule for what a machine lacks."""

from __future__ import annotations

import pytest

from tests.require import require


def test_what_is_missing_skips_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VSR_REQUIRE", raising=False)
    with pytest.raises(pytest.skip.Exception, match="slurm: no munged here"):
        require("slurm", "no munged here")


def test_what_was_promised_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSR_REQUIRE", "browser, slurm")
    with pytest.raises(pytest.fail.Exception, match="no munged here"):
        require("slurm", "no munged here")
    with pytest.raises(pytest.skip.Exception):
        require("aws", "no moto here")
