"""A segment that is opened: its columns and ids, mapped; its answers to tests.

What can be made from the columns anew (indexes, ids) is made in memory where its file is damaged, and that is said;
what cannot (columns, which rows live) is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, cached_property, partial
from typing import Any, TypeVar

import numpy as np

from danlu.errors import DataError
from danlu.recall.columns import encoding
from danlu.recall.columns.asked import OneOf, Value
from danlu.recall.columns.base import Column as StoredColumn
from danlu.recall.columns.forms import Index
from danlu.recall.columns.ids import IdColumn, Ids
from danlu.recall.columns.sets import Sets
from danlu.recall.columns.stored import PlainNumbers
from danlu.recall.columns.texts import Texts
from danlu.recall.derived import DERIVED, derived_file, derived_files
from danlu.recall.disk import Disk
from danlu.recall.files import ArrayFile, Damaged
from danlu.recall.manifest import IDS, Column, Segment, column_file, index_file
from danlu.recall.rows.bits import FULL, Array, Bits, member
from danlu.recall.rows.tree import And, Not, Tree
from danlu.recall.where import Atom

_T = TypeVar("_T")


class OpenSegment:
    """Raises Damaged if a column or the set of live rows is not what was written.

    Args:
        warn: told, once for each, of indexes that are made anew.

    Attributes:
        live: the rows that are not deleted. is_damaged: whether something is made anew.
    """

    def __init__(
        self,
        disk: Disk,
        stored: Segment,
        columns: Sequence[Column],
        id_column: str,
        bytes_per_row: float,
        warn: Callable[[str], None],
    ) -> None:
        self.stored, self.rows = stored, stored.rows
        self._disk, self._bytes_per_row, self._warn = disk, bytes_per_row, warn
        self._names, self._id = [column.name for column in columns], id_column
        self.is_damaged = False
        self.live = self._live()
        self.columns = [self._column(at) for at in range(len(columns))]
        self._made = {
            file: cache(
                self._derived(
                    file,
                    f"{DERIVED[kind].what} of {self._names[at]}",
                    DERIVED[kind].read,
                    partial(DERIVED[kind].make, columns[at], self.columns[at]),
                )
            )
            for file, kind, at in derived_files(columns)
        }
        self._ids = self._derived(IDS, "what ids are found by", Ids.read, self._made_ids)

    def passing(self, atom: Atom) -> Tree:
        """The rows that pass a test of a column."""
        column = self.columns[atom.column]
        if self._names[atom.column] != self._id or not isinstance(atom.test, OneOf):
            return column.passing(atom.test, atom.negated)
        found = self.find(wanted_ids(self.id_column, atom.test.values))
        some = Bits.of(self.rows, np.unique(found[found >= 0]))
        return And((column.known, Not(some))) if atom.negated else some

    def find(self, wanted: Array | Texts) -> Array:
        """The live row (int64) of each id; -1 where there is none."""
        found = self.ids.find(wanted, self.id_column)
        there = found >= 0
        found[there] = np.where(self.is_live(found[there]), found[there], -1)
        return found

    def is_live(self, rows: Array) -> Array:
        return member(self.live, rows)

    @property
    def id_column(self) -> IdColumn:
        column = self.columns[self._names.index(self._id)]
        assert isinstance(column, IdColumn)
        return column

    @cached_property
    def ids(self) -> Ids:
        return self._ids()

    def derived(self, kind: str, at: int) -> Any:
        """What a channel finds rows of this column by (derived.py); read, or made anew, when first asked for."""
        return self._made[derived_file(kind, at)]()

    def _made_ids(self) -> Ids:
        rows = np.arange(self.rows)
        return Ids.of(self.id_column).only(self.is_live(rows))

    def probe(self) -> None:
        """Look at what may have to be made anew, so that `is_damaged` is known."""
        _ = self.ids
        for at, column in enumerate(self.columns):
            if self.stored.named(index_file(at)) in self.stored.files:
                column.probe()
        for get in self._made.values():
            get()

    def damage(self) -> list[str]:
        """What is wrong with the files, all of which are read for it."""
        found = []
        for name in self.stored.files:
            try:
                seen = self._file(name).damage()
            except Damaged as error:
                seen = error.seen
            if seen:
                found.append(seen)
        return found

    def _live(self) -> Bits:
        if self.stored.live is None:
            return Bits.whole(self.rows, FULL)
        return Sets.read(self._file(self.stored.live), self.rows)[0]

    def _column(self, at: int) -> StoredColumn:
        column = encoding.read(self._file(column_file(at)), self.rows)
        if self._names[at] == self._id or self.stored.named(index_file(at)) not in self.stored.files:
            column.use(lambda: Index(Sets.of(self.rows, []), {}))
            return column

        column.use(
            self._derived(
                index_file(at),
                f"the index of {self._names[at]}",
                Index.read,
                lambda: _index(column, self._bytes_per_row),
            )
        )
        return column

    def _derived(
        self, name: str, what: str, read: Callable[[ArrayFile, int], _T], make: Callable[[], _T]
    ) -> Callable[[], _T]:
        """What gives the contents of a file, or makes them anew. The file is mapped now: it may be removed later."""

        def anew(reason: str) -> _T:
            self.is_damaged = True
            self._warn(f"{reason}; {what} is made anew in memory, and written anew by compact")
            return make()

        try:
            file = self._file(name)
        except Damaged as error:
            reason = error.seen
            self.is_damaged = True
            return lambda: anew(reason)

        def get() -> _T:
            try:
                return read(file, self.rows)
            except Damaged as error:
                return anew(error.seen)

        return get

    def _file(self, name: str) -> ArrayFile:
        name = self.stored.named(name)
        stored = self.stored.files.get(name)
        if stored is None:
            raise Damaged(f"{self._disk.root / self.stored.name} has no file {name}")
        return ArrayFile(self._disk, f"{self.stored.name}/{name}", stored.size, stored.checksum)


def _index(column: StoredColumn, bytes_per_row: float) -> Index:
    made = column.made_index(bytes_per_row)
    assert made is not None
    return made


def ids_at(segments: Sequence[OpenSegment], starts: Sequence[int], rows: Array) -> list[Any]:
    """The ids of these row numbers, in their order; numbers of segments begin at `starts`."""
    if len(segments) == 1:
        return _listed(segments[0].id_column.taken(rows)[0])
    owners = (np.searchsorted(starts, rows, side="right") - 1).tolist()
    places = rows.tolist()
    columns = {owner: segments[owner].id_column for owner in set(owners)}
    made = dict.fromkeys(places)
    for owner, column in columns.items():
        here = [row for row, its in zip(places, owners, strict=True) if its == owner]
        values, _ = column.taken(np.array(here, np.int64) - starts[owner])
        made.update(zip(here, _listed(values), strict=True))
    return [made[row] for row in places]


def _listed(values: Array | list[Any]) -> list[Any]:
    return values.tolist() if isinstance(values, np.ndarray) else values


def checked_ids(name: str, column: IdColumn, ids: Sequence[Any] | Array) -> Array | Texts:
    """Ids as the column has them. Raises DataError for what no id of it can be."""
    listed = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    is_whole = isinstance(column, PlainNumbers)
    wrong = [one for one in listed if isinstance(one, bool) or not isinstance(one, int if is_whole else str)]
    if wrong:
        kind = "a whole number" if is_whole else "text"
        raise DataError(f"{wrong[0]!r} is no id: {name} is {kind}", allowed=kind)
    if is_whole and any(not -(1 << 63) <= one < 1 << 63 for one in listed):
        raise DataError(f"an id has more than 64 bits: {name}", allowed="-2^63 to 2^63 - 1")
    return wanted_ids(column, listed)


def wanted_ids(column: IdColumn, values: Sequence[Value]) -> Array | Texts:
    """Ids as the column has them; what no id can be is left out."""
    if isinstance(column, PlainNumbers):
        whole = [int(value) for value in values if not isinstance(value, str) and value == int(value)]
        return np.array([value for value in whole if -(1 << 63) <= value < 1 << 63], np.int64)
    return Texts.of(str(value).encode("utf-8", "surrogatepass") for value in values)
