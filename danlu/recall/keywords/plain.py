"""BM25 in NumPy: the definition, and what works without a compiler."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from danlu.recall.keywords.postings import Postings
from danlu.recall.rows.bits import Array, Bits
from danlu.recall.rows.kernels import kernels as set_kernels


@dataclass(frozen=True)
class Words:
    """Words that are asked for, in one segment.

    Attributes:
        ranges: (words, 2) int64, where their lists lie. weights: float64, what each counts: idf times how often asked.
        base, slope: a word that stands n times in a row of m words adds weight * n / (n + base + slope * m).
    """

    ranges: Array
    weights: Array
    base: float
    slope: float


class Plain:
    """In NumPy."""

    def best(self, postings: Postings, rows: Bits, words: Words, k: int, floor: float) -> tuple[Array, Array]:
        scores = np.zeros(len(postings.lengths))
        for (start, stop), weight in zip(words.ranges.tolist(), words.weights.tolist(), strict=True):
            here, counts = postings.rows[start:stop], postings.counts[start:stop].astype(np.float64)
            inside = here < len(scores)
            here, counts = here[inside], counts[inside]
            norms = words.base + words.slope * postings.lengths[here]
            scores[here] += weight * (counts / (counts + norms))
        chosen = set_kernels().places(rows, 0, len(rows.kinds), rows.rows)
        chosen = chosen[scores[chosen] > floor]
        return top(chosen, scores[chosen], k)

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
