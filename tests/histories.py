"""Random faults while several processes work on one run: the output must be the newest plan's, byte for byte.

    python -m tests.histories --histories 200 --seed 1     prints one line for each history, then two tables

A history begins a run in a folder, on a small disk or on moto's S3, and breaks things while commands are at
work: it kills and freezes processes, starts over with other settings, replaces the source, damages segments,
fills the disk, lets the store fail. Then it mends what only a person can mend, and calls `vsr resume`. At no
moment may the output be anything but the whole output of one of the plans. Each command must succeed, or
say in one sentence why not; the last one must finish the newest plan. The exit code is 1 where a history
shows anything else. The same seed draws the same faults, though processes never meet in the same order.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from tests.clips import number_in, numbered_clip
from tests.forked import Command, Stumble
from tests.history_places import FolderPlace, Place, S3Place, make_bucket, small_disk
from tests.moto_server import Moto, moto_server
from tests.tools import find_tool
from vsr_hpc.media.clip.probe import content_hash
from vsr_hpc.media.source import local_source
from vsr_hpc.system.environment import set_thread_policy

LEASE_S = 3.0
LIMIT_S = 120.0
"""How long a history waits for anything before it says that the thing does not happen."""
FRAMES, SIZE = 36, (64, 48)
RUN = ".vsr/out.mkv"

Kind = Literal["folder", "disk", "s3"]


class Broken(AssertionError):
    """A history has shown what must not be."""


# What is made


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a person asks for; two of these differ in every frame, and have the same size and length."""

    model: str
    first: int = 0
    frames: int = FRAMES

    def job(self, place: Place, *, workers: int, overwrite: bool) -> dict[str, object]:
        return {
            "input": place.uri("clip.mkv"),
            "output": place.uri("out.mkv"),
            "model": self.model,
            "picture": {"scale": 2},
            "video": {"preset": "ultrafast", "threads": 1},
            "range": {"from": f"{self.first}f", "frames": self.frames},
            "overwrite": overwrite,
            "run": {
                "chunk_s": 0.25,
                "shard_s": 0.001,
                "threads": 1,
                "workers": workers,
                "lease_window_s": LEASE_S,
            },
        }

    def options(self) -> tuple[str, ...]:
        """The same as options of `vsr upscale`."""
        return (
            "--model", self.model, "--scale", "2", "--preset", "ultrafast", "--encoder-threads", "1",
            "--from", f"{self.first}f", "--frames", str(self.frames), "--chunk-s", "0.25", "--threads", "1",
        )  # fmt: skip


SETTINGS = (
    Settings(model="bicubic"),
    Settings(model="nearest"),
    Settings(model="bicubic", first=6, frames=24),
)
SOURCES = (0, 1000)
"""The number in the first frame of each source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What an undisturbed run makes."""

    content: bytes
    pictures: tuple[str, ...]
    """The checksum of each decoded frame, by FFmpeg's command line; none where that is not installed."""


@dataclass(slots=True)
class Bench:
    """What all histories of one call share: the sources, and what undisturbed runs make of them."""

    folder: Path
    clips: dict[int, bytes] = field(default_factory=dict)
    hashes: dict[str, int] = field(default_factory=dict)
    """The source that a plan names by this content."""
    _truths: dict[tuple[Settings, int], Truth] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        for first in SOURCES:
            path = self.folder / f"source-{first}.mkv"
            numbered_clip(path, frames=FRAMES, size=SIZE, audio=True, first_number=first)
            self.clips[first] = path.read_bytes()
            self.hashes[json.dumps(content_hash(local_source(str(path))))] = first

    def truth(self, settings: Settings, source: int) -> Truth:
        with self._lock:
            if (settings, source) not in self._truths:
                self._truths[settings, source] = self._made_undisturbed(settings, source)
            return self._truths[settings, source]

    def _made_undisturbed(self, settings: Settings, source: int) -> Truth:
        folder = Path(tempfile.mkdtemp(prefix="undisturbed-", dir=self.folder))
        place = FolderPlace(folder=folder)
        place.write("clip.mkv", self.clips[source])
        (folder / "job.yaml").write_text(json.dumps(settings.job(place, workers=1, overwrite=False)))
        arguments = ("submit", "job.yaml", "--on", "local", "-q")
        made = Command(arguments, folder, {"XDG_STATE_HOME": str(folder / "state")}, folder / "said")
        if made.wait(LIMIT_S) != 0:
            raise Broken(f"an undisturbed run ended with {made.code}: {made.err}")
        output = folder / "out.mkv"
        begin = source + settings.first
        found = numbers_in(output)
        if found is not None and found != list(range(begin, begin + settings.frames)):
            raise Broken(f"an undisturbed run has the frames {found}")
        return Truth(content=output.read_bytes(), pictures=pictures_in(output))

    def name(self, content: bytes) -> str:
        """Which undisturbed output this is, or what else."""
        every = [(settings, source) for settings in SETTINGS for source in SOURCES]
        for settings, source in sorted(every, key=lambda each: each not in self._truths):
            if self.truth(settings, source).content == content:
                return f"{settings.model}[{settings.first}:{settings.frames}] of source {source}"
        return f"{len(content)} bytes that no undisturbed run makes"


