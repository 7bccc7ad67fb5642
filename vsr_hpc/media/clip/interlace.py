"""Is the picture interlaced? The flags say so, or FFmpeg's `idet` on a sample of frames does."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import av.error
import numpy as np
from av.filter import Graph

from vsr_hpc.media.decoder import Decoder, open_decoder
from vsr_hpc.media.picture import Plane
from vsr_hpc.media.pixels import to_planes
from vsr_hpc.media.side_data import frame_tags
from vsr_hpc.media.source import Source

Interlace = Literal["progressive", "tff", "bff", "unknown"]

_NEVER_INTERLACED = frozenset({"vp8", "vp9", "av1", "png", "gif", "webp", "apng", "tiff", "exr"})
_SAMPLE_FRAMES = 30
_MIN_JUDGED = 10
# AVFieldOrder: TT, BB, and TB, BT whose second letter says which field is shown first.
_DISPLAY_ORDERS: dict[int, Interlace] = {2: "tff", 3: "bff", 4: "bff", 5: "tff"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What was seen: how frames are flagged, and how `idet` judged those that it could judge."""

    flagged: Interlace = "progressive"
    tff: int = 0
    bff: int = 0
    progressive: int = 0
    repeated: int = 0
    is_zigzag: bool = False
    """Neighbouring lines alternate where columns do not. `idet` alone sees combs in moving test patterns."""

    @property
    def judged(self) -> int:
        return self.tff + self.bff + self.progressive


def judge_scan(scan: Scan) -> tuple[Interlace, bool, tuple[str, ...]]:
    """(interlacing, whether it looks like hard telecine, findings). A clear sample overrules the flags."""
    combed = scan.tff + scan.bff
    order: Interlace = "tff" if scan.tff >= scan.bff else "bff"
    is_enough = scan.judged >= _MIN_JUDGED
    # 3:2 pull-down mixes two combed frames of five with three clean ones, and repeats fields
    has_telecine = is_enough and 0.25 <= combed / scan.judged <= 0.6 and scan.repeated >= scan.judged * 0.15
    seen = f"{combed} of {scan.judged} sampled frames are combed"
    if scan.flagged == "progressive":
        if not scan.is_zigzag:
            return "progressive", False, ()
        if has_telecine:
            return order, True, (f"flagged progressive, but {seen} with repeated fields: hard telecine",)
        if is_enough and combed >= 0.8 * scan.judged:
            return order, False, (f"flagged progressive, but {seen} ({order}): taken as interlaced",)
        return "progressive", False, ()
    if has_telecine:
        return scan.flagged, True, (f"{seen} with repeated fields: hard telecine",)
    if is_enough and combed <= 0.02 * scan.judged:
        return (
            "progressive",
            False,
            (f"flagged interlaced ({scan.flagged}), but {seen}: taken as progressive",),
        )
    if combed >= _MIN_JUDGED and max(scan.tff, scan.bff) >= 0.9 * combed and order != scan.flagged:
        return order, False, (f"flagged {scan.flagged}, but {seen} and move as {order}: taken as {order}",)
    return scan.flagged, False, (f"flagged interlaced ({scan.flagged}); {seen}",)


def sample_scan(source: Source, stream: int, codec: str, frame_flag: Interlace, field_order: int) -> Scan:
    """Flags, and `idet` over three windows of the clip. Codecs without fields are not sampled."""
    if codec in _NEVER_INTERLACED:
        return Scan()
    flagged = frame_flag if frame_flag != "progressive" else _DISPLAY_ORDERS.get(field_order, "progressive")
    counts = {"tff": 0, "bff": 0, "progressive": 0, "repeated": 0}
    zigzags: list[tuple[float, float]] = []
    with open_decoder(source, stream, threads=2) as opened:
        duration = opened.container.duration or 0
        for part in range(3):
            if part:
                if duration < 10_000_000 * part:
                    break
                try:
                    opened.container.seek(duration * part // 3 + (opened.container.start_time or 0))
                    opened.context.flush_buffers()
                except av.error.FFmpegError:
                    break
            for name, count in _idet(opened, zigzags).items():
                counts[name] += count
    down, across = (sum(each[i] for each in zigzags) / max(1, len(zigzags)) for i in (0, 1))
    return Scan(flagged=flagged, is_zigzag=down > 0.001 + 4 * across, **counts)


def _idet(opened: Decoder, zigzags: list[tuple[float, float]]) -> dict[str, int]:
    graph: Graph | None = None
    last: Any = None
    shape: tuple[int, int, str] | None = None
    for number, frame in enumerate(opened.frames(lambda *_: None)):
        if graph is None:
            shape = (frame.width, frame.height, frame.format.name)
            graph = _idet_graph(frame)
            if graph is None:
                return {}
        if number >= _SAMPLE_FRAMES or (frame.width, frame.height, frame.format.name) != shape:
            break
        if number % 3 == 0:
            luma = to_planes(frame)[0]
            zigzags.append((_zigzag(luma), _zigzag(luma.T)))
        frame.pts = number
        graph.push(frame)
        last = _pull_last(graph) or last
    if graph is not None:
        graph.push(None)
        last = _pull_last(graph) or last
    if last is None:
        return {}
    tags = frame_tags(last)
    multiple = {each: _count(tags, f"lavfi.idet.multiple.{each}") for each in ("tff", "bff", "progressive")}
    repeated = sum(_count(tags, f"lavfi.idet.repeated.{each}") for each in ("top", "bottom"))
    return {**multiple, "repeated": repeated}


def _zigzag(plane: Plane) -> float:
    """The share of samples at which five lines in a row go up and down while every second one agrees."""
    top, left = max(0, plane.shape[0] - 720) // 2, max(0, plane.shape[1] - 720) // 2
    crop = plane[top : top + 720, left : left + 720]
    if crop.shape[0] < 8 or crop.dtype.kind != "u":
        return 0.0
    lines = crop.astype(np.int32) >> max(0, int(crop.max()).bit_length() - 8)
    a, b, c, d, e = (lines[i : lines.shape[0] - 4 + i] for i in range(5))
    turns = ((b - c) * (d - c) > 64) & ((a - b) * (c - b) > 64) & ((c - d) * (e - d) > 64)
    agrees = np.abs(a - c) + np.abs(c - e) < np.abs(b - c)
    return float((turns & agrees).mean())


def _idet_graph(frame: av.VideoFrame) -> Graph | None:
    graph = Graph()
    graph.threads = 1
    try:
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
        )
        graph.link_nodes(source, graph.add("idet"), graph.add("buffersink")).configure()
    except (av.error.FFmpegError, ValueError):
        return None
    return graph


def _pull_last(graph: Graph) -> Any:
    last = None
    while True:
        try:
            last = graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return last


def _count(tags: dict[str, str], name: str) -> int:
    return int(float(tags.get(name, "0")))
