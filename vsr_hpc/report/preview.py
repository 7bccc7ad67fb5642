"""Several models on the same frame and crop, side by side, before a whole clip is paid for."""

from __future__ import annotations

import io
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from vsr_hpc.engine.geometry import output_geometry
from vsr_hpc.errors import JobError
from vsr_hpc.media.clip.clip import Clip
from vsr_hpc.media.clip.probe import index_clip, probe_clip
from vsr_hpc.media.picture import Frame, Picture
from vsr_hpc.media.timeline import parse_position, select_range
from vsr_hpc.models import weights
from vsr_hpc.models.cards import Card, all_cards, find_card
from vsr_hpc.models.defaults import AUTO
from vsr_hpc.planning.preparation import usual_model
from vsr_hpc.report.facts import name_of
from vsr_hpc.report.page import page
from vsr_hpc.report.pictures import Side, busiest, strip
from vsr_hpc.report.srgb import data_uri, to_image, within
from vsr_hpc.storage.opening import open_source

log = logging.getLogger(__name__)


_CROP = (320, 180)
"""Input pixels of the part that is shown where nothing else is asked for."""
_LOOP_FPS = 12
_MOST_FRAMES = 48
_PASSES, _MEASURED_S = 4, 2.0
_PICTURE_BYTES = 400_000
_LOOP_BYTES = 500_000

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in input pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pane:
    """One model's picture of the part, and of the frames after it."""

    model: str
    images: tuple[Image.Image, ...]
    seconds_per_frame: float | None
    """For the part on this machine; None for the plain enlargement of the source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """The same part of the same frames: the source first, enlarged plainly, then each model."""

    name: str
    frame: int
    time_s: float
    box: Box
    scale: float
    panes: tuple[Pane, ...]
    share: float
    """Of a whole frame's pixels that the part is."""
    clip_frames: int


def preview(
    uri: str,
    models: Sequence[str] | None = None,
    *,
    at: str | None = None,
    scale: float | None = None,
    crop: str | None = None,
    seconds: float = 0.0,
    threads: int = 0,
    on_model: Callable[[str], None] = lambda name: None,
    on_left_out: Callable[[str], None] = lambda reason: None,
) -> Preview:
    """The pictures of these models; by default, of our model for the clip and every other one on this disk.

    JobError with every finding, before anything is decoded. A model whose weights cannot be fetched is left
    out, and `on_left_out` is told why; where all are, that is the error.
    """
    chosen = () if models is None else _cards(models)
    source = open_source(uri)
    clip = probe_clip(source)
    if models is None or AUTO in models:
        usual = find_card(usual_model(clip, scale or 2))
        chosen = (usual, *(each for each in chosen or _cards_at_hand() if each != usual))
    cards = _with_weights(chosen, on_left_out)
    side = Side(clip=clip, timeline=index_clip(clip, source), source=source)
    first = _frame_at(side, at)
    count, stride = _shown_frames(side, first, seconds)
    frames = list(side.frames(first, first + count))
    factor = scale or float(2 if models is None else max(card.scale for card in cards))
    box = choose_box(crop, clip.picture, to_image(frames[0], clip.picture))
    panes = [_source_pane(frames[::stride], clip.picture, box, factor)]
    for card in cards:
        on_model(card.name)
        panes.append(_pane(card, frames, stride, clip, box, factor, threads))
    width, height = box[2] - box[0], box[3] - box[1]
    return Preview(
        name=name_of(uri),
        frame=first,
        time_s=float(side.timeline.time_of(first)),
        box=box,
        scale=factor,
        panes=tuple(panes),
        share=width * height / (clip.picture.width * clip.picture.height),
        clip_frames=len(side.timeline),
    )


