"""Weights: fetched once into a cache, always checked by sha256, read without running anything."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import importlib.util
import io
import logging
import os
import pickle
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote, urlsplit

import numpy as np

from vsr_hpc.errors import BackendError, ModelError, SpaceError
from vsr_hpc.models import ncnn
from vsr_hpc.models.cards import Card, Weights, card_name, card_of_file, find_packaged_file, write_card
from vsr_hpc.models.recognition import UnknownNetworkError, pick_state, plain_names
from vsr_hpc.system.files import make_folder, sha256_of_file, translated, write_atomically
from vsr_hpc.system.network import PATIENCE_S, connection_problem, reason_text
from vsr_hpc.system.node_disk import private_folder
from vsr_hpc.system.progress import tick
from vsr_hpc.system.user_folders import user_folder
from vsr_hpc.wording import size as size_text

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""Called with (bytes so far, bytes in all or None)."""

MAX_BYTES = 4 << 30
_SHIPPED = Path(__file__).parent / "shipped"
_TIMEOUT_S = 30
_TRIES = 5
_PAUSE_S = 0.5
_EXTRA = "pip install 'vsr-hpc[real-esrgan]'"


def cache_folder() -> Path:
    """Where weights lie: <sha256>/<file>, or <file> where a person placed it.

    Each of several users of one cache has an own folder, mode 0700.
    """
    usual = user_folder("cache")
    if _is_of_another_user(usual):
        return private_folder(usual.with_name(f"{usual.name}-{os.geteuid()}")) / "weights"
    return usual / "weights"


def _is_of_another_user(folder: Path) -> bool:
    try:
        return folder.stat().st_uid != os.geteuid()
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise translated(exc, folder) from exc


def find_cached(sha256: str, file: str) -> Path | None:
    """Weights in this user's cache, or in one that an administrator filled, where their sha256 is right.

    A damaged file in this user's cache is removed, so that it is fetched again.
    """
    own, shared = cache_folder(), user_folder("cache") / "weights"
    for folder in dict.fromkeys((own, shared)):
        path = folder / sha256 / file
        try:
            if not path.is_file():
                continue
            if sha256_of_file(path) == sha256:
                return path
        except PermissionError:
            continue
        log.warning("cached weights are damaged path=%s", path)
        if folder == own:
            path.unlink(missing_ok=True)
    return None


def keep_cached(sha256: str, file: str, content: Iterable[bytes]) -> Path:
    """Put weights into this user's cache; they are flushed to the disk before they get their name."""
    target = cache_folder() / sha256 / file
    make_folder(target.parent)
    try:
        write_atomically(target, content)
    except OSError as exc:
        raise translated(exc, target) from exc
    return target


def ensure(card: Card, progress: Progress | None = None, *, patience_s: float = PATIENCE_S) -> Path:
    """The card's weights as a checked file: ours, from the cache, the user's, or downloaded now.

    Where they must be downloaded and no connection is made within `patience_s`, ModelError says at once
    which file to place where; nothing is created.
    """
    weights = card.weights
    if weights is None:
        raise ModelError(f"model {card.name} is a filter and has no weights")
    sha256 = weights.sha256 or _read_recorded_sha256(weights)
    shipped = _SHIPPED / weights.file
    if weights.url is None and shipped.is_file() and sha256_of_file(shipped) == sha256:
        return shipped
    if sha256 is not None:
        cached = find_cached(sha256, weights.file)
        if cached is not None:
            return cached
        placed = cache_folder() / weights.file
        if placed.is_file():
            return check_file(card, placed, sha256)
    if weights.url is None and shipped.is_file():
        raise ModelError(f"model {card.name}: {shipped} is not the card's file; reinstall vsr-hpc")
    if weights.url is not None and weights.url.startswith("package://"):
        return _check_packaged(card, weights)
    if weights.url is None:
        raise ModelError(
            f"model {card.name}: {weights.file} is not in the cache and the card names no URL; "
            "import the file again with `vsr models import FILE`"
        )
    if weights.url.startswith("file://"):
        return check_file(card, Path(unquote(urlsplit(weights.url).path)), sha256)
    problem = connection_problem(weights.url, patience_s)
    if problem is not None:
        raise WeightsMissingError(_missing_text(card, weights, problem))
    return _download(card, weights, sha256, progress)


