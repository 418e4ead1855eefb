"""The functions of kernels.c on the arguments of plain.py, with which they are compared; threads share the rows."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np

from danlu.native import LONG, POINTER, agreeing, declared
from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.behaviour.plain import Plain, Products, Swing, Top
from danlu.recall.rows.bits import Array
from danlu.recall.rows.kernels import threads

_DOUBLE = ctypes.c_double
# Parts that rows are cut into for each thread, since some rows take longer than others.
_PARTS_A_THREAD = 16
# Rows that are worth a thread.
_FEW_ROWS = 64


class Kernels(Protocol):
    """Ranges of rows are given, so that threads may share the work. The best go into `out`."""

    def products(self, what: Products, first: int, last: int, out: Top) -> None: ...

    def swing(self, what: Swing, first: int, last: int, out: Top) -> None: ...


class _Matrix(ctypes.Structure):
    _fields_ = [(name, POINTER) for name in ("starts", "columns", "values", "times")]

    @classmethod
    def of(cls, matrix: Matrix) -> _Matrix:
        arrays = (matrix.starts, matrix.columns, matrix.values, matrix.times)
        assert all(array.flags.c_contiguous for array in arrays)
        return cls(*(array.ctypes.data for array in arrays))


class Compiled:
    """The functions of kernels.c."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        out = 3 * [POINTER]
        a_matrix: type = ctypes.POINTER(_Matrix)
        ranges = 4 * [LONG]
        products = [a_matrix, a_matrix, _DOUBLE, POINTER, POINTER, a_matrix, LONG, *ranges, *out]
        swing = [a_matrix, a_matrix, POINTER, _DOUBLE, POINTER, *ranges, *out]
        self._products = declared(functions.danlu_products, products, LONG)
        self._swing = declared(functions.danlu_swing, swing, LONG)

    def products(self, what: Products, first: int, last: int, out: Top) -> None:
        but = None if what.but is None else ctypes.byref(_Matrix.of(what.but))
        a, b = ctypes.byref(_Matrix.of(what.a)), ctypes.byref(_Matrix.of(what.b))
        where = (what.b.width, len(what.b), first, last, out.columns.shape[1], *_pointers(out))
        if self._products(a, b, what.half_days or 0.0, _pointer(what.scale), _pointer(what.allowed), but, *where) < 0:
            raise MemoryError

    def swing(self, what: Swing, first: int, last: int, out: Top) -> None:
        items, users = ctypes.byref(_Matrix.of(what.items)), ctypes.byref(_Matrix.of(what.users))
        where = (what.users.width, first, last, out.columns.shape[1], *_pointers(out))
        if self._swing(items, users, _pointer(what.weights), what.alpha, _pointer(what.rows), *where) < 0:
            raise MemoryError


def _pointer(array: Array | None) -> int | None:
    return None if array is None else int(array.ctypes.data)


def _pointers(out: Top) -> tuple[int, ...]:
    return tuple(int(array.ctypes.data) for array in (out.columns, out.scores, out.counts))


@cache
def kernels() -> Kernels:
    """Compiled where that is possible and answers as the plain forms do."""
    return agreeing(Path(__file__).with_name("kernels.c"), Compiled, _agrees, exact=True) or Plain()


def _agrees(compiled: Kernels) -> bool:
    """On a matrix of every kind of row: empty, with what is not allowed, with ties."""
    users = Matrix.listed([[0, 1, 2], [1, 2, 3, 5], [], [4], [0, 1, 3, 2]], 6)
    items, ones = users.turned(), np.array([1, 1, 0, 1, 1, 1], np.uint8)
    products = Products(users, items.turned().turned(), 2.0, np.arange(1.0, 6.0), ones[:5], None)
    swing = Swing(items, users, np.arange(1.0, 6.0), 1.0, np.arange(6, dtype=np.int32))
    answers = []
    for side in (compiled, Plain()):
        tops = Top.empty(5, 2), Top.empty(6, 2)
        side.products(products, 0, 5, tops[0])
        side.swing(swing, 0, 6, tops[1])
        answers.append(tops)
    return all(
        np.array_equal(a.columns, b.columns) and np.array_equal(a.counts, b.counts) and np.allclose(a.scores, b.scores)
        for a, b in zip(*answers, strict=True)
    )


def products(what: Products, most: int) -> Top:
    """The best `most` columns of each row."""
    out = Top.empty(len(what.a), most)
    _shared(len(what.a), lambda first, last: kernels().products(what, first, last, out))
    return out


def swing(what: Swing, most: int) -> Top:
    """The most similar items of each item that is asked for."""
    out = Top.empty(len(what.rows), most)
    _shared(len(what.rows), lambda first, last: kernels().swing(what, first, last, out))
    return out


def _shared(rows: int, work: Callable[[int, int], None]) -> None:
    workers = min(threads(), -(-rows // _FEW_ROWS))
    if workers < 2:
        work(0, rows)
        return
    borders = np.linspace(0, rows, workers * _PARTS_A_THREAD + 1).astype(np.int64).tolist()
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(work, borders[:-1], borders[1:]):
            pass
