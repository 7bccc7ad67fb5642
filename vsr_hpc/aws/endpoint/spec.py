"""What a SageMaker endpoint should be, in the words of endpoint.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from vsr_hpc.aws.instances import all_instances
from vsr_hpc.aws.limits import limit

S3Uri = Annotated[
    str, StringConstraints(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w!.*'()/+=@:,-]*)?$")
]
RoleArn = Annotated[str, StringConstraints(pattern=r"^arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+$")]
TopicArn = Annotated[str, StringConstraints(pattern=r"^arn:aws[a-z-]*:sns:[a-z0-9-]+:\d{12}:[\w-]+$")]
KeyArn = Annotated[str, StringConstraints(pattern=r"^arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:key/[\w-]+$")]
InstanceType = Annotated[str, StringConstraints(pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9-]+$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9](-?[a-zA-Z0-9]){0,40}$")]
Environment = dict[
    Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=1024)], str
]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Asynchronous(_Section):
    """Requests through S3, for payloads up to 1 GB and answers that take up to an hour."""

    output: S3Uri
    failure: S3Uri | None = None
    concurrency: int = Field(4, ge=1, le=1000)
    success_topic: TopicArn | None = None
    error_topic: TopicArn | None = None


class Autoscale(_Section):
    """Instances follow the work: invocations per instance and minute, or an asynchronous backlog."""

    most: int = Field(ge=1, le=1000)
    least: int = Field(1, ge=0, le=1000)
    invocations_per_instance: float = Field(60, gt=0)
    backlog_per_instance: float = Field(5, gt=0)
    in_cooldown_s: int = Field(300, ge=0, le=limit("rollout_wait_s"))
    out_cooldown_s: int = Field(60, ge=0, le=limit("rollout_wait_s"))


class Serverless(_Section):
    """No instances: paid by the millisecond, CPU only."""

    memory_mb: Literal[1024, 2048, 3072, 4096, 5120, 6144] = 6144
    concurrency: int = Field(5, ge=1, le=200)
    provisioned: int | None = Field(None, ge=1, le=200)


class Variant(_Section):
    """One of several models behind the endpoint; what it leaves out is the endpoint's own."""

    name: Name
    weight: float = Field(1.0, ge=0, le=1000)
    image: str | None = None
    model_data: S3Uri | None = None
    environment: Environment = Field(default_factory=dict)
    instance_type: InstanceType | None = None
    instance_count: int | None = Field(None, ge=1, le=1000)


