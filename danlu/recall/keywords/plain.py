"""BM25 in NumPy: the definition, and what works without a compiler."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from danlu.recall.keywords.postings import Postings
from danlu.recall.rows.bits import Array, Bits
from danlu.recall.rows.kernels import kernels as set_kernels


@dataclass(frozen=True)
class Words:
    """Words that several questions ask for, in one segment; those of a question follow each other.

    Attributes:
        starts: (questions + 1,) int64, where the words of each begin, and the end of the last's.
        ranges: (words, 2) int64, where their lists lie. weights: float64, what each counts: idf times how often asked.
        base, slope: a word that stands n times in a row of m words adds weight * n / (n + base + slope * m).
    """

    starts: Array
    ranges: Array
    weights: Array
    base: float
    slope: float


@dataclass(frozen=True)
class Best:
    """Rows that were found, the best first.

    Attributes:
        rows: (questions, k) uint32. scores: (questions, k) float64. sizes: (questions,) int64, how many of each count.
    """

    rows: Array
    scores: Array
    sizes: Array


class Plain:
    """In NumPy."""

    def best(self, postings: Postings, rows: Bits, words: Words, k: int, floors: Array) -> Best:
        k, count = min(k, rows.count), len(floors)
        best = Best(np.zeros((count, k), np.uint32), np.zeros((count, k)), np.zeros(count, np.int64))
        chosen = set_kernels().places(rows, 0, len(rows.kinds), rows.rows)
        for at, (first, last) in enumerate(pairwise(words.starts.tolist())):
            scores = self._scores(postings, words, first, last)
            here = chosen[scores[chosen] > floors[at]]
            here, found = top(here, scores[here], k)
            best.sizes[at] = len(here)
            best.rows[at, : len(here)], best.scores[at, : len(here)] = here, found
        return best

    def _scores(self, postings: Postings, words: Words, first: int, last: int) -> Array:
        """What one question's words bring to every row."""
        scores = np.zeros(len(postings.lengths))
        asked = zip(words.ranges[first:last].tolist(), words.weights[first:last].tolist(), strict=True)
        for (start, stop), weight in asked:
            here, counts = postings.rows[start:stop], postings.counts[start:stop].astype(np.float64)
            inside = here < len(scores)
            here, counts = here[inside], counts[inside]
            norms = words.base + words.slope * postings.lengths[here]
            scores[here] += weight * (counts / (counts + norms))
        return scores

    def counted(self, postings: Postings, rows: Bits, ranges: Array) -> Array:
        flags = np.zeros(len(postings.lengths), np.bool_)
        flags[set_kernels().places(rows, 0, len(rows.kinds), rows.rows)] = True
        lists = (postings.rows[start:stop] for start, stop in ranges.tolist())
        return np.array([np.count_nonzero(flags[one[one < len(flags)]]) for one in lists], np.int64)


def top(rows: Array, scores: Array, k: int) -> tuple[Array, Array]:
    """The k best, the best first; of equal ones the first row."""
    if len(rows) > 4 * k > 0:
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        rows, scores = rows[scores >= least], scores[scores >= least]
    order = np.lexsort((rows, -scores))[:k]
    return rows[order], scores[order]
