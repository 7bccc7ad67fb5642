"""Our own rules on access, encryption, storage and operation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from vsr_hpc.aws.cluster.instance_rules import AMI_GIB, QUEUES, Rule, Subject, pools
from vsr_hpc.aws.cluster.yaml_document import ConfigFinding, Path, at, items
from vsr_hpc.aws.prices import prices

_SECRET = re.compile(r"(AKIA|ASIA)[0-9A-Z]{16}|(?i:secret|password|token)=\S+|-----BEGIN")
_TAGS = ("vsr-project", "vsr-cluster")


def repeated_keys(subject: Subject) -> Iterator[ConfigFinding]:
    for path in subject.document.repeated:
        text = f"{path[-1]} is written twice here; YAML takes the last one in silence"
        yield ConfigFinding(level="error", path=path, rule="key-twice", message=text)


def store_access(subject: Subject) -> Iterator[ConfigFinding]:
    """Every node needs the run's bucket, and no more than its own part of it."""
    config = subject.document.value
    for path, node, what in [(("HeadNode",), at(config, "HeadNode"), "the head node"), *_queues(config)]:
        iam = at(node, "Iam") or {}
        if not any(
            iam.get(key) for key in ("AdditionalIamPolicies", "S3Access", "InstanceRole", "InstanceProfile")
        ):
            text = (
                f"{what} has no access to the bucket: add Iam.AdditionalIamPolicies with the policy that "
                "`vsr storage init` made; without it bootstrap fails and no worker finds its run"
            )
            yield ConfigFinding(level="error", path=(*path, "Iam"), rule="no-store", message=text)
        for tail, access in items(iam, "S3Access"):
            here = (*path, "Iam", *tail)
            if access.get("BucketName") == "*":
                text = "S3Access to every bucket of the account; name the one bucket"
                yield ConfigFinding(level="error", path=(*here, "BucketName"), rule="s3-wide", message=text)
            elif access.get("EnableWriteAccess") and not access.get("KeyName"):
                text = (
                    "write access without KeyName is s3:* on the whole bucket, its policy and deletion "
                    "included; "
                    "use the policy that `vsr storage init` made"
                )
                yield ConfigFinding(level="warning", path=(*here, "BucketName"), rule="s3-wide", message=text)
        for tail, policy in items(iam, "AdditionalIamPolicies"):
            if re.search(
                r":policy/(AdministratorAccess|PowerUserAccess|AmazonS3FullAccess)$",
                str(policy.get("Policy")),
            ):
                text = f"{policy['Policy']} is far more than a node needs; any job could use it"
                yield ConfigFinding(
                    level="error", path=(*path, "Iam", *tail, "Policy"), rule="iam-wide", message=text
                )


def _queues(config: dict[str, Any]) -> list[tuple[Path, Any, str]]:
    return [(path, queue, f"queue {queue.get('Name')}") for path, queue in items(config, *QUEUES)]


def metadata_service(subject: Subject) -> Iterator[ConfigFinding]:
    if at(subject.document.value, "Imds", "ImdsSupport") != "v2.0":
        text = (
            "nodes answer version 1 of the metadata service: any process that can be made to fetch a URL "
            "gets the role"
        )
        yield ConfigFinding(level="error", path=("Imds", "ImdsSupport"), rule="imds", message=text)


def reachable_by_all(subject: Subject) -> Iterator[ConfigFinding]:
    path: Path = ("HeadNode", "Ssh", "AllowedIps")
    allowed = at(subject.document.value, *path)
    if at(subject.document.value, "HeadNode", "Ssh") and allowed in (None, "0.0.0.0/0"):
        text = "port 22 is open to the whole internet; name your own address range (x.y.z.w/32)"
        yield ConfigFinding(level="warning", path=path, rule="ssh-open", message=text)


