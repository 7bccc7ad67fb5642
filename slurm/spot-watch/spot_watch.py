#!/usr/bin/env python3
"""Drain this Slurm node as soon as EC2 announces the end of its Spot instance.

A root service for Spot compute nodes: every 5 s it asks the instance metadata service (IMDSv2), and on a
notice runs `scontrol update nodename=… state=drain`, so that nothing new starts on a machine with two minutes
to live and a job that requeues itself goes elsewhere. An unprivileged job cannot do that. Standard library
only, Python 3.9 or newer, one file. It never ends by itself: what fails is logged once and tried again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("spot-watch")

POLL_S = 5.0
REQUEST_TIMEOUT_S = 2.0
SCONTROL_TIMEOUT_S = 15.0
TOKEN_LIFE_S = 21600
METADATA = "/latest/meta-data/"
SLURMD_OPTIONS_FILES = ("/etc/sysconfig/slurmd", "/etc/default/slurmd")


class ImdsError(Exception):
    """The metadata service did not answer, or not as documented."""


@dataclass(frozen=True)
class Notice:
    """What EC2 said: `interruption` or `rebalance`, and the time it stated."""

    kind: str
    time: str

    @property
    def reason(self) -> str:
        return f"spot {self.kind} {self.time}"


class Imds:
    """IMDSv2 with its session token: fetched when needed, again when refused."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._token: str | None = None
        self._token_ends = 0.0
        # No proxy: a metadata service is link-local, and a proxy would answer for another machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def read(self, name: str) -> str | None:
        """The metadata of that name; None where there is none (404)."""
        for attempt in (1, 2):
            try:
                return self._ask(METADATA + name, "GET", {"X-aws-ec2-metadata-token": self._fresh_token()})
            except urllib.error.HTTPError as exc:
                exc.close()
                if exc.code == 404:
                    return None
                if exc.code != 401 or attempt == 2:
                    raise ImdsError(f"{name}: HTTP {exc.code}") from exc
                self._token = None
            except (OSError, ValueError) as exc:
                raise ImdsError(f"{name}: {exc}") from exc
        return None

    def _fresh_token(self) -> str:
        if self._token is None or time.monotonic() > self._token_ends:
            life = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_LIFE_S)}
            self._token = self._ask("/latest/api/token", "PUT", life)
            self._token_ends = time.monotonic() + 0.8 * TOKEN_LIFE_S
        return self._token

    def _ask(self, path: str, method: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(self._endpoint + path, method=method, headers=headers)
        with self._opener.open(request, timeout=REQUEST_TIMEOUT_S) as answer:
            text: str = answer.read(65536).decode()
        return text


def find_notice(imds: Imds, *, with_rebalance: bool) -> Notice | None:
    """The notice in force: that this instance ends or, if asked for, that EC2 recommends leaving it."""
    text = imds.read("spot/instance-action")
    if text is not None:
        return Notice("interruption", _stated_time(text, "time"))
    text = imds.read("events/recommendations/rebalance") if with_rebalance else None
    return Notice("rebalance", _stated_time(text, "noticeTime")) if text is not None else None


def _stated_time(text: str, key: str) -> str:
    """The time in a notice. A notice that is not the JSON it should be still is a notice."""
    try:
        stated = str(json.loads(text)[key])
    except (ValueError, KeyError, TypeError):
        return "at an unknown time"
    return stated if re.fullmatch(r"[0-9T:.Z+-]{1,40}", stated) else "at an unknown time"


def drain(node: str, reason: str) -> str | None:
    """Ask slurmctld to start nothing more on the node. None when it agreed, else what it said."""
    argv = ["scontrol", "update", f"nodename={node}", "state=drain", f"reason={reason}"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=SCONTROL_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as exc:
        return str(exc)
    return (
        None
        if done.returncode == 0
        else (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
    )


class Watch:
    """One poll after another. What it remembers: the notice it acted on, and the trouble it has told of."""

    def __init__(
        self, imds: Imds, node: str, *, with_rebalance: bool = False, poll_s: float = POLL_S
    ) -> None:
        self._imds, self._node, self._with_rebalance, self._poll_s = imds, node, with_rebalance, poll_s
        self._drained: Notice | None = None
        self._trouble: str | None = None

    def poll(self) -> float:
        """Look once, act if needed; returns the seconds to wait until the next look."""
        try:
            notice = find_notice(self._imds, with_rebalance=self._with_rebalance)
        except ImdsError as exc:
            self._tell(f"metadata service: {exc}")
            return self._poll_s
        if notice is None or notice == self._drained:
            self._tell(None)
            return self._poll_s
        refusal = drain(self._node, notice.reason)
        if refusal is not None:
            self._tell(f"drain refused: {refusal}")
            return min(1.0, self._poll_s)  # two minutes are all there is
        self._tell(None)
        log.warning("node drained node=%s reason=%r", self._node, notice.reason)
        self._drained = notice
        return self._poll_s

    def _tell(self, trouble: str | None) -> None:
        if trouble != self._trouble:
            log.warning("%s", trouble or "all well again")
        self._trouble = trouble


def own_node_name() -> str:
    """This node's name in Slurm: as slurmd was told, else the short host name (ParallelCluster sets that)."""
    if os.environ.get("SLURMD_NODENAME"):
        return os.environ["SLURMD_NODENAME"]
    for each in map(Path, SLURMD_OPTIONS_FILES):
        told = (
            re.search(r"^\s*SLURMD_OPTIONS=.*?-N[ =]*([\w.-]+)", each.read_text(), re.M)
            if each.is_file()
            else None
        )
        if told:
            return told[1]
    return socket.gethostname().split(".")[0]


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Drain this Slurm node when EC2 announces the end of its Spot instance."
    )
    parser.add_argument("--node", help="its name in Slurm (default: as slurmd was told, else the host name)")
    parser.add_argument(
        "--drain-on-rebalance", action="store_true", help="drain on a rebalance recommendation too"
    )
    parser.add_argument(
        "--poll-s", type=float, default=POLL_S, help="seconds from look to look (%(default)g)"
    )
    given = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(levelname)s %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    node = given.node or own_node_name()
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254")
    watch = Watch(Imds(endpoint), node, with_rebalance=given.drain_on_rebalance, poll_s=given.poll_s)
    log.info("watching node=%s endpoint=%s poll_s=%g", node, endpoint, given.poll_s)
    while True:
        try:
            wait_s = watch.poll()
        except Exception:  # the one service that must outlive its own bugs
            log.exception("unexpected error, going on")
            wait_s = given.poll_s
        time.sleep(wait_s)


if __name__ == "__main__":
    sys.exit(main())
