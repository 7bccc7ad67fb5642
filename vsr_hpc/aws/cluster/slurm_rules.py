"""What may stand in CustomSlurmSettings. ParallelCluster checks only some names and no value at all.

A wrong value is found by slurmctld, on the head node, after the cluster was paid for: it does not start.
Sources: slurm.conf(5) of Slurm 25.11; ParallelCluster 3.16.1, validators/slurm_settings_validator.py.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from vsr_hpc.aws.cluster.yaml_document import ConfigFinding, Document, Path, at, items

Scope = Literal["cluster", "queue", "compute resource"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_DENIED: Mapping[Scope, tuple[str, ...]] = {
    "cluster": _words(
        "Epilog GresTypes LaunchParameters Prolog ReconfigFlags ResumeFailProgram ResumeProgram ResumeTimeout"
        " SlurmctldHost SlurmctldLogFile SlurmctldParameters SlurmdLogFile SlurmUser SuspendExcNodes"
        " SuspendProgram SuspendTime TaskPlugin TreeWidth"
    ),
    "queue": _words("Nodes PartitionName ResumeTimeout State SuspendTime OverSubscribe"),
    "compute resource": _words("CPUs Gres NodeAddr NodeHostname NodeName State Weight"),
}
_DENIED_WITH_DATABASE = _words(
    "AccountingStorageType AccountingStorageHost AccountingStoragePort AccountingStorageUser"
    " JobAcctGatherType"
)
_INSTEAD: Mapping[str, str] = {
    "suspendtime": "set SlurmSettings.ScaledownIdletime (minutes) instead",
    "oversubscribe": "set JobExclusiveAllocation on the queue instead",
    "weight": "set StaticNodePriority or DynamicNodePriority instead",
    "slurmctldparameters": "preempt_send_user_signal can't be had; spot-watch does its job",
    "prolog": "TaskProlog is allowed",
    "resumetimeout": "it is DevSettings.Timeouts.ComputeNodeBootstrapTimeout here",
}

Check = Callable[[str], "str | None"]  # what is wrong with a value, or None


def _integer(low: int, high: int) -> Check:
    def check(value: str) -> str | None:
        if not re.fullmatch(r"-?\d+", value) or not low <= int(value) <= high:
            return f"expected a whole number from {low} to {high}"
        return None

    return check


def _one_of(*allowed: str) -> Check:
    def check(value: str) -> str | None:
        if value.lower() not in {each.lower() for each in allowed}:
            return f"expected {' or '.join(allowed)}"
        return None

    return check


def _some_of(*allowed: str) -> Check:
    def check(value: str) -> str | None:
        wrong = [
            each for each in value.split(",") if each.strip().lower() not in {a.lower() for a in allowed}
        ]
        return f"{wrong[0]!r} is none of {', '.join(allowed)}" if wrong else None

    return check


def _matches(pattern: str, words: str) -> Check:
    def check(value: str) -> str | None:
        return None if re.fullmatch(pattern, value, re.IGNORECASE) else f"expected {words}"

    return check


def _exit_codes(value: str) -> str | None:
    for each in value.split(","):
        bounds = each.split("-")
        if (
            not all(re.fullmatch(r"\d{1,3}", bound) and int(bound) <= 255 for bound in bounds)
            or len(bounds) > 2
        ):
            return "expected exit codes from 0 to 255, such as 75 or 75,140-145"
        if "0" in bounds:
            return "exit code 0 is success: every finished job would run again for ever"
    return None


_TIME = _matches(
    r"\d+|(\d+-)?\d+(:\d\d){0,2}|infinite|unlimited", "minutes, [days-]hours:minutes:seconds or UNLIMITED"
)
_SECONDS = _integer(0, 65533)
_PATHNAME = _matches(r"/\S+", "an absolute path on the nodes")
_YES_NO = _one_of("YES", "NO")
_PREEMPT = _some_of("OFF", "CANCEL", "GANG", "REQUEUE", "SUSPEND", "WITHIN")
_FREE: Check = lambda value: None if value.strip() else "is empty"  # noqa: E731

_CHECKS: Mapping[Scope, Mapping[str, Check]] = {
    "cluster": {
        "MaxArraySize": _integer(1, 4000001),
        "MaxJobCount": _integer(1, 10000000),
        "MaxJobId": _integer(1, 67108863),
        "FirstJobId": _integer(1, 67108863),
        "MaxStepCount": _integer(1, 10000000),
        "MaxTasksPerNode": _integer(1, 65533),
        "KillWait": _SECONDS,
        "MinJobAge": _SECONDS,
        "SlurmdTimeout": _SECONDS,
        "SlurmctldTimeout": _SECONDS,
        "InactiveLimit": _SECONDS,
        "CompleteWait": _SECONDS,
        "WaitTime": _SECONDS,
        "OverTimeLimit": _SECONDS,
        "MessageTimeout": _integer(1, 300),
        "TCPTimeout": _integer(1, 300),
        "BatchStartTimeout": _SECONDS,
        "UnkillableStepTimeout": _SECONDS,
        "SchedulerTimeSlice": _integer(5, 65533),
        "HealthCheckInterval": _SECONDS,
        "ResumeRate": _SECONDS,
        "SuspendRate": _SECONDS,
        "SuspendTimeout": _SECONDS,
        "JobRequeue": _one_of("0", "1"),
        "ReturnToService": _one_of("0", "1", "2"),
        "RequeueExit": _exit_codes,
        "RequeueExitHold": _exit_codes,
        "PreemptType": _one_of("preempt/none", "preempt/partition_prio", "preempt/qos"),
        "PreemptMode": _PREEMPT,
        "PreemptExemptTime": _TIME,
        "PriorityType": _one_of("priority/basic", "priority/multifactor"),
        "PriorityDecayHalfLife": _TIME,
        "PriorityMaxAge": _TIME,
        "PriorityFavorSmall": _YES_NO,
        **{
            f"PriorityWeight{each}": _integer(0, 4294967295)
            for each in ("Age", "Assoc", "Fairshare", "JobSize", "Partition", "QOS")
        },
        "PriorityWeightTRES": _FREE,
        "SelectType": _one_of("select/cons_tres", "select/linear"),
        "SelectTypeParameters": _matches(r"[A-Z_]+(,[A-Z_]+)*", "flags such as CR_CPU or CR_CPU_Memory"),
        "SchedulerType": _one_of("sched/backfill", "sched/builtin"),
        "SchedulerParameters": _matches(
            r"[a-z_]+(=\S+)?(,[a-z_]+(=\S+?)?)*", "option[=value],option[=value]"
        ),
        "EnforcePartLimits": _one_of("ALL", "ANY", "NO"),
        "ProctrackType": _matches(
            r"proctrack/\w+", "proctrack/cgroup, proctrack/linuxproc or proctrack/pgid"
        ),
        "MpiDefault": _matches(r"[a-z0-9_]+", "none, pmi2 or pmix"),
        "JobSubmitPlugins": _FREE,
        "PrologFlags": _FREE,
        "TaskProlog": _PATHNAME,
        "TaskEpilog": _PATHNAME,
        "SrunProlog": _PATHNAME,
        "SrunEpilog": _PATHNAME,
        "PrologSlurmctld": _PATHNAME,
        "EpilogSlurmctld": _PATHNAME,
        "HealthCheckProgram": _PATHNAME,
        "HealthCheckNodeState": _FREE,
        "AccountingStorageEnforce": _FREE,
        "AccountingStorageTRES": _FREE,
        "AccountingStoreFlags": _FREE,
        "JobAcctGatherFrequency": _FREE,
        "JobAcctGatherParams": _FREE,
        "JobCompType": _matches(r"jobcomp/\w+", "jobcomp/none, jobcomp/filetxt, jobcomp/script or the like"),
        "JobCompLoc": _FREE,
        "DebugFlags": _FREE,
        "SlurmctldDebug": _FREE,
        "SlurmdDebug": _FREE,
        "SlurmdParameters": _FREE,
        "Licenses": _FREE,
        "MailProg": _PATHNAME,
        "PropagateResourceLimits": _FREE,
        "PropagateResourceLimitsExcept": _FREE,
        "PrivateData": _FREE,
        "RebootProgram": _PATHNAME,
        "TaskPluginParam": _FREE,
        "TopologyPlugin": _matches(r"topology/\w+", "topology/flat, topology/tree or topology/block"),
        "TopologyParam": _FREE,
        "CliFilterPlugins": _FREE,
        "DefMemPerCPU": _integer(0, 100000000),
        "DefMemPerGPU": _integer(0, 100000000),
        "DefMemPerNode": _integer(0, 100000000),
        "DefCpuPerGPU": _integer(1, 1024),
        "MaxMemPerCPU": _integer(0, 100000000),
        "MaxMemPerNode": _integer(0, 100000000),
        "VSizeFactor": _SECONDS,
        "X11Parameters": _FREE,
    },
    "queue": {
        "PriorityTier": _integer(0, 65533),
        "PriorityJobFactor": _integer(0, 65533),
        "GraceTime": _SECONDS,
        "PreemptMode": _PREEMPT,
        "MaxTime": _TIME,
        "DefaultTime": _TIME,
        "OverTimeLimit": _SECONDS,
        "MaxNodes": _matches(r"\d+|unlimited", "a number of nodes or UNLIMITED"),
        "MinNodes": _integer(0, 65533),
        "MaxCPUsPerNode": _matches(r"\d+|unlimited", "a number or UNLIMITED"),
        "DefMemPerCPU": _integer(0, 100000000),
        "DefMemPerGPU": _integer(0, 100000000),
        "DefMemPerNode": _integer(0, 100000000),
        "DefCpuPerGPU": _integer(1, 1024),
        "MaxMemPerCPU": _integer(0, 100000000),
        "MaxMemPerNode": _integer(0, 100000000),
        **dict.fromkeys(_words("Default Hidden DisableRootJobs ExclusiveUser LLN ReqResv RootOnly"), _YES_NO),
        "PowerDownOnIdle": _YES_NO,
        **dict.fromkeys(
            _words(
                "AllocNodes AllowAccounts AllowGroups AllowQos Alternate CpuBind DenyAccounts DenyQos"
                " JobDefaults QOS SelectTypeParameters TRESBillingWeights ResumeRate SuspendTimeout"
            ),
            _FREE,
        ),
    },
    "compute resource": {
        "RealMemory": _integer(1, 100000000),
        "MemSpecLimit": _integer(0, 100000000),
        "CoreSpecCount": _integer(0, 1024),
        "TmpDisk": _integer(0, 100000000),
        **{
            each: _integer(1, 1024)
            for each in ("Boards", "Sockets", "CoresPerSocket", "ThreadsPerCore", "Procs")
        },
        **dict.fromkeys(_words("Feature Features CpuSpecList Reason Extra TRESWeights"), _FREE),
    },
}


def check_slurm_settings(document: Document) -> Iterator[ConfigFinding]:
    """Names that are refused, names that don't exist, values that make no sense, at all three levels."""
    config = document.value
    settings: Path = ("Scheduling", "SlurmSettings")
    denied = _DENIED["cluster"]
    if at(config, *settings, "Database"):
        denied = (*denied, *_DENIED_WITH_DATABASE)
    for path, each in items(config, *settings, "CustomSlurmSettings"):
        if len(each) > 1 and not {"nodename", "partitionname", "nodeset"} & {
            str(key).lower() for key in each
        }:
            yield ConfigFinding(
                level="error",
                path=path,
                rule="slurm-several-in-one",
                message=f"{len(each)} settings in one list item: ParallelCluster takes that for a node or"
                " partition of yours and looks at none of them; write each as an item of its own (`- "
                "Name: value`)",
            )
        if not {"nodename", "partitionname", "nodeset"} & {str(key).lower() for key in each}:
            yield from _settings(path, each, "cluster", denied)
    for queue_path, queue in items(config, "Scheduling", "SlurmQueues"):
        path = (*queue_path, "CustomSlurmSettings")
        yield from _settings(path, at(queue, "CustomSlurmSettings") or {}, "queue", _DENIED["queue"])
        for resource_path, resource in items(queue, "ComputeResources"):
            yield from _settings(
                (*queue_path, *resource_path, "CustomSlurmSettings"),
                at(resource, "CustomSlurmSettings") or {},
                "compute resource",
                _DENIED["compute resource"],
            )
    yield from _together(config, settings)


