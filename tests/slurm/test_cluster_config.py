"""What a development cluster is made of, without starting one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.fixtures import Options, why_not

from cluster_config import Place, cgroup_conf, slurm_conf  # isort: skip  (fixtures puts its folder on the path)

PLACE = Place(root=Path("/tmp/x"), base_port=20000, version=(22, 5))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"user": "root"}, "ordinary user"),
        ({"gpus": 7}, "only 6 devices"),
        ({"spot": 0}, "wanted 1 to 20"),
        ({"kill_wait_s": 10}, "try 18"),
    ],
)
def test_options_that_cannot_work_are_refused_with_the_way_out(wrong: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Options(**wrong)  # type: ignore[arg-type]


def test_options_survive_json() -> None:
    options = Options(profile="full", network=True, extra=("RequeueExit=143",), visible=("/data",))
    assert Options.from_json(options.to_json()) == options


def test_folder_too_long_for_slurms_sockets_is_refused() -> None:
    with pytest.raises(ValueError, match="would not fit"):
        Place(root=Path("/tmp/pytest-of-somebody/pytest-12/test_name_of_it0"), base_port=1, version=(22, 5))


def test_profiles_differ_in_what_parallelcluster_lacks() -> None:
    lines = {
        each: set(slurm_conf(Options(profile=each), PLACE).splitlines()) for each in ("standard", "full")
    }
    assert "MaxArraySize=1001" in lines["standard"] - lines["full"]
    assert "SlurmctldParameters=preempt_send_user_signal" in lines["full"] - lines["standard"]
    assert "AccountingStorageType=accounting_storage/slurmdbd" in lines["full"] - lines["standard"]


def test_nodes_of_a_network_have_addresses_of_their_own() -> None:
    text = slurm_conf(Options(spot=1, ondemand=1, network=True), PLACE)
    assert "NodeName=spot-dy-g4dn-1 NodeHostname=spot-dy-g4dn-1 NodeAddr=10.77.0.11 " in text
    assert "NodeName=ondemand-st-g4dn-1 NodeHostname=ondemand-st-g4dn-1 NodeAddr=10.77.0.12 " in text


def test_newer_slurm_gets_no_key_it_does_not_know() -> None:
    assert "CgroupAutomount" in cgroup_conf((22, 5))
    assert cgroup_conf((24, 11)) == "CgroupPlugin=disabled\n"


def test_missing_package_is_named_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path: None if name == "slurmd" else f"/usr/sbin/{name}")
    assert why_not() == "slurmd not installed: run slurm/install.sh"
