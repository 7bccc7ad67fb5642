"""What one request may cost, and the refusals that say so with numbers."""

from __future__ import annotations

from dataclasses import dataclass

from vsr_hpc.errors import JobError

MIB = 1 << 20
SAGEMAKER_PAYLOAD_BYTES = 6 * MIB
"""What a real-time endpoint takes and gives (botocore's own limit for the body)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one request, and of all of them together."""

    payload_bytes: int = SAGEMAKER_PAYLOAD_BYTES
    answer_bytes: int = SAGEMAKER_PAYLOAD_BYTES
    """Of an answer in one piece; a streamed clip has no such bound."""
    pixels_in: int = 4096 * 2304
    pixels_out: int = 8192 * 4320
    clip_s: float = 60.0
    clip_frames: int = 3600
    queue: int = 32
    """Requests accepted and not yet answered; the next one is told to come again."""
    clips: int = 1
    """Clips at work side by side; further ones wait in the queue."""
    deadline_s: float = 55.0
    """From a request's head to its answer. SageMaker gives up after 60 s on a real-time endpoint."""
    read_s: float = 10.0
    """From a whole body to its picture; and to open a clip."""
    records: int = 256
    """Records in one body of batch transform."""

    def __post_init__(self) -> None:
        wrong = [
            name
            for name in ("payload_bytes", "answer_bytes", "pixels_in", "pixels_out", "clip_s", "clip_frames",
                         "queue", "clips", "deadline_s", "read_s", "records")
            if not getattr(self, name) > 0
        ]  # fmt: skip
        if wrong:
            raise JobError(f"serve: {', '.join(wrong)} must be more than 0")
