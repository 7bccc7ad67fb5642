"""The reason inside an FFmpeg error, as a sentence."""

from __future__ import annotations

import av.logging


def reason(error: Exception) -> str:
    """What FFmpeg says, without the call's arguments; its last log line usually names the cause."""
    if not isinstance(error, av.FFmpegError):
        return str(error)
    said = f" ({error.log[1][2].strip()})" if error.log and error.log[1] else ""
    return f"{error.strerror}{said}"
