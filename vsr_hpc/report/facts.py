"""What a report says in words and tables: what ran, whether it holds, how to do it again."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from vsr_hpc.job.options import command_line
from vsr_hpc.job.spec import JobSpec
from vsr_hpc.media.picture import MATRIX_NAMES, Picture
from vsr_hpc.models.defaults import AUTO
from vsr_hpc.planning.fingerprint import fingerprint_id
from vsr_hpc.planning.plan import Plan
from vsr_hpc.run.documents import Done, Receipt
from vsr_hpc.run.run import Run
from vsr_hpc.storage.store import MissingObject
from vsr_hpc.version import VERSION

log = logging.getLogger(__name__)


Rows = tuple[tuple[str, str], ...]
"""What a table shows: a name and a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One promise and whether it was seen to hold."""

    state: str
    """good, note or bad."""
    title: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    input: Rows
    output: Rows
    model: Rows
    versions: Rows
    settings: Rows
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduce:
    command: str
    job: str


def name_of(uri: str) -> str:
    """A path's or an address's last part."""
    return PurePosixPath(uri.rstrip("/")).name or uri


def what_ran(plan: Plan, receipts: Sequence[Receipt]) -> Ran:
    clip, card = plan.clip, plan.card
    encoding = plan.encoding
    return Ran(
        input=(
            ("file", clip.uri),
            ("picture", _picture(clip.picture)),
            ("codec", f"{clip.codec} in {clip.container}"),
            ("rate", f"{float(clip.frame_rate):.3f} fps" if clip.frame_rate else "varies"),
            ("frames", f"{plan.start} to {plan.stop - 1}, {plan.frames} in all"),
            ("size", size(clip.size_bytes)),
            ("sha256", json.loads(plan.fingerprint.get("input", '""'))),
        ),
        output=(
            ("file", plan.job.output),
            ("picture", _picture(plan.picture)),
            ("encoder", _encoder(plan) if encoding else "images"),
            ("chunks", f"{plan.chunk_count}, in {plan.shard_count} shards"),
        ),
        model=tuple(
            (key, value)
            for key, value in (
                ("name", card.name),
                ("kind", f"{card.kind}, {card.network}"),
                ("scale", "any" if card.is_filter else f"x{card.scale}"),
                ("licence", card.licence),
                ("weights", (card.weights.sha256 or "not established") if card.weights else "none"),
                ("overlap", f"{card.overlap} input pixels around each tile" if card.overlap else ""),
                ("about", card.description),
                ("limits", card.limits),
            )
            if value
        ),
        versions=(("vsr_hpc", VERSION), *_versions(plan, receipts)),
        settings=tuple(sorted((key, _plain(value)) for key, value in plan.fingerprint.items())),
        fingerprint=fingerprint_id(plan.fingerprint),
    )


def checks(run: Run, receipts: Sequence[Receipt], done: Done | None) -> tuple[Check, ...]:
    """What was proved while the run went on, and by its merge."""
    plan = run.plan
    segments = [segment for receipt in receipts for segment in receipt.segments]
    frames = sum(segment.frames for segment in segments)
    found = [_frames_check(plan, frames, done), *_picture_checks(receipts, frames)]
    if done is not None:
        offset = f", all shifted by {done.offset_s:.6g} s" if done.offset_s else ""
        found.append(
            Check(
                state="good",
                title="Merged without a new encode",
                text=f"Packets of {len(segments)} segments were copied; each sha256 equals its receipt's. "
                f"Every frame has its source's timestamp{offset}.",
            )
        )
        found += [Check(state="note", title="Note", text=note) for note in done.notes]
    found += [
        Check(state="bad", title=f"Shard {each.shard} was set aside", text=each.reason)
        for each in run.poisoned()
    ]
    return tuple(found)


def _frames_check(plan: Plan, frames: int, done: Done | None) -> Check:
    is_whole = done is not None and done.frames == plan.frames == frames
    text = f"{frames} of {plan.frames} planned frames are in finished shards"
    if done is not None:
        text = f"{plan.frames} frames in, {done.frames} frames out; sha256 {done.sha256}"
    title = "Every frame is there" if is_whole else "The run is not finished"
    return Check(state="good" if is_whole else "note", title=title, text=text)


def _picture_checks(receipts: Sequence[Receipt], frames: int) -> list[Check]:
    segments = [segment for receipt in receipts for segment in receipt.segments]
    worst = min((s.worst_psnr_db for s in segments if s.worst_psnr_db is not None), default=None)
    undecided, clipped = sum(s.undecided for s in segments), sum(r.clipped for r in receipts)
    platforms = Counter(_platform_name(receipt.platform) for receipt in receipts)
    found = []
    if worst is not None:
        text = (
            f"Each of {len(segments)} segments was decoded again and its frames counted, {frames} in all. "
            f"Every frame was compared with its input; the worst match has a PSNR of {worst:.1f} dB, both "
            "reduced. PSNR measures in decibels how alike two pictures are; higher is more alike."
        )
        if undecided:
            text += (
                f" {undecided} frames equal their neighbours in the input, so their order cannot be verified."
            )
        found.append(Check(state="good", title="Every output frame shows its input frame", text=text))
    if clipped:
        text = f"{clipped} samples are outside the network's range. They were passed around it, or clipped."
        found.append(Check(state="note", title="Samples outside the range", text=text))
    if len(platforms) == 1:
        text = f"All shards were made on {next(iter(platforms))}. The same job makes the same bytes there."
        found.append(Check(state="good", title="Byte-identical on its platform", text=text))
    elif platforms:
        parts = "; ".join(f"{name}: {count}" for name, count in platforms.most_common())
        text = (
            "Frames, timestamps and tags do not depend on the platform; pictures differ within the verified "
            f"limits. Shards: {parts}."
        )
        found.append(Check(state="note", title=f"{len(platforms)} platforms worked on it", text=text))
    return found


def reproduce(job: JobSpec, model: str) -> Reproduce:
    """The command that does it again, and the job as a file, both with the model that was used."""
    job = job.model_copy(update={"model": model}) if job.model == AUTO else job
    document = job.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    document.get("run", {}).pop("notify", None)  # an address can hold a secret, and reports are shared
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    return Reproduce(command=command_line(job), job=text)


def stored(run: Run, name: str) -> dict[str, Any] | None:
    """A JSON object in the run's store; None where it is not there or is none."""
    try:
        found = json.loads(run.store.read(name))
    except MissingObject:
        return None
    except ValueError as exc:
        log.warning("not shown in the report name=%s why=%s", name, exc)
        return None
    return found if isinstance(found, dict) else None


