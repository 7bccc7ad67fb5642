"""What every Store promises, whatever keeps it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vsr_hpc.errors import JobError
from vsr_hpc.storage.opening import open_store
from vsr_hpc.storage.store import MissingObject, Store


def test_put_replaces_what_read_gives_back(store: Store) -> None:
    store.put("workers/a.json", b"first")
    store.put("workers/a.json", b"second")
    assert store.read("workers/a.json") == b"second"


def test_empty_object_is_kept_and_read(store: Store) -> None:
    assert store.create("control/cancelled.1", b"")
    assert store.read("control/cancelled.1") == b""
    assert store.exists("control/cancelled.1")


def test_create_refuses_what_is_there_and_leaves_it(store: Store) -> None:
    assert store.create("receipts/00000.json", b"winner")
    assert not store.create("receipts/00000.json", b"loser")
    assert store.read("receipts/00000.json") == b"winner"


def test_create_refuses_even_equal_content(store: Store) -> None:
    assert store.create("rounds/1.json", b"same")
    assert not store.create("rounds/1.json", b"same")


def test_create_wins_again_after_delete(store: Store) -> None:
    store.create("a", b"1")
    store.delete("a")
    assert not store.exists("a")
    assert store.create("a", b"2")


def test_missing_object_is_named_by_read_and_local(store: Store) -> None:
    with pytest.raises(MissingObject, match="no"):
        store.read("receipts/00007.json")
    with pytest.raises(MissingObject), store.local("segments/none.mp4"):
        pass
    assert not store.exists("receipts/00007.json")


def test_delete_of_missing_object_is_no_error(store: Store) -> None:
    store.delete("never/was")


def test_delete_many_deletes_those_and_no_others(store: Store) -> None:
    for name in ("segments/a", "segments/b c", "segments/d", "plan.json"):
        store.put(name, b"")
    store.delete_many(name for name in ("segments/a", "segments/b c", "segments/never"))
    store.delete_many(())
    assert [facts.name for facts in store.list("")] == ["plan.json", "segments/d"]


def test_list_gives_sizes_sorted_by_name_and_only_the_prefix(store: Store) -> None:
    for name, content in (("leases/2", b"22"), ("leases/1", b"1"), ("leases2/x", b""), ("plan.json", b"{}")):
        store.put(name, content)
    assert [(facts.name, facts.size_bytes) for facts in store.list("leases/")] == [
        ("leases/1", 1),
        ("leases/2", 2),
    ]
    assert [facts.name for facts in store.list("leases")] == ["leases/1", "leases/2", "leases2/x"]
    assert [facts.name for facts in store.list("")] == ["leases/1", "leases/2", "leases2/x", "plan.json"]


def test_list_of_nothing_is_empty(store: Store) -> None:
    assert store.list("") == ()
    assert store.list("receipts/") == ()


def test_scratch_files_are_never_listed(store: Store) -> None:
    (store.scratch / "half.mp4").write_bytes(b"half")
    store.put("plan.json", b"{}")
    assert [facts.name for facts in store.list("")] == ["plan.json"]


def test_put_file_moves_it_in(store: Store) -> None:
    path = store.scratch / "00000.mp4"
    path.write_bytes(b"segment")
    store.put_file("segments/00000-ab.mp4", path)
    assert not path.exists()
    assert store.read("segments/00000-ab.mp4") == b"segment"


def test_put_file_of_a_big_file_keeps_every_byte(store: Store) -> None:
    content = os.urandom(1 << 20) * 12 + b"end"
    path = store.scratch / "big.mp4"
    path.write_bytes(content)
    store.put_file("segments/big.mp4", path)
    assert store.read("segments/big.mp4") == content


def test_put_file_takes_a_file_from_another_file_system(store: Store) -> None:
    path = Path("/dev/shm") / f"vsr-test-{os.getpid()}"
    path.write_bytes(b"from afar")
    try:
        store.put_file("segments/afar.mp4", path)
        assert store.read("segments/afar.mp4") == b"from afar"
        assert not path.exists()
    finally:
        path.unlink(missing_ok=True)


def test_local_gives_a_file_with_the_objects_suffix(store: Store) -> None:
    store.put("segments/a.mp4", b"frames")
    with store.local("segments/a.mp4") as path:
        assert path.suffix == ".mp4"
        assert path.read_bytes() == b"frames"
    assert store.read("segments/a.mp4") == b"frames"


@pytest.mark.parametrize(
    "name",
    [
        "a b+c&d=e?f#g.json",
        "ümlaut-日本語-🎬.json",
        "per%20cent%2Fand\\back.json",
        "quote'\"<&>.json",
        "UPPER and upper.json",
        "leases/00001.g2.end.json",
        "control/avoid.ip-10-0-0-1.eu-central-1.compute.internal",
        "x" * 200,
    ],
)
def test_odd_names_come_back_as_they_were(store: Store, name: str) -> None:
    assert store.create(name, b"odd")
    assert store.read(name) == b"odd"
    assert [facts.name for facts in store.list("")] == [name]
    store.delete(name)
    assert store.list("") == ()


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", "../a", "a/./b", "tmp/a", "a/.tmp-1", "nul\0", "x" * 256]
)
def test_names_that_some_backend_could_not_keep_are_refused(store: Store, name: str) -> None:
    with pytest.raises(JobError, match="not a name"):
        store.put(name, b"")


def test_many_threads_create_and_exactly_one_wins(store: Store) -> None:
    names = [f"leases/{index:05d}.g1" for index in range(10)]
    start = threading.Barrier(8)

    def race(worker: int) -> list[str]:
        start.wait()
        return [name for name in names if store.create(name, f"worker {worker}".encode())]

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, range(8)))
    assert sorted(name for each in won for name in each) == names
    for worker, mine in enumerate(won):
        assert all(store.read(name) == f"worker {worker}".encode() for name in mine)


_RACER = """
import sys
from vsr_hpc.storage.opening import open_store
store = open_store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(*(n for n in range(20) if store.create(f"leases/{n:05d}", sys.argv[2].encode())))
"""


def test_several_processes_create_and_exactly_one_wins(store: Store) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, store.uri, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    won = [racer.communicate("go\n", timeout=60)[0].split() for racer in racers]
    assert sorted(int(n) for each in won for n in each) == list(range(20))
    for number, mine in enumerate(won):
        assert all(store.read(f"leases/{int(n):05d}") == str(number).encode() for n in mine)


def test_readers_see_the_old_or_the_new_never_a_part(store: Store) -> None:
    contents = [bytes([65 + n]) * 300_000 for n in range(2)]
    store.put("workers/a.json", contents[0])
    done = threading.Event()

    def write() -> None:
        for n in range(20):
            store.put("workers/a.json", contents[n % 2])
        done.set()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        reads = 0
        while reads < 5 or not done.is_set():
            assert store.read("workers/a.json") in contents
            reads += 1
        writing.result()


def test_another_opening_of_the_same_uri_sees_it_all(store: Store) -> None:
    store.put("job.json", b"{}")
    assert open_store(store.uri).read("job.json") == b"{}"
    assert open_store(store.uri + "/").uri == store.uri


def test_ages_are_told_by_the_stores_own_clock(store: Store) -> None:
    store.put("workers/a.json", b"")
    (facts,) = store.list("workers/")
    assert abs(store.now_s() - facts.modified_s) < 60


def test_remove_all_leaves_nothing_and_only_of_this_run(store: Store) -> None:
    neighbour = open_store(store.uri + "-2")
    neighbour.put("plan.json", b"{}")
    for n in range(5):
        store.put(f"receipts/{n}.json", b"")
    store.remove_all()
    store.remove_all()
    assert store.list("") == ()
    assert neighbour.exists("plan.json")