def fetch_weights(card: Card) -> None:
    """Bring every file that the card's network needs to this disk, or raise before any work begins."""
    if card.weights is not None:
        ensure(card)
    ensure_mix(card)


class WeightsMissingError(ModelError):
    """The weights are not on this disk, and no connection to their site was made."""


def find_weights(card: Card) -> Path | None:
    """The file of the card's weights on this disk, by name and size; None where it must be downloaded."""
    weights = card.weights
    if weights is None:
        return None
    sha256 = weights.sha256 or _read_recorded_sha256(weights)
    places = [_SHIPPED / weights.file] if weights.url is None else []
    if weights.url is not None and weights.url.startswith("file://"):
        places.append(Path(unquote(urlsplit(weights.url).path)))
    if weights.url is not None and weights.url.startswith("package://"):
        packaged = find_packaged_file(weights)
        places += [] if packaged is None else [packaged]
    if sha256 is not None:
        places += [cache_folder() / sha256 / weights.file, cache_folder() / weights.file]
    return next((path for path in places if _fits(path, weights)), None)


def is_at_hand(card: Card) -> bool:
    """Whether the model runs on this machine without a download; a filter always does."""
    if card.network == "spandrel" and importlib.util.find_spec("spandrel") is None:
        return False
    return card.weights is None or find_weights(card) is not None


def _fits(path: Path, weights: Weights) -> bool:
    return path.is_file() and weights.size_bytes in (None, path.stat().st_size)


def _missing_text(card: Card, weights: Weights, problem: str) -> str:
    amount = f" ({size_text(weights.size_bytes)})" if weights.size_bytes else ""
    extra = f"; or {_EXTRA}" if card.packaged is not None else ""
    return (
        f"model {card.name} is not on this disk and cannot be downloaded ({problem}); fetch {weights.url}"
        f"{amount} on a machine with network and place it at {cache_folder() / weights.file}{extra}"
    )


def _check_packaged(card: Card, weights: Weights) -> Path:
    """The file inside an installed package, if it is what the card says."""
    found = find_packaged_file(weights)
    if found is None:
        raise ModelError(
            f"model {card.name}: its weights come from a Python package that is not installed here; {_EXTRA}"
        )
    return check_file(card, found, weights.sha256)


def import_weights(path: str | Path, name: str | None = None) -> Card:
    """Recognise a file of weights, copy it into the cache and write a card for it."""
    source = Path(path)
    if source.suffix == ".param":
        return _import_ncnn(source, name)
    try:
        found = card_of_file(source, name)
    except UnknownNetworkError as exc:
        found = _foreign_card(source, name, exc)
    else:
        load(source, found)  # every tensor is read and its shape checked before anything is kept
    assert found.weights is not None and found.weights.sha256 is not None
    if find_cached(found.weights.sha256, found.weights.file) is None:
        with source.open("rb") as content:
            keep_cached(found.weights.sha256, found.weights.file, iter(lambda: content.read(1 << 20), b""))
    card = found.model_copy(
        update={
            "weights": found.weights.model_copy(update={"url": None}),
            "description": found.description.replace("recognised in", "imported from"),
        }
    )
    write_card(card)
    return card


