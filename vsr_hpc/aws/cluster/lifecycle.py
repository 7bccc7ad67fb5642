"""A cluster from nothing to gone: dry run first, then the real thing, watched until it stands."""

from __future__ import annotations

import logging
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from vsr_hpc.aws.account import Say, WaitLimits, account_number, client
from vsr_hpc.aws.cluster import check as checking
from vsr_hpc.aws.cluster.pcluster import PclusterReply, Tool, call, need_tool
from vsr_hpc.aws.cluster.render import Rendered
from vsr_hpc.aws.cluster.values import Values, placeholders_in
from vsr_hpc.aws.errors import explained
from vsr_hpc.errors import BackendError, JobError

log = logging.getLogger(__name__)

_LONGEST_WAIT_S = 3600.0
_ALIVE = timedelta(minutes=10)
_GONE = re.compile(r"does not exist|not found", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterState:
    """What ParallelCluster says of a cluster, and the nodes that EC2 runs for it."""

    name: str
    region: str
    status: str
    fleet: str
    head_address: str
    compute_nodes: int
    version: str
    failures: tuple[str, ...] = ()

    @property
    def is_ready(self) -> bool:
        return self.status in ("CREATE_COMPLETE", "UPDATE_COMPLETE")


def check_ready(values: Values) -> None:
    """Raise what would stop `create` or `update` at once: no tool, example values, no credentials."""
    need_tool()
    examples = placeholders_in(values)
    if examples:
        raise JobError(f"{', '.join(examples)}: values of the example; write your own into the values file")
    check_credentials(values.region)


def check_credentials(region: str) -> None:
    """Ask AWS whose credentials these are; JobError where there are none or they are refused."""
    account_number(client("sts", region, timeout_s=10, attempts=2))


def create(
    template: str,
    values: Values,
    say: Say,
    *,
    patience: WaitLimits | None = None,
    ask_account: bool | None = None,
) -> ClusterState:
    """Check, dry run, budget, create, and wait until the head node stands."""
    tool = need_tool()
    rendered = _load_checked(template, values, say, ask_account)
    with _config_file(rendered, values.name) as path:
        arguments = ("--cluster-name", values.name, "--cluster-configuration", str(path))
        say("dry run: all validators of ParallelCluster, against the account")
        _need_passed(
            call(tool, "create-cluster", *arguments, "--dryrun", "true", region=values.region), rendered
        )
        _budget(values, say)
        reply = call(tool, "create-cluster", *arguments, region=values.region)
    if "cluster" not in reply.answer:
        raise _refusal(reply, f"create {values.name}", rendered)
    say(f"creating {values.name} in {values.region}; ten minutes are usual")
    return _wait(
        tool, values.name, values.region, "CREATE", say, patience or WaitLimits(longest_s=_LONGEST_WAIT_S)
    )


def update(
    template: str,
    values: Values,
    say: Say,
    *,
    patience: WaitLimits | None = None,
    ask_account: bool | None = None,
) -> ClusterState | None:
    """Bring a running cluster to a changed configuration; None where nothing had changed."""
    tool = need_tool()
    rendered = _load_checked(template, values, say, ask_account)
    with _config_file(rendered, values.name) as path:
        arguments = ("--cluster-name", values.name, "--cluster-configuration", str(path))
        dry = call(tool, "update-cluster", *arguments, "--dryrun", "true", region=values.region)
        if "No changes found" in dry.message:
            say("nothing to change")
            return None
        _need_passed(dry, rendered)
        for each in dry.answer.get("changeSet", ()):
            say(f"change: {each['parameter']}: {each.get('currentValue')} -> {each.get('requestedValue')}")
        reply = call(tool, "update-cluster", *arguments, region=values.region)
    if "cluster" not in reply.answer:
        raise _refusal(reply, f"update {values.name}", rendered)
    return _wait(
        tool, values.name, values.region, "UPDATE", say, patience or WaitLimits(longest_s=_LONGEST_WAIT_S)
    )


def status(name: str, region: str) -> ClusterState:
    tool = need_tool()
    state = _state(tool, name, region, with_nodes=True)
    if state is None:
        known = f"`{tool.executable} list-clusters -r {region}`"
        raise JobError(f"there is no cluster {name} in {region}; {known} lists them")
    return state


def set_fleet(name: str, region: str, *, is_running: bool) -> str:
    """Start or stop the compute fleet; the head node stays. Answers the fleet's new status."""
    wanted = "START_REQUESTED" if is_running else "STOP_REQUESTED"
    reply = call(
        need_tool(), "update-compute-fleet", "--cluster-name", name, "--status", wanted, region=region
    )
    if "status" not in reply.answer:
        raise _refusal(reply, f"{'start' if is_running else 'stop'} the fleet of {name}")
    return str(reply.answer["status"])


def delete(
    name: str,
    region: str,
    say: Say,
    *,
    store: tuple[str, str] | None = None,
    is_forced: bool = False,
    patience: WaitLimits | None = None,
) -> None:
    """Delete a cluster; refused while runs are active, unless forced. `store` is (bucket, prefix)."""
    tool = need_tool()
    if not is_forced:
        _need_quiet(tool, name, region, say, store)
    reply = call(tool, "delete-cluster", "--cluster-name", name, region=region)
    if "cluster" not in reply.answer and not _GONE.search(reply.message):
        raise _refusal(reply, f"delete {name}")
    wait = patience or WaitLimits(longest_s=_LONGEST_WAIT_S)
    end = time.monotonic() + wait.longest_s
    while (state := _state(tool, name, region)) is not None:
        if state.status.endswith("DELETE_FAILED"):
            raise BackendError(f"{name}: deletion failed; {_events(tool, name, region)} says why")
        if time.monotonic() > end:
            raise BackendError(
                f"{name} is still {state.status} after {wait.longest_s:.0f} s; delete it again"
            )
        say(f"{name}: {state.status}")
        time.sleep(wait.poll_s)
    _drop_budget(name, region)
    say(f"{name} is gone; what lies in the bucket stays")


def _events(tool: Tool, name: str, region: str) -> str:
    """The command that shows them; the tool lies in an environment of its own, on no PATH."""
    return f"`{tool.executable} get-cluster-stack-events -n {name} -r {region}`"


def first_job_line(state: ClusterState, values: Values) -> str:
    """What to type to see the cluster work."""
    return (
        f"aws s3 cp YOUR-CLIP.mp4 {values.store_uri}/incoming/clip.mp4 && "
        f"ssh -i YOUR-KEY.pem ubuntu@{state.head_address or 'HEAD-NODE'} vsr submit /opt/vsr/first-job.yaml"
    )


def active_runs(bucket: str, prefix: str, region: str) -> tuple[str, ...]:
    """Runs of the bucket whose workers were heard of within ten minutes and which are not done.

    A run keeps one heartbeat per worker in `workers/` and is done with its `done.json` (vsr_hpc/run/run.py).
    Ages compare the bucket's clock with itself.
    """
    alive: set[str] = set()
    done: set[str] = set()
    with explained(f"search s3://{bucket}/{prefix} for active runs"):
        s3 = client("s3", region)
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
            now: datetime = _date(page)
            for each in page.get("Contents", ()):
                run, _, name = str(each["Key"]).rpartition("/")
                if name == "done.json":
                    done.add(run)
                elif run.endswith("/workers") and now - each["LastModified"] < _ALIVE:
                    alive.add(run.removesuffix("/workers"))
    return tuple(f"s3://{bucket}/{run}" for run in sorted(alive - done))


def _date(page: dict[str, Any]) -> datetime:
    stamp = page["ResponseMetadata"]["HTTPHeaders"]["date"]
    return datetime.strptime(stamp, "%a, %d %b %Y %H:%M:%S %Z").replace(tzinfo=UTC)


def _load_checked(template: str, values: Values, say: Say, ask_account: bool | None) -> Rendered:
    rendered = checking.load(template, values)
    report = checking.check(rendered, values=values, ask_account=ask_account)
    errors = [str(each) for each in report.findings if each.level == "error"]
    if errors:
        raise JobError.from_findings(str(rendered.template), errors)
    for each in report.findings:
        if each.level == "warning":
            say(str(each))
    say(
        f"asleep about ${report.bill.floor_usd:.2f} a month, at full load ${report.bill.load_low_usd:.2f} "
        f"to ${report.bill.load_high_usd:.2f} an hour"
    )
    return rendered


@contextmanager
def _config_file(rendered: Rendered, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vsr-cluster-") as folder:
        path = Path(folder) / f"{name}.yaml"
        path.write_text(rendered.text, "utf-8")
        yield path


def _need_passed(reply: PclusterReply, rendered: Rendered) -> None:
    if not reply.dryrun_passed:
        raise _refusal(reply, "dry run", rendered)


def _refusal(reply: PclusterReply, what: str, rendered: Rendered | None = None) -> JobError | BackendError:
    findings = [str(each) for each in reply.findings() if each.level == "error"]
    if findings:
        return JobError.from_findings(f"{rendered.template if rendered else what}: {reply.message}", findings)
    if re.search(r"credential|token|not authorized|AccessDenied", reply.message, re.IGNORECASE):
        return JobError(f"{what}: {reply.message}")
    return BackendError(f"{what}: {reply.message or reply.answer}")


def _wait(tool: Tool, name: str, region: str, verb: str, say: Say, patience: WaitLimits) -> ClusterState:
    end = time.monotonic() + patience.longest_s
    told = ""
    while True:
        state = _state(tool, name, region)
        if state is not None and state.status == f"{verb}_COMPLETE":
            say(f"{name}: {state.status}")
            return state
        if state is None or "FAILED" in state.status or "ROLLBACK" in state.status:
            why = "; ".join(state.failures) if state and state.failures else "no reason given"
            raise BackendError(
                f"{name}: {state.status if state else 'gone'}: {why}; "
                f"{_events(tool, name, region)} tells more"
            )
        if time.monotonic() > end:
            raise BackendError(
                f"{name} is still {state.status} after {patience.longest_s:.0f} s; "
                f"`vsr cluster status --name {name} --region {region}` looks again"
            )
        line = f"{name}: {state.status}{_last_event(tool, name, region)}"
        if line != told:
            say(line)
            told = line
        time.sleep(patience.poll_s)


def _last_event(tool: Tool, name: str, region: str) -> str:
    events = call(tool, "get-cluster-stack-events", "--cluster-name", name, region=region).answer.get(
        "events"
    )
    if not events:
        return ""
    done = sum(str(each.get("resourceStatus", "")).endswith("_COMPLETE") for each in events)
    return f", {done} resources done, last {events[0].get('logicalResourceId')}"


def _state(tool: Tool, name: str, region: str, *, with_nodes: bool = False) -> ClusterState | None:
    reply = call(tool, "describe-cluster", "--cluster-name", name, region=region)
    if "clusterStatus" not in reply.answer:
        if _GONE.search(reply.message):
            return None
        raise _refusal(reply, f"describe {name}")
    head = reply.answer.get("headNode") or {}
    return ClusterState(
        name=name,
        region=region,
        status=str(reply.answer["clusterStatus"]),
        fleet=str(reply.answer.get("computeFleetStatus", "UNKNOWN")),
        head_address=str(head.get("publicIpAddress") or head.get("privateIpAddress") or ""),
        compute_nodes=_count_nodes(tool, name, region) if with_nodes else 0,
        version=str(reply.answer.get("version", "")),
        failures=tuple(
            f"{each.get('failureCode')}: {each.get('failureReason')}"
            for each in reply.answer.get("failures", ())
        ),
    )


def _count_nodes(tool: Tool, name: str, region: str) -> int:
    arguments = ("--cluster-name", name, "--node-type", "ComputeNode")
    nodes = call(tool, "describe-cluster-instances", *arguments, region=region).answer.get("instances", ())
    return sum(each.get("state") in ("pending", "running") for each in nodes)


def _need_quiet(tool: Tool, name: str, region: str, say: Say, store: tuple[str, str] | None) -> None:
    state = _state(tool, name, region, with_nodes=True)
    if state is None:
        raise JobError(f"there is no cluster {name} in {region}")
    active = active_runs(*store, region) if store else ()
    if store is None:
        say("no bucket given: active runs are only guessed from the nodes that run")
    reasons = [f"{len(active)} active run(s): {', '.join(active[:5])}"] if active else []
    if state.compute_nodes:
        reasons.append(f"{state.compute_nodes} compute node(s) running")
    if reasons:
        raise JobError(
            f"{name} is at work: {'; '.join(reasons)}. `vsr cancel RUN` ends a run and keeps its receipts; "
            "--force deletes the cluster all the same"
        )


def _budget(values: Values, say: Say) -> None:
    """One monthly budget over the cluster's tag, with mails at 50, 80 and 100 per cent."""
    if values.budget_usd_per_month is None or values.budget_email is None:
        return
    account = account_number(client("sts", values.region))
    budget = {
        "BudgetName": f"vsr-{values.name}",
        "BudgetLimit": {"Amount": f"{values.budget_usd_per_month:.2f}", "Unit": "USD"},
        "CostFilters": {"TagKeyValue": [f"user:vsr-cluster${values.name}"]},
        "TimeUnit": "MONTHLY",
        "BudgetType": "COST",
    }
    mails = [
        {
            "Notification": {
                "NotificationType": "ACTUAL",
                "ComparisonOperator": "GREATER_THAN",
                "Threshold": float(threshold),
                "ThresholdType": "PERCENTAGE",
            },
            "Subscribers": [{"SubscriptionType": "EMAIL", "Address": values.budget_email}],
        }
        for threshold in (50, 80, 100)
    ]
    with explained(f"set the budget of {values.name}"):
        budgets = client("budgets", values.region)
        try:
            budgets.create_budget(AccountId=account, Budget=budget, NotificationsWithSubscribers=mails)
        except budgets.exceptions.DuplicateRecordException:
            budgets.update_budget(AccountId=account, NewBudget=budget)
    say(f"budget: ${values.budget_usd_per_month:.0f} a month, mails to {values.budget_email}")


def _drop_budget(name: str, region: str) -> None:
    try:
        account = account_number(client("sts", region))
        with explained(f"delete the budget of {name}"):
            client("budgets", region).delete_budget(AccountId=account, BudgetName=f"vsr-{name}")
    except (JobError, BackendError) as exc:
        log.info("budget not deleted name=%s reason=%s", name, exc)
