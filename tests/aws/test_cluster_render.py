"""Templates, values and what the files promise in their own comments."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.aws.conftest import VALUES
from tests.tools import ROOT
from vsr_hpc.aws.cluster.check import check, load
from vsr_hpc.aws.cluster.instance_rules import pools
from vsr_hpc.aws.cluster.pcluster import Tool, validate_offline
from vsr_hpc.aws.cluster.render import find_template, render
from vsr_hpc.aws.cluster.values import Values, load_values
from vsr_hpc.aws.cluster.yaml_document import parse
from vsr_hpc.aws.instances import all_instances, find_instance
from vsr_hpc.aws.prices import prices
from vsr_hpc.errors import JobError

TEMPLATES = ("spot-gpu", "spot-gpu-fsx", "dev")
FULL = {
    "shared_storage": "efs",
    "container": "123456789012.dkr.ecr.us-east-1.amazonaws.com/vsr-hpc:1",
    "database": {
        "uri": "db.example.internal:3306",
        "user": "slurm",
        "password_secret_arn": "arn:aws:secretsmanager:us-east-1:123456789012:secret:slurm-db-a1b2c3",
    },
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_rendered_template_is_its_golden(
    name: str, values: Values, golden: Callable[[str, str], None]
) -> None:
    golden(f"{name}.yaml", render(find_template(name), values).text)


def test_rendered_template_with_all_options_is_its_golden(golden: Callable[[str, str], None]) -> None:
    golden("spot-gpu-all.yaml", render(find_template("spot-gpu"), load_values(None, VALUES | FULL)).text)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("more", [{}, FULL], ids=["plain", "all-options"])
def test_parallelcluster_takes_every_rendered_template_without_an_error(
    name: str, more: dict[str, object], pcluster_tool: Tool
) -> None:
    extra = {
        key: value for key, value in more.items() if not (name == "spot-gpu-fsx" and key == "shared_storage")
    }
    rendered = render(find_template(name), load_values(None, VALUES | extra))
    answer = validate_offline(pcluster_tool, rendered.text, "vsr")
    assert [str(each) for each in answer.findings if each.level != "info"] == []
    assert answer.ran > 150


@pytest.mark.parametrize(("name", "warnings"), [("spot-gpu", 0), ("dev", 0), ("spot-gpu-fsx", 3)])
def test_our_own_rules_find_no_error_in_what_we_ship(name: str, warnings: int, values: Values) -> None:
    report = check(load(name, values), ask_account=False, ask_pcluster=False)
    levels = [each.level for each in report.findings]
    assert (levels.count("error"), levels.count("warning")) == (0, warnings)


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_template_holds_an_account_a_subnet_or_a_region(name: str) -> None:
    text = find_template(name).read_text("utf-8")
    assert not re.search(r"\b\d{12}\b|subnet-[0-9a-f]|vpc-[0-9a-f]|arn:aws|(us|eu|ap)-[a-z]+-\d\n", text)


@pytest.mark.parametrize("name", ["spot-gpu", "dev"])
def test_idle_cost_written_in_a_template_is_what_its_bill_adds_up_to(name: str, values: Values) -> None:
    told = re.search(r"about (\d+) USD a month", find_template(name).read_text("utf-8"))
    bill = check(load(name, values), ask_account=False, ask_pcluster=False).bill
    assert told and abs(int(told[1]) - bill.floor_usd) < 1


def test_fsx_template_says_what_the_file_system_costs_a_month(values: Values) -> None:
    bill = check(load("spot-gpu-fsx", values), ask_account=False, ask_pcluster=False).bill
    fsx = next(line for line in bill.floor if "FSx" in line.what)
    assert f"about {fsx.usd:.0f} USD a month" in find_template("spot-gpu-fsx").read_text("utf-8")


def test_standard_cluster_fits_its_head_node_and_leaves_room(values: Values) -> None:
    rendered = load("spot-gpu", values)
    nodes = sum(pool.maximum for pool in pools(parse(rendered.text, "x")))
    assert nodes <= 85


def test_line_without_its_value_vanishes(tmp_path: Path, values: Values) -> None:
    template = tmp_path / "t.yaml"
    template.write_text("a: 1\n  ${database}\nb: ${region}\n")
    rendered = render(template, values)
    assert rendered.text == "a: 1\nb: us-east-1\n"


def test_block_value_keeps_the_indentation_of_its_place(tmp_path: Path) -> None:
    template = tmp_path / "t.yaml"
    template.write_text("a:\n    ${database}\nb: 2\n")
    rendered = render(template, load_values(None, VALUES | FULL))
    assert yaml.safe_load(rendered.text)["a"]["Database"]["UserName"] == "slurm"
    assert rendered.where(6) == f"{template}:3"


def test_finding_points_at_the_template_line_and_names_the_value(tmp_path: Path, values: Values) -> None:
    template = tmp_path / "t.yaml"
    template.write_text("a: 1\nRegion: ${region}\n")
    assert render(template, values).where(2) == f"{template}:2 (value region)"


def test_unknown_placeholders_are_all_named_with_their_lines(tmp_path: Path, values: Values) -> None:
    template = tmp_path / "t.yaml"
    template.write_text("a: ${regoin}\nb: ${bukcet}\n")
    with pytest.raises(JobError, match=r"(?s)line 1: \$\{regoin\}.*line 2: \$\{bukcet\}"):
        render(template, values)


def test_values_file_reports_everything_wrong_at_once(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(
        "region: mars\nhead_subnet: subnet-1\ncompute_subnets: []\nbukcet: x\nspot_nodes: -1\n"
        "budget_email: nobody\n"
    )
    with pytest.raises(JobError) as caught:
        load_values(path)
    text = str(caught.value)
    for word in ("region='mars'", "head_subnet", "compute_subnets", "bukcet is not a value", "spot_nodes=-1"):
        assert word in text
    assert "bucket is missing" in text and "budget_email" in text


@pytest.mark.parametrize(
    "wrong",
    [
        {"bucket": "My_Bucket"},
        {"bucket": "x\nSecurity: off"},
        {"prefix": "../other"},
        {"key_name": "a b"},
        {"ssh_from": "everyone"},
        {"node_policy_arn": "arn:aws:s3:::x"},
        {"compute_subnets": ["subnet-0a1b2c3d4e5f60712", "subnet-0a1b2c3d4e5f60712"]},
        {"budget_usd_per_month": 100},
    ],
)
def test_value_that_could_change_more_than_its_place_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(JobError):
        load_values(None, VALUES | wrong)


def test_example_values_fill_every_template() -> None:
    example = load_values(ROOT / "jobs/values.yaml")
    for name in TEMPLATES:
        assert "${" not in re.sub(r"#.*", "", render(find_template(name), example).text)


def test_template_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(JobError, match=r"dev, spot-gpu, spot-gpu-fsx"):
        find_template("gpu-spot")


def test_every_instance_type_of_a_template_has_facts_and_a_price(values: Values) -> None:
    table = prices("us-east-1")
    for name in TEMPLATES:
        for pool in pools(parse(load(name, values).text, name)):
            for _, kind in pool.types:
                assert find_instance(kind).vcpus and table.per_hour(kind, "on-demand")


def test_instance_table_agrees_with_the_ec2_catalogue_that_moto_bundles() -> None:
    from moto.ec2.models.instance_types import INSTANCE_TYPES

    for each in all_instances().values():
        facts = INSTANCE_TYPES[each.name]
        assert each.vcpus == facts["VCpuInfo"]["DefaultVCpus"], each.name
        assert each.memory_mib == facts["MemoryInfo"]["SizeInMiB"], each.name
        assert each.arch in facts["ProcessorInfo"]["SupportedArchitectures"], each.name
        assert each.spot == ("spot" in facts["SupportedUsageClasses"]), each.name


def test_unknown_instance_type_names_its_family() -> None:
    with pytest.raises(JobError, match=r"g5\.xlarge"):
        find_instance("g5.huge")