def _import_ncnn(param: Path, name: str | None) -> Card:
    """Import a network from ncnn's pair of files: its weights are kept by our keys, as safetensors."""
    from safetensors.numpy import save_file

    found = ncnn.read_network(param)
    with tempfile.TemporaryDirectory(prefix="vsr-import-") as folder:
        converted = Path(folder) / f"{card_name(param.stem)}.safetensors"
        save_file({key: np.ascontiguousarray(value) for key, value in found.state.items()}, converted)
        card = import_weights(converted, name or card_name(param.stem))
    assert dict(card.parameters) == dict(found.parameters)
    if found.shrinks_by == 1:
        return card
    factor = found.scale * found.shrinks_by
    log.warning(
        "%s enlarges %d times and then shrinks; the imported model only enlarges, so ask for --scale %g",
        param, found.scale, factor,
    )  # fmt: skip
    return card


def _foreign_card(path: Path, name: str | None, unknown: UnknownNetworkError) -> Card:
    """A card for a network that spandrel builds; what we said of the file where spandrel is not there."""
    if importlib.util.find_spec("spandrel") is None:
        raise unknown
    from vsr_hpc.models.spandrel_networks import describe_foreign

    found = describe_foreign(_read(path), str(path))
    weights = Weights(
        file=path.name,
        url=path.resolve().as_uri(),
        size_bytes=path.stat().st_size,
        sha256=sha256_of_file(path),
    )
    return Card(
        name=name or card_name(path.stem),
        kind="image",
        network="spandrel",
        scale=found.scale,
        parameters=(("architecture", found.architecture), ("weights", found.weights)),
        weights=weights,
        licence="unknown (the user's own file)",
        overlap=found.overlap,
        multiple_of=found.multiple_of,
        precisions=found.precisions,
        psnr_floor=10,
        description=f"{found.architecture} network recognised in {path.name}",
        limits=found.limits,
    )


def open_network(card: Card, path: Path | None) -> nn.Module:
    """The card's network with its weights, for inference. A torch module needs no file of weights."""
    if card.network == "module":
        from vsr_hpc.models.user_modules import open_module

        return open_module(card)
    if path is None:
        raise ModelError(f"model {card.name} needs its weights; `vsr models pull {card.name}` fetches them")
    if card.network == "spandrel":
        from vsr_hpc.models.spandrel_networks import build_foreign

        return build_foreign(_read(path, card.weights), str(path))
    from vsr_hpc.models.networks import build, upright

    network = build(card)
    network.load_state_dict(load(path, card))
    return upright(network, card)


def ensure_mix(card: Card) -> Path | None:
    """The file of the weights that the card's own are mixed with; None where it mixes none."""
    if card.mix is None:
        return None
    return ensure(card.model_copy(update={"weights": card.mix.weights, "mix": None}))


def load(path: Path, card: Card) -> dict[str, Tensor]:
    """Weights by BasicSR's keys in fp32, exactly those that the card's network has; ModelError otherwise."""
    own = _load_file(path, card, card.weights)
    other = ensure_mix(card)
    if card.mix is None or other is None:
        return own
    mixed, share = _load_file(other, card, card.mix.weights), card.mix.share
    return {key: value * (1 - share) + mixed[key] * share for key, value in own.items()}


