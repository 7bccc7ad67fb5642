"""What libraries must find in the environment before they are loaded."""

from __future__ import annotations

import os
import pwd
from collections.abc import MutableMapping

THREAD_POLICY = {
    # Threads that wait for work sleep instead of spinning: stages and encoder share the cores. Beside
    # other work on two cores, 480 small frames took 34 s of CPU time with spinning and 4 s without.
    "OMP_WAIT_POLICY": "PASSIVE",
    # numpy only makes thumbnails here; its own threads would take cores from the network.
    "OPENBLAS_NUM_THREADS": "1",
}


def set_thread_policy(environment: MutableMapping[str, str] = os.environ) -> None:
    """Say it for this process and its children, unless the user has; before numpy and torch are imported."""
    for name, value in THREAD_POLICY.items():
        environment.setdefault(name, value)


def set_identity(environment: MutableMapping[str, str] = os.environ) -> None:
    """A user id that no passwd file knows, as in many containers, gets a home as from Docker, and a name."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        environment.setdefault("HOME", "/")
        if not any(environment.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
            environment["USER"] = f"uid-{os.getuid()}"
