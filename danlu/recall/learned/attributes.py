"""What is known of items and users beside what was done: values of columns -> places in a table of attributes.

Words, tags and booleans have a place for each value, the commonest of them; numbers, dates and times one for each tenth
of the rows. What no row had when it was learnt says nothing later. Knows nothing of collections and of torch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from danlu.recall.rows.bits import Array

# Different values of a column that get a place.
MOST_VALUES = 20_000
_PARTS = 10


@dataclass(frozen=True, eq=False)
class Known:
    """Of each row as many places as it has attributes.

    Attributes:
        starts: int64 (rows + 1). codes: int32. count: of different attributes.
        texts: float32 (rows, width), vectors of their texts, or None.
    """

    starts: Array
    codes: Array
    count: int
    texts: Array | None = None

    def sums(self, table: Array) -> Array:
        """float32 (rows, dim), of the rows of a table at their places."""
        owners = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        made = np.zeros((len(self.starts) - 1, table.shape[1]), np.float32)
        np.add.at(made, owners, table[self.codes])
        return made


@dataclass(frozen=True)
class Place:
    """Values of one column that have places: themselves, or where the tenths of a number end."""

    column: str
    values: tuple[Any, ...] = ()
    borders: tuple[float, ...] = ()

    @property
    def count(self) -> int:
        return len(self.borders) + 1 if self.borders else len(self.values)


@dataclass(frozen=True)
class Attributes:
    """Attributes:
    places: of each column, in order.
    """

    places: tuple[Place, ...]

    @classmethod
    def of(cls, table: pa.Table) -> Attributes:
        """As the rows of a table have them."""
        return cls(tuple(_place(name, table.column(name)) for name in table.column_names))

    @property
    def count(self) -> int:
        return sum(place.count for place in self.places)

    def known(self, table: pa.Table) -> Known:
        """Of each row of a table; columns that it lacks say nothing."""
        rows, codes, begin = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
        for place in self.places:
            if place.column in table.column_names:
                owners, found = _found(place, table.column(place.column))
                rows.append(owners)
                codes.append(found + begin)
            begin += place.count
        owners, found = np.concatenate(rows), np.concatenate(codes)
        order = np.argsort(owners, kind="stable")
        starts = np.searchsorted(owners[order], np.arange(table.num_rows + 1)).astype(np.int64)
        return Known(starts, found[order].astype(np.int32), self.count)

    def dumped(self) -> bytes:
        return json.dumps([[one.column, one.values, one.borders] for one in self.places], ensure_ascii=False).encode()

    @classmethod
    def loaded(cls, text: bytes) -> Attributes:
        return cls(tuple(Place(column, tuple(values), tuple(borders)) for column, values, borders in json.loads(text)))


def _place(name: str, column: pa.ChunkedArray) -> Place:
    if _is_number(column.type):
        numbers = _numbers(column)
        there = numbers[np.isfinite(numbers)]
        if not len(there):
            return Place(name)
        borders = np.unique(np.quantile(there, np.arange(1, _PARTS) / _PARTS))
        return Place(name, borders=tuple(borders.tolist()))
    counted = Counter(value for _, value in _listed(column))
    chosen = sorted(counted, key=lambda value: (-counted[value], str(value)))[:MOST_VALUES]
    return Place(name, values=tuple(chosen))


def _found(place: Place, column: pa.ChunkedArray) -> tuple[Array, Array]:
    """(row, place within the column) of what is known."""
    if place.borders:
        numbers = _numbers(column)
        rows = np.flatnonzero(np.isfinite(numbers))
        return rows, np.searchsorted(np.array(place.borders), numbers[rows], side="right")
    codes = {value: at for at, value in enumerate(place.values)}
    pairs = [(row, codes[value]) for row, value in _listed(column) if value in codes]
    made = np.array(pairs, np.int64).reshape(-1, 2)
    return made[:, 0], made[:, 1]


def _listed(column: pa.ChunkedArray) -> Sequence[tuple[int, Any]]:
    """(row, value), of tags each."""
    values = column.to_pylist()
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return [(row, tag) for row, tags in enumerate(values) for tag in tags or ()]
    return [(row, value) for row, value in enumerate(values) if value is not None]


def _is_number(type_: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_date, pa.types.is_timestamp)
    return any(is_so(type_) for is_so in tests)


def _numbers(column: pa.ChunkedArray) -> Array:
    """float64, NaN where there is none."""
    if pa.types.is_date(column.type):
        column = column.cast(pa.int32())
    elif pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    made: Array = pc.fill_null(column.cast(pa.float64(), safe=False), np.nan).to_numpy()
    return made
