"""The page of data: a file that is dropped or chosen -> how it is read, faults, lengths, duplicates, rendered chats."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field

from danlu.config import Options
from danlu.data.chat import Chat
from danlu.data.formats import Reading, read_records
from danlu.data.look.check import check
from danlu.data.look.shown import Span, answers_of, shortened, spans_of_record, spans_shown
from danlu.data.records import Record
from danlu.errors import DataError
from danlu.ui.files import ENDINGS, Files
from danlu.ui.guard import ROOT
from danlu.ui.requests import as_json, at_work, read_body
from danlu.ui.site import Site

_EXAMPLES = 5  # on a page
_AT_ONCE = 2  # files that are read through; other requests have threads left
_NEAR_RECORDS = 50_000  # fewer than on the command line: somebody is waiting


class DataBody(Options):
    """Which file, and from which record on its examples are shown."""

    place: str = Field(max_length=1000)
    max_length: int | None = Field(None, ge=1, le=2**20)
    first: int = Field(0, ge=0, le=10**9)


def add(app: FastAPI, site: Site) -> None:
    """Routes below /ui/api/data."""
    files = Files(site.options.folders, site.options.max_upload_bytes)
    site.at_end.append(files.close)
    free = asyncio.Semaphore(_AT_ONCE)

    def chat() -> Chat | None:
        return site.model.engine.chat if site.model.state == "ready" else None

    @app.get(f"{ROOT}/api/data")
    async def listed() -> Response:
        found = await at_work(files.listed)
        return as_json({"files": found, "endings": ENDINGS, "most": site.options.max_upload_bytes})

    @app.post(f"{ROOT}/api/data/drop")
    async def drop(request: Request, name: str) -> Response:
        return as_json({"place": await files.drop(name, request.stream())})

    @app.post(f"{ROOT}/api/data")
    async def look(request: Request) -> Response:
        body = await read_body(request, DataBody)
        async with free:
            return as_json(await at_work(partial(looked_at, files.at(body.place), chat(), body)))

    @app.post(f"{ROOT}/api/data/examples")
    async def examples(request: Request) -> Response:
        body = await read_body(request, DataBody)
        return as_json(await at_work(partial(shown, files.at(body.place), chat(), body.first)))


def looked_at(path: Path, chat: Chat | None, body: DataBody) -> dict[str, Any]:
    """The figures of the file; the path in them is its name alone."""
    limit = body.max_length if chat is not None else None
    try:
        report = check(path, chat=chat, max_length=limit, near_records=_NEAR_RECORDS)
    except DataError as error:
        raise DataError(_short(path, error.seen), allowed=error.allowed, fix=_short(path, error.fix)) from error
    found = report.to_dict()
    found["faults"] = [{key: _short(path, text) for key, text in fault.items()} for fault in found["faults"]]
    found["files"] = {_short(path, name): count for name, count in found["files"].items()}
    if found["near"] is not None:
        pairs = found["near"]["pairs"]
        found["near"]["pairs"] = [[*(_short(path, place) for place in pair[:2]), pair[2]] for pair in pairs]
    return {**found, "path": path.name, "has_limit": chat is not None}


def _short(path: Path, text: str) -> str:
    """A text that names the file by its name alone: its folder is nobody's business."""
    return text.replace(f"{path.parent}/", "")


def shown(path: Path, chat: Chat | None, first: int) -> list[dict[str, Any]]:
    """A few records from the `first` on, as the model will see them; a preference has two answers."""
    records = islice(read_records(path, reading=Reading(None), on_error="skip"), first, first + _EXAMPLES)
    return [{"place": _short(path, record.place), "answers": list(_answers(record, chat))} for record in records]


def _answers(record: Record, chat: Chat | None) -> Iterator[list[dict[str, str]]]:
    if chat is None:
        yield _plain(shortened(spans_of_record(record)))
        return
    for answer in answers_of(record):
        try:
            each = chat.examples(answer)[-1]
        except DataError as error:  # the template does not take it
            yield _plain([Span(error.seen, "left out")])
            continue
        yield _plain(spans_shown(each.token_ids, each.learnt, chat.tokenizer))


def _plain(spans: list[Span]) -> list[dict[str, str]]:
    return [{"text": span.text, "kind": span.kind} for span in spans]
