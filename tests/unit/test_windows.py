"""Windows of a video network follow from chunks, cuts, length and context; no clip's length costs memory."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.clips import numbered_clip
from tests.runs import tiny_job
from vsr_hpc.media.clip import reader as pipeline
from vsr_hpc.media.clip.reader import read_segment
from vsr_hpc.media.encode.segment_writer import SegmentWriter
from vsr_hpc.media.picture import Frame
from vsr_hpc.media.source import local_source
from vsr_hpc.media.timeline import Timeline
from vsr_hpc.models.cards import find_card
from vsr_hpc.planning.cutting import WINDOW_BYTES, chunk_borders, longest_window
from vsr_hpc.planning.plan import Temporal, windows
from vsr_hpc.planning.planner import make_plan
from vsr_hpc.planning.preparation import prepare
from vsr_hpc.work.pipeline import Workbench, make_segments


def borders(frames: int, temporal: Temporal | None, operations: float = 1.0) -> tuple[int, ...]:
    return chunk_borders(
        0, frames, frame_rate=Fraction(24), operations_per_frame=operations, temporal=temporal
    )


@given(
    frames=st.integers(2, 400),
    longest=st.integers(1, 60),
    context=st.integers(0, 20),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    chunk_s=st.floats(0.1, 5),
)
@settings(max_examples=25, deadline=None)
def test_windows_cover_each_frame_once_and_see_no_other_scene(
    frames: int, longest: int, context: int, cuts: list[int], chunk_s: float
) -> None:
    temporal = Temporal(longest=longest, context=context, cuts=tuple(sorted(set(cuts))))
    chunks = chunk_borders(
        0, frames, frame_rate=Fraction(24), operations_per_frame=1.0, chunk_s=chunk_s, temporal=temporal
    )
    assert chunks[0] == 0 and chunks[-1] == frames and list(chunks) == sorted(set(chunks))
    made = []
    for start, stop in itertools.pairwise(chunks):
        mine = windows(start, stop, within=(0, frames), temporal=temporal)
        assert mine[0].start == start and mine[-1].stop == stop
        made += mine
    assert [each.stop for each in made[:-1]] == [each.start for each in made[1:]]
    for each in made:
        assert 0 < each.stop - each.start <= longest
        assert 0 <= each.read_start <= each.start and each.stop <= each.read_stop <= frames
        assert each.before <= context and each.after <= context
        assert not [cut for cut in temporal.cuts if each.read_start < cut < each.read_stop]
        for side, border in ((each.before, each.read_start), (each.after, each.read_stop)):
            assert side == context or border in (0, frames, *temporal.cuts)


def test_a_chunk_begins_at_a_cut_that_is_near() -> None:
    temporal = Temporal(longest=100, context=5, cuts=(230, 400, 700))
    assert borders(960, temporal) == (0, 230, 480, 700, 960)
    assert borders(960, None) == (0, 240, 480, 720, 960)


def test_a_heavy_video_networks_chunk_is_worth_its_context() -> None:
    temporal = Temporal(longest=100, context=15, cuts=())
    assert borders(600, temporal, 1e14) == tuple(range(0, 601, 60))


def test_memory_decides_a_windows_length_by_the_picture_alone() -> None:
    card = find_card("BasicVSR_REDS4")
    small, large = longest_window(card, 480 * 270), longest_window(card, 1920 * 1080)
    assert small * 480 * 270 * 64 * 4 <= WINDOW_BYTES < (small + 1) * 480 * 270 * 64 * 4
    assert (small, large) == (194, 12)
    assert longest_window(find_card("IconVSR_REDS"), 1920 * 1080) == 6
    assert longest_window(card, 16384 * 8192) == 4  # never so short that nothing is gained


class Counting:
    """Counts the input frames that are alive while windows are made."""

    batch, clipped = 1, 0

    def __init__(self) -> None:
        self.peak, self._alive, self._lock = 0, 0, threading.Lock()

    def watch(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        for frame in frames:
            self._count(1)
            weakref.finalize(frame.planes[0], self._count, -1)  # a frame itself takes no weak reference
            yield frame

    def _count(self, change: int) -> None:
        with self._lock:
            self._alive += change

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        raise AssertionError("a video network is asked for windows")

    def window(self, frames: list[Frame], before: int, after: int) -> Iterator[Frame]:
        for frame in frames[before : len(frames) - after]:
            self.peak = max(self.peak, self._alive)
            yield Frame(index=frame.index, planes=frame.planes)


@pytest.mark.parametrize("frames", [24, 72])
def test_a_longer_clip_holds_no_more_frames(
    tmp_path: Path, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered_clip(tmp_path / "clip.mkv", frames=frames)
    job = tiny_job(tmp_path, picture={"scale": 1}, run={"chunk_s": 5})
    plan, packed = make_plan(prepare(job), lambda prepared, index: None)
    plan = plan.model_copy(update={"temporal": Temporal(longest=4, context=2, cuts=())})
    counting, real = Counting(), pipeline.read_frames
    monkeypatch.setattr(pipeline, "read_frames", lambda *args, **how: counting.watch(real(*args, **how)))
    done: list[Any] = []
    encoding = plan.encoding
    assert encoding is not None
    bench = Workbench(
        plan=plan,
        timeline=Timeline.from_bytes(packed),
        source=local_source(tmp_path / "clip.mkv"),
        upscaler=counting,
        scratch=tmp_path,
        decoder_threads=1,
        new_writer=lambda path: SegmentWriter(path, encoding, plan.picture, time_base=Fraction(1, 24)),
        read_back=lambda path: (plan.picture, read_segment(path, plan.picture)),
        publish=lambda name, path: done.append(name),
    )
    work = make_segments(bench, plan.shard(0), on_frames=lambda count: None, should_drop=lambda left: False)
    assert sum(segment.frames for segment in work.segments) == frames
    # A window in hand, one waiting, one being filled: of eight frames each with their context.
    assert counting.peak <= 3 * 8
