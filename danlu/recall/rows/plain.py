"""What is computed with sets, in NumPy: the definition, and what works without a compiler."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from danlu.recall.rows.bits import (
    DENSE,
    EMPTY,
    FULL,
    SHARD_ROWS,
    SHARD_WORDS,
    SPARSE,
    Array,
    Bits,
    Shard,
    as_words,
    canonical,
    packed,
    rows_in,
    shard_count,
    shard_places,
    shard_words,
    shards_of,
)
from danlu.recall.rows.tree import And, Codes, Leaf, Not, Or, Question, Tree

# What multiplies a place of a text in its number: 2^64 over the golden ratio (Knuth, TAOCP 6.4).
_FACTOR, _MIX = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93


@dataclass(frozen=True)
class Answer:
    """Where the shards of a set are put, each with room for its words."""

    words: Array
    kinds: Array
    counts: Array

    @classmethod
    def of(cls, rows: int) -> Answer:
        shards = shards_of(rows)
        last = (rows_in(rows, shards - 1) + 63) // 64 if shards else 0
        words = np.empty(max(shards - 1, 0) * SHARD_WORDS + last, np.uint64)
        return cls(words, np.zeros(shards, np.uint8), np.zeros(shards, np.int64))

    def bits(self, rows: int) -> Bits:
        return Bits(rows, self.words, self.kinds, np.arange(len(self.kinds)) * SHARD_WORDS, self.counts)


class Plain:
    """In NumPy."""

    def evaluate(self, question: Question, first: int, last: int, counts: Array, out: Answer | None) -> None:
        for shard in range(first, last):
            rows = rows_in(question.rows, shard)
            kind, what = canonical(_result(question.tree, shard, rows), rows)
            counts[shard] = shard_count((kind, what), rows)
            if out is not None:
                stored = as_words(kind, what)
                out.words[shard * SHARD_WORDS : shard * SHARD_WORDS + len(stored)] = stored
                out.kinds[shard], out.counts[shard] = kind, counts[shard]

    def places(self, bits: Bits, first: int, last: int, most: int) -> Array:
        found, count = [np.empty(0, np.uint32)], 0
        for shard in range(first, last):
            if count >= most:
                break
            rows = rows_in(bits.rows, shard)
            found.append(shard_places(_leaf(bits, shard, rows), rows) + np.uint32(shard * SHARD_ROWS))
            count += len(found[-1])
        return np.concatenate(found)[:most]

    def histogram(self, bits: Bits, codes: Array, out: Array, first: int, last: int) -> None:
        for shard in range(first, last):
            start, rows = shard * SHARD_ROWS, rows_in(bits.rows, shard)
            here = codes[start : start + rows]
            if bits.kinds[shard] != FULL:
                here = here[shard_places(_leaf(bits, shard, rows), rows)]
            out += np.bincount(here[here < len(out)], minlength=len(out))

    def hashes(self, offsets: Array, data: Array) -> Array:
        lengths = np.diff(offsets)
        powers = np.full(int(lengths.max(initial=0)) + 1, _FACTOR, np.uint64)
        powers[0] = 1
        np.cumprod(powers, out=powers)
        inside = data[offsets[0] : offsets[-1]] if len(offsets) else data[:0]
        nth = np.arange(len(inside)) - np.repeat(offsets[:-1] - offsets[0], lengths)
        sums = np.zeros(len(inside) + 1, np.uint64)
        np.cumsum((inside.astype(np.uint64) + np.uint64(1)) * powers[nth], out=sums[1:])
        made = sums[offsets[1:] - offsets[0]] - sums[offsets[:-1] - offsets[0]]  # wraps as it should
        made ^= made >> np.uint64(32)
        made *= np.uint64(_MIX)
        mixed: Array = made ^ made >> np.uint64(32)
        return mixed

    def sorted(self, numbers: Array, starts: Array) -> Array:
        return np.argsort(numbers, kind="stable")


def _result(tree: Tree, shard: int, rows: int) -> Shard:
    if isinstance(tree, Not):
        return _negated(_result(tree.part, shard, rows), rows)
    if not isinstance(tree, (And, Or)):
        return _leaf(tree, shard, rows)
    if isinstance(tree, Or):
        return _union((_result(part, shard, rows) for part in tree.parts), rows)
    sofar: Shard = (FULL, None)
    for part in tree.parts:
        if sofar[0] == EMPTY:
            break
        sofar = _both(sofar, _result(part, shard, rows), rows)
    return sofar


def _union(parts: Iterator[Shard], rows: int) -> Shard:
    """Lists are gathered, so that many of them are packed once."""
    words: Array | None = None
    places = []
    for kind, what in parts:
        if kind == FULL:
            return (FULL, None)
        if kind == SPARSE and what is not None:
            places.append(what)
        elif what is not None:
            words = what if words is None else words | what
    if places:
        flags = np.zeros(rows, np.bool_)
        flags[np.concatenate(places)] = True
        listed = packed(flags)
        words = listed if words is None else words | listed
    return (EMPTY, None) if words is None else (DENSE, words)


def _leaf(leaf: Leaf, shard: int, rows: int) -> Shard:
    start = shard * SHARD_ROWS
    if isinstance(leaf, Bits):
        kind = int(leaf.kinds[shard])
        if kind == SPARSE:
            places = leaf.places(shard)
            return (SPARSE, places[places < rows])
        return (kind, leaf.packed(shard) if kind == DENSE else None)
    if isinstance(leaf, Codes):
        codes = leaf.codes[start : start + rows]
        if leaf.chosen is None:
            return (DENSE, packed((codes >= leaf.low) & (codes <= leaf.high)))
        known = codes < len(leaf.chosen)
        return (DENSE, packed((leaf.chosen[np.where(known, codes, 0)] != 0) & known))
    least, largest = leaf.zones[shard]
    if largest < leaf.low or least > leaf.high:
        return (EMPTY, None)
    if leaf.low <= least and largest <= leaf.high:
        return (FULL, None)
    values = leaf.values[start : start + rows]
    return (DENSE, packed((values >= leaf.low) & (values <= leaf.high)))


def _negated(shard: Shard, rows: int) -> Shard:
    if shard[0] in (EMPTY, FULL):
        return (FULL if shard[0] == EMPTY else EMPTY, None)
    words = ~shard_words(shard, rows)
    if rows % 64:
        words[-1] &= np.uint64((1 << rows % 64) - 1)
    return (DENSE, words)


def _both(a: Shard, b: Shard, rows: int) -> Shard:
    if a[0] == EMPTY or b[0] == FULL:
        return a
    if b[0] == EMPTY or a[0] == FULL:
        return b
    if SPARSE not in (a[0], b[0]):
        return (DENSE, shard_words(a, rows) & shard_words(b, rows))
    if a[0] == b[0]:
        return (SPARSE, np.intersect1d(shard_places(a, rows), shard_places(b, rows), assume_unique=True))
    few, many = (a, b) if a[0] == SPARSE else (b, a)
    places, words = shard_places(few, rows), shard_words(many, rows)
    bits = words[places >> np.uint32(6)] >> (places & np.uint32(63)).astype(np.uint64)
    return (SPARSE, places[(bits & np.uint64(1)).astype(np.bool_)])
