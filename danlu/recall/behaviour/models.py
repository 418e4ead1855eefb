"""What each channel of behaviour has learnt, and what it recommends.

A history is a row of items with values and times; `recommend` answers many at a time, each with at most n items that
are allowed and, unless `seen`, not in the history. Every answer depends on its own history alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from danlu.recall.behaviour.kernels import products
from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.behaviour.plain import Products, Top
from danlu.recall.rows.bits import Array


class Model(Protocol):
    def recommend(self, histories: Matrix, n: int, *, allowed: Array | None = None, seen: bool = False) -> Top:
        """The best items of each history.

        Args:
            histories: users with items.
            allowed: uint8 an item, 0 for those that are not to be recommended.
            seen: whether items of the history may be.
        """


def recent(histories: Matrix, half_days: float | None) -> Matrix:
    """Values times 1 / (1 + age / half_days), the age before the row's last event; by place where there is no time."""
    if half_days is None or not len(histories.columns):
        return histories
    latest = np.zeros(len(histories))
    there = histories.sizes > 0
    latest[there] = np.maximum.reduceat(histories.times, histories.starts[:-1][there])
    return histories.weighed(1.0 / (1.0 + (latest[histories.rows] - histories.times) / half_days))


@dataclass(frozen=True, eq=False)
class ItemToItem:
    """Items that are like those of the history.

    Attributes:
        neighbours: of each item the most similar ones. norms: of each item, as it was when its neighbours were found.
        recency_days: as in the options.
    """

    neighbours: Matrix
    norms: Array
    recency_days: float | None = None

    def recommend(self, histories: Matrix, n: int, *, allowed: Array | None = None, seen: bool = False) -> Top:
        known = histories.only(histories.columns < len(self.neighbours))  # others came after it was learnt
        asked = recent(known, self.recency_days)
        return products(Products(asked, self.neighbours, allowed=allowed, but=None if seen else known), n)


@dataclass(frozen=True, eq=False)
class UserCF:
    """Items of users who share items with the history.

    Attributes:
        users: with their items. items: with their latest users, valued by how much a common item says.
        scale: float64 a user, one over the root of how much they did.
        most: users who are asked.
    """

    users: Matrix
    items: Matrix
    scale: Array
    most: int
    recency_days: float | None = None

    def recommend(self, histories: Matrix, n: int, *, allowed: Array | None = None, seen: bool = False) -> Top:
        known = histories.only(histories.columns < len(self.items))
        similar = products(Products(recent(known, self.recency_days), self.items, scale=self.scale), self.most)
        asked = similar.matrix(len(self.users))
        return products(Products(asked, self.users, allowed=allowed, but=None if seen else known), n)


@dataclass(frozen=True, eq=False)
class Hot:
    """The same for everybody, but for what each has seen.

    Attributes:
        scores: float32 an item. order: int32, items, the hottest first.
    """

    scores: Array
    order: Array

    def recommend(self, histories: Matrix, n: int, *, allowed: Array | None = None, seen: bool = False) -> Top:
        order = self.order if allowed is None else self.order[allowed[self.order] != 0]
        made = Top.empty(len(histories), n)
        for row in range(len(histories)):
            own = histories.columns[histories.starts[row] : histories.starts[row + 1]]
            some = order[: n if seen else n + len(own)]
            chosen = some if seen else some[~np.isin(some, own)][:n]
            made.counts[row] = len(chosen)
            made.columns[row, : len(chosen)], made.scores[row, : len(chosen)] = chosen, self.scores[chosen]
        return made


def filled(first: Top, then: Top) -> Top:
    """The first answers, and where they are fewer than asked for, of the other ones those that are not among them yet.

    What was filled in has the score 0: it says nothing of this user. For those who have done little or nothing.
    """
    most = first.columns.shape[1]
    made = Top(first.columns.copy(), first.scores.copy(), first.counts.copy())
    for row in np.flatnonzero(first.counts < most).tolist():
        count = int(first.counts[row])
        others = then.columns[row, : then.counts[row]]
        more = others[~np.isin(others, first.columns[row, :count])][: most - count]
        made.columns[row, count : count + len(more)] = more
        made.counts[row] = count + len(more)
    return made
