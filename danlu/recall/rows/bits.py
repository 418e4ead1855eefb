"""Sets of the rows of one segment, cut into shards of 2^20 rows.

A shard is empty, full, a sorted list of places, or packed words; which one follows from how many rows it has, so that
equal sets are equal byte for byte. Knows nothing of questions, columns, files or snapshots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
# One shard: its kind, and its places (uint32) or words (uint64).
Shard: TypeAlias = tuple[int, Array | None]

SHARD_ROWS = 1 << 20
SHARD_WORDS = SHARD_ROWS // 64
EMPTY, FULL, SPARSE, DENSE = range(4)


def shards_of(rows: int) -> int:
    return -(-rows // SHARD_ROWS)


def rows_in(rows: int, shard: int) -> int:
    """Rows of one shard."""
    return min(SHARD_ROWS, rows - shard * SHARD_ROWS)


@dataclass(frozen=True, eq=False)
class Bits:
    """A set of the rows 0 to rows - 1.

    Attributes:
        words: uint64, of all shards that are lists or words; a list holds two places (uint32) a word.
        kinds: uint8 a shard. offsets: int64 a shard, where it begins in `words`. counts: int64 a shard.
    """

    rows: int
    words: Array
    kinds: Array
    offsets: Array
    counts: Array

    @cached_property
    def count(self) -> int:
        return int(self.counts.sum())

    @cached_property
    def bytes(self) -> int:
        """What is read to look at all of it."""
        return int(self.sizes().sum()) * 8

    def sizes(self) -> Array:
        """Words that each shard takes."""
        lists = np.where(self.kinds == SPARSE, (self.counts + 1) // 2, 0)
        ends = np.minimum(SHARD_ROWS, self.rows - np.arange(len(self.kinds)) * SHARD_ROWS)
        return np.where(self.kinds == DENSE, (ends + 63) // 64, lists)

    def places(self, shard: int) -> Array:
        """uint32 places of a shard that is a list."""
        start = self.offsets[shard]
        listed: Array = self.words[start : start + (self.counts[shard] + 1) // 2].view(np.uint32)
        return listed[: self.counts[shard]]

    def packed(self, shard: int) -> Array:
        """Words of a shard that is words."""
        start = self.offsets[shard]
        words: Array = self.words[start : start + (rows_in(self.rows, shard) + 63) // 64]
        return words

    @classmethod
    def whole(cls, rows: int, kind: int) -> Bits:
        """No rows (EMPTY) or all of them (FULL)."""
        counts = [rows_in(rows, shard) if kind == FULL else 0 for shard in range(shards_of(rows))]
        zeros = np.zeros(len(counts), np.int64)
        return cls(
            rows, np.empty(0, np.uint64), np.full(len(counts), kind, np.uint8), zeros, np.array(counts, np.int64)
        )

    @classmethod
    def of(cls, rows: int, places: Array) -> Bits:
        """The set of these rows, which are sorted and differ."""
        cuts = np.searchsorted(places, np.arange(shards_of(rows) + 1, dtype=np.int64) * SHARD_ROWS)
        parts = [
            canonical((SPARSE, (places[start:stop] - shard * SHARD_ROWS).astype(np.uint32)), rows_in(rows, shard))
            for shard, (start, stop) in enumerate(pairwise(cuts))
        ]
        return cls.joined(rows, parts)

    @classmethod
    def joined(cls, rows: int, parts: Sequence[Shard]) -> Bits:
        """A set of canonical shards, one after the other."""
        words, offsets, counts, at = [], [], [], 0
        for shard, (kind, what) in enumerate(parts):
            stored = as_words(kind, what)
            words.append(stored)
            offsets.append(at)
            counts.append(shard_count((kind, what), rows_in(rows, shard)))
            at += len(stored)
        kinds = np.array([kind for kind, _ in parts], np.uint8)
        together = np.concatenate(words) if words else np.empty(0, np.uint64)
        return cls(rows, together, kinds, np.array(offsets, np.int64), np.array(counts, np.int64))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bits):
            return NotImplemented
        if self.rows != other.rows or not np.array_equal(self.kinds, other.kinds):
            return False
        if not np.array_equal(self.counts, other.counts):
            return False
        lists = np.flatnonzero(self.kinds == SPARSE).tolist()
        words = np.flatnonzero(self.kinds == DENSE).tolist()
        return all(np.array_equal(self.places(s), other.places(s)) for s in lists) and all(
            np.array_equal(self.packed(s), other.packed(s)) for s in words
        )

    __hash__ = None  # type: ignore[assignment]


def member(bits: Bits, rows: Array) -> Array:
    """Which of the rows are in the set."""
    found = np.zeros(len(rows), np.bool_)
    shards = rows // SHARD_ROWS
    for shard in np.unique(shards).tolist():
        here = shards == shard
        kind, inside = int(bits.kinds[shard]), rows[here] - shard * SHARD_ROWS
        if kind == FULL:
            found[here] = True
        elif kind != EMPTY:
            found[here] = _inside(bits, shard, inside)
    return found


def _inside(bits: Bits, shard: int, places: Array) -> Array:
    if int(bits.kinds[shard]) == SPARSE:
        return np.isin(places, bits.places(shard))
    words = bits.packed(shard)[places >> 6]
    found: Array = (words >> (places & 63).astype(np.uint64) & np.uint64(1)).astype(np.bool_)
    return found


# -- one shard --------------------------------------------------------------------------------------------


def packed(flags: Array) -> Array:
    """Words of one bit a flag, the first the lowest."""
    made = np.zeros(-(-len(flags) // 64) * 8, np.uint8)
    packed = np.packbits(flags, bitorder="little")
    made[: len(packed)] = packed
    words: Array = made.view("<u8").astype(np.uint64, copy=False)
    return words


def unpacked(words: Array, rows: int) -> Array:
    flags: Array = np.unpackbits(words.astype("<u8", copy=False).view(np.uint8), count=rows, bitorder="little")
    return flags.view(np.bool_)


def shard_places(shard: Shard, rows: int) -> Array:
    kind, what = shard
    if kind == FULL:
        return np.arange(rows, dtype=np.uint32)
    if kind == DENSE:
        assert what is not None
        return np.flatnonzero(unpacked(what, rows)).astype(np.uint32)
    return np.empty(0, np.uint32) if what is None else what


def shard_words(shard: Shard, rows: int) -> Array:
    kind, what = shard
    if kind == DENSE:
        assert what is not None
        return what
    flags = np.full(rows, kind == FULL)
    if what is not None:
        flags[what] = True
    return packed(flags)


def shard_count(shard: Shard, rows: int) -> int:
    kind, what = shard
    if what is None:
        return rows if kind == FULL else 0
    return len(what) if kind == SPARSE else int(np.bitwise_count(what).sum())


def canonical(shard: Shard, rows: int) -> Shard:
    """The form that follows from how many rows it has."""
    count = shard_count(shard, rows)
    if count in (0, rows):
        return (FULL if count else EMPTY, None)
    if count * 4 < (rows + 63) // 64 * 8:
        return (SPARSE, shard_places(shard, rows))
    return (DENSE, shard_words(shard, rows))


def as_words(kind: int, what: Array | None) -> Array:
    if what is None:
        return np.empty(0, np.uint64)
    if kind == DENSE:
        return what
    padded = np.zeros(len(what) + len(what) % 2, np.uint32)
    padded[: len(what)] = what
    return padded.view(np.uint64)
