"""Clips that go out while they are being made: in order, whole or visibly broken, leaving nothing."""

from __future__ import annotations

import http.client
import io
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from threading import Event
from typing import Any, cast

import av
import pytest

from tests.clips import numbered_clip
from tests.moto_server import Moto
from tests.serving.samples import clip, network_file
from tests.serving.served import Served, served
from vsr_hpc.engine.device_facts import device_facts
from vsr_hpc.errors import BackendError, JobError, MediaError
from vsr_hpc.media.picture import Frame
from vsr_hpc.serving.batcher import Batcher
from vsr_hpc.serving.client import Question, invoke
from vsr_hpc.serving.clips import ClipStream, PlannedClip, SharedDevice, plan_clip
from vsr_hpc.serving.deadline import RequestDeadline
from vsr_hpc.serving.limits import Limits
from vsr_hpc.serving.loaded_models import model_named
from vsr_hpc.serving.request import parse_options
from vsr_hpc.work.pipeline import Stopped

ROLE = "arn:aws:iam::123456789012:role/vsr"
STREAMED = "preset=ultrafast;stream=true"


def long_clip(folder: Path, *, is_broken: bool = False) -> bytes:
    """Four seconds, so four chunks; a broken one cannot be decoded in its last."""
    path = numbered_clip(folder / "long.mkv", frames=96, codec="ffv1")
    body = path.read_bytes()
    if not is_broken:
        return body
    with av.open(io.BytesIO(body)) as container:
        last = [bytes(each) for each in container.demux(video=0) if each.size][-6:]
    for packet in last:
        body = body.replace(packet, packet[:20] + bytes(255 - each for each in packet[20:]))
    return body


def packets(body: bytes, stream: int) -> list[tuple[Fraction, bytes]]:
    with av.open(io.BytesIO(body)) as container:
        return [
            (each.pts * each.time_base, bytes(each))
            for each in container.demux(container.streams[stream])
            if each.size
        ]


# Inside one process: what waits for what -------------------------------------------------------------------


class Device:
    """Bicubic in its place: doubles every sample, and does with each frame what a test wants."""

    batch, clipped = 1, 0

    def __init__(self, see: Callable[[int], None]) -> None:
        self._see = see

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        for frame in frames:
            self._see(frame.index)
        return [
            Frame(
                index=frame.index,
                planes=tuple(plane.repeat(2, axis=0).repeat(2, axis=1) for plane in frame.planes),
            )
            for frame in frames
        ]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=1) as pool:
        yield pool


def planned(folder: Path, see: Callable[[int], None], deadline_s: float = 90) -> PlannedClip:
    folder.mkdir()
    (folder / "in.mkv").write_bytes(long_clip(folder.parent))
    found = plan_clip(
        folder, "mkv", "mp4", model_named("bicubic"), parse_options([("stream", "true"), ("scale", "2")]),
        device=device_facts("cpu"), batch=None, batcher=cast(Batcher, None), limits=Limits(),
        patience=RequestDeadline(deadline_s),
    )  # fmt: skip
    return replace(found, upscaler=cast(SharedDevice, Device(see)))


