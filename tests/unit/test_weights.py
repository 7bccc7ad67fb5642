"""Weights: resumed, checked, recognised; nothing in a file is ever run."""

from __future__ import annotations

import hashlib
import http.server
import os
import pickle
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vsr_hpc.errors import BackendError, JobError, ModelError
from vsr_hpc.models import weights as weights_module
from vsr_hpc.models.cards import Card, Weights, card_of_file, find_card
from vsr_hpc.models.networks import Compact, Rrdb
from vsr_hpc.models.weights import (
    WeightsMissingError,
    cache_folder,
    ensure,
    find_weights,
    import_weights,
    load,
)

PAYLOAD = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(PAYLOAD).hexdigest()


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(weights_module, "_PAUSE_S", 0.0)


class Site(http.server.ThreadingHTTPServer):
    """Serves PAYLOAD; may cut connections after `cut` bytes, ignore ranges, or answer an error."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cut: int | None = None
        self.honours_ranges = True
        self.status = 200
        self.payload = PAYLOAD
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/net.pth"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Site

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        site, wanted = self.server, self.headers.get("Range")
        site.asked.append(wanted)
        if site.status != 200:
            self.send_error(site.status)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and site.honours_ranges else 0
        body = site.payload[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(site.payload) - 1}/{len(site.payload)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: site.cut] if site.cut else body)
        self.close_connection = True


@pytest.fixture
def site() -> Iterator[Site]:
    server = Site()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def card_for(site: Site, **weights: Any) -> Card:
    facts = {"file": "net.pth", "url": site.url, "sha256": SHA256, "size_bytes": len(PAYLOAD)} | weights
    return find_card("realesr-animevideov3").model_copy(update={"name": "net", "weights": Weights(**facts)})


# Download --------------------------------------------------------------------------------------------------


def test_a_download_lands_in_the_cache_and_is_not_repeated(site: Site) -> None:
    told: list[tuple[int, int | None]] = []
    path = ensure(card_for(site), progress=lambda done, total: told.append((done, total)))
    assert path == cache_folder() / SHA256 / "net.pth"
    assert path.read_bytes() == PAYLOAD
    assert told[-1] == (len(PAYLOAD), len(PAYLOAD))
    assert ensure(card_for(site)) == path
    assert len(site.asked) == 1


def test_a_cut_download_goes_on_where_it_stopped(site: Site) -> None:
    site.cut = 300_000
    assert ensure(card_for(site)).read_bytes() == PAYLOAD
    assert site.asked == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_a_later_process_goes_on_where_an_earlier_one_gave_up(site: Site) -> None:
    site.cut = 100_000
    with pytest.raises(BackendError, match="goes on from there"):
        ensure(card_for(site))
    site.cut = None
    assert ensure(card_for(site)).read_bytes() == PAYLOAD
    assert site.asked[-1] == "bytes=500000-"


def test_a_server_without_ranges_starts_again(site: Site) -> None:
    site.cut = 900_000
    site.honours_ranges = False
    with pytest.raises(BackendError):
        ensure(card_for(site))
    site.cut = None
    assert ensure(card_for(site)).read_bytes() == PAYLOAD


def test_a_wrong_hash_is_refused_and_removed(site: Site) -> None:
    site.payload = bytes(len(PAYLOAD))
    with pytest.raises(ModelError, match=SHA256):
        ensure(card_for(site))
    assert not [*cache_folder().rglob("*.part"), *cache_folder().rglob("net.pth")]


def test_more_bytes_than_stated_are_refused(site: Site) -> None:
    with pytest.raises(ModelError, match="more than 1000 bytes"):
        ensure(card_for(site, size_bytes=1000))


def test_a_missing_page_is_said_at_once(site: Site) -> None:
    site.status = 404
    with pytest.raises(ModelError, match="404"):
        ensure(card_for(site))
    assert len(site.asked) == 1


def test_a_failing_server_is_tried_again_then_a_backend_error(site: Site) -> None:
    site.status = 503
    with pytest.raises(BackendError):
        ensure(card_for(site))
    assert len(site.asked) == 5


def test_an_unknown_hash_is_recorded_and_checked_from_then_on(site: Site) -> None:
    card = card_for(site, sha256=None, size_bytes=None)
    path = ensure(card)
    assert path.read_bytes() == PAYLOAD
    path.unlink()
    site.payload = b"something else"
    with pytest.raises(ModelError, match=SHA256):
        ensure(card)


def test_a_damaged_cache_is_fetched_again(site: Site) -> None:
    ensure(card_for(site)).write_bytes(b"rotten")
    assert ensure(card_for(site)).read_bytes() == PAYLOAD


# Recognition and loading -----------------------------------------------------------------------------------


def saved(folder: Path, content: object, name: str = "net.pth", **how: Any) -> Path:
    path = folder / name
    torch.save(content, path, **how)
    return path


SMALL_COMPACT = {"num_feat": 8, "num_conv": 4}
SMALL_RRDB = {"num_feat": 8, "num_block": 2, "num_grow_ch": 4}


@pytest.mark.parametrize("wrapper", ["params_ema", "params", "state_dict", None])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_compact_is_recognised_under_any_wrapper(tmp_path: Path, wrapper: str | None, scale: int) -> None:
    state = Compact(scale=scale, **SMALL_COMPACT).state_dict()
    path = saved(tmp_path, {wrapper: state} if wrapper else state)
    card = find_card(path)
    assert (card.network, card.scale, card.overlap) == ("compact", scale, 6)
    assert dict(card.parameters) == SMALL_COMPACT | {"act_type": "prelu"}
    assert all(torch.equal(state[key], value) for key, value in load(path, card).items())


@pytest.mark.parametrize(("scale", "step"), [(1, 4), (2, 2), (4, 1)])
def test_rrdb_is_recognised_with_its_unshuffle(tmp_path: Path, scale: int, step: int) -> None:
    path = saved(tmp_path, {"params_ema": Rrdb(scale=scale, **SMALL_RRDB).state_dict()})
    card = card_of_file(path)
    assert (card.network, card.scale, card.multiple_of) == ("rrdb", scale, step)
    assert dict(card.parameters) == SMALL_RRDB
    assert load(path, card)


def test_params_ema_is_preferred_to_params(tmp_path: Path) -> None:
    first, second = (Compact(scale=2, **SMALL_COMPACT).state_dict() for _ in range(2))
    path = saved(tmp_path, {"params": first, "params_ema": second})
    loaded = load(path, card_of_file(path))
    assert torch.equal(loaded["body.0.weight"], second["body.0.weight"])


def first_esrgan(key: str) -> str:
    head, _, kind = key.rpartition(".")
    numbered = {"conv_first": 0, "conv_up1": 3, "conv_up2": 6, "conv_hr": 8, "conv_last": 10}
    if head in numbered:
        return f"model.{numbered[head]}.{kind}"
    if head == "conv_body":
        return f"model.1.sub.{SMALL_RRDB['num_block']}.{kind}"
    _, block, dense, conv = head.split(".")
    return f"model.1.sub.{block}.{dense.upper()}.{conv}.0.{kind}"


def second_esrgan(key: str) -> str:
    pairs = (
        ("body.", "RRDB_trunk."),
        ("conv_body", "trunk_conv"),
        ("conv_up", "upconv"),
        ("conv_hr", "HRconv"),
    )
    for new, old in pairs:
        if key.startswith(new):
            key = old + key[len(new) :]
    return key.replace(".rdb", ".RDB")


@pytest.mark.parametrize("rename", [first_esrgan, second_esrgan, "module.{}".format])
def test_older_key_names_are_translated(tmp_path: Path, rename: Callable[[str], str]) -> None:
    state = Rrdb(**SMALL_RRDB).state_dict()
    path = saved(tmp_path, {rename(key): value for key, value in state.items()})
    card = card_of_file(path)
    assert dict(card.parameters) == SMALL_RRDB
    loaded = load(path, card)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(state[key], loaded[key]) for key in state)


@pytest.mark.parametrize("how", [{"_use_new_zipfile_serialization": False}, {}])
def test_both_file_formats_and_half_precision_are_read(tmp_path: Path, how: dict[str, Any]) -> None:
    state = Compact(scale=2, **SMALL_COMPACT).half().state_dict()
    path = saved(tmp_path, state, **how)
    assert {value.dtype for value in load(path, card_of_file(path)).values()} == {torch.float32}


def test_safetensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    state = Compact(scale=2, **SMALL_COMPACT).state_dict()
    save_file(state, path)
    assert load(path, card_of_file(path)).keys() == state.keys()


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("torch_format", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, torch_format: bool) -> None:
    trace, path = tmp_path / "ran", tmp_path / "evil.pth"
    if torch_format:
        torch.save({"params": Evil(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"params": Evil(trace)}))
    with pytest.raises(ModelError, match="refused"):
        card_of_file(path)
    with pytest.raises(ModelError, match=r"refused|cannot be read"):
        load(path, find_card("realesr-animevideov3").model_copy(update={"weights": None}))
    with pytest.raises(ModelError):
        import_weights(path)
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04rubbish", b"\x80\x02."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_rubbish_is_a_model_error(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="bad"):
        card_of_file(path)
    with pytest.raises(ModelError, match="bad"):
        load(path, find_card("realesr-animevideov3"))


def test_a_truncated_file_is_a_model_error(tmp_path: Path) -> None:
    path = saved(tmp_path, Compact(scale=2, **SMALL_COMPACT).state_dict())
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ModelError):
        card_of_file(path)


def test_another_network_is_refused_with_its_keys(tmp_path: Path) -> None:
    path = saved(tmp_path, {"layers.0.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"first keys are layers\.0\.weight"):
        card_of_file(path)


def test_weights_that_do_not_fit_the_card_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, Compact(scale=2, **SMALL_COMPACT).state_dict())
    other = card_of_file(path).model_copy(update={"scale": 4})
    with pytest.raises(ModelError, match=r"body\.10\.bias has shape \(12,\), wanted \(48,\)"):
        load(path, other)


def test_an_imported_file_becomes_a_model_of_its_own(tmp_path: Path) -> None:
    path = saved(tmp_path, Compact(scale=2, **SMALL_COMPACT).state_dict(), "My net (v2).pth")
    card = import_weights(path)
    path.unlink()
    assert card.name == "My-net--v2-"
    assert find_card(card.name) == card
    assert load(ensure(card), card)
    with pytest.raises(JobError, match="package's own"):
        import_weights(saved(tmp_path, Compact(scale=2, **SMALL_COMPACT).state_dict()), name="bicubic")


def test_a_users_file_that_changed_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, Compact(scale=2, **SMALL_COMPACT).state_dict())
    card = card_of_file(path)
    assert ensure(card) == path
    saved(tmp_path, Compact(scale=2, **SMALL_COMPACT).state_dict())
    with pytest.raises(ModelError, match="not the card's file"):
        ensure(card)


def test_the_real_animation_model_loads_where_it_is_at_hand() -> None:
    folder = os.environ.get("VSR_TEST_DATA") or Path(__file__).parents[3] / "shared/data"
    path = Path(folder) / "weights/realesr-animevideov3.pth"
    if not path.is_file():
        pytest.skip(f"{path.name} is not on this machine")
    repacked = find_card("realesr-animevideov3").model_copy(update={"weights": None})
    assert load(path, repacked)


# No network ------------------------------------------------------------------------------------------------


def _closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def test_without_network_the_file_and_its_place_are_named_and_nothing_is_left(
    site: Site,
) -> None:
    url = f"http://127.0.0.1:{_closed_port()}/net.pth"
    with pytest.raises(WeightsMissingError) as caught:
        ensure(card_for(site, url=url))
    assert url in str(caught.value) and str(cache_folder() / "net.pth") in str(caught.value)
    assert "connection refused" in str(caught.value) and "\n" not in str(caught.value)
    assert not cache_folder().exists()


def test_a_proxy_that_refuses_is_said_at_once_and_nothing_is_left(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{site.server_port}")  # answers 501 to CONNECT
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies of its first use
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(WeightsMissingError, match="501"):
        ensure(card_for(site, url="https://weights.example/net.pth"))
    assert not cache_folder().exists()


def test_a_network_that_never_answers_is_given_up_in_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()

    def never_answers(*_: object, **__: object) -> None:
        never.wait()
        raise OSError("too late")

    monkeypatch.setattr(socket, "create_connection", never_answers)
    with pytest.raises(WeightsMissingError, match=r"no answer within 0.05 s"):
        ensure(card_for(site), patience_s=0.05)
    never.set()
    assert site.asked == []


def test_a_placed_file_is_taken_and_a_wrong_one_refused(site: Site) -> None:
    cache_folder().mkdir(parents=True)
    placed = cache_folder() / "net.pth"
    placed.write_bytes(PAYLOAD)
    assert ensure(card_for(site)) == placed == find_weights(card_for(site)) and site.asked == []
    placed.write_bytes(b"another")
    with pytest.raises(ModelError, match="is not the card's file"):
        ensure(card_for(site))
    assert find_weights(card_for(site)) is None
