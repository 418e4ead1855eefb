"""The nearest vectors of several segments: each is asked, queries and segments shared among threads, answers merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from danlu.errors import ConfigError
from danlu.recall.rows.bits import Array, Bits
from danlu.recall.rows.kernels import shared
from danlu.recall.vectors.index import VectorIndex
from danlu.recall.vectors.metric import METRICS, checked

# Queries that a thread takes at a time.
_QUERIES_A_THREAD = 16
MOST_K = 1 << 20


@dataclass(frozen=True)
class Nearest:
    """Attributes:
    rows: (queries, k) int64, numbered through all segments, the best first; -1 where there are no more.
    scores: (queries, k) float32: the inner product, the cosine, or the squared distance below zero.
    seen: int64 a query, rows that were looked at.
    """

    rows: Array
    scores: Array
    seen: Array


def nearest(indexes: Sequence[VectorIndex], parts: Sequence[Bits], queries: Array, k: int) -> Nearest:
    """The k nearest of the rows of a set for each query, of equally near ones the first; all where there are fewer.

    Args:
        parts: the rows of each segment. queries: (queries, dim).

    Raises DataError for queries that no vectors can be, ConfigError for a k that is none.
    """
    if not 1 <= k <= MOST_K:
        raise ConfigError(f"the {k} nearest", allowed=f"1 to {MOST_K}")
    starts = [0, *accumulate(part.rows for part in parts)]
    there = [at for at, part in enumerate(parts) if part.count]
    searches = []
    for at in there:
        vectors = indexes[at].vectors
        values = checked(queries, METRICS[vectors.metric], vectors.values.shape[1], what="query")
        searches.append(indexes[at].search(indexes[at].asked(values, k), parts[at]))
    blocks = range(0, len(queries), _QUERIES_A_THREAD)
    ranges = [(at, first, min(first + _QUERIES_A_THREAD, len(queries))) for at in range(len(there)) for first in blocks]
    shared(ranges, lambda at, first, last: searches[at].answer(first, last))
    found = [search.queries for search in searches]
    seen = np.zeros(len(queries), np.int64)
    for search in searches:
        seen += search.seen
    rows = [np.where(one.rows < 0, one.rows, one.rows + starts[at]) for at, one in zip(there, found, strict=True)]
    return Nearest(*_merged(rows, [one.scores for one in found], len(queries), k), seen)


def _merged(rows: list[Array], scores: list[Array], queries: int, k: int) -> tuple[Array, Array]:
    if len(rows) == 1:
        return rows[0], scores[0]
    nothing = (np.full((queries, k), -1, np.int64), np.full((queries, k), -np.inf, np.float32))
    numbers, values = np.hstack([*rows, nothing[0]]), np.hstack([*scores, nothing[1]])
    order = np.lexsort((np.where(numbers < 0, np.iinfo(np.int64).max, numbers), -values), axis=1)[:, :k]
    return np.take_along_axis(numbers, order, 1), np.take_along_axis(values, order, 1)