def pictures_in(path: Path) -> tuple[str, ...]:
    """The checksum of each frame, decoded by FFmpeg's command line; none where that is not installed."""
    lines = (_decoded(path, "-f", "framemd5") or b"").decode().splitlines()
    return tuple(line.rpartition(",")[2].strip() for line in lines if not line.startswith("#"))


def numbers_in(path: Path) -> list[int] | None:
    """The number that each frame carries; None where FFmpeg's command line is not installed."""
    raw = _decoded(path, "-pix_fmt", "gray", "-f", "rawvideo")
    width, height = (2 * side for side in SIZE)
    return (
        None
        if raw is None
        else [number_in(frame) for frame in np.frombuffer(raw, np.uint8).reshape(-1, height, width)]
    )


def _decoded(path: Path, *wanted: str) -> bytes | None:
    """Every frame of the file, none dropped or repeated."""
    ffmpeg = find_tool("ffmpeg")
    if ffmpeg is None:
        return None
    reading = (ffmpeg, "-v", "error", "-i", str(path), "-map", "0:v", "-fps_mode", "passthrough")
    return subprocess.run([*reading, *wanted, "-"], check=True, capture_output=True).stdout


# A history


_WORDS = (
    ("receipts/", 4), ("segments/", 4), ("leases/", 6), ("workers/", 4), ("places/", 1), ("control/", 2),
    ("rounds/", 1), ("/plan.json$", 1), ("/job.json$", 1), ("/done.json$", 1), ("/finish.g1", 1),
    ("/out.mkv$", 1), ("delete ", 3),
)  # fmt: skip
"""Where processes stumble: a part of a name, and at which of its changes at the latest."""
_FOREIGN = (".DS_Store", "Thumbs.db", "._00000.json", "00000.json~", ".nfs000000000a1b2c3d00000001", "0.json")
_FOLDERS = ("receipts", "leases", "workers", "rounds", "control", "segments", "places", "logs", "old")
_CODES = frozenset({0, 1, 2, 3, 5, 6, 75, 130})
_ADVICE = (
    ("there is no run here", "submit"),
    ("cannot be made", "resume --retry-poisoned"),
    ("--retry-poisoned tries", "resume --retry-poisoned"),
    ("of the same job starts over", "submit"),
    ("exists; --overwrite", "submit --overwrite"),
)
"""What a message tells a person to do who meets it after all faults have gone."""


