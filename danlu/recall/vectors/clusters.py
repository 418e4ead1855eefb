"""Vectors -> lists of neighbours: k-means (Lloyd) on whole numbers, so that every processor finds the same lists.

Vectors are put on a grid so coarse that products are whole numbers below 2^24, which floats of 32 bits add without
rounding: a matrix product is then the same in whatever order and on however many threads its library adds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from danlu.recall.rows.bits import Array

ROUNDS = 8
# Rows a list is learnt from (k-means gains little beyond some dozens).
SAMPLED = 40
_BLOCK_SCORES = 1 << 22
_BLOCK_ROWS = 1 << 14
# From so many middles on they are grouped; so many groups are looked at for each vector.
_UNGROUPED = 512
_ASKED = 6
_GROUPING_ROUNDS = 4
# The grid reaches so many standard deviations; what is farther out is cut.
_DEVIATIONS = 5.0


@dataclass(frozen=True)
class Grid:
    """Float vectors -> whole numbers between -limit and limit, held as float32."""

    step: float
    limit: int

    @classmethod
    def of(cls, sample: Array) -> Grid:
        limit = min(127, math.isqrt((1 << 24) // sample.shape[1]))
        spread = float(np.sqrt(np.mean(np.square(sample, dtype=np.float64)))) or 1.0
        return cls(spread * _DEVIATIONS / limit, limit)

    def whole(self, values: Array) -> Array:
        made = np.rint(values / np.float32(self.step))
        return np.clip(made, -self.limit, self.limit, out=made)


def lists_for(rows: int) -> int:
    """How many lists: finding the near ones takes about as long as looking into them."""
    return max(1, round(math.sqrt(rows) / 4) * 16)


def middles(sample: Array, lists: int, rng: np.random.Generator) -> Array:
    """(lists, dim) whole numbers, from a sample on the grid that has at least as many rows."""
    chosen = sample[np.sort(rng.choice(len(sample), lists, replace=False))]
    for _ in range(ROUNDS):
        labels = Nearest(chosen)(sample)
        counts = np.bincount(labels, minlength=lists)
        order = np.argsort(labels, kind="stable")
        full = np.flatnonzero(counts)
        begins = (np.cumsum(counts) - counts)[full]
        sums = np.add.reduceat(sample[order].astype(np.int32), begins, axis=0)  # whole: no order of adding
        chosen[full] = np.rint(sums / counts[full, None])
        empty = np.flatnonzero(counts == 0)
        if len(empty):  # each takes a row of a list that has many
            weights = np.where(counts > 1, counts, 0).astype(np.float64)[labels]
            if weights.sum():
                chosen[empty] = sample[rng.choice(len(sample), len(empty), p=weights / weights.sum())]
    return chosen


class Nearest:
    """Finds the middle that a vector on the grid is nearest to; of equally near ones the first.

    Many middles are put into groups, and only those of the groups nearby are looked at: now and then that is the second
    nearest, which makes lists a little wider, and spares most of the work.
    """

    def __init__(self, chosen: Array) -> None:
        self._chosen, self._halves = chosen, _halves(chosen)
        self._groups: list[Array] = []
        if len(chosen) > _UNGROUPED:
            count = math.isqrt(len(chosen))
            self._tops = chosen[:: len(chosen) // count][:count].copy()
            for _ in range(_GROUPING_ROUNDS):
                labels = _first(self._tops, _halves(self._tops), chosen)
                self._groups = [np.flatnonzero(labels == at) for at in range(count)]
                for at, group in enumerate(self._groups):
                    if len(group):
                        self._tops[at] = np.rint(chosen[group].sum(0, dtype=np.float64) / len(group))

    def __call__(self, values: Array) -> Array:
        """int64 a vector."""
        if not self._groups:
            return _first(self._chosen, self._halves, values)
        blocks = (values[at : at + _BLOCK_ROWS] for at in range(0, len(values), _BLOCK_ROWS))
        return np.concatenate([np.empty(0, np.int64), *(self._grouped(block) for block in blocks)])

    def _grouped(self, values: Array) -> Array:
        near = values @ self._tops.T - _halves(self._tops)
        asked = np.argpartition(-near, _ASKED, axis=1)[:, :_ASKED]
        best, labels = np.full(len(values), -np.inf, np.float32), np.full(len(values), len(self._chosen), np.int64)
        rows, groups = np.repeat(np.arange(len(values)), _ASKED), asked.ravel()
        order = np.argsort(groups, kind="stable")
        cuts = np.searchsorted(groups[order], np.arange(len(self._groups) + 1))
        for at, group in enumerate(self._groups):
            here = rows[order[cuts[at] : cuts[at + 1]]]
            if len(here) and len(group):
                scores = values[here] @ self._chosen[group].T - self._halves[group]
                which = scores.argmax(1)
                most, found = scores[np.arange(len(here)), which], group[which]
                is_better = (most > best[here]) | ((most == best[here]) & (found < labels[here]))
                best[here[is_better]], labels[here[is_better]] = most[is_better], found[is_better]
        return labels


def _halves(chosen: Array) -> Array:
    halves: Array = (np.square(chosen, dtype=np.float32).sum(1, dtype=np.float64) / 2).astype(np.float32)
    return halves


def _first(chosen: Array, halves: Array, values: Array) -> Array:
    labels = np.empty(len(values), np.int64)
    size = max(1, _BLOCK_SCORES // len(chosen))
    for start in range(0, len(values), size):
        some = values[start : start + size]
        labels[start : start + size] = (some @ chosen.T - halves).argmax(1)
    return labels
