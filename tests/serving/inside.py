"""The server inside of this process, where a test can hold its parts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn

from vsr_hpc.serving import process as server
from vsr_hpc.serving.service import ServeSettings, Service


@contextlib.asynccontextmanager
async def loaded(home: Path, **settings: Any) -> AsyncIterator[Service]:
    """A service whose models have run."""
    chosen = {"device": "cpu", "threads": 1, "folder": home / "no-models", **settings}
    service = Service(ServeSettings(**chosen))
    try:
        await service.load()
        yield service
    finally:
        service.close()


@contextlib.asynccontextmanager
async def listening(service: Service) -> AsyncIterator[uvicorn.Server]:
    """The service over HTTP, on sockets that hold next to nothing."""
    with server._bound("127.0.0.1", 0) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        http = uvicorn.Server(server._config(service))
        running = asyncio.ensure_future(http.serve(sockets=[bound]))
        try:
            while not http.started:
                await asyncio.sleep(0.01)
            yield http
        finally:
            http.should_exit = True
            await running


@contextlib.asynccontextmanager
async def silent_client(http: uvicorn.Server, sent: bytes) -> AsyncIterator[None]:
    """Somebody who sends, stays, and never reads."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, http.servers[0].sockets[0].getsockname())
        await loop.sock_sendall(client, sent)
        yield