def _settings(path: Path, settings: Any, scope: Scope, denied: tuple[str, ...]) -> Iterator[ConfigFinding]:
    if not isinstance(settings, dict):
        yield ConfigFinding(
            level="error", path=path, rule="slurm-shape", message="expected `Name: value` pairs"
        )
        return
    checks = {name.lower(): (name, check) for name, check in _CHECKS[scope].items()}
    for name, value in settings.items():
        here = (*path, str(name))
        lower = str(name).lower()
        if lower in {each.lower() for each in denied}:
            way_out = _INSTEAD.get(lower, "ParallelCluster sets it itself")
            text = f"{name} is refused by ParallelCluster at {scope} level; {way_out}"
            yield ConfigFinding(level="error", path=here, rule="slurm-denied", message=text)
        elif lower not in checks:
            yield _unknown(here, str(name), scope, [known for known, _ in checks.values()])
        else:
            known, check = checks[lower]
            wrong = check("YES" if value is True else "NO" if value is False else str(value))
            if wrong:
                text = f"{known}={value!r} would keep slurmctld from starting or mislead it: {wrong}"
                yield ConfigFinding(level="error", path=here, rule="slurm-value", message=text)


def _unknown(path: Path, name: str, scope: Scope, known: list[str]) -> ConfigFinding:
    near = difflib.get_close_matches(name.lower(), [each.lower() for each in known], n=1, cutoff=0.8)
    if near:
        meant = next(each for each in known if each.lower() == near[0])
        text = f"{name} is not a Slurm setting of a {scope}: slurmctld would not start; did you mean {meant}?"
        return ConfigFinding(level="error", path=path, rule="slurm-unknown", message=text)
    text = (
        f"{name} is not a {scope} setting that this check knows; slurmctld does not start on an unknown one"
    )
    return ConfigFinding(level="warning", path=path, rule="slurm-unknown", message=text)


