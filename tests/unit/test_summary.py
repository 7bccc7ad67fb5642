"""The first line of a run: what goes in, what comes out, with what."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.clips import numbered_clip, picture
from vsr_hpc.engine import device_facts
from vsr_hpc.errors import JobError
from vsr_hpc.job.reading import parse_job
from vsr_hpc.launch import describe_job, submit
from vsr_hpc.media.encode.encoding import VideoRequest
from vsr_hpc.media.encode.resolution import resolve_encoding
from vsr_hpc.planning.preparation import Prepared, prepare
from vsr_hpc.planning.summary import describe_encoding, describe_size, estimate_frames, summarise


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return numbered_clip(tmp_path_factory.mktemp("clip") / "in.mp4", frames=48)


def _prepared(clip: Path, **more: Any) -> Prepared:
    document = {"input": str(clip), "output": str(clip.with_name("out.mkv")), "model": "bicubic"}
    return prepare(parse_job({**document, "picture": {"scale": 2}, **more}, "test"))


def test_the_line_names_clip_output_model_device_and_encoder(clip: Path) -> None:
    said = summarise(_prepared(clip), device="CPU: 2 cores", frames=1440)
    assert said == (
        "in.mp4 64×48, 24 fps, 1,440 frames → out.mkv 128×96, bicubic (CPU: 2 cores), H.264 CRF 18"
    )
    assert "24 fps, about 48 frames →" in summarise(_prepared(clip), device="CPU: 2 cores")


@pytest.mark.parametrize(
    ("wanted", "frames"),
    [({}, 48), ({"frames": 5}, 5), ({"from": "1"}, 24), ({"from": "40f", "to": "44f"}, 4), ({"to": "9"}, 48)],
)
def test_the_part_of_a_clip_counts(clip: Path, wanted: dict[str, object], frames: int) -> None:
    prepared = _prepared(clip, range=wanted)
    assert estimate_frames(prepared.clip, prepared.job.range) == frames


def test_a_network_says_its_precision_and_a_cluster_its_workers(clip: Path) -> None:
    prepared = _prepared(clip, picture={"scale": 2, "precision": "fp32"}, model="vsr-clean-x2")
    assert "vsr-clean-x2 (fp32, " in describe_job(prepared)
    far = _prepared(clip, on="slurm", run={"workers": 8})
    assert "bicubic (Slurm: 8 workers)" in describe_job(far)


def test_a_clip_that_is_turned_is_named_as_it_is_shown() -> None:
    turned = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    assert describe_size(picture((64, 48), "yuv420p")) == "64×48"
    assert describe_size(replace(picture((64, 48), "yuv420p"), display_matrix=turned)) == "48×64"
    wide = replace(picture((64, 48), "yuv420p"), sample_aspect=Fraction(64, 45))
    assert describe_size(wide) == "64×48 (sample aspect 64:45)"


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (VideoRequest(codec="h265", crf=21), "H.265 CRF 21"),
        (VideoRequest(codec="h264", qp=20), "H.264 QP 20"),
        (VideoRequest(codec="h264", lossless=True), "H.264 lossless"),
        (VideoRequest(codec="prores"), "ProRes 422 HQ"),
        (VideoRequest(encoder="h264_nvenc"), "H.264 CRF 19 by h264_nvenc"),
    ],
)
def test_an_encoding_is_named_by_codec_and_quality(request_: VideoRequest, said: str) -> None:
    assert describe_encoding(resolve_encoding(request_, picture((64, 48), "yuv420p"))) == said


def test_a_gpu_that_is_not_there_is_refused_before_any_work(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = clip.with_name("gpu.mkv")
    job = parse_job(
        {"input": str(clip), "output": str(out), "model": "bicubic", "run": {"gpus": "0,3"}}, "test"
    )
    monkeypatch.setattr(device_facts, "visible_gpus", lambda: ())
    with pytest.raises(JobError, match=r"--gpus: GPU 0, 3 is not on this machine, which has no NVIDIA GPU"):
        submit(job)
    monkeypatch.setattr(device_facts, "visible_gpus", lambda: (0, 1))
    with pytest.raises(JobError, match=r"--gpus: GPU 3 is not on this machine, which has GPU 0, 1$"):
        submit(job)
    assert not (clip.parent / ".vsr").exists()


def test_an_encoder_of_a_gpu_opens_where_it_will_encode_or_is_refused() -> None:
    request = VideoRequest(encoder="h264_nvenc")
    shape = picture((640, 360), "yuv420p")
    assert resolve_encoding(request, shape).encoder == "h264_nvenc", "a head node need not have the GPU"
    try:
        resolve_encoding(replace(request, is_encoded_here=True), shape)
    except JobError as exc:
        assert str(exc).startswith("video encoder: h264_nvenc does not open on this machine (")
        assert str(exc).endswith("Without --encoder, libx264 encodes on the CPU")
    else:
        assert device_facts.device_facts().kind == "cuda", "it opened where no GPU is"
