"""Queries whose right answers are known, or events held out -> how good each channel of a collection is, and all fused.

    {"query": {"like": "hiking", "where": "sex = 'F'"}, "relevant": [17, 23]}

A line of a .jsonl file is one of them; `query` has the fields of a Query, `relevant` ids of rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from danlu.errors import ConfigError, DataError, nearest
from danlu.recall.acting import TOWERS
from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.behaviour.options import BehaviourOptions
from danlu.recall.behaviour.plain import Top
from danlu.recall.collection import Collection
from danlu.recall.fusing import fused
from danlu.recall.measure.held_out import FUSED, held_out
from danlu.recall.measure.measuring import Ask, Measured, measure
from danlu.recall.measure.splits import by_time, leave_one_out
from danlu.recall.query import Bm25, Found, Fuse, Query
from danlu.recall.rows.bits import Array
from danlu.recall.rowset import RowSet


@dataclass(frozen=True)
class Label:
    """A query, and ids of the rows that are right for it."""

    query: Query
    relevant: tuple[Any, ...]


_ALLOWED = '{"query": {"like": "…"}, "relevant": [id, …]}'
_FIELDS = {field.name for field in fields(Query)} - {"top", "channels"}


def read_labels(path: Path) -> list[Label]:
    """Raises DataError, with the line, for what is no label."""
    try:
        lines = path.read_text("utf-8").split("\n")  # a text may hold other line ends
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    rows = [
        (_json(line, where := f"{path}, line {number}"), where) for number, line in enumerate(lines, 1) if line.strip()
    ]
    return labels_of(rows, str(path))


def labels_of(rows: Iterable[tuple[Any, str]], source: str) -> list[Label]:
    """(row, its place) of each -> labels. Raises DataError, with the place, for what is none, and for no labels."""
    labels = [_label(given, where) for given, where in rows]
    if not labels:
        raise DataError(f"{source} holds no labels", fix=f"a row is {_ALLOWED}")
    return labels


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: no JSON: {error}", allowed=_ALLOWED) from error


def _label(given: Any, where: str) -> Label:
    if (
        not isinstance(given, dict)
        or not isinstance(given.get("query"), dict)
        or not isinstance(given.get("relevant"), list)
    ):
        raise DataError(f"{where}: a label has query and relevant", allowed=_ALLOWED)
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


# -- events ------------------------------------------------------------------------------------------------

SplitName = Literal["last", "time", "both"]


def measure_events(
    opened: Collection,
    ks: tuple[int, ...] = (10,),
    channels: Sequence[str] | None = None,
    split: SplitName = "both",
    share: float | None = None,
) -> dict[str, Measured]:
    """Name of a split -> what was measured of each channel that learns from events, on events that it has not seen.

    Args:
        channels: those to measure; without it all that were learnt when events were stored. `towers` among them are
            trained anew on what each split knows, as those of the collection were.
        split: which events are held out: the last of each user, the latest of all, or both in turn.
        share: of all, those held out by time; 0.1 without it.

    Raises ConfigError for what has no effect, DataError where nothing is to be found.
    """
    behaviour = opened.behaviour
    events, options = behaviour.events, behaviour.options
    more: dict[str, Callable[[Matrix], Ask]] = {}
    if channels is not None:
        learnt = tuple(name for name in channels if name != TOWERS)
        options = BehaviourOptions(**{**options.model_dump(), "channels": learnt})
        more = {TOWERS: _towers_of(opened)} if TOWERS in channels else {}
    if share is not None and split == "last":
        raise ConfigError("--share has no effect with --split last", fix="leave it out")
    if split == "time" and not events.is_timed:
        raise ConfigError("--split time: the events have no times", allowed="last")
    splits = [] if split == "time" else [leave_one_out(behaviour.histories)]
    if split != "last" and events.is_timed:
        splits.append(by_time(behaviour.histories, 0.1 if share is None else share))
    timed = events.is_timed
    return {one.name: held_out(one, options, ks, is_timed=timed, more=more, together=_together) for one in splits}


def _towers_of(opened: Collection) -> Callable[[Matrix], Ask]:
    from danlu.device import read_device
    from danlu.recall.teaching import taught_again  # torch

    device = read_device()
    return lambda users: taught_again(opened, users, device)


def _together(tops: dict[str, Top], n: int) -> Top:
    """As a query fuses them: what is hot is for those of whom nothing else is known."""
    made = Top.empty(len(next(iter(tops.values())).counts), n)
    for row in range(len(made.counts)):
        lists = {
            name: Found(top.columns[row, : top.counts[row]].astype(np.int64), top.scores[row, : top.counts[row]])
            for name, top in tops.items()
        }
        own = {name: found for name, found in lists.items() if name != "hot" and len(found.rows)}
        ranked = fused(own or lists, Fuse(), n)
        made.counts[row] = len(ranked)
        made.columns[row, : len(ranked)] = [one.row for one in ranked]
        made.scores[row, : len(ranked)] = [one.score for one in ranked]
    return made
