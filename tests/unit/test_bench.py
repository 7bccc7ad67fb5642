"""`vsr bench` and what it counts. No test here looks at how long anything took."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.unit.test_engine import random_network
from vsr_hpc.bench import speed as benching
from vsr_hpc.bench.device_rates import matrix_gflops, memory_gb_per_s, network_floor, seconds_of
from vsr_hpc.bench.speed import measure
from vsr_hpc.cli.bench import models_at_hand, table
from vsr_hpc.cli.main import app
from vsr_hpc.errors import VsrError
from vsr_hpc.forecast.profiles import load_profiles
from vsr_hpc.models.networks import build

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benching, "worker_startup", lambda job, folder, threads: {"torch": 1.5, "clip": 0.5})


def test_rates_are_those_of_the_device() -> None:
    assert matrix_gflops(CPU, "fp32", side=64) > 0
    assert memory_gb_per_s(CPU, size_bytes=1 << 16) > 0


def test_one_call_more_than_asked_for_warms_up() -> None:
    calls: list[int] = []
    assert len(seconds_of(lambda: calls.append(1), CPU, rounds=3)) == 3
    assert len(calls) == 4


def test_calls_side_by_side_are_charged_their_share() -> None:
    """Both calls of a round wait for each other, so they can only end if they run at once."""
    both = threading.Barrier(2, timeout=60)
    first = threading.Event()

    def run() -> None:
        if first.is_set():
            both.wait()
        first.set()

    assert len(seconds_of(run, CPU, rounds=3, lanes=2)) == 3


def test_the_floor_is_counted_from_the_network_itself(tmp_path: Path) -> None:
    card, _ = random_network(tmp_path, num_feat=8, num_conv=3, scale=2)
    network = build(card)
    floor = network_floor(card, network, (96, 64), gflops=1.0, gb_per_s=1e9)
    pixels = 96 * 64
    layers = (3 + 8) + 3 * (8 + 8) + (8 + 12)  # channels in and out of each convolution
    assert floor.bytes_moved == layers * 4 * pixels
    assert floor.operations == 2 * 9 * (3 * 8 + 3 * 8 * 8 + 8 * 12) * pixels
    assert floor.seconds == floor.operations_s == floor.operations / 1e9
    slow_memory = network_floor(card, network, (96, 64), gflops=1e9, gb_per_s=1e-3)
    assert slow_memory.seconds == slow_memory.memory_s > slow_memory.operations_s


def test_the_command_measures_saves_and_answers(tmp_path: Path) -> None:
    said = CliRunner().invoke(
        app,
        ["bench", "--model", "lanczos", "--size", "96x64", "--frames", "4", "--rounds", "1", "--scale", "2",
         "--preset", "ultrafast", "--encoder-threads", "1", "--json"],
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    (saved,) = load_profiles()
    assert saved.model_dump(mode="json") == found["profile"]
    assert (saved.model, saved.out_width, saved.out_height, saved.codec) == ("lanczos", 192, 128, "libx264")
    assert set(saved.stage_seconds) == {"decode", "device", "encode", "check"}
    assert saved.network_fps is None
    assert found["startup"].keys() >= {"interpreter", "torch", "first frame upscaled"}
    assert saved.merge_gb_per_s


@pytest.mark.usefixtures("quick_start")
def test_a_network_is_held_against_its_floor_without_an_encoder(tmp_path: Path) -> None:
    _, weights = random_network(tmp_path, num_feat=8, num_conv=1, scale=2)
    found = measure(str(weights), size=(64, 64), frames=3, rounds=1, threads=1, has_encoder=False)
    profile = found.profile
    assert found.floor is not None
    assert profile.floor_fps == pytest.approx(1 / found.floor.seconds)
    assert profile.network_fps
    assert (profile.codec, profile.merge_gb_per_s, profile.startup_s) == ("", None, 2.0)
    assert "check" not in profile.stage_seconds
    text = "\n".join(table(found))
    assert "limit of device" in text
    assert "no encoder" in text


def test_nothing_is_saved_unless_wanted(quick_start: None) -> None:
    arguments = [
        "bench",
        "--model",
        "lanczos",
        "--size",
        "64x64",
        "--frames",
        "2",
        "--rounds",
        "1",
        "--no-save",
        "--encoder",
        "none",
    ]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 0, said.output
    assert load_profiles() == ()


@pytest.mark.parametrize("size", ["640", "x", "640x", "-1x2", "1e3x5"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    said = CliRunner().invoke(app, ["bench", "--size", size])
    assert isinstance(said.exception, VsrError)
    assert "WIDTHxHEIGHT" in str(said.exception)


def test_without_a_model_ours_and_every_other_one_on_this_disk_are_compared(
    quick_start: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    at_hand = models_at_hand()
    assert at_hand[0] == "vsr-video-x2" and {"bicubic", "lanczos", "vsr-clean-x4"} < set(at_hand)
    assert not {"nearest", "realesr-animevideov3"} & set(at_hand)
    monkeypatch.setattr("vsr_hpc.cli.bench.models_at_hand", lambda: ["lanczos", "bicubic"])  # for time's sake
    said = CliRunner().invoke(app, ["bench", "--size", "64x64", "--frames", "2", "--rounds", "1"])
    assert said.exit_code == 0, said.output
    assert [line.split()[0] for line in said.stdout.splitlines()[2:-1]] == ["lanczos", "bicubic"]
    assert sorted(each.model for each in load_profiles()) == ["bicubic", "lanczos"]
