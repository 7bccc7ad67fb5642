"""Before numpy and torch are loaded: the same thread policy as the command line sets."""

from __future__ import annotations

from vsr_hpc.system.environment import set_thread_policy

set_thread_policy()
