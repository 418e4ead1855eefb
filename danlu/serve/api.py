"""Routes: OpenAI's, /v1/recall, /health and /metrics, over one backend and, beside it, an embedder and collections."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

import danlu
from danlu.generate.engine import Engine
from danlu.serve.backends import Backend, OwnEngine
from danlu.serve.embeddings import EmbeddingBody, Embeddings
from danlu.serve.faults import ApiFault, as_fault
from danlu.serve.options import ServeOptions
from danlu.serve.recalls import RecallBody, Recalls
from danlu.serve.replies.replies import Written, rendered
from danlu.serve.response_events import told
from danlu.serve.service import Receive, Service, while_wanted
from danlu.serve.stream import Send
from danlu.serve.wire.bodies import ChatBody, CompletionBody
from danlu.serve.wire.body import SHORT_BYTES, read_json
from danlu.serve.wire.responses import ResponsesBody, read_responses
from danlu.serve.wire.schema import Ask, read_chat, read_completion, schema_of

_OPEN_PATHS = {"/health"}
_T = TypeVar("_T")
_OUTCOMES = {None: "ok", 429: "queue_full", 499: "cancelled", 503: "shutdown", 504: "timeout", 408: "timeout"}
_Reader = Callable[[dict[str, Any]], Ask]
_Handler = Callable[[Request], Awaitable[Response]]


def make_app(
    engine: Engine,
    options: ServeOptions,
    model_name: str = "danlu",
    embeddings: Embeddings | None = None,
    recalls: Recalls | None = None,
) -> FastAPI:
    """The application over an engine of this process.

    Args:
        engine: answers; it is not closed here.
        model_name: what clients call the model where options.served_model_name says nothing.
    """
    service = Service(engine, options, options.served_model_name or model_name)
    app = make_app_over(OwnEngine(service), embeddings, recalls)
    app.state.service = service
    return app


def make_app_over(
    backend: Backend,
    embeddings: Embeddings | None = None,
    recalls: Recalls | None = None,
    pages: FastAPI | None = None,
) -> FastAPI:
    """The application over any backend; it closes none of what it is given.

    Args:
        pages: answers at /ui and below, and looks for itself who may ask; its `state.end()` ends its streams.
    """
    options = backend.options
    # Neither pages whose scripts lie on another server, nor redirects that repeat what a client said of our name.
    app = FastAPI(title="Danlu", version=danlu.__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.backend, app.state.pages = backend, pages
    _add_answers(app, backend, recalls)
    _add_recall(app, backend, recalls)
    _add_responses(app, backend)
    _add_embeddings(app, backend, embeddings)
    _add_tokens(app, backend)
    _add_the_rest(app, backend, embeddings)
    app.add_exception_handler(ApiFault, _on_fault)
    app.add_exception_handler(HTTPException, _on_http_fault)
    app.add_middleware(Gate, api_key=options.api_key, pages=pages)
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(options.cors_origins), allow_methods=["*"], allow_headers=["*"]
        )
    return app


class Gate:
    """Asks for the key, and turns what nobody else caught into an answer without a traceback."""

    def __init__(self, app: Any, api_key: str | None, pages: Any = None) -> None:
        self._app, self._key, self._pages = app, None if api_key is None else api_key.encode(), pages

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._pages is not None and f"{scope['path']}/".startswith("/ui/"):
            await self._pages(scope, receive, send)
            return
        if len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        started = False

        async def noting_the_start(message: Any) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            if not self._lets_in(scope):
                raise ApiFault(
                    401, "wrong or missing API key; send Authorization: Bearer KEY", code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )  # fmt: skip
            await self._app(scope, receive, noting_the_start)
        except Exception as error:  # of any route: a client gets JSON, whatever went wrong
            if started:
                raise
            await _response(as_fault(error))(scope, receive, send)

    def _lets_in(self, scope: Any) -> bool:
        if self._key is None or scope["path"] in _OPEN_PATHS:
            return True
        sent = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = sent.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key)


# -- answers ---------------------------------------------------------------------------------------


def _add_answers(app: FastAPI, backend: Backend, recalls: Recalls | None) -> None:
    bodies = {}
    for path, read, model in (
        ("/v1/chat/completions", read_chat, ChatBody),
        ("/v1/completions", read_completion, CompletionBody),
    ):
        schema, definitions = schema_of(model)
        bodies.update(definitions)
        extra = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
        handler = _handler(backend, read, recalls, chat=read is read_chat)
        app.add_api_route(path, handler, methods=["POST"], name=path[4:], openapi_extra=extra, response_model=None)

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            document.setdefault("components", {}).setdefault("schemas", {}).update(bodies)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def _handler(backend: Backend, read: _Reader, recalls: Recalls | None, *, chat: bool) -> _Handler:
    async def answer(request: Request) -> Response:
        arrived = time.monotonic()

        def ended(fault: ApiFault | None) -> None:
            _count(backend, fault, arrived)

        try:
            ask = await _read(read, await _document(request, backend), request)
            if ask.recall is not None:
                work = _there(recalls).grounded(ask, backend.room(ask), backend.length)
                ask = await while_wanted(work, request.receive, backend, _seconds_left(backend, arrived))
            return await backend.reply(ask, chat, arrived, request.receive, ended)
        except Exception as error:  # as_fault words what it knows; a fault of ours is an answer, and counted, too
            fault = as_fault(error)
            ended(fault)
            return _response(fault)

    return answer


def _add_responses(app: FastAPI, backend: Backend) -> None:
    async def answer(request: Request) -> Response:
        arrived = time.monotonic()

        def ended(fault: ApiFault | None) -> None:
            _count(backend, fault, arrived)

        try:
            ask, wishes = await _read(read_responses, await _document(request, backend), request)
            return told(await backend.reply(ask, True, arrived, request.receive, ended), wishes)
        except Exception as error:  # as above
            fault = as_fault(error)
            ended(fault)
            return _response(fault)

    content = {"application/json": {"schema": ResponsesBody.model_json_schema()}}
    extra = {"requestBody": {"required": True, "content": content}}
    app.add_api_route("/v1/responses", answer, methods=["POST"], openapi_extra=extra, response_model=None)


async def _read(read: Callable[[dict[str, Any]], _T], document: dict[str, Any], request: Request) -> _T:
    """What a body asks for; a long one is checked in a thread, so that others are answered meanwhile."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) <= SHORT_BYTES:
        return read(document)
    return await asyncio.to_thread(read, document)


