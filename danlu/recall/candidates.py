"""A query -> the rows that channels find among those that qualify, fused, each with where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np

from danlu.errors import ConfigError, nearest
from danlu.recall.channels import base
from danlu.recall.channels.base import Channel
from danlu.recall.fusing import Fused, Place, check, fused, tuned
from danlu.recall.query import Found, Fuse, Query
from danlu.recall.rows.bits import Array
from danlu.recall.rowset import RowSet
from danlu.recall.segment import ids_at

if TYPE_CHECKING:
    import pyarrow as pa


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


@dataclass(frozen=True)
class Candidates(Sequence[Candidate]):
    """What was found, the best first.

    Attributes:
        among: how many rows qualified. seconds: channel -> how long it took.
    """

    found: tuple[Candidate, ...]
    among: int
    seconds: dict[str, float]

    @overload
    def __getitem__(self, at: int) -> Candidate: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Candidate]: ...
    def __getitem__(self, at: int | slice) -> Candidate | Sequence[Candidate]:
        return self.found[at]

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.found)

    @property
    def rows(self) -> Array:
        """int64 row numbers."""
        return np.array([one.row for one in self.found], np.int64)


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
        if len(kept) >= query.top or all(len(found.rows) < depth for found in lists.values()):
            break
        depth *= 4
    kept = kept[: query.top]
    ids = ids_at(opened.segments, opened.snapshot.starts, np.array([one.row for one in kept], np.int64))
    found = tuple(Candidate(id, one.row, one.score, one.places) for id, one in zip(ids, kept, strict=True))
    return Candidates(found, len(rows), seconds)


def asked(
    opened: Opened, query: Query, rows: RowSet, depth: int, seconds: dict[str, float] | None = None
) -> dict[str, Found]:
    """Channel -> what it finds, of those that the query asks. Raises ConfigError if it asks none."""
    known = opened.channels
    for name in query.channels or ():
        if name not in known:
            allowed = ", ".join(known) or "(none)"
            raise ConfigError(f"there is no channel {name!r}", allowed=allowed, fix=nearest(name, known))
    lists: dict[str, Found] = {}
    for name in known if query.channels is None else query.channels:
        begun = perf_counter()
        found = known[name].find(query, rows, depth)
        if found is not None:
            lists[name] = found
            if seconds is not None:
                seconds[name] = seconds.get(name, 0.0) + perf_counter() - begun
    if not lists:
        raise ConfigError(_unasked(query, known), fix=_what_to_do(known))
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
