"""From a model and the requests it should answer to the way of serving it: `vsr plan --serve`."""

from __future__ import annotations

from dataclasses import dataclass

from vsr_hpc.aws.instances import find_instance
from vsr_hpc.aws.prices import check_region, prices
from vsr_hpc.errors import JobError
from vsr_hpc.forecast.profiles import Profile, load_profiles
from vsr_hpc.forecast.serving_ways import Placement, Priority, Rates, Shape, Traffic, place
from vsr_hpc.forecast.worker_speed import FrameWork, pace_on
from vsr_hpc.models.cards import find_card

_SERVERLESS_OPERATIONS_PER_S = 1.5e11
"""Of a network on the three or so cores that 6 GiB come with: an assumption."""
_CODING_S_PER_PIXEL = 2.5e-8
"""Reading one still and writing the other, per output pixel."""
_REQUEST_S = 0.02
"""HTTP, routing and waiting for a batch."""
_BYTES_PER_PIXEL = 0.5
"""Of an answer as JPEG or WebP of good quality."""
_USUAL_MODEL = "realesr-animevideov3"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePlan:
    placement: Placement
    traffic: Traffic
    instance: str
    source: str
    prices: str


def plan_service(
    *,
    model: str | None,
    latency_s: float,
    payload_bytes: int,
    answer_bytes: int | None,
    requests_per_day: float,
    shape: Shape,
    priority: Priority,
    width: int,
    height: int,
    frames: int,
    budget_usd: float | None,
    instance: str,
    region: str,
    profiles: tuple[Profile, ...] | None = None,
) -> ServicePlan:
    """Weigh the ways to serve this. JobError where the instance has no GPU or no price."""
    card = find_card(model or _USUAL_MODEL)
    facts = find_instance(instance.removeprefix("ml."))
    check_region(region)
    table = prices(region)
    if not facts.gpus and not card.is_filter:
        raise JobError(
            f"--instance {instance} has no GPU, which {card.name} needs to answer in time; try g5.xlarge"
        )
    if table.per_hour(facts.name, "on-demand") is None:
        raise JobError(f"--instance {instance}: no price is known; `vsr prices refresh` asks AWS")
    pixels_out = width * height * card.scale**2
    coding_s = pixels_out * _CODING_S_PER_PIXEL
    work = FrameWork(
        pixels_in=width * height,
        pixels_out=pixels_out,
        operations=float(card.operations_per_pixel) * width * height,
        is_filter=card.is_filter,
        filter_cpu_s=pixels_out * 8e-9,
        decode_cpu_s=0.2 * coding_s,
        encode_cpu_s=0.8 * coding_s,
        check_cpu_s=0.0,
        bytes_out=pixels_out * _BYTES_PER_PIXEL,
    )
    pace = pace_on(facts, work, card, load_profiles() if profiles is None else profiles)
    cpu_s = coding_s + (
        work.filter_cpu_s if card.is_filter else work.operations / _SERVERLESS_OPERATIONS_PER_S
    )
    traffic = Traffic(
        latency_s=latency_s,
        payload_bytes=payload_bytes,
        answer_bytes=int(pixels_out * _BYTES_PER_PIXEL * frames) if answer_bytes is None else answer_bytes,
        requests_per_day=requests_per_day,
        shape=shape,
        gpu_s=_REQUEST_S + frames * pace.seconds_per_frame,
        cpu_s=_REQUEST_S + frames * cpu_s,
        memory_gib=1.5 + 200 * pixels_out / 2**30,
        budget_usd=budget_usd,
        priority=priority,
    )
    return ServicePlan(
        placement=place(traffic, Rates.of(table, facts.name)),
        traffic=traffic,
        instance=facts.name,
        source=pace.source,
        prices=table.text(),
    )
