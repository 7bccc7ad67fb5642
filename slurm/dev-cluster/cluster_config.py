"""What a development cluster is made of, as text: options in, Slurm's configuration files out.

Pure: nothing here touches the machine. `cluster_init.py` writes these files and starts the daemons.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

# slurmd takes only character devices for GPUs; these exist in every VM and container, and nothing opens them.
FAKE_GPUS = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")

HEAD = "head"
IMDS_ADDRESS = "169.254.169.254"
# slurmstepd's socket is <root>/spool/<node>/<node>_<job>.4294967291 and must stay under 108 characters;
# one that is longer leaves every job "launch failed requeued held" on nodes that look idle.
LONGEST_ROOT = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What kind of cluster to bring up. The defaults are as bare as AWS ParallelCluster's own.

    profile "standard": no accounting, MaxArraySize 1001, no user signal before preemption.
    profile "full": slurmdbd on MariaDB, MaxArraySize 10001, preempt_send_user_signal.
    network: every node in a network namespace of its own (10.77.0.x) with its own IMDS on 169.254.169.254;
    then nothing outside the cluster reaches it except through `DevCluster.run` and `run_as_user`.
    requeue_delay_s: Slurm's cred_expire, the wait before a requeued job may start again. It must outlast
    the end of the old instance, or the node is drained with "Duplicate jobid".
    """

    profile: Literal["standard", "full"] = "standard"
    spot: int = 3
    ondemand: int = 1
    cpus: int = 4
    gpus: int = 1
    memory_mib: int = 4000
    kill_wait_s: int = 2
    grace_s: int = 0
    slurmd_timeout_s: int = 10
    requeue_delay_s: int = 10
    min_job_age_s: int = 300
    network: bool = False
    auth: Literal["munge", "none"] = "munge"
    user: str = "nobody"
    visible: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.spot <= 20 or not 0 <= self.ondemand <= 20:
            raise ValueError(f"spot={self.spot}, ondemand={self.ondemand}: wanted 1 to 20 and 0 to 20 nodes")
        if not 0 <= self.gpus <= len(FAKE_GPUS):
            raise ValueError(f"gpus={self.gpus}: only {len(FAKE_GPUS)} devices can pass for a GPU")
        if self.requeue_delay_s < self.kill_wait_s + 2:
            raise ValueError(
                f"requeue_delay_s={self.requeue_delay_s} is too short for kill_wait_s={self.kill_wait_s}: "
                f"the old instance would still run; try {self.kill_wait_s + 8}"
            )
        if self.user == "root":
            raise ValueError("user=root: jobs run as an ordinary user here, as on a real cluster; try nobody")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Options:
        given = json.loads(text)
        return cls(**{**given, "visible": tuple(given["visible"]), "extra": tuple(given["extra"])})

    @property
    def spot_nodes(self) -> tuple[str, ...]:
        return tuple(f"spot-dy-g4dn-{i + 1}" for i in range(self.spot))

    @property
    def ondemand_nodes(self) -> tuple[str, ...]:
        return tuple(f"ondemand-st-g4dn-{i + 1}" for i in range(self.ondemand))

    @property
    def nodes(self) -> tuple[str, ...]:
        return self.spot_nodes + self.ondemand_nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a cluster lives: its folder, its first TCP port and the version of Slurm it runs."""

    root: Path
    base_port: int
    version: tuple[int, int]

    def __post_init__(self) -> None:
        if len(str(self.root)) > LONGEST_ROOT:
            raise ValueError(
                f"{self.root}: longer than {LONGEST_ROOT} characters, Slurm's sockets would not fit"
            )

    @property
    def munge_socket(self) -> Path:
        return self.root / "munge/munge.sock"

    @property
    def database_port(self) -> int:
        return self.base_port + 3


def head_address(options: Options) -> str:
    return "10.77.0.1" if options.network else "127.0.0.1"


def node_address(options: Options, node: str) -> str:
    return f"10.77.0.{11 + options.nodes.index(node)}" if options.network else "127.0.0.1"


def imds_listen(options: Options, place: Place, node: str) -> tuple[str, int]:
    """Address and port of a node's own instance metadata service."""
    if options.network:
        return IMDS_ADDRESS, 80
    return "127.0.0.1", place.base_port + 60 + options.nodes.index(node)


def imds_url(options: Options, place: Place, node: str) -> str:
    host, port = imds_listen(options, place, node)
    return f"http://{host}:{port}"


def config_files(options: Options, place: Place) -> dict[str, str]:
    """Every file of <root>/etc: its name and its text."""
    files = {
        "slurm.conf": slurm_conf(options, place),
        "gres.conf": "AutoDetect=off\n"
        + "".join(f"Name=gpu File={each}\n" for each in FAKE_GPUS[: options.gpus]),
        "cgroup.conf": cgroup_conf(place.version),
        "task-prolog.sh": task_prolog(options, place),
    }
    if options.profile == "full":
        files["slurmdbd.conf"] = slurmdbd_conf(options, place)
    return files


def cgroup_conf(version: tuple[int, int]) -> str:
    # slurmd always loads a cgroup plugin. In 22.05 v1 is the one that starts on cgroup v1, v2, hybrid and
    # none; "disabled" came later and the keys for v1 went.
    if version >= (24, 5):
        return "CgroupPlugin=disabled\n"
    return "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n"


def task_prolog(options: Options, place: Place) -> str:
    """Slurm puts what this prints into the job's environment: each node's job asks its own node's IMDS."""
    if options.network:
        return "#!/bin/sh\n"
    cases = "".join(
        f"{node}) echo export AWS_EC2_METADATA_SERVICE_ENDPOINT={imds_url(options, place, node)} ;;\n"
        for node in options.nodes
    )
    return f'#!/bin/sh\ncase "$SLURMD_NODENAME" in\n{cases}esac\n'


