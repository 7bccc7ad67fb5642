"""A cluster's whole life through the real pcluster, against a patched moto server on loopback.

It is lived once, step by step, in a fixture; each test then asks about one step.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from tests.aws.conftest import VALUES
from tests.moto_server import moto_server
from tests.require import require
from tests.tools import find_tool
from vsr_hpc.aws.account import account_number
from vsr_hpc.aws.bucket import BucketLocation, init
from vsr_hpc.aws.cluster import lifecycle
from vsr_hpc.aws.cluster.node_environment import upload_bootstrap
from vsr_hpc.aws.cluster.pcluster import Tool, call
from vsr_hpc.aws.cluster.render import find_template, render
from vsr_hpc.aws.cluster.values import Values, load_values
from vsr_hpc.aws.config_files import config_folder
from vsr_hpc.cli.cluster import app
from vsr_hpc.errors import JobError

HERE = Path(__file__).parent
NETWORK = config_folder() / "cloudformation" / "network.yaml"
pytestmark = [pytest.mark.aws, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory, pcluster_tool: Tool) -> Iterator[Values]:
    """An account with our network, our bucket and a key, and the values that name them."""
    if pcluster_tool.node is None:
        require("aws", "no node.js, which ParallelCluster's CDK needs; `vsr cluster setup` brings one")
    has_fleet_code = [str(pcluster_tool.python), "-c", "import slurm_plugin"]
    if subprocess.run(has_fleet_code, capture_output=True, check=False).returncode:
        require("aws", "ParallelCluster's environment lacks tests/aws/requirements-pcluster.txt")
    more = {"MOTO_IAM_LOAD_MANAGED_POLICIES": "true", "MOTO_AMIS_PATH": str(HERE / "amis.json")}
    with moto_server(more, [str(HERE / "moto_patches.py")]) as aws, pytest.MonkeyPatch.context() as patch:
        for name, value in aws.environment.items():
            patch.setenv(name, value)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # ParallelCluster writes its log there
        stack = boto3.client("cloudformation").create_stack(
            StackName="network",
            TemplateBody=(config_folder() / "cloudformation" / "network.yaml").read_text("utf-8"),
        )
        facts = boto3.client("cloudformation").describe_stacks(StackName=stack["StackId"])["Stacks"][0]
        outputs = {each["OutputKey"]: each["OutputValue"] for each in facts["Outputs"]}
        boto3.client("ec2").create_key_pair(KeyName="vsr-hpc", KeyType="ed25519")
        boto3.client("iam").create_service_linked_role(AWSServiceName="spot.amazonaws.com")
        place = BucketLocation(
            bucket="vsr-hpc-data", prefix="vsr", region="us-east-1", account=account_number()
        )
        init(place, lambda _: None)
        upload_bootstrap(place.bucket, place.prefix, place.region, lambda _: None)
        yield load_values(
            None,
            VALUES
            | {
                "head_subnet": outputs["HeadSubnet"],
                "compute_subnets": outputs["ComputeSubnets"].split(", "),
                "node_policy_arn": place.policy_arn,
                "budget_usd_per_month": 200,
                "budget_email": "films@vsr-hpc.org",
            },
        )


@dataclass
class Life:
    values: Values
    checked: Result
    created: Result
    updated: Result
    unchanged: Result
    refused_update: Result
    stopped: Result
    status: Result
    refused_delete: Result
    deleted: Result
    gone: Result
    templates: tuple[str, ...]
    launched: dict[str, list[str]]
    instances: list[dict[str, Any]]
    budgets: tuple[str, ...]
    budgets_after: tuple[str, ...]


@pytest.fixture(scope="module")
def life(account: Values, pcluster_tool: Tool, tmp_path_factory: pytest.TempPathFactory) -> Life:
    folder = tmp_path_factory.mktemp("life")
    values = folder / "values.yaml"
    values.write_text(yaml.safe_dump(account.model_dump(mode="json", exclude_none=True)))

    def vsr(*words: str) -> Result:
        return CliRunner().invoke(app, [*words, "--values", str(values)])

    ec2, s3 = boto3.client("ec2"), boto3.client("s3")
    checked = vsr("check", "spot-gpu", "--json")
    created = vsr("create", "spot-gpu", "--yes", "--json")
    assert created.exit_code == 0, (created.output, created.exception)
    found = ec2.describe_launch_templates()["LaunchTemplates"]
    budgets = budget_names()
    updated = vsr("update", "spot-gpu", "--yes", "--json", "--set", "spot_nodes=40")
    unchanged = vsr("update", "spot-gpu", "--yes", "--json", "--set", "spot_nodes=40")
    refused_update = vsr("update", "spot-gpu", "--yes", "--set", "head_instance=t3.large")
    launched = launch(pcluster_tool, account, folder)
    instances = [each for group in ec2.describe_instances()["Reservations"] for each in group["Instances"]]
    fleet_is_up(account.name)
    stopped = vsr("stop")
    status = vsr("status", "--json")
    s3.put_object(Bucket=account.bucket, Key="vsr/runs/film/workers/w1.json", Body=b"{}")
    return Life(
        values=account,
        checked=checked,
        created=created,
        updated=updated,
        unchanged=unchanged,
        refused_update=refused_update,
        stopped=stopped,
        status=status,
        refused_delete=vsr("delete", "--yes"),
        deleted=vsr("delete", "--yes", "--force"),
        gone=vsr("status"),
        templates=tuple(sorted(each["LaunchTemplateName"] for each in found)),
        launched=launched,
        instances=instances,
        budgets=budgets,
        budgets_after=budget_names(),
    )


def budget_names() -> tuple[str, ...]:
    found = boto3.client("budgets").describe_budgets(AccountId=account_number())["Budgets"]
    return tuple(each["BudgetName"] for each in found)


def launch(tool: Tool, values: Values, folder: Path) -> dict[str, list[str]]:
    """Three nodes of every compute resource, started by the head node's own code."""
    config = folder / "c.yaml"
    config.write_text(render(find_template("spot-gpu"), values).text)
    command = [str(tool.python), str(HERE / "launch_nodes.py"), str(config), values.name, "us-east-1", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def fleet_is_up(name: str) -> None:
    """What the head node writes once its daemons run; moto has no head node."""
    table = boto3.resource("dynamodb", region_name="us-east-1").Table(f"parallelcluster-{name}")
    stamp = "2026-11-20 12:00:00.000000+00:00"
    table.put_item(
        Item={"Id": "COMPUTE_FLEET", "Data": {"status": "RUNNING", "lastStatusUpdatedTime": stamp}}
    )


def test_account_made_by_our_own_commands_gives_no_finding_worth_a_warning(life: Life) -> None:
    found = json.loads(life.checked.stdout)["findings"]
    assert [each["message"] for each in found if each["level"] != "info"] == []


def test_create_ends_with_a_ready_cluster(life: Life) -> None:
    state = json.loads(life.created.stdout)
    assert (state["status"], state["version"]) == ("CREATE_COMPLETE", "3.16.1")


def test_every_compute_resource_gets_its_launch_template(life: Life) -> None:
    for part in ("spot-gpu-gpu-xl", "spot-gpu-gpu-2xl", "ondemand-gpu-gpu-od", "cpu-codec"):
        assert f"vsr-{part}" in life.templates


def test_the_price_is_said_before_anything_is_made(life: Life) -> None:
    said = life.created.stderr
    assert -1 < said.index("asleep about $") < said.index("dry run") < said.index("creating vsr")


def test_budget_comes_with_the_cluster_and_goes_with_it(life: Life) -> None:
    assert (life.budgets, life.budgets_after) == (("vsr-vsr",), ())


def test_update_says_what_changes_and_ends_complete(life: Life) -> None:
    assert "MaxCount: 32 -> 40" in life.updated.stderr
    assert json.loads(life.updated.stdout)["status"] == "UPDATE_COMPLETE"


def test_update_without_a_change_does_nothing(life: Life) -> None:
    assert "nothing to change" in life.unchanged.stderr and json.loads(life.unchanged.stdout) is None


def test_update_that_a_running_cluster_cannot_take_is_refused_with_both_values(life: Life) -> None:
    refused = life.refused_update.exception
    assert isinstance(refused, JobError) and "t3.medium" in str(refused) and "t3.large" in str(refused)


def test_head_nodes_fleet_code_starts_spot_and_on_demand_nodes(life: Life) -> None:
    bought = {each["InstanceId"]: each.get("InstanceLifecycle", "on-demand") for each in life.instances}
    kinds = {pool: {bought[node] for node in nodes} for pool, nodes in life.launched.items()}
    assert kinds == {
        "spot-gpu/gpu-xl": {"spot"},
        "spot-gpu/gpu-2xl": {"spot"},
        "ondemand-gpu/gpu-od": {"on-demand"},
        "cpu/codec": {"spot"},
    }
    assert all(len(nodes) == 3 for nodes in life.launched.values())


def test_nodes_carry_the_tags_that_the_bill_is_split_by(life: Life) -> None:
    node = life.launched["spot-gpu/gpu-xl"][0]
    facts = next(each for each in life.instances if each["InstanceId"] == node)
    tags = {each["Key"]: each["Value"] for each in facts["Tags"]}
    assert (
        tags["vsr-project"] == "vsr-hpc" and tags["vsr-cluster"] == "vsr" and tags["vsr-queue"] == "spot-gpu"
    )


def test_fleet_stops_when_asked(life: Life) -> None:
    assert life.stopped.stdout.strip() == json.loads(life.status.stdout)["fleet"] == "STOP_REQUESTED"


def test_status_counts_the_nodes_that_run(life: Life) -> None:
    assert json.loads(life.status.stdout)["compute_nodes"] == 12


def test_delete_is_refused_while_runs_and_nodes_are_active(life: Life) -> None:
    refused = str(life.refused_delete.exception)
    assert "s3://vsr-hpc-data/vsr/runs/film" in refused
    assert "12 compute node(s)" in refused and "--force" in refused


def test_forced_delete_leaves_no_cluster(life: Life) -> None:
    assert life.deleted.exit_code == 0 and "vsr is gone" in life.deleted.stderr
    assert "there is no cluster vsr" in str(life.gone.exception)


@pytest.mark.parametrize("name", ["dev", "spot-gpu-fsx"])
def test_dry_run_passes_all_validators_of_parallelcluster(
    name: str, account: Values, pcluster_tool: Tool, tmp_path: Path
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(render(find_template(name), account).text)
    arguments = ("--cluster-name", "other", "--cluster-configuration", str(path), "--dryrun", "true")
    reply = call(pcluster_tool, "create-cluster", *arguments, region="us-east-1")
    assert reply.dryrun_passed, reply
    assert [str(each) for each in reply.findings() if each.level == "error"] == []


def test_dry_run_that_fails_names_what_parallelcluster_said(account: Values) -> None:
    bad = account.model_copy(update={"key_name": "nobody"})
    with pytest.raises(JobError, match="nobody"):
        lifecycle.create("dev", bad, lambda _: None, ask_account=False)


def test_configuration_with_errors_never_reaches_parallelcluster(account: Values) -> None:
    bad = account.model_copy(update={"spot_nodes": 500})
    with pytest.raises(JobError, match="at most 85 compute nodes"):
        lifecycle.create("spot-gpu", bad, lambda _: None, ask_account=False)


def test_synthesised_template_is_free_of_cfn_lint_errors(
    account: Values, pcluster_tool: Tool, tmp_path: Path
) -> None:
    linter = find_tool("cfn-lint")
    if linter is None:
        require("aws", "cfn-lint is not installed (it comes with moto[server])")
    config = tmp_path / "c.yaml"
    config.write_text(render(find_template("spot-gpu"), account).text)
    done = subprocess.run(
        [str(pcluster_tool.python), str(HERE / "synthesise.py"), str(config), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    templates = sorted(map(str, tmp_path.glob("*.json")))
    assert len(templates) == 2
    # W2001: parameters that ParallelCluster declares and does not use; W3687: ports beside protocol -1.
    command = [linter, "--regions", "us-east-1", "--ignore-checks", "W2001", "W3687", "--", *templates]
    linted = subprocess.run(command, capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout[-3000:]


def test_our_own_network_template_is_free_of_cfn_lint_findings() -> None:
    linter = find_tool("cfn-lint")
    if linter is None:
        require("aws", "cfn-lint is not installed (it comes with moto[server])")
    linted = subprocess.run(
        [linter, str(config_folder() / "cloudformation" / "network.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert linted.returncode == 0, linted.stdout
