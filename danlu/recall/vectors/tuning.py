"""How far lists are walked, found when an index is made: no farther than the recall takes that is wanted.

Asked are rows of the index (or queries that are given) under no filter, and under filters that pass more or fewer rows,
drawn anywhere, near the queries, and far from them. A walk ends by what it has found, so one reach does for all places;
for each share of rows the reach is the least with which some regions have the recall on an average, for each place of
the filter, and none of them falls far below it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from danlu.recall.rows.bits import Array, Bits
from danlu.recall.vectors.index import FEW_ROWS, SHARES, Search, Tuned, VectorIndex, Walk
from danlu.recall.vectors.plain import bounds

K = 10
# Where the rows of a filter lie: near are those of lists with a few times as many, far those of the farther half.
PLACES = ("anywhere", "near", "far")
_NEAR = 3
_QUERIES = 256
# Queries with one filter near them, or far from them, are neighbours.
_REGIONS = 16
_SEED = 21
# What is aimed at lies above what is wanted, since the queries are a sample; a region may fall so far below it.
_MARGIN = 0.03
_BELOW = 0.015
# The reach is sought between nothing and this, halving so many times.
_MOST_REACH = 2.0
_HALVINGS = 7
_SPARES = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Trial:
    """Queries under one filter: their search, and the best of the rows that pass, (queries, K), -1 beyond the last."""

    search: Search
    true: Array


def tuned(index: VectorIndex, recall: float, asked: Array | None = None) -> Tuned:
    """What this recall of the 10 best takes.

    Args:
        asked: (queries, dim) as they will be asked, `checked`; rows of the index without it.
    """
    if index.lists is None:
        return index.tuned
    trials, found = _Trials(index, asked), list[Walk]()
    for share in SHARES:
        if found and share * index.known.count <= FEW_ROWS:
            found.append(found[-1])
            continue
        places = PLACES if share < 1 else PLACES[:1]
        each = [_least(index, list(trials.of(share, place)), recall) for place in places]
        found.append(Walk(max(walk.reach for walk in each), max(walk.spare for walk in each)))
    return Tuned(tuple(found))


def _least(index: VectorIndex, trials: list[Trial], recall: float) -> Walk:
    """The least spare with which a walk through all lists comes close enough, then the least reach with that."""
    aim = min(recall + _MARGIN, 1.0)

    def enough(walk: Walk, mean: float, least: float) -> bool:
        met = [_met(index, trial, walk) for trial in trials]
        return sum(met) / len(met) >= mean and min(met) >= least

    close = (1 + aim) / 2
    spare = next((one for one in _SPARES if enough(Walk(_MOST_REACH, one), close, close - _BELOW)), _SPARES[-1])
    low, high = 0.0, _MOST_REACH
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(Walk(middle, spare), aim, aim - _BELOW) else (middle, high)
    return Walk(high, spare)


def _met(index: VectorIndex, trial: Trial, walk: Walk) -> float:
    """Its recall."""
    asked = walk.told(trial.search.queries)
    Search(index, asked, None).answer(0, len(trial.true))
    is_true = trial.true >= 0
    is_met = (asked.rows[:, :, None] == trial.true[:, None, :]).any(1) & is_true
    return float(is_met.sum() / max(is_true.sum(), 1))


class _Trials:
    """Draws queries and filters for an index that has lists."""

    def __init__(self, index: VectorIndex, asked: Array | None) -> None:
        self._index, self._asked, self._rng = index, asked, np.random.default_rng(_SEED)
        assert index.lists is not None
        self._lists = index.lists

    def of(self, share: float, place: str) -> Iterator[Trial]:
        """Trials of filters that pass this share of the rows."""
        every = np.arange(len(self._lists.row_at))
        if place == "anywhere":
            yield self._trial(self._drawn(every, _QUERIES), every, share)
            return
        for _ in range(_REGIONS):
            pivot = self._drawn(every, 1)
            asked = self._index.asked(pivot.values, 1)
            order = np.argsort(-bounds(self._index.vectors, self._lists, asked, 0), kind="stable")
            held = np.cumsum(np.diff(self._lists.starts)[order])
            size = _QUERIES // _REGIONS
            around = self._inside(order[: int(np.searchsorted(held, 4 * size)) + 1])
            near = order[: int(np.searchsorted(held, _NEAR * share * held[-1])) + 1]
            far = order[int(np.searchsorted(held, held[-1] / 2)) :]
            queries = self._drawn(around, size) if self._asked is None else pivot
            yield self._trial(queries, self._inside(near if place == "near" else far), share)

    def _drawn(self, places: Array, count: int) -> _Asked:
        """Queries that are given; without any, rows at some of these places."""
        if self._asked is not None:
            chosen = self._rng.choice(len(self._asked), min(count, len(self._asked)), replace=False)
            return _Asked(self._asked[chosen], np.empty(0, np.uint32))
        rows = self._lists.row_at[self._rng.choice(places, min(count, len(places)), replace=False)]
        return _Asked(self._index.vectors.values[rows], rows)

    def _inside(self, lists: Array) -> Array:
        """Places of these lists."""
        starts = self._lists.starts
        return np.concatenate([np.arange(starts[at], starts[at + 1]) for at in lists.tolist()])

    def _trial(self, queries: _Asked, places: Array, share: float) -> Trial:
        """The queries' own rows do not pass: each would find itself."""
        chance = share * len(self._lists.row_at) / len(places)
        kept = places if chance >= 1 else places[self._rng.random(len(places), np.float32) < chance]
        passing = np.setdiff1d(self._lists.row_at[kept], queries.rows)
        exact, asked = (self._index.asked(queries.values, K) for _ in range(2))
        self._index.exact(exact, passing, 0, len(queries.values))
        return Trial(self._index.walk(asked, Bits.of(self._index.known.rows, passing)), exact.rows)


@dataclass(frozen=True)
class _Asked:
    """Queries (queries, dim), and the rows that they are, if any."""

    values: Array
    rows: Array
