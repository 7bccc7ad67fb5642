"""How fast one worker is on a kind of machine: measured there, or scaled from what was measured elsewhere.

A scaled pace says so and is given a wider range: published matrix rates and counted cores are no measurement.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from vsr_hpc.aws.instances import InstanceType
from vsr_hpc.forecast.profiles import Profile
from vsr_hpc.models.cards import Card, card_hash

Basis = Literal["measured", "profile", "scaled"]

DENSE_FP16_TFLOPS = {
    "T4": 65.0,
    "T4g": 65.0,
    "A10G": 70.0,
    "L4": 121.0,
    "L40S": 362.0,
    "A100": 312.0,
    "H100": 989.0,
    "H200": 989.0,
}
"""Of the GPUs that EC2 offers, as their maker publishes them, without sparsity."""

NETWORK_EFFICIENCY = 0.25
"""Of that rate in a stack of small convolutions, where no profile says better: an assumption."""
_HYPERTHREAD_GAIN = 1.2
"""What a core with two threads does over one with one, in codecs: an assumption."""
_PCIE_BYTES_PER_S = 8e9
_ENCODER_THREADS = 4.0
SPREAD: dict[Basis, tuple[float, float]] = {
    "measured": (0.85, 1.2),
    "profile": (0.75, 1.35),
    "scaled": (0.6, 1.7),
}
"""What a pace may turn out to be, as factors of seconds per frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameWork:
    """What one frame of a job costs, apart from any machine; CPU seconds as on the machine that planned."""

    pixels_in: int
    pixels_out: int
    operations: float
    """Of the network; of a filter they are part of `filter_cpu_s`."""
    is_filter: bool
    filter_cpu_s: float
    decode_cpu_s: float
    encode_cpu_s: float
    check_cpu_s: float
    bytes_out: float
    """Of the encoded output."""

    @property
    def codec_cpu_s(self) -> float:
        return self.decode_cpu_s + self.encode_cpu_s + self.check_cpu_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds per frame of one worker in steady state."""

    seconds_per_frame: float
    basis: Basis
    slowest: Literal["network", "filter", "codecs"]
    """What sets the pace: more GPU helps only against the first."""
    source: str
    """In words: where the figure comes from."""
    startup_s: float

    @property
    def spread(self) -> tuple[float, float]:
        return SPREAD[self.basis]


def pace_on(instance: InstanceType, work: FrameWork, card: Card, profiles: Iterable[Profile]) -> Pace:
    """One worker on one GPU of an instance and its share of the cores; for a filter, on all its cores."""
    if work.is_filter:
        return _filter_pace(effective_cores(instance), work)
    cores = effective_cores(instance) / max(1, instance.gpus)
    network_s, basis, source = _network(instance.gpu, work, card, tuple(profiles))
    moved_s = 3.0 * (work.pixels_in + work.pixels_out) / _PCIE_BYTES_PER_S
    codecs_s = max(work.codec_cpu_s / cores, work.encode_cpu_s / min(cores, _ENCODER_THREADS))
    device_s = network_s + moved_s
    return Pace(
        seconds_per_frame=max(device_s, codecs_s),
        basis=basis if device_s >= codecs_s else "scaled",
        slowest="network" if device_s >= codecs_s else "codecs",
        source=source if device_s >= codecs_s else f"codecs counted on {cores:.1f} cores",
        startup_s=25.0,
    )


def effective_cores(instance: InstanceType) -> float:
    """Cores as codecs feel them: two threads of a core are less than two cores."""
    return instance.cores * (_HYPERTHREAD_GAIN if instance.vcpus > instance.cores else 1.0)


def _filter_pace(cores: float, work: FrameWork) -> Pace:
    total = work.filter_cpu_s + work.codec_cpu_s
    seconds = max(total / cores, work.encode_cpu_s / min(cores, _ENCODER_THREADS), work.decode_cpu_s)
    return Pace(
        seconds_per_frame=seconds,
        basis="scaled",
        slowest="filter" if work.filter_cpu_s > work.codec_cpu_s else "codecs",
        source=f"counted on {cores:.1f} cores",
        startup_s=8.0,
    )


def _network(
    gpu: str, work: FrameWork, card: Card, profiles: tuple[Profile, ...]
) -> tuple[float, Basis, str]:
    """Seconds per frame of the network alone, how they are known, and from what, in words."""
    wanted = card_hash(card)
    ours = [
        each for each in profiles if each.card_hash == wanted and each.network_fps and each.kind == "cuda"
    ]
    here = [each for each in ours if _is_gpu(each.device, gpu)]
    if here:
        nearest = min(here, key=lambda each: abs(each.width * each.height - work.pixels_in))
        ratio = work.pixels_in / (nearest.width * nearest.height)
        return (
            ratio / _fps(nearest),
            "profile",
            f"measured on a {nearest.device} ({nearest.measured_at[:10]})",
        )
    rate = DENSE_FP16_TFLOPS[gpu] * 1e12
    for profile in ours:
        published = next((name for name in DENSE_FP16_TFLOPS if _is_gpu(profile.device, name)), None)
        if published is not None:
            share = profile.operations_per_frame * _fps(profile) / (DENSE_FP16_TFLOPS[published] * 1e12)
            text = f"scaled from a {profile.device}, which reached {share:.0%} of its published fp16 rate"
            return work.operations / (rate * share), "scaled", text
    text = f"scaled: {NETWORK_EFFICIENCY:.0%} of a {gpu}'s published fp16 rate assumed"
    return work.operations / (rate * NETWORK_EFFICIENCY), "scaled", text


def _fps(profile: Profile) -> float:
    return profile.network_fps or profile.pipeline_fps


def _is_gpu(device: str, gpu: str) -> bool:
    """Whether a device's own name ("NVIDIA A10G", "Tesla T4") is this GPU."""
    return gpu in device.replace("-", " ").split()