def disks(subject: Subject) -> Iterator[ConfigFinding]:
    """Encrypted, and large enough for the image and the environment on top."""
    config = subject.document.value
    gpu_queues = {pool.queue_path for pool in pools(subject.document) if pool.has_gpu}
    places: list[tuple[Path, Any, int]] = [(("HeadNode", "LocalStorage", "RootVolume"), None, 50)]
    for path, _, _ in _queues(config):
        need = 80 if path in gpu_queues else 55
        places.append(((*path, "ComputeSettings", "LocalStorage", "RootVolume"), None, need))
    for path, _, need in places:
        volume = at(config, *path)
        if not isinstance(volume, dict):
            continue
        if volume.get("Encrypted") is False:
            text = "this disk holds the user's pictures: keep it encrypted (it costs nothing)"
            yield ConfigFinding(level="error", path=(*path, "Encrypted"), rule="encrypted", message=text)
        size = volume.get("Size")
        if isinstance(size, int) and size < AMI_GIB:
            text = f"Size={size} GiB: ParallelCluster's image alone takes {AMI_GIB}"
            yield ConfigFinding(level="error", path=(*path, "Size"), rule="disk", message=text)
        elif isinstance(size, int) and size < need:
            text = (
                f"Size={size} GiB leaves {size - AMI_GIB} beside the image; the environment wants "
                f"{need - AMI_GIB}"
            )
            yield ConfigFinding(level="warning", path=(*path, "Size"), rule="disk", message=text)


def shared_storage(subject: Subject) -> Iterator[ConfigFinding]:
    config = subject.document.value
    zones = max((len(pool.subnets) for pool in pools(subject.document)), default=0)
    scratch = {
        at(queue, "ComputeSettings", "LocalStorage", "EphemeralVolume", "MountDir")
        for _, queue, _ in _queues(config)
    }
    for path, storage in items(config, "SharedStorage"):
        mount, kind = storage.get("MountDir"), storage.get("StorageType")
        if mount in scratch and mount is not None:
            text = f"{mount} is the nodes' own NVMe (EphemeralVolume); mount the shared one elsewhere"
            yield ConfigFinding(level="error", path=(*path, "MountDir"), rule="mount-twice", message=text)
        for settings in ("EbsSettings", "EfsSettings"):
            if at(storage, settings, "Encrypted") is False or (
                storage.get(settings)
                and settings == "EfsSettings"
                and not _is_encrypted_efs(storage[settings])
            ):
                text = "shared storage holds the user's pictures: set Encrypted: true"
                yield ConfigFinding(
                    level="error", path=(*path, settings, "Encrypted"), rule="encrypted", message=text
                )
        if kind == "FsxLustre" and not at(storage, "FsxLustreSettings", "FileSystemId"):
            yield from _lustre(subject, path, storage, zones)


def _is_encrypted_efs(settings: Any) -> bool:
    return not isinstance(settings, dict) or bool(settings.get("Encrypted") or settings.get("FileSystemId"))


def _lustre(subject: Subject, path: Path, storage: dict[str, Any], zones: int) -> Iterator[ConfigFinding]:
    here = (*path, "StorageType")
    if zones > 1:
        text = f"a new FSx file system lives in one zone, a queue here spans {zones}; use spot-gpu-fsx.yaml"
        yield ConfigFinding(level="error", path=here, rule="fsx-zones", message=text)
    size = at(storage, "FsxLustreSettings", "StorageCapacity") or 1200
    kind = str(at(storage, "FsxLustreSettings", "DeploymentType") or "SCRATCH_2").lower()
    monthly = size * prices(subject.region).per_gb_month(f"fsx_lustre_{kind}")
    text = (
        f"FSx for Lustre, {size} GiB, about ${monthly:,.0f} a month whether used or not; runs live in S3 "
        "and don't need it"
    )
    yield ConfigFinding(level="warning", path=here, rule="fsx-cost", message=text)


