"""A forecast and a comparison of services as aligned lines of text, and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vsr_hpc.forecast.forecast import Forecast
from vsr_hpc.forecast.job_ways import Option, Range, RefusedPlace, round_option
from vsr_hpc.forecast.serving_ways import Offer, Placement, Traffic
from vsr_hpc.wording import duration, money, plural, size


def forecast_lines(found: Forecast) -> Iterator[str]:
    """The work, its time and cost in each place, and where to keep the run."""
    plan = found.plan
    clip, out = plan.clip.picture, plan.picture
    length = f", {plan.frames / float(plan.clip.frame_rate):.1f} s" if plan.clip.frame_rate else ""
    yield (
        f"input    {plan.clip.uri}  {clip.width}x{clip.height} {clip.pixel.name}  "
        f"{plural(plan.frames, 'frame')}{length}"
    )
    encoder = plan.encoding.encoder if plan.encoding else "images"
    yield f"output   {plan.job.output}  {out.width}x{out.height} {out.pixel.name}  {encoder}"
    yield f"model    {plan.card.name}"
    yield f"work     {plural(plan.shard_count, 'shard')} with {plural(plan.chunk_count, 'chunk')} in all"
    yield f"pace     {_pace(found)}"
    scratch, made = size(plan.scratch_bytes), size(found.bytes_out)
    yield f"disk     needs {scratch} for segments and output; the output is about {made}"
    yield f"memory   needs about {size(found.memory_bytes)} for each worker here"
    for note in found.notes:
        yield f"note     {note}"
    yield ""
    yield from table(found)
    yield ""
    yield from _small_print(found)


def table(found: Forecast) -> Iterator[str]:
    """A table with one row for each place."""
    rows = [("where", "with", "time", "cost")]
    for each in (found.here, *found.elsewhere):
        if isinstance(each, RefusedPlace):
            rows.append((each.label, f"no: {each.reason}", "", ""))
        elif each.usd is None:
            rows.append((each.label, plural(each.workers, "worker"), _time(each), "-"))
        else:
            kind = f"ml.{each.instance}" if each.where == "sagemaker-async" else each.instance
            rows.append((each.label, f"{each.workers} x {kind}", _time(each), _cost(each)))
    kept = [row for row in rows if not row[1].startswith("no: ")]
    widths = [max(len(row[column]) for row in (kept if column else rows)) for column in range(3)]
    for label, on, took, cost in rows:
        padded = f"{label:<{widths[0]}}  {on:<{widths[1]}}  {took:<{widths[2]}}  {cost}"
        yield padded.rstrip()


def _pace(found: Forecast) -> str:
    sample, here = found.sample, found.here
    if sample is None or isinstance(here, RefusedPlace):
        return "not measured, because torch is not installed here; it is estimated from profiles and rates"
    whole = 1 / sample.seconds_per_frame(workers=here.workers, cores=found.cores)
    slowest = {"device": "the model", "encode": "encoding", "decode": "decoding", "check": "checking"}
    share = sample.wall_s[sample.slowest] / sum(sample.wall_s.values())
    how = "a part of a frame" if sample.is_cropped else plural(sample.frames, "frame")
    text = (
        f"{whole:.2f} frames/s here, measured on {how}; {share:.0%} of the time is {slowest[sample.slowest]}"
    )
    if found.busy_cores > 0.5:
        busy = max(1, round(min(found.busy_cores, found.cores)))
        text += (
            f"\n         other processes use {busy} of {found.cores} cores now; times are for an idle machine"
        )
    return text


def _time(each: Option) -> str:
    mark = "~" if each.basis == "scaled" else ""
    return (
        f"{mark}{duration(each.seconds.mid)} ({duration(each.seconds.low)} to {duration(each.seconds.high)})"
    )


def _cost(each: Option) -> str:
    mark = "~" if each.basis == "scaled" else ""
    usd = each.cost
    return f"{mark}{money(usd.mid)} ({money(usd.low)} to {money(usd.high)})"


def _small_print(found: Forecast) -> Iterator[str]:
    if found.choice is not None:
        yield f"advice   {found.choice.text}"
    some = next((each for each in found.elsewhere if isinstance(each, Option)), None)
    if some is not None:
        parts = [f"~ {some.source}"] if some.basis == "scaled" else [some.source]
        counted = "the start of nodes, idle ends and Spot losses"
        if some.usd is None:
            counted = "the start of workers, but no time in the queue"
        yield f"basis    {'; '.join(parts)}; including {counted}"
        if some.slowest == "codecs":
            yield "         codecs are slower than the model there: more cores help, a faster GPU does not"
    if any(isinstance(each, Option) and each.usd is not None for each in found.elsewhere):
        yield f"prices   {found.prices}"


def forecast_document(found: Forecast) -> dict[str, Any]:
    """The forecast as plain values for JSON."""
    return {
        "here": _document(found.here),
        "elsewhere": [_document(each) for each in found.elsewhere],
        "choice": None
        if found.choice is None
        else {
            "option": None if found.choice.option is None else _document(found.choice.option),
            "is_certain": found.choice.is_certain,
            "text": found.choice.text,
        },
        "sample": None if found.sample is None else found.sample.model_dump(mode="json"),
        "bytes_out": found.bytes_out,
        "memory_bytes": found.memory_bytes,
        "cores": found.cores,
        "busy_cores": found.busy_cores,
        "region": found.region,
        "prices": found.prices,
    }  # fmt: skip


def _document(each: Option | RefusedPlace) -> dict[str, Any]:
    if isinstance(each, RefusedPlace):
        return {"where": each.where, "label": each.label, "refused": each.reason}
    short = round_option(each)
    return {
        "where": short.where, "label": short.label, "purchase": short.purchase, "instance": short.instance,
        "workers": short.workers, "shards": short.shards, "seconds": _three(short.seconds),
        "usd": None if short.usd is None else _three(short.usd), "node_hours": short.node_hours,
        "interruptions": short.interruptions, "basis": short.basis, "slowest": short.slowest,
        "source": short.source,
    }  # fmt: skip


def _three(values: Range) -> dict[str, float]:
    return {"low": values.low, "mid": values.mid, "high": values.high}


# Serving ---------------------------------------------------------------------------------------------------
def placement_lines(
    found: Placement, traffic: Traffic, instance: str, source: str, prices: str
) -> Iterator[str]:
    """The recommendation, then every way with its monthly cost and reason."""
    yield (
        f"asked    {traffic.payload_bytes / 1e6:.1f} MB in, {traffic.answer_bytes / 1e6:.1f} MB out, within "
        f"{_short(traffic.latency_s)}, "
        f"{traffic.requests_per_day:,.0f} a day, {traffic.shape}"
    )
    on_cpu = f"{_short(traffic.cpu_s)} on serverless's CPU"
    yield f"work     {_short(traffic.gpu_s)} on {instance}, {on_cpu} ({source})"
    if found.advice is None:
        yield f"advice   {found.reason}"
    else:
        best = next(each for each in found.offers if each.way == found.advice)
        yield f"advice   {best.label}: {found.reason}"
    yield ""
    width = max(len(each.label) for each in found.offers)
    for each in found.offers:
        yield f"{each.label:<{width}}  {_month(each):>12}  {each.reason}"
    yield ""
    yield f"prices   {prices}; a month of 730 hours"


def _short(seconds: float) -> str:
    return duration(seconds) if seconds >= 10 else f"{seconds:.2g} s"


def _month(each: Offer) -> str:
    if each.usd_per_month is None:
        return "no"
    text = f"${each.usd_per_month:,.0f}" if each.usd_per_month >= 10 else money(each.usd_per_month)
    return text if each.fits else f"no ({text})"


def placement_document(found: Placement, traffic: Traffic, instance: str) -> dict[str, Any]:
    return {
        "advice": found.advice,
        "reason": found.reason,
        "instance": instance,
        "gpu_s": traffic.gpu_s,
        "cpu_s": traffic.cpu_s,
        "offers": [
            {
                "way": each.way, "fits": each.fits, "reason": each.reason,
                "usd_per_month": None if each.usd_per_month is None else round(each.usd_per_month, 2),
                "instances": round(each.instances, 3),
            }
            for each in found.offers
        ],
    }  # fmt: skip
