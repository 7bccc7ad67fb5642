"""PSNR and SSIM by their definitions, and the table over a folder of originals."""

from __future__ import annotations

import math
from pathlib import Path

import av
import imageio.v3 as imageio
import numpy as np
import pytest
from numpy.typing import NDArray

import vsr_hpc
from tests.commands import vsr
from vsr_hpc.bench import imresize as matlab
from vsr_hpc.bench.originals import degrade_truth, read_still, read_truth, to_rgb8
from vsr_hpc.bench.quality import measure_quality, rows_of_text
from vsr_hpc.errors import JobError, MediaError
from vsr_hpc.verification.similarity import psnr, ssim


def _picture(seed: int, rows: int = 96, columns: int = 112) -> NDArray[np.uint8]:
    """Edges and texture: random discs over a ramp."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns].astype(np.float64)
    picture = np.stack([x + seed, y, 255 - x], axis=-1) / 2
    for _ in range(12):
        inside = (x - rng.uniform(0, columns)) ** 2 + (y - rng.uniform(0, rows)) ** 2 < rng.uniform(
            5, 20
        ) ** 2
        picture[inside] = rng.uniform(0, 255, 3)
    return picture.clip(0, 255).astype(np.uint8)


def _write_png(path: Path, rgb: NDArray[np.uint8]) -> None:
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
    context = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt = rgb.shape[1], rgb.shape[0], "rgb24"
    context.time_base = 1
    path.write_bytes(b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in (1, 2):
        _write_png(tmp_path / f"{seed}.png", _picture(seed))
    return tmp_path


def _ssim_slowly(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Wang et al. 2004 window by window, as BasicSR computes it on the valid part."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2
    found = []
    for row in range(one.shape[0] - 10):
        for column in range(one.shape[1] - 10):
            a, b = one[row : row + 11, column : column + 11], other[row : row + 11, column : column + 11]
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * a * a).sum() - ma**2, (window * b * b).sum() - mb**2
            both = (window * a * b).sum() - ma * mb
            top = (2 * ma * mb + 6.5025) * (2 * both + 58.5225)
            found.append(top / ((ma**2 + mb**2 + 6.5025) * (va + vb + 58.5225)))
    return float(np.mean(found))


def test_ssim_is_that_of_the_paper() -> None:
    one = matlab.luma(_picture(1, 30, 28))
    other = one + np.random.default_rng(1).normal(0, 9, one.shape)
    assert ssim(one, other) == pytest.approx(_ssim_slowly(one, other), abs=1e-9)
    assert ssim(one, one) == pytest.approx(1)


def test_figures_are_those_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    one = matlab.luma(_picture(1))
    other = one + np.random.default_rng(1).normal(0, 9, one.shape)
    wanted = metrics.structural_similarity(
        one, other, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(one, other) == pytest.approx(wanted, abs=1e-6)
    assert psnr(one, other) == pytest.approx(metrics.peak_signal_noise_ratio(one, other, data_range=255))


def test_psnr_of_a_known_error() -> None:
    plane = np.full((8, 8), 100, dtype=np.uint8)
    assert psnr(plane, plane + 5) == pytest.approx(20 * math.log10(255 / 5))
    assert psnr(plane, plane) == math.inf


def test_bicubic_by_the_engine_is_bicubic_by_matlab(folder: Path) -> None:
    """The table's bicubic row can be compared with published ones."""
    table = measure_quality(folder, ["bicubic", "nearest"], 2)
    truth = _picture(1)
    made = matlab.resize(matlab.shrink(truth, 2), *truth.shape[:2])
    wanted = psnr(matlab.luma(truth)[2:-2, 2:-2], matlab.luma(made)[2:-2, 2:-2])
    bicubic, nearest = table.rows
    assert bicubic.pictures[0].figures.psnr == pytest.approx(wanted, abs=0.05)
    assert bicubic.figures.psnr > nearest.figures.psnr
    assert bicubic.figures.ssim > nearest.figures.ssim


def test_h264_costs_more_the_higher_the_crf(folder: Path) -> None:
    clean, good, bad = (
        measure_quality(folder, ["bicubic"], 2, degrade=degrade).rows[0].figures.psnr
        for degrade in ("clean", "h264:15", "h264:45")
    )
    assert clean > good > bad


def test_coded_frames_keep_their_colours_and_place(folder: Path) -> None:
    truth = read_truth(folder / "1.png", 2, is_coded=True)
    lows = degrade_truth(truth, 2, 1)
    found = to_rgb8(lows.frames[lows.measured[0]], lows.picture)
    wanted = matlab.shrink(truth.frames[0], 2)
    assert psnr(matlab.luma(found), matlab.luma(wanted)) > 38


