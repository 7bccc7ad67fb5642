"""Compares what a deployed endpoint answers with the original pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsr_hpc.aws.endpoint.promotion import Measured, Tell, check_candidate, promotion_settings
from vsr_hpc.aws.endpoint.spec import EndpointSpec, Promote
from vsr_hpc.errors import JobError, MediaError, VerifyError
from vsr_hpc.serving.client import Question, invoke


@dataclass(frozen=True, slots=True, kw_only=True)
class PicturePair:
    """A small picture and what it should become."""

    name: str
    low: bytes
    truth: Any
    """RGB, 8 bits: rows, columns, 3."""


def measure(spec: EndpointSpec, folder: Path, tell: Tell) -> Measured:
    """Ask the staging endpoint for every picture of a folder. JobError where it serves something else."""
    gate = promotion_settings(spec)
    check_candidate(spec, gate)
    pairs = list(_pairs(folder, gate.scale))
    if len(pairs) < gate.pictures:
        raise JobError(f"{folder}: {len(pairs)} pictures; promote.pictures asks for {gate.pictures} at least")
    figures, seconds = [], []
    with tempfile.TemporaryDirectory(prefix="vsr-promote-") as name:
        scratch = Path(name)
        _answer(gate, pairs[0], scratch)  # connections, caches and clocks warm up
        for pair in pairs:
            answer, taken = _answer(gate, pair, scratch)
            found = _compare(pair, answer, gate.scale)
            tell(f"{pair.name}: PSNR {found[0]:.2f} dB, SSIM {found[1]:.4f}, {1000 * taken:.0f} ms")
            figures.append(found)
            seconds.append(taken)
    seconds.sort()
    return Measured(
        staging=gate.staging,
        pictures=len(pairs),
        psnr_db=round(sum(each[0] for each in figures) / len(figures), 3),
        ssim=round(sum(each[1] for each in figures) / len(figures), 5),
        p50_ms=round(1000 * _quantile(seconds, 0.5), 1),
        p95_ms=round(1000 * _quantile(seconds, 0.95), 1),
    )


# Pictures ---------------------------------------------------------------------------------------------------
def _pairs(folder: Path, scale: int) -> Iterator[PicturePair]:
    """Large pictures, made small as published figures are; or low/ and high/ with equal names."""
    from vsr_hpc.bench.imresize import shrink
    from vsr_hpc.bench.originals import STILLS, list_originals, read_truth

    if (folder / "low").is_dir() and (folder / "high").is_dir():
        lows = {
            path.stem: path for path in sorted((folder / "low").iterdir()) if path.suffix.lower() in STILLS
        }
        for high in list_originals(folder / "high"):
            low = lows.get(high.stem)
            if low is None:
                raise MediaError(f"{folder}/low: there is no {high.stem}, which {folder}/high has")
            yield PicturePair(name=high.name, low=low.read_bytes(), truth=_rgb(high.read_bytes(), str(high)))
        return
    for path in list_originals(folder):
        if path.suffix.lower() in STILLS:
            truth = read_truth(path, scale).frames[0]
            yield PicturePair(name=path.name, low=_png(shrink(truth, scale)), truth=truth)


def _answer(gate: Promote, pair: PicturePair, scratch: Path) -> tuple[Any, float]:
    source, output = scratch / "in.png", scratch / "out.png"
    source.write_bytes(pair.low)
    asked = Question(source=source, output=output, options=(("scale", str(gate.scale)),), timeout_s=120)
    reply = invoke(gate.staging, asked)
    return _rgb(output.read_bytes(), pair.name), reply.seconds


def _compare(pair: PicturePair, answer: Any, scale: int) -> tuple[float, float]:
    """(PSNR, SSIM) of luma, `scale` pixels of border cut."""
    from vsr_hpc.bench.imresize import luma
    from vsr_hpc.verification.similarity import psnr, ssim

    if answer.shape != pair.truth.shape:
        shown = ["x".join(map(str, reversed(each.shape[:2]))) for each in (answer, pair.truth)]
        raise VerifyError(f"{pair.name}: the answer is {shown[0]}, the truth {shown[1]}")
    inner = (slice(scale, -scale), slice(scale, -scale))
    wanted, given = luma(pair.truth)[inner], luma(answer)[inner]
    return min(psnr(wanted, given), 100.0), ssim(wanted, given)


def _png(rgb: Any) -> bytes:
    """8-bit RGB as a PNG."""
    import imageio.v3 as imageio

    return imageio.imwrite("<bytes>", rgb, extension=".png")


def _rgb(body: bytes, name: str) -> Any:
    import io

    from vsr_hpc.bench.originals import to_rgb8
    from vsr_hpc.media.picture import Frame
    from vsr_hpc.media.stills.still import read_image

    try:
        picture, planes, _ = read_image(io.BytesIO(body))
    except MediaError as exc:
        raise MediaError(f"{name}: {exc}") from exc
    return to_rgb8(Frame(index=0, planes=planes), picture)


def _quantile(sorted_values: list[float], share: float) -> float:
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]
