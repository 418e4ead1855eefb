"""Nearest vectors in NumPy: the definition, and what works without a compiler.

Bit for bit what kernels.c answers: sums of codes are whole numbers, floats are added in sixteen lanes.
"""

from __future__ import annotations

import numpy as np

from danlu.recall.rows.bits import Array
from danlu.recall.vectors.forms import ALL, BY_PLACE, LANES, Lists, Queries, Vectors

INNER_PRODUCT, COSINE, L2 = range(3)
_BLOCK_ROWS = 1 << 14
# Whole numbers up to here have exact sums in 32 bits of float.
_EXACT = 1 << 24


class Plain:
    """In NumPy."""

    def squares(self, values: Array) -> Array:
        blocks = (values[at : at + _BLOCK_ROWS] for at in range(0, len(values), _BLOCK_ROWS))
        return np.concatenate([np.empty(0, np.float32), *(_summed(block, block) for block in blocks)])

    def exact(self, vectors: Vectors, queries: Queries, rows: Array, first: int, last: int) -> None:
        rows = rows[rows < len(vectors.values)]
        for at in range(first, last):
            best_rows, best_scores = np.empty(0, np.int64), np.empty(0, np.float32)
            for start in range(0, len(rows), _BLOCK_ROWS):
                some = rows[start : start + _BLOCK_ROWS].astype(np.int64)
                joined = np.concatenate([best_rows, some])
                scores = np.concatenate([best_scores, _scores(vectors, queries.values[at], some)])
                kept = best(scores, joined, queries.k)
                best_rows, best_scores = joined[kept], scores[kept]
            _put(queries, at, best_rows, best_scores)

    def listed(self, vectors: Vectors, lists: Lists, queries: Queries, first: int, last: int) -> None:
        for at in range(first, last):
            rows, queries.seen[at] = _walked(vectors, lists, queries, at)
            scores = _scores(vectors, queries.values[at], rows)
            kept = best(scores, rows, queries.k)
            _put(queries, at, rows[kept], scores[kept])

    def marked(self, rows: Array, lists: Lists, mask: Array) -> None:
        places = lists.place_of[rows]
        places = places[places < len(lists.row_at)]
        np.bitwise_or.at(mask, places >> np.uint32(6), np.uint64(1) << (places & np.uint32(63)).astype(np.uint64))


def best(scores: Array, rows: Array, count: int) -> Array:
    """Places of the best, the best first; of equal ones the first row."""
    if len(scores) > 4 * count:
        kept = np.flatnonzero(scores >= np.partition(scores, len(scores) - count)[len(scores) - count])
        return kept[best(scores[kept], rows[kept], count)] if len(kept) < len(scores) else _sorted(scores, rows, count)
    return _sorted(scores, rows, count)


def _sorted(scores: Array, rows: Array, count: int) -> Array:
    order: Array = np.lexsort((rows, -scores))[:count]
    return order


def _put(queries: Queries, at: int, rows: Array, scores: Array) -> None:
    queries.rows[at], queries.scores[at] = -1, -np.inf
    queries.rows[at, : len(rows)], queries.scores[at, : len(rows)] = rows, scores


def _scores(vectors: Vectors, query: Array, rows: Array) -> Array:
    there = vectors.values[rows]
    if vectors.metric == L2:
        apart = query - there
        return -_summed(apart, apart)
    products = _summed(there, query[None])
    if vectors.metric == COSINE:
        products *= vectors.inverses[rows]
    return products


def _summed(a: Array, b: Array) -> Array:
    """Sums of products along the last axis: sixteen lanes, one after the other, then halved."""
    width = -(-a.shape[1] // LANES) * LANES
    lanes = np.zeros((max(len(a), len(b)), LANES), np.float32)
    for start in range(0, width, LANES):
        products = a[:, start : start + LANES] * b[:, start : start + LANES]
        lanes[:, : products.shape[1]] += products
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    sums: Array = lanes[:, 0]
    return sums


def _walked(vectors: Vectors, lists: Lists, queries: Queries, at: int) -> tuple[Array, int]:
    """Rows of the best by codes, and how many places were looked at."""
    rows, scores, seen, walked_by = np.empty(0, np.int64), np.empty(0, np.float32), 0, 0
    near = scores
    reach = queries.reach
    most = bounds(vectors, lists, queries, at, reach)
    left = np.lexsort((np.arange(len(most)), -most)).tolist()
    while left:
        if len(near) == queries.k and most[left[0]] <= near.min(initial=np.inf):
            other = _reach(queries, seen, walked_by)
            if reach != queries.reach or other == reach:
                break
            reach = other
            most = bounds(vectors, lists, queries, at, reach)
            left.sort(key=lambda which: (-most[which], which))
            continue
        which = left.pop(0)
        start, stop = int(lists.starts[which]), int(lists.starts[which + 1])
        places = _passing(lists, queries, start, stop, len(vectors.values))
        seen, walked_by = seen + len(places), walked_by + stop - start
        if not len(places):
            continue
        joined = np.concatenate([rows, lists.row_at[places].astype(np.int64)])
        scores = np.concatenate([scores, by_codes(lists, queries, at, places)])
        kept = best(scores, joined, queries.spare)
        rows, scores = joined[kept], scores[kept]
        near = scores[: queries.k]
    return rows, seen


def _reach(queries: Queries, passed: int, walked_by: int) -> float:
    """For a set of which so many rows were among so many that were walked by."""
    found, expected = passed * queries.of_all, walked_by * queries.in_set
    if found > 2 * expected:
        return queries.near_reach
    return queries.far_reach if 2 * found < expected else queries.reach


def by_codes(lists: Lists, queries: Queries, at: int, places: Array) -> Array:
    """Scores by codes of some places."""
    found: Array = _products(lists.codes[places], queries.codes[at]) * (lists.scales[places] * queries.scales[at])
    if len(lists.biases):
        found -= lists.biases[places]
    return found


def bounds(vectors: Vectors, lists: Lists, queries: Queries, at: int, within: float) -> Array:
    """What the best row of each list may score, when rows are looked for so far beyond its middle."""
    length, reach = queries.lengths[at], np.float32(within)
    middles = _products(lists.centres, queries.codes[at]) * (lists.centre_scales * queries.scales[at])
    middles -= lists.centre_biases
    reaches = reach * length
    if vectors.metric == L2:
        reaches = np.float32(2) * reach * np.sqrt(np.maximum(length * length - middles, np.float32(0)))
    found: Array = middles - lists.means + reaches * lists.spreads
    return found


def _products(codes: Array, query: Array) -> Array:
    """Products of codes, which stand for 128 less, as float32. Each is a whole number, whatever the order of adding."""
    kind = np.dtype(np.float32 if len(query) * 128 * 128 < _EXACT else np.float64)
    whole = (codes.astype(np.int16) - 128).astype(kind)
    products: Array = (whole @ query.astype(kind)).astype(np.float32)
    return products


def _passing(lists: Lists, queries: Queries, start: int, stop: int, rows: int) -> Array:
    places = np.arange(start, stop) if start >= 0 and stop <= len(lists.row_at) else np.empty(0, np.int64)
    numbers = lists.row_at[places]
    places = places[numbers < rows]
    if queries.mask_kind == ALL:
        return places
    asked = places if queries.mask_kind == BY_PLACE else lists.row_at[places]
    bits = queries.mask[asked >> 6] >> (asked & 63).astype(np.uint64)
    passing: Array = places[(bits & np.uint64(1)).astype(np.bool_)]
    return passing
