"""The README's commands, run as they stand there; only names of files and weights are made up here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from tests.clips import numbered_clip
from tests.commands import vsr
from vsr_hpc.job.spec import run_folder
from vsr_hpc.models.networks import Compact

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """Every `vsr` command of the README, in its order."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    inline = re.findall(r"`(vsr [^`]*)`", README)
    return [line for line in [*lines, *inline] if line.startswith("vsr ")]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the README's commands name."""
    for name in ("DATA", "CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    desk = tmp_path / "desk"
    (desk / "jobs").mkdir(parents=True)
    numbered_clip(desk / "in.mkv", frames=8, audio=True)
    numbered_clip(desk / "in.mp4", frames=8)
    numbered_clip(desk / "film.mkv", frames=8)
    (desk / "clips").mkdir()
    for name in ("a.mkv", "b.mp4"):
        numbered_clip(desk / "clips" / name, frames=4)
    state = Compact(num_feat=8, num_conv=1, scale=2).state_dict()
    blank = {name: torch.zeros_like(values) for name, values in state.items()}  # leaves the enlarged input
    torch.save({"params": blank}, desk / "my-weights.pth")
    job = (ROOT / "jobs/film.yaml").read_text(encoding="utf-8")
    job = job.replace("input: film.mkv", "input: ../film.mkv").replace("realesr-animevideov3", "lanczos")
    (desk / "jobs/film.yaml").write_text(job, encoding="utf-8")
    monkeypatch.chdir(desk)
    return desk


def test_every_command_of_the_readme_runs(desk: Path) -> None:
    found = commands()
    assert len(found) >= 8
    (desk / "frames").mkdir()
    _vsr("upscale in.mkv frames/%03d.png --model nearest --scale 1 -q")
    (desk / "in.png").write_bytes((desk / "frames/001.png").read_bytes())
    for command in found:
        made_up = {"realesr-animevideov3": "my-weights.pth", "FILE.pth": "my-weights.pth", "OUT": "out.mkv"}
        words = [made_up.get(word, word) for word in shlex.split(command)[1:]]
        if "slurm" in words:
            continue  # tests/slurm does that one, on a real Slurm
        if words[0] in ("upscale", "plan") and len(words) > 2:
            words.append("--overwrite")
        if words[0] == "upscale" and len(words) > 2:
            words += ["--new"] if Path(desk / run_folder(words[2])).exists() else []
        if "--size" in words:
            words[words.index("--size") + 1] = "192x144"
        _vsr(shlex.join(words))


def _vsr(words: str) -> None:
    done = vsr(*shlex.split(words))
    assert done.code == 0, f"vsr {words}\n{done.out}{done.err}"


def test_the_readme_is_short_and_the_index_names_every_guide() -> None:
    assert len(README.splitlines()) <= 150
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    guides = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert guides == set(re.findall(r"\]\((\w[\w-]*\.md)\)", index))
    linked = re.findall(r"\]\(((?:docs|benchmarks)/[^)#]+|\w+\.md)\)", README)
    assert [each for each in linked if not (ROOT / each).exists()] == []
