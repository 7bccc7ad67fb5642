"""Where a run lies: each edition of it in a numbered place of its own, of which the highest is the run.

    places/3.json        claims number 3, created only if absent; names the place
    3-9f21ab3c/...       every object of that edition

A process that still writes for an earlier number can only write into its own place.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass

from vsr_hpc.errors import VsrError
from vsr_hpc.storage.store import Store

_CLAIM = re.compile(r"places/([1-9]\d*)\.json")
_PLACE = re.compile(r"([1-9]\d*)-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlace:
    """One numbered place of a run's folder or prefix."""

    number: int
    name: str


def new_place(number: int) -> RunPlace:
    return RunPlace(number=number, name=f"{number}-{secrets.token_hex(4)}")


def newest_place(folder: Store) -> RunPlace | None:
    """The place whose number is the highest; None where no run was ever announced."""
    numbers = [int(found[1]) for each in folder.list("places/") if (found := _CLAIM.fullmatch(each.name))]
    if not numbers:
        return None
    number = max(numbers)
    try:
        place = RunPlace(number=number, name=json.loads(folder.read(f"places/{number}.json"))["place"])
    except (ValueError, KeyError, TypeError) as exc:
        raise VsrError(f"{folder.uri}: places/{number}.json is damaged: {exc}") from exc
    if number_of_place(place.name) != number:
        raise VsrError(f"{folder.uri}: places/{number}.json names {place.name!r}, which is no place of it")
    return place


def claim_place(folder: Store, place: RunPlace) -> bool:
    """Make the place the run; False where another process has claimed this number."""
    return folder.create(f"places/{place.number}.json", json.dumps({"place": place.name}).encode())


def is_superseded(folder: Store, number: int) -> bool:
    """Whether a newer edition of the run was announced."""
    return folder.exists(f"places/{number + 1}.json")


def number_of_place(name: str) -> int | None:
    """The number of a place by its name; None where the name is not that of a place."""
    found = _PLACE.fullmatch(name)
    return int(found[1]) if found else None
