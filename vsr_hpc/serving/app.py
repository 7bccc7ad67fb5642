"""HTTP around the service, to the letter of SageMaker's container contract, and the server's life.

/ping, /invocations, /execution-parameters, /metrics; with a multi-model root also /models.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vsr_hpc.errors import BackendError, VsrError
from vsr_hpc.serving.admission import OpenRequest, request_id_from
from vsr_hpc.serving.bodies import error_document
from vsr_hpc.serving.deadline import RequestDeadline
from vsr_hpc.serving.limits import MIB
from vsr_hpc.serving.refusals import Refusal, past_deadline, payload_too_large, refusal_for
from vsr_hpc.serving.request import attribute_pairs, parse_content_type
from vsr_hpc.serving.service import RequestItem, Service, StreamedAnswer
from vsr_hpc.serving.stills import Facts
from vsr_hpc.serving.tokens import Tokens
from vsr_hpc.work.pipeline import Stopped

log = logging.getLogger(__name__)


access = logging.getLogger("vsr_hpc.access")

T = TypeVar("T")

ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
_BODY_S = 30.0
_GRACE_S = 5.0
_LEAST_RATE = 8 << 10
"""Bytes a second on average that a body must come with, after so many seconds."""
UNREAD_S = 60.0
"""So long may a client take nothing of its answer; then it is cut off, and its place is free."""
_PIECE_BYTES = 64 << 10
"""Of a stream, at a time: taking one counts as going on."""
_DISCARDED_BYTES = 16 << 20
_MODELS_ON_A_PAGE = 100
_ROUTES = ("/ping", "/invocations", "/metrics", "/execution-parameters", "/models")


class _ModelToLoad(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    model_name: str = Field(min_length=1, max_length=1024, pattern=r"^[!-.0-~]+$")
    url: str = Field(min_length=1, max_length=4096)


def application(service: Service) -> ASGIApp:
    """The whole HTTP face of a service."""
    answering = _Answering(service)
    routes = [
        Route("/ping", _ping(service), methods=["GET"]),
        Route("/metrics", _metrics(service), methods=["GET"]),
        Route("/execution-parameters", _parameters(service), methods=["GET"]),
        Route("/invocations", answering, methods=["POST"]),
        Route("/models", _list_models(service), methods=["GET"]),
        Route("/models", _load_model(service), methods=["POST"]),
        Route("/models/{name}", _show_model(service), methods=["GET"]),
        Route("/models/{name}", _unload_model(service), methods=["DELETE"]),
        Route("/models/{name}/invoke", answering, methods=["POST"]),
    ]
    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        Refusal: _answer_refusal,
        VsrError: _failed,
        HTTPException: _http_error,
        ClientDisconnect: _answer_disconnect,
    }
    inner = Starlette(routes=routes, exception_handlers=handlers)
    inner.router.redirect_slashes = False
    return _Logged(inner if service.tokens is None else _guarded(inner, service.tokens), service)


def _guarded(inner: ASGIApp, tokens: Tokens) -> ASGIApp:
    """Everything but `/ping`, which balancers ask, needs a token."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/ping":
            request = Request(scope, receive)
            try:
                given = request.headers.get("authorization", "")
                scope["state"]["facts"]["caller"] = tokens.caller(given)
            except Refusal as refusal:
                await (await _answer_refusal(request, refusal))(scope, receive, send)
                return
        await inner(scope, receive, send)

    return guard


