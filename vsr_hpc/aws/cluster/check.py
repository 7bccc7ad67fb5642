"""Everything that can be said about a cluster's configuration before it costs a cent, all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path as File
from typing import Any

from vsr_hpc.aws.account import has_credentials
from vsr_hpc.aws.cluster import account_rules as account
from vsr_hpc.aws.cluster import bill as costs
from vsr_hpc.aws.cluster import instance_rules as rules
from vsr_hpc.aws.cluster import pcluster
from vsr_hpc.aws.cluster import safety_rules as safety
from vsr_hpc.aws.cluster import slurm_rules as slurm_settings
from vsr_hpc.aws.cluster.render import Rendered, find_template, render
from vsr_hpc.aws.cluster.values import Values, placeholders_in
from vsr_hpc.aws.cluster.yaml_document import LEVELS, ConfigFinding, Document, Level, parse, place_in_words
from vsr_hpc.errors import JobError, VsrError

# ParallelCluster says these as well; ours names the very line, so theirs is left out where ours spoke.
_SAME = {
    "InstancesCPUValidator": "vcpus",
    "InstancesAcceleratorsValidator": "gpus",
    "InstanceTypeValidator": "type-unknown",
    "HeadNodeMemorySizeValidator": "head-size",
    "InstanceArchitectureCompatibilityValidator": "architecture",
    "InstancesAllocationStrategyValidator": "strategy",
    "CustomSlurmSettingsValidator": "slurm-denied",
    "MaxCountValidator": "counts",
    "SingleInstanceTypeSubnetValidator": "single-type",
    "QueueSubnetsValidator": "subnet-twice",
    "ManagedFsxMultiAzValidator": "fsx-zones",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    findings: tuple[ConfigFinding, ...]
    bill: costs.Costs
    pcluster_version: str
    validators_run: int

    @property
    def worst(self) -> Level | None:
        levels = {finding.level for finding in self.findings}
        return next((level for level in LEVELS if level in levels), None)

    @property
    def exit_code(self) -> int:
        """0 clean, 1 warnings, 2 errors."""
        return {"error": 2, "warning": 1}.get(self.worst or "", 0)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "floor_usd_per_month": self.bill.floor_usd, "exit_code": self.exit_code}


def check(
    rendered: Rendered,
    *,
    values: Values | None = None,
    model: str = "",
    ask_account: bool | None = None,
    ask_pcluster: bool = True,
) -> CheckReport:
    """All findings of ParallelCluster, of our own rules and, with credentials, of the account.

    `values` are those that the template was filled with; a finished configuration has none.
    """
    model = model or (values.model if values else None) or ""
    document = parse(rendered.text, str(rendered.template))
    subject = rules.Subject(document=document, model=model, gpu_memory_mib=_need(model))
    findings: list[ConfigFinding] = []
    for rule in (*rules.RULES, *safety.RULES):
        findings += rule(subject)
    findings += slurm_settings.check_slurm_settings(document)
    version, ran = "", 0
    if ask_pcluster:
        version, ran, theirs = _theirs(rendered.text, values.name if values else "vsr")
        findings += [
            each if each.path else replace(each, path=place_in_words(document, each.message))
            for each in _new(theirs, findings)
        ]
    findings += [
        ConfigFinding(
            level="error",
            rule="placeholder",
            message=f"{each} is the example's value; write your own into the values file",
        )
        for each in (placeholders_in(values) if values else ())
    ]
    if values is not None and values.budget_email is None:
        text = (
            "no budget: set budget_usd_per_month and budget_email, so that a forgotten cluster writes to you"
        )
        findings.append(ConfigFinding(level="info", rule="budget", message=text))
    if ask_account is None:
        ask_account = has_credentials()
    if ask_account:
        findings += account.examine(subject)
    else:
        text = "the account was not asked: subnets, S3 endpoint, key, offerings and quotas"
        findings.append(ConfigFinding(level="info", rule="account", message=text))
    return CheckReport(
        findings=_sorted(findings, document, rendered.where),
        bill=costs.costs(document),
        pcluster_version=version,
        validators_run=ran,
    )


def check_named(
    template: str,
    values: Values | None,
    *,
    model: str = "",
    ask_account: bool | None = None,
    ask_pcluster: bool = True,
) -> CheckReport:
    """`check` on a template with values, or on a file that is rendered already."""
    return check(
        load(template, values),
        values=values,
        model=model,
        ask_account=ask_account,
        ask_pcluster=ask_pcluster,
    )


def load(template: str, values: Values | None) -> Rendered:
    """A template filled in, or a finished configuration as it is."""
    path = find_template(template)
    if values is not None:
        return render(path, values)
    text = path.read_text("utf-8")
    if "${" in "".join(line.partition("#")[0] for line in text.splitlines()):
        raise JobError(f"{path}: is a template; --values FILE fills it in, and `vsr init values` writes one")
    count = len(text.splitlines())
    return Rendered(
        text=text, template=path, source_lines=tuple(range(1, count + 1)), values_used=((),) * count
    )


def _theirs(config: str, name: str) -> tuple[str, int, list[ConfigFinding]]:
    tool = pcluster.find_tool()
    if tool is None:
        text = f"ParallelCluster's schema and validators did not run: not installed; run: {pcluster.SETUP}"
        return "", 0, [ConfigFinding(level="warning", rule="no-pcluster", message=text)]
    answer = pcluster.validate_offline(tool, config, name)
    found = list(answer.findings)
    if answer.not_run:
        text = f"ParallelCluster's validators that need AWS run with `create`: {', '.join(answer.not_run)}"
        found.append(ConfigFinding(level="info", rule="offline", message=text))
    return answer.version, answer.ran, found


def _new(theirs: Iterable[ConfigFinding], ours: list[ConfigFinding]) -> list[ConfigFinding]:
    spoken = {finding.rule for finding in ours}
    return [each for each in theirs if _SAME.get(each.rule) not in spoken]


def _sorted(
    findings: list[ConfigFinding], document: Document, where: Callable[[int], str]
) -> tuple[ConfigFinding, ...]:
    """Worst first, then by line; each with the line that a person changes."""
    rows = [
        (LEVELS.index(each.level), document.line(each.path) if each.path else 0, each) for each in findings
    ]
    rows.sort(key=lambda row: row[:2])
    unique = dict.fromkeys(rows)
    return tuple(replace(each, where=where(line) if each.path else "") for _, line, each in unique)


def _need(model: str) -> int:
    """MiB of GPU memory for one 512-pixel tile of a model, generously; 0 where no model was chosen."""
    if not model:
        return 0
    from vsr_hpc.models.cards import find_card

    try:
        card = find_card(model)
    except VsrError as exc:
        raise JobError(f"model {model}: {exc}") from exc
    features = int(dict(card.parameters).get("num_feat", 64))
    # Four live feature maps at the finest grid, in 32 bits, and 2 GiB for CUDA and frames in flight.
    grid = 1 if card.network == "compact" else card.scale
    tile_bytes = 4 * 4 * features * (512 * grid) ** 2
    return 2048 + tile_bytes // 2**20


def to_file(rendered: Rendered, path: File) -> None:
    """Write a rendered configuration; an existing file is replaced whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(rendered.text, "utf-8")
    temporary.replace(path)
