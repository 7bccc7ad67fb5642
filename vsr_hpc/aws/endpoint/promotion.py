"""The gate from staging to production: measure where it is served, then register and roll out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vsr_hpc.aws.account import WaitLimits
from vsr_hpc.aws.calls import Clients
from vsr_hpc.aws.calls import check as check_calls
from vsr_hpc.aws.endpoint import endpoint as endpoints
from vsr_hpc.aws.endpoint import inventory as account
from vsr_hpc.aws.endpoint.requests import Request, model_request, tags
from vsr_hpc.aws.endpoint.spec import EndpointSpec, Promote
from vsr_hpc.aws.errors import explained
from vsr_hpc.aws.steps import Call, Step
from vsr_hpc.errors import BackendError, JobError, VerifyError

log = logging.getLogger(__name__)


Tell = Callable[[str], None]
_MODEL = "vsr-model"
_TYPES = ("image/png", "image/jpeg", "image/webp", "video/mp4", "video/x-matroska", "application/json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the candidate did to pictures whose truth is known; latency is the caller's, once warm."""

    staging: str
    pictures: int
    psnr_db: float
    ssim: float
    p50_ms: float
    p95_ms: float

    def __str__(self) -> str:
        return (
            f"{self.staging}: {self.pictures} pictures, PSNR {self.psnr_db:.2f} dB, SSIM {self.ssim:.4f}, "
            f"p50 {self.p50_ms:.0f} ms, p95 {self.p95_ms:.0f} ms"
        )


def check(spec: EndpointSpec, measured: Measured) -> None:
    """VerifyError with every number that is not good enough."""
    gate = promotion_settings(spec)
    found = []
    if measured.psnr_db < gate.psnr_db:
        found.append(f"PSNR {measured.psnr_db:.2f} dB, at least {gate.psnr_db:g} wanted")
    if measured.ssim < gate.ssim:
        found.append(f"SSIM {measured.ssim:.4f}, at least {gate.ssim:g} wanted")
    if measured.p95_ms > gate.p95_ms:
        found.append(f"p95 {measured.p95_ms:.0f} ms, at most {gate.p95_ms:g} wanted")
    if found:
        raise VerifyError(
            f"{spec.name} is not promoted, {gate.staging} is not good enough on "
            f"{measured.pictures} pictures: {'; '.join(found)}"
        )


def plan(spec: EndpointSpec, measured: Measured) -> tuple[Step, ...]:
    """What promoting would change."""
    clients = Clients()
    with explained(spec.name):
        steps = _registry_steps(clients, spec, measured)
    check_calls(steps, spec.name)
    return (*steps, *endpoints.plan(spec))


def promote(
    spec: EndpointSpec, measured: Measured, tell: Tell, *, patience: WaitLimits | None = None
) -> tuple[Step, ...]:
    """Register the approved version, then roll it out; a version that is rolled back is rejected again."""
    check(spec, measured)
    clients = Clients()
    with explained(spec.name):
        steps = _registry_steps(clients, spec, measured)
        check_calls((*steps, *endpoints.plan(spec)), spec.name)
        for step in steps:
            tell(str(step))
            for call in step.calls:
                clients.make(call)
        version = next(account.packages(clients, spec.name))
    try:
        return (*steps, *endpoints.apply(spec, patience=patience, tell=tell))
    except BackendError as exc:
        with explained(spec.name):
            clients.of("sagemaker").update_model_package(
                ModelPackageArn=version,
                ModelApprovalStatus="Rejected",
                ApprovalDescription=f"rollout: {exc}"[:1024],
            )
        tell(f"update registry {version}: rejected")
        raise


# Candidate and registry -------------------------------------------------------------------------------------
def promotion_settings(spec: EndpointSpec) -> Promote:
    if spec.promote is None:
        raise JobError(
            f"{spec.name}: no promote in its file; it names the staging endpoint and the thresholds"
        )
    return spec.promote


