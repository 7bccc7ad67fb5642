"""Runs the server: socket, signals and orderly end."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from vsr_hpc.errors import BackendError, JobError
from vsr_hpc.serving.app import UNREAD_S, access, application
from vsr_hpc.serving.connections import bounded_protocol
from vsr_hpc.serving.service import ServeSettings, Service

log = logging.getLogger(__name__)


# The process ---------------------------------------------------------------------------------------------
class _Server(uvicorn.Server):
    """uvicorn, but a signal begins the drain instead of closing the door at once."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_signal, self._signals = on_signal, 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1 and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
            return
        self._on_signal()


def serve(settings: ServeSettings) -> None:
    """Run until SIGTERM or Ctrl-C, then drain. Threads inside of something endless are left behind."""
    listening = _bound(settings.host, settings.port)
    try:
        asyncio.run(_live(settings, listening))
    finally:
        listening.close()


async def _live(settings: ServeSettings, listening: socket.socket) -> None:
    service = Service(settings)
    config = _config(service)
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def drain() -> None:
        log.info("draining inside=%d", service.gate.inside)
        has_emptied = await service.gate.drain(settings.drain_s)
        log.info("drained all_answered=%s", has_emptied)
        server.should_exit = True

    def begin(work: Callable[[], Any]) -> None:
        task = asyncio.ensure_future(work())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def on_signal() -> None:
        if service.gate.state != "draining":
            service.gate.state = "draining"
            loop.call_soon_threadsafe(begin, drain)

    failure: list[BaseException] = []

    async def load() -> None:
        try:
            await service.load()
            access.info("%s", json.dumps({"event": "ready", "models": service.shelf.names}))
        except Exception as exc:
            failure.append(exc)
            server.should_exit = True

    server = _Server(config, on_signal)
    port = listening.getsockname()[1]
    access.info("%s", json.dumps({"event": "listening", "host": settings.host, "port": port}))
    begin(load)
    await server.serve(sockets=[listening])
    service.close()
    if failure:
        raise failure[0]


def _config(service: Service) -> uvicorn.Config:
    certificate, key = service.settings.certificate or (None, None)
    config = uvicorn.Config(
        application(service),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=64 << 10,
        http=bounded_protocol(),
        ws="none",
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    try:
        config.load()
    except OSError as exc:  # ssl.SSLError among them
        raise JobError(f"--cert {certificate}, --key {key}: {exc.strerror or exc}") from exc
    return config


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio switches Nagle's algorithm off; without, each answer takes 40 ms more.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # A closed connection too keeps what its client does not take, until the kernel gives up on it.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2000 * UNREAD_S))
    try:
        listening.bind((host, port))
        listening.listen(2048)
    except (OSError, OverflowError) as exc:
        listening.close()
        raise BackendError(f"{host}:{port} cannot be listened on: {exc}") from exc
    listening.setblocking(False)
    return listening
