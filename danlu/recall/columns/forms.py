"""Indexes of codes: which sets of rows are kept of a column, within so many bytes a row, and how they answer.

    each       a set for each code: one value is one small list; a range is the union of many
    at least   a set for each code c, of the rows whose code is c or more: a range is two sets, and n of them are kept
    digits     the same of both digits of c in a base near the root of n: a range is up to six sets of 2 root n
    slices     a set for each binary digit of c: log n of them, all of them read

A scan of the codes is always possible. What reads the fewest bytes is taken. Codes are 0 (null) to n, in the order of
their values. "At least" is Chan and Ioannidis' range encoding (SIGMOD 1999), "slices" O'Neil and Quass' bit-sliced
index (SIGMOD 1997).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf, isqrt

import numpy as np

from danlu.recall.columns.sets import Sets
from danlu.recall.files import ArrayFile, ArrayWriter, Damaged
from danlu.recall.rows.bits import (
    DENSE,
    EMPTY,
    FULL,
    SHARD_ROWS,
    SPARSE,
    Array,
    Bits,
    Shard,
    canonical,
    packed,
)
from danlu.recall.rows.tree import And, Codes, Not, Or, Tree

EACH, AT_LEAST, DIGITS, SLICES = range(4)
# Sets of one column at most: each is a row of tables that is looked at when a collection is opened.
MOST_SETS = 4096
# What a form for ranges may take of the budget; the rest is for single values.
_OF_RANGES = 0.8
# A scan computes more for a byte than a set does: measured by benchmarks/recall.py.
_SCAN_WEIGHT = 4

# Codes from the first to the last of each, in order, apart from one another; none is 0.
Intervals = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Index:
    """What is kept of a column of codes.

    Attributes:
        layout: form -> (place of its first set, how many, base of the digits).
        which: of `each`, the codes that have a set, in order; None where all have.
    """

    sets: Sets
    layout: dict[int, tuple[int, int, int]]
    which: Array | None = None

    def write(self, writer: ArrayWriter) -> None:
        self.sets.write(writer)
        writer.add("layout", np.array([[form, *place] for form, place in self.layout.items()], np.int64).reshape(-1, 4))
        if self.which is not None:
            writer.add("which", self.which)

    @classmethod
    def read(cls, file: ArrayFile, rows: int) -> Index:
        sets = Sets.read(file, rows)
        layout = {int(form): (int(a), int(b), int(c)) for form, a, b, c in file["layout"]}
        if any(first + count > len(sets) for first, count, _ in layout.values()):
            raise Damaged(f"{file.name}: its sets of rows are not all there")
        which = file.get("which")
        if which is not None and len(which) != len(sets):
            raise Damaged(f"{file.name}: its sets of rows are not all there")
        return cls(sets, layout, which)


def build(codes: Array, histogram: Array, *, is_ordered: bool, bytes_per_row: float) -> Index:
    """The forms that fit into so many bytes a row.

    Args:
        codes: of all rows. histogram: rows of each code, from 0 on.
        is_ordered: ranges are asked for, so that a form for them comes first.
    """
    rows, n = len(codes), len(histogram) - 1
    left, made = bytes_per_row * rows, []
    if rows and n and is_ordered:
        fitting = [form for form in (AT_LEAST, DIGITS, SLICES) if _bound(form, n, rows) <= left * _OF_RANGES]
        made += fitting[:1]
        left -= sum(_bound(form, n, rows) for form in made)
    if rows and 0 < n <= MOST_SETS and _each_bound(histogram, rows) <= left and (n > 4 or not is_ordered):
        made.append(EACH)
    sets: list[Bits] = []
    layout = {}
    for form in made:
        base = _base(n) if form == DIGITS else 0
        some = _each(codes, n) if form == EACH else [set_of(codes, rule) for rule in _rules(form, n)]
        layout[form] = (len(sets), len(some), base)
        sets += some
    return Index(Sets.of(rows, sets), layout)


def _base(n: int) -> int:
    return isqrt(n) + 1


def has_digit(at: int) -> Callable[[Array], Array]:
    """Whether a binary digit is 1, counted from the lowest."""
    return lambda codes: (codes >> at & 1).astype(np.bool_)


def _rules(form: int, n: int) -> list[Callable[[Array], Array]]:
    """What each set of a form holds, of codes."""

    def from_code(code: int) -> Callable[[Array], Array]:
        return lambda codes: codes >= code

    def high_from(digit: int) -> Callable[[Array], Array]:
        return lambda codes: codes // base >= digit

    def low_from(digit: int) -> Callable[[Array], Array]:
        return lambda codes: codes % base >= digit

    base = _base(n)
    if form == AT_LEAST:
        return [from_code(code) for code in range(1, n + 1)]
    if form == SLICES:
        return [has_digit(at) for at in range(n.bit_length())]
    return [*map(high_from, range(1, n // base + 1)), *map(low_from, range(1, base))]


def _bound(form: int, n: int, rows: int) -> float:
    """Bytes that it takes at most: each set as packed words."""
    sets = {AT_LEAST: n, DIGITS: n // _base(n) + _base(n) - 1, SLICES: n.bit_length()}[form]
    return sets * ceil(rows / 8) if sets <= MOST_SETS else inf


def _each_bound(histogram: Array, rows: int) -> float:
    return float(np.minimum(histogram[1:] * 4, rows / 8).sum())


def set_of(codes: Array, rule: Callable[[Array], Array]) -> Bits:
    """The rows for whose codes the rule holds."""
    parts: list[Shard] = []
    for start in range(0, len(codes), SHARD_ROWS):
        here = codes[start : start + SHARD_ROWS]
        parts.append(canonical((DENSE, packed(rule(here))), len(here)))
    return Bits.joined(len(codes), parts)


def _each(codes: Array, n: int) -> list[Bits]:
    """A set for each code from 1 to n."""
    parts: list[list[Shard]] = [[] for _ in range(n)]
    for start in range(0, len(codes), SHARD_ROWS):
        here = codes[start : start + SHARD_ROWS]
        order = np.argsort(here, kind="stable").astype(np.uint32)
        cuts = np.searchsorted(here[order], np.arange(1, n + 2))
        for at in range(n):
            parts[at].append(canonical((SPARSE, order[cuts[at] : cuts[at + 1]]), len(here)))
    return [Bits.joined(len(codes), some) for some in parts]


# -- asking -----------------------------------------------------------------------------------------------


def rows_with(index: Index, codes: Array, n: int, known: Bits, intervals: Intervals) -> Tree:
    """The rows whose code lies in one of the intervals, by whatever reads least.

    Args:
        known: rows whose code is not 0.
    """
    wanted = sum(last - first + 1 for first, last in intervals)
    if wanted == 0:
        return Bits.whole(len(codes), EMPTY)
    if wanted == n:
        return known
    ways: list[tuple[float, Callable[[], Tree]]] = []
    for form in (AT_LEAST, DIGITS, SLICES):
        if form in index.layout:
            ways.append(_as_ranges(index, form, n, len(codes), intervals))
    if EACH in index.layout:
        first, _, _ = index.layout[EACH]
        ways.append(_as_each(index.sets, first, n, known, intervals))
    ways.append((len(codes) * codes.itemsize * _SCAN_WEIGHT, lambda: _as_scan(codes, n, intervals)))
    return min(ways, key=lambda way: way[0])[1]()


def _as_ranges(index: Index, form: int, n: int, rows: int, intervals: Intervals) -> tuple[float, Callable[[], Tree]]:
    def one(first: int, last: int) -> Tree:
        low = at_least(index, form, first, rows)
        return low if last == n else And((low, Not(at_least(index, form, last + 1, rows))))

    trees = [one(*interval) for interval in intervals[:64]]
    tree = trees[0] if len(trees) == 1 else Or(tuple(trees))
    cost = inf if len(intervals) > len(trees) else float(_bytes(tree))
    return cost, lambda: tree


def _as_each(sets: Sets, first: int, n: int, known: Bits, intervals: Intervals) -> tuple[float, Callable[[], Tree]]:
    inside = np.zeros(n, np.bool_)
    for low, high in intervals:
        inside[low - 1 : high] = True
    sizes = sets.sizes[first : first + n]
    direct, other = float(sizes[inside].sum()), float(sizes[~inside].sum()) + known.bytes

    def union(chosen: Array) -> Tree:
        some = tuple(sets[first + at] for at in np.flatnonzero(chosen).tolist())
        return some[0] if len(some) == 1 else Or(some)

    if direct <= other:
        return direct, lambda: union(inside)
    return other, lambda: And((known, Not(union(~inside))))


def _as_scan(codes: Array, n: int, intervals: Intervals) -> Tree:
    if len(intervals) == 1:
        return Codes(codes, *intervals[0])
    chosen = np.zeros(n + 1, np.uint8)
    for low, high in intervals:
        chosen[low : high + 1] = 1
    return Codes(codes, chosen=chosen)


def at_least(index: Index, form: int, code: int, rows: int) -> Tree:
    """Rows whose code is `code` or more; `code` is 1 to n."""
    first, count, base = index.layout[form]
    if form == AT_LEAST:
        return index.sets[first + code - 1]
    if form == SLICES:
        return slices_at_least([index.sets[first + at] for at in range(count)], code, rows)
    high, low = divmod(code, base)
    tens = count - (base - 1)  # sets of the first digit: its own 1, 2, ...

    def digit(t: int) -> Bits:
        whole = FULL if t == 0 else EMPTY
        return index.sets[first + t - 1] if 1 <= t <= tens else Bits.whole(rows, whole)

    if low == 0:
        return digit(high)
    return Or((And((digit(high), index.sets[first + tens + low - 1])), digit(high + 1)))


def slices_at_least(slices: Sequence[Bits], number: int, rows: int) -> Tree:
    """Rows whose number, of which each slice is a binary digit, is `number` or more."""
    sofar: Tree = Bits.whole(rows, FULL)
    for at, bits in enumerate(slices):
        if number >> at & 1:
            sofar = And((sofar, bits))
        elif not (isinstance(sofar, Bits) and sofar.count == rows):
            sofar = Or((sofar, bits))
    return sofar


def _bytes(tree: Tree) -> int:
    """What is read for a tree of sets."""
    if isinstance(tree, Bits):
        return tree.bytes
    parts = (tree.part,) if isinstance(tree, Not) else getattr(tree, "parts", ())
    return sum(map(_bytes, parts))
