"""What is computed with sets, compiled: kernels.c on the arguments of plain.py, with which it is compared.

`kernels()` gives the compiled functions, or the plain ones. `counted` and `answered` ask questions of several segments,
shared among threads.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np

from danlu import container
from danlu.native import LONG, POINTER, agreeing, declared
from danlu.recall.rows.bits import Array, Bits, shards_of
from danlu.recall.rows.plain import Answer, Plain
from danlu.recall.rows.tree import And, Between, Codes, Not, Or, Question

# Shards that a thread takes at a time.
_SHARDS_A_THREAD = 8


class Kernels(Protocol):
    """What is computed with sets. Ranges of shards are given, so that threads may share the work."""

    def evaluate(self, question: Question, first: int, last: int, counts: Array, out: Answer | None) -> None:
        """Rows of the tree in shards first to last: how many into `counts` (int64 a shard), which into `out`."""

    def places(self, bits: Bits, first: int, last: int, most: int) -> Array:
        """uint32 numbers of the rows in these shards, the first `most` of them."""

    def histogram(self, bits: Bits, codes: Array, out: Array, first: int, last: int) -> None:
        """How many rows of the set have each code, added to `out` (int64 a code); codes beyond it are passed over."""

    def hashes(self, offsets: Array, data: Array) -> Array:
        """uint64 for each text of bytes from offsets[i] to offsets[i + 1]; texts that differ may share one."""

    def sorted(self, numbers: Array, starts: Array) -> Array:
        """int64 places of some numbers (int32) in their order, equal ones in theirs.

        Args:
            starts: int64, where those of each number from 0 on begin among them.
        """


class Compiled:
    """The functions of kernels.c."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        a_set = 4 * [POINTER] + [LONG]
        self._evaluate = declared(functions.danlu_evaluate, [*(2 * [POINTER]), *(4 * [LONG]), *(3 * [POINTER])], LONG)
        self._places = declared(functions.danlu_places, [*a_set, LONG, LONG, POINTER, LONG], LONG)
        self._histogram = declared(functions.danlu_histogram, [*a_set, LONG, LONG, POINTER, LONG, POINTER, LONG])
        self._hashes = declared(functions.danlu_hashes, [POINTER, POINTER, LONG, POINTER])
        self._sorted = declared(functions.danlu_sorted, [POINTER, LONG, POINTER, POINTER])

    def evaluate(self, question: Question, first: int, last: int, counts: Array, out: Answer | None) -> None:
        nodes, leaves, _ = question.listed
        into = (out.words.ctypes.data, out.kinds.ctypes.data, out.counts.ctypes.data) if out else None
        pointers = into or (None, None, counts.ctypes.data)
        shape = (question.rows, first, last, question.depth)
        if self._evaluate(nodes.ctypes.data, leaves.ctypes.data, *shape, *pointers) < 0:
            raise MemoryError
        if out is not None:
            counts[first:last] = out.counts[first:last]

    def places(self, bits: Bits, first: int, last: int, most: int) -> Array:
        found = np.empty(min(int(bits.counts[first:last].sum()), most), np.uint32)
        count = self._places(*_pointers(bits), first, last, found.ctypes.data, len(found))
        return found[:count]

    def histogram(self, bits: Bits, codes: Array, out: Array, first: int, last: int) -> None:
        where = (codes.ctypes.data, codes.itemsize, out.ctypes.data, len(out))
        self._histogram(*_pointers(bits), first, last, *where)

    def hashes(self, offsets: Array, data: Array) -> Array:
        made = np.empty(max(len(offsets) - 1, 0), np.uint64)
        self._hashes(offsets.ctypes.data, data.ctypes.data, len(made), made.ctypes.data)
        return made

    def sorted(self, numbers: Array, starts: Array) -> Array:
        made, following = np.empty(len(numbers), np.int64), starts.astype(np.int64)
        numbers = np.ascontiguousarray(numbers, np.int32)
        self._sorted(numbers.ctypes.data, len(numbers), following.ctypes.data, made.ctypes.data)
        return made


