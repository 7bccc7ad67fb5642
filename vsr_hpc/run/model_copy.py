"""Weights travel with the run: put into its store at submission, so that no worker needs the internet.

So does the card, unless the model lies in our own package: other machines may know another file of that name.
"""

from __future__ import annotations

import logging
import os
import re
import shutil

from vsr_hpc.models import weights
from vsr_hpc.models.cards import Card, find_card, packaged_models
from vsr_hpc.run.run import Run
from vsr_hpc.system.files import sha256_of_file

log = logging.getLogger(__name__)


_CARD = "card.json"
_WEIGHTS = re.compile(r"weights/([0-9a-f]{64})/([^/]+)")


def stage(run: Run, model: str, denoise: float | None = None) -> None:
    """Put the model's weights into the run's store, under their sha256."""
    card = find_card(model)
    if model not in packaged_models() or (card.weights is not None and card.weights.url is not None):
        run.store.create(_CARD, card.model_dump_json().encode())
    if card.denoise_partner is not None and denoise not in (None, 1):
        stage(run, card.denoise_partner)
    if card.weights is None:
        return
    path = weights.ensure(card)
    name = f"weights/{sha256_of_file(path)}/{card.weights.file}"
    if run.store.exists(name):
        return
    copy = run.store.scratch / f"{card.weights.file}.{os.getpid()}"
    shutil.copyfile(path, copy)
    run.store.put_file(name, copy)
    log.info("weights staged name=%s", name)


def card_of(run: Run) -> Card | None:
    """The card that came with the run; None where the job's model lies in our own package."""
    return Card.model_validate_json(run.store.read(_CARD)) if run.store.exists(_CARD) else None


def bring(run: Run) -> None:
    """Copy the run's weights into this user's cache, where whole ones are not there yet."""
    for facts in run.store.list("weights/"):
        found = _WEIGHTS.fullmatch(facts.name)
        if found is None or weights.find_cached(found[1], found[2]) is not None:
            continue
        with run.store.local(facts.name) as path, path.open("rb") as content:
            weights.keep_cached(found[1], found[2], iter(lambda: content.read(1 << 20), b""))
