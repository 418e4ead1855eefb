"""The HTML that a browser gets first: heading, ways to the other pages, words; the rest is static/*.js.

Everything in it that comes from outside is escaped. There is no script and no style in it: the policy forbids both.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from html import escape
from importlib import resources
from urllib.parse import urlencode

from fastapi.responses import HTMLResponse, Response

from danlu.ui.guard import KEY_PATH, ROOT
from danlu.ui.words import dictionary

PAGES = ("runs", "decode", "plan", "data", "recall", "evaluate", "start")
_TYPES = {
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "json": "application/json",
}


@cache
def static_files() -> dict[str, tuple[bytes, str]]:
    """Name -> the file and a tag of what it holds: nothing else can be asked for."""
    found = {}
    for entry in (resources.files("danlu.ui") / "static").iterdir():
        if entry.name.rpartition(".")[2] in _TYPES:
            data = entry.read_bytes()
            found[entry.name] = data, f'"{hashlib.sha256(data).hexdigest()[:16]}"'
    return found


def static_file(name: str, known: str) -> Response:
    """A file of the front end; 304 where the browser has it."""
    if name not in static_files():
        return Response("no such file", 404)
    data, tag = static_files()[name]
    headers = {"etag": tag, "cache-control": "no-cache"}
    if known == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=_TYPES[name.rpartition(".")[2]], headers=headers)


def page(name: str, language: str, query: dict[str, str], facts: dict[str, object]) -> HTMLResponse:
    """One of PAGES.

    Args:
        query: what the address says already; the other language keeps it.
        facts: what its script begins with.
    """
    said = dictionary(language)
    title = said[f"nav.{name}"]
    data = json.dumps({"words": said, "language": language, **facts}, ensure_ascii=False).replace("<", "\\u003c")
    body = (
        f"<h1>{escape(title)}</h1><p class=lead>{escape(said[f'lead.{name}'])}</p>"
        f"<div id=page aria-live=off></div><noscript><p>{escape(said['noscript'])}</p></noscript>"
        f'<script type="application/json" id=facts>{data}</script>'
    )
    script = f'<script type=module src="{ROOT}/static/{name}.js"></script>'
    return _document(title, language, body, script, _navigation(name, language, query, said))


def key_page(language: str, back: str, is_wrong: bool) -> HTMLResponse:
    """Where a key is typed in."""
    said = dictionary(language)
    wrong = f"<p class=fault role=alert>{escape(said['key.wrong'])}</p>" if is_wrong else ""
    body = (
        f"<h1>{escape(said['key.title'])}</h1><p class=lead>{escape(said['key.lead'])}</p>{wrong}"
        f'<form method=post action="{KEY_PATH}" class=key><input type=hidden name=next value="{escape(back)}">'
        f"<label>{escape(said['key.label'])} <input type=password name=key required autofocus "
        f"autocomplete=current-password></label> <button class=main>{escape(said['key.enter'])}</button></form>"
    )
    return _document(said["key.title"], language, body, "", "", 401 if is_wrong else 200)


def _navigation(here: str, language: str, query: dict[str, str], said: dict[str, str]) -> str:
    keep = {"lang": query["lang"]} if "lang" in query else {}
    links = "".join(
        f'<a href="{escape(_address(name, keep))}"{" aria-current=page" if name == here else ""}>'
        f"{escape(said[f'nav.{name}'])}</a>"
        for name in PAGES
    )
    other = "en" if language == "zh" else "zh"
    name, tag = {"en": ("English", "en"), "zh": ("中文", "zh-CN")}[other]
    switch = f'<a id=language lang={tag} hreflang={tag} href="{escape(_address(here, {**query, "lang": other}))}">'
    return f'<nav aria-label="{escape(said["nav.label"])}">{links}</nav>{switch}{name}</a>'


def _address(page: str, query: dict[str, str]) -> str:
    return f"{ROOT}/{page}" + (f"?{urlencode(query)}" if query else "")


def _document(title: str, language: str, body: str, script: str, navigation: str, status: int = 200) -> HTMLResponse:
    said = dictionary(language)
    return HTMLResponse(
        f"""<!doctype html>
<html lang="{"zh-CN" if language == "zh" else "en"}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)} · Danlu</title>
<link rel="stylesheet" href="{ROOT}/static/pages.css">
<link rel="icon" href="{ROOT}/static/icon.svg">
{script}
</head>
<body>
<a class="skip" href="#main">{escape(said["skip"])}</a>
<header class="top"><a class="brand" href="{ROOT}/runs"><span lang="zh">丹炉</span> Danlu</a>{navigation}</header>
<main id="main" tabindex="-1">
{body}
</main>
</body>
</html>
""",
        status,
    )
