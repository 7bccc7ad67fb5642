"""Bad input through the command: an exit code, one clear sentence, no traceback, nothing left behind."""

from __future__ import annotations

import os
import pickle
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest

from tests.clips import numbered_clip, numbered_planes, picture
from tests.commands import Said, as_ordinary_user, process, vsr
from tests.require import require
from vsr_hpc.media.stills.still import write_image

JOB, MEDIA, MODEL = 2, 3, 4
_FASTEST = ("--preset", "ultrafast")


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips and weights, most of them broken; no command may change it."""
    folder = tmp_path_factory.mktemp("bad")
    for name in ("clip.mkv", "clip.mp4"):
        whole = numbered_clip(folder / name, frames=12, audio=True).read_bytes()
        (folder / f"cut-{name}").write_bytes(whole[: len(whole) // 2])
    numbered_clip(folder / "interlaced.mkv", frames=24, interlaced="tff")
    numbered_clip(folder / "dot.mkv", frames=3, size=(1, 1), codec="ffv1")
    for name in ("zero.mkv", "zero.mp4"):
        with av.open(str(folder / name), "w") as empty:
            video: Any = empty.add_stream("mpeg4", rate=24)
            video.width, video.height = 64, 48
            empty.start_encoding()
    _make_texts(folder)
    _make_huge(folder)
    _make_weights(folder)
    (folder / "no-images").mkdir()
    (folder / "no-images" / "notes.txt").touch()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "link.mkv").symlink_to("clip.mkv")
    os.link(folder / "clip.mkv", folder / "hard-link.mkv")
    (folder / "shots").mkdir()
    for number in (1, 2, 4):
        shape = picture((32, 24), "gbrp16le")
        write_image(folder / f"shots/s{number}.png", shape, numbered_planes(number, shape))
    return folder


def _make_texts(folder: Path) -> None:
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n/etc/passwd\n#EXT-X-ENDLIST\n"
    texts = {
        "empty.mp4": "",
        "text.mp4": "Dear diary,\n" * 50,
        "list.m3u8": playlist,
        "list.mp4": playlist,
        "concat.mp4": "ffconcat version 1.0\nfile '/etc/passwd'\n",
        "session.sdp": "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
        "not-yaml.yaml": "input: [",
        "unknown-key.yaml": "input: clip.mkv\noutput: out.mkv\nmodle: bicubic\n",
        "wrong-type.yaml": "input: clip.mkv\noutput: out.mkv\nmodel: bicubic\nrun: {workers: many}\n",
        "all-wrong.yaml": "input: clip.mkv\nmodel: bicubic\npicture: {scale: 2x}\nvideo: {crf: 99}\nmor: 1\n",
        "no-fit.yaml": "input: clip.mkv\noutput: clip.avi\nmodel: lancsoz\nvideo: {pix_fmt: yuv999}\n",
        "elsewhere.yaml": "input: clip.mkv\noutput: x.mkv\nmodel: bicubic\non: aws-batch\n",
        "a-file": "",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)


def _make_huge(folder: Path) -> None:
    (folder / "huge.png").write_bytes(_png(20000, 20000))
    (folder / "large.png").write_bytes(_png(16384, 16384))
    for name, side in (("huge.y4m", 40000), ("large.y4m", 16000)):
        head = f"YUV4MPEG2 W{side} H{side} F24:1 Ip A1:1 C420jpeg\nFRAME\n".encode()
        (folder / name).write_bytes(head + bytes(1000))
    content = bytearray(
        numbered_clip(folder / "huge.mkv", frames=3, codec="mjpeg", pix_fmt="yuvj420p").read_bytes()
    )
    for found in re.finditer(rb"\xff\xc0", bytes(content)):
        content[found.start() + 5 : found.start() + 9] = struct.pack(">HH", 60000, 60000)
    (folder / "huge.mkv").write_bytes(content)


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


class _RunsCode:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.proof}'",)


def _make_weights(folder: Path) -> None:
    noise = random.Random(1).randbytes(4096)
    (folder / "noise.pth").write_bytes(noise)
    (folder / "noise.safetensors").write_bytes(noise)
    evil = pickle.dumps({"params": _RunsCode(folder / "CODE-RAN")})
    (folder / "evil.pth").write_bytes(evil)
    with zipfile.ZipFile(folder / "evil-zip.pth", "w") as archive:
        archive.writestr("archive/data.pkl", evil)
        archive.writestr("archive/version", "3\n")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: Path) -> Iterator[Path]:
    """An empty folder to work in, which must be empty afterwards, as the bad ones must be untouched."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    before = _listing(bad)
    yield folder
    assert list(folder.iterdir()) == []
    assert _listing(bad) == before


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    found = {path: path.lstat() for path in folder.rglob("*") if not path.is_dir()}
    return {str(path): (facts.st_size, facts.st_mtime_ns) for path, facts in found.items()}


