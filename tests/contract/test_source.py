"""A source on S3 gives the same bytes as a file, with few requests, and notices when it changes."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.clips import frame_number, numbered_clip
from tests.moto_server import Moto
from tests.require import require
from vsr_hpc.errors import BackendError, JobError, MediaError
from vsr_hpc.media.clip.probe import index_clip, probe_clip
from vsr_hpc.media.clip.reader import read_frames
from vsr_hpc.media.source import FileSource, local_source
from vsr_hpc.storage.block_cache import SourceSettings
from vsr_hpc.storage.opening import open_source
from vsr_hpc.storage.s3_address import S3Address
from vsr_hpc.storage.s3_connection import S3Connection, S3Options
from vsr_hpc.storage.s3_source import RangedSource

_BLOCK = 16 << 10
_CONTENT = random.Random(0).randbytes(16 * _BLOCK + 777)
_SETTINGS = SourceSettings(block_bytes=_BLOCK, whole_below_bytes=0, cache_bytes=1 << 20)


@pytest.fixture
def uri(moto: Moto) -> str:
    moto.heal()
    key = f"in/{uuid.uuid4().hex}.mkv"
    moto.client("s3").put_object(Bucket="films", Key=key, Body=_CONTENT)
    moto.requests()
    return f"s3://films/{key}"


def _source(uri: str, settings: SourceSettings = _SETTINGS, tries: int = 3) -> RangedSource:
    return RangedSource(S3Address.from_uri(uri), S3Connection(S3Options(tries=tries)), settings)


def _opened(source: RangedSource) -> BinaryIO:
    opened = source.open()
    assert not isinstance(opened, str)
    return opened


def _blocks(cache: Path) -> list[Path]:
    return [path for path in cache.glob("vsr-*/blocks/*/*") if path.suffix != ".lock"]


def _gets(moto: Moto) -> list[str]:
    return [line for line in moto.requests() if line.startswith("GET ")]


def test_any_range_is_that_of_the_object(uri: str) -> None:
    chance = random.Random(1)
    with _opened(_source(uri)) as file:
        assert file.seek(0, os.SEEK_END) == len(_CONTENT)
        assert file.read(10) == b""
        for _ in range(60):
            start, length = chance.randrange(len(_CONTENT)), chance.randrange(3 * _BLOCK)
            assert file.seek(start) == start
            assert file.read(length) == _CONTENT[start : start + length]


def test_reading_in_order_asks_for_each_block_once(moto: Moto, uri: str) -> None:
    with _opened(_source(uri)) as file:
        assert file.read() == _CONTENT
    asked = _gets(moto)
    assert len(asked) == len(set(asked)) == 17


def test_read_ahead_fetches_before_it_is_asked(moto: Moto, uri: str) -> None:
    with _opened(_source(uri)) as file:
        file.read(_BLOCK + 1)
        file.read(_BLOCK)
        deadline = time.monotonic() + 10
        seen: list[str] = []
        while len(seen) < 4 and time.monotonic() < deadline:
            seen += _gets(moto)
    assert {line.split("bytes=")[1].split("-")[0] for line in seen} >= {str(n * _BLOCK) for n in range(4)}


def test_jumping_about_reads_nothing_ahead(uri: str) -> None:
    source = _source(uri)
    with _opened(source) as file:
        for number in (0, 16, 8, 4):
            file.seek(number * _BLOCK)
            file.read(10)
    assert source.requests == {"HeadObject": 1, "GetObject": 4}


def test_second_reader_of_the_node_sends_no_get(uri: str) -> None:
    with _opened(_source(uri)) as file:
        file.read()
    second = _source(uri)
    with _opened(second) as file:
        assert file.read() == _CONTENT
    assert second.requests == {"HeadObject": 1}


_READER = f"""
import sys, hashlib
from vsr_hpc.storage.block_cache import SourceSettings
from vsr_hpc.storage.opening import open_source
settings = SourceSettings(block_bytes={_BLOCK}, whole_below_bytes=int(sys.argv[2]), cache_bytes=1 << 20)
source = open_source(sys.argv[1], settings=settings)
source.facts
print("ready", flush=True)
sys.stdin.readline()
opened = source.open()
print(hashlib.sha256((open(opened, "rb") if isinstance(opened, str) else opened).read()).hexdigest())
"""


def _started(uri: str, whole_below: int = 0) -> subprocess.Popen[str]:
    reader = subprocess.Popen(
        [sys.executable, "-c", _READER, uri, str(whole_below)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "ready\n"
    return reader


@pytest.mark.parametrize(("whole_below", "requests"), [(0, 17), (1 << 20, 1)])
def test_workers_of_one_node_fetch_each_block_once(
    moto: Moto, uri: str, whole_below: int, requests: int
) -> None:
    readers = [_started(uri, whole_below) for _ in range(3)]
    moto.fail("slow", method="GET", times=3, seconds=0.2)
    answers = {reader.communicate("go\n", timeout=60)[0] for reader in readers}
    assert len(answers) == 1
    assert len(_gets(moto)) == requests


def test_worker_killed_while_fetching_leaves_nothing_half(moto: Moto, uri: str, node_cache: Path) -> None:
    reader = _started(uri)
    moto.fail("slow", method="GET", seconds=3.0)
    assert reader.stdin is not None and reader.stdout is not None
    reader.stdin.write("go\n")
    reader.stdin.flush()
    while not _gets(moto):
        time.sleep(0.02)
    reader.kill()
    reader.communicate()
    assert _blocks(node_cache) == []
    with _opened(_source(uri)) as file:
        assert file.read() == _CONTENT
    assert {path.stat().st_size for path in _blocks(node_cache)} == {_BLOCK, 777}


def test_block_of_a_wrong_size_is_fetched_again(uri: str, node_cache: Path) -> None:
    with _opened(_source(uri)) as file:
        file.read()
    for path in _blocks(node_cache):
        path.write_bytes(b"")
    with _opened(_source(uri)) as file:
        assert file.read() == _CONTENT


def test_object_replaced_while_reading_is_noticed(moto: Moto, uri: str) -> None:
    with _opened(_source(uri)) as file:
        file.read(_BLOCK)
        moto.client("s3").put_object(Bucket="films", Key=uri.removeprefix("s3://films/"), Body=_CONTENT[::-1])
        file.seek(9 * _BLOCK)
        with pytest.raises(MediaError, match="source changed: its ETag was"):
            file.read()


def test_object_deleted_while_reading_is_noticed(moto: Moto, uri: str) -> None:
    with _opened(_source(uri)) as file:
        moto.client("s3").delete_object(Bucket="films", Key=uri.removeprefix("s3://films/"))
        with pytest.raises(MediaError, match="deleted while"):
            file.read()


def test_object_that_is_not_the_plans_is_refused(uri: str) -> None:
    etag = _source(uri).facts.etag
    open_source(uri, settings=_SETTINGS, etag=etag).open()
    with pytest.raises(MediaError, match="source changed"):
        open_source(uri, settings=_SETTINGS, etag='"another"').open()


def test_replaced_object_never_gets_the_old_ones_blocks(moto: Moto, uri: str) -> None:
    with _opened(_source(uri)) as file:
        file.read()
    moto.client("s3").put_object(Bucket="films", Key=uri.removeprefix("s3://films/"), Body=_CONTENT[::-1])
    with _opened(_source(uri)) as file:
        assert file.read() == _CONTENT[::-1]


def test_missing_and_empty_objects_are_the_suppliers_matter(moto: Moto, uri: str) -> None:
    with pytest.raises(MediaError, match="no such object"):
        _source(uri + "x").open()
    with pytest.raises(JobError, match="no bucket"):
        _source("s3://no-such-films/a.mkv").open()
    moto.client("s3").put_object(Bucket="films", Key="in/empty.mkv", Body=b"")
    with pytest.raises(MediaError, match="empty"):
        _source("s3://films/in/empty.mkv").open()


def test_cache_stays_within_its_budget_and_drops_the_longest_unused(uri: str, node_cache: Path) -> None:
    tight = SourceSettings(
        block_bytes=_BLOCK, whole_below_bytes=0, cache_bytes=4 * _BLOCK, blocks_ahead=0, blocks_held=1
    )
    with _opened(_source(uri, tight)) as file:
        for number in range(8):
            file.seek(number * _BLOCK)
            assert file.read(9) == _CONTENT[number * _BLOCK :][:9]
            for kept in _blocks(node_cache):  # as if each had been used a minute after the one before
                os.utime(kept, (0, 60 * int(kept.name)))
            assert sum(kept.stat().st_size for kept in _blocks(node_cache)) <= 4 * _BLOCK
    assert sorted(int(kept.name) for kept in _blocks(node_cache)) == [4, 5, 6, 7]


def test_reader_goes_on_while_the_cache_drops_its_blocks(uri: str, node_cache: Path) -> None:
    with _opened(_source(uri)) as file:
        file.read(100)
        for kept in _blocks(node_cache):
            kept.unlink()
        assert file.read() == _CONTENT[100:]


def test_small_object_is_fetched_whole_and_outlives_the_cache(uri: str, node_cache: Path) -> None:
    source = _source(uri, SourceSettings(cache_bytes=1 << 20))
    path = source.open()
    assert isinstance(path, str) and path.endswith(".mkv")
    assert Path(path).read_bytes() == _CONTENT
    for kept in _blocks(node_cache):
        kept.unlink()
    assert source.open() == path
    assert Path(path).read_bytes() == _CONTENT
    assert source.requests == {"HeadObject": 1, "GetObject": 1}


def test_second_worker_takes_the_whole_file_from_the_node(uri: str) -> None:
    settings = SourceSettings(cache_bytes=1 << 20)
    _source(uri, settings).open()
    second = _source(uri, settings)
    assert Path(str(second.open())).read_bytes() == _CONTENT
    assert second.requests == {"HeadObject": 1}


def test_cache_is_the_users_alone(uri: str, node_cache: Path) -> None:
    with _opened(_source(uri)) as file:
        file.read(1)
    assert (node_cache / f"vsr-{os.geteuid()}").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["reset", "cut", "status"])
def test_faults_on_the_way_are_survived(moto: Moto, uri: str, kind: str) -> None:
    moto.fail(kind, method="GET", times=2)  # type: ignore[arg-type]
    with _opened(_source(uri)) as file:
        assert file.read() == _CONTENT


@pytest.fixture
def tiny_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        require("mount", f"a tiny disk cannot be mounted here: {mounted.stderr.strip()}")
    monkeypatch.setenv("VSR_NODE_CACHE", str(disk))
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_full_disk_is_read_past_and_said_once(
    uri: str, tiny_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), _opened(_source(uri)) as file:
        assert file.read() == _CONTENT
    assert [record.message.split(" folder")[0] for record in caplog.records] == ["source cache not written"]


@pytest.fixture
def clip(moto: Moto, tmp_path: Path) -> tuple[Path, str]:
    moto.heal()
    path = numbered_clip(tmp_path / "clip.mp4", frames=240, size=(128, 96), audio=True)
    key = f"in/{uuid.uuid4().hex}.mp4"
    moto.client("s3").put_object(Bucket="films", Key=key, Body=path.read_bytes())
    return path, f"s3://films/{key}"


_FINE = SourceSettings(block_bytes=2 << 10, whole_below_bytes=0, cache_bytes=1 << 20)


def test_clip_read_by_range_is_the_clip_read_from_disk(clip: tuple[Path, str]) -> None:
    path, uri = clip
    near, far = local_source(path), _source(uri, _FINE)
    found = probe_clip(far)
    timeline = index_clip(found, far)
    assert timeline.to_bytes() == index_clip(probe_clip(near), near).to_bytes()
    assert [frame_number(frame) for frame in read_frames(found, timeline, far, 31, 40)] == list(range(31, 40))


def test_store_that_fails_for_good_is_no_early_end_of_the_clip(moto: Moto, clip: tuple[Path, str]) -> None:
    path, uri = clip
    near = local_source(path)
    found, timeline = probe_clip(near), index_clip(probe_clip(near), near)
    frames = read_frames(found, timeline, _source(uri, _FINE, tries=1), 0, 240)
    next(frames)
    moto.requests()
    moto.fail("status", method="GET", times=999)
    with pytest.raises(BackendError, match="500 InternalError"):
        list(frames)
    asked = Counter(_gets(moto))
    assert max(asked.values()) <= 2, "read ahead, then by the reader; FFmpeg's asking again costs nothing"
    moto.heal()


def test_local_paths_and_other_schemes(tmp_path: Path) -> None:
    assert isinstance(open_source(str(tmp_path / "a.mkv")), FileSource)
    with pytest.raises(JobError, match="download it first"):
        open_source("https://example.org/a.mkv")
