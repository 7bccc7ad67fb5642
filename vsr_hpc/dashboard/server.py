"""The live page's server: runs, their events, clips coming in, jobs going out. On this machine's loopback."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hmac
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from vsr_hpc import launch
from vsr_hpc.dashboard.guard import LOOPBACK, REPORT_POLICY, REPORTS, Door, Guard
from vsr_hpc.dashboard.new_runs import Asked, Carrying, begin_run, describe_run, preview_of
from vsr_hpc.dashboard.snapshots import Telling, Watched, read_line, run_id
from vsr_hpc.dashboard.uploads import Began, Bucket, Folder
from vsr_hpc.errors import BackendError, JobError, VsrError
from vsr_hpc.models.cards import all_cards
from vsr_hpc.report.page import SHARED
from vsr_hpc.report.report import NAME
from vsr_hpc.run import known_runs
from vsr_hpc.storage.store import MissingObject
from vsr_hpc.system.user_folders import user_folder

log = logging.getLogger(__name__)

_TICK_S = 0.7
_QUIET_S = 15.0
_MOST_STREAMS = 64
_BODY_BYTES = 64 << 10
_MOST_RUNS = 200
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
_SHARED = (*SHARED, "preview.js", "base.css")
_OWN = ("app.js", "run.js", "create.js", "live.css")
Model = TypeVar("Model", bound=BaseModel)


@dataclass(slots=True)
class Board:
    """What the page is about."""

    named: tuple[str, ...]
    """Runs given by name; with none, those that this user began on this machine."""
    intake: Folder | Bucket
    carrying: Carrying
    _watched: dict[str, Watched] = field(default_factory=dict)
    _begun: list[str] = field(default_factory=list)
    streams: int = 0
    is_leaving: Callable[[], bool] = lambda: False
    previews: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    def uris(self) -> tuple[str, ...]:
        known = self.named or known_runs.remembered_runs()
        return tuple(dict.fromkeys((*known, *self._begun)))[-_MOST_RUNS:]

    def all(self) -> tuple[Watched, ...]:
        """One reading of the list: a run may be begun at any moment, by another process too."""
        return tuple(self._watched.setdefault(run_id(uri), Watched(uri=uri)) for uri in self.uris())

    def find(self, number: str) -> Watched:
        """HTTPException where no run of the list has that name."""
        if number not in self._watched:
            self.all()
        if number not in self._watched:
            raise HTTPException(404, "no such run here")
        return self._watched[number]

    def forget(self, watched: Watched) -> None:
        known_runs.forget(watched.uri)
        self.named = tuple(each for each in self.named if each != watched.uri)
        self._begun = [each for each in self._begun if each != watched.uri]
        del self._watched[run_id(watched.uri)]

    def begun(self, uri: str) -> None:
        self._begun.append(uri)

    def lines(self) -> dict[str, Any]:
        found = [
            {**read_line(each), "trouble": self.carrying.trouble(run_id(each.uri))} for each in self.all()
        ]
        return {"runs": found[::-1]}


def application(board: Board, door: Door) -> ASGIApp:
    """Everything behind the guard."""
    with_board = functools.partial(functools.partial, board=board)
    routes = [
        Route("/", _index, methods=["GET"]),
        Route("/web/{name}", _file, methods=["GET"]),
        Route("/api/setup", with_board(_setup), methods=["GET"]),
        Route("/api/events", with_board(_list_events), methods=["GET"]),
        Route("/api/runs/{number}/events", functools.partial(_run_events, board=board, door=door)),
        Route(f"{REPORTS}{{key}}", functools.partial(_report, board=board, door=door), methods=["GET"]),
        Route("/api/runs/{number}/picture", with_board(_picture), methods=["GET"]),
        Route("/api/runs/{number}/thumbnail", with_board(_thumbnail), methods=["GET"]),
        Route("/api/runs/{number}/output", with_board(_output), methods=["GET"]),
        Route("/api/runs/{number}/forget", with_board(_forget), methods=["POST"]),
        Route("/api/runs/{number}/cancel", with_board(_cancel), methods=["POST"]),
        Route("/api/runs/{number}/resume", with_board(_resume), methods=["POST"]),
        Route("/api/clips", with_board(_receive), methods=["PUT"]),
        Route("/api/uploads", with_board(_begin_upload), methods=["POST"]),
        Route("/api/uploads/{number}/complete", with_board(_complete_upload), methods=["POST"]),
        Route("/api/uploads/{number}/abort", with_board(_abort_upload), methods=["POST"]),
        Route("/api/preview", with_board(_preview), methods=["POST"]),
        Route("/api/description", with_board(_describe), methods=["POST"]),
        Route("/api/jobs", with_board(_submit), methods=["POST"]),
    ]
    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        VsrError: _failed,
        OSError: _failed,
        HTTPException: _http_error,
        ClientDisconnect: _gone,
    }
    inner = Starlette(routes=routes, exception_handlers=handlers)
    inner.router.redirect_slashes = False
    return Guard(inner, door)


# Pages and files -----------------------------------------------------------------------------------------


async def _index(request: Request) -> Response:
    return _packaged("vsr_hpc.dashboard", "index.html")


async def _file(request: Request) -> Response:
    """Components are the report's own; the page's modules import them beside each other."""
    name = request.path_params["name"]
    if name in _SHARED:
        return _packaged("vsr_hpc.report", name)
    if name in _OWN:
        return _packaged("vsr_hpc.dashboard", name)
    raise HTTPException(404, "no such file")


def _packaged(package: str, name: str) -> Response:
    content = resources.files(package).joinpath("web").joinpath(name).read_bytes()
    return Response(content, media_type=_TYPES[Path(name).suffix])


async def _report(request: Request, board: Board, door: Door) -> Response:
    given = request.path_params["key"]
    watched = next(
        (each for each in board.all() if hmac.compare_digest(door.report_key(run_id(each.uri)), given)), None
    )
    if watched is None:
        raise HTTPException(404, "no such report here")
    run, *_ = await asyncio.to_thread(watched.look)
    try:
        content = await asyncio.to_thread(run.store.read, NAME)
    except MissingObject as exc:
        raise HTTPException(404, "this run has no report yet; `vsr report` makes one") from exc
    return Response(content, media_type="text/html", headers={"content-security-policy": REPORT_POLICY})


async def _picture(request: Request, board: Board) -> Response:
    found = await asyncio.to_thread(board.find(request.path_params["number"]).picture)
    return JSONResponse(None if found is None else asdict(found))


async def _thumbnail(request: Request, board: Board) -> Response:
    found = await asyncio.to_thread(board.find(request.path_params["number"]).picture)
    if found is None:
        raise HTTPException(404, "no frame is finished yet")
    return Response(
        base64.b64decode(found.after.partition(",")[2]),
        media_type="image/webp",
        headers={"cache-control": "private, max-age=600"},
    )


async def _output(request: Request, board: Board) -> Response:
    """The finished file as a download: a browser never shows it as a page."""
    _, status, *_ = await asyncio.to_thread(board.find(request.path_params["number"]).look)
    path = Path(status.done.output) if status.done is not None else None
    if path is None or not path.is_file():
        raise HTTPException(404, "this run has no output on this machine")
    return FileResponse(path, media_type="application/octet-stream", filename=path.name)


async def _setup(request: Request, board: Board) -> Response:
    """What the form offers."""
    cards = await asyncio.to_thread(all_cards)
    return JSONResponse(
        {
            "models": [
                {
                    "name": card.name,
                    "scale": card.scale,
                    "is_filter": card.is_filter,
                    "description": card.description,
                    "licence": card.licence,
                }
                for card in cards
            ],
            "place": board.intake.place,
            "is_s3": isinstance(board.intake, Bucket),
        }
    )


# Events --------------------------------------------------------------------------------------------------


async def _list_events(request: Request, board: Board) -> Response:
    return _stream(request, board, board.lines)


async def _run_events(request: Request, board: Board, door: Door) -> Response:
    number = request.path_params["number"]
    telling = Telling(watched=board.find(number))

    def snapshot() -> dict[str, Any]:
        try:
            found = telling.snapshot()
        except VsrError as exc:
            found = {"id": number, "state": "unreachable", "trouble": str(exc)}
        is_carried = board.carrying.is_carrying(number)
        report = f"..{REPORTS}{door.report_key(number)}" if found.pop("has_report", False) else None
        return {
            "trouble": board.carrying.trouble(number),
            "is_carried": is_carried,
            "report": report,
            **found,
        }

    return _stream(request, board, snapshot)


def _stream(request: Request, board: Board, read: Callable[[], dict[str, Any]]) -> Response:
    """Server-sent events: a snapshot whenever something changed."""
    if board.streams >= _MOST_STREAMS:
        raise HTTPException(503, "too many pages are open")

    async def events() -> AsyncIterator[str]:
        board.streams += 1
        try:
            told, said_at = "", time.monotonic()
            yield "retry: 1000\n\n"
            while not (board.is_leaving() or await request.is_disconnected()):
                text = json.dumps(await asyncio.to_thread(read))
                now = time.monotonic()
                if text != told:
                    yield f"data: {text}\n\n"
                    told, said_at = text, now
                elif now - said_at > _QUIET_S:
                    yield ": still here\n\n"
                    said_at = now
                await asyncio.sleep(_TICK_S)
        finally:
            board.streams -= 1

    return StreamingResponse(events(), media_type="text/event-stream")


# What people ask for -------------------------------------------------------------------------------------


async def _cancel(request: Request, board: Board) -> Response:
    run, *_ = await asyncio.to_thread(board.find(request.path_params["number"]).look)
    return JSONResponse({"cancelled": await asyncio.to_thread(launch.cancel, run)})


async def _resume(request: Request, board: Board) -> Response:
    watched = board.find(request.path_params["number"])
    await asyncio.to_thread(board.carrying.carry_on, watched.uri, run_id(watched.uri))
    return JSONResponse({"resumed": True})


async def _forget(request: Request, board: Board) -> Response:
    """Take a run off the list. Its files stay."""
    watched = board.find(request.path_params["number"])
    _, status, *_ = await asyncio.to_thread(watched.look)
    if status.alive:
        raise HTTPException(409, "workers are at this run; cancel it first")
    await asyncio.to_thread(board.forget, watched)
    return JSONResponse({"forgotten": True})


async def _receive(request: Request, board: Board) -> Response:
    """A clip for a folder, as the body. Its name comes beside it."""
    if not isinstance(board.intake, Folder):
        raise HTTPException(409, "clips go to S3 from here: begin an upload")
    length = request.headers.get("content-length", "")
    size = int(length) if length.isascii() and length.isdigit() else None
    name = request.query_params.get("name", "clip")
    place = await board.intake.receive(name, size, request.stream())
    log.info("clip received place=%s size=%s", place, size)
    return JSONResponse({"input": place})


async def _begin_upload(request: Request, board: Board) -> Response:
    return JSONResponse(await asyncio.to_thread(_bucket(board).begin, await _read(request, Began)))


async def _complete_upload(request: Request, board: Board) -> Response:
    place = await asyncio.to_thread(_bucket(board).complete, request.path_params["number"])
    return JSONResponse({"input": place})


async def _abort_upload(request: Request, board: Board) -> Response:
    await asyncio.to_thread(_bucket(board).abort, request.path_params["number"])
    return JSONResponse({"aborted": True})


def _bucket(board: Board) -> Bucket:
    if not isinstance(board.intake, Bucket):
        raise HTTPException(409, "clips go to a folder here: send the clip itself")
    return board.intake


async def _preview(request: Request, board: Board) -> Response:
    """One at a time: two networks side by side only slow each other."""
    asked = await _read(request, Asked)
    async with board.previews:
        work = asyncio.create_task(preview_of(asked))
        try:
            while not work.done():
                if await request.is_disconnected():
                    raise ClientDisconnect
                await asyncio.wait({work}, timeout=0.5)
            return JSONResponse(work.result())
        finally:
            if not work.done():
                work.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await work


async def _describe(request: Request, board: Board) -> Response:
    asked = await _read(request, Asked)
    return JSONResponse({"text": await asyncio.to_thread(describe_run, asked, board.intake.place)})


async def _submit(request: Request, board: Board) -> Response:
    asked = await _read(request, Asked)
    run = await asyncio.to_thread(begin_run, asked, board.intake.place)
    board.begun(run.uri)
    board.carrying.carry_on(run.uri, run_id(run.uri))
    return JSONResponse({"id": run_id(run.uri), "uri": run.uri})


async def _read(request: Request, model: type[Model]) -> Model:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _BODY_BYTES:
            raise HTTPException(413, "too long")
    try:
        return model.model_validate_json(body)
    except ValidationError as exc:
        first = exc.errors()[0]
        raise JobError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from exc


# Errors --------------------------------------------------------------------------------------------------


async def _failed(request: Request, error: Exception) -> Response:
    code = 503 if isinstance(error, BackendError) else 400
    return JSONResponse({"error": str(error)}, status_code=code)


async def _http_error(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, status_code=error.status_code)


async def _gone(request: Request, error: Exception) -> Response:
    return PlainTextResponse("", status_code=400)


# Its life ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    runs: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8765
    uploads: str = "vsr-uploads"
    names: tuple[str, ...] = ()
    """More names under which browsers may ask, where the page is reached through a tunnel or proxy."""


def serve(settings: Settings, on_ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM; `on_ready` is given the page's address."""
    intake: Folder | Bucket = (
        Bucket(settings.uploads)
        if settings.uploads.startswith("s3://")
        else Folder(Path(os.path.abspath(settings.uploads)))  # noqa: PTH100 - keeps links
    )
    with _listening(settings) as listener:
        port = listener.getsockname()[1]
        token = secrets.token_urlsafe(24)
        connects = (intake.origin,) if isinstance(intake, Bucket) else ()
        shown = f"[{settings.host}]" if ":" in settings.host else settings.host
        door = Door.of(token, {*LOOPBACK, shown, *settings.names}, port, connects)
        board = Board(named=settings.runs, intake=intake, carrying=Carrying(logs=_state_folder()))
        config = uvicorn.Config(
            application(board, door),
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=64 << 10,
            http="h11",
            ws="none",
        )
        server = uvicorn.Server(config)
        board.is_leaving = lambda: server.should_exit
        on_ready(f"http://{shown}:{port}/{token}/")
        try:
            server.run(sockets=[listener])
        finally:
            if isinstance(intake, Bucket):
                intake.abort_all()


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as exc:
            raise JobError(
                f"--port {settings.port}: cannot listen at {settings.host} ({exc.strerror}); 0 takes any"
            ) from exc
        listener.listen(64)
        yield listener
    finally:
        listener.close()


def _state_folder() -> Path:
    return user_folder("state") / "dashboard"