def _is_refused(said: Said, code: int, sentence: str) -> None:
    """One sentence for one fault; several faults are a list under their number.

    What only an index of the clip tells comes after the line that says what the job is.
    """
    assert said.code == code, said.err
    assert said.out == ""
    assert "Traceback" not in said.err
    first, *others = [
        line for line in said.err.splitlines() if not line.startswith("note: ") and "→" not in line
    ]
    assert "about 1 frame" not in said.err
    assert first.startswith("vsr: ")
    assert all(line.startswith("  ") for line in others), said.err
    assert sentence in said.err


INPUTS = [
    ("empty.mp4", MEDIA, "is empty (0 bytes)"),
    ("cut-clip.mp4", MEDIA, "the file is cut off"),
    ("cut-clip.mkv", MEDIA, "the file is cut off"),
    ("text.mp4", MEDIA, "its content is no known video"),
    ("list.m3u8", MEDIA, "such as a playlist"),
    ("list.mp4", MEDIA, "cannot open this as a video"),
    ("concat.mp4", MEDIA, "such as a playlist"),
    ("session.sdp", MEDIA, "cannot open this as a video"),
    ("no-images", MEDIA, "holds no image"),
    ("pipe.mp4", MEDIA, "is no regular file (a pipe or a device)"),
    ("gone.mp4", MEDIA, "there is no such file"),
    ("zero.mkv", MEDIA, "it ends before its first frame"),
    ("zero.mp4", MEDIA, "has no video stream"),
    ("huge.mkv", MEDIA, "no frame of its mjpeg stream can be decoded"),
    ("huge.y4m", MEDIA, "its header claims a picture that is too large"),
    ("large.y4m", MEDIA, "no frame of its rawvideo stream can be decoded"),
    ("huge.png", MEDIA, "20000x20000 is larger than the 16384x16384 that are read"),
    ("large.png", MEDIA, "this png cannot be decoded"),
    ("shots", MEDIA, "1 images are missing between s2.png and s4.png"),
    ("interlaced.mkv", JOB, "is interlaced (tff); --deinterlace makes whole frames"),
    ("nothing-*.mkv", JOB, "no clip or image matches this pattern"),
]


@pytest.mark.parametrize(("name", "code", "sentence"), INPUTS, ids=[name for name, _, _ in INPUTS])
def test_an_input_that_is_no_clip_is_refused(
    bad: Path, here: Path, name: str, code: int, sentence: str
) -> None:
    said = vsr("upscale", bad / name, "out.mkv", *_FASTEST)
    _is_refused(said, code, sentence)
    assert "root:" not in said.err


def test_a_name_that_is_too_long_is_refused(bad: Path, here: Path) -> None:
    said = vsr("upscale", bad / f"{'a' * 300}.mkv", "out.mkv")
    _is_refused(said, said.code, "")
    assert said.code in (JOB, MEDIA)


