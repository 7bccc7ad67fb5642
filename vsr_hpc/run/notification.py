"""Tells whoever a job names (`run.notify`) that its run is complete, stopped or stuck: once, by one process.

A notification is claimed by an object in the run that is created once. A process that dies between the claim
and the call leaves the notification unsent: nobody is told twice.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import urllib.error
import urllib.request
from typing import Literal
from urllib.parse import urlsplit

from vsr_hpc.errors import VsrError
from vsr_hpc.run.run import Run
from vsr_hpc.version import VERSION

log = logging.getLogger(__name__)

Event = Literal["complete", "stopped", "stuck"]
_COMMAND_S = 60.0
_WEBHOOK_S = 15.0


def notify(run: Run, event: Event, text: str) -> bool:
    """Call the job's command or webhook; whether this process did so. Never raises for a failed call.

    A run is complete once. Each of its rounds of workers can end early once, stopped or stuck.
    """
    target = run.job().run.notify
    if not target:
        return False
    try:
        name = "complete" if event == "complete" else f"round.{run.round_number()}"
        if not run.store.create(f"notified/{name}", event.encode()):
            return False
        facts = _facts(run, event, text)
    except VsrError as exc:  # the store fails; the run's own errors say so, too
        log.warning("no notification event=%s why=%s", event, exc)
        return False
    if is_webhook(target):
        _post(target, facts)
    else:
        _call(target, facts)
    return True


def is_webhook(target: str) -> bool:
    return target.startswith(("http://", "https://"))


def _facts(run: Run, event: Event, text: str) -> dict[str, str]:
    job = run.job()
    frames, frames_done = 0, 0
    if run.has_plan():
        frames = run.plan.frames
        frames_done = sum(run.plan.shard(shard).frames for shard in run.finished())
    return {
        "event": event,
        "text": f"vsr: {event}: {text}",
        "run": run.uri,
        "input": job.input,
        "output": job.output,
        "frames": str(frames),
        "frames_done": str(frames_done),
    }


def _call(command: str, facts: dict[str, str]) -> None:
    """Run the command without a shell; names reach it as environment variables, never as its words."""
    variables = {f"VSR_{name.upper()}": value for name, value in facts.items()}
    words = shlex.split(command)
    try:
        done = subprocess.run(
            words,
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_COMMAND_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError, ValueError) as exc:
        log.warning("the notification's command failed command=%s why=%s", words[0], exc)
        return
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-500:]
        log.warning("the notification's command ended with %d command=%s %s", done.returncode, words[0], said)
        return
    log.info("notified event=%s command=%s", facts["event"], words[0])


def _post(url: str, facts: dict[str, str]) -> None:
    """Send the facts as JSON. An address can hold a secret, so that logs name its host only."""
    headers = {"Content-Type": "application/json", "User-Agent": f"vsr_hpc/{VERSION}"}
    request = urllib.request.Request(url, json.dumps(facts).encode(), headers)
    host = urlsplit(url).hostname
    try:
        with urllib.request.urlopen(request, timeout=_WEBHOOK_S):
            log.info("notified event=%s host=%s", facts["event"], host)
    except urllib.error.HTTPError as exc:
        log.warning("the notification's host answered %d host=%s", exc.code, host)
        exc.close()
    except (OSError, ValueError) as exc:
        log.warning("the notification's host was not reached host=%s why=%s", host, type(exc).__name__)
