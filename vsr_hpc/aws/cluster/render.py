"""Templates of `cluster-config/` filled in with a user's values; comments and reasons stay in the file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vsr_hpc.aws.cluster.values import Values
from vsr_hpc.aws.config_files import config_folder
from vsr_hpc.errors import JobError

_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")
_ALONE = re.compile(r"^(\s*)\$\{(\w+)\}\s*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A filled-in template; every line knows where it came from."""

    text: str
    template: Path
    source_lines: tuple[int, ...]
    values_used: tuple[tuple[str, ...], ...]

    def where(self, line: int) -> str:
        """What a person opens to change rendered line `line`: the template's line, and the values on it."""
        if not 1 <= line <= len(self.source_lines):
            return str(self.template)
        names = self.values_used[line - 1]
        template = self.template
        if template.is_relative_to(Path.cwd()):
            template = template.relative_to(Path.cwd())
        by = f" (value {', '.join(names)})" if names else ""
        return f"{template}:{self.source_lines[line - 1]}{by}"


def find_template(name: str) -> Path:
    """A path as it is, or the name of a template that comes with the package."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    folder = config_folder()
    named = folder / f"{path.stem}.yaml"
    if path.name in (path.stem, f"{path.stem}.yaml") and named.is_file():
        return named
    known = sorted(each.stem for each in folder.glob("*.yaml") if not each.stem.startswith("values"))
    raise JobError(f"{name}: neither a file nor a template; the templates are {', '.join(known)}")


def render(template: Path, values: Values) -> Rendered:
    """Fill in `template`. A line that holds only a placeholder without a value vanishes."""
    known = _placeholders(values)
    lines: list[str] = []
    sources: list[int] = []
    used: list[tuple[str, ...]] = []
    findings: list[str] = []
    for number, line in enumerate(template.read_text("utf-8").splitlines(), start=1):
        names = tuple(dict.fromkeys(_PLACEHOLDER.findall(line)))
        unknown = [name for name in names if name not in known]
        if unknown:
            findings.append(
                f"line {number}: ${{{unknown[0]}}} is not a value; there are {', '.join(sorted(known))}"
            )
            continue
        for filled in _fill(line, known):
            lines.append(filled)
            sources.append(number)
            used.append(names)
    if findings:
        raise JobError.from_findings(str(template), findings)
    return Rendered(
        text="\n".join(lines) + "\n", template=template, source_lines=tuple(sources), values_used=tuple(used)
    )


def _fill(line: str, known: dict[str, str]) -> list[str]:
    alone = _ALONE.match(line)
    if alone:
        indent, block = alone[1], known[alone[2]]
        return [f"{indent}{each}" if each else "" for each in block.splitlines()]
    return [_PLACEHOLDER.sub(lambda match: known[match[1]], line)]


def _placeholders(values: Values) -> dict[str, str]:
    plain = values.model_dump(exclude={"compute_subnets", "database", "container", "model", "shared_storage"})
    known = {name: "" if value is None else str(value) for name, value in plain.items()}
    known["compute_subnets"] = "[" + ", ".join(values.compute_subnets) + "]"
    known["first_compute_subnet"] = f"[{values.compute_subnets[0]}]"
    known["database"] = _database(values)
    known["shared_storage"] = _EFS if values.shared_storage == "efs" else ""
    known["container_args"] = f', "--container", "{values.container}"' if values.container else ""
    return known


def _database(values: Values) -> str:
    if values.database is None:
        return ""
    return (
        "Database:\n"
        f"  Uri: {values.database.uri}\n"
        f"  UserName: {values.database.user}\n"
        f"  PasswordSecretArn: {values.database.password_secret_arn}"
    )


_EFS = """\
# Billed by what lies on it (about 0.30 USD per GB and month); it outlives the cluster, as a home should.
SharedStorage:
  - Name: home
    MountDir: /home
    StorageType: Efs
    EfsSettings:
      Encrypted: true
      EncryptionInTransit: true
      ThroughputMode: bursting
      DeletionPolicy: Retain"""
