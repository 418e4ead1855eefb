"""Rows that are recommended to a user, or beside rows that are given, by what was done and what was learnt of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from danlu.recall.acting import TOWERS, Behaviour
from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.channels.base import Opened
from danlu.recall.query import Found, Query
from danlu.recall.rowset import RowSet

HOT = "hot"


class Acted:
    """A channel of behaviour: item_cf, swing, user_cf, ease.

    `hot` answers users of whom nothing is known, and whoever asks it by name.
    """

    def __init__(self, behaviour: Behaviour, name: str) -> None:
        self._behaviour, self.name = behaviour, name

    def find(self, query: Query, rows: RowSet, k: int) -> Found | None:
        if not asks(query):
            return None
        history = history_of(self._behaviour, query)
        if self.name == HOT and len(history.columns) and HOT not in (query.channels or ()):
            return None
        allowed = self._behaviour.allowed(rows)
        top = self._behaviour.model(self.name).recommend(history, k, allowed=allowed, seen=query.seen)
        count = int(top.counts[0])
        found = self._behaviour.item_rows[top.columns[0, :count]]
        return Found(found, top.scores[0, :count].astype(np.float64))


class Learned:
    """Two towers: rows near what the user's history and traits lead to."""

    name = TOWERS

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour

    def find(self, query: Query, rows: RowSet, k: int) -> Found | None:
        towers = self._behaviour.towers if asks(query) else None
        if towers is None:
            return None
        history = history_of(self._behaviour, query)
        found, scores = towers.nearest(history, k, rows, user=query.user, traits=query.traits, seen=query.seen)
        return Found(found, scores, -1.0)


def asks(query: Query) -> bool:
    """Whether a query is about a user, or about what goes with some rows."""
    return query.user is not None or bool(query.items) or query.traits is not None


def history_of(behaviour: Behaviour, query: Query) -> Matrix:
    """One row: what the user did, then the rows that are given."""
    own = behaviour.history(query.user)
    if not query.items:
        return own
    given = behaviour.given(query.items)
    earlier = own.columns[~np.isin(own.columns, given)]
    return Matrix.listed([np.concatenate([earlier, given])], own.width)


def acted_channels(opened: Opened) -> Iterator[Acted | Learned]:
    """Those that were learnt of events; none where a collection has no events."""
    behaviour = opened.behaviour
    if not behaviour.has_events:
        return
    for name in behaviour.options.channels:
        yield Acted(behaviour, name)
    if behaviour.has_towers:
        yield Learned(behaviour)
