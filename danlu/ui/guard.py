"""Who may see the pages: Host, Origin and key are looked at before anything else, and every answer forbids the rest.

A browser sends no header of our choice when it opens a page or a stream of events, so a key that was typed in once
becomes a cookie: not the key, but what only its holder can work out, and the same after a restart.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import quote

from fastapi.responses import JSONResponse, RedirectResponse, Response

from danlu.ui.options import is_known_host

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_LOG = logging.getLogger(__name__)

ROOT = "/ui"
KEY_PATH = f"{ROOT}/key"
COOKIE = "danlu_ui"
_OPEN = (f"{ROOT}/static/", KEY_PATH)

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def token_of(key: str) -> str:
    """What the cookie holds of whoever has the key."""
    return hmac.new(key.encode(), b"danlu pages", hashlib.sha256).hexdigest()


class Guard:
    """Lets in what may be let in.

    Args:
        app: the pages.
        host: the address they listen on.
        allowed: further names of this machine.
        key: None lets everybody in who reaches the address.
    """

    def __init__(self, app: Any, host: str, allowed: tuple[str, ...], key: str | None) -> None:
        self._app, self._host, self._allowed, self._key = app, host, allowed, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        started = False

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                own = {name.lower() for name, _ in message["headers"]}
                more = [(k.encode(), v.encode()) for k, v in _HEADERS.items() if k.encode() not in own]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            refused = self._refusal(scope)
            await (self._app if refused is None else refused)(scope, receive, with_headers)
        except Exception as error:  # of any route: an answer without a traceback
            _LOG.error("a page failed: %s", scope["path"], exc_info=error)
            if started:
                raise
            await fault(500, "the server failed on this; its log says more")(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if not is_known_host(host, self._host, self._allowed):
            return fault(
                403,
                f"these pages do not answer to the name {host!r:.100}",
                "open them by the address, or start danlu with --allowed_hosts NAME",
            )
        if not _is_from_here(scope["method"], headers, host):
            return fault(403, "another page asked for this", "open the pages themselves")
        if self._key is None or scope["path"].startswith(_OPEN) or self._has_key(headers, self._key):
            return None
        if scope["method"] == "GET" and not scope["path"].startswith(f"{ROOT}/api/"):
            query = scope["query_string"].decode("latin-1")
            back = scope["path"] + (f"?{query}" if query else "")
            return RedirectResponse(f"{KEY_PATH}?next={quote(back, safe='')}", 303)
        return fault(401, "wrong or missing key", f"open {KEY_PATH}, or send Authorization: Bearer KEY")

    def _has_key(self, headers: dict[str, str], key: str) -> bool:
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return hmac.compare_digest(sent.strip().encode("latin-1"), key.encode())
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), token_of(key).encode())


def _is_from_here(method: str, headers: dict[str, str], host: str) -> bool:
    """Whether a request was made by these pages, or by no page at all."""
    if method not in ("GET", "HEAD") and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return False
    origin = headers.get("origin")  # a link to these pages has none
    return origin is None or origin.partition("://")[2].lower() == host.lower()


def fault(status: int, seen: str, fix: str = "", allowed: str = "") -> JSONResponse:
    """An error as the pages show it."""
    return JSONResponse({"error": {"seen": seen, "allowed": allowed, "fix": fix}}, status)
