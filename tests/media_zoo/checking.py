"""Compares a source and its output by ffprobe, framemd5, mkvmerge and mediainfo, with nothing of ours."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.tools import find_tool

TOOLS = ("ffmpeg", "ffprobe", "mkvmerge", "mediainfo", "heif-enc")
_MATROSKA_TICK = Fraction(1, 1000)
_PLANAR = {"rgb48": "gbrp16le", "bgr48": "gbrp16le", "rgba64": "gbrap16le", "bgra64": "gbrap16le"}
_MADE_UP_TAGS = {
    "encoder", "major_brand", "minor_version", "compatible_brands", "duration", "handler_name", "vendor_id",
    "creation_time", "number_of_frames", "number_of_bytes", "bps", "_statistics_tags",
    "_statistics_writing_app", "_statistics_writing_date_utc", "wm/encodingsettings", "devicename",
    "isvbr", "variant_bitrate", "wmfsdkversion", "wmfsdkneeded", "company_name", "product_name",
    "product_version", "product_uid", "toolkit_version", "application_platform", "uid", "generation_uid",
    "material_package_umid", "file_package_umid", "modification_date", "operational_pattern_ul",
    "service_name", "service_provider", "mimetype", "filename", "language", "reel_umid", "file_package_name",
    "track_name", "data_type", "project_name",
}  # fmt: skip
_FLAGS = ("default", "dub", "original", "comment", "forced", "hearing_impaired", "visual_impaired")
_TEXT = ("subrip", "srt", "mov_text", "webvtt", "text")


def missing_tools() -> str | None:
    """Which tools are not here; None where all are."""
    missing = [tool for tool in TOOLS if find_tool(tool) is None]
    return f"{', '.join(missing)} not found; tests/install-tools.sh installs them" if missing else None


def said(*words: str | Path) -> str:
    """What a tool answers. Its complaints about a damaged file are no failure of ours."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip()[-300:]}")
    return done.stdout