OPTIONS = [
    (["--model", "lancsoz"], JOB, "did you mean lanczos?"),
    (["--model", "{bad}/gone.pth"], MODEL, "no such file of weights"),
    (["--model", "{bad}/noise.pth"], MODEL, "cannot be read as weights"),
    (["--model", "{bad}/noise.safetensors"], MODEL, "not a safetensors file, or cut off"),
    (["--model", "{bad}/evil.pth"], MODEL, "its pickle asks for posix.system, which could run code"),
    (["--model", "{bad}/evil-zip.pth"], MODEL, "its pickle asks for posix.system, which could run code"),
    (["--codec", "h266"], JOB, "--codec: must be 'h264', "),
    (["--encoder", "libnope"], JOB, "known encoders: libx264"),
    (["--encoder-params", "foo=1"], JOB, "Error parsing option 'foo = 1'"),
    (["--encoder-params", "foo"], JOB, "'foo' is not key=value"),
    (["--encoder-params", "bitrate=500"], JOB, "nothing can hold a rate over the whole film; use --crf"),
    (["--preset", "warp"], JOB, "ultrafast, superfast"),
    (["--pix-fmt", "yuv999"], JOB, "no pixel format of planes"),
    (["--crf", "99"], JOB, "--crf: must be at most 63, not 99"),
    (["--crf", "20", "--lossless"], JOB, "exclude each other"),
    (["--from", "5", "--to", "3"], JOB, "no frame lies between 5.000 s and 3.000 s"),
    (["--from", "99"], JOB, "the clip has 12 frames"),
    (["--from", "yesterday"], JOB, "--from: 'yesterday' is not a time; write seconds"),
    (["--frames", "0"], JOB, "--frames: must be at least 1, not 0"),
    (["--size", "12"], JOB, "--size: '12' is not a size; write WIDTHxHEIGHT"),
    (["--size", "0x0"], JOB, "has no positive side"),
    (["--size", "99999x99999"], JOB, "at most 16384 is possible"),
    (["--scale", "0"], JOB, "--scale: must be more than 0"),
    (["--scale", "2", "--size", "64x64"], JOB, "give scale or size, not both"),
    (["--tile", "banana"], JOB, "--tile: must be a whole number or 'auto' or 'none', not 'banana'"),
    (["--gpus", "a"], JOB, "write numbers with commas"),
    (["--run", "http://x/run"], JOB, "a run lives in a folder or under s3://"),
    (["--frobnicate"], JOB, "No such option: --frobnicate"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "code", "sentence"), OPTIONS, ids=[" ".join(o[:2]) for o, _, _ in OPTIONS]
)
def test_a_wish_that_cannot_be_met_is_refused(
    bad: Path, here: Path, options: list[str], code: int, sentence: str
) -> None:
    said = vsr("upscale", bad / "clip.mkv", "out.mkv", *(each.format(bad=bad) for each in options))
    _is_refused(said, code, sentence)
    assert not (bad / "CODE-RAN").exists()


OUTPUTS = [
    ("{bad}/clip.mkv", "is the input itself"),
    ("{bad}/link.mkv", "is the input itself"),
    ("{bad}/hard-link.mkv", "is the input itself"),
    ("{bad}/../{name}/clip.mkv", "is the input itself"),
    ("{bad}/empty.mp4", "exists; --overwrite"),
    ("{bad}/a-file/out.mkv", "a-file is not a folder"),
    ("out.webm", ".webm cannot hold it; name the output .mkv"),
    ("out.avi", "name it with one of .mp4 .m4v .mov .mkv .webm"),
    ("out", "name it with one of"),
    ("out.png", "one file cannot hold several pictures"),
    ("s3://Bad_Bucket/out.mkv", "is not an S3 address"),
    ("s3://films/out", "names no single file"),
    ("http://host/out.mkv", "name a local path or s3://bucket/name"),
    ("out\udcff.mkv", "is not UTF-8"),
]


@pytest.mark.parametrize(("output", "sentence"), OUTPUTS, ids=[output for output, _ in OUTPUTS])
def test_an_output_that_cannot_be_is_refused(bad: Path, here: Path, output: str, sentence: str) -> None:
    place = output.format(bad=bad, name=bad.name)
    arguments = ["--run", "run"] if "://" in place else []
    _is_refused(vsr("upscale", bad / "clip.mkv", place, *arguments), JOB, sentence)


def test_overwrite_does_not_let_an_output_be_its_own_input(bad: Path, here: Path) -> None:
    for name in ("clip.mkv", "link.mkv", "hard-link.mkv"):
        said = vsr("upscale", bad / "clip.mkv", bad / name, "--overwrite", "--new")
        _is_refused(said, JOB, "is the input itself")


