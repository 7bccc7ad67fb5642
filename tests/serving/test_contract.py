"""SageMaker's container contract and our own, against the running server."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.clips import frame_number
from tests.serving.samples import clip, decoded, still
from tests.serving.served import Served
from vsr_hpc.engine.device_facts import device_facts
from vsr_hpc.engine.geometry import output_picture
from vsr_hpc.engine.settings import UpscaleRequest, resolve_settings
from vsr_hpc.engine.upscaler import Upscaler
from vsr_hpc.media.clip.reader import read_segment
from vsr_hpc.models.cards import find_card


def envelope(body: bytes, **fields: Any) -> bytes:
    return json.dumps({"body": base64.b64encode(body).decode(), **fields}).encode()


# The small endpoints


def test_ping_is_empty_and_200_once_the_model_ran(server: Served) -> None:
    reply = server.request("GET", "/ping")
    assert (reply.status, reply.body) == (200, b"")


def test_execution_parameters_say_what_batch_transform_may_send(server: Served) -> None:
    found = server.request("GET", "/execution-parameters").json
    assert found["MaxPayloadInMB"] == 1
    assert found["BatchStrategy"] == "SINGLE_RECORD"
    assert found["MaxConcurrentTransforms"] >= 1


def test_metrics_count_requests_frames_and_device_seconds(server: Served) -> None:
    before = {name: server.metric(name) for name in ("vsr_frames_total", "vsr_request_seconds_count")}
    server.invoke(still(), "image/png")
    for name, count in before.items():
        assert server.metric(name) == count + 1
    assert server.metric("vsr_device_seconds_total") > 0
    assert server.metric("process_resident_memory_bytes") > 1e6


def test_the_access_log_has_the_request_id_that_the_caller_gave(server: Served) -> None:
    reply = server.request("POST", "/invocations", still(), {"X-Request-Id": "case-17"})
    assert reply.headers["x-request-id"] == "case-17"
    (line,) = server.wait_for_events("case-17")
    assert (line["status"], line["kind"], line["model"]) == (200, "png", "bicubic")
    assert line["bytes_in"] == len(still())


def test_a_bad_request_id_is_replaced(server: Served) -> None:
    reply = server.request("GET", "/metrics", headers={"X-Request-Id": 'a"b'})
    assert reply.headers["x-request-id"].isalnum()


# Stills


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_still_comes_back_bigger_in_its_own_type(server: Served, kind: str) -> None:
    reply = server.invoke(still(kind), f"image/{kind}", attributes="scale=2")
    assert (reply.status, reply.headers["content-type"]) == (200, f"image/{kind}")
    picture, _ = decoded(reply.body)
    assert (picture.width, picture.height) == (128, 96)


@pytest.mark.parametrize("wanted", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_accept_chooses_the_type_of_the_answer(server: Served, kind: str, wanted: str) -> None:
    reply = server.invoke(still(kind), f"image/{kind}", accept=f"image/{wanted};q=0.9, text/html")
    assert reply.headers["content-type"] == f"image/{wanted}"
    picture, _ = decoded(reply.body)
    assert (picture.width, picture.height) == (128, 96)


def test_a_png_equals_what_the_batch_path_makes(server: Served) -> None:
    shown, frame = decoded(still())
    settings = resolve_settings(UpscaleRequest(), find_card("bicubic"), shown, device_facts("cpu"))
    out = output_picture(shown, settings.width, settings.height, shown.pixel)
    (wanted,) = Upscaler(find_card("bicubic"), None, shown, out, settings)([frame])
    _, made = decoded(server.invoke(still(), "image/png").body)
    for ours, theirs in zip(made.planes, wanted.planes, strict=True):
        assert np.array_equal(ours, theirs)


def test_raw_planes_go_in_and_out_by_their_media_type(server: Served) -> None:
    body = bytes(range(256)) * 6  # 32x32 4:2:0
    sent = "application/x-vsr-planes; width=32; height=32; pixel=yuv420p; matrix=bt709; range=limited"
    reply = server.invoke(body, sent, path="/invocations?model=nearest&scale=2")
    assert reply.status == 200
    assert reply.headers["content-type"] == sent.replace("=32", "=64")
    luma = np.frombuffer(body, np.uint8, 1024).reshape(32, 32)
    made = np.frombuffer(reply.body, np.uint8, 4096).reshape(64, 64)
    assert np.array_equal(made, luma.repeat(2, 0).repeat(2, 1))


def test_raw_planes_of_another_length_are_refused_with_both_numbers(server: Served) -> None:
    sent = "application/x-vsr-planes; width=32; height=32; pixel=yuv420p10le"
    reply = server.invoke(b"\0" * 100, sent)
    assert reply.status == 422
    assert (reply.error["wanted_bytes"], reply.error["found_bytes"]) == (3072, 100)


def test_a_model_of_the_folder_is_chosen_by_name(server: Served) -> None:
    reply = server.invoke(still(), "image/png", attributes="model=tiny")
    assert "model=tiny" in reply.headers["x-amzn-sagemaker-custom-attributes"]
    _, ours = decoded(reply.body)
    _, plain = decoded(server.invoke(still(), "image/png").body)
    assert not np.array_equal(ours.planes[0], plain.planes[0])


def test_json_with_base64_is_answered_as_json(server: Served) -> None:
    asked = envelope(still(), content_type="image/png", accept="image/webp", options={"scale": 3})
    reply = server.invoke(asked, "application/json")
    assert reply.headers["content-type"] == "application/json"
    assert reply.json["content_type"] == "image/webp"
    picture, _ = decoded(base64.b64decode(reply.json["body"]))
    assert (picture.width, picture.height) == (192, 144)


def test_accept_json_wraps_a_plain_request(server: Served) -> None:
    reply = server.invoke(still("jpeg"), "image/jpeg", accept="application/json")
    assert reply.json["content_type"] == "image/jpeg"


# Clips


@pytest.mark.parametrize(("sent", "wanted"), [("mp4", "mp4"), ("mkv", "mkv"), ("mp4", "mkv")])
def test_a_clip_comes_back_with_its_frames_and_sound(
    server: Served, tmp_path: Path, sent: str, wanted: str
) -> None:
    types = {"mp4": "video/mp4", "mkv": "video/x-matroska"}
    reply = server.invoke(
        clip(sent), types[sent], accept=types[wanted], attributes="scale=2;preset=ultrafast;crf=18"
    )
    assert reply.headers["content-type"] == types[wanted]
    path = tmp_path / f"out.{wanted}"
    path.write_bytes(reply.body)
    assert [frame_number(frame) for frame in read_segment(path)] == list(range(12))
    with av.open(str(path)) as made:
        assert {stream.type for stream in made.streams} == {"video", "audio"}
        assert (made.streams.video[0].width, made.streams.video[0].height) == (128, 96)


def test_a_clip_is_the_file_that_the_batch_path_makes(server: Served, tmp_path: Path) -> None:
    from tests.runs import finished, planned_run
    from vsr_hpc.job.reading import parse_job

    (tmp_path / "in.mp4").write_bytes(clip())
    job = parse_job(
        {
            "input": str(tmp_path / "in.mp4"),
            "output": str(tmp_path / "out.mp4"),
            "model": "bicubic",
            "video": {"preset": "ultrafast"},
        },
        "test",
    )
    finished(planned_run(job))
    reply = server.invoke(clip(), "video/mp4", attributes="preset=ultrafast")
    assert reply.body == (tmp_path / "out.mp4").read_bytes()


@pytest.mark.parametrize(("kind", "codec"), [("mkv", b"V_MPEG4/ISO/AVC"), ("mp4", b"avc1")])
def test_a_clip_of_an_unknown_codec_is_refused(server: Served, kind: str, codec: bytes) -> None:
    body = clip(kind).replace(codec, codec[:-3] + b"zzz")
    reply = server.invoke(body, "video/mp4" if kind == "mp4" else "video/x-matroska")
    assert (reply.status, reply.error["code"]) == (422, "media")
    assert "no decoder here knows" in reply.error["message"]


def test_clips_leave_nothing_on_the_disk(server: Served, scratch: Path) -> None:
    server.invoke(clip(), "video/mp4", attributes="preset=ultrafast;stream=true")
    server.invoke(clip()[:-500], "video/mp4")
    assert list(scratch.iterdir()) == []


# Limits


def test_a_body_over_the_limit_is_413_with_the_numbers(server: Served) -> None:
    reply = server.invoke(b"\x89PNG\r\n\x1a\n" + bytes(1_200_000), "image/png")
    assert reply.status == 413
    assert (reply.error["found_bytes"], reply.error["limit_bytes"]) == (1_200_008, 1 << 20)


def test_a_body_without_a_length_is_cut_off_at_the_limit(server: Served) -> None:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    pieces = (bytes(64 << 10) for _ in range(40))
    connection.request("POST", "/invocations", body=pieces, headers={}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_picture_over_the_limit_is_refused_by_its_header(server: Served, kind: str) -> None:
    reply = server.invoke(still(kind, 640, 480), f"image/{kind}")
    assert reply.status == 422
    assert (reply.error["found_pixels"], reply.error["limit_pixels"]) == (640 * 480, 300_000)


def test_a_png_that_only_says_it_is_huge_is_refused_undecoded(server: Served) -> None:
    header = b"\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0) + bytes(4)
    reply = server.invoke(b"\x89PNG\r\n\x1a\n" + header, "image/png")
    assert (reply.status, reply.error["code"]) == (422, "too_many_pixels")


@pytest.mark.parametrize("chunk", [b"iCCP", b"zTXt"])
def test_a_png_whose_profile_unpacks_to_gigabytes_is_refused(server: Served, chunk: bytes) -> None:
    import zlib

    bomb = b"x\0\0" + zlib.compress(bytes(64 << 20), 9)
    body = still()
    packed = struct.pack(">I", len(bomb)) + chunk + bomb + struct.pack(">I", zlib.crc32(chunk + bomb))
    reply = server.invoke(body[:33] + packed + body[33:], "image/png")
    assert reply.status == 422
    assert "profiles and text" in reply.error["message"]


def test_an_answer_with_too_many_pixels_is_refused_before_work(server: Served) -> None:
    reply = server.invoke(still(), "image/png", attributes="size=2000x2000")
    assert (reply.status, reply.error["found_pixels"]) == (422, 4_000_000)


def test_a_clip_over_the_limit_is_refused_with_its_length(server: Served) -> None:
    reply = server.invoke(clip(frames=60, audio=False), "video/mp4")
    assert (reply.status, reply.error["code"]) == (422, "clip_too_long")
    assert reply.error["limit_seconds"] == 2


# Refusals


@pytest.mark.parametrize(
    "name",
    [
        "esrgan",
        "../../etc/passwd",
        "/etc/passwd",
        "s3://bucket/x",
        "realesr-general-x4v3",
        "tiny.safetensors",
    ],
)
def test_no_request_chooses_a_model_outside_of_the_allowed_ones(server: Served, name: str) -> None:
    assert server.invoke(still(), "image/png", attributes=f"model={name}").status == 422
    assert server.invoke(envelope(still(), options={"model": name}), "application/json").status == 422


@pytest.mark.parametrize(
    "body",
    [
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\n",
        b"/etc/passwd",
        b"http://169.254.169.254/latest/meta-data/",
    ],
)
@pytest.mark.parametrize("said", ["video/mp4", "video/x-matroska", "application/octet-stream"])
def test_bodies_that_name_files_or_addresses_are_no_clips(server: Served, body: bytes, said: str) -> None:
    assert server.invoke(body, said).status == 415


def test_a_playlist_behind_a_magic_number_is_not_followed(server: Served) -> None:
    body = b"\0\0\0\x18ftypmp42" + b"\n#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
    reply = server.invoke(body, "video/mp4")
    assert reply.status == 422
    assert "/tmp" not in reply.error["message"]


def test_json_that_names_a_place_is_refused(server: Served) -> None:
    for key in ("url", "path", "s3"):
        reply = server.invoke(json.dumps({key: "/etc/passwd"}).encode(), "application/json")
        assert reply.status == 400


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ("scale=0", "scale"),
        ("scale=nan", "scale"),
        ("scale=2;size=64x64", "scale and size"),
        ("tile=64", "no option"),
        ("crf", "key=value"),
        ("quality=101", "quality"),
        ("scale=2;scale=3", "give it once"),
        ("x" * 1025, "1024"),
    ],
)
def test_options_are_checked_and_named(server: Served, attributes: str, said: str) -> None:
    reply = server.invoke(still(), "image/png", attributes=attributes)
    assert reply.status == 422
    assert said in reply.error["message"]


def test_what_does_not_apply_is_refused_by_name(server: Served) -> None:
    for attributes, said in (
        ("crf=20", "crf is for clips; a still takes quality"),
        ("scale=2;stream=true;codec=h264", "codec, stream are for clips"),
        ("preset=fast;audio=none;deinterlace=true", "preset, audio, deinterlace are for clips"),
    ):
        reply = server.invoke(still(), "image/png", attributes=attributes)
        assert (reply.status, reply.error["code"]) == (422, "option")
        assert said in reply.error["message"]
    reply = server.invoke(clip(), "video/mp4", attributes="quality=90")
    assert (reply.status, reply.error["message"]) == (422, "quality is for stills; a clip takes crf")


def test_the_same_value_in_two_places_is_no_contradiction(server: Served) -> None:
    asked = envelope(still(), accept="image/png", options={"scale": 3, "blend": 0.5})
    path = "/invocations?scale=3&blend=0.5"
    assert server.invoke(asked, "application/json", path).json["width"] == "192"
    reply = server.invoke(asked, "application/json", "/invocations?scale=2")
    assert "given as '2' and as '3'" in reply.error["message"]


def test_a_body_that_is_not_what_it_says_is_415(server: Served) -> None:
    assert server.invoke(still("jpeg"), "image/png").status == 415
    assert server.invoke(still(), "text/html").status == 415


def test_an_accept_that_cannot_be_met_is_406(server: Served) -> None:
    assert server.invoke(still(), "image/png", accept="video/mp4").status == 406
    assert server.invoke(clip(), "video/mp4", accept="image/png").status == 406


def test_other_paths_and_methods_are_404_and_405(server: Served) -> None:
    assert server.request("GET", "/etc/passwd").status == 404
    assert server.request("GET", "/invocations").status == 405
    assert server.request("POST", "/models", b"{}").status in (400, 405)


def test_a_damaged_picture_does_not_touch_the_next_one(server: Served) -> None:
    body = still()
    assert server.invoke(body[: len(body) // 2], "image/png").status in (200, 422)
    assert server.invoke(body[:40], "image/png").status == 422
    assert server.invoke(body, "image/png").status == 200


# Records of batch transform


def test_json_lines_are_answered_line_by_line_a_bad_one_by_its_error(server: Served) -> None:
    lines = [envelope(still()), b'{"body": "!"}', envelope(still("jpeg"), accept="image/png")]
    reply = server.invoke(b"\n".join(lines) + b"\n", "application/jsonlines")
    assert reply.headers["content-type"] == "application/jsonlines"
    answers = [json.loads(line) for line in reply.body.splitlines()]
    assert len(answers) == 3
    assert answers[1]["error"]["code"] == "json"
    assert [answers[i]["content_type"] for i in (0, 2)] == ["image/png", "image/png"]


def test_recordio_is_answered_record_by_record(server: Served) -> None:
    records = [still(), still("webp"), b"junk!"]
    body = b"".join(
        struct.pack("<II", 0xCED7230A, len(each)) + each + bytes(-len(each) % 4) for each in records
    )
    reply = server.invoke(body, "application/x-recordio", accept="image/png, application/x-recordio")
    answers, at = [], 0
    while at < len(reply.body):
        magic, length = struct.unpack_from("<II", reply.body, at)
        assert magic == 0xCED7230A
        answers.append(reply.body[at + 8 : at + 8 + length])
        at += 8 + length + -length % 4
    assert [decoded(each)[0].width for each in answers[:2]] == [128, 128]
    assert json.loads(answers[2])["error"]["code"] == "content"


def test_records_whose_answers_grow_too_large_are_not_all_made(server: Served) -> None:
    """Each is below the limit of 2 MiB, three of them are above it."""
    options = {"scale": 8, "model": "nearest"}
    line = envelope(still(), accept="application/x-vsr-planes", options=options) + b"\n"
    before = server.metric("vsr_frames_total")
    reply = server.invoke(line * 64, "application/jsonlines")
    assert (reply.status, reply.error["code"]) == (413, "answer_too_large")
    assert server.metric("vsr_frames_total") - before < 32
    assert str(reply.error["found_bytes"]).startswith("at least ")


def test_records_cut_off_are_400(server: Served) -> None:
    body = struct.pack("<II", 0xCED7230A, 100) + b"short"
    assert server.invoke(body, "application/x-recordio").status == 400


def test_the_same_shape_from_several_clients_shares_passes(server: Served) -> None:
    from concurrent.futures import ThreadPoolExecutor

    alone = [server.invoke(still(seed=i), "image/png", attributes="model=tiny").body for i in range(8)]
    passes, frames = server.metric("vsr_batch_frames_count"), server.metric("vsr_batch_frames_sum")
    with ThreadPoolExecutor(8) as clients:
        ask = lambda i: server.invoke(still(seed=i), "image/png", attributes="model=tiny").body  # noqa: E731
        together = list(clients.map(ask, range(8)))
    for one, other in zip(alone, together, strict=True):
        first, second = decoded(one)[1], decoded(other)[1]
        for left, right in zip(first.planes, second.planes, strict=True):
            assert np.abs(left.astype(int) - right.astype(int)).max() <= 1
    assert server.metric("vsr_batch_frames_sum") - frames == 8
    assert server.metric("vsr_batch_frames_count") - passes <= 8
