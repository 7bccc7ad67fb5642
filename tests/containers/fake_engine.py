#!/usr/bin/env python3
"""Stands for docker, podman or buildah: keeps one image, notes how it was called, and pushes to moto's ECR.

Standard library alone, so that it starts at once. moto has no registry behind ECR: a push is PutImage.
"""

import json
import os
import sys
import urllib.request
from pathlib import Path

folder = Path(os.environ["FAKE_ENGINE_FOLDER"])
words, typed = sys.argv[1:], "" if sys.stdin.isatty() else sys.stdin.read()
name = Path(sys.argv[0]).name
login = Path(os.environ.get("DOCKER_CONFIG", "")) / "config.json"
if name != "docker":
    login = Path(os.environ.get("REGISTRY_AUTH_FILE", ""))
call = {
    "engine": name,
    "words": words,
    "typed": typed,
    "environment": " ".join(os.environ.values()),
    "docker_host": os.environ.get("DOCKER_HOST"),
    "is_logged_in": login.is_file(),
    "login": str(login),
}
with (folder / "calls.jsonl").open("a") as notes:
    notes.write(json.dumps(call) + "\n")
if words[0] in os.environ.get("FAKE_ENGINE_FAILS", "").split():
    sys.exit(f"{words[0]}: unauthorized: {typed}")
if words[0] == "context":
    print("unix:///run/user/1000/docker.sock")
if words[0] == "inspect":
    sys.exit(0 if (folder / "images" / name / words[-1].replace(":", "_")).exists() else 1)
if words[0] == "login":
    login.write_text(typed)
if words[0] == "push":
    registry, _, rest = words[1].partition("/")
    repository, _, tag = rest.rpartition(":")
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "size": 1,
            "digest": "sha256:0",
        },
        "layers": [],
    }
    body = json.dumps({"repositoryName": repository, "imageTag": tag, "imageManifest": json.dumps(manifest)})
    region = registry.split(".")[3]
    request = urllib.request.Request(
        os.environ["AWS_ENDPOINT_URL"],
        body.encode(),
        {
            "X-Amz-Target": "AmazonEC2ContainerRegistry_V20150921.PutImage",
            "Content-Type": "application/x-amz-json-1.1",
            "Authorization": f"AWS4-HMAC-SHA256 Credential=testing/20260101/{region}/ecr/aws4_request",
        },
    )
    urllib.request.urlopen(request, timeout=30).close()
    print(f"pushed {words[1]}")
