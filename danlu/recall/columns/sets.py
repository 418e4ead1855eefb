"""Several sets of rows in one file, each mapped when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from danlu.recall.files import ArrayFile, ArrayWriter, Damaged
from danlu.recall.rows.bits import DENSE, SHARD_ROWS, SPARSE, Array, Bits, shards_of


class Sets:
    """Sets of the rows of one segment, numbered from 0.

    Attributes:
        counts: rows of each. sizes: bytes that are read to look at each.
    """

    def __init__(self, rows: int, words: Array, kinds: Array, offsets: Array, counts: Array) -> None:
        self._rows, self._words = rows, words
        self._kinds, self._offsets, self._counts = kinds, offsets, counts
        self.counts: Array = counts.sum(1)
        self.sizes: Array = _sizes(rows, kinds, counts).sum(1) * 8
        self._made: dict[int, Bits] = {}

    def __len__(self) -> int:
        return len(self._kinds)

    def __getitem__(self, at: int) -> Bits:
        if at not in self._made:
            self._made[at] = Bits(self._rows, self._words, self._kinds[at], self._offsets[at], self._counts[at])
        return self._made[at]

    @classmethod
    def of(cls, rows: int, sets: Sequence[Bits]) -> Sets:
        shape = (len(sets), shards_of(rows))
        words = np.concatenate([np.empty(0, np.uint64), *(one.words for one in sets)])
        kinds, offsets, counts = _stacked(sets, shape)
        return cls(rows, words, kinds, offsets, counts)

    def write(self, writer: ArrayWriter, prefix: str = "") -> None:
        writer.add(f"{prefix}words", self._words)
        writer.add(f"{prefix}kinds", self._kinds)
        writer.add(f"{prefix}offsets", self._offsets)
        writer.add(f"{prefix}counts", self._counts)

    @classmethod
    def read(cls, file: ArrayFile, rows: int, prefix: str = "") -> Sets:
        """Raises Damaged if it does not fit together: compiled code will follow what stands in it."""
        parts = [file[f"{prefix}{name}"] for name in ("words", "kinds", "offsets", "counts")]
        words, kinds, offsets, counts = parts
        shards = np.minimum(SHARD_ROWS, rows - np.arange(shards_of(rows)) * SHARD_ROWS)
        fits = kinds.shape == offsets.shape == counts.shape == (len(kinds), len(shards))
        if fits and len(kinds):
            ends = offsets + _sizes(rows, kinds, counts)
            fits = (
                bool((kinds <= DENSE).all())
                and bool(((kinds != SPARSE) | (counts * 4 < (shards + 63) // 64 * 8)).all())
                and bool(((counts >= 0) & (counts <= shards)).all())
                and bool(((offsets >= 0) & (ends <= len(words))).all())
            )
        if not fits:
            raise Damaged(f"{file.name}: its sets of rows do not fit together")
        return cls(rows, words, kinds, offsets, counts)


def _stacked(sets: Sequence[Bits], shape: tuple[int, int]) -> Iterator[Array]:
    starts = np.cumsum([0, *(len(one.words) for one in sets)], dtype=np.int64)[:-1]
    yield np.array([one.kinds for one in sets], np.uint8).reshape(shape)
    yield (np.array([one.offsets for one in sets], np.int64).reshape(shape) + starts[:, None]).reshape(shape)
    yield np.array([one.counts for one in sets], np.int64).reshape(shape)


def _sizes(rows: int, kinds: Array, counts: Array) -> Array:
    """Words that each shard takes."""
    shards = np.minimum(SHARD_ROWS, rows - np.arange(kinds.shape[-1]) * SHARD_ROWS)
    lists = np.where(kinds == SPARSE, (counts + 1) // 2, 0)
    return np.where(kinds == DENSE, (shards + 63) // 64, lists)
