"""A column of one segment: its values as they are kept, and the rows that pass a test.

    numbers   few different ones: codes in their order; many: as they are, with the least and the largest of each shard
    words     codes into a dictionary
    tags      lists of codes (lists.py)
    texts     kept, not filtered (lists.py)

A row that is null passes no test and no test's contrary, as in SQL. The index of a column is made from it, and made
anew in memory where its file is damaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from danlu.recall.columns import forms
from danlu.recall.columns.asked import Known, Like, OneOf, Range, Test
from danlu.recall.columns.base import Base, checked
from danlu.recall.columns.forms import SLICES, Index
from danlu.recall.columns.sets import Sets
from danlu.recall.columns.texts import Dictionary, like_codes
from danlu.recall.files import ArrayWriter
from danlu.recall.rows.bits import SHARD_ROWS, Array
from danlu.recall.rows.tree import And, Between, Not, Or, Tree

# Different numbers in a segment up to which they get codes.
MOST_CODES = 1 << 16
_LEAST, _LARGEST = -(1 << 63), (1 << 63) - 1


# -- codes ------------------------------------------------------------------------------------------------


@dataclass
class _Coded(Base):
    """Attributes:
    codes: 0 for null, else the place of the value among all values, from 1. histogram: rows of each code.
    """

    codes: Array
    histogram: Array

    is_ordered = True

    def made_index(self, bytes_per_row: float) -> Index:
        return forms.build(self.codes, self.histogram, is_ordered=self.is_ordered, bytes_per_row=bytes_per_row)

    def passing(self, test: Test, negated: bool) -> Tree:
        if isinstance(test, Known):
            return Not(self.known) if negated else self.known
        n = len(self.histogram) - 1
        intervals = _merged(self.intervals(test), n)
        if negated:
            intervals = _others(intervals, n)
        return forms.rows_with(self.index, self.codes, n, self.known, intervals)

    def intervals(self, test: Test) -> list[tuple[int, int]]:
        """Codes of the values that pass, in any order."""
        raise NotImplementedError

    def _write_codes(self, writer: ArrayWriter) -> None:
        writer.add("codes", self.codes)
        writer.add("histogram", self.histogram)


def _merged(intervals: Sequence[tuple[int, int]], n: int) -> list[tuple[int, int]]:
    """In order and apart, within 1 to n."""
    made: list[tuple[int, int]] = []
    for low, high in sorted((max(low, 1), min(high, n)) for low, high in intervals):
        if low > high:
            continue
        if made and low <= made[-1][1] + 1:
            made[-1] = (made[-1][0], max(high, made[-1][1]))
        else:
            made.append((low, high))
    return made


def _others(intervals: list[tuple[int, int]], n: int) -> list[tuple[int, int]]:
    ends = [0, *(at for low, high in intervals for at in (low, high)), n + 1]
    gaps = [(ends[at] + 1, ends[at + 1] - 1) for at in range(0, len(ends), 2)]
    return [(low, high) for low, high in gaps if low <= high]


@dataclass
class CodedNumbers(_Coded):
    """Attributes:
    values: int64 or float64, those that there are, in order.
    """

    values: Array

    def write(self, writer: ArrayWriter) -> None:
        self._write_codes(writer)
        writer.add("values", self.values)

    def intervals(self, test: Test) -> list[tuple[int, int]]:
        return [self._codes_of(low, high) for low, high in number_ranges(test, self.values.dtype)]

    def _codes_of(self, low: int | float, high: int | float) -> tuple[int, int]:
        return (
            int(np.searchsorted(self.values, low, side="left")) + 1,
            int(np.searchsorted(self.values, high, side="right")),
        )

    def taken(self, rows: Array) -> tuple[Array, Array]:
        codes = checked(self.codes[rows], len(self.values))
        if not len(self.values):
            return np.zeros(len(rows), self.values.dtype), codes > 0
        return self.values[np.maximum(codes, 1) - 1], codes > 0


def number_ranges(test: Test, dtype: np.dtype[Any]) -> list[tuple[int | float, int | float]]:
    """Ranges of numbers of this type, both bounds included."""
    assert isinstance(test, (Range, OneOf))
    is_whole = dtype == np.int64
    pairs = [(test.low, test.high)] if isinstance(test, Range) else [(value, value) for value in test.values]
    made = []
    for low, high in pairs:
        assert not isinstance(low, str)
        assert not isinstance(high, str)
        if isinstance(test, Range):
            low, high = _inclusive(low, test.above, is_whole, 1), _inclusive(high, test.below, is_whole, -1)
        elif low != (math.floor(low or 0) if is_whole else _real(low or 0)):
            continue
        bounds = (_LEAST, _LARGEST) if is_whole else (-math.inf, math.inf)
        first, last = bounds[0] if low is None else low, bounds[1] if high is None else high
        if first <= last and first <= bounds[1] and last >= bounds[0]:
            limited = (max(first, bounds[0]), min(last, bounds[1]))
            made.append((int(limited[0]), int(limited[1])) if is_whole else (float(limited[0]), float(limited[1])))
    return made


def _inclusive(bound: int | float | None, is_open: bool, is_whole: bool, step: int) -> int | float | None:
    """The first number of the type that is inside; NaN if none is."""
    if bound is None:
        return None
    if not is_whole:
        if is_open and bound == step * math.inf:
            return math.nan  # nothing is beyond
        real = _real(bound)
        is_outside = real < bound if step > 0 else real > bound  # a whole number that was rounded
        return float(np.nextafter(real, step * math.inf)) if is_outside or (is_open and real == bound) else real
    if isinstance(bound, float) and math.isinf(bound):
        return bound
    rounded = math.ceil(bound) if step > 0 else math.floor(bound)
    return rounded + step if is_open and rounded == bound else rounded


def _real(number: int | float) -> float:
    """The nearest real of 64 bits."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


