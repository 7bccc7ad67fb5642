"""The multi-model contract: models come, are used, are let go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.samples import decoded, network_file, still
from tests.serving.served import Reply, Served, served


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("multi") / "models"
    for name, scale in (("a", 2), ("b", 3), ("c", 4)):
        network_file(folder / name / "model" / "net.safetensors", scale=scale)
    (folder / "empty" / "model").mkdir(parents=True)
    (folder / "broken" / "model").mkdir(parents=True)
    (folder / "broken" / "model" / "net.safetensors").write_bytes(b"junk")
    network_file(folder.parent / "outside" / "net.safetensors")
    (folder / "link").symlink_to(folder.parent / "outside")
    return folder


@pytest.fixture(scope="module")
def multi(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("multi-home")
    arguments = ("--multi-model-dir", str(root), "--max-models", "2", "--resident", "1")
    with served(home, *arguments, environment={"SAGEMAKER_MULTI_MODEL": "true"}) as server:
        yield server


@pytest.fixture(autouse=True)
def _empty(multi: Served) -> None:
    for each in multi.request("GET", "/models").json["models"]:
        assert multi.request("DELETE", f"/models/{each['modelName']}").status == 200


def load(multi: Served, name: str, url: Path | str) -> Reply:
    document = json.dumps({"model_name": name, "url": str(url)}).encode()
    return multi.request("POST", "/models", document, {"Content-Type": "application/json"})


def width(reply: Reply) -> int:
    assert reply.status == 200, reply.body
    return decoded(reply.body)[0].width


def test_a_model_is_loaded_listed_invoked_and_unloaded(multi: Served, root: Path) -> None:
    assert load(multi, "one", root / "a" / "model").status == 200
    listed = {"modelName": "one", "modelUrl": str(root / "a" / "model")}
    assert multi.request("GET", "/models").json == {"models": [listed]}
    assert multi.request("GET", "/models/one").json == listed
    assert width(multi.invoke(still(), "image/png", "/models/one/invoke")) == 128
    assert multi.request("DELETE", "/models/one").status == 200
    assert multi.invoke(still(), "image/png", "/models/one/invoke").status == 404
    assert multi.request("GET", "/models/one").status == 404
    assert multi.request("DELETE", "/models/one").status == 404


def test_a_model_that_is_there_is_409(multi: Served, root: Path) -> None:
    load(multi, "one", root / "a" / "model")
    assert load(multi, "one", root / "b" / "model").status == 409


def test_no_room_is_507_until_one_is_unloaded(multi: Served, root: Path) -> None:
    assert [load(multi, name, root / name / "model").status for name in "abc"] == [200, 200, 507]
    multi.request("DELETE", "/models/a")
    assert load(multi, "c", root / "c" / "model").status == 200


def test_the_least_recently_used_network_leaves_memory_and_comes_back(multi: Served, root: Path) -> None:
    for name in "ab":
        load(multi, name, root / name / "model")
    for name, wanted in (("a", 128), ("b", 192), ("a", 128)):
        assert width(multi.invoke(still(), "image/png", f"/models/{name}/invoke")) == wanted
        assert multi.metric("vsr_networks_resident") == 1


def test_models_are_taken_from_their_own_folder_alone(multi: Served, root: Path) -> None:
    outside = root.parent / "outside"
    for url in (outside, root / ".." / "outside", root / "link", "/etc", "s3://bucket/model", "a\0b"):
        assert load(multi, "one", url).status == 400
    assert multi.request("GET", "/models").json == {"models": []}


def test_a_folder_without_a_usable_model_is_400(multi: Served, root: Path) -> None:
    for name in ("empty", "broken", "missing"):
        reply = load(multi, "one", root / name / "model")
        assert reply.status == 400
        assert str(root) not in reply.error["message"]


def test_invocations_without_a_model_are_404(multi: Served) -> None:
    assert multi.invoke(still(), "image/png").status == 404
    assert multi.invoke(still(), "image/png", attributes="model=bicubic").status == 404


def test_a_server_with_fixed_models_takes_none_in(server: Served, root: Path) -> None:
    assert load(server, "one", root / "a" / "model").status == 405
    assert server.request("DELETE", "/models/bicubic").status == 405