def hosts(options: Options) -> str:
    """/etc/hosts as the cluster sees it: every node's name resolves, as ParallelCluster's DNS does."""
    lines = ["127.0.0.1 localhost", f"{head_address(options)} {HEAD}", f"{IMDS_ADDRESS} instance-data"]
    return "\n".join(lines + [f"{node_address(options, node)} {node}" for node in options.nodes]) + "\n"


def slurm_conf(options: Options, place: Place) -> str:
    sections = (
        _daemons(options, place),
        _behaviour(options, place),
        _accounting(options, place),
        options.extra,
        _nodes(options, place),
        _partitions(options),
    )
    return "\n".join(line for section in sections for line in section) + "\n"


def _daemons(options: Options, place: Place) -> tuple[str, ...]:
    root = place.root
    auth_info = f"socket={place.munge_socket}," if options.auth == "munge" else ""
    return (
        "ClusterName=dev",
        f"SlurmctldHost={HEAD}({head_address(options)})",
        f"SlurmctldPort={place.base_port}",
        f"SlurmdPort={place.base_port + 1}",
        "SlurmUser=root",
        "SlurmdUser=root",
        f"AuthType=auth/{options.auth}",
        f"CredType=cred/{options.auth}",
        f"AuthInfo={auth_info}cred_expire={options.requeue_delay_s}",
        f"StateSaveLocation={root}/state",
        f"SlurmdSpoolDir={root}/spool/%n",
        f"SlurmctldPidFile={root}/run/slurmctld.pid",
        f"SlurmdPidFile={root}/run/slurmd-%n.pid",
        f"SlurmctldLogFile={root}/log/slurmctld.log",
        f"SlurmdLogFile={root}/log/slurmd-%n.log",
        "SlurmctldDebug=info",
        "SlurmdDebug=info",
        "MailProg=/bin/true",
    )


def _behaviour(options: Options, place: Place) -> tuple[str, ...]:
    full = options.profile == "full"
    return (
        "MpiDefault=none",
        "SwitchType=switch/none",
        # No cgroups and no affinity: this runs in a VM or container without systemd. proctrack/linuxproc
        # would lose the processes whose parent died.
        "ProctrackType=proctrack/pgid",
        "TaskPlugin=task/none",
        f"TaskProlog={place.root}/etc/task-prolog.sh",
        "JobAcctGatherType=jobacct_gather/none",
        "SlurmdParameters=config_overrides",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU",
        "GresTypes=gpu",
        # 2 would bring a node that was set down by hand back within seconds.
        "ReturnToService=1",
        f"SlurmdTimeout={options.slurmd_timeout_s}",
        "SlurmctldTimeout=30",
        "MessageTimeout=10",
        "TCPTimeout=2",
        "InactiveLimit=0",
        f"KillWait={options.kill_wait_s}",
        "UnkillableStepTimeout=20",
        f"MinJobAge={options.min_job_age_s}",
        f"MaxArraySize={10001 if full else 1001}",
        "JobRequeue=1",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=sched_interval=1,sched_min_interval=100000,batch_sched_delay=0,"
        "bf_interval=1,bf_min_age_reserve=0",
        *(("SlurmctldParameters=preempt_send_user_signal",) if full else ()),
    )


def _accounting(options: Options, place: Place) -> tuple[str, ...]:
    if options.profile == "standard":
        return ("AccountingStorageType=accounting_storage/none", "JobCompType=jobcomp/none")
    password = (f"AccountingStoragePass={place.munge_socket}",) if options.auth == "munge" else ()
    return (
        "AccountingStorageType=accounting_storage/slurmdbd",
        f"AccountingStorageHost={head_address(options)}",
        f"AccountingStoragePort={place.base_port + 2}",
        "AccountingStorageTRES=gres/gpu",
        *password,
    )


def _nodes(options: Options, place: Place) -> tuple[str, ...]:
    gres = f" Gres=gpu:{options.gpus}" if options.gpus else ""
    return tuple(
        f"NodeName={node} NodeHostname={node} NodeAddr={node_address(options, node)} "
        f"Port={place.base_port + 10 + index} CPUs={options.cpus} RealMemory={options.memory_mib}{gres} "
        f"Feature={'spot' if node in options.spot_nodes else 'ondemand'}"
        for index, node in enumerate(options.nodes)
    )


def _partitions(options: Options) -> tuple[str, ...]:
    spot, ondemand = ",".join(options.spot_nodes), ",".join(options.ondemand_nodes)
    return (
        f"PartitionName=spot Nodes={spot} Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE "
        f"GraceTime={options.grace_s}",
        *(
            (f"PartitionName=ondemand Nodes={ondemand} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF",)
            * bool(ondemand)
        ),
        f"PartitionName=reclaim Nodes={spot} MaxTime=INFINITE PriorityTier=100 PreemptMode=OFF",
    )


def slurmdbd_conf(options: Options, place: Place) -> str:
    auth_info = (f"AuthInfo={place.munge_socket}",) if options.auth == "munge" else ()
    lines = (
        f"AuthType=auth/{options.auth}",
        *auth_info,
        f"DbdHost={HEAD}",
        f"DbdAddr={head_address(options)}",
        f"DbdPort={place.base_port + 2}",
        "SlurmUser=root",
        "StorageType=accounting_storage/mysql",
        "StorageHost=127.0.0.1",
        f"StoragePort={place.database_port}",
        "StorageUser=slurm",
        "StoragePass=slurm",
        "StorageLoc=slurm_acct_db",
        f"LogFile={place.root}/log/slurmdbd.log",
        f"PidFile={place.root}/run/slurmdbd.pid",
        "DebugLevel=info",
    )
    return "\n".join(lines) + "\n"