def test_images_are_never_written_over_their_own_source(bad: Path, here: Path) -> None:
    for place in (bad / "shots", bad / "shots" / "s%d.png"):
        said = vsr("upscale", bad / "shots", place, "--allow-gaps", "--overwrite")
        _is_refused(said, JOB, "input")


def test_images_are_not_written_over_others(bad: Path, here: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "s4.png").write_text("somebody's picture")
    said = vsr("upscale", bad / "shots", there, "--allow-gaps", "--rate", "24")
    _is_refused(said, JOB, "s4.png exists; --overwrite")


def test_a_dot_of_one_pixel_is_made_or_refused(bad: Path, here: Path, tmp_path: Path) -> None:
    said = vsr("upscale", bad / "dot.mkv", "out.mkv", "--codec", "ffv1")
    _is_refused(said, JOB, "2x2 is below ffv1's minimum of 4x4")
    made = vsr("upscale", bad / "dot.mkv", tmp_path / "made.mkv", "--scale", "4", "--codec", "ffv1", "-q")
    assert made.code == 0, made.err


JOBS = [
    ("not-yaml.yaml", "not YAML"),
    ("unknown-key.yaml", "modle: unknown key; did you mean model?"),
    ("wrong-type.yaml", "run.workers: must be a whole number, not 'many'"),
    ("gone.yaml", "there is no such file"),
    ("clip.mkv", "is no text, so no job file"),
    ("elsewhere.yaml", "is on this machine, where AWS Batch's instances do not see it"),
]


@pytest.mark.parametrize(("name", "sentence"), JOBS, ids=[name for name, _ in JOBS])
def test_a_job_file_that_is_wrong_is_refused(bad: Path, here: Path, name: str, sentence: str) -> None:
    _is_refused(vsr("submit", bad / name), JOB, sentence)


def test_all_faults_of_a_job_file_are_told_at_once(bad: Path, here: Path) -> None:
    said = vsr("submit", bad / "all-wrong.yaml")
    for part in ("4 problems", "output: missing", "picture.scale", "video.crf", "mor: unknown key"):
        _is_refused(said, JOB, part)


def test_all_that_does_not_fit_the_clip_is_told_at_once(bad: Path, here: Path) -> None:
    said = vsr("submit", bad / "no-fit.yaml")
    for part in ("problems", "did you mean lanczos?", "yuv999"):
        _is_refused(said, JOB, part)


def test_weights_that_would_run_code_are_not_imported(bad: Path, here: Path) -> None:
    for name in ("evil.pth", "evil-zip.pth"):
        _is_refused(vsr("models", "import", bad / name), MODEL, "could run code")
    assert not (bad / "CODE-RAN").exists()


@pytest.mark.parametrize("command", ["status", "resume", "cancel", "logs", "finish", "worker"])
def test_what_is_no_run_is_refused(bad: Path, here: Path, command: str) -> None:
    _is_refused(vsr(command, bad / "clip.mkv"), JOB, "no run here")


def test_a_folder_that_cannot_be_written_is_refused(bad: Path, here: Path, tmp_path: Path) -> None:
    before = as_ordinary_user()
    if before is None:
        require("setpriv", "root writes everywhere, and setpriv cannot take that from it here")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    for output in (closed / "out.mkv", closed / "deeper" / "out.mkv"):
        said = process("upscale", bad / "clip.mkv", output, cwd=here, before=before)
        _is_refused(said, JOB, f"{closed} cannot be written to; choose another place")
    assert list(closed.iterdir()) == []


def test_a_clip_that_may_not_be_read_is_refused(bad: Path, here: Path, tmp_path: Path) -> None:
    before = as_ordinary_user()
    if before is None:
        require("setpriv", "root reads everything, and setpriv cannot take that from it here")
    secret = numbered_clip(tmp_path / "secret.mkv", frames=2)
    secret.chmod(0)
    said = process("upscale", secret, "out.mkv", cwd=here, before=before)
    _is_refused(said, MEDIA, "may not be read by this user")


def test_a_refusal_as_a_process_looks_the_same(bad: Path, here: Path) -> None:
    said = process("upscale", bad / "cut-clip.mp4", "out.mkv", cwd=here)
    _is_refused(said, MEDIA, "the file is cut off")
    assert said.err.count("\n") == 1