async def _document(request: Request, backend: Backend) -> dict[str, Any]:
    return await read_json(request, backend.options.max_body_bytes, backend.options.request_timeout_seconds)


def _count(backend: Backend, fault: ApiFault | None, arrived: float) -> None:
    status = None if fault is None else fault.status
    outcome = _OUTCOMES.get(status) or ("client_error" if status is not None and status < 500 else "server_error")
    backend.metrics.requests.labels(outcome).inc()
    backend.metrics.duration.observe(time.monotonic() - arrived)


def _seconds_left(backend: Backend, arrived: float) -> float:
    return arrived + backend.options.request_timeout_seconds - time.monotonic()


# -- rows of collections ---------------------------------------------------------------------------


def _there(recalls: Recalls | None) -> Recalls:
    if recalls is None:
        message = "no collections: this server was started without --collection NAME=FOLDER"
        raise ApiFault(501, message, code="not_implemented")
    return recalls


def _add_recall(app: FastAPI, backend: Backend, recalls: Recalls | None) -> None:
    async def answer(request: Request) -> Response:
        arrived = time.monotonic()
        try:
            work = _there(recalls).answer(await _document(request, backend))
            body = await while_wanted(work, request.receive, backend, _seconds_left(backend, arrived))
        except Exception as error:  # as above
            fault = as_fault(error)
            _count(backend, fault, arrived)
            return _response(fault)
        _count(backend, None, arrived)
        return await asyncio.to_thread(JSONResponse, body)

    async def listed() -> Response:
        try:
            return JSONResponse({"object": "list", "data": [] if recalls is None else await recalls.cards()})
        except Exception as error:  # as above
            return _response(as_fault(error))

    content = {"application/json": {"schema": RecallBody.model_json_schema()}}
    extra = {"requestBody": {"required": True, "content": content}}
    app.add_api_route("/v1/recall", answer, methods=["POST"], openapi_extra=extra, response_model=None)
    app.add_api_route("/v1/recall", listed, methods=["GET"], response_model=None)


