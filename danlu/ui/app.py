"""The pages as an application, below /ui: of `danlu ui`, and beside the routes of `danlu serve`."""

from __future__ import annotations

import hmac
from urllib.parse import parse_qs

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException

from danlu.errors import DanluError
from danlu.serve.options import ServeOptions
from danlu.ui import data_page, decode_page, evaluate_page, plan_page, recall_page, runs_page, start_page
from danlu.ui.guard import COOKIE, KEY_PATH, ROOT, Guard, fault, token_of
from danlu.ui.options import check_open
from danlu.ui.requests import asked_language
from danlu.ui.shell import PAGES, key_page, page, static_file
from danlu.ui.site import Site

_LONGEST_FORM = 4096  # bytes of what the page of the key sends


def make_pages(site: Site, listening: ServeOptions) -> FastAPI:
    """The pages of a site. Raises ConfigError for an address that a network sees, without a key."""
    check_open(listening)
    app = FastAPI(title="Danlu", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    _add_shell(app, site)
    _add_key(app, listening.api_key)
    for room in (runs_page, decode_page, plan_page, data_page, recall_page, evaluate_page, start_page):
        room.add(app, site)
    app.add_exception_handler(DanluError, _on_error)
    app.add_exception_handler(HTTPException, _on_missing)
    app.state.end = site.closing.set
    app.add_middleware(Guard, host=listening.host, allowed=site.options.allowed_hosts, key=listening.api_key)
    return app


async def _on_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, DanluError), "registered for it alone"
    return fault(400, error.seen, error.fix, error.allowed)


async def _on_missing(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for it alone"
    return fault(error.status_code, f"{error.detail}: {request.method} {request.url.path}", f"open {ROOT}/runs")


def _add_shell(app: FastAPI, site: Site) -> None:
    @app.get("/")
    @app.get(ROOT)
    @app.get(f"{ROOT}/")
    async def first() -> Response:
        return RedirectResponse(f"{ROOT}/runs", 303)

    def add(name: str) -> None:
        async def shown(request: Request) -> Response:
            facts = {
                "model": site.model.name,
                "canDecode": site.model.state != "absent",
                "canStart": site.options.start_runs,
                "collections": list(site.collections),
            }
            return page(name, asked_language(request), dict(request.query_params), facts)

        app.add_api_route(f"{ROOT}/{name}", shown, methods=["GET", "HEAD"], response_model=None)

    for name in PAGES:
        add(name)

    @app.get(f"{ROOT}/static/{{name}}")
    async def static(name: str, request: Request) -> Response:
        return static_file(name, request.headers.get("if-none-match", ""))


def _add_key(app: FastAPI, key: str | None) -> None:
    @app.get(KEY_PATH)
    async def ask(request: Request) -> Response:
        return key_page(asked_language(request), _own(request.query_params.get("next", "")), is_wrong=False)

    @app.post(KEY_PATH)
    async def enter(request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _LONGEST_FORM:
                return fault(413, "too long for a key")
        sent = {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
        back = _own(sent.get("next", ""))
        if key is None or not hmac.compare_digest(sent.get("key", "").strip().encode(), key.encode()):
            return key_page(asked_language(request), back, is_wrong=True)
        answer = RedirectResponse(back, 303)
        answer.set_cookie(
            COOKIE, token_of(key), path=ROOT, httponly=True, samesite="strict", secure=request.url.scheme == "https",
            max_age=30 * 86400,
        )  # fmt: skip
        return answer


def _own(path: str) -> str:
    """A place among the pages to go back to; nowhere else."""
    return (
        path
        if path.startswith(f"{ROOT}/") and "\\" not in path and not path.startswith(f"{ROOT}//")
        else f"{ROOT}/runs"
    )