@dataclass
class CodedWords(_Coded):
    dictionary: Dictionary

    is_ordered = False

    def write(self, writer: ArrayWriter) -> None:
        self._write_codes(writer)
        self.dictionary.texts.write(writer)

    def intervals(self, test: Test) -> list[tuple[int, int]]:
        if isinstance(test, OneOf):
            return [(code, code) for code in map(self.dictionary.code, map(str, test.values)) if code]
        if isinstance(test, Like):
            return like_codes(self.dictionary, test)
        assert isinstance(test, Range)
        low, high = 1, len(self.dictionary)
        if test.low is not None:
            low = self._first(str(test.low), after=test.above)
        if test.high is not None:
            high = self._first(str(test.high), after=not test.below) - 1
        return [(low, high)]

    def _first(self, text: str, *, after: bool) -> int:
        """The code of the first word that is `text` or behind it, or only behind it."""
        encoded = text.encode("utf-8", "surrogatepass")
        return self.dictionary.first_from(encoded + b"\0" if after else encoded)

    def taken(self, rows: Array) -> tuple[list[Any], Array]:
        codes = checked(self.codes[rows], len(self.dictionary))
        different, which = np.unique(codes, return_inverse=True)
        words = [self.dictionary.texts[code - 1] if code else "" for code in different.tolist()]
        return [words[at] for at in which.tolist()], codes > 0


# -- numbers as they are ----------------------------------------------------------------------------------


@dataclass
class PlainNumbers(Base):
    """Attributes:
    values: int64 or float64 a row, 0 where it is null. zones: (shards, 2), the least and the largest.
    """

    values: Array
    zones: Array

    def write(self, writer: ArrayWriter) -> None:
        Sets.of(self.known.rows, [self.known]).write(writer, "known.")
        writer.add("values", self.values)
        writer.add("zones", self.zones)

    @property
    def _width(self) -> int:
        """Binary digits of the differences from the least number."""
        return (int(self.zones[:, 1].max()) - int(self.zones[:, 0].min())).bit_length() if len(self.zones) else 0

    def made_index(self, bytes_per_row: float) -> Index:
        """Slices of whole numbers, where they take less than a scan and fit."""
        width = 0 if self.values.dtype == np.float64 else self._width
        if not 0 < width <= 32 or width / 8 > bytes_per_row:
            return Index(Sets.of(self.known.rows, []), {})
        least = int(self.zones[:, 0].min())
        differences = (self.values - least).astype(np.uint32)
        slices = [forms.set_of(differences, forms.has_digit(at)) for at in range(width)]
        return Index(Sets.of(self.known.rows, slices), {SLICES: (0, width, 0)})

    def passing(self, test: Test, negated: bool) -> Tree:
        if isinstance(test, Known):
            return Not(self.known) if negated else self.known
        ranges = number_ranges(test, self.values.dtype)
        trees = tuple(self._range(low, high) for low, high in ranges)
        tree = trees[0] if len(trees) == 1 else Or(trees)
        return self.among_known(tree, negated)

    def _range(self, low: int | float, high: int | float) -> Tree:
        if SLICES not in self.index.layout:
            return Between(self.values, self.zones, low, high)
        rows, width = self.known.rows, self.index.layout[SLICES][1]
        least = int(self.zones[:, 0].min())
        first, last = max(int(low) - least, 0), min(int(high) - least, (1 << width) - 1)
        if first > last:
            return self.nothing
        slices = [self.index.sets[at] for at in range(width)]
        above = forms.slices_at_least(slices, first, rows)
        if last == (1 << width) - 1:
            return above
        return And((above, Not(forms.slices_at_least(slices, last + 1, rows))))

    def taken(self, rows: Array) -> tuple[Array, Array]:
        return self.values[rows], self.mask(rows)


def zones_of(values: Array) -> Array:
    """(shards, 2): the least and the largest of each shard."""
    parts = [values[start : start + SHARD_ROWS] for start in range(0, len(values), SHARD_ROWS)]
    return np.array([[part.min(), part.max()] for part in parts], values.dtype).reshape(-1, 2)
