"""GIF outputs: the source's frames, delays, loops and transparency, or a sentence that says what is lost."""

from __future__ import annotations

import io
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.clips import numbered_clip, numbered_planes
from tests.clips import picture as shape_of
from tests.runs import finished, planned_run
from vsr_hpc.errors import JobError
from vsr_hpc.job.reading import parse_job
from vsr_hpc.media.clip.probe import index_clip, probe_clip
from vsr_hpc.media.clip.reader import read_frames
from vsr_hpc.media.picture import Colour, Frame, Plane
from vsr_hpc.media.pixels import to_planes
from vsr_hpc.media.source import local_source
from vsr_hpc.media.stills.gif import decode_gif, encode_gif, gif_delays, gif_findings, join_gifs, read_loops
from vsr_hpc.media.timeline import Timeline
from vsr_hpc.run.documents import Done


def upscale(source: Path, output: Path, **sections: Any) -> Done:
    document = {"input": str(source), "output": str(output), "model": "nearest", "picture": {"scale": 2}}
    run = {"chunk_s": 0.2, "threads": 1}
    return finished(planned_run(parse_job({**document, "run": run, **sections}, "test")))


def frames_of(path: Path) -> tuple[list[int], list[Frame]]:
    source = local_source(path)
    clip = probe_clip(source)
    timeline = index_clip(clip, source)
    assert timeline.time_base == Fraction(1, 100)
    return [int(each) for each in timeline.durations], list(
        read_frames(clip, timeline, source, 0, len(timeline))
    )


def numbered_gif(path: Path, delays: list[int], loops: int | None, *, has_holes: bool) -> Path:
    """A GIF of few colours; with holes that move."""
    shape = shape_of((64, 48), "gbrap" if has_holes else "gbrp")
    pictures = []
    for number in range(len(delays)):
        planes = [np.where(plane > 127, 255, 0).astype(np.uint8) for plane in numbered_planes(number, shape)]
        if has_holes:
            planes[3][:] = 255
            planes[3][:, 4 * number : 4 * number + 8] = 0
        pictures.append(encode_gif(shape, planes))
    path.write_bytes(b"".join(join_gifs(pictures, delays, (64, 48), loops)))
    return path


@pytest.mark.parametrize("loops", [0, 3, None])
@pytest.mark.parametrize("has_holes", [False, True])
def test_a_gif_keeps_delays_loops_and_holes(has_holes: bool, loops: int | None, tmp_path: Path) -> None:
    delays = [4, 10, 3, 50, 7, 2, 9]
    source = numbered_gif(tmp_path / "in.gif", delays, loops, has_holes=has_holes)
    done = upscale(source, tmp_path / "out.gif")
    assert done.frames == len(delays)
    assert read_loops(local_source(tmp_path / "out.gif")) == loops
    shown, frames = frames_of(tmp_path / "out.gif")
    assert shown == delays
    before = frames_of(source)[1]
    for one, other in zip(before, frames, strict=True):
        for plane, doubled in zip(one.planes, other.planes, strict=True):
            np.testing.assert_array_equal(plane.repeat(2, 0).repeat(2, 1), doubled)


def test_a_clip_becomes_a_gif_whose_frames_begin_at_the_nearest_tick(tmp_path: Path) -> None:
    source = numbered_clip(tmp_path / "in.mkv", frames=24, rate=24, audio=True)
    job = {"input": str(source), "output": str(tmp_path / "out.gif"), "model": "bicubic"}
    run = planned_run(parse_job({**job, "picture": {"scale": 2}, "run": {"chunk_s": 0.25}}, "test"))
    finished(run)
    shown, frames = frames_of(tmp_path / "out.gif")
    begins = np.cumsum([0, *shown])
    assert list(begins) == [round(Fraction(100 * number, 24)) for number in range(25)]
    assert [frame.index for frame in frames] == list(range(24))


def test_a_gif_is_the_same_however_it_is_cut(tmp_path: Path) -> None:
    source = numbered_clip(tmp_path / "in.mkv", frames=12, rate=10)
    one = upscale(source, tmp_path / "one.gif", run={"chunk_s": 60, "threads": 1})
    many = upscale(source, tmp_path / "many.gif", run={"chunk_s": 0.1, "threads": 1})
    assert one.sha256 == many.sha256


def timeline(*pts: int, last: int = 1) -> Timeline:
    none = np.zeros(0, np.int64)
    return Timeline(
        time_base=Fraction(1, 1000),
        pts=np.array(pts, np.int64),
        last_duration=last,
        key_pts=none,
        key_dts=none,
        reading="scan",
    )


def test_times_that_a_gif_cannot_show_need_leave_to_change() -> None:
    fast = timeline(0, 17, 33, 50, last=17)
    refused = r"frame 1 is shown for 16.000 ms.*longer times for 1 frame with --drop timing"
    with pytest.raises(JobError, match=refused):
        gif_delays(fast, 0, 4)
    assert gif_delays(fast, 0, 4, may_change_times=True) == [2, 2, 2, 2]
    with pytest.raises(JobError, match=r"shown for 700.00 s"):
        gif_delays(timeline(0, 700_000, last=40), 0, 2)


def test_hdr_is_refused_and_other_depths_are_not() -> None:
    hdr = shape_of(pix_fmt="yuv420p10le", colour=Colour(matrix=9, primaries=9, transfer=16))
    assert "no HDR" in gif_findings(hdr)[0]
    assert gif_findings(replace(hdr, colour=Colour())) == []


def colourful(alpha: int | None) -> tuple[Plane, ...]:
    rows, columns = np.mgrid[0:48, 0:64].astype(np.uint8)
    planes = (rows * 5, columns * 4, rows + columns)
    return planes if alpha is None else (*planes, np.full((48, 64), alpha, np.uint8))


def test_more_than_256_colours_are_mixed_and_stay_near() -> None:
    planes = colourful(None)
    found = decode_gif(encode_gif(shape_of(pix_fmt="gbrp"), planes), has_alpha=False)
    errors = [float(np.abs(one.astype(int) - other).mean()) for one, other in zip(planes, found, strict=True)]
    assert max(errors) < 8


@pytest.mark.parametrize(("alpha", "shown"), [(127, 0), (128, 255)])
def test_half_opaque_pixels_are_shown_and_less_are_not(alpha: int, shown: int) -> None:
    found = decode_gif(encode_gif(shape_of(pix_fmt="gbrap"), colourful(alpha)), has_alpha=True)
    assert np.unique(found[3]).tolist() == [shown]


def test_a_joined_gif_is_read_by_pillow_like_readers_too() -> None:
    """imageio has a reader of its own."""
    import imageio.v3 as iio

    shape = shape_of(pix_fmt="gbrp")
    few = [
        tuple((plane // 128 * 255).astype(np.uint8) for plane in numbered_planes(n, shape)) for n in (1, 2)
    ]
    joined = b"".join(join_gifs((encode_gif(shape, each) for each in few), [5, 9], (64, 48), 0))
    assert iio.improps(io.BytesIO(joined), extension=".gif").n_images == 2
    with av.open(io.BytesIO(joined), "r") as container:
        pictures = [to_planes(frame)[:3] for frame in container.decode(video=0)]
    for number, planes in enumerate(few):
        read = iio.imread(io.BytesIO(joined), extension=".gif", index=number, mode="RGB")
        for letter, plane in zip((1, 2, 0), planes, strict=True):
            np.testing.assert_array_equal(read[..., letter], plane)
        for one, other in zip(pictures[number], planes, strict=True):
            np.testing.assert_array_equal(one, other)
