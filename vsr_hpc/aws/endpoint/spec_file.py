"""Reading an endpoint.yaml, and everything in it that SageMaker would refuse, told before AWS is asked."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vsr_hpc.aws.endpoint.spec import EndpointSpec, can_encrypt_volume
from vsr_hpc.aws.instances import all_instances
from vsr_hpc.aws.limits import limit
from vsr_hpc.errors import JobError
from vsr_hpc.models.cards import Card, all_cards
from vsr_hpc.system.yaml_file import read_mapping

# Serverless: CPU comes with memory, about one core per 1.8 GB; a core does some 10^10 operations of a network
# in a second. A picture smaller than this is hardly worth an endpoint.
_OPERATIONS_PER_S_AND_GB = 5e9
_SMALL_PIXELS = 640 * 360
# For what a faulty file lacks, so that the rest of it can be judged.
_STANDING_IN = {"name": "x", "image": "x", "role": "arn:aws:iam::000000000000:role/x"}


def load_spec(path: Path) -> EndpointSpec:
    """Read an endpoint.yaml. JobError with all findings."""
    return parse_spec(read_mapping(path, "an endpoint file", "name, image and role"), str(path))


def parse_spec(document: Any, where: str) -> EndpointSpec:
    """Check a document. JobError with all findings, those of shape and those of sense."""
    if not isinstance(document, dict):
        raise JobError(f"{where}: expected `name: value` lines; jobs/endpoint-realtime.yaml is an example")
    found: list[str] = []
    try:
        spec: EndpointSpec | None = EndpointSpec.model_validate(document)
    except ValidationError as exc:
        found += [_sentence(each) for each in exc.errors()]
        spec = _without(document, exc)
    if spec is not None:
        found += list(findings(spec))
    if found or spec is None:
        raise JobError.from_findings(where, found)
    return spec


def _sentence(error: Any) -> str:
    place = ".".join(str(each) for each in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{place}: there is no such setting"
    found = "" if error["type"] == "missing" else f"; found {str(error['input'])[:60]!r}"
    return f"{place}: {error['msg'][0].lower()}{error['msg'][1:]}{found}"


def _without(document: dict[str, Any], exc: ValidationError) -> EndpointSpec | None:
    """The rest of a faulty document, so that what does not fit together in it is told in the same go."""
    rest = copy.deepcopy(document)
    for error in exc.errors():
        place: Any = rest
        *above, last = error["loc"] or ("",)
        for key in above:
            place = place[key] if _holds(place, key) else {}
        if isinstance(place, dict):
            place.pop(last, None)
    try:
        return EndpointSpec.model_validate({**_STANDING_IN, **rest})
    except ValidationError:
        return None


def _holds(place: Any, key: Any) -> bool:
    if isinstance(place, dict):
        return key in place
    return isinstance(place, list) and isinstance(key, int) and key < len(place)


# What does not fit together ---------------------------------------------------------------------------------
def findings(spec: EndpointSpec) -> Iterator[str]:
    """Everything that SageMaker would refuse, or take and not do, as sentences."""
    if not spec.is_served and spec.transform is None:
        yield "instance_type: name one (ml.g5.xlarge), or serverless, or variants, or a transform"
    if spec.model_data and spec.multi_model:
        yield "model_data and multi_model: an endpoint has one model or many, not both"
    yield from _serverless_findings(spec)
    yield from _asynchronous_findings(spec)
    yield from _variant_findings(spec)
    yield from _scaling_findings(spec)
    yield from _rollout_findings(spec)
    yield from _transform_findings(spec)
    yield from _type_findings(spec)
    yield from _download_findings(spec)
    if spec.promote and spec.promote.staging == spec.name:
        yield "promote.staging: this endpoint itself; name the one that serves the candidate now"
    if spec.alarms and spec.alarms.p99_ms is None and spec.alarms.errors_percent is None:
        yield "alarms: neither p99_ms nor errors_percent; give one, or leave alarms out"
    if spec.capture and not (spec.capture.inputs or spec.capture.outputs):
        yield "capture: neither inputs nor outputs; leave capture out"


def _type_findings(spec: EndpointSpec) -> Iterator[str]:
    types = _types(spec)
    is_written = spec.asynchronous is not None or spec.capture is not None or spec.transform is not None
    if spec.kms_key and types and not any(map(can_encrypt_volume, types)) and not is_written:
        yield (
            f"kms_key: {types[0]} encrypts its own disks in hardware and takes no key, and nothing else here "
            "is written; leave kms_key out"
        )
    if spec.multi_model and any(map(_has_gpu, types)):
        yield (
            "multi_model: SageMaker documents many models on a GPU for Triton alone; take a CPU type, or "
            "serve several cards from one container (environment: VSR_SERVE_MODELS)"
        )


def _serverless_findings(spec: EndpointSpec) -> Iterator[str]:
    if spec.serverless is None:
        return
    taken = {
        "instance_type": spec.instance_type,
        "async": spec.asynchronous,
        "multi_model": spec.multi_model,
        "variants": spec.variants,
        "capture": spec.capture,
        "vpc": spec.vpc,
        "isolated": spec.isolated,
        "rollout": spec.rollout,
        "autoscale": spec.autoscale,
    }
    for name, value in taken.items():
        if value:
            yield f"{name}: serverless endpoints cannot have it; leave it out, or name an instance_type"
    wanted = spec.serverless
    for card in _cards(spec):
        if text := too_slow_for_cpu(card.name, card.operations_per_pixel, wanted.memory_mb):
            yield text
    if wanted.provisioned is not None and wanted.provisioned > wanted.concurrency:
        yield f"serverless.provisioned={wanted.provisioned} is more than concurrency={wanted.concurrency}"


def too_slow_for_cpu(name: str, operations: int, memory_mb: int) -> str | None:
    """A sentence where a model cannot answer even a small picture in time without a GPU."""
    seconds = operations * _SMALL_PIXELS / (_OPERATIONS_PER_S_AND_GB * memory_mb / 1024)
    if seconds <= limit("serverless_s"):
        return None
    enough = memory_mb * seconds / limit("serverless_s")
    way = f"take memory_mb: {-(-int(enough) // 1024) * 1024}" if enough <= 6144 else "name an instance_type"
    return (
        f"serverless: {name} takes about {seconds:.0f} s for one picture of 640x360 on the CPU that "
        f"{memory_mb} MB come with, and SageMaker gives {limit('serverless_s')} s; {way}, or a smaller model"
    )


def _cards(spec: EndpointSpec) -> Iterator[Card]:
    """The cards of models that the container is told to serve by name."""
    named = spec.environment.get("VSR_SERVE_MODELS", "").split()
    yield from (card for card in all_cards() if card.name in named)


def _download_findings(spec: EndpointSpec) -> Iterator[str]:
    """A container that cannot reach the internet cannot fetch weights, and would never become healthy."""
    if not spec.isolated and (spec.vpc is None or spec.vpc.internet):
        return
    where = "isolated" if spec.isolated else "vpc"
    for card in _cards(spec):
        if card.weights is not None and card.weights.url and card.name not in spec.models_in_image:
            way = "" if spec.isolated else ", or set vpc.internet: true where the subnets have a NAT gateway"
            yield (
                f"{where}: the container would download {card.name} when it starts, and it cannot reach the "
                "internet; name an archive in S3 as model_data, or build the image with the weights and list "
                f"the model in models_in_image{way}"
            )


def _asynchronous_findings(spec: EndpointSpec) -> Iterator[str]:
    if spec.asynchronous is None:
        return
    if spec.variants:
        yield "variants: requests through S3 name no variant, and their backlog is counted for all; use one"
    if spec.multi_model:
        yield "multi_model: requests through S3 cannot name a model; use one model"
    if spec.capture:
        yield "capture: an asynchronous endpoint's requests and answers are in S3 already; leave capture out"


def _variant_findings(spec: EndpointSpec) -> Iterator[str]:
    names = [each.name for each in spec.variants]
    for name in sorted({each for each in names if names.count(each) > 1}):
        yield f"variants: {name} is there twice"
    if spec.variants and not sum(each.weight for each in spec.variants):
        yield "variants: all weights are 0, so nobody would be asked"
    for each in spec.variants:
        if (each.instance_type or spec.instance_type) is None and spec.serverless is None:
            yield f"variants.{each.name}: no instance_type, neither its own nor the endpoint's"
        if each.model_data and spec.multi_model:
            yield f"variants.{each.name}.model_data: multi_model already says where all models lie"


def _scaling_findings(spec: EndpointSpec) -> Iterator[str]:
    scaling = spec.autoscale
    if scaling is None:
        return
    if scaling.least > scaling.most:
        yield f"autoscale.least={scaling.least} is more than most={scaling.most}"
    if scaling.least == 0 and spec.asynchronous is None:
        yield (
            "autoscale.least=0: only an asynchronous endpoint can sleep, since a real-time request has "
            "nowhere to wait; set least: 1, or add async"
        )
    if not spec.is_served:
        yield "autoscale: there is no endpoint here to scale"


def _rollout_findings(spec: EndpointSpec) -> Iterator[str]:
    rollout = spec.rollout
    if rollout is None:
        return
    if rollout.traffic == "linear" and rollout.percent < 10:
        yield f"rollout.percent={rollout.percent}: a linear step is 10 to 50"
    if 3600 + rollout.steps * rollout.bake_s + rollout.keep_old_s > limit("rollout_s"):
        yield (
            f"rollout: {rollout.steps} steps of {rollout.bake_s} s do not fit into the 8 hours that "
            "SageMaker gives an update; bake for less, or take larger steps"
        )
    if spec.alarms is None:
        yield "rollout: without alarms nothing would turn it back; add alarms (errors_percent, p99_ms)"
    for each in _types(spec):
        if each.startswith("ml.inf1."):
            yield f"rollout: SageMaker moves {each} all at once, whatever is asked; leave rollout out"


def _transform_findings(spec: EndpointSpec) -> Iterator[str]:
    job = spec.transform
    if job is None:
        return
    if spec.multi_model:
        yield "transform: a batch transform job has one model; it cannot take multi_model"
    most = limit("transform_payload_mb")
    if job.payload_mb * job.side_by_side > most:
        yield (
            f"transform: payload_mb={job.payload_mb} times side_by_side={job.side_by_side} is over the "
            f"{most} MB that SageMaker allows; take side_by_side: {max(1, most // job.payload_mb)}"
        )
    source, target = job.input.rstrip("/") + "/", job.output.rstrip("/") + "/"
    if target.startswith(source):
        yield "transform.output lies below its input: the next job would take the answers for questions"


def _types(spec: EndpointSpec) -> tuple[str, ...]:
    own = [each.instance_type or spec.instance_type for each in spec.variants] or [spec.instance_type]
    return tuple(each for each in own if each is not None)


def _has_gpu(instance_type: str) -> bool:
    known = all_instances().get(instance_type.removeprefix("ml."))
    return known is not None and known.gpus > 0
