"""The page of runs: lists, details, reports, and a stream that goes on where a page left off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse

from danlu.errors import ConfigError
from danlu.report.charts import OF_STAGES
from danlu.ui.guard import ROOT
from danlu.ui.requests import as_json, at_work, said_in, written
from danlu.ui.runs import Runs
from danlu.ui.series import Cursor, Kept, told
from danlu.ui.site import Site
from danlu.words import Words

LOOK_SECONDS = 0.5  # between two looks at a run that goes on
AGAIN_SECONDS = 5  # after which a page asks again about runs that do not go on
_QUIET_SECONDS = 15  # after which a stream says that it is still there
_MOST_RUNS = 8  # over each other
# A report brings styles along, and no script; nothing in it may run or be fetched, whatever a run is called.
_REPORT_POLICY = "sandbox allow-popups; default-src 'none'; style-src 'unsafe-inline'"


def charts(said: Words) -> list[dict[str, object]]:
    """The figures in their order: title, unit, and what is drawn in each; two columns share a figure."""
    of_stages: list[dict[str, object]] = [
        {"title": said(title), "unit": said(unit) if unit else "", "columns": [name]}
        for name, (title, unit) in OF_STAGES.items()
    ]
    return [
        {
            "title": said("Loss"),
            "unit": "",
            "columns": ["loss", "eval_loss"],
            "names": [said("training"), said("held out")],
            "wide": True,
        },
        *of_stages,
        {"title": said("Learning rate"), "unit": "", "columns": ["lr"], "zero": True},
        {"title": said("Gradient norm"), "unit": "", "columns": ["grad_norm"], "zero": True},
        {"title": said("Speed"), "unit": said("tokens/s"), "columns": ["tokens_per_second"], "zero": True},
        {
            "title": said("Memory"),
            "unit": "GiB",
            "columns": ["peak_memory_bytes", "memory_bytes"],
            "names": [said("peak of the step"), said("at its end")],
            "scale": 1 / 2**30,
            "zero": True,
        },
    ]


def add(app: FastAPI, site: Site) -> None:
    """Routes below /ui/api/runs, and the reports."""
    runs = Runs(site.runs, Kept())

    @app.get(f"{ROOT}/api/runs")
    async def listed(request: Request) -> Response:
        said = said_in(request)
        return as_json(await at_work(lambda: [runs.card(name, said) for name in runs.names()]))

    @app.get(f"{ROOT}/api/runs/detail")
    async def detail(request: Request, run: str) -> Response:
        return as_json(await at_work(partial(runs.detail, run, said_in(request))))

    @app.get(f"{ROOT}/api/runs/charts")
    async def figures(request: Request) -> Response:
        return as_json(charts(said_in(request)))

    @app.get(f"{ROOT}/api/runs/stream")
    async def stream(request: Request) -> Response:
        names = request.query_params.getlist("run")[:_MOST_RUNS]
        if not names:
            raise ConfigError("no run is named")
        for name in names:
            await at_work(partial(runs.at, name))
        # A browser that comes back says it in a header; a page that was hidden meanwhile, in the address.
        last = request.headers.get("last-event-id") or request.query_params.get("after", "")
        cursors = Cursor.read(last, len(names))
        events = _events(runs, names, cursors, said_in(request), site, request)
        return StreamingResponse(events, media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    @app.get(f"{ROOT}/report/{{name:path}}/report.html")
    async def report(name: str) -> Response:
        path = (await at_work(partial(runs.at, name))) / "report.html"
        if not path.is_file():
            raise ConfigError(f"{name} has no report yet", fix=f"danlu report {path.parent}")
        text = await at_work(partial(path.read_text, "utf-8"))
        return HTMLResponse(text, headers={"content-security-policy": _REPORT_POLICY})


async def _events(
    runs: Runs, names: Sequence[str], cursors: list[Cursor], said: Words, site: Site, request: Request
) -> AsyncIterator[str]:
    """What a page lacks, then what comes; each event's id is how far all its runs have been told.

    It ends where none of the runs goes on and all is told.
    """
    yield "retry: 1000\n\n"
    shown: dict[str, dict[str, Any]] = {}
    quiet, is_first = 0.0, True
    while not site.closing.is_set() and not await request.is_disconnected():
        quiet += LOOK_SECONDS
        is_news = is_first
        for at, name in enumerate(names):
            found: list[tuple[str, dict[str, Any]]] = []
            if not is_first:  # reading a long run takes a moment: how each stands is told before
                found, cursors[at] = await at_work(partial(_told, runs, name, cursors[at]))
            for place, (kind, data) in enumerate(
                [*found, *await at_work(partial(_stands, runs, name, said, shown))], 1
            ):
                quiet, is_news = 0.0, True
                mark = f"id: {','.join(map(str, cursors))}\n" if place == len(found) else ""
                yield f"{mark}event: {kind}\ndata: {written(data)}\n\n"
        if not is_news and all(card["state"] != "running" for card in shown.values()):
            # A browser has six connections to a server, for all its tabs. It comes back by itself.
            yield f"event: ended\ndata: {{}}\nretry: {AGAIN_SECONDS * 1000}\n\n"
            return
        if quiet >= _QUIET_SECONDS:
            quiet = 0.0
            yield ": still here\n\n"
        if not is_first:
            await asyncio.sleep(LOOK_SECONDS)
        is_first = False


def _told(runs: Runs, name: str, cursor: Cursor) -> tuple[list[tuple[str, dict[str, Any]]], Cursor]:
    """What is new of a run's figures."""
    try:
        return told(name, runs.series(name), cursor)
    except ConfigError:  # it was moved or deleted
        return [], cursor


def _stands(runs: Runs, name: str, said: Words, shown: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """How a run stands, where that is not what is `shown`."""
    try:
        card = runs.live(name, said)
    except ConfigError:
        card = {"run": name, "state": "gone"}
    if shown.get(name) == card:
        return []
    shown[name] = card
    return [("card", card)]
