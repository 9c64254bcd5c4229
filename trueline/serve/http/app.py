"""The routes. `Gate` has let the request in; here it is checked, ordered and answered.

POST /v1/completions  /v1/chat/completions  /v1/embeddings      GET /v1/models  /health  /metrics  /openapi.json
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from trueline import __version__
from trueline.serve.http import answered
from trueline.serve.http.answers import Form, Run, answer, stream
from trueline.serve.http.asked import ChatAsked, CompletionAsked, EmbeddingAsked
from trueline.serve.http.embeddings import embeddings, written
from trueline.serve.http.errors import Refusal, dumps
from trueline.serve.http.gate import Gate
from trueline.serve.http.orders import Order, Served, chat_order, completion_order, encoded
from trueline.serve.http.vocabulary import Vocabulary
from trueline.serve.http.worker import Worker

LONG = 16384
"""Bytes of a body from which on its text is encoded beside the event loop."""
T = TypeVar("T")
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": answered.ErrorAnswer, "description": "What was wrong with the request"},
    503: {"model": answered.ErrorAnswer, "description": "The queue is full, or the server stops: see Retry-After"},
}


def made(content: dict[str, Any]) -> Response:
    """A JSON answer."""
    return Response(dumps(content), media_type="application/json")


def success(model: Any, *, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """What a route may answer."""
    content = {"text/event-stream": {"schema": {"type": "string"}}} if streams else {}
    return {200: {"model": model, "content": content}, **ERRORS}


def make_app(served: Served, worker: Worker, *, key: str = "", loopback: bool = True) -> Gate:
    """The app behind its gate."""
    app = FastAPI(title="Trueline", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    gate = Gate(app, served.limits, worker.meters, key, loopback)
    vocabulary, started, limits = Vocabulary(served.tokenizer), int(time.time()), served.limits

    async def ordered(request: Request, make: Callable[..., T], asked: Any) -> T:
        client = request.client.host if request.client else ""
        if int(request.headers.get("content-length", LONG)) < LONG:
            return make(asked, served, client)
        return await asyncio.to_thread(make, asked, served, client)

    async def run(request: Request, order: Order, form: Form, asked: Any) -> Response:
        if not asked.stream:
            return made(await attended(request, answer(order, worker, form), limits.request_seconds))
        begun = Run(order, worker, form)
        end = asyncio.get_running_loop().time() + limits.request_seconds
        try:
            await attended(request, begun.begin(), limits.request_seconds)
        except BaseException:
            begun.close()
            raise
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        return EventStream(stream(begun, usage, lambda: asyncio.timeout_at(end)), begun.close)

    @app.post("/v1/completions", responses=success(answered.Completion, streams=True))
    async def completions(asked: CompletionAsked, request: Request) -> Response:
        """Continues texts, or token ids."""
        order = await ordered(request, completion_order, asked)
        wants = asked.logprobs is not None
        form = Form(order, vocabulary, chat=False, logprobs=wants, tops=wants, token_ids=asked.return_token_ids)
        return await run(request, order, form, asked)

    @app.post("/v1/chat/completions", responses=success(answered.Chat, streams=True))
    async def chat(asked: ChatAsked, request: Request) -> Response:
        """Answers a conversation, put into the model's own chat template."""
        order = await ordered(request, chat_order, asked)
        form = Form(order, vocabulary, chat=True, logprobs=bool(asked.logprobs), tops=True, token_ids=asked.return_token_ids)
        return await run(request, order, form, asked)

    @app.post("/v1/embeddings", responses=success(answered.Embeddings))
    async def embed(asked: EmbeddingAsked, request: Request) -> Response:
        """The mean of the final hidden states over a text's tokens, scaled to length 1."""
        adapter = served.adapter(asked.model)
        prompts = await ordered(request, lambda asked, served, _: encoded(asked.input, served), asked)
        if len(prompts) > limits.max_responses:
            raise Refusal(400, f"{len(prompts)} inputs are more than {limits.max_responses} in one request: send fewer", param="input")
        vectors_ND = await attended(request, embeddings(prompts, adapter, worker), limits.request_seconds)
        tokens = sum(map(len, prompts))
        shown = [written(vector_D, asked.encoding_format) for vector_D in vectors_ND]
        data = [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(shown)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return made({"object": "list", "data": data, "model": asked.model or served.base, "usage": usage})

    @app.get("/v1/models", responses=success(answered.Models))
    async def models() -> Response:
        """The base model and its adapters."""
        about = {"object": "model", "created": started, "owned_by": "trueline", "max_model_len": served.context}
        data = [
            {"id": name, **about, "root": served.base, "parent": served.base if adapter else None} for name, adapter in served.names.items()
        ]
        return made({"object": "list", "data": data})

    @app.get("/health", responses=success(answered.Health))
    async def health() -> Response:
        """200 while requests are taken; 503 when the server stops or the engine is broken."""
        if gate.draining or worker.broken:
            raise Refusal(503, "the server is stopping" if gate.draining else f"the engine failed: {worker.broken}")
        return made({"status": "ok"})

    @app.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **ERRORS}, response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(worker.meters.page(worker.statistics), media_type=CONTENT_TYPE_LATEST)

    description = described(app, bool(key))

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return made(description)

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        return Response(dumps(refusal.content), refusal.status, refusal.headers, "application/json")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return await refused(request, refusal_of(error.errors()))

    @app.exception_handler(ValueError)
    async def mistaken(request: Request, error: ValueError) -> Response:
        return await refused(request, Refusal(400, str(error)))

    @app.exception_handler(TimeoutError)
    async def late(request: Request, error: TimeoutError) -> Response:
        return await refused(request, Refusal(408, "the request took longer than this server allows: ask for fewer tokens"))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        said = {404: f"there is no {request.url.path}", 405: f"{request.url.path} does not take {request.method}"}
        response = await refused(request, Refusal(error.status_code, said.get(error.status_code, str(error.detail))))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return await refused(request, Refusal(500, "the server made a mistake: its log says more"))

    return gate


