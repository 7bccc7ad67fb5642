"""What the executors of schedulers share about a round of workers."""

from __future__ import annotations

SUBMITTING_S = 120.0
