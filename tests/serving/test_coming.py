"""What the device waits for: pictures that are on their way, and nothing else."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.serving.inside import loaded
from tests.serving.samples import clip, still
from vsr_hpc.serving.admission import OpenRequest
from vsr_hpc.serving.bodies import join_recordio
from vsr_hpc.serving.deadline import RequestDeadline
from vsr_hpc.serving.limits import Limits
from vsr_hpc.serving.request import parse_content_type
from vsr_hpc.serving.service import RequestItem
from vsr_hpc.serving.stills import Answer

PATIENT = Limits(deadline_s=90)


def asked(body: bytes, kind: str, *pairs: tuple[str, object]) -> RequestItem:
    return RequestItem(body=body, declared=parse_content_type(kind), accept="", pairs=pairs)


class Watched(OpenRequest):
    """Notes what it was counted as."""

    @property
    def ahead(self) -> int:
        return self.counted[-1]

    @ahead.setter
    def ahead(self, count: int) -> None:
        self.__dict__.setdefault("counted", []).append(count)

    @property
    def counted(self) -> list[int]:
        found: list[int] = self.__dict__["counted"]
        return found


def test_records_count_while_they_are_coming_and_never_less_than_none(tmp_path: Path) -> None:
    """Also those that never reach the device."""
    records = [still(), b"junk", still()[:60]] * 12

    async def live() -> None:
        async with loaded(tmp_path, models=("nearest",), limits=PATIENT) as service:
            call = Watched("one", RequestDeadline(90))
            made = await service.answer(asked(join_recordio(records), "application/x-recordio"), call, {})
            assert isinstance(made, Answer)
            assert dict(made.facts)["records"] == "36"
            assert call.counted[-1] == 0
            assert min(call.counted) == 0
            assert max(call.counted) > 1

    asyncio.run(live())


def test_a_clip_does_not_wait_for_the_one_behind_it(tmp_path: Path) -> None:
    """Its last two frames are no whole batch, and would wait an hour for the other clip's."""
    body = asked(clip(), "video/mp4", ("preset", "ultrafast"))

    async def live() -> None:
        async with loaded(
            tmp_path, models=("nearest",), limits=PATIENT, batch=5, batch_wait_s=3600
        ) as service:

            async def one() -> None:
                with service.gate.entered("one") as call:
                    assert isinstance(await service.answer(body, call, {}), Answer)

            await asyncio.gather(one(), one())

    asyncio.run(live())