def check_candidate(spec: EndpointSpec, gate: Promote) -> None:
    """What is measured must be what is rolled out: the same image, weights and models."""
    clients = Clients()
    with explained(gate.staging):
        there = account.describe(clients, gate.staging)
        if there is None:
            raise JobError(f"there is no endpoint {gate.staging}; deploy the candidate there first")
        sagemaker = clients.of("sagemaker")
        config = sagemaker.describe_endpoint_config(EndpointConfigName=there["EndpointConfigName"])
        model = config["ProductionVariants"][0]["ModelName"]
        container = sagemaker.describe_model(ModelName=model)["PrimaryContainer"]
    staged, wanted = _identity(container), _identity(model_request(spec)["PrimaryContainer"])
    found = [f"{key} {staged[key]} there, {wanted[key]} here" for key in wanted if staged[key] != wanted[key]]
    if found:
        raise JobError(f"{gate.staging} does not serve what {spec.name} would: {'; '.join(found)}")


def _identity(container: Request) -> dict[str, Any]:
    environment = container.get("Environment", {})
    return {
        "image": container.get("Image"),
        "model_data": container.get("ModelDataUrl"),
        "models": environment.get("VSR_SERVE_MODELS"),
    }


def _registry_steps(clients: Clients, spec: EndpointSpec, measured: Measured) -> tuple[Step, ...]:
    group, steps = account.group_name(spec.name), []
    known = list(account.packages(clients, spec.name))
    if not known:
        request = {
            "ModelPackageGroupName": group,
            "ModelPackageGroupDescription": f"Versions that endpoint {spec.name} was allowed to serve",
            "Tags": tags(spec),
        }
        call = Call(service="sagemaker", operation="create_model_package_group", parameters=request)
        steps.append(Step(action="create", kind="registry", name=group, calls=(call,)))
    if not _is_registered(clients, spec, known):
        call = Call(
            service="sagemaker", operation="create_model_package", parameters=_version(spec, group, measured)
        )
        detail = f"approved with PSNR {measured.psnr_db:.2f} dB, SSIM {measured.ssim:.4f}"
        steps.append(
            Step(action="create", kind="registry", name=f"{group} version", detail=detail, calls=(call,))
        )
    return tuple(steps)


def _is_registered(clients: Clients, spec: EndpointSpec, known: list[str]) -> bool:
    """Whether the newest version is this very model, and approved."""
    newest = next((each for each in known if ":model-package/" in each), None)
    if newest is None:
        return False
    found = clients.of("sagemaker").describe_model_package(ModelPackageName=newest)
    told = found.get("CustomerMetadataProperties") or {}
    is_same = told.get(_MODEL) == model_request(spec)["ModelName"]
    return bool(is_same and found.get("ModelApprovalStatus") == "Approved")


def _version(spec: EndpointSpec, group: str, measured: Measured) -> Request:
    model = model_request(spec)
    kept = ("Image", "ModelDataUrl", "Environment")
    container = {key: model["PrimaryContainer"][key] for key in kept if key in model["PrimaryContainer"]}
    inference: Request = {
        "Containers": [container],
        "SupportedContentTypes": list(_TYPES),
        "SupportedResponseMIMETypes": list(_TYPES),
    }
    if spec.instance_type:
        inference["SupportedRealtimeInferenceInstanceTypes"] = [spec.instance_type]
    figures = {
        "psnr-db": measured.psnr_db,
        "ssim": measured.ssim,
        "p50-ms": measured.p50_ms,
        "p95-ms": measured.p95_ms,
        "pictures": measured.pictures,
        "staging": measured.staging,
    }
    return {
        "ModelPackageGroupName": group,
        "ModelPackageDescription": str(measured)[:1024],
        "InferenceSpecification": inference,
        "ModelApprovalStatus": "Approved",
        "CustomerMetadataProperties": {
            _MODEL: model["ModelName"],
            **{key: str(value) for key, value in figures.items()},
        },
    }