class Rollout(_Section):
    """How traffic moves to new instances; the old ones stay until all did, and take it back on an alarm."""

    traffic: Literal["canary", "linear", "all-at-once"]
    percent: int = Field(10, ge=1, le=50)
    """Of the canary, or of each step."""
    bake_s: int = Field(600, ge=0, le=limit("rollout_wait_s"))
    """How long each step is watched."""
    keep_old_s: int = Field(0, ge=0, le=limit("rollout_wait_s"))

    @property
    def steps(self) -> int:
        return {"canary": 2, "linear": -(-100 // self.percent), "all-at-once": 1}[self.traffic]

    @property
    def timeout_s(self) -> int:
        """Starting the new instances, every step, and the old ones' end."""
        wanted = 3600 + self.steps * self.bake_s + self.keep_old_s
        return min(limit("rollout_s"), wanted)


class Capture(_Section):
    """Requests and answers kept in S3, to see later what the model was asked."""

    to: S3Uri
    percent: int = Field(10, ge=1, le=100)
    inputs: bool = True
    outputs: bool = True


class Alarms(_Section):
    """What wakes somebody, and what turns a rollout back."""

    p99_ms: float | None = Field(30_000, gt=0, le=3_600_000)
    """The slowest answers. An asynchronous endpoint has this alarm only where the file sets it."""
    oldest_s: float | None = Field(3600, gt=0)
    """How long the oldest request of an asynchronous endpoint may wait."""
    failures: int | None = Field(5, ge=1)
    """How many requests of an asynchronous endpoint may fail in a minute."""
    errors_percent: float | None = Field(5, ge=0, lt=100)
    no_instances: bool = True
    minutes: int = Field(3, ge=1, le=60)
    """In a row, before it counts."""
    topic: TopicArn | None = None


class Vpc(_Section):
    internet: bool = False
    """Whether the subnets reach the internet, through a NAT gateway for example."""
    subnets: tuple[Annotated[str, StringConstraints(pattern=r"^subnet-[0-9a-f]{8,17}$")], ...] = Field(
        min_length=1, max_length=16
    )
    security_groups: tuple[Annotated[str, StringConstraints(pattern=r"^sg-[0-9a-f]{8,17}$")], ...] = Field(
        min_length=1, max_length=5
    )


class Schedule(_Section):
    """When a transform job starts by itself."""

    at: str = Field(pattern=r"^(cron|rate)\([^()]+\)$")
    timezone: str = "UTC"
    role: RoleArn
    """What EventBridge Scheduler starts the job as."""


class Transform(_Section):
    """A batch transform job: all objects below a prefix, each answered beside its name plus .out."""

    input: S3Uri
    output: S3Uri
    instance_type: InstanceType
    instance_count: int = Field(1, ge=1, le=100)
    content_type: str = "image/png"
    accept: str | None = None
    payload_mb: int = Field(20, ge=1, le=limit("transform_payload_mb"))
    side_by_side: int = Field(2, ge=1, le=100)
    timeout_s: int = Field(600, ge=1, le=limit("transform_s"))
    schedule: Schedule | None = None


class Promote(_Section):
    """What the staging endpoint must reach on pictures whose large version is known."""

    staging: Name
    psnr_db: float = Field(ge=0, le=100)
    """Mean over the pictures, of luma."""
    ssim: float = Field(0.0, ge=0, le=1)
    p95_ms: float = Field(gt=0)
    scale: int = Field(2, ge=2, le=8)
    pictures: int = Field(3, ge=1, le=10_000)
    """So many at least; fewer prove nothing."""


class EndpointSpec(_Section):
    """One endpoint as a person writes it."""

    name: Name
    image: str = Field(pattern=r"^\S{1,255}$")
    role: RoleArn
    model_data: S3Uri | None = None
    multi_model: S3Uri | None = None
    """A prefix of many model archives, of which each request names one."""
    models_in_image: tuple[str, ...] = ()
    """Models whose weights lie in the image (`make image WEIGHTS=…`), so that no container downloads them."""
    environment: Environment = Field(default_factory=dict)
    instance_type: InstanceType | None = None
    instance_count: int = Field(1, ge=1, le=1000)
    startup_s: int = Field(600, ge=60, le=3600)
    asynchronous: Asynchronous | None = Field(None, alias="async")
    serverless: Serverless | None = None
    autoscale: Autoscale | None = None
    variants: tuple[Variant, ...] = Field((), max_length=10)
    rollout: Rollout | None = None
    capture: Capture | None = None
    alarms: Alarms | None = None
    vpc: Vpc | None = None
    kms_key: KeyArn | None = None
    isolated: bool = False
    """No network at all for the container."""
    transform: Transform | None = None
    promote: Promote | None = None
    tags: dict[str, str] = Field(default_factory=dict, max_length=40)

    @property
    def is_served(self) -> bool:
        """Whether there is an endpoint at all; a file for batch transform alone has a model only."""
        return self.instance_type is not None or self.serverless is not None or bool(self.variants)

    @property
    def scales_to_zero(self) -> bool:
        return self.autoscale is not None and self.autoscale.least == 0

    @property
    def account(self) -> str:
        return self.role.split(":")[4]

    @property
    def partition(self) -> str:
        return self.role.split(":")[1]


def can_encrypt_volume(instance_type: str) -> bool:
    """False for types with local disks, which are encrypted by the machine and refuse a key."""
    known = all_instances().get(instance_type.removeprefix("ml."))
    return known is None or known.nvme_gb == 0