# Small endpoints -----------------------------------------------------------------------------------------
def _ping(service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def ping(request: Request) -> Response:
        """200 once the model has run, until the server ends or the device fails; nothing in it either way."""
        return Response(status_code=200 if service.is_ready else 503)

    return ping


def _metrics(service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return metrics


def _parameters(service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def parameters(request: Request) -> Response:
        """What batch transform asks before it begins."""
        return JSONResponse(
            {
                "MaxConcurrentTransforms": max(1, min(8, service.limits.queue // 2)),
                "BatchStrategy": "SINGLE_RECORD",
                "MaxPayloadInMB": max(1, min(100, service.limits.payload_bytes // MIB)),
            }
        )

    return parameters


def _list_models(service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def list_models(request: Request) -> Response:
        token = request.query_params.get("next_page_token", "0")
        start = int(token) if token.isascii() and token.isdigit() and len(token) < 9 else 0
        models = service.shelf.all()
        page = models[start : start + _MODELS_ON_A_PAGE]
        answer: dict[str, Any] = {"models": [{"modelName": each.name, "modelUrl": each.url} for each in page]}
        if start + len(page) < len(models):
            answer["nextPageToken"] = str(start + len(page))
        return JSONResponse(answer)

    return list_models


def _load_model(service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def load_model(request: Request) -> Response:
        with service.gate.arriving() as take:
            body = await _read_body(request, 64 << 10, _BODY_S, take)
        with service.gate.entered(request.scope["state"]["request_id"]) as call:
            call.ahead = 0  # brings no picture
            try:
                wanted = _ModelToLoad.model_validate_json(body)
            except ValidationError as exc:
                raise Refusal(
                    400, "json", 'write {"model_name": "name", "url": "/opt/ml/models/…/model"}'
                ) from exc
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, _take_in, service, wanted)
            return JSONResponse({"modelName": wanted.model_name, "modelUrl": wanted.url})

    return load_model


def _take_in(service: Service, wanted: _ModelToLoad) -> None:
    model = service.shelf.load(wanted.model_name, wanted.url)
    try:
        service.try_out(model)
    except Exception as exc:
        service.shelf.unload(model.name)
        log.warning("model did not run name=%s error=%s", model.name, exc)
        is_memory = isinstance(exc, BackendError) and "memory" in str(exc)
        raise Refusal(
            507 if is_memory else 400, "model", f"model {wanted.model_name[:80]!r} does not run here"
        ) from exc


def _show_model(service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def show_model(request: Request) -> Response:
        name = request.path_params["name"]
        model = next((each for each in service.shelf.all() if each.name == name), None)
        if model is None:
            raise Refusal(404, "model", f"model {name[:80]!r} is not loaded")
        return JSONResponse({"modelName": model.name, "modelUrl": model.url})

    return show_model


def _unload_model(service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def unload_model(request: Request) -> Response:
        service.shelf.unload(request.path_params["name"])
        return Response(status_code=200)

    return unload_model


# Invocations ---------------------------------------------------------------------------------------------
class _Answering:
    """/invocations and its twins: let in, read, work, send. The place is kept to the last byte.

    A plain answer is handed over as a whole, but has to wait where the one before it on the same connection
    was not taken; a streamed one waits after every piece.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, state = self._service, scope["state"]
        request = Request(scope, receive)
        try:
            patience = RequestDeadline(service.limits.deadline_s)
            body = await self._read(request)
            with service.gate.entered(state["request_id"], patience) as call:
                response = await self._respond(request, body, call)
                await response(scope, receive, _in_time(send))
        except Refusal as refusal:
            if refusal.code in ("busy", "starting", "draining"):
                await _discard(request)
            raise
        except _Unread as exc:
            state["facts"]["error"] = "cut_off"
            log.warning("answer cut off id=%s error=%s", state["request_id"], exc)

    async def _read(self, request: Request) -> bytes:
        """The body, before the request takes a place: whoever sends slowly keeps nobody out."""
        limits = self._service.limits
        with self._service.gate.arriving() as take:
            body = await _read_body(request, limits.payload_bytes, min(_BODY_S, limits.deadline_s), take)
        request.scope["state"]["facts"]["bytes_in"] = len(body)
        self._service.metrics.bytes_in.add(len(body))
        return body

    async def _respond(self, request: Request, body: bytes, call: OpenRequest) -> Response:
        service, facts = self._service, request.scope["state"]["facts"]
        asked = RequestItem(
            body=body,
            declared=parse_content_type(request.headers.get("content-type", "")),
            accept=request.headers.get("accept", ""),
            pairs=(
                *request.query_params.multi_items(),
                *attribute_pairs(request.headers.get(ATTRIBUTES, "")),
            ),
            model=request.path_params.get("name"),
        )
        made = await self._in_time(request, call, service.answer(asked, call, facts))
        if isinstance(made, StreamedAnswer):
            return _Streamed(made, facts)
        return Response(made.body, media_type=made.media_type, headers=_fact_headers(made.facts))

    async def _in_time(self, request: Request, call: OpenRequest, work: Any) -> Any:
        """The work's result, unless the deadline, the server's end or the client's leaving comes first."""
        working = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(_until_gone(request))
        try:
            await asyncio.wait(
                {working, leaving, call.dropped},
                timeout=call.patience.left_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if working.done():
                return working.result()
            call.patience.give_up()
            if leaving.done():
                raise ClientDisconnect
            if call.dropped.done():
                raise Refusal(
                    503, "draining", "the server had to end before this was done", {"Retry-After": "1"}
                )
            raise past_deadline(self._service.limits.deadline_s)
        finally:
            for task in (working, leaving):
                if not task.done():
                    task.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)


class _Unread(Exception):
    """A client takes nothing of its answer and does not leave either."""


def _in_time(send: Send) -> Send:
    async def sending(message: Message) -> None:
        try:
            await asyncio.wait_for(send(message), UNREAD_S)
        except TimeoutError:
            raise _Unread(f"the client took nothing for {UNREAD_S:g} s") from None

    return sending


async def _until_gone(request: Request) -> None:
    """Returns when the client has closed the connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        continue


def _fact_headers(facts: Facts) -> dict[str, str]:
    return {"X-Amzn-SageMaker-Custom-Attributes": ";".join(f"{key}={value}" for key, value in facts)}


class _Streamed(StreamingResponse):
    """A clip in pieces. One that fails half way is cut off, so that nobody takes it for whole."""

    def __init__(self, made: StreamedAnswer, facts: dict[str, object]) -> None:
        super().__init__(self._pieces(), media_type=made.media_type, headers=_fact_headers(made.stream.facts))
        self._made, self._facts = made, facts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except (VsrError, Stopped, OSError) as exc:
            self._facts["error"] = "cut_off"
            log.warning("clip cut off id=%s error=%s", scope["state"]["request_id"], exc or "out of time")
        finally:
            await self._aside(self._made.stream.close)

    async def _pieces(self) -> AsyncIterator[bytes]:
        piece = self._made.first
        while piece:
            for at in range(0, len(piece), _PIECE_BYTES):
                yield piece[at : at + _PIECE_BYTES]
            piece = await self._aside(self._made.stream.read)

    async def _aside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(None, work)


async def _read_body(request: Request, limit: int, seconds: float, take: Callable[[int], None]) -> bytes:
    """Refused where it takes longer, or comes more slowly than is allowed after a moment."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        await _discard(request)
        raise payload_too_large(int(declared), limit)
    pieces: list[bytes] = []
    size, began = 0, time.monotonic()
    stream = request.stream()
    while True:
        until = min(seconds, _GRACE_S + size / _LEAST_RATE)
        try:
            piece = await asyncio.wait_for(anext(stream), began + until - time.monotonic())
        except StopAsyncIteration:
            return b"".join(pieces)
        except TimeoutError:
            text = f"a body must come within {seconds:g} s, with {_LEAST_RATE >> 10} KiB a second at least"
            raise Refusal(408, "slow_body", text, {"Connection": "close"}) from None
        size += len(piece)
        if size > limit:
            await _discard(request)
            raise payload_too_large(f"more than {size - 1}", limit)
        take(len(piece))
        pieces.append(piece)


async def _discard(request: Request) -> None:
    """Let a client finish sending, within bounds: one that still sends does not see an early answer."""

    async def swallow() -> None:
        size = 0
        while size < _DISCARDED_BYTES:
            message = await request.receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                return
            size += len(message.get("body", b""))

    if request.scope["state"].get("is_read"):
        return
    try:
        await asyncio.wait_for(swallow(), 2.0)
    except TimeoutError:
        return


# Errors --------------------------------------------------------------------------------------------------
async def _answer_refusal(request: Request, refusal: Refusal) -> Response:
    state = request.scope["state"]
    state["facts"]["error"] = refusal.code
    state["service"].metrics.refusals.add(reason=refusal.code)
    document = error_document(refusal, state["request_id"])
    return Response(document, refusal.status, dict(refusal.headers), "application/json")


async def _failed(request: Request, error: VsrError) -> Response:
    return await _answer_refusal(request, refusal_for(error))


async def _http_error(request: Request, error: HTTPException) -> Response:
    headers = dict(error.headers or {})
    refusal = Refusal(error.status_code, "http", f"{request.url.path[:200]}: {error.detail}", headers)
    return await _answer_refusal(request, refusal)


async def _answer_disconnect(request: Request, error: ClientDisconnect) -> Response:
    request.scope["state"]["facts"]["error"] = "client_gone"
    return Response(status_code=499)


def _has_two_lengths(headers: Mapping[bytes, str]) -> bool:
    """Whether a proxy before us may have taken this body for another one: its end is said in two ways."""
    return b"transfer-encoding" in headers and b"content-length" in headers


async def _answer_two_lengths(scope: Scope, receive: Receive, send: Send) -> None:
    text = "Content-Length and Transfer-Encoding must not come together"
    refusal = Refusal(400, "http", text, {"Connection": "close"})
    await (await _answer_refusal(Request(scope), refusal))(scope, receive, send)


class _Logged:
    """Around everything: a request id, the access log's line, the counters."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service, self._ping_status = app, service, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        headers = {key.lower(): value.decode("latin-1") for key, value in scope["headers"]}
        given = headers.get(b"x-request-id") or headers.get(b"x-amzn-sagemaker-inference-id") or ""
        request_id, facts = request_id_from(given), dict[str, object]()
        state = {"request_id": request_id, "facts": facts, "service": self._service, "is_read": False}
        scope["state"] = {**scope.get("state", {}), **state}
        status, size = 500, 0

        async def receive_noting() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                scope["state"]["is_read"] = True
            return message

        async def send_noting(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"x-request-id", request_id.encode())]
                if self._service.gate.state == "draining":
                    extra.append((b"connection", b"close"))
                message["headers"] = [*message.get("headers", []), *extra]
            elif message["type"] == "http.response.body":
                size += len(message.get("body", b""))
            await send(message)

        app = self._app if not _has_two_lengths(headers) else _answer_two_lengths
        try:
            await app(scope, receive_noting, send_noting)
        finally:
            self._note(scope, status, size, time.monotonic() - began)

    def _note(self, scope: Scope, status: int, size: int, seconds: float) -> None:
        metrics, facts = self._service.metrics, scope["state"]["facts"]
        path = str(scope["path"])
        route = next((each for each in _ROUTES if path == each or path.startswith(f"{each}/")), "other")
        metrics.requests.add(route=route, status=str(status))
        metrics.bytes_out.add(size)
        if route in ("/invocations", "/models"):
            metrics.latency.see(seconds, kind=str(facts.get("kind", "none")))
        if route == "/ping":  # every few seconds, all alike
            if status == self._ping_status:
                return
            self._ping_status = status
        line = {
            "event": "request",
            "time": round(time.time(), 3),
            "id": scope["state"]["request_id"],
            "method": scope["method"],
            "path": path[:200],
            "status": status,
            "bytes_out": size,
            "ms": round(seconds * 1000, 1),
            **facts,
        }
        access.info("%s", json.dumps(line))
