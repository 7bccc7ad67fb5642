"""--skip-duplicates and --denoise in whole runs: equal bytes, counted, refused where they make no sense."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from tests.clips import picture, video_frame
from tests.runs import finished, planned_run, tiny_job
from vsr_hpc.errors import JobError
from vsr_hpc.job.spec import JobSpec
from vsr_hpc.launch import submit
from vsr_hpc.models import cards
from vsr_hpc.models.cards import Card, Weights, find_card, with_denoise, write_card
from vsr_hpc.models.networks import Compact
from vsr_hpc.models.weights import load
from vsr_hpc.planning import preparation as prepare
from vsr_hpc.planning.plan import Plan
from vsr_hpc.run import model_copy as staging
from vsr_hpc.run.documents import Receipt
from vsr_hpc.run.run import Run
from vsr_hpc.run.status import read_status
from vsr_hpc.storage.folder_store import FolderStore
from vsr_hpc.system.files import sha256_of_file


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA", "CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))


def drawn_on_threes(path: Path, frames: int = 16) -> Path:
    """Animation: a new drawing every third frame, exact after decoding."""
    shape = picture((64, 48))
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(frames):
            frame = video_frame(i // 3, shape)
            frame.pts, frame.time_base = i, Fraction(1, 24)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def small_card(folder: Path, name: str, seed: int, **changes: Any) -> Card:
    torch.manual_seed(seed)
    path = folder / f"{name}.pth"
    torch.save({"params": Compact(num_feat=4, num_conv=2, scale=2).state_dict()}, path)
    weights = Weights(file=path.name, url=path.as_uri(), sha256=sha256_of_file(path))
    card = find_card(path).model_copy(update={"name": name, "weights": weights, "psnr_floor": 1.0, **changes})
    write_card(card)
    return card


def job(folder: Path, name: str, **changes: Any) -> JobSpec:
    if not (folder / "clip.mkv").exists():
        drawn_on_threes(folder / "clip.mkv")
    small_card(folder, "small", 1)
    changes = {"model": "small", **changes}
    return tiny_job(folder, output=str(folder / f"{name}.mkv"), **changes)


def test_the_bytes_are_those_of_a_run_without_it_however_the_work_was_spread(tmp_path: Path) -> None:
    plain = finished(planned_run(job(tmp_path, "plain")))
    skipping = {"skip_duplicates": True}
    runs = [
        planned_run(job(tmp_path, "skipped", picture=skipping)),
        planned_run(job(tmp_path, "long", picture={**skipping, "batch": 3}, run={"chunk_s": 4 / 24}), 0.001),
    ]
    done = [finished(run) for run in runs]
    assert {each.sha256 for each in done} == {plain.sha256}
    # Chunks of four hold drawings 0001, 1122, 2333, 4445: two, two, two and two different ones.
    assert [each.repeated for each in done] == [8, 8]
    assert plain.repeated == 0
    assert "8 of 16 frames repeat another bit by bit and were not made again" in done[0].notes
    assert read_status(runs[0]).repeated == 8
    assert sum(receipt.repeated for receipt in runs[0].receipts()) == 8


def test_it_is_recorded_and_another_choice_is_refused(tmp_path: Path) -> None:
    run = planned_run(job(tmp_path, "out", picture={"skip_duplicates": True}))
    assert run.plan.job.picture.skip_duplicates
    with pytest.raises(JobError, match=r"--skip-duplicates was set, now not set"):
        submit(job(tmp_path, "out"))


def test_grain_makes_it_senseless(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="with grain no two frames are alike"):
        submit(job(tmp_path, "out", picture={"skip_duplicates": True, "grain": 2}))


def test_plans_and_receipts_of_before_are_read_and_continue(tmp_path: Path) -> None:
    run = planned_run(job(tmp_path, "out"))
    old = run.plan.model_dump(mode="json", by_alias=True, exclude={"temporal"})
    for key in ("denoise", "skip_duplicates", "window", "context"):
        del old["job"]["picture"][key]
        assert f"picture.{key}" not in old["fingerprint"]
    for key in ("context", "denoise_partner", "mix"):
        del old["card"][key]
    plan = Plan.model_validate(old)
    assert plan == run.plan
    finished(run)
    receipt = run.receipt(0).model_dump(mode="json")
    del receipt["repeated"]
    assert Receipt.model_validate(receipt).repeated == 0
    assert submit(job(tmp_path, "out")).is_continued


# Denoise strength ------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Card, Card]:
    """A model and its variant that keeps noise."""
    keeps = small_card(tmp_path, "keeps", 2)
    return small_card(tmp_path, "cleans", 3, denoise_partner="keeps"), keeps


def test_the_strength_interpolates_the_two_files(pair: tuple[Card, Card], tmp_path: Path) -> None:
    cleans, keeps = pair
    files = [tmp_path / f"{card.name}.pth" for card in pair]
    own, other = load(files[0], cleans), load(files[1], keeps)
    for strength in (0.0, 0.25, 1.0):
        mixed = load(files[0], with_denoise(cleans, strength))
        for key, value in mixed.items():
            assert torch.allclose(value, own[key] * strength + other[key] * (1 - strength), atol=1e-7)


def test_a_run_with_strength_nought_is_the_partners_and_the_strength_is_in_the_plan(
    pair: tuple[Card, Card], tmp_path: Path
) -> None:
    done = {}
    for name, model, strength in (("a", "cleans", 0.0), ("b", "keeps", None), ("c", "cleans", 0.5)):
        run = planned_run(job(tmp_path, name, model=model, picture={"denoise": strength}))
        done[name] = finished(run).sha256
    assert done["a"] == done["b"] != done["c"]
    assert run.plan.fingerprint["picture.denoise"] == "0.5"
    assert (
        pair[1].weights is not None and str(pair[1].weights.sha256) in run.plan.fingerprint["denoise weights"]
    )
    with pytest.raises(JobError, match=r"--denoise was 0\.5, now 0\.75"):
        submit(job(tmp_path, "c", model="cleans", picture={"denoise": 0.75}))


def test_a_model_without_a_partner_is_refused_with_one_that_has_it(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"small has no variant .* realesr-general-x4v3"):
        submit(job(tmp_path, "out", picture={"denoise": 0.5}))


def test_both_files_travel_with_a_run(pair: tuple[Card, Card], tmp_path: Path) -> None:
    wanted = job(tmp_path, "out", model="cleans", picture={"denoise": 0.5})
    run = Run.create(FolderStore(tmp_path / "run"), wanted)
    staging.stage(run, wanted.model, wanted.picture.denoise)
    staged = {facts.name.split("/")[1] for facts in run.store.list("weights/")}
    assert staged == {card.weights.sha256 for card in pair if card.weights}
    assert prepare.prepare(wanted).card.mix is not None


def test_the_published_pair_is_two_files_of_one_network() -> None:
    card = find_card("realesr-general-x4v3")
    assert card.denoise_partner is not None
    partner = find_card(card.denoise_partner)
    assert (partner.network, partner.parameters) == (card.network, card.parameters)
    assert [each.name for each in cards.all_cards() if each.denoise_partner] == [card.name]


def test_frames_that_are_alike_for_the_eye_only_are_made(tmp_path: Path) -> None:
    """One code in one sample is a difference."""
    rows = np.full((48, 64), 90, np.uint8)
    with av.open(str(tmp_path / "clip.mkv"), "w") as out:
        stream: Any = out.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray"
        for i in range(4):
            plane = rows.copy()
            plane[5, 5] += i % 2
            frame = av.VideoFrame.from_ndarray(plane, format="gray")
            frame.pts, frame.time_base = i, Fraction(1, 24)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    run = planned_run(
        job(tmp_path, "out", picture={"skip_duplicates": True}, video={"codec": "ffv1", "preset": None})
    )
    assert finished(run).repeated == 2
