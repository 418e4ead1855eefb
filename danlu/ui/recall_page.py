"""The page of collections: a where-clause that counts as it is typed, who qualifies, and what finds them how fast."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field

from danlu.config import Options
from danlu.errors import ConfigError
from danlu.recall import Collection, Query
from danlu.recall.profile import Attribute
from danlu.ui.guard import ROOT
from danlu.ui.requests import as_json, at_work, read_body
from danlu.ui.site import Site

_LOG = logging.getLogger(__name__)
_SHARES = 12  # values of an attribute that are shown
_VALUES = 50  # that are offered for completion
_LONGEST = 400  # characters of a cell


class RecallBody(Options):
    """What is typed: a where-clause, and a text that rows are looked for by."""

    collection: str = Field(max_length=200)
    where: str = Field("", max_length=20_000)
    like: str = Field("", max_length=20_000)
    top: int = Field(20, ge=1, le=200)


class Shelves:
    """The collections of a site, opened when they are first asked for, each at its newest state."""

    def __init__(self, named: Mapping[str, Path]) -> None:
        self._paths, self._lock = named, threading.Lock()
        self._opened: dict[str, Collection] = {}
        self._spread: dict[tuple[str, int], list[Attribute]] = {}

    def newest(self, name: str) -> Collection:
        """Raises ConfigError for one that is not named, DataError for one that cannot be read."""
        if name not in self._paths:
            known = ", ".join(map(repr, self._paths)) or "none"
            raise ConfigError(f"no collection {name!r:.100}", allowed=known, fix="danlu ui --collection NAME=FOLDER")
        with self._lock:
            opened = self._opened.get(name)
            fresh = Collection.open(self._paths[name], say=_LOG.warning) if opened is None else opened.newest()
            self._opened[name] = fresh
            return fresh

    def spread(self, name: str) -> list[Attribute]:
        """How the values of all rows are spread; counted once for each state."""
        opened = self.newest(name)
        key = name, opened.manifest.number
        if key not in self._spread:
            self._spread = {one: kept for one, kept in self._spread.items() if one[0] != name}
            self._spread[key] = opened.profile(opened.everything())
        return self._spread[key]


def add(app: FastAPI, site: Site) -> None:
    """Routes below /ui/api/recall."""
    shelves = Shelves(site.collections)

    @app.get(f"{ROOT}/api/recall")
    async def card(collection: str) -> Response:
        return as_json(await at_work(partial(carded, shelves, collection)))

    @app.post(f"{ROOT}/api/recall/count")
    async def count(request: Request) -> Response:
        body = await read_body(request, RecallBody)
        return as_json(await at_work(partial(counted, shelves, body)))

    @app.post(f"{ROOT}/api/recall/profile")
    async def profile(request: Request) -> Response:
        body = await read_body(request, RecallBody)
        return as_json(await at_work(partial(profiled, shelves, body)))

    @app.post(f"{ROOT}/api/recall")
    async def rows(request: Request) -> Response:
        body = await read_body(request, RecallBody)
        return as_json(await at_work(partial(found, shelves, body)))


def carded(shelves: Shelves, name: str) -> dict[str, Any]:
    """What there is to be asked: columns, with their values where they are few enough to be offered."""
    opened = shelves.newest(name)
    values = {one.name: [_literal(share.value) for share in one.shares[:_VALUES]] for one in shelves.spread(name)}
    numbers = {one.name for one in opened.columns if one.kind in ("integer", "real", "date", "time")}
    return {
        "rows": len(opened),
        "columns": [
            {"name": one.name, "kind": one.kind, "values": [] if one.name in numbers else values.get(one.name, [])}
            for one in opened.columns
            if not one.name.startswith("_")
        ],
        "channels": list(opened.channels),
        "audiences": sorted(opened.manifest.audiences),
    }


def _literal(value: Any) -> str:
    """A value as a where-clause has it."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return json.dumps(value, default=str)


def counted(shelves: Shelves, body: RecallBody) -> dict[str, Any]:
    """How many rows qualify."""
    opened = shelves.newest(body.collection)
    started = time.perf_counter()
    count = opened.count(body.where) if body.where.strip() else len(opened)
    return {"count": count, "of": len(opened), "seconds": time.perf_counter() - started}


def profiled(shelves: Shelves, body: RecallBody) -> dict[str, Any]:
    """Of every attribute, the values of those that qualify beside those of all, with the target group index."""
    opened = shelves.newest(body.collection)
    started = time.perf_counter()
    rows = opened.where(body.where) if body.where.strip() else opened.everything()
    attributes = opened.profile(rows)
    return {
        "count": len(rows),
        "seconds": time.perf_counter() - started,
        "attributes": [
            {
                "name": one.name,
                "kind": one.kind,
                "known": one.known,
                "more": max(0, len(one.shares) - _SHARES),
                "shares": [
                    {
                        "value": _shown(share.value),
                        "share": share.rows / one.known if one.known else 0.0,
                        "of_all": share.of_all / one.known_of_all if one.known_of_all else 0.0,
                        "rows": share.rows,
                        "tgi": one.tgi(share),
                    }
                    for share in one.shares[:_SHARES]
                ],
            }
            for one in attributes
            if not one.name.startswith("_")
        ],
    }


def _shown(value: Any) -> str:
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return " – ".join(map(_shown, value))
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def found(shelves: Shelves, body: RecallBody) -> dict[str, Any]:
    """Rows, with the channels that found each and what each channel took."""
    opened = shelves.newest(body.collection)
    where = body.where if body.where.strip() else None
    columns = [
        one.name
        for one in opened.columns
        if one.kind != "vector" and not one.name.startswith("_") and one.name != opened.id_column
    ]
    started = time.perf_counter()
    if body.like.strip():
        made = opened.recall(Query(where=where, like=body.like, top=body.top))
        numbers, among, seconds = made.rows, made.among, dict(made.seconds)
        heads = [
            {
                "id": one.id,
                "score": one.score,
                "found_by": {name: {"rank": at.rank, "score": at.score} for name, at in one.places.items()},
            }
            for one in made
        ]
    else:
        rows = opened.where(where) if where is not None else opened.everything()
        numbers, among, seconds = rows.rows(body.top), len(rows), {"where": time.perf_counter() - started}
        heads = [{"id": id, "score": None, "found_by": {}} for id in opened.ids(numbers).to_pylist()]
    whole = time.perf_counter() - started
    table = opened.table(numbers, columns).to_pylist() if columns and len(heads) else [{} for _ in heads]
    cells = [{name: _cell(value) for name, value in row.items()} for row in table]
    return {
        "among": among,
        "columns": columns,
        "rows": [{**head, "row": row} for head, row in zip(heads, cells, strict=True)],
        "seconds": {**seconds, "whole": whole},
    }


def _cell(value: Any) -> Any:
    return value[:_LONGEST] + " …" if isinstance(value, str) and len(value) > _LONGEST else value
