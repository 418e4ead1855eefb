"""What kernels.c computes, in NumPy: the definition, and what works without a compiler."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.rows.bits import Array


@dataclass(frozen=True, eq=False)
class Top:
    """The best columns of each row, the best first; of equal scores the lower column.

    Attributes:
        columns: int32 (rows, most). scores: float32 (rows, most). counts: int64 a row, how many of them there are;
            what stands after those is nothing.
    """

    columns: Array
    scores: Array
    counts: Array

    @classmethod
    def empty(cls, rows: int, most: int) -> Top:
        return cls(np.full((rows, most), -1, np.int32), np.zeros((rows, most), np.float32), np.zeros(rows, np.int64))

    def put(self, row: int, columns: Array, scores: Array) -> None:
        """The best of these into a row."""
        scores = scores.astype(np.float32)
        order = np.lexsort((columns, -scores))[: self.columns.shape[1]]
        self.counts[row] = len(order)
        self.columns[row, : len(order)], self.scores[row, : len(order)] = columns[order], scores[order]

    @property
    def there(self) -> Array:
        """(rows, most), whether it is one of the row's."""
        found: Array = np.arange(self.columns.shape[1]) < self.counts[:, None]
        return found

    def matrix(self, width: int) -> Matrix:
        """As sparse rows."""
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.counts)])
        columns, scores = self.columns[self.there], self.scores[self.there]
        return Matrix(starts, columns, scores, np.zeros(len(columns)), width)


@dataclass(frozen=True)
class Products:
    """Rows of `a` times `b`.

    Attributes:
        half_days: difference of two entries' times at which their product counts half; None leaves times out.
        scale: float64 a column of `b`, or None.
        allowed: uint8 a column, 0 for those that are not given; or None.
        but: of each row of `a`, columns that are not given; or None.
    """

    a: Matrix
    b: Matrix
    half_days: float | None = None
    scale: Array | None = None
    allowed: Array | None = None
    but: Matrix | None = None


@dataclass(frozen=True)
class Swing:
    """Attributes:
    items: with their users. users: with their items. weights: float64 a user.
    rows: int32, the items that are asked for.
    """

    items: Matrix
    users: Matrix
    weights: Array
    alpha: float
    rows: Array


class Plain:
    """In NumPy."""

    def products(self, what: Products, first: int, last: int, out: Top) -> None:
        a, b = what.a, what.b
        for row in range(first, last):
            start, stop = a.starts[row], a.starts[row + 1]
            met = b.taken(a.columns[start:stop])
            parts = np.repeat(a.values[start:stop].astype(np.float64), met.sizes) * met.values
            if what.half_days is not None:
                parts /= 1.0 + np.abs(np.repeat(a.times[start:stop], met.sizes) - met.times) / what.half_days
            columns, places = np.unique(met.columns, return_inverse=True)
            sums = np.bincount(places, parts, len(columns))
            given = np.ones(len(columns), np.bool_)
            if what.allowed is not None:
                given &= what.allowed[columns] != 0
            if what.but is not None:
                given &= ~np.isin(columns, what.but.columns[what.but.starts[row] : what.but.starts[row + 1]])
            columns, sums = columns[given], sums[given]
            out.put(row, columns, sums if what.scale is None else sums * what.scale[columns])

    def swing(self, what: Swing, first: int, last: int, out: Top) -> None:
        for row in range(first, last):
            own = what.rows[row]
            who = what.items.columns[what.items.starts[own] : what.items.starts[own + 1]]
            theirs = what.users.taken(who)
            columns, places, times = np.unique(theirs.columns, return_inverse=True, return_counts=True)
            has = np.zeros((len(who), len(columns)))
            has[theirs.rows, places] = 1.0
            shared = (times > 1) & (columns != own)
            columns, has = columns[shared], has[:, shared]
            weights = what.weights[who]
            pairs = np.outer(weights, weights) / (what.alpha + 1.0 + has @ has.T)
            np.fill_diagonal(pairs, 0.0)
            sums = ((pairs @ has) * has).sum(axis=0) / 2
            out.put(row, columns[sums > 0], sums[sums > 0])
