"""Nearest vectors, compiled: kernels.c on the arguments of plain.py, with which it is compared."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from danlu.native import FLOAT, LONG, POINTER, agreeing, declared
from danlu.recall.rows.bits import Array
from danlu.recall.vectors.forms import BY_ROW, Lists, Queries, Vectors, address
from danlu.recall.vectors.plain import Plain


class Kernels(Protocol):
    """What is computed with vectors. Ranges of queries are given, so that threads may share them."""

    def squares(self, values: Array) -> Array:
        """float32, the sum of squares of each vector."""

    def exact(self, vectors: Vectors, queries: Queries, rows: Array, first: int, last: int) -> None:
        """The k best of these rows (uint32) for the queries first to last."""

    def listed(self, vectors: Vectors, lists: Lists, queries: Queries, first: int, last: int) -> None:
        """The k best of those that pass for the queries first to last, list by list."""

    def marked(self, rows: Array, lists: Lists, mask: Array) -> None:
        """Set the bits of the places of these rows."""


class _Queries(ctypes.Structure):
    _fields_ = [
        *((name, POINTER) for name in ("values", "scales", "lengths", "codes")),
        *((name, LONG) for name in ("k", "spare")),
        *((name, FLOAT) for name in ("reach", "near_reach", "far_reach")),
        *(("in_set", LONG), ("of_all", LONG), ("mask", POINTER), ("mask_kind", LONG)),
        *((name, POINTER) for name in ("rows", "seen", "scores")),
    ]


_address = ctypes.addressof


class Compiled:
    """The functions of kernels.c."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        self._squares = declared(functions.danlu_squares, [POINTER, LONG, LONG, POINTER])
        self._exact = declared(functions.danlu_exact, [POINTER, POINTER, POINTER, LONG, LONG, LONG], LONG)
        self._listed = declared(functions.danlu_listed, [POINTER, POINTER, POINTER, LONG, LONG], LONG)
        self._marked = declared(functions.danlu_marked, [POINTER, LONG, POINTER, LONG, POINTER])

    def squares(self, values: Array) -> Array:
        made = np.empty(len(values), np.float32)
        self._squares(values.ctypes.data, *values.shape, made.ctypes.data)
        return made

    def exact(self, vectors: Vectors, queries: Queries, rows: Array, first: int, last: int) -> None:
        given = _queries(queries)
        if self._exact(_address(vectors.native), _address(given), rows.ctypes.data, len(rows), first, last) < 0:
            raise MemoryError

    def listed(self, vectors: Vectors, lists: Lists, queries: Queries, first: int, last: int) -> None:
        given = _queries(queries)
        if self._listed(_address(vectors.native), _address(lists.native), _address(given), first, last) < 0:
            raise MemoryError

    def marked(self, rows: Array, lists: Lists, mask: Array) -> None:
        where = (lists.place_of.ctypes.data, len(lists.row_at), mask.ctypes.data)
        self._marked(rows.ctypes.data, len(rows), *where)


def _queries(given: Queries) -> _Queries:
    asked = map(address, (given.values, given.scales, given.lengths, given.codes))
    out = map(address, (given.rows, given.seen, given.scores))
    reaches = (given.reach, given.near_reach, given.far_reach)
    what = (given.in_set, given.of_all, address(given.mask), given.mask_kind)
    return _Queries(*asked, given.k, given.spare, *reaches, *what, *out)


@cache
def kernels() -> Kernels:
    """Compiled where that is possible and answers as the plain forms do."""
    return agreeing(Path(__file__).with_name("kernels.c"), Compiled, _agrees) or Plain()


def _agrees(compiled: Kernels) -> bool:
    """On a few lists of a few rows, by each metric."""
    return all(_answers(compiled, metric) == _answers(Plain(), metric) for metric in range(3))


def _answers(side: Kernels, metric: int) -> list[Any]:
    rows, dim, count = 300, 21, 5
    numbers = np.arange(rows * dim, dtype=np.float32).reshape(rows, dim)
    values = np.sin(numbers * np.float32(0.7)).astype(np.float32).round(3)
    codes = (values * 100 + 128).astype(np.uint8)
    floats = [np.abs(values[:rows, at]) for at in range(6)]
    row_at = (np.arange(rows, dtype=np.uint32) * 7 % rows).astype(np.uint32)
    place_of = np.empty(rows, np.uint32)
    place_of[row_at] = np.arange(rows)
    starts = np.array([0, 3, 70, 70, 200, rows])
    lists = Lists(
        codes, floats[0], floats[1] if metric == 2 else floats[1][:0], row_at, place_of, starts,
        codes[:count], floats[2][:count], floats[3][:count], floats[4][:count], floats[5][:count],
        np.zeros(dim, np.float32),
    )  # fmt: skip
    mask = np.zeros(-(-rows // 64), np.uint64)
    side.marked(np.arange(0, rows, 2, dtype=np.uint32), lists, mask)
    asked = (values[:2], (values[:2] * 90).astype(np.int8), floats[4][:2], floats[5][:2])
    shares = (rows // 8, rows // 2, 2 * rows)  # of which half of all are many, as many, few
    masked = [Queries(*asked, 4, 9, 0.1, 0.3, 0.5, passing, rows, mask, BY_ROW) for passing in shares]
    queries = [Queries(*asked, 4, 9, 0.5), Queries(*asked, 4), *masked]
    vectors = Vectors(values, metric, floats[3] if metric == 1 else floats[3][:0])
    side.listed(vectors, lists, queries[0], 0, 2)
    side.exact(vectors, queries[1], row_at[:99], 0, 2)
    for one in masked:
        side.listed(vectors, lists, one, 0, 2)
    found = [array.tolist() for one in queries for array in (one.rows, one.scores, one.seen)]
    return [mask.tolist(), side.squares(values).tolist(), *found]
