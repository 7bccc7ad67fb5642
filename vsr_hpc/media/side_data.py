"""What FFmpeg knows about a frame beside its samples: HDR data, display matrix, siting, field order."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import av.logging
from av.filter import Graph

from vsr_hpc.media.picture import Mastering, Siting


@dataclass(frozen=True, slots=True, kw_only=True)
class SideData:
    """The side data of one frame that we understand; `names` lists all there is."""

    names: tuple[str, ...] = ()
    mastering: Mastering | None = None
    light_level: tuple[int, int] | None = None
    display_matrix: tuple[int, ...] | None = None
    dolby_vision_profile: int | None = None

    @property
    def has_hdr10plus(self) -> bool:
        return "DYNAMIC_HDR_PLUS" in self.names

    @property
    def has_film_grain(self) -> bool:
        return "FILM_GRAIN_PARAMS" in self.names


def read_side_data(frame: av.VideoFrame) -> SideData:
    found: dict[str, bytes] = {}
    entries: Any = frame.side_data
    try:
        for each in entries:
            # PyAV 19 made this a mapping from kind to data; before, it yielded the data.
            entry = each if hasattr(each, "type") else entries[each]
            found[entry.type.name] = bytes(entry)
    except (ValueError, KeyError, AttributeError):
        pass  # a kind newer than PyAV's table; those before it are kept
    profile = None
    if "DOVI_METADATA" in found:
        profile = _dolby_vision_profile(found["DOVI_METADATA"])
    elif "DOVI_RPU_BUFFER" in found:
        profile = 0
    return SideData(
        names=tuple(sorted(found)),
        mastering=_mastering(found.get("MASTERING_DISPLAY_METADATA")),
        light_level=_light_level(found.get("CONTENT_LIGHT_LEVEL")),
        display_matrix=_display_matrix(found.get("DISPLAYMATRIX")),
        dolby_vision_profile=profile,
    )


def _mastering(data: bytes | None) -> Mastering | None:
    """AVMasteringDisplayMetadata: ten rationals (R, G, B, white; min, max luminance) and two flags."""
    if data is None or len(data) < 88:
        return None
    numbers = struct.unpack_from("=22i", data)
    ratios = [
        Fraction(numbers[i], numbers[i + 1]) if numbers[i + 1] else Fraction(0) for i in range(0, 20, 2)
    ]
    has_primaries, has_luminance = numbers[20:22]
    if not has_primaries and not has_luminance:
        return None
    xy = [round(each * 50000) for each in ratios[:8]] if has_primaries else [0] * 8
    low, high = (round(each * 10000) for each in ratios[8:]) if has_luminance else (0, 0)
    return Mastering(
        red=(xy[0], xy[1]),
        green=(xy[2], xy[3]),
        blue=(xy[4], xy[5]),
        white=(xy[6], xy[7]),
        max_luminance=high,
        min_luminance=low,
    )


def _light_level(data: bytes | None) -> tuple[int, int] | None:
    if data is None or len(data) < 8:
        return None
    peak, average = struct.unpack_from("=2I", data)
    return (peak, average) if peak or average else None


def _display_matrix(data: bytes | None) -> tuple[int, ...] | None:
    if data is None or len(data) < 36:
        return None
    matrix = struct.unpack_from("=9i", data)
    return None if matrix == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30) else matrix


def _dolby_vision_profile(data: bytes) -> int:
    """The profile as FFmpeg's dovi_rpu guesses it from the RPU header; 0 where it can't be told."""
    (offset,) = struct.unpack_from("@N", data)
    if offset + 18 > len(data):
        return 0
    # AVDOVIRpuDataHeader: u8 type, u16 format, u8 profile, level, chroma filter, coef type, denom, idc,
    # full range, bl/el/vdr depth, spatial, el spatial, disable residual
    fields = struct.unpack_from("@BxH13B", data, offset)
    profile, full_range, vdr_depth, el_spatial, no_residual = (fields[i] for i in (2, 8, 11, 13, 14))
    if profile == 0 and full_range:
        return 5
    if profile == 1:
        if el_spatial and not no_residual:
            return 7 if vdr_depth == 12 else 4
        return 8
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What FFmpeg's `showinfo` says of a frame and PyAV has no attribute for."""

    siting: Siting = "unspecified"
    field_order: Literal["progressive", "tff", "bff"] = "progressive"
    sample_aspect: Fraction | None = None


def show(frame: av.VideoFrame) -> Shown:
    """Ask `showinfo` about a frame."""
    return _parse_show(_ask_filter(frame, "showinfo"))


def frame_tags(frame: av.VideoFrame) -> dict[str, str]:
    """The tags that filters such as `idet` hang on a frame."""
    tags = getattr(frame, "metadata", None)
    if tags is not None:
        return dict(tags)
    return dict(
        re.findall(r"^(lavfi\.[\w.]+)=(\S*)", _ask_filter(frame, "metadata"), re.MULTILINE)
    )  # PyAV 17


def _ask_filter(frame: av.VideoFrame, name: str) -> str:
    """What a filter says of a frame. Its answer is a log line, caught in this thread alone."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        with av.logging.Capture() as lines:
            graph = Graph()
            graph.threads = 1
            source = graph.add_buffer(
                width=frame.width,
                height=frame.height,
                format=frame.format,
                time_base=frame.time_base or Fraction(1, 1000),
            )
            speaker = graph.add(name, "mode=print" if name == "metadata" else None)
            graph.link_nodes(source, speaker, graph.add("buffersink")).configure()
            graph.push(frame)
            graph.pull()
    except (av.error.FFmpegError, ValueError):
        return ""
    finally:
        av.logging.set_level(level)
    return "".join(text for _, speaker_name, text in lines if name in speaker_name)


def _parse_show(text: str) -> Shown:
    line = re.search(r"\bcl:(\S+) sar:(\d+)/(\d+) s:\S+ i:(\w)", text)
    if line is None:
        return Shown()
    siting: Any = line[1] if line[1] in get_args(Siting) else "unspecified"
    order: Any = {"T": "tff", "B": "bff"}.get(line[4], "progressive")
    top, bottom = int(line[2]), int(line[3])
    return Shown(
        siting=siting, field_order=order, sample_aspect=Fraction(top, bottom) if top and bottom else None
    )