@dataclass(slots=True)
class History:
    """One run under faults, and what became of it."""

    seed: int
    kind: Kind
    place: Place
    bench: Bench
    folder: Path
    """For jobs, for what commands say, and for what they keep elsewhere."""
    environment: dict[str, str]
    only: Collection[str] = ()
    """The faults to draw from; all where none of them is named."""
    is_over: threading.Event = field(default_factory=threading.Event)
    chance: random.Random = field(init=False)
    settings: Settings = field(init=False)
    overwrite: bool = field(init=False)
    source: int = 0
    commands: list[Command] = field(default_factory=list)
    frozen_at: dict[int, float] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    _judged: set[int] = field(default_factory=set)
    _undo: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.settings = self.chance.choice(SETTINGS)
        self.overwrite = self.chance.random() < 0.5
        self.place.write("clip.mkv", self.bench.clips[self.source])

    def play(self) -> None:
        faults = self._faults()
        self._submit()
        self._until(lambda: self._document("plan.json") is not None or not self._running(), "there is a plan")
        for _ in range(self.chance.randint(2, 5)):
            self._keep_going()
            self._await_moment()
            names = list(faults)
            if self._document("done.json") is not None:
                if not self.overwrite or self.chance.random() < 0.4:
                    break
                names = ["started over"] if "started over" in faults else names
            name = self.chance.choice(names)
            if faults[name]():
                self._note(f"FAULT {name}")
                self.faults[name] += 1
            if self.chance.random() < 0.3:
                self._mend()
        self._end()

    # What a person does

    def _submit(self, *, new: bool = False, stumbles: bool = True) -> Command:
        workers = self.chance.choice((1, 1, 1, 2))
        job = self.settings.job(self.place, workers=workers, overwrite=self.overwrite)
        path = self.folder / f"job-{len(self.commands)}.yaml"
        path.write_text(json.dumps(job))
        return self._start(
            "submit", str(path), "--on", "local", *(["--new"] if new else []), stumbles=stumbles
        )

    def _keep_going(self) -> None:
        """Start commands until some are at work, as a person, a script and a scheduler may do at once."""
        if self._document("job.json") is not None:
            self.settings = self._planned_settings()
        wanted = self.chance.choice((1, 1, 2, 3))
        for _ in range(wanted - len(self._running())):
            if self._newest() is None:
                self._submit()
                continue
            how = self.chance.choices(
                ("resume", "worker", "place worker", "upscale", "finish", "workers", "submit"),
                (4, 3, 2, 3, 2, 1, 1),
            )[0]
            newest = self._newest()
            if how == "submit" or newest is None:
                self._submit()
            elif how == "upscale":
                options = (*self.settings.options(), *(["--overwrite"] if self.overwrite else []))
                self._start("upscale", self.place.uri("clip.mkv"), self.place.uri("out.mkv"), *options)
            elif how == "workers":
                self._start("resume", self.place.uri("out.mkv"), "--workers", "2")
            elif how == "place worker":  # as executors start it
                self._start("worker", self.place.uri(f"{RUN}/{newest}"), "--threads", "1")
            elif how == "worker":
                self._start("worker", self.place.uri(RUN), "--threads", "1")
            else:
                self._start(how, self.place.uri("out.mkv"))

    def _start(self, *arguments: str, stumbles: bool = True) -> Command:
        stumble = None
        if stumbles and self.chance.random() < 0.5:
            word, most = self.chance.choice(_WORDS)
            stumble = Stumble(
                how=self.chance.choice(("kill", "freeze")),
                word=word,
                nth=self.chance.randint(1, most),
                is_after=self.chance.random() < 0.5,
            )
        quiet = () if arguments[0] in ("finish", "cancel", "status") else ("-q",)
        command = Command(
            (*arguments, *quiet),
            self.folder,
            self.environment,
            self.folder / f"said-{len(self.commands)}",
            stumble,
            pace_s=self.chance.choice((0.0, 0.005, 0.02, 0.04)),
        )
        self.commands.append(command)
        self._note(f"#{len(self.commands) - 1} {' '.join(arguments)} [{stumble or 'unharmed'}]")
        return command

    # What breaks. Each returns whether it found something to break.

    def _faults(self) -> dict[str, Callable[[], bool]]:
        faults: dict[str, Callable[[], bool]] = {
            "killed": self._kill,
            "killed with its group": lambda: self._kill(to_group=True),
            "frozen": self._freeze,
            "thawed after a lease": self._thaw_one,
            "started over": self._start_over,
            "source replaced": self._replace_source,
            "segment lost": self._lose_segment,
            "segment flipped": lambda: self._flip("segments"),
            "receipt flipped": lambda: self._flip("receipts"),
            "foreign files": self._strew,
            "asked to stop": self._ask_to_stop,
            "cancelled": self._cancel,
            "second finish": self._finish_twice,
        }
        if self.kind == "s3":
            faults |= {
                "answers lost": lambda: self._disturb("lost"),
                "answers cut": lambda: self._disturb("cut"),
                "requests dropped": lambda: self._disturb("reset"),
                "errors 5xx": lambda: self._disturb("status"),
                "outage": lambda: self._disturb("outage"),
            }
        if self.kind == "disk":
            faults["disk full"] = self._fill_disk
        return {name: act for name, act in faults.items() if name in self.only} or faults

    def _running(self) -> list[Command]:
        return [command for command in self.commands if command.is_running]

    def _kill(self, *, to_group: bool = False) -> bool:
        alive = [command for command in self.commands if command.code is None]
        if not alive:
            return False
        victim = self.chance.choice(alive)
        family = _family(victim.pid) if to_group else []
        victim.send(signal.SIGKILL, to_group=to_group)
        _kill_each(family)
        return True

    def _freeze(self) -> bool:
        running = self._running()
        if not running:
            return False
        self.chance.choice(running).send(signal.SIGSTOP)
        return True

    def _thaw_one(self) -> bool:
        frozen = self._frozen()
        if not frozen:
            return False
        self._thaw(self.chance.choice(frozen))
        return True

    def _frozen(self) -> list[Command]:
        found = [command for command in self.commands if command.is_frozen]
        for command in found:
            self.frozen_at.setdefault(command.pid, time.monotonic())
        return found

    def _thaw(self, command: Command) -> None:
        """Let a process go on once others may have taken its lease over."""
        since = self.frozen_at.pop(command.pid)
        self._until(lambda: time.monotonic() - since > LEASE_S * 1.1, "a lease has run out")
        command.send(signal.SIGCONT)

    def _start_over(self) -> bool:
        """`--new` with other settings; it is refused where workers are at it."""
        if self.chance.random() < 0.7:  # first the person sees to it that none is
            for command in self._running():
                family = _family(command.pid)
                command.send(signal.SIGKILL, to_group=True)
                _kill_each(family)
        before, settings = self._newest(), self.settings
        self.settings = self.chance.choice([each for each in SETTINGS if each != settings])
        until = time.monotonic() + LIMIT_S
        while True:
            command = self._submit(new=True, stumbles=self.chance.random() < 0.3)
            self._until(lambda c=command: not c.is_running or self._newest() != before, "`--new` has begun")  # type: ignore[misc]
            is_refused = command.code == 2 and "workers are still at it" in command.err
            if not is_refused or self._running() or time.monotonic() > until:
                break
            time.sleep(0.2)  # a frozen worker has to be silent for a while
        if self._newest() == before:
            self.settings = settings
        return True

    def _replace_source(self) -> bool:
        if self.place.names("ballast"):
            return False
        self._put_source(next(each for each in SOURCES if each != self.source))
        self._undo.append(self._put_planned_source)
        return True

    def _put_source(self, source: int) -> None:
        self.source = source
        self.place.write("clip.mkv", self.bench.clips[source])

    def _put_planned_source(self) -> None:
        planned = self._planned_source()
        if planned is not None and planned != self.source:
            self._put_source(planned)

    def _lose_segment(self) -> bool:
        name = self._some("segments")
        if name is not None:
            self.place.delete(name)
        return name is not None

    def _flip(self, kind: str) -> bool:
        """Flip one bit of an object, on a disk in the file itself."""
        name = self._some(kind)
        content = self.place.read(name) if name is not None else None
        if name is None or not content:
            return False
        spoiled = bytearray(content)
        spoiled[self.chance.randrange(len(spoiled))] ^= 1 << self.chance.randrange(8)
        self.place.write(name, bytes(spoiled))
        return True

    def _some(self, kind: str) -> str | None:
        """An object of the newest edition, once one is there; None where none comes."""
        edition = self._newest()
        if edition is None or self.place.read(f"{RUN}/{edition}/done.json") is not None:
            return None
        prefix = f"{RUN}/{edition}/{kind}/"
        self._until(lambda: bool(self.place.names(prefix)) or not self._running(), f"there are {kind}")
        found = [name for name in self.place.names(prefix) if ".tmp-" not in name]
        return self.chance.choice(found) if found else None

    def _strew(self) -> bool:
        edition = self._newest()
        for _ in range(3):
            folder = self.chance.choice(_FOLDERS)
            place = RUN if folder == "places" or edition is None else f"{RUN}/{edition}"
            self.place.write(f"{place}/{folder}/{self.chance.choice(_FOREIGN)}", b"\0foreign")
        return True

    def _ask_to_stop(self) -> bool:
        running = self._running()
        if not running:
            return False
        self.chance.choice(running).send(self.chance.choice((signal.SIGTERM, signal.SIGINT)))
        return True

    def _cancel(self) -> bool:
        if self._newest() is None:
            return False
        self._start("cancel", self.place.uri("out.mkv"), stumbles=False)
        return True

    def _finish_twice(self) -> bool:
        if self._newest() is None:
            return False
        for _ in range(2):
            self._start("finish", self.place.uri("out.mkv"))
        return True

    def _disturb(self, how: str) -> bool:
        assert isinstance(self.place, S3Place)
        fail, chance = self.place.fail, self.chance
        word = chance.choice(("", "receipts/", "segments/", "leases/", "workers/", "out.mkv", "control/"))
        times = chance.randint(1, 5)
        if how == "outage":
            fail("status", times=100_000, status=503, code="SlowDown")
            over_at = time.monotonic() + 1.0
            self._until(lambda: time.monotonic() > over_at, "the outage is over")
            self.place.mend()
        elif how == "lost":
            fail("lost", word, method=chance.choice(("PUT", "PUT", "POST", "DELETE")), times=times)
        elif how == "cut":
            fail("cut", word, method="GET", times=times)
        elif how == "reset":
            fail("reset", word, times=times)
        else:
            fail("status", word, times=times, status=chance.choice((500, 503)))
        return True

    def _fill_disk(self) -> bool:
        assert isinstance(self.place, FolderPlace)
        self.place.fill()
        return True

    # What is seen

    def _newest(self) -> str | None:
        """The place of the newest edition of the run; None before there is one."""
        claims = [
            re.fullmatch(rf"{RUN}/places/([1-9]\d*)\.json", name)
            for name in self.place.names(f"{RUN}/places/")
        ]
        numbers = [int(claim[1]) for claim in claims if claim]
        claim = self.place.read(f"{RUN}/places/{max(numbers)}.json") if numbers else None
        return None if claim is None else str(json.loads(claim)["place"])

    def _document(self, name: str) -> dict[str, object] | None:
        """A document of the newest edition; None where it is not there, or there is no edition."""
        content = self.place.read(f"{RUN}/{self._newest()}/{name}")
        return None if content is None else dict(json.loads(content))

    def _planned_source(self) -> int | None:
        plan = self._document("plan.json")
        if plan is None:
            return None
        wanted = str(plan["fingerprint"]["input"])  # type: ignore[index]
        if wanted not in self.bench.hashes:
            raise Broken(f"the plan is of a source that never was there: {wanted}")
        return self.bench.hashes[wanted]

    def _planned_settings(self) -> Settings:
        job = self._document("job.json")
        if job is None:
            raise Broken("the newest edition has no job")
        part = dict(job["range"])  # type: ignore[call-overload]
        return next(
            each
            for each in SETTINGS
            if (each.model, f"{each.first}f", each.frames) == (job["model"], part["from"], part["frames"])
        )

    def _receipts(self) -> int:
        return len(self.place.names(f"{RUN}/{self._newest()}/receipts/"))

    def _await_moment(self) -> None:
        """Until some more shards are done, or nobody is at work."""
        wanted = self._receipts() + self.chance.randint(0, 3)
        self._until(lambda: self._receipts() >= wanted or not self._running(), f"{wanted} receipts")

    def _until(self, is_met: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + LIMIT_S
        while not is_met():
            if time.monotonic() > until:
                raise Broken(f"it never came that {what}")
            if self.is_over.is_set():
                raise Broken("stopped by a person")
            self._frozen()
            self._judge_ended()
            time.sleep(self.place.poll_s)
        self._judge_ended()

    def _note(self, text: str) -> None:
        self.log.append(f"{time.monotonic() - self.began:6.2f} {text}")

    # What must hold

    def _judge_ended(self) -> None:
        for number, command in enumerate(self.commands):
            if number not in self._judged and command.code is not None:
                self._judged.add(number)
                self._judge(number, command)

    def _judge(self, number: int, command: Command) -> None:
        code, err = command.code, command.err
        last = err.strip().splitlines()[-1] if err.strip() else ""
        self._note(f"#{number} ended with {code} {last}")
        is_there = self._check_output()
        if code == 0 and command.arguments[0] in ("submit", "upscale", "resume", "finish") and not is_there:
            raise Broken(f"#{number} {command.arguments} ended with 0 and there is no output")
        if "Traceback (most recent call last)" in err:
            raise Broken(f"#{number} {command.arguments} ended with a traceback:\n{err}")
        was_killed = command.was_killed or (command.stumble and command.stumble.how == "kill")
        if (code == -signal.SIGKILL and was_killed) or (command.was_asked_to_stop and code in (-15, 130)):
            return
        if code not in _CODES:
            raise Broken(f"#{number} {command.arguments} ended with {code}:\n{err}")
        if code != 0:
            sentences = [line for line in err.splitlines() if line.startswith("vsr: ")]
            if len(sentences) != 1 and code != 130:
                raise Broken(
                    f"#{number} {command.arguments} ended with {code} and did not say why not:\n{err}"
                )
            self.answers[f"{command.arguments[0]} {code}"] += 1

    def _check_output(self) -> bool:
        """Whether there is an output; at every moment it is whole and of one plan."""
        content = self.place.read("out.mkv")
        name = self.bench.name(content) if content is not None else ""
        if "no undisturbed" in name:
            raise Broken(f"the output has {name}")
        return content is not None

    # The end

    def _mend(self) -> None:
        """Do what only a person can do: free the disk, put the source back; S3 mends itself."""
        self.place.mend()
        while self._undo:
            self._undo.pop()()

    def _end(self) -> None:
        """All faults go; `vsr resume` once, meanwhile perhaps frozen processes; then these wake up too."""
        self._mend()
        self._note("mended")
        late = [command for command in self._frozen() if self.chance.random() < 0.5]
        for command in self._frozen():
            if command not in late:
                self._thaw(command)
        self._until(lambda: not self._running(), "the commands end")
        if (planned := self._planned_source()) is not None:
            self._put_source(planned)
        last = self._finish_by_hand()
        while last.code != 0:
            last = self._follow_advice(last)
        self._check_end()
        for command in self._frozen():
            self._thaw(command)
        self._until(lambda: not self._running() and not _family_of(self.folder.name), "the late ones end")
        if late:
            self._check_end()

    def _finish_by_hand(self, *more: str) -> Command:
        command = self._start("resume", self.place.uri("out.mkv"), *more, stumbles=False)
        self._until(lambda: command.code is not None, "the last call ends")
        return command

    def _follow_advice(self, last: Command) -> Command:
        advice = next((act for words, act in _ADVICE if words in last.err), None)
        if advice is None or sum(self.answers[f"advice: {act}"] for act in {act for _, act in _ADVICE}) >= 3:
            raise Broken(f"after all faults had gone, {last.arguments} ended with {last.code}:\n{last.err}")
        self.answers[f"advice: {advice}"] += 1
        if advice == "resume --retry-poisoned":
            return self._finish_by_hand("--retry-poisoned")
        self.overwrite |= advice == "submit --overwrite"
        command = self._submit(stumbles=False)
        self._until(lambda: command.code is not None, "the last call ends")
        return command

    def _check_end(self) -> None:
        source = self._planned_source()
        if source is None:
            raise Broken("the newest edition has no plan")
        truth = self.bench.truth(self._planned_settings(), source)
        content = self.place.read("out.mkv")
        if content != truth.content:
            found = "missing" if content is None else self.bench.name(content)
            raise Broken(f"the output is {found}, not that of the newest plan")
        path = self.folder / "seen.mkv"
        path.write_bytes(content)
        if pictures_in(path) != truth.pictures:
            raise Broken("the output's bytes are right and its pictures are not")
        done = self._document("done.json")
        if done is None or done["sha256"] != hashlib.sha256(content).hexdigest():
            raise Broken(f"done.json does not describe the output: {done}")
        if litter := [name for name in self.place.names("") if ".partial" in name]:
            raise Broken(f"partial files were left: {litter}")

    def close(self) -> None:
        """Leave no process behind."""
        for command in self.commands:
            family = _family(command.pid) if command.code is None else []
            command.send(signal.SIGKILL, to_group=True)
            _kill_each(family)
            command.wait(LIMIT_S)
        _kill_each(_family_of(self.folder.name))


def _processes() -> Iterator[tuple[int, int, str]]:
    """Number, parent and command line of every process."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            yield int(folder.name), parent, (folder / "cmdline").read_bytes().decode(errors="replace")


def _family(pid: int) -> list[int]:
    """The processes that this one has started."""
    return [number for number, parent, _ in _processes() if parent == pid]


def _family_of(word: str) -> list[int]:
    """The processes that were told this word."""
    return [number for number, _, told in _processes() if word in told]


def _kill_each(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# Many histories


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one history has shown."""

    seed: int
    kind: Kind
    faults: Counter[str]
    answers: Counter[str]
    commands: int
    seconds: float
    failure: str | None
    log: tuple[str, ...]

    def __str__(self) -> str:
        faults = ", ".join(f"{name} x{times}" if times > 1 else name for name, times in self.faults.items())
        end = "the newest plan's bytes" if self.failure is None else f"BROKEN: {self.failure}"
        begin = f"seed {self.seed} {self.kind} {self.commands} commands {self.seconds:.1f} s"
        return f"{begin}: {faults or 'no fault'}: {end}"


def play_histories(
    seeds: range,
    folder: Path,
    *,
    lanes: int = 2,
    only: Collection[str] = (),
    on_result: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Play one history for each seed, some at the same time. Everything lies in `folder`.

    `only` names the faults and the kinds of places to draw from; all where it names none.
    """
    set_thread_policy()
    bench = Bench(folder=folder)
    waiting, lock, is_over = iter(seeds), threading.Lock(), threading.Event()
    results: list[Result] = []

    def drive(lane: int) -> None:
        with small_disk(folder / f"disk-{lane}") as has_disk:
            while True:
                with lock:
                    seed = next(waiting, None)
                if seed is None or is_over.is_set():
                    return
                disk = folder / f"disk-{lane}" if has_disk else None
                result = _play(seed, bench, moto, folder, disk, only, is_over)
                with lock:
                    results.append(result)
                    on_result(result)

    with moto_server() as moto, ThreadPoolExecutor(lanes) as pool:
        make_bucket(moto)
        try:
            list(pool.map(drive, range(lanes)))
        finally:
            is_over.set()  # after a Ctrl-C the histories end at once, and leave nothing behind
    return results


def _play(
    seed: int,
    bench: Bench,
    moto: Moto,
    above: Path,
    disk: Path | None,
    only: Collection[str],
    is_over: threading.Event,
) -> Result:
    kinds: tuple[Kind, ...] = ("folder", "s3", "s3", "disk") if disk else ("folder", "s3")
    kind = random.Random(f"kind {seed}").choice([each for each in kinds if each in only] or kinds)
    folder = Path(tempfile.mkdtemp(prefix=f"history-{seed}-", dir=above))
    environment = {"XDG_STATE_HOME": str(folder / "state"), "VSR_NODE_CACHE": str(folder / "node")}
    place: Place
    if kind == "s3":
        place = S3Place.of(moto, folder.name)
        environment |= moto.environment
    else:
        place = FolderPlace(folder=(disk if kind == "disk" and disk else folder) / folder.name)
    history = History(
        seed=seed,
        kind=kind,
        place=place,
        bench=bench,
        folder=folder,
        environment=environment,
        only=only,
        is_over=is_over,
    )
    failure = None
    try:
        history.play()
    except Broken as exc:
        failure = str(exc)
    except Exception:
        failure = f"the tester itself failed:\n{traceback.format_exc()}"
    finally:
        history.close()
        for name in place.names(""):
            place.delete(name)
    return Result(
        seed=seed,
        kind=kind,
        faults=history.faults,
        answers=history.answers,
        commands=len(history.commands),
        seconds=time.monotonic() - history.began,
        failure=failure,
        log=tuple(history.log),
    )


def _show(result: Result, *, is_long: bool) -> None:
    print(result, flush=True)
    if is_long or result.failure is not None:
        print("\n".join(f"    {line}" for line in result.log), flush=True)


def _table(title: str, counts: Counter[str]) -> str:
    rows = "\n".join(f"| {name} | {times} |" for name, times in sorted(counts.items()))
    return f"| {title} | times |\n| --- | --- |\n{rows}\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--histories", type=int, default=200)
    parser.add_argument(
        "--seed", type=int, default=1, help="The seed of the first; each next one has the next."
    )
    parser.add_argument("--lanes", type=int, default=2, help="Histories that play at the same time.")
    parser.add_argument("--log", action="store_true", help="Print what happened in each history.")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="FAULT",
        help="Draw from these faults (or places) alone.",
    )
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="histories-") as name:
        seeds = range(asked.seed, asked.seed + asked.histories)
        show = functools.partial(_show, is_long=asked.log)
        results = play_histories(seeds, Path(name), lanes=asked.lanes, only=asked.only, on_result=show)
    print(_table("fault", sum((each.faults for each in results), Counter())))
    print(_table("said why not", sum((each.answers for each in results), Counter())))
    broken = [each.seed for each in results if each.failure is not None]
    print(f"{len(results)} histories, {len(broken)} broken: {broken}")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
