"""Cards: what each model is, needs and may cost. Pure; never imports torch."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.util
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from vsr_hpc.errors import JobError, ModelError
from vsr_hpc.models.defaults import AUTO, default_model
from vsr_hpc.models.network_costs import operations_per_pixel, theoretical_radius
from vsr_hpc.models.recognition import UnknownNetworkError, read_shapes, recognise
from vsr_hpc.system.files import sha256_of_file, write_atomically
from vsr_hpc.system.user_folders import user_folder

Kind = Literal["filter", "image", "recurrent"]
Precision = Literal["fp32", "bf16", "fp16"]
Network = Literal[
    "nearest",
    "bicubic",
    "lanczos",
    "compact",
    "rrdb",
    "span",
    "swinir",
    "basicvsr",
    "iconvsr",
    "spandrel",
    "module",
]
"""`module` is a torch module of the Python program that calls this package."""

IMPORT_HINT = "`vsr models import` tries spandrel's networks (pip install --no-deps spandrel einops)"
WEIGHT_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Weights(_Strict):
    """Where a network's weights come from and what they must hash to."""

    file: str = Field(min_length=1, pattern=r"^[^/\\]+$")
    url: str | None = Field(default=None, pattern=r"^(https?|file|package)://")
    """package://NAME/PATH is a file inside an installed Python package."""
    size_bytes: int | None = Field(default=None, gt=0)
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """None: not established; recorded at the first download and checked from then on."""


class Mix(_Strict):
    """Other weights of the same network that a model's own are interpolated with, tensor by tensor."""

    weights: Weights
    share: float = Field(gt=0, le=1)
    """Of these weights; the model's own have the rest."""


class Card(_Strict):
    """A model's description. Equal cards make equal bytes on one platform."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    kind: Kind
    network: Network
    scale: int = Field(ge=1, le=16)
    """The network's own factor; for a filter, the one used when none is asked for."""
    parameters: tuple[tuple[str, int | str], ...] = ()
    weights: Weights | None = None
    packaged: Weights | None = None
    """The same network's weights in a Python package; where that is installed they are taken instead."""
    licence: str
    overlap: int = Field(default=0, ge=0)
    """Input pixels that a tile sees beyond its core."""
    multiple_of: int = Field(default=1, ge=1)
    """The network's input is padded to whole multiples of this, and tiles are cut on it."""
    context: int = Field(default=0, ge=0, le=240)
    """Frames that a window of a recurrent network sees on both sides of its core."""
    denoise_partner: str | None = None
    """The model with which --denoise interpolates: the same network, trained to keep noise."""
    mix: Mix | None = None
    precisions: tuple[Precision, ...] = ("fp32",)
    psnr_floor: float
    description: str
    limits: str = ""

    @field_validator("parameters", mode="before")
    @classmethod
    def _from_mapping(cls, value: Any) -> Any:
        return tuple(sorted(value.items())) if isinstance(value, Mapping) else value

    @field_serializer("parameters")
    def _to_mapping(self, value: tuple[tuple[str, int | str], ...]) -> dict[str, int | str]:
        return dict(value)

    @model_validator(mode="after")
    def _belongs_together(self) -> Card:
        if (self.kind == "filter") != (self.network in ("nearest", "bicubic", "lanczos")):
            raise ValueError(f"{self.name}: network {self.network} is not of kind {self.kind}")
        if (self.weights is None) != (self.kind == "filter" or self.network == "module"):
            raise ValueError(f"{self.name}: a network needs weights; a filter and a module have none")
        if self.context and self.kind != "recurrent":
            raise ValueError(f"{self.name}: only a recurrent network has a context")
        if self.overlap % self.multiple_of:
            raise ValueError(f"{self.name}: overlap={self.overlap} is not a multiple of {self.multiple_of}")
        return self

    @property
    def is_filter(self) -> bool:
        return self.kind == "filter"

    @property
    def is_recurrent(self) -> bool:
        return self.kind == "recurrent"

    @property
    def is_tiled_exactly(self) -> bool:
        """Whether the overlap covers all that an output pixel depends on: tiles need no feathering."""
        return self.overlap >= theoretical_radius(self.network, self.scale, dict(self.parameters))

    @property
    def operations_per_pixel(self) -> int:
        """Multiplications and additions per input pixel and frame."""
        return operations_per_pixel(self.network, self.scale, dict(self.parameters))


_CARDS = TypeAdapter(tuple[Card, ...])

MODULE_PREFIX = "module-"
"""How the names of cards of torch modules begin."""
_cards_of_modules: dict[str, Card] = {}
"""Cards of torch modules that this process was given (`vsr_hpc.models.user_modules`)."""


def user_cards_folder() -> Path:
    """Where `vsr models import` writes cards."""
    return user_folder("data") / "cards"


def all_cards() -> tuple[Card, ...]:
    """The package's cards, then the user's own; a user's card never hides one of the package's."""
    ours = tuple(_with_installed_weights(card) for card in _package_cards())
    taken = {card.name for card in ours}
    folder = user_cards_folder()
    users = (read_card(path) for path in sorted(folder.glob("*.yaml")))
    return ours + tuple(card for card in users if card.name not in taken)


def packaged_models() -> tuple[str, ...]:
    """What every installation of this package takes as a model, whatever a user has imported."""
    return (AUTO, *(card.name for card in _package_cards()))


def find_card(name_or_path: str | Path) -> Card:
    """The card of that name, or one made on the spot for a file of weights.

    `auto`, which a job's clip and size decide, is here what a clip of twice the size gets.
    """
    text = default_model("video") if name_or_path == AUTO else str(name_or_path)
    if text.lower().endswith(WEIGHT_SUFFIXES) or "/" in text:
        return card_of_file(Path(text))
    cards = {card.name: card for card in all_cards()} | _cards_of_modules
    if text in cards:
        return cards[text]
    if text.startswith(MODULE_PREFIX):
        raise JobError(
            f"model {text!r} is a torch module of the Python program that began the run; call "
            "vsr_hpc.upscale() with the same module there to continue"
        )
    by_lower = {name.lower(): name for name in cards}
    close = difflib.get_close_matches(text.lower(), by_lower, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(by_lower[name] for name in close)}? " if close else ""
    raise JobError(f"model {text!r} is not known; {hint}`vsr models list` shows all of them")


def keep_card_of_module(card: Card) -> None:
    """Let `find_card` find the card of a torch module in this process."""
    _cards_of_modules[card.name] = card


def with_denoise(card: Card, strength: float) -> Card:
    """The card with the partner's weights mixed in: 1 denoises as the model itself, 0 as its partner."""
    if card.denoise_partner is None:
        able = ", ".join(each.name for each in all_cards() if each.denoise_partner)
        raise JobError(f"model {card.name} has no variant for a denoise strength; {able} has one")
    partner = find_card(card.denoise_partner)
    if strength == 1:
        return card
    assert partner.weights is not None
    return card.model_copy(update={"mix": Mix(weights=partner.weights, share=1 - strength)})


def card_of_file(path: Path, name: str | None = None) -> Card:
    """Recognise the network in a file of weights by its keys and shapes, without running any of it."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file of weights")
    if path.suffix in (".param", ".bin"):
        raise ModelError(
            f"{path}: ncnn's files are imported first: vsr models import {path.with_suffix('.param')}"
        )
    try:
        found = recognise(read_shapes(path), where=str(path))
    except UnknownNetworkError as exc:
        raise UnknownNetworkError(f"{exc}. {IMPORT_HINT}") from exc
    return Card(
        name=name or card_name(path.stem),
        kind=found.kind,
        network=found.network,
        scale=found.scale,
        parameters=found.parameters,
        weights=Weights(
            file=path.name,
            url=path.resolve().as_uri(),
            size_bytes=path.stat().st_size,
            sha256=sha256_of_file(path),
        ),
        licence="unknown (the user's own file)",
        overlap=found.overlap,
        multiple_of=found.multiple_of,
        context=found.context,
        precisions=found.precisions,
        psnr_floor=10,
        description=f"{found.network} network recognised in {path.name}",
    )


def read_card(path: Path) -> Card:
    """One user's card."""
    try:
        return Card.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError, ValidationError) as exc:
        raise JobError(f"{path}: not a model card; mend or remove it\n{exc}") from exc


def write_card(card: Card, folder: Path | None = None) -> Path:
    """Write a user's card atomically; an existing other model of that name is refused."""
    folder = folder or user_cards_folder()
    if card.name in {each.name for each in _package_cards()}:
        raise JobError(f"model {card.name!r} is one of the package's own; choose another with --name")
    path = folder / f"{card.name}.yaml"
    if path.exists() and read_card(path) != card:
        raise JobError(
            f"{path} describes another model of that name; choose another with --name or remove it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(card.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_atomically(path, text)
    return path


@functools.cache
def _package_cards() -> tuple[Card, ...]:
    text = resources.files("vsr_hpc.models").joinpath("cards.yaml").read_text(encoding="utf-8")
    return _CARDS.validate_python(yaml.safe_load(text))


def find_packaged_file(weights: Weights) -> Path | None:
    """Where an installed package holds the weights; the package is not imported."""
    name, _, inner = str(weights.url).removeprefix("package://").partition("/")
    spec = importlib.util.find_spec(name)
    folders = spec.submodule_search_locations if spec is not None else None
    found = [Path(folder) / inner for folder in folders or ()]
    return next((path for path in found if path.is_file()), None)


def _with_installed_weights(card: Card) -> Card:
    if card.packaged is None or find_packaged_file(card.packaged) is None:
        return card
    return card.model_copy(update={"weights": card.packaged, "packaged": None})


def card_name(stem: str) -> str:
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._+-") else "-" for c in stem).lstrip("._+-")
    return kept or "model"


def card_hash(card: Card) -> str:
    """What a card is in 16 digits: network, scale, parameters and weights; not its words."""
    identity = card.model_dump_json(include={"kind", "network", "scale", "parameters", "weights"})
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