def bootstrap(subject: Subject) -> Iterator[ConfigFinding]:
    config = subject.document.value
    for path, node, what in [(("HeadNode",), at(config, "HeadNode"), "the head node"), *_queues(config)]:
        actions: Path = (*path, "CustomActions", "OnNodeConfigured")
        configured = at(node, "CustomActions", "OnNodeConfigured")
        if not configured:
            text = f"{what} runs no OnNodeConfigured script: its nodes come up without vsr"
            yield ConfigFinding(level="error", path=actions, rule="no-bootstrap", message=text)
            continue
        scripts = [(actions, configured)]
        scripts += [((*actions, *tail), each) for tail, each in items(configured, "Sequence")]
        for here, each in scripts:
            script = each.get("Script") if isinstance(each, dict) else None
            if isinstance(script, str) and not script.startswith(("s3://", "https://")):
                text = f"{script}: a node fetches scripts from s3:// or https:// only"
                yield ConfigFinding(level="error", path=(*here, "Script"), rule="script-place", message=text)
            arguments = each.get("Args") if isinstance(each, dict) else None
            for index, argument in enumerate(arguments if isinstance(arguments, list) else ()):
                if _SECRET.search(str(argument)):
                    text = (
                        "this looks like a secret; arguments are readable in the launch template and the logs"
                    )
                    yield ConfigFinding(
                        level="error", path=(*here, "Args", index), rule="secret", message=text
                    )


def operation(subject: Subject) -> Iterator[ConfigFinding]:
    """Idle time, updates, logs and tags."""
    config = subject.document.value
    settings: Path = ("Scheduling", "SlurmSettings")
    idle = at(config, *settings, "ScaledownIdletime")
    if isinstance(idle, int) and idle < 0:
        text = f"ScaledownIdletime={idle}: idle nodes are never stopped, and paid for ever"
        yield ConfigFinding(level="error", path=(*settings, "ScaledownIdletime"), rule="idle", message=text)
    elif isinstance(idle, int) and (idle > 30 or idle < 2):
        text = f"ScaledownIdletime={idle} min: " + (
            "every burst ends with that much idle GPU time"
            if idle > 30
            else "nodes are thrown away between two jobs"
        )
        yield ConfigFinding(level="warning", path=(*settings, "ScaledownIdletime"), rule="idle", message=text)
    if at(config, *settings, "QueueUpdateStrategy") not in ("DRAIN", "TERMINATE"):
        text = "without QueueUpdateStrategy: DRAIN an update of a queue needs the whole fleet stopped"
        yield ConfigFinding(
            level="warning", path=(*settings, "QueueUpdateStrategy"), rule="update", message=text
        )
    if at(config, *settings, "EnableMemoryBasedScheduling"):
        text = (
            "with several instance types it ends in BadConstraints after a reclaim (aws-parallelcluster "
            "#5731, #6641)"
        )
        yield ConfigFinding(
            level="warning", path=(*settings, "EnableMemoryBasedScheduling"), rule="memory", message=text
        )
    logs: Path = ("Monitoring", "Logs", "CloudWatch")
    if at(config, *logs, "Enabled") is False:
        text = "no logs: a node that fails its bootstrap leaves nothing to read"
        yield ConfigFinding(level="warning", path=(*logs, "Enabled"), rule="logs", message=text)
    elif at(config, *logs, "RetentionInDays") is None:
        text = "no RetentionInDays: logs are kept, and paid, for 180 days"
        yield ConfigFinding(level="warning", path=(*logs, "RetentionInDays"), rule="logs", message=text)
    present = {each.get("Key") for _, each in items(config, "Tags")}
    missing = [key for key in _TAGS if key not in present]
    if missing:
        text = (
            f"no tag {' or '.join(missing)}: this cluster can't be found on the bill, and its budget sees "
            "nothing"
        )
        yield ConfigFinding(level="warning", path=("Tags",), rule="tags", message=text)


RULES: tuple[Rule, ...] = (
    repeated_keys,
    store_access,
    metadata_service,
    reachable_by_all,
    disks,
    shared_storage,
    bootstrap,
    operation,
)
