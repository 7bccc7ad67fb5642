"""Measures what `verify` accepts and what it finds: `python -m tests.damages [--keep FOLDER]`.

It makes outputs with every filter and network, notes the worst value of each measure, and damages some of
them by less and less until `verify` no longer sees it. Prints the tables of docs/verify.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import clips
from tests.honest_outputs import DATA, FRAMES, Honest, honest_outputs, make_output, make_source
from tests.picture_damages import DAMAGES, FRAME, Damage, Planes
from vsr_hpc.errors import VsrError
from vsr_hpc.media.clip.probe import index_clip, probe_clip
from vsr_hpc.media.clip.reader import read_frames
from vsr_hpc.media.merge.container_plan import StreamsRequest
from vsr_hpc.media.picture import Frame, Picture
from vsr_hpc.media.source import local_source
from vsr_hpc.system.environment import set_thread_policy
from vsr_hpc.verification.picture_damage import LIMITS, DamageFinder, MeasureName
from vsr_hpc.verification.verify import Promise

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
    """A true output and its source, with their frames as they decode."""

    source: Path
    was: Picture
    inputs: tuple[Planes, ...]
    now: Picture
    frames: tuple[Planes, ...]

    @classmethod
    def read(cls, source: Path, output: Path) -> Output:
        was, inputs = _read(source)
        now, frames = _read(output)
        return cls(source=source, was=was, inputs=inputs, now=now, frames=frames)

    def examined(self, frames: Sequence[Planes]) -> DamageFinder:
        """These frames as an output of the source, compared as `verify` compares them."""
        finder = DamageFinder(self.was, self.now, first=0)
        for number, (one, other) in enumerate(zip(self.inputs, frames, strict=True)):
            own = finder.grid.look_at(Frame(index=number, planes=one), self.was)
            finder.add(own, finder.grid.look_at(Frame(index=number, planes=other), self.now))
        return finder

    def damaged(self, damage: Damage, amount: float) -> list[Planes]:
        return damage.damaged(self.frames, self.now, amount, FRAME)

    def write_damaged(self, damage: Damage, path: Path) -> Path:
        """The damaged output as a file, coded without further loss."""
        return clips.clip_of_planes(path, self.now, self.damaged(damage, damage.amount))


def _read(path: Path) -> tuple[Picture, tuple[Planes, ...]]:
    origin = local_source(path)
    clip = probe_clip(origin)
    timeline = index_clip(clip, origin)
    frames = read_frames(clip, timeline, origin, 0, min(FRAMES, len(timeline)))
    return clip.picture, tuple(tuple(plane.copy() for plane in frame.planes) for frame in frames)


def detection_limit(output: Output, damage: Damage) -> float | None:
    """The smallest amount, halved again and again, that is still seen; None where none is."""
    seen = None
    for share in damage.steps:
        found = output.examined(output.damaged(damage, damage.amount * share)).damages()
        if not any(damage.words in each.text and each.is_error != damage.is_warning for each in found):
            return seen
        seen = damage.amount * share
    return seen


def _print_honest(chosen: Iterable[Honest], folder: Path) -> int:
    worst: dict[MeasureName, tuple[float, str]] = {}
    failed, count = 0, 0
    for honest in chosen:
        if not honest.is_here():
            print(f"{honest}: left out, the clip or the weights are not here", file=sys.stderr)
            continue
        count += 1
        try:
            output = Output.read(make_source(honest.clip, folder), make_output(honest, folder))
        except VsrError as exc:
            failed += 1
            print(f"{honest}: not made: {exc}", file=sys.stderr)
            continue
        finder = output.examined(output.frames)
        found = list(finder.damages())
        failed += any(each.is_error for each in found)
        for each in found:
            print(f"{honest}: {'error' if each.is_error else 'warning'}: {each.text}", file=sys.stderr)
        for name, value in finder.values().items():
            if value is not None and (name not in worst or _is_worse(name, value, worst[name][0])):
                worst[name] = (value, str(honest))
    print(f"{count} true outputs, {failed} refused\n")
    print("| measure | unit | worst true output | limit | error | where |")
    print("| --- | --- | ---: | ---: | --- | --- |")
    for key, limit in LIMITS.items():
        value, where = worst.get(key, (float("nan"), "nowhere"))
        level = "yes" if limit.is_error else "warning"
        print(f"| {key} | {limit.unit} | {value:.2f} | {limit.value:g} | {level} | {where} |")
    return failed


def _is_worse(name: MeasureName, value: float, than: float) -> bool:
    return value < than if LIMITS[name].is_floor else value > than


def _print_damages(folder: Path) -> None:
    bases = [each for each in BASES if each.is_here()]
    outputs = [Output.read(make_source(each.clip, folder), make_output(each, folder)) for each in bases]
    print("\n| damage | unit | made | " + " | ".join(map(str, bases)) + " |")
    print("| --- | --- | ---: |" + " ---: |" * len(bases))
    for damage in DAMAGES:
        limits = [detection_limit(each, damage) for each in outputs]
        shown = " | ".join("not" if each is None else f"{each:.3g}" for each in limits)
        print(f"| {damage.name} | {damage.unit} | {damage.amount:g} | {shown} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    set_thread_policy()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="A folder in which the outputs stay for the next call.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = parser.parse_args(arguments).keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        failed = _print_honest(honest_outputs(), folder)
        _print_damages(folder)
        return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