@dataclass(frozen=True)
class File:
    """A file as the tools see it."""

    path: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        answer = said(
            "ffprobe", "-v", "error", "-show_format", "-show_streams", "-show_chapters", "-of", "json",
            self.path,
        )  # fmt: skip
        found: dict[str, Any] = json.loads(answer)
        return found

    @property
    def streams(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.facts["streams"]
        return found

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [each for each in self.streams if each["codec_type"] == kind]

    @cached_property
    def video(self) -> dict[str, Any]:
        """The picture: covers are no videos."""
        shown = [each for each in self.of("video") if not each["disposition"]["attached_pic"]]
        return max(shown, key=lambda each: int(each.get("width", 0)) * int(each.get("height", 0)))

    @cached_property
    def frames(self) -> list[dict[str, Any]]:
        answer = said(
            "ffprobe", "-v", "quiet", "-select_streams", str(self.video["index"]),
            "-show_frames", "-of", "json", "-show_entries",
            "frame=best_effort_timestamp,pkt_duration,color_range,color_space,color_primaries,color_transfer,"
            "chroma_location,pix_fmt,sample_aspect_ratio:frame_side_data",
            self.path,
        )  # fmt: skip
        found: list[dict[str, Any]] = json.loads(answer)["frames"]
        return [each for each in found if "pix_fmt" in each]

    @cached_property
    def times(self) -> list[Fraction | None]:
        """When each frame is shown; None where ffprobe cannot tell."""
        base, key = Fraction(self.video["time_base"]), "best_effort_timestamp"
        return [each[key] * base if key in each else None for each in self.frames]

    @property
    def begin(self) -> Fraction:
        return next((each for each in self.times if each is not None), Fraction(0))

    @property
    def tick(self) -> Fraction:
        return Fraction(self.video["time_base"])

    def pictures(self, layout: str, halved: bool) -> list[str]:
        """A hash of each picture in a layout; every second sample of every second line where it is halved."""
        # swscale would take RGB through YUV, but not its planes one by one
        layout = _PLANAR.get(layout.removesuffix("be").removesuffix("le"), layout)
        planes = ["r", "g", "b"] if "gbr" in layout else [""]
        planes += ["a"] if "gbrap" in layout else []
        found = []
        for plane in planes:
            chain = [f"format={layout}"]
            chain += [f"extractplanes={plane}"] if plane else []
            chain += ["scale=iw/2:ih/2:flags=neighbor"] if halved else []
            chain += ["format=gray16le"] if "f32" in layout else []
            answer = said(
                "ffmpeg", "-v", "quiet", "-nostdin", "-noautorotate", "-i", self.path,
                "-map", f"0:{self.video['index']}", "-vf", ",".join(chain), "-vsync", "passthrough",
                "-f", "framemd5", "-",
            )  # fmt: skip
            lines = [line for line in answer.splitlines() if line and not line.startswith("#")]
            found += [line.split(",")[-1].strip() for line in lines]
        return found

    def samples(self, stream: dict[str, Any]) -> str:
        """A hash of the decoded sound of one stream."""
        return said(
            "ffmpeg", "-v", "quiet", "-nostdin", "-i", self.path, "-map", f"0:{stream['index']}",
            "-f", "md5", "-",
        )  # fmt: skip

    def packets(self, stream: dict[str, Any]) -> list[tuple[Fraction, str]]:
        """(time, duration) of a stream's packets."""
        answer = said(
            "ffprobe", "-v", "quiet", "-select_streams", str(stream["index"]), "-show_entries",
            "packet=pts_time,duration_time,size", "-of", "json", self.path,
        )  # fmt: skip
        found = json.loads(answer)["packets"]
        return [
            (Fraction(each["pts_time"]), each.get("duration_time", "0"))
            for each in found
            if "pts_time" in each and int(each["size"]) > 2  # MP4 fills gaps between captions with empty ones
        ]

    def text(self, stream: dict[str, Any]) -> str:
        return said(
            "ffmpeg", "-v", "quiet", "-nostdin", "-i", self.path, "-map", f"0:{stream['index']}",
            "-f", "srt", "-",
        )  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What differs, and whether the pictures are the source's bit by bit (None: not compared)."""

    faults: tuple[str, ...]
    is_exact: bool | None


def compare(source: Path, output: Path, *, loses: tuple[str, ...] = (), exact: bool = True) -> Verdict:
    """Compare an output with its source; it holds twice the width and height, by repeated samples."""
    before, after = File(source), File(output)
    faults: list[str] = []
    for name, check in _CHECKS.items():
        if name not in loses:
            faults += [f"{name}: {text}" for text in check(before, after)]
    is_exact = _are_pictures_equal(before, after)
    if exact and is_exact is False:
        faults.append("pictures: not the source's bit by bit")
    return Verdict(faults=tuple(faults), is_exact=is_exact)


def _are_pictures_equal(before: File, after: File) -> bool:
    layout = after.frames[0]["pix_fmt"]
    return before.pictures(layout, halved=False) == after.pictures(layout, halved=True)


def _frames(before: File, after: File) -> list[str]:
    had, has = len(before.frames), len(after.frames)
    return [] if had == has else [f"{had} became {has}"]


def _times(before: File, after: File) -> list[str]:
    if len(before.times) != len(after.times):
        return []  # said by the count of frames
    both = [(a, b) for a, b in zip(before.times, after.times, strict=True) if a is not None and b is not None]
    if not both:
        return ["ffprobe finds no timestamp"]
    offset = both[0][1] - both[0][0]
    far = max(abs(b - a - offset) for a, b in both)
    # The first one's own rounding is in the offset.
    return [f"a frame is {float(far):.6f} s off"] if far > after.tick else []


def _step(before: File, after: File) -> list[str]:
    """Sound keeps its distance to the picture, to one tick of the output and one sample."""
    faults = []
    for one, other in zip(before.of("audio"), after.of("audio"), strict=False):
        had, has = before.packets(one), after.packets(other)
        if not had or not has:
            continue
        moved = (has[0][0] - after.begin) - (had[0][0] - before.begin)
        if abs(moved) > _MATROSKA_TICK + after.tick + Fraction(1, 8000):
            faults.append(f"stream {other['index']} moved by {float(moved):.6f} s against the picture")
    return faults


def _sound(before: File, after: File) -> list[str]:
    had, has = before.of("audio"), after.of("audio")
    if len(had) != len(has):
        return [f"{len(had)} tracks became {len(has)}"]
    faults = []
    for one, other in zip(had, has, strict=True):
        for key in ("codec_name", "sample_rate", "channels"):
            if one[key] != other[key]:
                faults.append(f"{key} was {one[key]}, is {other[key]}")
        if before.samples(one) != after.samples(other):
            faults.append(f"stream {other['index']} decodes to other samples")
    return faults


def _captions(before: File, after: File) -> list[str]:
    had, has = before.of("subtitle"), after.of("subtitle")
    if len(had) != len(has):
        return [f"{len(had)} tracks became {len(has)}"]
    return [
        f"stream {other['index']} has other words or times"
        for one, other in zip(had, has, strict=True)
        if one["codec_name"] in (*_TEXT, "ass") and before.text(one) != after.text(other)
    ]


def _tags(before: File, after: File) -> list[str]:
    faults = []
    pairs = [("file", before.facts["format"], after.facts["format"])]
    for kind in ("audio", "subtitle"):
        pairs += [(kind, *each) for each in zip(before.of(kind), after.of(kind), strict=False)]
    for where, one, other in pairs:
        had, has = _own_tags(one), _own_tags(other)
        faults += [
            f"{where}: {key} was {value!r}, is {has.get(key)!r}"
            for key, value in had.items()
            if has.get(key) != value
        ]
        was, now = _language(one), _language(other)
        if was != now:
            faults.append(f"{where}: language was {was}, is {now}")
    return faults


def _own_tags(part: dict[str, Any]) -> dict[str, str]:
    return {
        key.lower(): value
        for key, value in part.get("tags", {}).items()
        if key.lower().split("-")[0] not in _MADE_UP_TAGS
    }


def _language(part: dict[str, Any]) -> str:
    language: str = part.get("tags", {}).get("language", "und")
    return language


def _flags(before: File, after: File) -> list[str]:
    faults = []
    for kind in ("audio", "subtitle"):
        for one, other in zip(before.of(kind), after.of(kind), strict=False):
            had, has = ([flag for flag in _FLAGS if each["disposition"][flag]] for each in (one, other))
            if had != has:
                faults.append(f"{kind}: {had} became {has}")
    return faults


def _chapters(before: File, after: File) -> list[str]:
    def listed(file: File) -> list[tuple[float, float, str]]:
        return [
            (
                round(float(each["start_time"]), 3),
                round(float(each["end_time"]), 3),
                each["tags"].get("title", ""),
            )
            for each in file.facts["chapters"]
        ]

    return [] if listed(before) == listed(after) else [f"{listed(before)} became {listed(after)}"]


def _attached(before: File, after: File) -> list[str]:
    def counted(file: File) -> tuple[int, int]:
        covers = [each for each in file.of("video") if each["disposition"]["attached_pic"]]
        return len(covers), len(file.of("attachment"))

    return [] if counted(before) == counted(after) else [f"{counted(before)} became {counted(after)}"]


_DEFAULTS = {"unknown", "unspecified", None, "reserved"}


def _colour(before: File, after: File) -> list[str]:
    one, other = before.frames[0], after.frames[0]
    faults = []
    keys = ["color_primaries", "color_transfer"]
    is_converted = one["pix_fmt"].startswith(("rgb", "bgr", "gbr", "pal", "arg", "abg", "0")) or other[
        "pix_fmt"
    ].startswith(("gbr", "rgb", "bgr"))
    if not is_converted:
        keys += ["color_range", "color_space"]
    for key in keys:
        had, has = one.get(key), other.get(key)
        if key == "color_range" and had is None and "yuvj" in one["pix_fmt"]:
            had = "pc"
        if had != has and not {had, has} <= _DEFAULTS:
            if key == "color_range" and had is None and has == "tv":
                continue  # what YUV is anyway; x265 always says it
            if key == "color_space" and had is None and before.video["height"] < 720 <= after.video["height"]:
                continue  # players would guess another matrix for the new height, so the output says it
            if key == "color_range" and had is None and has == "pc" and "gray" in one["pix_fmt"]:
                continue  # greyscale of still codecs spans all codes, and the output says it
            faults.append(f"{key} was {had}, is {has}")
    return faults


def _siting(before: File, after: File) -> list[str]:
    had, has = (each.frames[0].get("chroma_location") for each in (before, after))
    is_422 = "422" in before.frames[0]["pix_fmt"] or "411" in before.frames[0]["pix_fmt"]
    if is_422 and {had, has} <= {"left", "topleft", "bottomleft", "unspecified", None}:
        return []  # without vertical subsampling these are one
    if "444" in after.frames[0]["pix_fmt"] or {had, has} <= _DEFAULTS:
        return []
    if had in _DEFAULTS and has == "left":
        return []  # what decoders of H.264 and H.265 say where a stream is silent
    return [] if had == has else [f"was {had}, is {has}"]


def _shape(before: File, after: File) -> list[str]:
    faults = []
    for key in ("width", "height"):
        if int(after.video[key]) != 2 * int(before.video[key]):
            faults.append(f"{key} was {before.video[key]}, is {after.video[key]}")
    had, has = (each.video.get("sample_aspect_ratio", "1:1") for each in (before, after))
    had, has = (("1:1" if each in ("0:1", "N/A") else each) for each in (had, has))
    if Fraction(had.replace(":", "/")) != Fraction(has.replace(":", "/")):
        faults.append(f"sample aspect was {had}, is {has}")
    return faults


def _side_data(before: File, after: File) -> list[str]:
    def listed(file: File) -> dict[str, Any]:
        kinds = ("Mastering display metadata", "Content light level metadata", "Stereo 3D", "Display Matrix")
        parts = [*file.video.get("side_data_list", []), *file.frames[0].get("side_data_list", [])]
        return {
            each["side_data_type"]: _without_place(each)
            for each in parts
            if each.get("side_data_type") in kinds
        }

    had, has = listed(before), listed(after)
    return [
        f"{kind} was {facts}, is {has.get(kind)}" for kind, facts in had.items() if has.get(kind) != facts
    ]


def _without_place(facts: dict[str, Any]) -> dict[str, Any]:
    """A display matrix moves a picture by its size, which is another one now."""
    return {key: value for key, value in facts.items() if key != "displaymatrix"}


def _container(before: File, after: File) -> list[str]:
    """mkvmerge reads it without a warning, mediainfo finds it whole and as long as it is."""
    faults = []
    if after.path.suffix in (".mkv", ".mp4", ".mov", ".webm"):
        seen = json.loads(said("mkvmerge", "-J", after.path))
        faults += [*seen["errors"], *seen["warnings"]]
        shown = [each for kind in ("video", "audio", "subtitle") for each in after.of(kind)]
        tracks = sum(not each["disposition"]["attached_pic"] for each in shown)
        known = [each for each in seen["tracks"] if each["type"] in ("video", "audio", "subtitles")]
        if after.path.suffix in (".mkv", ".webm") and len(known) != tracks:
            faults.append(f"mkvmerge counts {len(known)} tracks, ffprobe {tracks}")
        answer = json.loads(said("mediainfo", "--Output=JSON", after.path))["media"]
        general = next(each for each in answer["track"] if each["@type"] == "General")
        if general.get("IsTruncated") == "Yes" or "ConformanceErrors" in str(answer):
            faults.append("mediainfo calls it truncated or not conformant")
        if not any(each["@type"] == "Video" for each in answer["track"]):
            faults.append("mediainfo finds no video")
    return faults


_CHECKS = {
    "frames": _frames,
    "times": _times,
    "step": _step,
    "sound": _sound,
    "captions": _captions,
    "tags": _tags,
    "flags": _flags,
    "chapters": _chapters,
    "attached": _attached,
    "colour": _colour,
    "siting": _siting,
    "shape": _shape,
    "side data": _side_data,
    "container": _container,
}
