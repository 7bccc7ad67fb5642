"""The guides in docs/: their commands are ones that the command line takes, and the cheap ones run."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.clips import numbered_clip
from tests.commands import vsr
from vsr_hpc.cli.main import app

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs").glob("*.md"))
CHEAP = {
    "costs.md": ("prices show", "plan --serve"),
    "quickstart.md": ("preview", "upscale", "status", "report"),
}


def command_lines(text: str) -> list[str]:
    """The `vsr` lines of a guide's blocks, joined where a backslash continues them, without their remarks."""
    blocks = re.findall(r"```[a-z]*\n(.*?)```|((?:^    .*\n)+)", text, flags=re.DOTALL | re.MULTILINE)
    joined = re.sub(r"\\\n\s*", " ", "\n".join("".join(block) for block in blocks))
    lines = (line.strip().removeprefix("$ ") for line in joined.splitlines())
    return [re.split(r"\s{3,}|\s#|\s>", line)[0] for line in lines if line.startswith("vsr ")]


def mentions(text: str) -> list[str]:
    """The `vsr …` commands within sentences, up to the dots that leave something out."""
    found = re.findall(r"`(vsr [^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [" ".join(each.split()).split("…")[0].strip() for each in found]


@functools.cache
def whole_command() -> Any:
    return typer.main.get_command(app)


def parse(words: list[str]) -> None:
    """Parse a whole command line as `vsr` does, and run nothing. Raises click's usage errors."""
    command = whole_command()
    context = command.make_context("vsr", list(words))
    while hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


def unknown_words(words: list[str]) -> list[str]:
    """Which commands or options of a mention do not exist; arguments may be missing there."""
    command = whole_command()
    words = list(words)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        name = words.pop(0)
        if name.isupper():  # COMMAND stands for any
            return []
        if name not in command.commands:
            return [name]
        command = command.commands[name]
    known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)} | {"--help"}
    return [word for word in words if word.startswith("--") and word.split("=")[0] not in known]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_every_command_of_a_guide_is_one_that_the_command_line_takes(
    guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = guide.read_text(encoding="utf-8")
    refused = []
    for line in command_lines(text):
        try:
            parse(shlex.split(line)[1:])
        except Exception as exc:
            if not hasattr(exc, "format_message"):
                raise
            refused.append(f"{line}: {exc.format_message()}")
    for mention in mentions(text):
        refused += [f"{mention}: {word} does not exist" for word in unknown_words(mention.split()[1:])]
    assert refused == []


@pytest.mark.parametrize("line", ["upscale in.mkv o.mkv --sacle 2", "preview in.mkv --frames big", "upscal"])
def test_a_wrong_command_is_found(line: str) -> None:
    with pytest.raises(Exception) as refused:
        parse(shlex.split(line))
    assert hasattr(refused.value, "format_message")


def test_a_wrong_mention_is_found() -> None:
    assert unknown_words(["endpoint", "role", "--turst"]) == ["--turst"]
    assert unknown_words(["endpoints", "role"]) == ["endpoints"]


@pytest.mark.parametrize("guide", CHEAP)
def test_the_cheap_commands_of_a_guide_run(
    guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("CACHE", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind))
    numbered_clip(tmp_path / "in.mkv", frames=4, rate=4)
    numbered_clip(tmp_path / "original.mkv", frames=4, rate=4, size=(128, 96))
    lines = command_lines((ROOT / "docs" / guide).read_text(encoding="utf-8"))
    chosen = [line for line in lines if line.removeprefix("vsr ").startswith(CHEAP[guide])]
    assert len(chosen) >= len(CHEAP[guide])
    for line in chosen:
        words = shlex.split(line)[1:]
        if "--at" in words:
            words[words.index("--at") + 1] = "0.5"
        words = [re.sub("vsr-clean-x4", "nearest", word) for word in words]
        words = [re.sub("vsr-video-x4", "lanczos", word) for word in words]  # quick ones in their place
        done = vsr(*words)
        assert done.code == 0, f"{line}\n{done.out}{done.err}"


def test_the_tree_names_every_package_and_the_glossary_stays_short() -> None:
    text = (ROOT / "docs/how-it-works.md").read_text(encoding="utf-8")
    tree = text.partition("<!-- tree -->")[2].partition("<!-- end -->")[0]
    named = re.findall(r"^\| `([^`]+?)/?` \| ", tree, flags=re.MULTILINE)[1:]
    package = ROOT / "vsr_hpc"
    there = {path.name for path in package.glob("*.py")}
    there |= {path.parent.name for path in package.glob("*/__init__.py")}
    assert sorted(named) == sorted(there)
    words = text.partition("## Words")[2].partition("\n## ")[0]
    assert 10 <= len(re.findall(r"^\| \w", words, flags=re.MULTILINE)) - 1 <= 20
