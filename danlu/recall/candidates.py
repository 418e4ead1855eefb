"""A query -> the rows that channels find among those that qualify, fused, each with where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np

from danlu.errors import ConfigError, nearest
from danlu.recall.channels import base
from danlu.recall.channels.base import Channel, found_all
from danlu.recall.fusing import Fused, Place, check, fused, places_of, ranks, tuned
from danlu.recall.query import Found, FoundAll, Fuse, Query
from danlu.recall.rows.bits import Array
from danlu.recall.rowset import RowSet
from danlu.recall.segment import ids_at

if TYPE_CHECKING:
    import pyarrow as pa

_TOGETHER = 1024  # queries


class Opened(base.Opened, Protocol):
    """What is asked of a collection."""

    @property
    def channels(self) -> Mapping[str, Channel]: ...

    def where(self, text: str) -> RowSet: ...

    def everything(self) -> RowSet: ...

    def find(self, ids: Sequence[Any] | Array) -> Array: ...

    def table(
        self, rows: RowSet | Array, columns: Sequence[str] | None = None, limit: int | None = None
    ) -> pa.Table: ...


@dataclass(frozen=True)
class Candidate:
    """A row that was found.

    Attributes:
        score: what it was ranked by. places: channel -> rank and score there, of those that have found it.
    """

    id: Any
    row: int
    score: float
    places: dict[str, Place]


class Candidates(Sequence[Candidate]):
    """What was found, the best first.

    Args:
        places: of each row, by channel; asked for once, if at all.

    Attributes:
        ids: of the rows. rows: int64 row numbers. scores: float64, what they were ranked by.
        among: how many rows qualified. seconds: channel -> how long it took.
    """

    def __init__(
        self,
        ids: Sequence[Any],
        rows: Array,
        scores: Array,
        places: Callable[[], Sequence[dict[str, Place]]],
        among: int,
        seconds: dict[str, float],
    ) -> None:
        self.ids, self.rows, self.scores = ids, rows, scores
        self._places, self.among, self.seconds = places, among, seconds

    @cached_property
    def found(self) -> tuple[Candidate, ...]:
        """One by one."""
        parts = (self.ids, self.rows.tolist(), self.scores.tolist(), self._places())
        return tuple(Candidate(*one) for one in zip(*parts, strict=True))

    @overload
    def __getitem__(self, at: int) -> Candidate: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Candidate]: ...
    def __getitem__(self, at: int | slice) -> Candidate | Sequence[Candidate]:
        return self.found[at]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.found)


class _Together:
    """Queries that want as many rows, fused alike, and that one channel alone has answered: its order is theirs."""

    def __init__(self, opened: Opened, name: str, found: FoundAll, query: Query, among: int, begun: float) -> None:
        self.name, self.found, self.how, self.top, self.among = name, found, query.fuse, query.top, among
        sizes = np.minimum(found.sizes, query.top)
        there = np.arange(min(query.top, found.rows.shape[1])) < sizes[:, None]
        self.ids = ids_at(opened.segments, opened.snapshot.starts, found.rows[:, : query.top][there])
        self.cuts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]).tolist()
        self.seconds = {name: (perf_counter() - begun) / max(len(sizes), 1)}


class _OneOf(Candidates):
    """What was found for one of many, cut out when it is asked for."""

    def __init__(self, together: _Together, at: int) -> None:
        self._of, self._at = together, at

    ids = cached_property(lambda self: self._of.ids[self._of.cuts[self._at] : self._of.cuts[self._at + 1]])
    rows = cached_property(lambda self: self._of.found.rows[self._at, : len(self.ids)])
    scores = cached_property(lambda self: ranks(self._lists, self._of.how, self._of.top)[1])
    among = property(lambda self: self._of.among)
    seconds = property(lambda self: self._of.seconds)

    @property
    def _lists(self) -> dict[str, Found]:
        return {self._of.name: self._of.found[self._at]}

    def _places(self) -> Sequence[dict[str, Place]]:
        return places_of(self._lists, self.rows)

    def __len__(self) -> int:
        return len(self.ids)


def recall(opened: Opened, query: Query) -> Candidates:
    """Where channels have to be asked for more rows, what was first stays first: asking for more results adds to them.

    Raises ConfigError for a query that is wrong or that no channel has an answer to.
    """
    rows = opened.everything() if query.where is None else opened.where(query.where)
    seconds: dict[str, float] = {}
    how = query.fuse
    depth = max(how.depth, query.top) if how.quotas else how.depth
    ranked: dict[int, Fused] = {}
    while True:
        lists = asked(opened, query, rows, depth, seconds)
        most = query.top if how.distinct is None else sum(len(found.rows) for found in lists.values())
        for one in fused(lists, how, most):
            ranked.setdefault(one.row, one)
        kept = _apart(opened, list(ranked.values()), query)
        if len(kept) >= query.top or _are_all(lists, depth):
            break
        depth *= 4
    kept = kept[: query.top]
    numbers, scores = np.array([one.row for one in kept], np.int64), np.array([one.score for one in kept])
    ids = ids_at(opened.segments, opened.snapshot.starts, numbers)
    return Candidates(ids, numbers, scores, lambda: [one.places for one in kept], len(rows), seconds)


def recall_all(opened: Opened, queries: Sequence[Query]) -> list[Candidates]:
    """`recall` of each; those that differ only in what they look for are handed to the channels together."""
    groups: dict[tuple[str | None, tuple[str, ...] | None, int], list[int]] = {}
    for at, query in enumerate(queries):
        groups.setdefault((query.where, query.channels, query.fuse.depth), []).append(at)
    made: dict[int, Candidates] = {}
    for (where, _, depth), places in groups.items():
        rows = opened.everything() if where is None else opened.where(where)
        for first in range(0, len(places), _TOGETHER):
            part = places[first : first + _TOGETHER]
            made |= zip(part, _together(opened, [queries[at] for at in part], rows, depth), strict=True)
    return [made[at] for at in range(len(queries))]


def _together(opened: Opened, queries: Sequence[Query], rows: RowSet, depth: int) -> list[Candidates]:
    """Of queries for the same rows, whose channels are asked for so many each."""
    begun = perf_counter()
    answers = _answers(opened, queries, rows, depth)
    if (alone := _alone(answers, queries)) is not None:
        together = _Together(opened, *alone, queries[0], len(rows), begun)
        return [_OneOf(together, at) for at in range(len(queries))]
    lists = _lists(opened, queries, answers)
    ranked = [ranks(found, query.fuse, query.top) for found, query in zip(lists, queries, strict=True)]
    numbers = np.concatenate([np.empty(0, np.int64), *(one for one, _ in ranked)])
    ids, among = ids_at(opened.segments, opened.snapshot.starts, numbers), len(rows)
    seconds = (perf_counter() - begun) / len(queries)
    made, start = [], 0
    for query, found, (own, scores) in zip(queries, lists, ranked, strict=True):
        stop = start + len(own)
        how = query.fuse
        if how.quotas or how.distinct is not None or (len(own) < query.top and not _are_all(found, depth)):
            made.append(recall(opened, query))
        else:
            places = partial(places_of, found, own)
            made.append(Candidates(ids[start:stop], own, scores, places, among, dict.fromkeys(found, seconds)))
        start = stop
    return made


def _alone(answers: Mapping[str, Sequence[Found | None]], queries: Sequence[Query]) -> tuple[str, FoundAll] | None:
    """The one channel that has answered, where its order is that of all the results."""
    how, top = queries[0].fuse, queries[0].top
    if len(answers) != 1 or how.weights or how.quotas or how.distinct is not None or top > how.depth:
        return None
    ((name, found),) = answers.items()
    alike = isinstance(found, FoundAll) and all(query.fuse is how and query.top == top for query in queries)
    return (name, found) if alike and isinstance(found, FoundAll) else None


def _are_all(lists: Mapping[str, Found], depth: int) -> bool:
    """Whether channels have no more than what they gave."""
    return all(len(found.rows) < depth for found in lists.values())


def asked(
    opened: Opened, query: Query, rows: RowSet, depth: int, seconds: dict[str, float] | None = None
) -> dict[str, Found]:
    """Channel -> what it finds, of those that the query asks. Raises ConfigError if it asks none."""
    lists: dict[str, Found] = {}
    for name in _names(opened, query):
        begun = perf_counter()
        found = opened.channels[name].find(query, rows, depth)
        if found is not None:
            lists[name] = found
            if seconds is not None:
                seconds[name] = seconds.get(name, 0.0) + perf_counter() - begun
    return _checked(opened, query, lists)


def asked_all(opened: Opened, queries: Sequence[Query], rows: RowSet, depth: int) -> list[dict[str, Found]]:
    """`asked` of each, of queries that name the same channels."""
    return _lists(opened, queries, _answers(opened, queries, rows, depth))


def _answers(opened: Opened, queries: Sequence[Query], rows: RowSet, depth: int) -> dict[str, Sequence[Found | None]]:
    """Channel -> what it finds for each query, of those that have any answer."""
    found = {name: found_all(opened.channels[name], queries, rows, depth) for name in _names(opened, queries[0])}
    return {
        name: own for name, own in found.items() if isinstance(own, FoundAll) or any(one is not None for one in own)
    }


def _lists(
    opened: Opened, queries: Sequence[Query], answers: Mapping[str, Sequence[Found | None]]
) -> list[dict[str, Found]]:
    """Of each query channel -> what it finds. Raises ConfigError if it asks none."""
    lists: list[dict[str, Found]] = [{} for _ in queries]
    for name, found in answers.items():
        for own, one in zip(lists, found, strict=True):
            if one is not None:
                own[name] = one
    return [_checked(opened, query, own) for query, own in zip(queries, lists, strict=True)]


def _names(opened: Opened, query: Query) -> Iterable[str]:
    """Channels that it names, or all."""
    known = opened.channels
    for name in query.channels or ():
        if name not in known:
            allowed = ", ".join(known) or "(none)"
            raise ConfigError(f"there is no channel {name!r}", allowed=allowed, fix=nearest(name, known))
    return known if query.channels is None else query.channels


def _checked(opened: Opened, query: Query, lists: dict[str, Found]) -> dict[str, Found]:
    if not lists:
        raise ConfigError(_unasked(query, opened.channels), fix=_what_to_do(opened.channels))
    check(query.fuse, lists, query.top)
    return lists


def _unasked(query: Query, known: Mapping[str, Channel]) -> str:
    if not known:
        return "the collection has no channel: neither words nor vectors are found in it, and it has no events"
    given = (query.like, query.text, query.vector, query.user, query.traits)
    if all(one is None for one in given) and not query.items:
        return "nothing is asked for"
    return f"no channel has an answer to what is asked: {', '.join(query.channels or known)}"


def _what_to_do(known: Mapping[str, Channel]) -> str:
    if not known:
        return "build it with text=COLUMN, vector=COLUMN or embed=COLUMN, or store events: danlu recall events"
    return "give a text (like), words (text), a vector, or a user"


def _apart(opened: Opened, ranked: list[Fused], query: Query) -> list[Fused]:
    """Of rows that share a value of one column only the first; rows where it is null share nothing."""
    if query.fuse.distinct is None:
        return ranked
    rows = np.array([one.row for one in ranked], np.int64)
    values = opened.table(rows, [query.fuse.distinct]).column(0).to_pylist()
    seen: set[Any] = set()
    kept = []
    for one, value in zip(ranked, values, strict=True):
        value = tuple(value) if isinstance(value, list) else value
        if value is None or value not in seen:
            kept.append(one)
            seen.add(value)
    return kept


def tune(opened: Opened, labels: Sequence[tuple[Query, Sequence[Any]]]) -> Fuse:
    """How to fuse, with weights from labels: queries, and for each the ids of rows that are relevant.

    The first query says how else to fuse, and how many results are looked at. Ids that no row has are passed over.
    """
    if not labels:
        raise ConfigError("no labels are given", allowed="(query, relevant ids), once or more")
    how, top = labels[0][0].fuse, labels[0][0].top
    cases = []
    for query, ids in labels:
        rows = opened.everything() if query.where is None else opened.where(query.where)
        lists = asked(opened, query, rows, max(how.depth, top))
        cases.append((lists, [row for row in opened.find(ids).tolist() if row >= 0]))
    return tuned(cases, how, top)
