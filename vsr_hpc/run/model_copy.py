"""Weights travel with the run: put into its store at submission, so that no worker needs the internet.

So does the card, unless the model lies in our own package: other machines may know another file of that name.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil

from vsr_hpc.models import weights
from vsr_hpc.models.cards import Card, find_card, packaged_models
from vsr_hpc.run.run import Run
from vsr_hpc.system.files import sha256_of_file

log = logging.getLogger(__name__)


_CARD = "card.json"


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
    """Copy the run's weights into this machine's cache, where they are not there yet; loading checks them."""
    for facts in run.store.list("weights/"):
        _, sha256, file = facts.name.split("/", 2)
        cached = weights.cache_folder() / sha256 / file
        if cached.exists():
            continue
        cached.parent.mkdir(parents=True, exist_ok=True)
        temporary = cached.with_name(f".{cached.name}.{secrets.token_hex(4)}.tmp")
        try:
            with run.store.local(facts.name) as path:
                shutil.copyfile(path, temporary)
            temporary.replace(cached)
        finally:
            temporary.unlink(missing_ok=True)