def _together(config: dict[str, Any], settings: Path) -> Iterator[ConfigFinding]:
    given: dict[str, tuple[Path, str]] = {}
    for path, each in items(config, *settings, "CustomSlurmSettings"):
        for name, value in each.items():
            if str(name).lower() in given and len(each) == 1:
                text = f"{name} is set twice; slurmctld takes one of them"
                yield ConfigFinding(level="error", path=(*path, str(name)), rule="slurm-twice", message=text)
            given[str(name).lower()] = ((*path, str(name)), str(value))
    kill = given.get("killwait")
    if kill and kill[1].isdigit() and int(kill[1]) > 100:
        text = f"KillWait={kill[1]}: a Spot node is gone 120 s after its notice, the worker with it"
        yield ConfigFinding(level="warning", path=kill[0], rule="slurm-killwait", message=text)
    array, jobs = given.get("maxarraysize"), given.get("maxjobcount", ((), "10000"))
    if array and array[1].isdigit() and jobs[1].isdigit() and int(array[1]) > int(jobs[1]):
        text = f"MaxArraySize={array[1]} exceeds MaxJobCount={jobs[1]}: such an array is refused"
        yield ConfigFinding(level="warning", path=array[0], rule="slurm-array", message=text)
    preempt = given.get("preempttype")
    if preempt and preempt[1].lower() == "preempt/partition_prio":
        text = "queues here own separate nodes: preemption by queue can never free a node, only kill work"
        yield ConfigFinding(level="warning", path=preempt[0], rule="slurm-preempt", message=text)
    if given.get("jobrequeue", ((), "1"))[1] == "0":
        text = (
            "JobRequeue=0: a job whose Spot node is taken ends NODE_FAIL instead of starting again elsewhere"
        )
        yield ConfigFinding(level="warning", path=given["jobrequeue"][0], rule="slurm-requeue", message=text)
