"""Models as lines of text: the list, and the card of one."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from vsr_hpc.forecast.profiles import Profile, load_profiles, newest_profile
from vsr_hpc.models.cards import Card
from vsr_hpc.models.weights import cache_folder, find_weights, is_at_hand
from vsr_hpc.wording import size

_WIDTH = 100
_KINDS = {
    "filter": "a filter without weights",
    "image": "a network that makes each frame by itself",
    "recurrent": "a video network that looks at the frames around each one",
}


def list_lines(cards: Sequence[Card]) -> Iterator[str]:
    """A table with a row for each model, and its description below it."""
    profiles = load_profiles()
    rows = [("model", "scale", "weights", "licence", "speed here")]
    for card in cards:
        licence = card.licence.partition(";")[0].partition(" (")[0]
        rows.append((card.name, _factor(card), _weights(card), licence, _speed(card, profiles)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for place, row in enumerate(rows):
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[4]]).rstrip()
        if place:
            yield from _wrap(cards[place - 1].description, "    ", "    ")


def card_lines(card: Card) -> Iterator[str]:
    """Everything a person asks of one model before using it."""
    yield f"{card.name}: {_KINDS[card.kind]}, {_factor(card)}"
    yield from _wrap(card.description, "  ", "  ")
    rows = [("network", f"{card.network}{_parameters(card)}"), ("licence", card.licence)]
    if card.weights is not None:
        rows.append(("weights", f"{card.weights.file}, {_weights(card)}"))
        path = find_weights(card)
        if path is not None:
            rows.append(("lies at", str(path)))
        else:
            rows.append(("download", f"vsr models pull {card.name}   from {card.weights.url}"))
            rows.append(("or place at", str(cache_folder() / card.weights.file)))
    if not card.is_filter:
        rows.append(("computes in", ", ".join(card.precisions)))
    if card.denoise_partner is not None:
        rows.append(("denoise", "--denoise 0..1 sets how much noise it removes"))
    rows.append(("speed here", _speed(card, load_profiles()) or f"not measured: `vsr bench -m {card.name}`"))
    rows += [("limits", card.limits)] if card.limits else []
    rows.append(("use", f"vsr upscale IN OUT --model {card.name}"))
    for name, text in rows:
        yield from _wrap(text, f"{name:<12}", " " * 12)


def model_document(card: Card) -> dict[str, Any]:
    """The card for programs, with what this machine has and has measured."""
    path, profile = find_weights(card), newest_profile(card, load_profiles())
    return card.model_dump(mode="json") | {
        "is_on_disk": is_at_hand(card),
        "path": None if path is None else str(path),
        "frames_per_s": None if profile is None else profile.pipeline_fps,
    }


def _factor(card: Card) -> str:
    return "any" if card.is_filter else f"x{card.scale}"


def _weights(card: Card) -> str:
    if card.weights is None:
        return "none needed"
    amount = "" if card.weights.size_bytes is None else f"{size(card.weights.size_bytes)}, "
    if find_weights(card) is None:
        return f"{amount}to download"
    return f"{amount}on disk" if is_at_hand(card) else f"{amount}on disk, spandrel missing"


def _speed(card: Card, profiles: Sequence[Profile]) -> str:
    found = newest_profile(card, profiles)
    if found is None:
        return ""
    return f"{found.pipeline_fps:.3g} frames/s to {found.out_width}x{found.out_height} on {found.device}"


def _parameters(card: Card) -> str:
    return "".join(f", {name} {value}" for name, value in card.parameters)


def _wrap(text: str, first: str, others: str) -> Iterator[str]:
    yield from textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )
