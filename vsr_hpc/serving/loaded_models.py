"""The models that a server may run: which ones, their files, and which of them are in memory."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vsr_hpc.engine.device_facts import DeviceFacts
from vsr_hpc.engine.settings import UpscaleSettings
from vsr_hpc.errors import BackendError, JobError, ModelError
from vsr_hpc.media.picture import Picture
from vsr_hpc.models.cards import WEIGHT_SUFFIXES, Card, card_of_file, find_card, read_card
from vsr_hpc.serving.refusals import Refusal

if TYPE_CHECKING:
    from torch import nn

    from vsr_hpc.engine.upscaler import Upscaler

log = logging.getLogger(__name__)


_UPSCALERS = 32
"""Shapes of pictures that are kept ready; each holds a few numbers, the network is shared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model that requests may name."""

    name: str
    card: Card
    weights: Path | None
    url: str = ""
    """Where a multi-model endpoint found it."""

    @property
    def reference(self) -> str:
        """What a job writes to mean this model."""
        return str(self.weights) if self.weights is not None else self.card.name


@dataclass(frozen=True, slots=True)
class Bench:
    """One model for pictures of one kind: requests with equal benches share a forward pass."""

    model: Model
    picture_in: Picture
    picture_out: Picture
    settings: UpscaleSettings


def model_named(text: str) -> Model:
    """A model by the name of its card or by its file; its weights are checked, or fetched now."""
    from vsr_hpc.models.weights import ensure

    card = _servable(find_card(text))
    return Model(name=card.name, card=card, weights=ensure(card) if card.weights else None)


def models_in(folder: Path) -> tuple[Model, ...]:
    """All models in a folder such as /opt/ml/model: files of weights, and cards (.yaml) about them."""
    if not folder.is_dir():
        return ()
    found: dict[str, Model] = {}
    described = set()
    for path in sorted(folder.glob("*.yaml")):
        card = _servable(read_card(path))
        found[card.name] = Model(name=card.name, card=card, weights=_beside(path, card))
        described.add(found[card.name].weights)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in WEIGHT_SUFFIXES and path not in described:
            card = _servable(card_of_file(path))
            found.setdefault(card.name, Model(name=card.name, card=card, weights=path))
    return tuple(found.values())


def _servable(card: Card) -> Card:
    if card.is_recurrent:
        raise JobError(
            f"model {card.name} is a video network, which looks at whole scenes; a server answers with "
            "pictures and short clips frame by frame. `vsr upscale` and `vsr submit` take it"
        )
    return card


def _beside(path: Path, card: Card) -> Path | None:
    from vsr_hpc.models.weights import check_file, ensure

    if card.weights is None:
        return None
    file = path.parent / card.weights.file
    return check_file(card, file) if file.is_file() else ensure(card)


class Shelf:
    """Which models there are, and which networks are in memory. Safe to call from several threads.

    Networks are loaded at first use and the least recently used one is let go when there are more than
    `resident`. The first model is the one that a request without a name gets.
    """

    def __init__(
        self,
        models: tuple[Model, ...],
        *,
        threads: int,
        device: DeviceFacts,
        resident: int = 4,
        most: int = 64,
        root: Path | None = None,
    ) -> None:
        self.device, self.threads = device, threads
        self._resident, self._most, self._root = resident, most, root
        self._models: OrderedDict[str, Model] = OrderedDict((each.name, each) for each in models)
        self._networks: OrderedDict[tuple[str, str], nn.Module] = OrderedDict()
        self._upscalers: OrderedDict[Bench, Upscaler] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def is_multi(self) -> bool:
        """Whether models are put in and taken out by SageMaker's multi-model calls."""
        return self._root is not None

    @property
    def names(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(self._models)

    @property
    def resident_count(self) -> int:
        with self._lock:
            return len(self._networks)

    def find(self, name: str | None) -> Model:
        """The model that a request means; 422 for one not allowed here, 404 in a multi-model server."""
        with self._lock:
            if name is None and not self.is_multi and self._models:
                return next(iter(self._models.values()))
            if name is not None and name in self._models:
                return self._models[name]
            known = ", ".join(self._models) or "none"
        if self.is_multi:
            raise Refusal(404, "model", f"model {str(name)[:80]!r} is not loaded; loaded: {known}")
        raise Refusal(422, "model", f"model {str(name)[:80]!r} is not served here; served: {known}")

    # Multi-model -----------------------------------------------------------------------------------------

    def load(self, name: str, url: str) -> Model:
        """Take a model in (POST /models): 409 it is there, 507 no more fit, 400 a bad place."""
        root = self._root
        if root is None:
            raise Refusal(
                405, "multi_model", "this server has a fixed set of models; start it with --multi-model"
            )
        folder = _within(root, url)
        with self._lock:
            if name in self._models:
                raise Refusal(409, "model", f"model {name[:80]!r} is loaded already")
            if len(self._models) >= self._most:
                raise Refusal(507, "model", f"{len(self._models)} models are loaded, no more fit; unload one")
        try:
            found = models_in(folder)
        except (ModelError, JobError) as exc:
            raise Refusal(
                400, "model", f"model {name[:80]!r} cannot be loaded: {_hidden(exc, root)}"
            ) from exc
        if len(found) != 1:
            raise Refusal(
                400, "model", f"model {name[:80]!r}: its folder holds {len(found)} models, one is wanted "
                f"({', '.join(WEIGHT_SUFFIXES)}, or a card with its weights)"
            )  # fmt: skip
        model = Model(name=name, card=found[0].card, weights=found[0].weights, url=url)
        with self._lock:
            if name in self._models:
                raise Refusal(409, "model", f"model {name[:80]!r} is loaded already")
            if len(self._models) >= self._most:
                raise Refusal(507, "model", f"{len(self._models)} models are loaded, no more fit; unload one")
            self._models[name] = model
        log.info("model taken in name=%s", name)
        return model

    def unload(self, name: str) -> None:
        """Let a model go (DELETE /models/{name}); what is under way with it still ends well."""
        if not self.is_multi:
            raise Refusal(405, "multi_model", "this server has a fixed set of models")
        with self._lock:
            if name not in self._models:
                raise Refusal(404, "model", f"model {name[:80]!r} is not loaded")
            del self._models[name]
            self._forget(name)
        log.info("model let go name=%s", name)

    def all(self) -> tuple[Model, ...]:
        with self._lock:
            return tuple(self._models.values())

    # In memory -------------------------------------------------------------------------------------------

    def upscaler(self, bench: Bench) -> Upscaler:
        """The engine for a bench. Called by the device thread alone: making one may take the device."""
        from vsr_hpc.engine.upscaler import Upscaler

        key = (bench.model.name, bench.settings.precision)
        with self._lock:
            ready = self._upscalers.get(bench)
            network = self._networks.get(key) if self._models.get(key[0]) is bench.model else None
            if ready is not None:
                self._upscalers.move_to_end(bench)
            if network is not None:
                self._networks.move_to_end(key)
        if ready is not None:
            return ready
        model = bench.model
        if network is None and not model.card.is_filter:
            self._make_room()
        try:
            made = Upscaler(
                model.card, model.weights, bench.picture_in, bench.picture_out, bench.settings,
                threads=self.threads, network=network,
            )  # fmt: skip
        except ModelError as exc:
            raise BackendError(f"model {model.name} cannot be loaded: {exc}") from exc
        with self._lock:
            if self._models.get(model.name) is not model:
                return made  # let go meanwhile: who still asked for it is served, nothing of it is kept
            self._upscalers[bench] = made
            while len(self._upscalers) > _UPSCALERS:
                self._upscalers.popitem(last=False)
            if made.network is not None:
                self._networks[key] = made.network
        return made

    def _make_room(self) -> None:
        with self._lock:
            while len(self._networks) >= self._resident:
                (name, _), _ = next(iter(self._networks.items()))
                self._forget(name)
                log.info("network let go, least recently used name=%s", name)

    def _forget(self, name: str) -> None:
        for key in [key for key in self._networks if key[0] == name]:
            del self._networks[key]
        for bench in [bench for bench in self._upscalers if bench.model.name == name]:
            del self._upscalers[bench]


def _within(root: Path, url: str) -> Path:
    """The folder that a multi-model call names, if it lies below the models' own folder."""
    if "\0" in url or len(url) > 4096:
        raise Refusal(400, "model", "url is no path")
    try:
        folder = Path(url).resolve()
        is_inside = folder.is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError) as exc:
        raise Refusal(400, "model", "url is no path") from exc
    if not is_inside:
        raise Refusal(400, "model", "url lies outside of the folder that models are taken from")
    if folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise Refusal(400, "model", "url: there is no such folder")
    return folder


def _hidden(exc: Exception, root: Path) -> str:
    return str(exc).replace(os.fspath(root.resolve()), "").replace(os.fspath(root), "")
