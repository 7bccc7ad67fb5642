from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.slurm.fixtures import cluster, make_cluster, shared_cluster

__all__ = ["cluster", "make_cluster", "shared_cluster"]
