"""A cluster's whole life through the real pcluster, against a patched moto server on loopback.

It is lived once, step by step, in a fixture; each test then asks about one step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.aws.conftest import VALUES
from tests.moto_server import moto_server
from tests.require import require
from vsr_hpc.cluster import lifecycle
from vsr_hpc.cluster.lifecycle import ClusterState, Patience
from vsr_hpc.cluster.pack import upload_bootstrap
from vsr_hpc.cluster.pcluster import Tool, call
from vsr_hpc.cluster.render import config_folder, find_template, render
from vsr_hpc.cluster.storage import Place, find_account, init
from vsr_hpc.cluster.values import Values, load_values
from vsr_hpc.errors import JobError

HERE = Path(__file__).parent
NETWORK = config_folder() / "cloudformation" / "network.yaml"
QUICK = Patience(poll_s=0.2, timeout_s=60)
pytestmark = pytest.mark.aws


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
        place = Place(bucket="vsr-hpc-data", prefix="vsr", region="us-east-1", account=find_account())
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
                "budget_email": "you@example.org",
            },
        )


@dataclass
class Life:
    values: Values
    said: list[str] = field(default_factory=list)
    created: ClusterState | None = None
    templates: tuple[str, ...] = ()
    launched: dict[str, list[str]] = field(default_factory=dict)
    instances: list[dict[str, Any]] = field(default_factory=list)
    updated: ClusterState | None = None
    changes: tuple[str, ...] = ()
    refused_update: str = ""
    refused_delete: str = ""
    stopped: str = ""
    fleet_after_stop: str = ""
    after_delete: str = ""
    budgets: tuple[str, ...] = ()
    budgets_after: int = -1


@pytest.fixture(scope="module")
def life(account: Values, pcluster_tool: Tool, tmp_path_factory: pytest.TempPathFactory) -> Life:
    lived = Life(values=account)
    say = lived.said.append
    lived.created = lifecycle.create("spot-gpu", account, say, patience=QUICK, ask_account=False)
    ec2 = boto3.client("ec2")
    found = ec2.describe_launch_templates()["LaunchTemplates"]
    lived.templates = tuple(sorted(each["LaunchTemplateName"] for each in found))
    budgets = boto3.client("budgets", region_name="us-east-1")
    who = find_account()
    lived.budgets = tuple(each["BudgetName"] for each in budgets.describe_budgets(AccountId=who)["Budgets"])
    more = account.model_copy(update={"spot_nodes": 40})
    mark = len(lived.said)
    lived.updated = lifecycle.update("spot-gpu", more, say, patience=QUICK, ask_account=False)
    lived.changes = tuple(lived.said[mark:])
    with pytest.raises(JobError) as refused:
        bad = more.model_copy(update={"head_instance": "t3.large"})
        lifecycle.update("spot-gpu", bad, say, patience=QUICK, ask_account=False)
    lived.refused_update = str(refused.value)
    config = tmp_path_factory.mktemp("config") / "c.yaml"
    config.write_text(render(find_template("spot-gpu"), more).text)
    done = subprocess.run(
        [
            str(pcluster_tool.python),
            str(HERE / "launch_nodes.py"),
            str(config),
            account.name,
            "us-east-1",
            "3",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lived.launched = json.loads(done.stdout)
    lived.instances = [
        each for group in ec2.describe_instances()["Reservations"] for each in group["Instances"]
    ]
    fleet_is_up(account.name)
    lived.stopped = lifecycle.set_fleet(account.name, account.region, is_running=False)
    lived.fleet_after_stop = lifecycle.status(account.name, account.region).fleet
    s3 = boto3.client("s3")
    s3.put_object(Bucket=account.bucket, Key="vsr/runs/film/workers/w1.json", Body=b"{}")
    store = (account.bucket, account.prefix)
    with pytest.raises(JobError) as refused:
        lifecycle.delete(account.name, account.region, say, store=store, patience=QUICK)
    lived.refused_delete = str(refused.value)
    lifecycle.delete(account.name, account.region, say, store=store, is_forced=True, patience=QUICK)
    with pytest.raises(JobError) as gone:
        lifecycle.status(account.name, account.region)
    lived.after_delete = str(gone.value)
    lived.budgets_after = len(budgets.describe_budgets(AccountId=who)["Budgets"])
    return lived


def fleet_is_up(name: str) -> None:
    """What the head node writes once its daemons run; moto has no head node."""
    table = boto3.resource("dynamodb", region_name="us-east-1").Table(f"parallelcluster-{name}")
    stamp = "2026-11-20 12:00:00.000000+00:00"
    table.put_item(
        Item={"Id": "COMPUTE_FLEET", "Data": {"status": "RUNNING", "lastStatusUpdatedTime": stamp}}
    )


def test_create_ends_with_a_ready_cluster_and_the_line_for_the_first_job(life: Life) -> None:
    assert life.created and life.created.is_ready and life.created.version == "3.16.1"
    line = lifecycle.first_job_line(life.created, life.values)
    assert "s3://vsr-hpc-data/vsr/incoming/clip.mp4" in line and "vsr submit /opt/vsr/first-job.yaml" in line


def test_every_compute_resource_gets_its_launch_template(life: Life) -> None:
    for part in ("spot-gpu-gpu-xl", "spot-gpu-gpu-2xl", "ondemand-gpu-gpu-od", "cpu-codec"):
        assert f"vsr-{part}" in life.templates


def test_the_price_is_said_before_anything_is_made(life: Life) -> None:
    told = next(index for index, line in enumerate(life.said) if "asleep about $" in line)
    made = next(index for index, line in enumerate(life.said) if line.startswith("creating"))
    assert told < made


def test_budget_comes_with_the_cluster_and_goes_with_it(life: Life) -> None:
    assert life.budgets == ("vsr-vsr",)
    assert life.budgets_after == 0


def test_update_says_what_changes_and_ends_complete(life: Life) -> None:
    assert life.updated and life.updated.status == "UPDATE_COMPLETE"
    assert any("MaxCount: 32 -> 40" in line for line in life.changes)


def test_update_that_a_running_cluster_cannot_take_is_refused_with_both_values(life: Life) -> None:
    assert "t3.medium" in life.refused_update and "t3.large" in life.refused_update


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
    assert life.stopped == life.fleet_after_stop == "STOP_REQUESTED"


def test_delete_is_refused_while_runs_and_nodes_are_active(life: Life) -> None:
    assert "s3://vsr-hpc-data/vsr/runs/film" in life.refused_delete
    assert "12 compute node(s)" in life.refused_delete and "--force" in life.refused_delete


def test_forced_delete_leaves_no_cluster(life: Life) -> None:
    assert "there is no cluster vsr" in life.after_delete


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
        lifecycle.create("dev", bad, lambda _: None, patience=QUICK, ask_account=False)


def test_configuration_with_errors_never_reaches_parallelcluster(account: Values) -> None:
    bad = account.model_copy(update={"spot_nodes": 500})
    with pytest.raises(JobError, match="at most 85 compute nodes"):
        lifecycle.create("spot-gpu", bad, lambda _: None, patience=QUICK, ask_account=False)


def test_synthesised_template_is_free_of_cfn_lint_errors(
    account: Values, pcluster_tool: Tool, tmp_path: Path
) -> None:
    linter = Path(sys.executable).with_name("cfn-lint")
    if not linter.is_file():
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
    command = [str(linter), "--regions", "us-east-1", "--ignore-checks", "W2001", "W3687", "--", *templates]
    linted = subprocess.run(command, capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout[-3000:]


def test_our_own_network_template_is_free_of_cfn_lint_findings() -> None:
    linter = Path(sys.executable).with_name("cfn-lint")
    if not linter.is_file():
        require("aws", "cfn-lint is not installed (it comes with moto[server])")
    linted = subprocess.run(
        [str(linter), str(config_folder() / "cloudformation" / "network.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert linted.returncode == 0, linted.stdout
