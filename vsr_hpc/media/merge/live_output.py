"""A muxer's output for somebody who takes it as it comes: nothing that was taken can be written again."""

from __future__ import annotations

import io

from vsr_hpc.media.merge.header_edits import TrackEdit, edit_matroska_tracks, has_matroska_tracks


class Outlet:
    """A file that can only be written to. Track headers are edited before they go out."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._is_edited = False

    def write(self, data: bytes) -> int:
        self._held += data
        return len(data)

    def take(self, edits: dict[int, TrackEdit]) -> bytes:
        """What was written since the last call; nothing while a header to be edited is not whole yet."""
        if self._held and edits and not self._is_edited:
            if not has_matroska_tracks(self._held):
                return b""
            self._edit(edits)
        piece = bytes(self._held)
        self._held.clear()
        return piece

    def rest(self, edits: dict[int, TrackEdit]) -> bytes:
        """All that is left of a finished file."""
        if edits and not self._is_edited:
            self._edit(edits)
        return bytes(self._held)

    def _edit(self, edits: dict[int, TrackEdit]) -> None:
        file = io.BytesIO(self._held)
        edit_matroska_tracks(file, edits)
        self._held[:] = file.getbuffer()
        self._is_edited = True