# -- embeddings ------------------------------------------------------------------------------------


def _add_embeddings(app: FastAPI, backend: Backend, embeddings: Embeddings | None) -> None:
    async def answer(request: Request) -> Response:
        arrived = time.monotonic()
        try:
            if embeddings is None:
                raise ApiFault(
                    501, "no embeddings: this server was started with --embedder none", code="not_implemented"
                )
            work = embeddings.answer(await _document(request, backend))
            body = await while_wanted(work, request.receive, backend, _seconds_left(backend, arrived))
        except Exception as error:  # as above
            fault = as_fault(error)
            _count(backend, fault, arrived)
            return _response(fault)
        backend.metrics.embedded_tokens.inc(body["usage"]["total_tokens"])
        _count(backend, None, arrived)
        return await asyncio.to_thread(JSONResponse, body)

    content = {"application/json": {"schema": EmbeddingBody.model_json_schema()}}
    extra = {"requestBody": {"required": True, "content": content}}
    app.add_api_route("/v1/embeddings", answer, methods=["POST"], openapi_extra=extra, response_model=None)


# -- tokens ----------------------------------------------------------------------------------------


def _add_tokens(app: FastAPI, backend: Backend) -> None:
    def route(path: str, spelt: bool) -> None:
        async def answer(request: Request) -> Response:
            try:
                answer = await backend.tokens(await _document(request, backend), spelt=spelt)
                return Written(await asyncio.to_thread(rendered, answer))
            except Exception as error:  # as above
                return _response(as_fault(error))

        app.add_api_route(path, answer, methods=["POST"], name=path[1:], response_model=None)

    route("/tokenize", spelt=False)
    route("/detokenize", spelt=True)


# -- the rest --------------------------------------------------------------------------------------


def _add_the_rest(app: FastAPI, backend: Backend, embeddings: Embeddings | None) -> None:
    created = int(time.time())

    async def cards() -> list[dict[str, Any]]:
        names = {**backend.models, **({} if embeddings is None else {embeddings.name: None})}
        card = {"object": "model", "created": created, "owned_by": "danlu"}
        kinds = await backend.kinds()
        of_kind = {name: {"kind": kinds[name]} if name in kinds else {} for name in names}
        return [{"id": name, **card, "parent": parent, **of_kind[name]} for name, parent in names.items()]

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": await cards()}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        known = {card["id"]: card for card in await cards()}
        if name not in known:
            names = ", ".join(map(repr, known))
            raise ApiFault(404, f"no model {name!r}; this server has {names}", "model", "model_not_found")
        return known[name]

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": danlu.__version__}

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> Response:
        if backend.closing.is_set():
            return JSONResponse({"status": "closing"}, 503)
        await backend.check_health()
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(backend.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _response(fault: ApiFault) -> Response:
    return JSONResponse(fault.body, fault.status, headers=dict(fault.headers))


async def _on_fault(_request: Request, error: Exception) -> Response:
    return _response(as_fault(error))


async def _on_http_fault(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for it alone"
    known = (
        "POST /v1/chat/completions, /v1/responses, /v1/completions, /v1/embeddings, /v1/recall, /tokenize, "
        "/detokenize, GET /v1/models, /v1/recall, /version, /health, /metrics"
    )
    message = f"{error.detail}: {request.method} {request.url.path}; there is {known}"
    code = {404: "unknown_route", 405: "method_not_allowed"}.get(error.status_code)
    return _response(ApiFault(error.status_code, message, code=code, headers=error.headers or {}))
