"""Measures what `verify` accepts and what it finds: `python -m tests.damages [--keep FOLDER]`.

It makes outputs with every filter and network, notes the worst value of each measure, and damages some of
them by less and less until `verify` no longer sees it. Prints the tables of docs/verify.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import clips
from tests.honest_outputs import DATA, FRAMES, Honest, honest_outputs, make_output, make_source
from tests.picture_damages import DAMAGES, FRAME, Damage, Planes
from vsr_hpc.errors import VsrError
from vsr_hpc.media.clip.probe import index_clip, probe_clip
from vsr_hpc.media.clip.reader import read_frames
from vsr_hpc.media.merge.container_plan import StreamsRequest
from vsr_hpc.media.picture import Picture
from vsr_hpc.media.source import local_source
from vsr_hpc.verification.picture_damage import LIMITS
from vsr_hpc.verification.verify import Promise, Verification, verify

PROMISE = Promise(
    streams=StreamsRequest(
        audio="none", drop=("video", "subtitle", "data", "alpha", "attachment", "metadata", "chapters")
    ),
    frames=FRAMES,
)
_ANIME = str(DATA / "weights" / "realesr-animevideov3.pth")
BASES = (
    Honest(clip="carphone_pristine.mp4", model="bicubic", scale=2),
    Honest(
        clip="carphone_pristine.mp4", model="vsr-video-x2", scale=2, picture={"blend": 0.5}, video={"crf": 35}
    ),
    Honest(clip="carphone_pristine.mp4", model=_ANIME, scale=4, picture={"grain": 8}),
    Honest(clip="made_10bit", model="vsr-video-x2", scale=2),
)
"""Outputs that are damaged: a filter, a network at a low bit rate, one with grain at four times the size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A true output, its source, and its frames as they decode."""

    source: Path
    picture: Picture
    rate: object
    frames: tuple[Planes, ...]

    @classmethod
    def read(cls, source: Path, path: Path) -> Output:
        origin = local_source(path)
        clip = probe_clip(origin)
        frames = read_frames(clip, index_clip(clip, origin), origin, 0, FRAMES)
        return cls(
            source=source,
            picture=clip.picture,
            rate=clip.frame_rate,
            frames=tuple(tuple(plane.copy() for plane in frame.planes) for frame in frames),
        )

    def damaged(self, damage: Damage, amount: float, path: Path) -> Path:
        """Write the output without further loss, with the damage."""
        planes = damage.damaged(self.frames, self.picture, amount, FRAME)
        return clips.clip_of_planes(path, self.picture, planes, rate=self.rate)  # type: ignore[arg-type]


def sees(result: Verification, damage: Damage) -> bool:
    found = result.warnings if damage.is_warning else result.findings
    return any(damage.words in each.text for each in found)


def measure_honest(
    chosen: Iterable[Honest], folder: Path
) -> Iterator[tuple[Honest, Verification | VsrError]]:
    """`verify` of each output whose clip and weights are here, or why the product did not make it."""
    for honest in chosen:
        if not honest.is_here():
            print(f"{honest}: left out, the clip or the weights are not here", file=sys.stderr)
            continue
        try:
            output = make_output(honest, folder)
        except VsrError as exc:
            yield honest, exc
            continue
        yield honest, verify(make_source(honest.clip, folder), output, PROMISE)


def detection_limit(output: Output, damage: Damage, folder: Path) -> float | None:
    """The smallest amount, scaled down step by step, that `verify` still sees; None where it sees none."""
    seen = None
    for share in damage.steps:
        amount = damage.amount * share
        result = verify(output.source, output.damaged(damage, amount, folder / "damaged.mkv"), PROMISE)
        if not sees(result, damage):
            return seen
        seen = amount
    return seen


def _print_honest(folder: Path) -> int:
    worst: dict[str, tuple[float, str]] = {}
    failed, count = 0, 0
    for honest, result in measure_honest(honest_outputs(), folder):
        count += 1
        if isinstance(result, VsrError):
            failed += 1
            print(f"{honest}: not made: {result}", file=sys.stderr)
            continue
        failed += not result.ok
        for each in (*result.findings, *result.warnings):
            print(f"{honest}: {each.check}: {each.text}", file=sys.stderr)
        for name, value in result.measures.items():
            is_floor = LIMITS[name].is_floor  # type: ignore[index]
            if value is not None and (
                name not in worst or (value < worst[name][0] if is_floor else value > worst[name][0])
            ):
                worst[name] = (value, str(honest))
    print(f"{count} true outputs, {failed} refused\n")
    print("| measure | unit | worst true output | limit | where |\n| --- | --- | ---: | ---: | --- |")
    for key, limit in LIMITS.items():
        value, where = worst.get(key, (float("nan"), "nowhere"))
        print(f"| {key} | {limit.unit} | {value:.2f} | {limit.value:g} | {where} |")
    return failed


def _print_damages(folder: Path) -> int:
    bases = [each for each in BASES if each.is_here()]
    outputs = [Output.read(make_source(each.clip, folder), make_output(each, folder)) for each in bases]
    print("\n| damage | unit | made | found down to, " + "; ".join(map(str, bases)) + " |")
    print("| --- | --- | ---: |" + " ---: |" * len(bases))
    missed = 0
    for damage in DAMAGES:
        limits = [detection_limit(each, damage, folder) for each in outputs]
        missed += limits.count(None)
        shown = " | ".join("not" if each is None else f"{each:.3g}" for each in limits)
        print(f"| {damage.name} | {damage.unit} | {damage.amount:g} | {shown} |", flush=True)
    return missed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="A folder in which the outputs stay for the next call.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = parser.parse_args(arguments).keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        return int(bool(_print_honest(folder) + _print_damages(folder)))


if __name__ == "__main__":
    sys.exit(main())