def _pointers(bits: Bits) -> tuple[int, ...]:
    arrays = (bits.words, bits.kinds, bits.offsets, bits.counts)
    return (*(int(array.ctypes.data) for array in arrays), bits.rows)


@cache
def kernels() -> Kernels:
    """Compiled where that is possible and answers as the plain forms do."""
    return agreeing(Path(__file__).with_name("kernels.c"), Compiled, _agrees) or Plain()


def _agrees(compiled: Kernels) -> bool:
    """On a shard of each kind and a leaf of each form."""
    rows = 1000
    codes = (np.arange(rows) * 7 % 13).astype(np.uint8)
    few, many = Bits.of(rows, np.array([3, 64, 999])), Bits.of(rows, np.flatnonzero(codes > 4))
    values = codes.astype(np.float64)
    scan = Between(values, np.array([[0.0, 12.0]]), 2.0, 9.0)
    tree = Or(
        (And((many, Not(few), Codes(codes, 2, 8), scan)), Codes(codes, chosen=np.eye(13, dtype=np.uint8)[3]), few)
    )
    question, answers = Question(rows, tree), []
    for side in (compiled, Plain()):
        out = Answer.of(rows)
        side.evaluate(question, 0, 1, np.zeros(1, np.int64), out)
        seen = out.bits(rows)
        counted = np.zeros(13, np.int64)
        side.histogram(seen, codes, counted, 0, 1)
        hashed = side.hashes(np.array([0, 3, 3, 13]), codes)
        places = side.sorted(codes.astype(np.int32), np.concatenate([[0], np.cumsum(np.bincount(codes))]))
        answers.append((seen, side.places(seen, 0, 1, rows), counted, hashed, places))
    return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in zip(*answers, strict=True))


# -- asking -----------------------------------------------------------------------------------------------


def counted(questions: Sequence[Question]) -> list[int]:
    """How many rows each question has; segments and shards are shared among threads."""
    counts = [np.zeros(shards_of(question.rows), np.int64) for question in questions]
    shared(_parts(questions), lambda at, first, last: kernels().evaluate(questions[at], first, last, counts[at], None))
    return [int(one.sum()) for one in counts]


def answered(questions: Sequence[Question]) -> list[Bits]:
    """The rows of each question."""
    answers = [Answer.of(question.rows) for question in questions]
    shared(
        _parts(questions),
        lambda at, first, last: kernels().evaluate(
            questions[at], first, last, np.empty(len(answers[at].counts), np.int64), answers[at]
        ),
    )
    return [answer.bits(question.rows) for question, answer in zip(questions, answers, strict=True)]


def _parts(questions: Sequence[Question]) -> list[tuple[int, int, int]]:
    return [
        (at, first, min(first + _SHARDS_A_THREAD, shards))
        for at, question in enumerate(questions)
        for shards in [shards_of(question.rows)]
        for first in range(0, shards, _SHARDS_A_THREAD)
    ]


def shared(parts: Sequence[tuple[int, int, int]], work: Callable[[int, int, int], None]) -> None:
    """Do the work of each part, on as many threads as there are processors."""
    if len(parts) < 2 or threads() < 2:
        for part in parts:
            work(*part)
        return
    waiting: Iterator[tuple[int, int, int]] = iter(parts)

    def help_out() -> None:
        for part in waiting:  # a list's iterator gives each part to one thread
            work(*part)

    helpers = [_pool(os.getpid()).submit(help_out) for _ in range(threads() - 1)]
    help_out()
    for helper in helpers:
        helper.cancel() or helper.result()


def threads() -> int:
    """What OMP_NUM_THREADS says, as elsewhere; else the cores that this process may keep busy."""
    return container.threads_given() or container.cores()


@cache
def _pool(_process: int) -> ThreadPoolExecutor:
    """One a process: threads do not outlive a fork."""
    return ThreadPoolExecutor(max(1, threads() - 1), thread_name_prefix="danlu-recall")