def test_a_clip_counts_frame_by_frame(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 112, 96, "bgr0"
        for index in range(3):
            rgb = np.roll(_picture(1), 5 * index, axis=1)
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="bgr0")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    truth = read_truth(tmp_path / "clip.mkv", 2, is_coded=True)
    assert len(truth.frames) == 3 and truth.is_clip
    assert degrade_truth(truth, 2, 23).measured == (0, 1, 2)
    clean = measure_quality(tmp_path, ["bicubic"], 2).rows[0]
    assert (
        clean.figures.psnr > measure_quality(tmp_path, ["bicubic"], 2, degrade="h264:40").rows[0].figures.psnr
    )


def test_the_table_is_markdown(folder: Path) -> None:
    lines = list(rows_of_text(measure_quality(folder, ["nearest"], 2)))
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| nearest | ")


@pytest.mark.parametrize("degrade", ["h264", "h264:", "h264:60", "h265:20", "CLEAN", "h264:2 3"])
def test_other_degradations_are_refused(folder: Path, degrade: str) -> None:
    with pytest.raises(JobError, match="h264:CRF"):
        measure_quality(folder, ["nearest"], 2, degrade=degrade)


def test_what_cannot_be_measured_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(JobError, match="no folder"):
        measure_quality(tmp_path / "none", ["nearest"], 2)
    with pytest.raises(JobError, match="scale=1 "):
        measure_quality(folder, ["nearest"], 1)
    with pytest.raises(JobError, match="no model"):
        measure_quality(folder, [], 2)
    _write_png(folder / "0.png", _picture(1, 20, 20))
    with pytest.raises(MediaError, match="20x20 is too small"):
        measure_quality(folder, ["nearest"], 2)
    (folder / "0.png").write_bytes(b"no picture")
    with pytest.raises(MediaError, match=r"0\.png: cannot be read"):
        measure_quality(folder, ["nearest"], 2)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_a_still_of_8_bits_is_read_exactly(tmp_path: Path, suffix: str) -> None:
    wanted = _picture(3)
    imageio.imwrite(tmp_path / f"still{suffix}", wanted, plugin="pillow")
    assert np.array_equal(read_still(tmp_path / f"still{suffix}"), wanted)


def test_a_still_of_16_bits_is_rounded_and_never_read_by_imageio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = np.random.default_rng(1).integers(0, 65536, (64, 64, 3), dtype=np.uint16)
    context = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt, context.time_base = 64, 64, "rgb48be", 1
    frame = av.VideoFrame.from_ndarray(codes, format="rgb48be")
    path = tmp_path / "deep.png"
    path.write_bytes(b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)]))
    exact = codes / 257
    assert np.abs(imageio.imread(path, plugin="pillow", mode="RGB") - exact).max() > 0.9  # why it stays out

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("imageio reads 16 bits as 8")

    monkeypatch.setattr(imageio, "imread", refuse)
    assert np.abs(read_still(path) - exact).max() <= 0.51


def test_imageio_is_used_for_8_bit_stills_alone() -> None:
    package = Path(vsr_hpc.__file__).parent
    users = {
        path.relative_to(package) for path in package.rglob("*.py") if "import imageio" in path.read_text()
    }
    assert users == {Path("bench/originals.py"), Path("bench/served_quality.py")}


def test_a_folder_without_originals_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(JobError, match="neither stills nor clips"):
        measure_quality(tmp_path, ["nearest"], 2)


def test_the_command_prints_a_table_and_json(folder: Path) -> None:
    said = vsr("bench", "--quality", folder, "--scale", "2", "--models", "bicubic, nearest")
    assert said.code == 0, said.err
    assert [line.split("|")[1].strip() for line in said.out.splitlines()[2:]] == ["bicubic", "nearest"]
    assert "2 originals" in said.err
    _write_png(folder / "flat.png", np.full((64, 64, 3), 90, dtype=np.uint8))
    found = vsr("bench", "--quality", folder, "--scale", "2", "--models", "bicubic", "--json").json
    flat = found["rows"][0]["pictures"][-1]
    assert (flat["name"], flat["figures"]["psnr"]) == ("flat.png", None)


def test_the_command_refuses_what_it_cannot_measure(folder: Path) -> None:
    for arguments, words in (
        (("--quality", folder / "none"), "no folder"),
        (("--quality", folder, "--scale", "2.5"), "whole factors"),
        (("--quality", folder, "--degrade", "vhs"), "h264:CRF"),
        (("--quality", folder, "--models", "bicubik"), "did you mean bicubic"),
    ):
        said = vsr("bench", *arguments)
        assert said.code == 2 and words in said.err
