"""The merge for somebody who reads along: what `merge` writes, from a container that needs no look back."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from threading import Event
from typing import Any

import av
import pytest

from tests.clips import numbered_clip
from tests.unit.test_mux import B_FRAMES, HDR, PQ, QUARTER_TURN, Case, case, packets, rich_source, shown
from vsr_hpc.errors import JobError, VerifyError
from vsr_hpc.media.merge.container_plan import StreamsRequest
from vsr_hpc.media.merge.live_output import Outlet
from vsr_hpc.media.merge.merge import stream_merge
from vsr_hpc.media.side_data import read_side_data

WITHOUT_FONT = StreamsRequest(drop=("attachment",))


def live(made: Case, output: Path, request: StreamsRequest | None = None) -> list[bytes]:
    """The pieces, which `output` holds then."""
    pieces = list(stream_merge(made.parts, made.request(request), output))
    output.write_bytes(b"".join(pieces))
    return pieces


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_the_packets_and_their_times_are_those_of_the_file(suffix: str, tmp_path: Path) -> None:
    made = case(rich_source(tmp_path / "in.mkv", tmp_path), cuts=(5, 9), params=B_FRAMES)
    request = StreamsRequest(drop=("attachment", "disposition")) if suffix != ".mkv" else None
    made.merge(tmp_path / f"file{suffix}", request)
    live(made, tmp_path / f"live{suffix}", request)
    for stream in (0, 1, 3):
        assert packets(tmp_path / f"live{suffix}", stream) == packets(tmp_path / f"file{suffix}", stream)
    captions = [packets(tmp_path / f"{name}{suffix}", 2) for name in ("live", "file")]
    live_texts, file_texts = ([each for each in found if len(each[1]) > 2] for found in captions)
    assert live_texts == file_texts
    assert list(shown(tmp_path / f"live{suffix}")) == list(shown(tmp_path / f"file{suffix}"))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_tags_languages_dispositions_and_chapters_are_those_of_the_file(suffix: str, tmp_path: Path) -> None:
    made = case(rich_source(tmp_path / "in.mkv", tmp_path), cuts=(5, 9))
    request = None if suffix == ".mkv" else WITHOUT_FONT
    made.merge(tmp_path / f"file{suffix}", request)
    live(made, tmp_path / f"live{suffix}", request)
    with av.open(str(tmp_path / f"file{suffix}")) as file, av.open(str(tmp_path / f"live{suffix}")) as piped:
        assert piped.chapters() == file.chapters()
        assert piped.metadata["title"] == "A film" and piped.metadata["MY_TAG"] == "kept"
        told = [[(s.type, s.language, int(s.disposition)) for s in each.streams] for each in (piped, file)]
        assert told[0] == told[1]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_uneven_times_and_the_first_sound_stay_where_they_were(suffix: str, tmp_path: Path) -> None:
    pts = [n * 10 for n in range(8)] + [80 + n * 1000 for n in range(8)]
    source = numbered_clip(
        tmp_path / "in.mkv", frames=16, codec="ffv1", pts=pts, time_base=Fraction(1, 1000), audio=True
    )
    made = case(source, cuts=(3, 11), params=B_FRAMES)
    made.merge(tmp_path / f"file{suffix}")
    live(made, tmp_path / f"live{suffix}")
    assert list(shown(tmp_path / f"live{suffix}")) == [(Fraction(t, 1000), n) for n, t in enumerate(pts)]
    assert packets(tmp_path / f"live{suffix}", 1) == packets(tmp_path / f"file{suffix}", 1)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_aspect_rotation_and_hdr10_are_told(suffix: str, tmp_path: Path) -> None:
    source = numbered_clip(tmp_path / "in.mkv", frames=6, codec="ffv1", pix_fmt="yuv420p10le")
    shape: dict[str, Any] = {"colour": PQ, "mastering": HDR, "light_level": (1000, 400)}
    shape |= {"sample_aspect": Fraction(4, 3), "display_matrix": QUARTER_TURN}
    live(case(source, "h265", cuts=(3,), **shape), tmp_path / f"live{suffix}")
    with av.open(str(tmp_path / f"live{suffix}")) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        assert stream.sample_aspect_ratio == Fraction(4, 3)
        assert "title" not in stream.metadata
    side = read_side_data(frame)
    assert abs(frame.rotation) == 90
    assert (side.mastering, side.light_level) == (HDR, (1000, 400))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_pieces_come_while_later_segments_are_still_in_the_making(suffix: str, tmp_path: Path) -> None:
    """The last segment is there only when somebody has seen a piece: nothing else lets this go on."""
    source = numbered_clip(tmp_path / "in.mkv", frames=96)
    made = case(source, cuts=(24, 48, 72))
    seen = Event()
    last = made.parts[-1]

    def fetch() -> Path:
        assert seen.wait(60)
        return last.fetch()

    late = replace(made, parts=(*made.parts[:-1], replace(last, fetch=fetch)))
    pieces = stream_merge(late.parts, late.request(), tmp_path / f"live{suffix}")
    first = next(pieces)
    seen.set()
    (tmp_path / f"live{suffix}").write_bytes(first + b"".join(pieces))
    assert [number for _, number in shown(tmp_path / f"live{suffix}")] == list(range(96))


def test_a_segment_that_is_not_its_receipt_stops_the_pieces(tmp_path: Path) -> None:
    made = case(numbered_clip(tmp_path / "in.mkv", frames=12), cuts=(6,))
    broken = replace(made, parts=(made.parts[0], replace(made.parts[1], sha256="0" * 64)))
    with pytest.raises(VerifyError, match="sha256"):
        live(broken, tmp_path / "out.mp4")


def test_what_the_container_cannot_hold_is_refused_before_the_first_piece(tmp_path: Path) -> None:
    made = case(rich_source(tmp_path / "in.mkv", tmp_path))
    with pytest.raises(JobError, match="attachment"):
        live(made, tmp_path / "out.mp4")


def test_an_outlet_gives_what_it_has_once() -> None:
    outlet = Outlet()
    assert outlet.take({}) == b""
    assert outlet.write(b"abc") == 3
    outlet.write(b"d")
    assert outlet.take({}) == b"abcd"
    assert outlet.take({}) == b""
    outlet.write(b"e")
    assert outlet.rest({}) == b"e"
