"""BM25, compiled: kernels.c on the arguments of plain.py, with which it is compared."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from danlu.native import LONG, POINTER, agreeing, declared
from danlu.recall.columns.texts import Texts
from danlu.recall.keywords.plain import Best, Plain, Words
from danlu.recall.keywords.postings import Postings
from danlu.recall.rows.bits import Array, Bits


class Kernels(Protocol):
    """What is computed with postings, for one segment."""

    def best(self, postings: Postings, rows: Bits, words: Words, k: int, floors: Array) -> Best:
        """For each question the k best rows of a set whose score is above its floor (float64)."""

    def counted(self, postings: Postings, rows: Bits, ranges: Array) -> Array:
        """How many rows of the set (int64) each list has."""


_DOUBLE = ctypes.c_double


class _Lists(ctypes.Structure):
    _fields_ = [*((name, POINTER) for name in ("rows", "counts", "lengths", "most", "least")),
                ("width", LONG), ("size", LONG)]  # fmt: skip


class _Set(ctypes.Structure):
    _fields_ = [*((name, POINTER) for name in ("words", "kinds", "offsets", "counts")), ("rows", LONG)]


class _Queries(ctypes.Structure):
    _fields_ = [*((name, POINTER) for name in ("ranges", "starts", "weights", "floors")), ("base", _DOUBLE),
                ("slope", _DOUBLE), ("questions", LONG), ("k", LONG),
                *((name, POINTER) for name in ("rows", "scores", "sizes"))]  # fmt: skip


class Compiled:
    """The functions of kernels.c."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        self._best = declared(functions.danlu_best, 3 * [POINTER], LONG)
        self._counted = declared(functions.danlu_counted, [POINTER, POINTER, POINTER, LONG, POINTER], LONG)

    def best(self, postings: Postings, rows: Bits, words: Words, k: int, floors: Array) -> Best:
        k, count = min(k, rows.count), len(floors)
        best = Best(np.empty((count, k), np.uint32), np.empty((count, k)), np.empty(count, np.int64))
        asked = _Queries(
            *map(_at, (words.ranges, words.starts, words.weights, floors)), words.base, words.slope, count, k,
            *map(_at, (best.rows, best.scores, best.sizes)),
        )  # fmt: skip
        if self._best(_address(_lists(postings)), _address(_set(rows)), _address(asked)) < 0:
            raise MemoryError
        return best

    def counted(self, postings: Postings, rows: Bits, ranges: Array) -> Array:
        made = np.empty(len(ranges), np.int64)
        where = (_address(_lists(postings)), _address(_set(rows)))
        if self._counted(*where, _at(ranges), len(ranges), _at(made)) < 0:
            raise MemoryError
        return made


def _at(array: Array) -> int:
    return int(array.ctypes.data)


def _address(structure: Any) -> Any:
    return ctypes.byref(structure)


def _lists(postings: Postings) -> _Lists:
    return _Lists(*postings.addresses, postings.counts.itemsize, len(postings.rows))


def _set(rows: Bits) -> _Set:
    return _Set(*map(_at, (rows.words, rows.kinds, rows.offsets, rows.counts)), rows.rows)


@cache
def kernels() -> Kernels:
    """Compiled where that is possible and answers as the plain forms do."""
    return agreeing(Path(__file__).with_name("kernels.c"), Compiled, _agrees, exact=True) or Plain()


def _agrees(compiled: Kernels) -> bool:
    """On sets of few and of many rows, bit for bit."""
    letters = "abcdefghij"
    texts = [" ".join(letters[at * step % 10] for step in range(1 + at % 7)) for at in range(1000)]
    postings = Postings.of(Texts.of(text.encode() for text in texts))
    ranges = np.stack([postings.starts[:-1], postings.starts[1:]], 1)
    starts = np.array([0, len(ranges) // 2, len(ranges)])
    words = Words(starts, ranges, 1 / (1.0 + np.arange(len(ranges))), 0.3, 0.25)
    sets = [Bits.of(1000, np.arange(0, 1000, step)) for step in (1, 2, 150)]
    floors = np.array([0.1, 0.0])

    def answers(side: Kernels, rows: Bits) -> list[Array]:
        best = side.best(postings, rows, words, 20, floors)
        there = np.arange(best.rows.shape[1]) < best.sizes[:, None]
        return [best.rows[there], best.scores[there], best.sizes, side.counted(postings, rows, ranges)]

    return all(
        np.array_equal(plain, fast)
        for rows in sets
        for plain, fast in zip(answers(Plain(), rows), answers(compiled, rows), strict=True)
    )
