"""Cards: true, found by name or by file, and light enough for a head node."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from vsr_hpc.errors import JobError, ModelError
from vsr_hpc.models.cards import Card, all_cards, find_card, user_cards_folder, write_card
from vsr_hpc.models.defaults import shipped_models
from vsr_hpc.models.network_costs import theoretical_radius


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_finding_a_card_imports_no_torch() -> None:
    code = (
        "import sys; from vsr_hpc.models.cards import find_card; find_card('bicubic'); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_published_model_is_there_with_url_size_hash_and_licence() -> None:
    ours = ("nearest", *shipped_models())
    published = {card.name: card for card in all_cards() if not card.is_filter and card.name not in ours}
    assert {
        "RealESRGAN_x4plus",
        "RealESRGAN_x2plus",
        "RealESRGAN_x4plus_anime_6B",
        "RealESRNet_x4plus",
        "realesr-animevideov3",
        "realesr-general-x4v3",
        "realesr-general-wdn-x4v3",
    } <= set(published)
    for card in published.values():
        assert card.weights is not None and card.weights.url is not None
        assert card.weights.url.endswith(card.weights.file) or card.is_recurrent
        assert card.weights.sha256 is not None
        assert card.weights.size_bytes is not None or card.is_recurrent
        assert "BSD-3-Clause" in card.licence or "Apache-2.0" in card.licence


def test_compact_overlaps_cover_the_theoretical_radius_and_rrdb_is_feathered() -> None:
    for card in all_cards():
        radius = theoretical_radius(card.network, card.scale, dict(card.parameters))
        is_local = card.is_filter or card.network == "compact"
        assert card.is_tiled_exactly == is_local
        assert not is_local or card.overlap == radius


def test_operations_match_the_measured_network_costs() -> None:
    assert find_card("realesr-animevideov3").operations_per_pixel * 480 * 270 == pytest.approx(
        160.5e9, rel=0.01
    )
    assert find_card("RealESRGAN_x4plus").operations_per_pixel * 160 * 90 == pytest.approx(516e9, rel=0.01)


def test_cards_round_trip_through_json_and_hash() -> None:
    for card in all_cards():
        assert Card.model_validate_json(card.model_dump_json()) == card
        assert isinstance(hash(card), int)


def test_an_unknown_name_lists_close_matches() -> None:
    with pytest.raises(JobError, match="did you mean RealESRGAN_x4plus"):
        find_card("realesrgan-x4plus")


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        find_card(tmp_path / "none.pth")


@pytest.mark.parametrize(
    "change",
    [{"overlap": 3, "multiple_of": 2}, {"kind": "filter"}, {"weights": None}, {"tiles": 4}, {"scale": 0}],
)
def test_a_card_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    good = find_card("RealESRGAN_x4plus").model_dump()
    with pytest.raises(ValidationError):
        Card.model_validate(good | change)


def test_a_users_card_is_found_and_never_hides_ours() -> None:
    mine = find_card("RealESRGAN_x4plus").model_copy(update={"name": "mine"})
    path = write_card(mine)
    assert path.parent == user_cards_folder()
    assert find_card("mine") == mine
    with pytest.raises(JobError, match="package's own"):
        write_card(find_card("bicubic"))


def test_a_second_model_of_one_name_is_refused() -> None:
    mine = find_card("RealESRGAN_x4plus").model_copy(update={"name": "mine"})
    write_card(mine)
    write_card(mine)
    with pytest.raises(JobError, match="another model"):
        write_card(mine.model_copy(update={"overlap": 16}))


def test_a_broken_user_card_names_its_file() -> None:
    folder = user_cards_folder()
    folder.mkdir(parents=True)
    (folder / "broken.yaml").write_text(yaml.safe_dump({"name": "broken"}))
    with pytest.raises(JobError, match=r"broken\.yaml"):
        find_card("broken")


def test_settings_and_geometry_import_no_torch() -> None:
    code = "import sys, vsr_hpc.engine.settings, vsr_hpc.engine.geometry; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