def test_the_first_piece_is_out_before_the_last_frame_is_made(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    """The last chunk waits until a piece was seen: read at the end, this would be out of time."""
    seen = Event()

    def see(index: int) -> None:
        if index >= 72:
            assert seen.wait(90)

    stream = ClipStream(planned(tmp_path / "work", see), pool)
    pieces = [stream.read()]
    seen.set()
    while piece := stream.read():
        pieces.append(piece)
    stream.close()
    assert len(pieces) > 1
    with av.open(io.BytesIO(b"".join(pieces))) as container:
        assert [round(frame.time * 24) for frame in container.decode(video=0)] == list(range(96))
    assert not (tmp_path / "work").exists()


def test_what_fails_half_way_is_raised_to_whoever_reads(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    def see(index: int) -> None:
        if index == 80:
            raise BackendError("the device is gone")

    stream = ClipStream(planned(tmp_path / "work", see), pool)
    with pytest.raises(BackendError, match="is gone"):
        while stream.read():
            continue
    stream.close()
    assert not (tmp_path / "work").exists()


def test_closing_stops_what_is_being_made(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    begun, made = Event(), list[int]()

    def see(index: int) -> None:
        made.append(index)
        begun.set()
        time.sleep(0.01)

    stream = ClipStream(planned(tmp_path / "work", see), pool)
    assert begun.wait(90)
    stream.close()
    assert len(made) < 96
    assert not (tmp_path / "work").exists()
    assert stream.read() == b""


def test_a_deadline_ends_reading_too(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    hold = Event()
    clip = planned(tmp_path / "work", lambda index: cast(None, hold.wait(90)), deadline_s=0.2)
    stream = ClipStream(clip, pool)
    with pytest.raises(Stopped):
        stream.read()
    hold.set()
    stream.close()


def test_a_stream_that_never_got_its_turn_closes(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    hold = Event()
    pool.submit(hold.wait, 90)
    stream = ClipStream(planned(tmp_path / "work", lambda index: None), pool)
    stream.close()
    hold.set()
    assert not (tmp_path / "work").exists()


# Over HTTP -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """For clips of some seconds; its scratch folder is beside it."""
    home = tmp_path_factory.mktemp("roomy")
    network_file(home / "model" / "tiny.safetensors")
    (home / "scratch").mkdir()
    with served(
        home, "--model", "bicubic", "--model-dir", str(home / "model"), "--scratch", str(home / "scratch"),
    ) as server:  # fmt: skip
        yield server


@pytest.fixture
def scratch_of(roomy: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return next(tmp_path_factory.getbasetemp().glob("roomy*")) / "scratch"


@pytest.mark.parametrize("kind", ["video/mp4", "video/x-matroska"])
def test_a_streamed_clip_holds_what_the_whole_one_holds(server: Served, kind: str) -> None:
    plain = server.invoke(clip(), "video/mp4", accept=kind, attributes="preset=ultrafast")
    streamed = server.invoke(clip(), "video/mp4", accept=kind, attributes=STREAMED)
    assert "content-length" not in streamed.headers
    assert streamed.headers["transfer-encoding"] == "chunked"
    names = "content-type", "x-amzn-sagemaker-custom-attributes"
    assert [streamed.headers[each] for each in names] == [plain.headers[each] for each in names]
    for stream in (0, 1):
        assert packets(streamed.body, stream) == packets(plain.body, stream)


def test_a_long_answer_comes_in_several_pieces(roomy: Served, tmp_path: Path) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", roomy.port, timeout=60)
    headers = {"Content-Type": "video/x-matroska", "X-Amzn-SageMaker-Custom-Attributes": STREAMED}
    connection.request("POST", "/invocations", long_clip(tmp_path), headers)
    answer = connection.getresponse()
    pieces = []
    while piece := answer.read1(1 << 20):
        pieces.append(piece)
    connection.close()
    assert len(pieces) > 3
    assert len(packets(b"".join(pieces), 0)) == 96


def test_what_is_refused_is_refused_before_the_first_piece(server: Served) -> None:
    for body, attributes in ((clip()[:-500], STREAMED), (clip(), f"{STREAMED};codec=nope")):
        assert server.invoke(body, "video/mp4", attributes=attributes).status == 422


def test_json_and_records_get_the_clip_whole(server: Served) -> None:
    reply = server.invoke(clip(), "video/mp4", accept="application/json", attributes=STREAMED)
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert "content-length" in reply.headers


def test_a_clip_that_breaks_half_way_is_cut_off_and_said_in_the_log(
    roomy: Served, scratch_of: Path, tmp_path: Path
) -> None:
    headers = {"Content-Type": "video/x-matroska", "X-Amzn-SageMaker-Custom-Attributes": STREAMED}
    with pytest.raises(http.client.IncompleteRead):
        roomy.request(
            "POST", "/invocations", long_clip(tmp_path, is_broken=True), {**headers, "X-Request-Id": "broken"}
        )
    roomy.wait_for("vsr_requests_inside", 0)
    (line,) = roomy.wait_for_events("broken")
    assert (line["status"], line["error"]) == (200, "cut_off")
    assert list(scratch_of.iterdir()) == []


def test_a_client_that_leaves_half_way_leaves_nothing(
    roomy: Served, scratch_of: Path, tmp_path: Path
) -> None:
    body = long_clip(tmp_path)
    head = (
        f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: video/x-matroska\r\n"
        f"X-Amzn-SageMaker-Custom-Attributes: {STREAMED};model=tiny\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", roomy.port)) as connection:
        connection.sendall(head.encode() + body)
        assert connection.recv(16).startswith(b"HTTP/1.1 200")
    roomy.wait_for("vsr_requests_inside", 0)
    assert list(scratch_of.iterdir()) == []


def test_a_stream_goes_on_to_its_end_when_the_server_is_told_to_end(tmp_path: Path) -> None:
    home = tmp_path / "ending"
    with served(home, "--model", "bicubic") as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        headers = {"Content-Type": "video/x-matroska", "X-Amzn-SageMaker-Custom-Attributes": STREAMED}
        connection.request("POST", "/invocations", long_clip(tmp_path), headers)
        answer = connection.getresponse()
        server.terminate()
        body = answer.read()
        connection.close()
        assert server.process.wait(60) == 0
    assert len(packets(body, 0)) == 96


# The client ------------------------------------------------------------------------------------------------


@pytest.fixture
def live(roomy: Served, account: Moto) -> str:
    """An endpoint in SageMaker that the server answers for."""
    sagemaker = account.client("sagemaker")
    container = {"Image": "vsr:1", "Environment": {"LOCAL_URL": roomy.url}}
    sagemaker.create_model(ModelName="m", PrimaryContainer=container, ExecutionRoleArn=ROLE)
    variant: dict[str, Any] = {
        "ModelName": "m", "InstanceType": "ml.g5.xlarge", "InitialInstanceCount": 1, "VariantName": "all",
    }  # fmt: skip
    sagemaker.create_endpoint_config(EndpointConfigName="live", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="live", EndpointConfigName="live")
    return "live"


def question(folder: Path, body: bytes, **more: Any) -> Question:
    (folder / "in.mkv").write_bytes(body)
    options = (("preset", "ultrafast"), ("stream", "true"))
    return Question(
        source=folder / "in.mkv", output=folder / "out.mkv", options=options, timeout_s=60, **more
    )


def test_the_client_takes_a_stream_by_url_and_by_name(roomy: Served, live: str, tmp_path: Path) -> None:
    made = []
    for endpoint, way in ((roomy.url, "url"), (live, "stream")):
        reply = invoke(endpoint, question(tmp_path, long_clip(tmp_path)))
        assert (reply.way, reply.media_type, dict(reply.facts)["frames"]) == (way, "video/x-matroska", "96")
        made.append((tmp_path / "out.mkv").read_bytes())
        assert reply.size_bytes == len(made[-1])
    assert packets(made[0], 0) == packets(made[1], 0)


def test_a_broken_stream_leaves_the_clients_folder_as_it_was(
    roomy: Served, live: str, tmp_path: Path
) -> None:
    body = long_clip(tmp_path, is_broken=True)
    with pytest.raises(BackendError, match=r"broke off; its log tells why under the id \w+"):
        invoke(roomy.url, question(tmp_path, body))
    with pytest.raises(BackendError, match="ModelStreamError"):
        invoke(live, question(tmp_path, body))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in.mkv", "long.mkv"]


def test_a_refused_stream_is_told_in_the_servers_words(live: str, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="answers 422"):
        invoke(live, question(tmp_path, long_clip(tmp_path)[:-3000]))
    with pytest.raises(JobError, match="one piece"):
        invoke(live, question(tmp_path, long_clip(tmp_path), target_model="a.tar.gz"))
