"""Wrong configurations: each is caught, at the line to change, in words that say the way out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from vsr_hpc.aws.cluster.check import CheckReport, check, check_named, load
from vsr_hpc.aws.cluster.pcluster import Tool, validate_offline
from vsr_hpc.aws.cluster.render import Rendered, find_template, render
from vsr_hpc.aws.cluster.values import Values
from vsr_hpc.aws.cluster.yaml_document import ConfigFinding, parse
from vsr_hpc.errors import JobError


@dataclass(frozen=True)
class Wrong:
    """Replace `old` by `new` in the standard configuration; the finding stands on the line with `line`."""

    name: str
    old: str
    new: str
    line: str
    says: str
    level: str = "error"
    let_through: bool = False


_TABLE = yaml.safe_load(Path(__file__).with_name("mistakes.yaml").read_text("utf-8"))
MISTAKES = tuple(Wrong(**each) for each in _TABLE["ours"])
THEIRS = tuple(Wrong(**each) for each in _TABLE["theirs"])


def report_of(text: str, *, ask_pcluster: bool, path: Path = Path("c.yaml")) -> CheckReport:
    count = len(text.splitlines())
    numbers = tuple(range(1, count + 1))
    rendered = Rendered(text=text, template=path, source_lines=numbers, values_used=((),) * count)
    return check(rendered, ask_account=False, ask_pcluster=ask_pcluster)


def broken(mistake: Wrong, values: Values) -> str:
    text = render(find_template("spot-gpu"), values).text
    assert mistake.old in text, f"the standard configuration no longer holds {mistake.old!r}"
    return text.replace(mistake.old, mistake.new, 1)


def assert_caught(mistake: Wrong, text: str, findings: tuple[ConfigFinding, ...]) -> None:
    told = [each for each in findings if mistake.says in each.message and each.level == mistake.level]
    assert told, "\n".join(map(str, findings)) or "no finding at all"
    number = re.match(r".*c\.yaml:(\d+)$", told[0].where)
    assert number, str(told[0])
    assert mistake.line in text.splitlines()[int(number[1]) - 1], str(told[0])


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda each: each.name)
def test_wrong_configuration_is_caught_at_the_line_to_change(mistake: Wrong, values: Values) -> None:
    text = broken(mistake, values)
    report = report_of(text, ask_pcluster=False)
    assert_caught(mistake, text, report.findings)
    assert report.exit_code == (2 if "error" in {each.level for each in report.findings} else 1)


@pytest.mark.parametrize("mistake", THEIRS, ids=lambda each: each.name)
def test_parallelclusters_own_finding_gets_the_line_to_change(
    mistake: Wrong, values: Values, pcluster_tool: Tool
) -> None:
    text = broken(mistake, values)
    assert_caught(mistake, text, report_of(text, ask_pcluster=True).findings)


def test_there_are_at_least_thirty_mistakes() -> None:
    assert len(MISTAKES) >= 30


def test_mistakes_that_parallelcluster_lets_through_are_ours_to_catch(
    values: Values, pcluster_tool: Tool
) -> None:
    standard = render(find_template("spot-gpu"), values).text
    left = [each for each in MISTAKES if each.let_through]
    assert len(left) >= 15
    while left:
        text, taken = standard, []
        for mistake in left:
            if mistake.old in text and not any(mistake.old == each.old for each in taken):
                text = text.replace(mistake.old, mistake.new, 1)
                taken.append(mistake)
        left = [each for each in left if each not in taken]
        answer = validate_offline(pcluster_tool, text, "vsr")
        assert answer.ran > 100
        errors = [each for each in answer.findings if each.level == "error"]
        assert errors == [], [each.name for each in taken]


def test_what_both_say_is_said_once(values: Values, pcluster_tool: Tool) -> None:
    mistake = next(each for each in MISTAKES if each.name == "mixed vCPUs")
    report = report_of(broken(mistake, values), ask_pcluster=True)
    assert len([each for each in report.findings if "vCPUs" in each.message]) == 1


def test_all_mistakes_of_a_file_are_found_in_one_go(values: Values) -> None:
    text = render(find_template("spot-gpu"), values).text
    for old, new in (("g5.xlarge", "g5.xlrage"), ("KillWait: 60", "KillWait: x"), ("v2.0", "v1.0")):
        text = text.replace(old, new, 1)
    errors = [each.rule for each in report_of(text, ask_pcluster=False).findings if each.level == "error"]
    assert {"type-unknown", "slurm-value", "imds"} <= set(errors)


def test_findings_come_worst_first_then_by_line(values: Values) -> None:
    text = (
        render(find_template("spot-gpu"), values)
        .text.replace("v2.0", "v1.0")
        .replace("Size: 100", "Size: 60")
    )
    levels = [each.level for each in report_of(text, ask_pcluster=False).findings]
    assert levels == sorted(levels, key=["error", "warning", "info"].index)


def test_syntax_error_names_its_line() -> None:
    with pytest.raises(JobError, match=r"c\.yaml:3: not YAML"):
        parse("a: 1\nb: [1, 2\n", "c.yaml")


def test_template_without_values_is_refused_with_the_way_out() -> None:
    with pytest.raises(JobError, match="--values"):
        load("spot-gpu", None)


def test_model_too_large_for_a_gpu_names_the_type(values: Values, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vsr_hpc.aws.cluster.check._need", lambda _: 20000)
    report = check(load("dev", values), model="big", ask_account=False, ask_pcluster=False)
    told = [each for each in report.findings if each.rule == "gpu-memory"]
    assert len(told) == 2 and all("g4dn.xlarge" in each.message and "16384" in each.message for each in told)


def test_models_of_the_package_fit_the_smallest_gpu_of_the_standard_cluster(values: Values) -> None:
    from vsr_hpc.models.cards import all_cards

    for card in all_cards():
        report = check_named("spot-gpu", values, model=card.name, ask_account=False, ask_pcluster=False)
        assert [str(each) for each in report.findings if each.rule == "gpu-memory"] == []


def test_missing_parallelcluster_is_a_warning_with_the_one_command(
    values: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsr_hpc.aws.cluster.pcluster.find_tool", lambda: None)
    report = check(load("dev", values), ask_account=False)
    assert [each.message for each in report.findings if "vsr cluster setup" in each.message]
    assert report.exit_code == 1
