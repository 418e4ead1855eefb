"""Which rows of a segment have which words, how often, and how many words each row has.

Lists stand one after the other in the order of the words' numbers (tokens.py), each in the order of its rows. For every
128 entries the most that a word stands in one of their rows, and the fewest words of one of them, are kept: what a
score can be at most is known without looking at them (block-max, Ding and Suel, SIGIR 2011).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from danlu.recall.columns.texts import Texts
from danlu.recall.files import ArrayFile, ArrayWriter, Damaged
from danlu.recall.keywords.tokens import keys
from danlu.recall.rows.bits import Array

BLOCK = 128
# Texts that are cut into words together.
_PART_BYTES = 1 << 21
_MOST_COUNT = 0xFFFF
_ARRAYS = ("keys", "starts", "rows", "counts", "lengths", "most", "least")


@dataclass(frozen=True, eq=False)
class Postings:
    """Attributes:
    keys: uint64, the words, in order. starts: int64, where the list of each begins, and the end of the last.
    rows: uint32. counts: uint8 or uint16, how often the word stands in the row (65,535 at most).
    lengths: uint32 a row of the segment, how many words it has.
    most, least: of every 128 entries, the largest count (uint16) and the fewest words of a row (uint32).
    """

    keys: Array
    starts: Array
    rows: Array
    counts: Array
    lengths: Array
    most: Array
    least: Array

    @classmethod
    def of(cls, texts: Texts) -> Postings:
        lengths = np.zeros(len(texts), np.uint32)
        parts = [_Part.of(texts, first, last, lengths) for first, last in _cuts(texts)]
        words = np.unique(np.concatenate([np.empty(0, np.uint64), *(part.keys for part in parts)]))
        places = [np.searchsorted(words, part.keys) for part in parts]
        sizes = np.zeros(len(words), np.int64)
        for part, place in zip(parts, places, strict=True):
            sizes[place] += part.sizes
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        rows, counts = np.empty(starts[-1], np.uint32), np.empty(starts[-1], np.uint16)
        free = starts[:-1].copy()
        for part, place in zip(parts, places, strict=True):
            begins = np.cumsum(part.sizes) - part.sizes
            into = np.repeat(free[place] - begins, part.sizes) + np.arange(len(part.rows))
            rows[into], counts[into] = part.rows, part.counts
            free[place] += part.sizes
        if counts.max(initial=0) < 256:
            counts = counts.astype(np.uint8)
        return cls(words, starts, rows, counts, lengths, *_bounds(rows, counts, lengths))

    @cached_property
    def addresses(self) -> tuple[int, ...]:
        """Of rows, counts, lengths, most and least, as kernels.c reads them."""
        return tuple(int(getattr(self, name).ctypes.data) for name in ("rows", "counts", "lengths", "most", "least"))

    def write(self, writer: ArrayWriter) -> None:
        for name in _ARRAYS:
            writer.add(name, getattr(self, name))

    @classmethod
    def read(cls, file: ArrayFile, rows: int) -> Postings:
        if any(name not in file for name in _ARRAYS):
            raise Damaged(f"{file.name}: its arrays are not all there")
        made = cls(*(file[name] for name in _ARRAYS))
        size = len(made.rows)
        blocks = -(-size // BLOCK)
        fits = len(made.lengths) == rows and len(made.counts) == size and len(made.starts) == len(made.keys) + 1
        if not (
            fits and made.starts[0] == 0 and made.starts[-1] == size and len(made.most) == blocks == len(made.least)
        ):
            raise Damaged(f"{file.name}: its arrays do not fit together")
        return made

    def ranges(self, words: Array) -> Array:
        """(words, 2) int64: from where to where the list of each lies; nothing where no row has the word."""
        places = np.searchsorted(self.keys, words)
        there = places < len(self.keys)
        there[there] = self.keys[places[there]] == words[there]
        found = np.zeros((len(words), 2), np.int64)
        found[there, 0], found[there, 1] = self.starts[places[there]], self.starts[places[there] + 1]
        wrong = (found[:, 0] < 0) | (found[:, 1] < found[:, 0]) | (found[:, 1] > len(self.rows))
        if wrong.any():
            raise Damaged("the lists of words do not fit together", fix="look for damaged files: danlu recall check")
        return found


@dataclass(frozen=True)
class _Part:
    """Lists of the words of some rows that follow each other; sizes: of the list of each word."""

    keys: Array
    sizes: Array
    rows: Array
    counts: Array

    @classmethod
    def of(cls, texts: Texts, first: int, last: int, lengths: Array) -> _Part:
        """Puts the rows' numbers of words into `lengths`."""
        found, owners = keys(_text(texts, first, last))
        lengths[first:last] = np.bincount(owners, minlength=last - first)
        words, places = np.unique(found, return_inverse=True)
        pairs, counts = np.unique(places * (last - first) + owners, return_counts=True)
        places, rows = np.divmod(pairs, max(last - first, 1))
        sizes = np.bincount(places, minlength=len(words))
        counts = np.minimum(counts, _MOST_COUNT).astype(np.uint16)
        return cls(words, sizes, (rows + first).astype(np.uint32), counts)


def _cuts(texts: Texts) -> Iterator[tuple[int, int]]:
    """Rows that are taken together: by their bytes, and at least one."""
    first = 0
    while first < len(texts):
        last = int(np.searchsorted(texts.starts, texts.starts[first] + _PART_BYTES, side="right")) - 1
        last = min(max(last, first + 1), first + _PART_BYTES // 8)
        yield first, last
        first = last


def _text(texts: Texts, first: int, last: int) -> str:
    """Rows as one text, with U+0000 between them and nowhere else."""
    lengths = np.diff(texts.starts[first : last + 1])
    data = texts.data[texts.starts[first] : texts.starts[last]]
    whole = np.zeros(len(data) + last - first, np.uint8)
    whole[np.arange(len(data)) + np.repeat(np.arange(last - first), lengths)] = np.where(data, data, ord(" "))
    return whole[:-1].tobytes().decode("utf-8", "replace")


def _bounds(rows: Array, counts: Array, lengths: Array) -> tuple[Array, Array]:
    begins = np.arange(0, len(rows), BLOCK)
    if not len(begins):
        return np.empty(0, np.uint16), np.empty(0, np.uint32)
    return np.maximum.reduceat(counts, begins).astype(np.uint16), np.minimum.reduceat(lengths[rows], begins)
