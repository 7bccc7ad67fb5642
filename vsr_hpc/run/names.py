"""The names of objects in a run, and the patterns by which they are read back.

Whatever matches none of them (`.DS_Store`, an editor's copy, a file of NFS) is not part of the run.
"""

from __future__ import annotations

import re

_SHARD = re.compile(r"(\d{5,})(?:\.e([1-9]\d*))?")
_RECEIPT = re.compile(r"receipts/(\d{5,}(?:\.e[1-9]\d*)?)(\.void)?\.json")
_LEASE = re.compile(r"leases/([a-z0-9-]+(?:\.e[1-9]\d*)?)\.g([1-9]\d*)(\.end)?\.json")
_HEARTBEAT = re.compile(r"workers/([A-Za-z0-9_][A-Za-z0-9_.-]*)\.json")
_ROUND = re.compile(r"rounds/([1-9]\d*)\.json")


def shard_name(shard: int, epoch: int = 0) -> str:
    """The name of a shard's lease and receipt; each void of a receipt begins a new epoch of its shard."""
    return f"{shard:05d}.e{epoch}" if epoch else f"{shard:05d}"


def parse_shard(name: str) -> tuple[int, int] | None:
    """Shard and epoch; None where the name is not that of a shard."""
    found = _SHARD.fullmatch(name)
    if found is None:
        return None
    shard, epoch = int(found[1]), int(found[2] or 0)
    return (shard, epoch) if shard_name(shard, epoch) == name else None


def receipt_name(shard: int, epoch: int = 0) -> str:
    return f"receipts/{shard_name(shard, epoch)}.json"


def void_name(shard: int, epoch: int) -> str:
    return f"receipts/{shard_name(shard, epoch)}.void.json"


def parse_receipt(name: str) -> tuple[int, int, bool] | None:
    """Shard, epoch, and whether it is a void."""
    found = _RECEIPT.fullmatch(name)
    shard = parse_shard(found[1]) if found else None
    return None if found is None or shard is None else (*shard, found[2] is not None)


def lease_name(name: str, generation: int) -> str:
    return f"leases/{name}.g{generation}.json"


def lease_end_name(name: str, generation: int) -> str:
    return f"leases/{name}.g{generation}.end.json"


def parse_lease(name: str) -> tuple[str, int, bool] | None:
    """The lease's name, its generation, and whether it is the note of its end."""
    found = _LEASE.fullmatch(name)
    if found is None or (found[1][0].isdigit() and parse_shard(found[1]) is None):
        return None
    return found[1], int(found[2]), found[3] is not None


def heartbeat_name(worker: str) -> str:
    return f"workers/{worker}.json"


def parse_heartbeat(name: str) -> str | None:
    found = _HEARTBEAT.fullmatch(name)
    return found[1] if found else None


def round_name(number: int) -> str:
    return f"rounds/{number}.json"


def parse_round(name: str) -> int | None:
    found = _ROUND.fullmatch(name)
    return int(found[1]) if found else None