def size(count: int) -> str:
    for unit, of in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << of:
            return f"{count / (1 << of):.1f} {unit}"
    return f"{count} bytes"


def _picture(picture: Picture) -> str:
    colour = MATRIX_NAMES.get(picture.colour.matrix, str(picture.colour.matrix))
    aspect = picture.sample_aspect
    shape = "" if aspect == 1 else f", samples {aspect.numerator}:{aspect.denominator}"
    reach = "full" if picture.colour.is_full_range else "limited"
    return f"{picture.width}x{picture.height} {picture.pixel.name}, {colour}, {reach} range{shape}"


def _encoder(plan: Plan) -> str:
    encoding = plan.encoding
    if encoding is None:
        return "images"
    rate = (
        encoding.rate_kind if encoding.rate_kind == "lossless" else f"{encoding.rate_kind} {encoding.rate:g}"
    )
    return " ".join(filter(None, (encoding.encoder, encoding.preset, rate, encoding.pixel.name)))


def _versions(plan: Plan, receipts: Sequence[Receipt]) -> Rows:
    rows: dict[str, list[str]] = {}
    for receipt in receipts:
        for key, value in receipt.platform.items():
            known = rows.setdefault(key, [])
            if value not in known:
                known.append(value)
    build = _plain(plan.fingerprint.get("encoder build", '""'))
    return (("encoder build", build), *((key, " / ".join(rows[key][:6])) for key in sorted(rows)))


def _platform_name(platform: dict[str, str]) -> str:
    """Without what may differ between receipts of one platform: the batch follows memory."""
    shown = [platform.get(key, "") for key in ("model", "precision", "torch")]
    return ", ".join(f"torch {each}" if index == 2 else each for index, each in enumerate(shown) if each)


def _plain(text: str) -> str:
    """A fingerprint's value as a person writes it."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str) else json.dumps(value)
