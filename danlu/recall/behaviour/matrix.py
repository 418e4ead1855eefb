"""Who did what, as rows of (column, value, time): users with their items, items with their users, items with theirs.

A sparse matrix whose entries have a time beside their value. Knows nothing of events, files and channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from danlu.recall.rows.bits import Array
from danlu.recall.rows.kernels import kernels


@dataclass(frozen=True, eq=False)
class Matrix:
    """Attributes:
    starts: int64, where the entries of each row begin, and their end.
    columns: int32. values: float32. times: float64, in days. width: how many columns there are.
    """

    starts: Array
    columns: Array
    values: Array
    times: Array
    width: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def sizes(self) -> Array:
        """Entries of each row."""
        return np.diff(self.starts)

    @property
    def rows(self) -> Array:
        """The row of each entry."""
        return np.repeat(np.arange(len(self), dtype=np.int32), self.sizes)

    @classmethod
    def of(cls, rows: Array, columns: Array, values: Array, times: Array, shape: tuple[int, int]) -> Matrix:
        """Entries in any order; those of a row keep theirs."""
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(rows, minlength=shape[0]))])
        order = kernels().sorted(rows, starts)
        entries = (
            columns[order].astype(np.int32, copy=False),
            values[order].astype(np.float32, copy=False),
            times[order].astype(np.float64, copy=False),
        )
        return cls(starts.astype(np.int64, copy=False), *entries, shape[1])

    @classmethod
    def listed(cls, lists: Sequence[Sequence[int] | Array], width: int) -> Matrix:
        """Rows of columns, each with value 1 and its place in the row as time."""
        sizes = np.array([len(one) for one in lists], np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        columns = np.concatenate([np.empty(0, np.int32), *(np.asarray(one, np.int32) for one in lists)])
        times = np.arange(len(columns)) - np.repeat(starts[:-1], sizes)
        return cls(starts, columns, np.ones(len(columns), np.float32), times.astype(np.float64), width)

    def turned(self) -> Matrix:
        """Rows and columns exchanged; the entries of a row are in the order of what were rows."""
        return Matrix.of(self.columns, self.rows, self.values, self.times, (self.width, len(self)))

    def taken(self, rows: Array) -> Matrix:
        """These rows, in this order."""
        if len(rows) == len(self) and np.array_equal(rows, np.arange(len(self))):
            return self
        begins, sizes = self.starts[rows], self.sizes[rows]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        inside = np.arange(starts[-1]) + np.repeat(begins - starts[:-1], sizes)
        return Matrix(starts, self.columns[inside], self.values[inside], self.times[inside], self.width)

    def only(self, entries: Array) -> Matrix:
        """The entries with a flag; rows stay, some perhaps empty."""
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(entries)])
        kept = (self.columns[entries], self.values[entries], self.times[entries])
        return Matrix(sums[self.starts], *kept, self.width)

    def latest(self, most: int | None) -> Matrix:
        """Of each row its `most` latest entries, in the order of their times; of equal times, the last ones."""
        sorted_ = self if self._is_in_order() else self._in_order()
        if most is None or not len(self) or self.sizes.max() <= most:
            return sorted_
        from_end = np.repeat(self.starts[1:], self.sizes) - np.arange(len(self.columns))
        return sorted_.only(from_end <= most)

    def _is_in_order(self) -> bool:
        """Whether the times of each row rise."""
        rises = self.times[1:] >= self.times[:-1]
        inside = self.starts[(self.starts > 0) & (self.starts < len(self.times))]
        rises[inside - 1] = True
        return bool(rises.all())

    def _in_order(self) -> Matrix:
        order = np.lexsort((self.times, self.rows))
        return Matrix(self.starts, self.columns[order], self.values[order], self.times[order], self.width)

    def weighed(self, factors: Array) -> Matrix:
        """Values times one factor an entry."""
        return Matrix(
            self.starts, self.columns, (self.values * factors).astype(np.float32, copy=False), self.times, self.width
        )

    def widened(self, rows: int, width: int) -> Matrix:
        """With further rows, that are empty, and further columns."""
        more = np.full(rows - len(self), self.starts[-1], np.int64)
        return Matrix(np.concatenate([self.starts, more]), self.columns, self.values, self.times, width)
