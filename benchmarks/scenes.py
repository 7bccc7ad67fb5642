"""Scene cuts: our detector and PySceneDetect's two, on clips whose cuts are known.

    python benchmarks/scenes.py PICTURES [CLIP...]     PICTURES: a folder of photographs; any will do

Made clips are moving crops of the photographs: still, panning, shaking, zooming, with noise, flashes and
fades, and hard cuts at known frames. Of CLIPs only what each detector finds is shown. PySceneDetect is run
where it is installed (`pip install scenedetect opencv-python-headless`); the package never needs it.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vsr_hpc.media.clip.probe import index_clip, probe_clip
from vsr_hpc.media.clip.reader import read_frames
from vsr_hpc.media.clip.scenes import find_cuts
from vsr_hpc.media.source import local_source

SIZE = (192, 108)
SHOTS = 12


def shot(image: NDArray[np.uint8], kind: str, frames: int, chance: np.random.Generator) -> list[Any]:
    """A few frames that look at one photograph with a moving eye."""
    high, wide = image.shape[:2]
    x, y = chance.integers(0, wide - 400), chance.integers(0, high - 300)
    made = []
    for i in range(frames):
        step = {"still": 0, "slow pan": 2, "fast pan": 24, "shake": 0, "zoom": 0}[kind]
        dx, dy = (chance.integers(-9, 10, 2)) if kind == "shake" else (i * step, 0)
        size = 320 + (i * 6 if kind == "zoom" else 0)
        left = int(np.clip(x + dx, 0, wide - size - 1))
        top = int(np.clip(y + dy, 0, high - size * 9 // 16 - 1))
        crop = image[top : top + size * 9 // 16, left : left + size]
        rows = np.linspace(0, crop.shape[0] - 1, SIZE[1]).astype(int)
        columns = np.linspace(0, crop.shape[1] - 1, SIZE[0]).astype(int)
        noise = chance.normal(0, 4, (SIZE[1], SIZE[0], 3))
        made.append(np.clip(crop[rows][:, columns] + noise, 0, 255).astype(np.uint8))
    return made


def made_clip(path: Path, images: list[NDArray[np.uint8]], seed: int) -> tuple[int, ...]:
    """Write a clip; the frames at which its scenes begin."""
    chance = np.random.default_rng(seed)
    frames: list[Any] = []
    cuts: list[int] = []
    kinds = ["still", "slow pan", "fast pan", "shake", "zoom"]
    for number in range(SHOTS):
        image = images[(seed * SHOTS + number) % len(images)]
        part = shot(image, kinds[int(chance.integers(len(kinds)))], int(chance.integers(8, 40)), chance)
        if number % 4 == 3 and frames:  # a dissolve over 8 frames is no cut
            for i, (old, new) in enumerate(zip([frames[-1]] * 8, part, strict=False)):
                frames.append((old * (1 - (i + 1) / 9) + new * ((i + 1) / 9)).astype(np.uint8))
            part = part[8:]
        elif frames:
            cuts.append(len(frames))
        if number % 3 == 2 and len(part) > 6:  # a flash is no cut
            part[4] = np.clip(part[4].astype(int) + 120, 0, 255).astype(np.uint8)
        frames += part
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=25, options={"crf": "20", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for each in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(each, format="rgb24")))
        out.mux(stream.encode(None))
    return tuple(cuts)


def ours(path: Path) -> tuple[int, ...]:
    source = local_source(path)
    clip = probe_clip(source)
    timeline = index_clip(clip, source)
    return find_cuts(read_frames(clip, timeline, source, 0, len(timeline)), clip.picture)


def theirs(path: Path, name: str) -> tuple[int, ...]:
    import scenedetect

    detector = getattr(scenedetect, name)()
    found = scenedetect.detect(str(path), detector)
    return tuple(scene[0].frame_num for scene in found[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("clips", nargs="*", type=Path)
    parser.add_argument("--made", type=int, default=8, help="how many clips to make")
    given = parser.parse_args()
    detectors: dict[str, Any] = {"vsr_hpc": ours}
    try:
        import scenedetect  # noqa: F401
    except ImportError:
        print("PySceneDetect is not installed; only ours is shown")
    else:
        for name in ("ContentDetector", "AdaptiveDetector"):
            detectors[name] = lambda path, name=name: theirs(path, name)
    for path in given.clips:
        for name, detect in detectors.items():
            print(f"{path.name}: {name} {detect(path)}")
    paths = sorted(each for each in given.pictures.iterdir() if each.suffix in (".webp", ".png", ".jpg"))
    images = [_picture(path) for path in itertools.islice(paths, 40)]
    totals = {name: np.zeros(3, int) for name in detectors}
    spent = dict.fromkeys(detectors, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(given.made):
            path = Path(folder) / f"{seed}.mp4"
            wanted = set(made_clip(path, images, seed))
            for name, detect in detectors.items():
                began = time.process_time()
                found = set(detect(path))
                spent[name] += time.process_time() - began
                totals[name] += (len(wanted & found), len(wanted - found), len(found - wanted))
    print(f"{given.made} made clips:")
    for name, (hit, missed, false) in totals.items():
        print(f"  {name:<17} found {hit}  missed {missed}  false {false}  CPU {spent[name]:.2f} s")


def _picture(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        image: NDArray[np.uint8] = next(container.decode(video=0)).to_ndarray(format="rgb24")
    return image


if __name__ == "__main__":
    main()
