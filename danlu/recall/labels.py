"""Queries whose right answers are known -> how good every channel of a collection is, and all fused.

    {"query": {"like": "hiking", "where": "sex = 'F'"}, "relevant": [17, 23]}

A line of a .jsonl file is one of them; `query` has the fields of a Query, `relevant` ids of rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from danlu.errors import ConfigError, DataError, nearest
from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.behaviour.plain import Top
from danlu.recall.collection import Collection
from danlu.recall.measure.held_out import FUSED
from danlu.recall.measure.measuring import Ask, Measured, measure
from danlu.recall.query import Bm25, Fuse, Query
from danlu.recall.rows.bits import Array
from danlu.recall.rowset import RowSet


@dataclass(frozen=True)
class Label:
    """A query, and ids of the rows that are right for it."""

    query: Query
    relevant: tuple[Any, ...]


_FIELDS = {field.name for field in fields(Query)} - {"top", "channels"}


def read_labels(path: Path) -> list[Label]:
    """Raises DataError, with the line, for what is no label."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    labels = [_label(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not labels:
        raise DataError(f"{path} holds no labels", fix='a line is {"query": {"like": "…"}, "relevant": [id, …]}')
    return labels


def _label(line: str, where: str) -> Label:
    allowed = '{"query": {"like": "…"}, "relevant": [id, …]}'
    try:
        given = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: no JSON: {error}", allowed=allowed) from error
    if (
        not isinstance(given, dict)
        or not isinstance(given.get("query"), dict)
        or not isinstance(given.get("relevant"), list)
    ):
        raise DataError(f"{where}: a label has query and relevant", allowed=allowed)
    query = dict(given["query"])
    for name in query:
        if name not in _FIELDS:
            raise DataError(
                f"{where}: a query has no {name!r}", allowed=", ".join(sorted(_FIELDS)), fix=nearest(name, _FIELDS)
            )
    if "items" in query:
        query["items"] = tuple(query["items"])
    try:
        for name, options in (("fuse", Fuse), ("bm25", Bm25)):
            if name in query:
                query[name] = options.model_validate(query[name])
    except ValueError as error:
        raise DataError(f"{where}: {name}: {str(error).splitlines()[0]}") from error
    return Label(Query(**query), tuple(given["relevant"]))


def measure_labels(
    collection: Collection,
    labels: Sequence[Label],
    ks: tuple[int, ...] = (10,),
    channels: Sequence[str] | None = None,
    fuse: Fuse | None = None,
) -> tuple[Measured, int]:
    """(what was measured of each channel that answers any query, and fused; relevant ids that no row has).

    Args:
        channels: those to measure; without it all. fuse: how they are fused, instead of as each query says.

    Raises ConfigError for a channel that is not there and queries that none answers, DataError without a right row.
    """
    known = collection.channels
    for name in channels or ():
        if name not in known:
            raise ConfigError(f"there is no channel {name!r}", allowed=", ".join(known), fix=nearest(name, known))
    chosen = tuple(known if channels is None else channels)
    found = [collection.find(label.relevant) for label in labels]
    relevant = Matrix.listed([np.unique(rows[rows >= 0]) for rows in found], collection.snapshot.starts[-1])
    missing = sum(int((rows < 0).sum()) for rows in found)
    where = lru_cache(maxsize=256)(lambda text: collection.everything() if text is None else collection.where(text))
    queries = [label.query if fuse is None else replace(label.query, fuse=fuse) for label in labels]
    asks = {
        name: _alone(collection, queries, name, where) for name in chosen if _answers(collection, queries, name, where)
    }
    if not asks:
        raise ConfigError("no channel has an answer to any of the queries", allowed=", ".join(chosen) or "(none)")
    if len(asks) > 1:
        asks[FUSED] = _fused(collection, queries, tuple(asks))
    return measure(asks, relevant, ks), missing


def _answers(collection: Collection, queries: Sequence[Query], name: str, where: Any) -> bool:
    channel = collection.channels[name]
    return any(channel.find(query, where(query.where), 1) is not None for query in queries)


def _alone(collection: Collection, queries: Sequence[Query], name: str, where: Any) -> Ask:
    channel = collection.channels[name]

    def ask(numbers: Array, n: int) -> Top:
        made = Top.empty(len(numbers), n)
        for at, number in enumerate(numbers.tolist()):
            rows: RowSet = where(queries[number].where)
            found = channel.find(queries[number], rows, n)
            if found is not None:
                _put(made, at, found.rows, found.scores)
        return made

    return ask


def _fused(collection: Collection, queries: Sequence[Query], channels: tuple[str, ...]) -> Ask:
    def ask(numbers: Array, n: int) -> Top:
        made = Top.empty(len(numbers), n)
        for at, number in enumerate(numbers.tolist()):
            found = collection.recall(replace(queries[number], top=n, channels=channels))
            _put(made, at, found.rows, np.array([one.score for one in found]))
        return made

    return ask


def _put(top: Top, at: int, rows: Array, scores: Array) -> None:
    """In the order in which they are given."""
    top.counts[at] = len(rows)
    top.columns[at, : len(rows)], top.scores[at, : len(rows)] = rows, scores
