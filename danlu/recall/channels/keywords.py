"""Rows whose text has the words that are asked for: BM25, over all segments as if they were one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np

from danlu.errors import ConfigError
from danlu.recall.channels.base import Opened, ranked
from danlu.recall.keywords.kernels import kernels
from danlu.recall.keywords.plain import Words
from danlu.recall.keywords.postings import Postings
from danlu.recall.keywords.tokens import asked
from danlu.recall.query import Bm25, Found, FoundAll, Query, given_for
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
        return self.find_all([query], rows, k)[0]

    def find_all(self, queries: Sequence[Query], rows: RowSet, k: int) -> Sequence[Found | None]:
        texts = [self._text(query) for query in queries]
        how = queries[0].bm25
        if None not in texts and all(query.bm25 is how for query in queries):
            return self._found([text or "" for text in texts], how, rows, k)
        made: list[Found | None] = [None] * len(queries)
        there = [at for at, text in enumerate(texts) if text is not None]
        for _, group in groupby(there, lambda at: id(queries[at].bm25)):
            places = list(group)
            found = self._found([texts[at] or "" for at in places], queries[places[0]].bm25, rows, k)
            for at, one in zip(places, found, strict=True):
                made[at] = one
        return made

    def _text(self, query: Query) -> str | None:
        text = query.like if query.text is None else query.text
        if text is not None and not isinstance(text, str) and query.text is not None:
            text = given_for(query.text, self._column)
        if text is not None and not isinstance(text, str):
            raise ConfigError(f"words of type {type(text).__name__} for {self._column}", allowed="text")
        return text

    def _found(self, texts: Sequence[str], how: Bm25, rows: RowSet, k: int) -> Sequence[Found]:
        """For each of some texts the k best."""
        words, times, starts = asked(texts)
        ranges = [postings.ranges(words) for postings in self._postings]
        among = self._opened.snapshot.live if how.idf == "collection" else rows.parts
        size = self._size if how.idf == "collection" else self._sized(among)
        weights = _idf(self._counted(ranges, among), size.rows) * times
        base, slope = how.k1 * (1 - how.b), how.k1 * how.b * size.rows / max(size.words, 1)
        parts = []
        floors, highest = np.zeros(len(texts)), np.zeros((len(texts), 0))
        for postings, here, part in zip(self._postings, ranges, rows.parts, strict=True):
            best = kernels().best(postings, part, Words(starts, here, weights, base, slope), k, floors)
            parts.append(best)
            if len(self._postings) > 1:  # of each segment only what is better than the k best before it
                there = np.arange(best.scores.shape[1]) < best.sizes[:, None]
                highest = -np.sort(-np.hstack([highest, np.where(there, best.scores, 0.0)]), axis=1)[:, :k]
                floors = highest[:, k - 1].copy() if highest.shape[1] == k else floors
        begins = rows.snapshot.starts[:-1]
        each = [
            (best.rows.astype(np.int64) + start, best.scores, best.sizes.tolist())
            for start, best in zip(begins, parts, strict=True)
        ]
        if len(each) == 1:
            return FoundAll(*each[0], 0.0)
        return [
            ranked([(found[at, : sizes[at]], scores[at, : sizes[at]]) for found, scores, sizes in each], k, 0.0)
            for at in range(len(texts))
        ]

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
