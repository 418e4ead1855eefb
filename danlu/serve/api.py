"""Routes: OpenAI's, /health and /metrics, over one engine."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

import danlu
from danlu.generate.engine import Engine
from danlu.serve.body import read_json
from danlu.serve.faults import ApiFault, as_fault
from danlu.serve.options import ServeOptions
from danlu.serve.replies import Replies
from danlu.serve.schema import Ask, ChatBody, CompletionBody, read_chat, read_completion, schema_of
from danlu.serve.service import Receive, Run, Service, while_wanted
from danlu.serve.stream import EventStream, Send

_OPEN_PATHS = {"/health"}
_OUTCOMES = {None: "ok", 429: "queue_full", 499: "cancelled", 503: "shutdown", 504: "timeout", 408: "timeout"}
_Reader = Callable[[dict[str, Any]], Ask]
_Handler = Callable[[Request], Awaitable[Response]]


def make_app(engine: Engine, options: ServeOptions, model_name: str = "danlu") -> FastAPI:
    """The server's application.

    Args:
        engine: answers; it is not closed here.
        model_name: what clients call the model where options.served_model_name says nothing.
    """
    service = Service(engine, options, options.served_model_name or model_name)
    app = FastAPI(title="Danlu", version=danlu.__version__)
    app.state.service = service
    _add_answers(app, service)
    _add_the_rest(app, service)
    app.add_exception_handler(ApiFault, _on_fault)
    app.add_exception_handler(HTTPException, _on_http_fault)
    app.add_middleware(Gate, api_key=options.api_key)
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(options.cors_origins), allow_methods=["*"], allow_headers=["*"]
        )
    return app


class Gate:
    """Asks for the key, and turns what nobody else caught into an answer without a traceback."""

    def __init__(self, app: Any, api_key: str | None) -> None:
        self._app, self._key = app, None if api_key is None else api_key.encode()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
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
        except Exception as error:
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


def _add_answers(app: FastAPI, service: Service) -> None:
    bodies = {}
    for path, read, model in (
        ("/v1/chat/completions", read_chat, ChatBody),
        ("/v1/completions", read_completion, CompletionBody),
    ):
        schema, definitions = schema_of(model)
        bodies.update(definitions)
        extra = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
        handler = _handler(service, read, chat=read is read_chat)
        app.add_api_route(path, handler, methods=["POST"], name=path[4:], openapi_extra=extra, response_model=None)

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            document.setdefault("components", {}).setdefault("schemas", {}).update(bodies)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def _handler(service: Service, read: _Reader, *, chat: bool) -> _Handler:
    async def answer(request: Request) -> Response:
        arrived = time.monotonic()

        def ended(fault: ApiFault | None) -> None:
            _count(service, fault, arrived)

        try:
            run = await _start(service, request, read, arrived)
            replies = Replies(service.model_name, service.names, chat, counted=run.ask.include_usage)
            if run.ask.stream:
                return EventStream(run, replies, ended)
            body = await _whole(service, run, replies, request)
        except Exception as error:
            fault = as_fault(error)
            ended(fault)
            return _response(fault)
        ended(None)
        return JSONResponse(body)

    return answer


async def _start(service: Service, request: Request, read: _Reader, arrived: float) -> Run:
    options = service.options
    document = await read_json(request, options.max_body_bytes, options.request_timeout_seconds)
    return await service.open(read(document), arrived)


async def _whole(service: Service, run: Run, replies: Replies, request: Request) -> dict[str, Any]:
    async def everything() -> dict[str, Any]:
        echoes = await run.echoes()
        return replies.whole(await run.answers(), run.usage, echoes)

    try:
        return await while_wanted(everything(), request.receive, service, run.deadline - time.monotonic() + 1)
    finally:
        run.close()


def _count(service: Service, fault: ApiFault | None, arrived: float) -> None:
    status = None if fault is None else fault.status
    outcome = _OUTCOMES.get(status) or ("client_error" if status is not None and status < 500 else "server_error")
    service.metrics.requests.labels(outcome).inc()
    service.metrics.duration.observe(time.monotonic() - arrived)


# -- the rest --------------------------------------------------------------------------------------


def _add_the_rest(app: FastAPI, service: Service) -> None:
    created = int(time.time())
    card = {"id": service.model_name, "object": "model", "created": created, "owned_by": "danlu"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != service.model_name:
            raise ApiFault(404, f"no model {name!r}", "model", "model_not_found")
        return card

    @app.post("/v1/embeddings")
    async def embeddings() -> None:
        raise ApiFault(501, "/v1/embeddings is not there yet: this server only generates text", code="not_implemented")

    @app.get("/health")
    async def health() -> Response:
        if service.closing.is_set():
            return JSONResponse({"status": "closing"}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _response(fault: ApiFault) -> Response:
    return JSONResponse(fault.body, fault.status, headers=dict(fault.headers))


async def _on_fault(_request: Request, error: Exception) -> Response:
    return _response(as_fault(error))


async def _on_http_fault(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for it alone"
    known = "POST /v1/chat/completions, POST /v1/completions, GET /v1/models, GET /health, GET /metrics"
    message = f"{error.detail}: {request.method} {request.url.path}; there is {known}"
    code = {404: "unknown_route", 405: "method_not_allowed"}.get(error.status_code)
    return _response(ApiFault(error.status_code, message, code=code, headers=error.headers or {}))
