"""Rows whose text has the words that are asked for: BM25, over all segments as if they were one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from danlu.errors import ConfigError
from danlu.recall.channels.base import Opened, joined
from danlu.recall.keywords.kernels import kernels
from danlu.recall.keywords.plain import Words
from danlu.recall.keywords.postings import Postings
from danlu.recall.keywords.tokens import asked
from danlu.recall.query import Bm25, Found, Query, given_for
from danlu.recall.rows.bits import Array, Bits
from danlu.recall.rows.kernels import kernels as set_kernels
from danlu.recall.rowset import RowSet


@dataclass(frozen=True)
class Size:
    """Of some rows: how many have words, and how many words these have together."""

    rows: int
    words: int


class Keywords:
    """The texts of one column."""

    def __init__(self, opened: Opened, at: int) -> None:
        self._column = opened.columns[at].name
        self.name = f"words:{self._column}"
        self._opened, self._at = opened, at

    @cached_property
    def _postings(self) -> list[Postings]:
        return [segment.derived("words", self._at) for segment in self._opened.segments]

    @cached_property
    def _size(self) -> Size:
        return self._sized(self._opened.snapshot.live)

    def find(self, query: Query, rows: RowSet, k: int) -> Found | None:
        text = given_for(query.text, self._column) if query.text is not None else query.like
        if text is None:
            return None
        if not isinstance(text, str):
            raise ConfigError(f"words of type {type(text).__name__} for {self._column}", allowed="text")
        words, times = asked(text)
        ranges = [postings.ranges(words) for postings in self._postings]
        among = self._opened.snapshot.live if query.bm25.idf == "collection" else rows.parts
        size = self._size if query.bm25.idf == "collection" else self._sized(among)
        weights = _idf(self._counted(ranges, among), size.rows) * times
        return joined(self._best(ranges, weights, size, query.bm25, rows, k), k, 0.0, is_ranked=True)

    def _best(
        self, ranges: list[Array], weights: Array, size: Size, how: Bm25, rows: RowSet, k: int
    ) -> Iterator[tuple[int, Array, Array]]:
        """Of each segment what is better than the k best before it."""
        base, slope = how.k1 * (1 - how.b), how.k1 * how.b * size.rows / max(size.words, 1)
        best = np.empty(0)
        for start, postings, here, part in zip(
            rows.snapshot.starts[:-1], self._postings, ranges, rows.parts, strict=True
        ):
            floor = float(best[-1]) if len(best) == k else 0.0
            words = Words(here, weights, base, slope)
            found, scores = kernels().best(postings, part, words, k, floor)
            best = -np.sort(-np.concatenate([best, scores]))[:k] if len(best) else scores
            yield start, found, scores

    def _counted(self, ranges: list[Array], among: tuple[Bits, ...]) -> Array:
        """How many of these rows have each word."""
        total = np.zeros(len(ranges[0]) if ranges else 0, np.int64)
        for postings, here, part in zip(self._postings, ranges, among, strict=True):
            whole = part.count == part.rows
            total += here[:, 1] - here[:, 0] if whole else kernels().counted(postings, part, here)
        return total

    def _sized(self, among: tuple[Bits, ...]) -> Size:
        rows = words = 0
        for postings, part in zip(self._postings, among, strict=True):
            lengths = postings.lengths
            if part.count < part.rows:
                lengths = lengths[set_kernels().places(part, 0, len(part.kinds), part.rows)]
            rows += int(np.count_nonzero(lengths))
            words += int(lengths.sum(dtype=np.int64))
        return Size(rows, words)


def _idf(counts: Array, rows: int) -> Array:
    """Lucene's: above zero also for what most rows have."""
    found: Array = np.log(1 + (rows - counts + 0.5) / (counts + 0.5))
    return found


def keyword_channels(opened: Opened) -> Iterator[Keywords]:
    return (Keywords(opened, at) for at, column in enumerate(opened.columns) if column.keywords)
