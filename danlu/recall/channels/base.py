"""What a channel is: it gets a query and the rows that qualify, and gives rows with scores, the best first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from danlu.recall.acting import Behaviour
from danlu.recall.manifest import Column
from danlu.recall.query import Found, Query
from danlu.recall.rows.bits import Array
from danlu.recall.rowset import RowSet, Snapshot
from danlu.recall.segment import OpenSegment


class Opened(Protocol):
    """What a channel sees of a collection."""

    @property
    def columns(self) -> Sequence[Column]: ...

    @property
    def segments(self) -> Sequence[OpenSegment]: ...

    @property
    def snapshot(self) -> Snapshot: ...

    @property
    def behaviour(self) -> Behaviour: ...


class Channel(Protocol):
    """One way to find rows of one state of a collection. It may be asked by several threads at once.

    Attributes:
        name: what results, weights and quotas call it.
    """

    name: str

    def find(self, query: Query, rows: RowSet, k: int) -> Found | None:
        """The k best of these rows; fewer only where no other has a score. None: the query asks this channel nothing.

        Raises ConfigError for a query that does not fit.
        """


@runtime_checkable
class Bulk(Protocol):
    """A channel that answers many queries in less time than one after the other."""

    def find_all(self, queries: Sequence[Query], rows: RowSet, k: int) -> Sequence[Found | None]:
        """`find` of each."""


def found_all(channel: Channel, queries: Sequence[Query], rows: RowSet, k: int) -> Sequence[Found | None]:
    if isinstance(channel, Bulk):
        return channel.find_all(queries, rows, k)
    return [channel.find(query, rows, k) for query in queries]


def ranked(parts: Sequence[tuple[Array, Array]], k: int, least: float | None) -> Found:
    """The k best of what segments give: (int64 rows, float64 scores), the best first, and k at most."""
    there = [part for part in parts if len(part[0])] if len(parts) > 1 else parts
    if len(there) == 1:
        return Found(*there[0], least)
    rows = np.concatenate([np.empty(0, np.int64), *(one for one, _ in there)])
    scores = np.concatenate([np.empty(0), *(one for _, one in there)])
    order = np.lexsort((rows, -scores))[:k]
    return Found(rows[order], scores[order], least)


# What a kind of channel has to look for in a collection.
Making = Callable[[Opened], Iterable[Channel]]