def choose_box(crop: str | None, picture: Picture, image: Image.Image) -> Box:
    """`WxH+X+Y`, `WxH` (where the most detail is), `full`, or a part of usual size with the most detail."""
    if crop == "full":
        return (0, 0, picture.width, picture.height)
    wanted, corner = _CROP, None
    if crop is not None:
        wanted, corner = _parse_crop(crop, picture)
    width, height = min(wanted[0], picture.width), min(wanted[1], picture.height)
    left, top = corner if corner is not None else busiest(image, (width, height))[:2]
    step_w, step_h = 1 << picture.pixel.log2_chroma_w, 1 << picture.pixel.log2_chroma_h
    left, top = left // step_w * step_w, top // step_h * step_h
    return (
        left,
        top,
        left + max(step_w, width // step_w * step_w),
        top + max(step_h, height // step_h * step_h),
    )


def png(found: Preview) -> Image.Image:
    """One picture with every model's part, named."""
    shown = [(label(found, pane), pane.images[0]) for pane in found.panes]
    width, height = shown[0][1].size
    columns = min(len(shown), 2 if width > height and len(shown) > 1 else 3)
    rows = -(-len(shown) // columns)
    gap, bar = max(4, width // 100), max(22, width // 22)
    font = ImageFont.load_default(size=max(12, bar * 0.55))
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + bar + gap) + gap), (18, 20, 24))
    draw = ImageDraw.Draw(sheet)
    for place, (text, image) in enumerate(shown):
        left = gap + (place % columns) * (width + gap)
        top = gap + (place // columns) * (height + bar + gap)
        sheet.paste(image, (left, top))
        draw.text(
            (left + gap, top + height + bar / 2), _fitted(text, font, width), (236, 238, 242), font, "lm"
        )
    return sheet


def html(found: Preview) -> bytes:
    """A page with a slider between any two of the pictures."""
    title = f"{found.name} · vsr preview"
    summary = f"{found.name}, frame {found.frame}: {', '.join(label(found, pane) for pane in found.panes)}"
    return page(title, ("preview.js", "previewed.js"), document(found), summary)


def document(found: Preview) -> dict[str, Any]:
    """What the page and the live page show, as JSON."""
    width, height = found.panes[0].images[0].size
    return {
        "name": found.name,
        "frame": found.frame,
        "time_s": found.time_s,
        "box": list(found.box),
        "scale": found.scale,
        "width": width,
        "height": height,
        "fps": _LOOP_FPS,
        "panes": [
            {
                "model": pane.model,
                "label": label(found, pane),
                "picture": data_uri(pane.images[0], _PICTURE_BYTES),
                "strip": data_uri(strip([within(i, 480) for i in pane.images]), _LOOP_BYTES)
                if len(pane.images) > 1
                else None,
                "frames": len(pane.images),
                "seconds_per_frame": pane.seconds_per_frame,
                "seconds_in_all": _seconds_in_all(found, pane),
            }
            for pane in found.panes
        ],
    }


def label(found: Preview, pane: Pane) -> str:
    """Latin letters only: the font that comes with Pillow has no others."""
    if pane.seconds_per_frame is None:
        return f"source, enlarged x{found.scale:g}"
    return f"{pane.model}, {pane.seconds_per_frame:.2g} s"


def _seconds_in_all(found: Preview, pane: Pane) -> float | None:
    """A guess for the whole clip on this machine with one worker: the part's time, in proportion."""
    if pane.seconds_per_frame is None:
        return None
    return pane.seconds_per_frame / found.share * found.clip_frames


def _fitted(text: str, font: Any, width: int) -> str:
    while len(text) > 4 and font.getlength(text) > 0.96 * width:
        text = text[:-4] + "..."
    return text


def _cards(models: Sequence[str]) -> tuple[Card, ...]:
    findings, cards = [], []
    for name in models:
        if name == AUTO:  # the clip decides which one it is
            continue
        try:
            cards.append(find_card(name))
        except JobError as exc:
            findings.append(str(exc))
    if findings or not models:
        raise JobError.from_findings(
            "--models", findings or ["name at least one; `vsr models list` has them"]
        )
    return tuple(cards)


def _cards_at_hand() -> tuple[Card, ...]:
    """Every model that runs here without a download, but the filter that only repeats samples."""
    return tuple(card for card in all_cards() if weights.is_at_hand(card) and card.network != "nearest")


def _with_weights(cards: Sequence[Card], on_left_out: Callable[[str], None]) -> tuple[Card, ...]:
    """The models whose weights are on this disk by now."""
    kept, problems = [], []
    for card in cards:
        try:
            weights.fetch_weights(card)
            kept.append(card)
        except weights.WeightsMissingError as exc:
            problems.append(exc)
    if not kept:
        raise problems[0]
    for problem in problems:
        on_left_out(str(problem))
    return tuple(kept)


def _frame_at(side: Side, at: str | None) -> int:
    """The frame at that place; by default a third into the clip."""
    if at is None:
        return len(side.timeline) // 3
    return select_range(side.timeline, parse_position(at), None)[0]


def _shown_frames(side: Side, first: int, seconds: float) -> tuple[int, int]:
    """How many frames are read, and every how many of them one is shown."""
    left = len(side.timeline) - first
    if seconds <= 0:
        return 1, 1
    length = side.timeline.duration_s or Fraction(1)
    rate = float(len(side.timeline) / length)
    count = max(1, min(left, _MOST_FRAMES, round(seconds * rate)))
    return count, max(1, round(rate / _LOOP_FPS))


def _parse_crop(text: str, picture: Picture) -> tuple[tuple[int, int], tuple[int, int] | None]:
    size, *corner = text.lower().split("+")
    try:
        width, height = (int(each) for each in size.split("x"))
        at = (int(corner[0]), int(corner[1])) if corner else None
    except (ValueError, IndexError) as exc:
        raise JobError(f"--crop {text!r}: write WxH, WxH+X+Y or full, in input pixels") from exc
    if width < 16 or height < 16:
        raise JobError(f"--crop {text!r}: 16x16 is the least")
    if at is not None and (
        len(corner) != 2 or at[0] + width > picture.width or at[1] + height > picture.height
    ):
        raise JobError(f"--crop {text!r}: lies outside of the picture, {picture.width}x{picture.height}")
    return (width, height), at


def _source_pane(frames: Sequence[Frame], picture: Picture, box: Box, scale: float) -> Pane:
    size = (round((box[2] - box[0]) * scale), round((box[3] - box[1]) * scale))
    images = tuple(
        to_image(frame, replace(picture, display_matrix=None))
        .crop(box)
        .resize(size, Image.Resampling.BICUBIC)
        for frame in frames
    )
    return Pane(model="source", images=images, seconds_per_frame=None)


def _pane(
    card: Card, frames: Sequence[Frame], stride: int, clip: Clip, box: Box, scale: float, threads: int
) -> Pane:
    from vsr_hpc.engine.settings import UpscaleRequest, resolve_settings
    from vsr_hpc.engine.upscaler import Upscaler

    wide = _with_margin(box, clip.picture, card.overlap)
    part = replace(clip.picture, width=wide[2] - wide[0], height=wide[3] - wide[1], display_matrix=None)
    out = output_geometry(part, part.pixel, scale=Fraction(scale).limit_denominator(1000)).picture
    request = UpscaleRequest(size=(out.width, out.height), pixel=part.pixel)
    path = weights.ensure(card) if card.weights else None
    settings = resolve_settings(request, card, part)
    upscaler = Upscaler(card, path, part, out, settings, threads=threads or len(os.sched_getaffinity(0)))
    wanted = frames if card.kind == "recurrent" else frames[::stride]
    cut = [_cut(frame, clip.picture, wide) for frame in wanted]
    made, took = _timed(upscaler, cut)
    inner = tuple(
        round((edge - wide[place % 2]) * out_side / in_side)
        for place, edge in enumerate(box)
        for out_side, in_side in [((out.width, part.width), (out.height, part.height))[place % 2]]
    )
    shown = made[::stride] if card.kind == "recurrent" else made
    images = tuple(to_image(frame, out).crop((inner[0], inner[1], inner[2], inner[3])) for frame in shown)
    size = (round((box[2] - box[0]) * scale), round((box[3] - box[1]) * scale))
    images = tuple(each if each.size == size else each.resize(size) for each in images)
    return Pane(model=card.name, images=images, seconds_per_frame=took / len(made))


def _timed(
    upscaler: Callable[[Sequence[Frame]], list[Frame]], frames: Sequence[Frame]
) -> tuple[list[Frame], float]:
    """What comes out, and the seconds of the fastest of a few passes: the first ones prepare the device."""
    least, began = math.inf, time.perf_counter()
    for _ in range(_PASSES):
        at = time.perf_counter()
        made = upscaler(frames)
        least = min(least, time.perf_counter() - at)
        if time.perf_counter() - began > _MEASURED_S:
            break
    return made, least


def _with_margin(box: Box, picture: Picture, overlap: int) -> Box:
    """The part and what a tile of it would see beyond, on the grid of the chroma planes."""
    step_w, step_h = 1 << picture.pixel.log2_chroma_w, 1 << picture.pixel.log2_chroma_h
    across, down = -(-overlap // step_w) * step_w, -(-overlap // step_h) * step_h
    return (
        max(0, box[0] - across),
        max(0, box[1] - down),
        min(picture.width, box[2] + across),
        min(picture.height, box[3] + down),
    )


def _cut(frame: Frame, picture: Picture, box: Box) -> Frame:
    planes = []
    for number, plane in enumerate(frame.planes):
        is_chroma = picture.pixel.kind == "yuv" and number in (1, 2)
        right = picture.pixel.log2_chroma_w if is_chroma else 0
        down = picture.pixel.log2_chroma_h if is_chroma else 0
        planes.append(
            plane[box[1] >> down : -(-box[3] >> down), box[0] >> right : -(-box[2] >> right)].copy()
        )
    return Frame(index=frame.index, planes=tuple(planes))


def content(found: Preview, suffix: str) -> bytes:
    """The file that is asked for, by its name's end."""
    if suffix in (".html", ".htm"):
        return html(found)
    file = io.BytesIO()
    png(found).save(file, format=_FORMATS[suffix], quality=92)
    return file.getvalue()


_FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
SUFFIXES = (*_FORMATS, ".html", ".htm")
