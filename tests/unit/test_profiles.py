"""Saved measurements: written whole, read by anyone, damaged ones left out aloud."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from vsr_hpc.forecast.profiles import Profile, load_profiles, profiles_folder, save_profile
from vsr_hpc.models.cards import card_hash, find_card


def profile(**changes: object) -> Profile:
    card = find_card("realesr-animevideov3")
    values = {
        "model": card.name,
        "card_hash": card_hash(card),
        "device": "A CPU / of some kind",
        "kind": "cpu",
        "threads": 2,
        "width": 320,
        "height": 180,
        "out_width": 1280,
        "out_height": 720,
        "scale": 4.0,
        "precision": "bf16",
        "batch": 1,
        "operations_per_frame": 1e9,
        "pipeline_fps": 10.0,
        "stage_seconds": {"device": 0.1},
        "matrix_gflops": 100.0,
        "memory_gb_per_s": 10.0,
        "startup_s": 2.0,
        "measured_at": "2026-01-01T00:00:00+00:00",
        "versions": {"vsr": "0"},
    }
    return Profile.model_validate(values | changes)


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    one, other = profile(), profile(width=640, height=360, measured_at="2026-01-02T00:00:00+00:00")
    paths = {save_profile(one, tmp_path), save_profile(other, tmp_path)}
    assert load_profiles(tmp_path) == (other, one)
    assert {path.parent for path in paths} == {tmp_path}
    assert set(tmp_path.iterdir()) == paths


def test_measuring_again_replaces(tmp_path: Path) -> None:
    save_profile(profile(), tmp_path)
    save_profile(profile(pipeline_fps=20.0), tmp_path)
    assert [each.pipeline_fps for each in load_profiles(tmp_path)] == [20.0]


def test_a_damaged_file_is_left_out_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_profile(profile(), tmp_path)
    (tmp_path / "other.json").write_text('{"version": 9}')
    with caplog.at_level(logging.WARNING):
        assert load_profiles(tmp_path) == (profile(),)
    assert "other.json" in caplog.text


def test_no_folder_is_no_profiles(tmp_path: Path) -> None:
    assert load_profiles(tmp_path / "nothing") == ()


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert profiles_folder() == tmp_path / "vsr_hpc" / "profiles"


def test_a_cards_words_do_not_change_its_hash() -> None:
    card = find_card("realesr-animevideov3")
    assert card_hash(card) == card_hash(card.model_copy(update={"description": "other words"}))
    assert card_hash(card) != card_hash(card.model_copy(update={"scale": 2}))
