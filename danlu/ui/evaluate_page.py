"""The page of evaluations: what `danlu evaluate --out` has left in the folder of runs, and judges beside people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field

from danlu.config import Options
from danlu.errors import ConfigError, DataError
from danlu.evaluate.correlation import NAMES, compare
from danlu.evaluate.evaluating import Evaluated
from danlu.evaluate.people import RatedRows, best_baseline, rated_rows
from danlu.evaluate.rows import Row
from danlu.evaluate.scale import Judged
from danlu.evaluate.summary import rows_of
from danlu.evaluate.written import ROWS, SUMMARY, read_evaluation
from danlu.ui.files import Files
from danlu.ui.guard import ROOT
from danlu.ui.requests import as_json, at_work, read_body
from danlu.ui.site import Site

_DEPTH = 3  # folders below that of the runs in which evaluations are looked for
_ROWS = 50  # at once


class EvaluationBody(Options):
    """Which evaluation, and which of its rows: those of a measure, the failed and the lowest first."""

    name: str = Field(max_length=500)
    measure: str = Field("", max_length=200)
    first: int = Field(0, ge=0, le=10**9)
    place: str = Field("", max_length=1000)
    rating: str = Field("", max_length=200)


def add(app: FastAPI, site: Site) -> None:
    """Routes below /ui/api/evaluate."""
    files = Files((), site.options.max_upload_bytes)
    site.at_end.append(files.close)

    @app.get(f"{ROOT}/api/evaluate")
    async def listed() -> Response:
        return as_json(await at_work(lambda: [name for name, _ in _all(site.runs)]))

    @app.post(f"{ROOT}/api/evaluate")
    async def rows(request: Request) -> Response:
        body = await read_body(request, EvaluationBody)
        return as_json(await at_work(partial(judged, _at(site.runs, body.name), body)))

    @app.post(f"{ROOT}/api/evaluate/drop")
    async def drop(request: Request, name: str) -> Response:
        return as_json({"place": await files.drop(name, request.stream())})

    @app.post(f"{ROOT}/api/evaluate/people")
    async def people(request: Request) -> Response:
        body = await read_body(request, EvaluationBody)
        rated = files.at(body.place)
        return as_json(await at_work(partial(against_people, _at(site.runs, body.name), rated, body)))


def _all(runs: Path) -> Iterator[tuple[str, Path]]:
    """Name -> folder, the newest first."""
    found = []
    for depth in range(1, _DEPTH + 1):
        for path in runs.glob("/".join(["*"] * depth) + f"/{SUMMARY}"):
            folder = path.parent
            if (folder / ROWS).is_file() and runs.resolve() in folder.resolve().parents:
                found.append((path.stat().st_mtime, folder))
    for _, folder in sorted(found, key=lambda one: -one[0]):
        yield folder.relative_to(runs).as_posix(), folder


def _at(runs: Path, name: str) -> Path:
    known = dict(_all(runs))
    if name not in known:
        raise ConfigError(
            f"no evaluation {name!r:.200} in {runs}", fix=f"danlu evaluate answers.jsonl --out {runs}/NAME"
        )
    return known[name]


def judged(folder: Path, body: EvaluationBody) -> dict[str, Any]:
    """The summary, and some rows with their judgements and distributions."""
    found, summary = read_evaluation(folder)
    measure = body.measure or next(iter(summary["measures"]), "")
    if measure and measure not in summary["measures"]:
        raise ConfigError(f"no measure {measure!r:.100}", allowed=", ".join(summary["measures"]))
    rows = rows_of(found)
    if measure:
        rows.sort(key=lambda row: _order(row["measures"][measure]))
    return {
        "name": body.name,
        "summary": summary,
        "measure": measure,
        "rows": rows[body.first : body.first + _ROWS],
        "all": len(rows),
    }


def _order(one: Mapping[str, Any]) -> tuple[bool, float]:
    """Failures first, then low scores."""
    return "failed" not in one, one.get("expectation", 0.0)


def against_people(folder: Path, rated: Path, body: EvaluationBody) -> dict[str, Any]:
    """The judge beside people, on the rows that both have, by id; and beside the cheap baseline."""
    found, summary = read_evaluation(folder)
    measure = body.measure or next(iter(summary["measures"]))
    if measure not in found.judged:
        raise ConfigError(f"no measure {measure!r:.100}", allowed=", ".join(found.judged))
    ratings = rated_rows(rated, body.rating or measure, None)
    rows, ours, people = _both(found, measure, ratings)
    name, beside = best_baseline(rows, people)
    groups = [row.group for row in rows]
    return {
        "measure": measure,
        "scale": summary["measures"][measure]["scale"],
        "rows": len(rows),
        "left_out": ratings.left_out + len(ratings.rows) - len(rows),
        "baseline": name,
        "compared": {one: asdict(compare(one, ours, beside, people, groups)) for one in NAMES},
        "points": [
            {"id": row.id, "people": theirs, "judge": mine}
            for row, theirs, mine in zip(rows, people, ours, strict=True)
        ],
    }


def _both(found: Evaluated, measure: str, ratings: RatedRows) -> tuple[list[Row], list[float], list[float]]:
    """Rows that were judged and rated, with both figures."""
    known = {row.id: (row, one) for row, one in zip(found.rows, found.judged[measure], strict=True)}
    rows, ours, people = [], [], []
    for rated, rating in zip(ratings.rows, ratings.ratings, strict=True):
        row, one = known.get(rated.id, (None, None))
        if isinstance(row, Row) and isinstance(one, Judged):
            rows.append(row)
            ours.append(one.expectation)
            people.append(rating)
    if len(rows) < 3:
        raise DataError(
            f"{len(rows)} rows are both judged and rated", allowed="3 or more", fix="the same ids in both files"
        )
    return rows, ours, people
