"""Container images to ECR: a local engine pushes, boto3 gives it a password, which is never logged.

The engine keeps its login in a folder that only this user may read and that is gone afterwards; its usual
configuration never holds it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from vsr_hpc.aws.account import client
from vsr_hpc.aws.errors import explained
from vsr_hpc.errors import BackendError, JobError

log = logging.getLogger(__name__)


EngineName = Literal["docker", "podman", "buildah"]
Say = Callable[[str], None]

_REPOSITORY = re.compile(r"(?:[a-z0-9]+(?:[._-][a-z0-9]+)*/)*[a-z0-9]+(?:[._-][a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_LOOK_S = 60
_PUSH_S = 4 * 3600
_PERMISSIONS = "a push needs ecr:GetAuthorizationToken, and the right to upload to the repository"


@dataclass(frozen=True, slots=True, kw_only=True)
class PushTarget:
    """Where an image goes in this account's registry."""

    repository: str
    tag: str
    region: str | None = None
    """None takes the region that the shell names."""

    def __post_init__(self) -> None:
        wrong = []
        if not 2 <= len(self.repository) <= 256 or not _REPOSITORY.fullmatch(self.repository):
            wrong.append(
                f"repository {self.repository!r}: lower case letters, digits, . _ - and / between them"
            )
        if not _TAG.fullmatch(self.tag):
            wrong.append(f"tag {self.tag!r}: letters, digits, . _ -, at most 128")
        if wrong:
            raise JobError.from_findings("vsr image push", wrong)


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A registry and how to get in for twelve hours. Never shown: its text has no password."""

    registry: str
    user: str
    password: str

    def __repr__(self) -> str:
        return f"Login(registry={self.registry!r}, user={self.user!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What lies in the registry now. `uri` names it for good, `tagged` until the tag is moved."""

    tagged: str
    uri: str
    digest: str
    size_bytes: int | None
    engine: EngineName


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A program that keeps images and can push them."""

    name: EngineName
    path: str

    def has(self, image: str) -> bool:
        words = ("inspect", "--type", "image", image)
        return self._run(words, timeout_s=_LOOK_S).returncode == 0

    def push(self, image: str, target: str, login: Login) -> None:
        """Push the image by the login's password alone; BackendError where the registry or network fails."""
        with tempfile.TemporaryDirectory(prefix="vsr-login-") as folder:  # mode 0700
            environment = self._surroundings(Path(folder))
            words = ("login", "--username", login.user, "--password-stdin", login.registry)
            self._must(words, environment, f"{login.registry} refused the login", login.password)
            self._must(("tag", image, target), environment, f"{image} could not be tagged")
            self._must(("push", target), environment, f"{target} could not be pushed", is_shown=True)

    def _surroundings(self, folder: Path) -> dict[str, str]:
        """The environment in which logins are written to `folder` alone."""
        environment = {**os.environ, "REGISTRY_AUTH_FILE": str(folder / "auth.json")}
        if self.name == "docker":
            # Its configuration also says where the daemon is; that is asked before it is set aside.
            words = ("context", "inspect", "--format", "{{.Endpoints.docker.Host}}")
            asked = self._run(words, timeout_s=_LOOK_S)
            if asked.returncode == 0 and asked.stdout.strip():
                environment.setdefault("DOCKER_HOST", asked.stdout.strip())
            environment["DOCKER_CONFIG"] = str(folder)
        return environment

    def _must(
        self,
        words: tuple[str, ...],
        environment: Mapping[str, str],
        what: str,
        typed: str = "",
        *,
        is_shown: bool = False,
    ) -> None:
        done = self._run(words, environment, typed, timeout_s=_PUSH_S, is_shown=is_shown)
        if done.returncode != 0:
            said = " ".join((done.stderr or done.stdout or "").split())[-500:]
            if typed:
                said = said.replace(typed, "***")
            raise BackendError(
                f"{what} ({self.name} ended with {done.returncode}){': ' if said else ''}{said}"
            )

    def _run(
        self,
        words: tuple[str, ...],
        environment: Mapping[str, str] | None = None,
        typed: str = "",
        *,
        timeout_s: float,
        is_shown: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """`is_shown` lets the engine's progress go to our stderr; otherwise it is kept for the error."""
        try:
            return subprocess.run(
                [self.path, *words], input=typed, env=environment, text=True, timeout=timeout_s, check=False,
                stdout=2 if is_shown else subprocess.PIPE, stderr=None if is_shown else subprocess.PIPE,
            )  # fmt: skip
        except subprocess.TimeoutExpired as exc:
            raise BackendError(f"{self.name} {words[0]} did not end within {timeout_s:.0f} s") from exc


def find_engine(wanted: EngineName | None, image: str) -> Engine:
    """The engine that holds the image; JobError names what was looked for where none does."""
    engines = [
        Engine(name=name, path=path)
        for name in get_args(EngineName)
        if wanted in (None, name) and (path := shutil.which(name)) is not None
    ]
    if not engines:
        names = wanted or "docker, podman or buildah"
        raise JobError(
            f"{names}: not found on this machine; containers/install.sh installs podman and buildah"
        )
    for engine in engines:
        if engine.has(image):
            return engine
    looked = ", ".join(engine.name for engine in engines)
    raise JobError(
        f"there is no image {image} here (asked {looked}); build it with `make image`, or name another"
    )


def push(
    image: str,
    target: PushTarget,
    say: Say,
    *,
    engine: EngineName | None = None,
    makes_repository: bool = True,
) -> Pushed:
    """Push a local image to ECR in this account, into a repository that is made where it is missing."""
    found = find_engine(engine, image)
    what = f"push {image} to ECR"
    with explained(what, hint=_PERMISSIONS):
        ecr = client("ecr", target.region)
        _ensure_repository(ecr, target.repository, say, makes_it=makes_repository)
        login = read_login(ecr.get_authorization_token())
    tagged = f"{login.registry}/{target.repository}:{target.tag}"
    say(f"{found.name} pushes {image} to {tagged}")
    found.push(image, tagged, login)
    with explained(what, hint=_PERMISSIONS):
        details = ecr.describe_images(
            repositoryName=target.repository, imageIds=[{"imageTag": target.tag}]
        )["imageDetails"][0]  # fmt: skip
    return Pushed(
        tagged=tagged,
        uri=f"{login.registry}/{target.repository}@{details['imageDigest']}",
        digest=details["imageDigest"],
        size_bytes=details.get("imageSizeInBytes"),
        engine=found.name,
    )


def read_login(answer: Mapping[str, Any]) -> Login:
    """From GetAuthorizationToken's answer; its text is never part of an error."""
    try:
        granted = answer["authorizationData"][0]
        user, separator, password = base64.b64decode(granted["authorizationToken"]).decode().partition(":")
        registry = str(granted["proxyEndpoint"]).removeprefix("https://").rstrip("/")
    except (KeyError, IndexError, binascii.Error, UnicodeDecodeError):
        separator = ""
    if not separator:
        raise BackendError("ECR's answer to GetAuthorizationToken has no login in it") from None
    return Login(registry=registry, user=user, password=password)


def _ensure_repository(ecr: Any, name: str, say: Say, *, makes_it: bool) -> None:
    try:
        ecr.describe_repositories(repositoryNames=[name])
        return
    except ecr.exceptions.RepositoryNotFoundException:
        if not makes_it:
            raise JobError(f"ECR has no repository {name}; leave --no-create out to have it made") from None
    with contextlib.suppress(ecr.exceptions.RepositoryAlreadyExistsException):  # somebody else was faster
        ecr.create_repository(
            repositoryName=name,
            imageScanningConfiguration={"scanOnPush": True},
            encryptionConfiguration={"encryptionType": "AES256"},
            tags=[{"Key": "vsr", "Value": name}],
        )
        say(f"made the repository {name}; ECR looks through each image for known holes")