def _load_file(path: Path, card: Card, wanted_file: Weights | None) -> dict[str, Tensor]:
    import torch

    from vsr_hpc.models.networks import expected_shapes

    wanted = expected_shapes(card)
    if path.suffix == ".bin":
        arrays = ncnn.read_weights(_read_bytes(path, wanted_file), str(path), wanted.items())
        return {key: torch.from_numpy(value) for key, value in arrays.items()}
    state = pick_state(_read(path, wanted_file), str(path))
    names = plain_names(dict.fromkeys(state), str(path))
    tensors = {names[key]: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    if found != wanted:
        raise ModelError(f"{path}: does not fit model {card.name}: {_difference(found, wanted)}")
    return {key: value.to(torch.float32) for key, value in tensors.items()}


def _read_bytes(path: Path, wanted: Weights | None = None) -> bytes:
    """The content of a file of weights; with `wanted` exactly those bytes are read that have its sha256.

    A file that somebody changes after it was checked is never computed with.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file of weights")
    if path.stat().st_size > MAX_BYTES:
        raise ModelError(f"{path}: {path.stat().st_size} bytes; weights above {MAX_BYTES} bytes are refused")
    content = path.read_bytes()
    sha256 = wanted.sha256 or _read_recorded_sha256(wanted) if wanted is not None else None
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise ModelError(f"{path}: has sha256 {found}, wanted {sha256}; it was changed or damaged")
    return content


def _read(path: Path, wanted: Weights | None = None) -> object:
    """What a file of weights holds: a tree of names and tensors, read without running anything."""
    import torch

    content = _read_bytes(path, wanted)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load as load_safetensors

            return load_safetensors(content)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        raise ModelError(
            f"{path}: refused: its pickle holds more than weights and could run code; "
            f"export the weights alone (a plain state dict or safetensors). PyTorch says: {_first_line(exc)}"
        ) from exc
    except Exception as exc:  # a damaged file can raise anything; all of it means the same to the user
        raise ModelError(
            f"{path}: cannot be read as weights ({type(exc).__name__}: {_first_line(exc)}); "
            "download or export it again"
        ) from exc


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [""])[0][:200]


def _difference(found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> str:
    missing = sorted(wanted.keys() - found.keys())
    foreign = sorted(found.keys() - wanted.keys())
    other = [key for key in sorted(wanted.keys() & found.keys()) if wanted[key] != found[key]]
    parts = []
    if missing:
        parts.append(f"{len(missing)} weights are missing (first: {missing[0]})")
    if foreign:
        parts.append(f"{len(foreign)} are foreign (first: {foreign[0]})")
    if other:
        parts.append(f"{other[0]} has shape {found[other[0]]}, wanted {wanted[other[0]]}")
    return "; ".join(parts) + ". `vsr models import` recognises a file's own network"


def check_file(card: Card, path: Path, sha256: str | None = None) -> Path:
    """The path, if its content is what the card (or `sha256`) says; ModelError otherwise."""
    sha256 = sha256 or (card.weights.sha256 if card.weights else None)
    if not path.is_file():
        raise ModelError(f"model {card.name}: {path} is gone; put it back or import it again")
    if sha256 is not None and (found := sha256_of_file(path)) != sha256:
        raise ModelError(
            f"model {card.name}: {path} has sha256 {found}, wanted {sha256}; it is not the card's file"
        )
    return path


# Download --------------------------------------------------------------------------------------------------


def _download(card: Card, weights: Weights, sha256: str | None, progress: Progress | None) -> Path:
    assert weights.url is not None
    folder = cache_folder() / "incoming"
    part = folder / f"{hashlib.sha256(weights.url.encode()).hexdigest()[:16]}-{weights.file}.part"
    with _lock_file(part.with_suffix(".lock")):
        if sha256 is not None and (done := cache_folder() / sha256 / weights.file).is_file():
            return check_file(card, done)  # another process fetched it meanwhile
        log.info("download started model=%s url=%s", card.name, weights.url)
        try:
            _fetch(card, weights, part, progress)
        except WeightsMissingError:
            _remove_lock(part.with_suffix(".lock"))
            raise
        found = sha256_of_file(part)
        if sha256 is not None and found != sha256:
            part.unlink()
            raise ModelError(
                f"model {card.name}: {weights.url} gave a file with sha256 {found}, wanted {sha256}; "
                "it was removed. Try again; if it stays so, the file at that address was replaced"
            )
        if sha256 is None:
            _record_sha256(weights, found)
        target = cache_folder() / found / weights.file
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
    log.info("download done model=%s sha256=%s", card.name, found)
    return target


def _fetch(card: Card, weights: Weights, part: Path, progress: Progress | None) -> None:
    """Complete `part`, going on where an earlier try or process stopped."""
    assert weights.url is not None
    for attempt in range(_TRIES):
        before = part.stat().st_size if part.exists() else 0
        try:
            if _fetch_rest(weights, part, progress):
                return
        except urllib.error.HTTPError as exc:
            exc.close()
            if exc.code < 500 and exc.code not in (408, 429):
                raise ModelError(f"model {card.name}: {weights.url} answers {exc.code} {exc.reason}") from exc
            cause: object = exc
        except (OSError, http.client.HTTPException) as exc:
            if isinstance(exc, OSError) and exc.errno == errno.ENOSPC:
                raise SpaceError(
                    f"{part.parent}: no space left for {weights.file}; free some and call again"
                ) from exc
            if isinstance(exc, urllib.error.URLError) and not part.exists():
                raise WeightsMissingError(_missing_text(card, weights, reason_text(exc.reason))) from exc
            cause = exc
        else:
            cause = "the connection ended early"
        log.warning("download interrupted model=%s bytes=%d cause=%s", card.name, before, cause)
        if attempt + 1 < _TRIES:
            time.sleep(_PAUSE_S * 2**attempt)
    raise BackendError(
        f"model {card.name}: {weights.url} could not be fetched ({cause}); what came is kept, so "
        "calling again goes on from there. On a node without internet, first run "
        f"`vsr models pull {card.name}` elsewhere"
    )


def _fetch_rest(weights: Weights, part: Path, progress: Progress | None) -> bool:
    """One request; True when the file is whole."""
    assert weights.url is not None
    have = part.stat().st_size if part.exists() else 0
    if weights.size_bytes is not None and have == weights.size_bytes:
        return True
    if weights.size_bytes is not None and have > weights.size_bytes:
        part.unlink()
        have = 0
    headers = {"User-Agent": "vsr_hpc", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(weights.url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as exc:
        if exc.code == 416 and have:  # the part is not a beginning of what the server has
            exc.close()
            part.unlink()
            return False
        raise
    with response:
        goes_on = response.status == 206 and str(response.headers.get("Content-Range", "")).startswith(
            f"bytes {have}-"
        )
        start = have if goes_on else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None and length.isdigit() else weights.size_bytes
        with part.open("ab" if goes_on else "wb") as file:
            size = _copy(response, file, start, total, weights, progress)
    return total is None or size == total


def _copy(
    response: http.client.HTTPResponse,
    file: BinaryIO,
    size: int,
    total: int | None,
    weights: Weights,
    progress: Progress | None,
) -> int:
    limit = weights.size_bytes or MAX_BYTES
    while block := response.read(1 << 18):
        size += len(block)
        tick()
        if size > limit:
            file.truncate(0)
            raise ModelError(f"{weights.url}: sends more than {limit} bytes; refused")
        file.write(block)
        if progress is not None:
            progress(size, total)
    file.flush()
    os.fsync(file.fileno())
    return size


@contextlib.contextmanager
def _lock_file(path: Path) -> Iterator[None]:
    """One process at a time; others wait, since both would append to one file."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                yield
                return


def _remove_lock(path: Path) -> None:
    """Remove a lock that this process holds, and the folders that are empty without it."""
    path.unlink()
    for folder in (path.parent, path.parent.parent, path.parent.parent.parent):
        try:
            folder.rmdir()
        except OSError:  # other files lie in it
            return


def _record_path(weights: Weights) -> Path:
    return cache_folder() / "recorded" / hashlib.sha256(str(weights.url).encode()).hexdigest()


def _read_recorded_sha256(weights: Weights) -> str | None:
    path = _record_path(weights)
    return path.read_text().strip() if weights.url is not None and path.is_file() else None


def _record_sha256(weights: Weights, sha256: str) -> None:
    path = _record_path(weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, sha256 + "\n")
    log.warning("the card states no sha256; recorded at first download url=%s sha256=%s", weights.url, sha256)
