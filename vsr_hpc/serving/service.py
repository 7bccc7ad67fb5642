"""From a request's body to its answer: still, clip, JSON or records, each within its limits and deadline."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vsr_hpc.engine.device_facts import DeviceFacts, DeviceKind, device_facts
from vsr_hpc.errors import VsrError
from vsr_hpc.media.picture import Colour, Frame, Picture
from vsr_hpc.media.pixels import pixel_format
from vsr_hpc.models.defaults import default_model, kind_of_still, shipped_models
from vsr_hpc.serving.admission import Gate, OpenRequest
from vsr_hpc.serving.batcher import Batcher
from vsr_hpc.serving.bodies import (
    envelope,
    error_document,
    join_recordio,
    open_envelope,
    split_lines,
    split_recordio,
)
from vsr_hpc.serving.clips import ClipStream, PlannedClip, make_clip, plan_clip
from vsr_hpc.serving.fence import Fence
from vsr_hpc.serving.limits import Limits
from vsr_hpc.serving.loaded_models import Bench, Model, Shelf, model_named, models_in
from vsr_hpc.serving.metrics import Metrics
from vsr_hpc.serving.refusals import Refusal, answer_too_large, past_deadline, refusal_for
from vsr_hpc.serving.request import (
    CLIPS,
    MEDIA_TYPES,
    RECORDS,
    Content,
    Declared,
    Options,
    check_options,
    choose_answer,
    parse_content_type,
    parse_options,
    recognise,
)
from vsr_hpc.serving.stills import Answer, Still, bench_for, decode_still, encode_still
from vsr_hpc.serving.tokens import Tokens
from vsr_hpc.work.pipeline import Stopped

log = logging.getLogger(__name__)

T = TypeVar("T")
Pairs = Sequence[tuple[str, object]]

MODEL_FOLDER = Path("/opt/ml/model")
_RECORDS_SIDE_BY_SIDE = 8
_MOST_READERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """How one server runs."""

    models: tuple[str, ...] = ()
    """Cards or files that may be asked for beside those in `folder`; the first of all is the default."""
    folder: Path = MODEL_FOLDER
    multi_root: Path | None = None
    """Where a multi-model endpoint's models lie; None: the set is fixed."""
    host: str = "0.0.0.0"
    port: int = 8080
    limits: Limits = field(default_factory=Limits)
    batch: int | None = None
    batch_wait_s: float = 0.005
    threads: int = 0
    device: DeviceKind | None = None
    resident: int = 4
    max_models: int = 64
    drain_s: float = 25.0
    scratch: Path | None = None
    token_file: Path | None = None
    """Who may ask; None: everybody."""
    certificate: tuple[Path, Path] | None = None
    """TLS: certificate and key; None: plain HTTP."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StreamedAnswer:
    """A clip that goes out while it is being made. Whoever has it must close the stream."""

    first: bytes
    """Its first piece, which is there already: nothing was refused."""
    stream: ClipStream
    media_type: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RequestItem:
    """One thing to do, wherever it came from: a request, or a record in one."""

    body: bytes
    declared: Declared
    accept: str
    pairs: tuple[tuple[str, object], ...]
    model: str | None = None
    """The model that the path names (multi-model); nothing else may name one then."""
    is_inner: bool = False
    """Whether it came inside of JSON."""
    is_record: bool = False
    """Whether its answer has its place among others, and so must be whole."""
    wants_json: bool = False


class Service:
    """What the server's requests share: models, device, threads, the gate and the counters."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings, self.limits = settings, settings.limits
        self.metrics, self.gate = Metrics(), Gate(settings.limits)
        threads = len(os.sched_getaffinity(0))
        self._threads = settings.threads or threads
        self._codecs = ThreadPoolExecutor(max_workers=max(2, threads), thread_name_prefix="codec")
        self._clips = ThreadPoolExecutor(max_workers=settings.limits.clips, thread_name_prefix="clip")
        self.tokens = None if settings.token_file is None else Tokens(settings.token_file)
        self._fence = Fence(min(_MOST_READERS, max(2, threads)), settings.limits)
        self._pictures = asyncio.Semaphore(max(2 * threads, 2 * (settings.batch or 16)))
        self.shelf: Shelf = Shelf((), threads=1, device=_NO_DEVICE)
        self.batcher: Batcher | None = None
        self._serves_ours = False
        self._watch()

    # Life ------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Bring the models into memory and run each of them once; only then is the server ready."""
        await asyncio.get_running_loop().run_in_executor(self._codecs, self._load)
        self.gate.state = "ready" if self.gate.state == "starting" else self.gate.state

    def _load(self) -> None:
        from vsr_hpc.engine.platform import tune_allocator

        settings = self.settings
        tune_allocator()
        self._fence.start()
        models = () if settings.multi_root else _allowed_models(settings)
        self._serves_ours = not models and not settings.multi_root
        models = models or tuple(model_named(name) for name in shipped_models() if self._serves_ours)
        self.shelf = Shelf(
            models,
            threads=self._threads,
            device=device_facts(settings.device),
            resident=settings.resident,
            most=settings.max_models,
            root=settings.multi_root,
        )
        self.batcher = Batcher(
            self.shelf.upscaler,
            wait_s=settings.batch_wait_s,
            on_the_way=self.gate.before_device,
            on_pass=self.metrics.on_pass,
        )
        for model in models or (model_named("nearest"),):
            self.try_out(model)
            log.info("model ready name=%s", model.name)

    def try_out(self, model: Model) -> None:
        """Run a model once on a made-up picture. BackendError where the device computes rubbish."""
        bench = bench_for(
            model, Options.model_validate({}), _SMALL, "planes",
            device=self.shelf.device, batch=self.settings.batch, limits=Limits(),
        )  # fmt: skip
        assert self.batcher is not None
        self.batcher.submit(bench, [_SMALL.frame]).result()
        self.shelf.upscaler(bench).canary()

    @property
    def is_ready(self) -> bool:
        return self.gate.state == "ready" and self.batcher is not None and not self.batcher.is_ill

    def close(self) -> None:
        """Let threads go; nobody waits for what they still do."""
        if self.batcher is not None:
            self.batcher.close()
        for pool in (self._codecs, self._clips):
            pool.shutdown(wait=False, cancel_futures=True)
        self._fence.close()

    def _watch(self) -> None:
        metrics = self.metrics
        metrics.watch(
            "vsr_requests_inside", "Requests accepted and not yet answered.", lambda: self.gate.inside
        )
        metrics.watch(
            "vsr_device_queue", "Requests that wait for the device.",
            lambda: self.batcher.waiting if self.batcher else 0,
        )  # fmt: skip
        metrics.watch("vsr_models", "Models that may be asked for.", lambda: len(self.shelf.names))
        metrics.watch("vsr_networks_resident", "Networks in memory.", lambda: self.shelf.resident_count)
        metrics.watch("vsr_ready", "1 where /ping says 200.", lambda: float(self.is_ready))

    # Answers ---------------------------------------------------------------------------------------------

    async def answer(
        self, asked: RequestItem, call: OpenRequest, facts: dict[str, object]
    ) -> Answer | StreamedAnswer:
        """The answer, in time. Refusal otherwise; `facts` collects what the access log says."""
        try:
            return await self._any(asked, call, facts)
        except Stopped:
            raise past_deadline(self.limits.deadline_s) from None
        except VsrError as exc:
            raise refusal_for(exc) from exc

    async def _any(
        self, asked: RequestItem, call: OpenRequest, facts: dict[str, object]
    ) -> Answer | StreamedAnswer:
        content = recognise(asked.body, asked.declared)
        facts["kind"] = content
        if content == "json":
            if asked.is_inner:
                raise Refusal(400, "json", "JSON inside of JSON is no picture")
            return await self._any(await self._open_json(asked), call, facts)
        if not asked.is_record:
            call.ahead = 0  # from here on pictures count themselves, on their way to the device
        if content in RECORDS:
            return await self._records(content, asked, call)
        options = parse_options(asked.pairs)
        check_options(options, content)
        answer, is_wrapped = choose_answer(asked.accept, content)
        is_wrapped = is_wrapped or asked.wants_json
        if asked.model is not None and options.model is not None:
            raise Refusal(422, "option", "the path names the model; leave the option model out")
        model = self.shelf.find(asked.model or options.model or self._usual_model(content, options))
        facts["model"] = model.name
        if content in CLIPS:
            if options.stream and not is_wrapped and not asked.is_record:
                return await self._streamed_clip(content, answer, asked, model, options, call)
            return await self._clip(content, answer, is_wrapped, asked, model, options, call)
        made = await self._still(content, answer, asked, model, options, call)
        return await self._wrapped(made) if is_wrapped else made

    def _usual_model(self, content: Content, options: Options) -> str | None:
        """The package's model for what came in; None where the server was given models of its own."""
        if not self._serves_ours:
            return None
        kind = "video" if content in CLIPS else kind_of_still(f".{content}")
        return default_model(kind, options.scale or (4 if options.size else 2))

    async def _still(
        self,
        content: Content,
        answer: Content,
        asked: RequestItem,
        model: Model,
        options: Options,
        call: OpenRequest,
    ) -> Answer:
        def decode() -> tuple[Still, Bench]:
            still = decode_still(
                content, asked.body, asked.declared.parameters, self.limits, self._fence, call.patience
            )
            bench = bench_for(
                model, options, still, answer,
                device=self.shelf.device, batch=self.settings.batch, limits=self.limits,
            )  # fmt: skip
            return still, bench

        assert self.batcher is not None
        async with self._pictures:
            with _coming(call):
                still, bench = await self._aside(decode)
            (frame,) = await asyncio.wrap_future(self.batcher.submit(bench, [still.frame]))
            return await self._aside(
                lambda: encode_still(answer, bench, frame, options, still.meta, self.limits)
            )

    async def _clip(
        self,
        content: Content,
        answer: Content,
        is_wrapped: bool,
        asked: RequestItem,
        model: Model,
        options: Options,
        call: OpenRequest,
    ) -> Answer:
        def make() -> Answer:
            with self._folder(call) as folder:
                try:
                    planned = self._plan_answer(folder, content, answer, asked, model, options, call)
                    make_clip(planned)
                    return _clip_answer(planned, answer, self.limits, is_wrapped)
                finally:
                    shutil.rmtree(folder, ignore_errors=True)

        return await asyncio.get_running_loop().run_in_executor(self._clips, make)

    async def _streamed_clip(
        self,
        content: Content,
        answer: Content,
        asked: RequestItem,
        model: Model,
        options: Options,
        call: OpenRequest,
    ) -> StreamedAnswer:
        """Answered with its first piece, so that whatever can be refused has been."""

        def begin() -> ClipStream:
            with self._folder(call) as folder:
                try:
                    planned = self._plan_answer(folder, content, answer, asked, model, options, call)
                    return ClipStream(planned, self._clips)
                except BaseException:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise

        begun = self._clips.submit(begin)
        try:
            stream = await asyncio.wrap_future(begun)
            with _refusals_of_library(stream.folder):
                first = await asyncio.get_running_loop().run_in_executor(None, stream.read)
        except BaseException:
            call.patience.give_up()
            begun.add_done_callback(self._let_go)
            raise
        return StreamedAnswer(first=first, stream=stream, media_type=MEDIA_TYPES[answer])

    def _let_go(self, begun: Future[ClipStream]) -> None:
        """Close a stream that nobody will read, aside: what is being done in it takes a moment to end."""
        if not begun.cancelled() and begun.exception() is None:
            self._codecs.submit(begun.result().close)

    @contextlib.contextmanager
    def _folder(self, call: OpenRequest) -> Iterator[Path]:
        """A clip's own folder, which whoever works in it removes."""
        if call.patience.is_over:
            raise Stopped
        with _refusals_of_library():
            folder = Path(tempfile.mkdtemp(prefix="vsr-", dir=self.settings.scratch)).resolve()
        with _refusals_of_library(folder):
            yield folder

    def _plan_answer(
        self,
        folder: Path,
        content: Content,
        answer: Content,
        asked: RequestItem,
        model: Model,
        options: Options,
        call: OpenRequest,
    ) -> PlannedClip:
        assert self.batcher is not None
        path = folder / f"in.{content}"
        path.write_bytes(asked.body)
        self._fence.look_at_clip(content, path, call.patience)
        return plan_clip(
            folder, content, answer, model, options,
            device=self.shelf.device, batch=self.settings.batch, batcher=self.batcher,
            limits=self.limits, patience=call.patience,
        )  # fmt: skip

    async def _open_json(self, asked: RequestItem) -> RequestItem:
        """The request inside of the JSON; its answer is JSON too, unless Accept names something else."""
        found = await self._aside(lambda: open_envelope(asked.body))
        wants_json = any(each in asked.accept for each in ("*/*", "application/json")) or not asked.accept
        return RequestItem(
            body=found.body,
            declared=parse_content_type(found.content_type),
            accept=found.accept or ("*/*" if wants_json else asked.accept),
            pairs=(*asked.pairs, *found.options),
            model=asked.model,
            is_inner=True,
            is_record=asked.is_record,
            wants_json=wants_json,
        )

    async def _wrapped(self, made: Answer) -> Answer:
        return await self._aside(lambda: _enveloped(made, self.limits))

    # Records ---------------------------------------------------------------------------------------------

    async def _records(self, content: Content, asked: RequestItem, call: OpenRequest) -> Answer:
        """Every record is answered in its place; one that cannot be is answered by its error as JSON."""
        if asked.is_inner:
            raise Refusal(400, "records", "records inside of records are not taken")
        split = split_lines if content == "jsonlines" else split_recordio
        records = await self._aside(lambda: split(asked.body, self.limits))
        inner = Declared(content="json" if content == "jsonlines" else None, parameters={})
        accept = "" if content == "jsonlines" else _inner_accept(asked.accept, content)
        room, size = asyncio.Semaphore(_RECORDS_SIDE_BY_SIDE), 0

        async def one(record: bytes) -> bytes:
            nonlocal size
            async with room:
                answered = await self._record(
                    RequestItem(
                        body=record,
                        declared=inner,
                        accept=accept,
                        pairs=asked.pairs,
                        model=asked.model,
                        is_record=True,
                    ),
                    call,
                )
            size += len(answered)
            if size > self.limits.answer_bytes:  # said at once: all of them together may be gigabytes
                raise answer_too_large(f"at least {size}", self.limits.answer_bytes)
            return answered

        made = await _all_or_none([one(record) for record in records])
        body = b"\n".join(made) + b"\n" if content == "jsonlines" else join_recordio(made)
        if len(body) > self.limits.answer_bytes:
            raise answer_too_large(len(body), self.limits.answer_bytes)
        return Answer(body=body, media_type=MEDIA_TYPES[content], facts=(("records", str(len(made))),))

    async def _record(self, asked: RequestItem, call: OpenRequest) -> bytes:
        try:
            made = await self.answer(asked, call, {})
        except Refusal as refusal:
            return error_document(refusal, call.id)
        assert isinstance(made, Answer)
        return made.body

    async def _aside(self, work: Callable[[], T]) -> T:
        """Work that takes a while, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._codecs, work)


@contextlib.contextmanager
def _coming(call: OpenRequest) -> Iterator[None]:
    call.ahead += 1
    try:
        yield
    finally:
        call.ahead -= 1


async def _all_or_none(tasks: Sequence[Coroutine[Any, Any, bytes]]) -> list[bytes]:
    """All results in order; where one fails or the caller gives up, none of the others goes on alone."""
    running = [asyncio.ensure_future(task) for task in tasks]
    try:
        return list(await asyncio.gather(*running))
    except BaseException:
        for task in running:
            task.cancel()
        raise


@contextlib.contextmanager
def _refusals_of_library(folder: Path | None = None) -> Iterator[None]:
    """Errors inside as refusals, which do not tell where the server keeps its files."""
    try:
        yield
    except VsrError as exc:
        raise refusal_for(exc, folder) from exc
    except OSError as exc:
        raise Refusal(
            503, "scratch", f"the server's disk failed ({exc.strerror})", {"Retry-After": "30"}
        ) from exc


def _clip_answer(made: PlannedClip, answer: Content, limits: Limits, is_wrapped: bool) -> Answer:
    size = made.output.stat().st_size
    if size > limits.answer_bytes:
        raise answer_too_large(size, limits.answer_bytes)
    plain = Answer(body=made.output.read_bytes(), media_type=MEDIA_TYPES[answer], facts=made.facts)
    return _enveloped(plain, limits) if is_wrapped else plain


def _enveloped(made: Answer, limits: Limits) -> Answer:
    body = envelope(made.body, made.media_type, made.facts)
    if len(body) > limits.answer_bytes:
        raise answer_too_large(len(body), limits.answer_bytes)
    return Answer(body=body, media_type=MEDIA_TYPES["json"], facts=made.facts)


def _inner_accept(accept: str, content: Content) -> str:
    """What records of raw bytes are answered as: Accept's media types but the records' own."""
    kept = [part for part in accept.split(",") if part.strip().split(";")[0].lower() != MEDIA_TYPES[content]]
    return ",".join(kept) or "*/*"


def _allowed_models(settings: ServeSettings) -> tuple[Model, ...]:
    """The command's models, then the folder's."""
    found: dict[str, Model] = {}
    for model in (*(model_named(text) for text in settings.models), *models_in(settings.folder)):
        found.setdefault(model.name, model)
    return tuple(found.values())


_NO_DEVICE = DeviceFacts(kind="cpu", name="none yet", memory_gib=1, has_fast_bf16=False, has_fast_fp16=False)


def _small_still() -> Still:
    import numpy as np

    shape = Picture(
        width=32, height=24, pixel=pixel_format("gbrp"),
        colour=Colour(matrix=0, is_full_range=True, is_range_tagged=True),
    )  # fmt: skip
    ramp = np.add.outer(np.arange(24), np.arange(32)).astype(np.uint8)
    frame = Frame(index=0, planes=(ramp, ramp[::-1].copy(), ramp * 2))
    return Still(content="planes", picture=shape, frame=frame, meta=None)


_SMALL = _small_still()