def refusal_of(errors: Sequence[Any]) -> Refusal:
    """The first thing that is wrong with a body, in one sentence."""
    first = errors[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    field = place[0] if place else ""
    if first["type"] == "json_invalid":
        return Refusal(400, 'the body is not JSON: send an object such as {"prompt": "Once"}')
    if first["type"] == "missing" and not field:
        return Refusal(400, "the body is missing: send JSON, with the header Content-Type: application/json")
    if first["type"] == "missing":
        return Refusal(400, f"{'.'.join(place)} is missing", param=".".join(place))
    if field in ("chat_template", "chat_template_kwargs", "documents"):
        return Refusal(400, f"{field} is not taken from requests: the model's own chat template is used", param=field)
    if first["type"] in ("extra_forbidden", "none_required"):
        name = ".".join(place)
        return Refusal(400, f"{name} is not supported here: leave it out", param=name, code="unsupported_parameter")
    if field in ("prompt", "input"):
        forms = "a text, a list of texts, a list of token ids (0 or more), or a list of such lists; none of them empty"
        return Refusal(400, f"{field} must be {forms}", param=field)
    name = ".".join(place) or "the body"
    return Refusal(400, f"{name}: {first['msg'][:1].lower()}{first['msg'][1:]}", param=name if place else None)


def described(app: FastAPI, with_key: bool) -> dict[str, Any]:
    """The OpenAPI description; with a key, every route says so."""
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    if with_key:
        found.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
    return found


class ClientLeft(Refusal):
    """Nobody is there to read the answer."""

    def __init__(self) -> None:
        super().__init__(499, "the client left")


async def left(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def attended(request: Request, work: Coroutine[Any, Any, T], seconds: float) -> T:
    """The result of the work, which ends when the client leaves or the time is over."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(left(request.receive))
    try:
        async with asyncio.timeout(seconds):
            await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeft
    finally:
        watch.cancel()
        task.cancel()
        await asyncio.wait({task})


class EventStream(Response):
    """Server-sent events, ended when the client leaves. What was not read is not produced: sending waits for the reader."""

    media_type = "text/event-stream"

    def __init__(self, pieces: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        """`close` is called at the end, whatever happens."""
        self.status_code, self.background = 200, None
        self._pieces, self._close = pieces, close
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends all of it."""
        pump, watch = asyncio.ensure_future(self._pump(send)), asyncio.ensure_future(left(receive))
        try:
            await asyncio.wait({pump, watch}, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
        finally:
            watch.cancel()
            pump.cancel()
            await asyncio.wait({pump})
            self._close()

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
