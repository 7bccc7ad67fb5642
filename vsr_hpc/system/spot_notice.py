"""Watches the metadata service of EC2 for the notice that a Spot instance will be reclaimed."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from vsr_hpc.system.interrupts import Reason, StopFlag

log = logging.getLogger(__name__)


_TOKEN_LIFE_S = 300
_LONGEST_PAUSE_S = 60.0
_REBALANCE = "/latest/meta-data/events/recommendations/rebalance"


@contextlib.contextmanager
def spot_watched(flag: StopFlag, *, every_s: float = 5.0) -> Iterator[None]:
    """While in the block on an EC2 instance, a Spot interruption notice sets the flag.

    A rebalance recommendation is only logged: the instance may well live on, and every shard is a
    checkpoint. Where nothing answers, the watch asks less and less often, at last once a minute, and never
    gives up: the metadata service may only be slow while the instance starts.
    """
    done = threading.Event()
    watcher = threading.Thread(target=_watch_spot, args=(flag, done, every_s), name="spot-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()


def _watch_spot(flag: StopFlag, done: threading.Event, every_s: float) -> None:
    base = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return
    token, token_until, pause_s, is_at_risk = "", 0.0, every_s, False
    while not done.is_set() and not flag.is_set():
        try:
            if time.monotonic() > token_until:
                token = _metadata(base, "/latest/api/token", method="PUT") or ""
                token_until = time.monotonic() + _TOKEN_LIFE_S / 2
            notice = _metadata(base, "/latest/meta-data/spot/instance-action", token=token)
            pause_s = every_s
            if not is_at_risk and notice is None:
                is_at_risk = _metadata(base, _REBALANCE, token=token) is not None
                if is_at_risk:
                    log.warning("EC2 recommends leaving this instance; going on, shards are checkpoints")
            if notice is not None:
                log.warning("spot notice action=%s", _action(notice))
                flag.set(Reason.SPOT_NOTICE)
                return
        except urllib.error.HTTPError as exc:
            token_until = 0.0 if exc.code == 401 else token_until
        except (OSError, http.client.HTTPException, ValueError) as exc:
            log.debug("no instance metadata: %s", exc)
            pause_s = every_s if token else min(2 * pause_s, max(every_s, _LONGEST_PAUSE_S))
        done.wait(pause_s)


def _metadata(base: str, path: str, *, token: str = "", method: str = "GET") -> str | None:
    headers = {"X-aws-ec2-metadata-token": token} if token else {}
    if method == "PUT":
        headers["X-aws-ec2-metadata-token-ttl-seconds"] = str(_TOKEN_LIFE_S)
    request = urllib.request.Request(base + path, method=method, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=2.0) as answer:
            text: bytes = answer.read(4096)
            return text.decode("utf-8", errors="replace")
    except urllib.error.HTTPError as exc:
        if exc.code == 404:
            return None
        raise


def _action(notice: str) -> str:
    try:
        return str(json.loads(notice)["action"])
    except (ValueError, KeyError, TypeError):
        return "unknown"
