"""How far lists are walked, found when an index is made: no farther than the recall takes that is wanted.

Asked are rows of the index (or queries that are given) under no filter, and under filters that pass more or fewer rows,
drawn anywhere, near the queries, and far from them. A walk sees by itself which it is: for each share of rows and each
place the reach is the least with which some regions have the recall on an average, and none of them falls far below it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from danlu.recall.rows.bits import Array, Bits
from danlu.recall.vectors.index import FEW_ROWS, SHARES, Search, Tuned, VectorIndex, Walk
from danlu.recall.vectors.plain import bounds

K = 10
# Where the rows of a filter lie.
PLACES = ("anywhere", "near", "far")
# Near are rows of lists with so many times as many as pass; far are those of the farther half, or the farthest.
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
_NONE = Walk(0.0, 0.0, 0.0, 0)
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
        walk = _NONE
        for place in PLACES if share < 1 else PLACES[:1]:
            walk = _least(index, list(trials.of(share, place)), recall, walk, place)
        found.append(walk)
    return Tuned(tuple(found))


def _least(index: VectorIndex, trials: list[Trial], recall: float, base: Walk, place: str) -> Walk:
    """The least spare with which a walk through all lists comes close enough, then the least reach with that: the one
    for this place, or all of them where a walk does not see what the filter is like."""
    aim = min(recall + _MARGIN, 1.0)

    def enough(walk: Walk, mean: float, least: float) -> bool:
        met = [_met(index, trial, walk) for trial in trials]
        return sum(met) / len(met) >= mean and min(met) >= least

    close = (1 + aim) / 2
    whole = _reaching(base, "anywhere", _MOST_REACH)
    spares = [replace(whole, spare=one) for one in _SPARES if one >= base.spare]
    spare = next((one.spare for one in spares if enough(one, close, close - _BELOW)), _SPARES[-1])
    base = replace(base, spare=spare)
    if place != "anywhere" and not enough(_reaching(base, place, _MOST_REACH), aim, aim - _BELOW):
        place = "anywhere"
    low, high = 0.0, _MOST_REACH
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_enough = enough(_reaching(base, place, middle), aim, aim - _BELOW)
        low, high = (low, middle) if is_enough else (middle, high)
    return _reaching(base, place, high)


def _reaching(walk: Walk, place: str, reach: float) -> Walk:
    """With at least this reach where the set lies in this place."""
    least: dict[str, Any] = dict.fromkeys(("reach", "near", "far") if place == "anywhere" else (place,), reach)
    return walk.or_longer(replace(_NONE, **least))


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
        """Trials of filters that pass this share of the rows, which lie in this one of PLACES."""
        every = np.arange(len(self._lists.row_at))
        if place == "anywhere":
            yield self._trial(self._drawn(every, _QUERIES), every, share)
            return
        for region in range(_REGIONS):
            pivot = self._drawn(every, 1)
            asked = self._index.asked(pivot.values, 1)
            order = np.argsort(-bounds(self._index.vectors, self._lists, asked, 0, asked.reach), kind="stable")
            held = np.cumsum(np.diff(self._lists.starts)[order])
            size = _QUERIES // _REGIONS
            around = self._inside(order[: int(np.searchsorted(held, 4 * size)) + 1])
            near = order[: int(np.searchsorted(held, _NEAR * share * held[-1])) + 1]
            beyond = 1 - share if region % 2 else 0.5  # the farthest, or some of the farther half
            far = order[int(np.searchsorted(held, held[-1] * beyond)) :]
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
