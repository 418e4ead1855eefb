"""A collection: rows with attributes on the disk, asked by where-clauses.

One process writes at a time, any number read. An object is one state for as long as it lives: what changes a collection
gives a new object, and the old one goes on answering as before. Readers need no lock.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from danlu.errors import ConfigError, DataError, InUse, nearest
from danlu.journal import claimed
from danlu.recall import manifest as manifests
from danlu.recall.acting import Acts, Behaviour, learnt_of
from danlu.recall.candidates import Candidates, recall, recall_all, tune
from danlu.recall.channels.base import Channel
from danlu.recall.channels.kinds import channels_of
from danlu.recall.disk import Disk
from danlu.recall.files import Damaged
from danlu.recall.manifest import Column, Manifest
from danlu.recall.options import BuildOptions, Conflict
from danlu.recall.planning import question
from danlu.recall.profile import Attribute, profile
from danlu.recall.query import Fuse, Query
from danlu.recall.rows.bits import Array
from danlu.recall.rows.kernels import answered, counted
from danlu.recall.rows.tree import Question
from danlu.recall.rowset import RowSet, Snapshot, everything, of_rows
from danlu.recall.segment import OpenSegment, checked_ids
from danlu.recall.where import parse

if TYPE_CHECKING:
    import pyarrow as pa

    from danlu.recall.behaviour.events import EventOptions
    from danlu.recall.behaviour.options import BehaviourOptions
    from danlu.recall.sources import Given, Source

Sources: TypeAlias = "Given | Source | Sequence[Given | Source]"
Say: TypeAlias = Callable[[str], None]
ROW = "_row"
_PLANS = 256
# Times that a reader looks again because writers have pruned what it was about to open.
_TRIES = 100


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=2)


def _nothing(_: object) -> None:
    pass


@dataclass(frozen=True, eq=False, repr=False)
class Collection:
    """One state of a collection. Made by `open` and `build`.

    Attributes:
        snapshot: what row numbers belong to.
    """

    path: Path
    manifest: Manifest
    segments: tuple[OpenSegment, ...]
    snapshot: Snapshot
    _disk: Disk
    _say: Say
    _acts: Acts

    # -- opening ------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path | str, *, say: Say = _warn, disk: Disk | None = None) -> Collection:
        """The newest state that is whole. Nothing is read but tables of contents.

        Args:
            say: told of what is damaged and can be done without.

        Raises DataError if there is no collection, Damaged if what cannot be made anew is damaged, InUse if writers
        commit and prune faster than it can be opened.
        """
        place = Path(path)
        disk = disk or Disk(place)
        for _ in range(_TRIES):
            state = manifests.newest(disk, say)
            try:
                made = cls._of(place, disk, state, say)
            except Damaged:
                if manifests.is_there(disk, state.number):
                    raise
                continue
            if made._is_whole or manifests.is_there(disk, state.number):
                return made
        seen = f"{place}: {_TRIES} states in turn were pruned while they were opened"
        raise InUse(seen, fix="let fewer writers append, or more rows at a time")

    @property
    def _is_whole(self) -> bool:
        return self._acts.is_whole and not any(segment.is_damaged for segment in self.segments)

    @classmethod
    def _of(cls, path: Path, disk: Disk, state: Manifest, say: Say) -> Collection:
        id_column = state.id or ROW
        segments = tuple(
            OpenSegment(disk, stored, state.columns, id_column, state.bytes_per_row, say) for stored in state.segments
        )
        snapshot = Snapshot(str(path.resolve()), state.number, tuple(segment.live for segment in segments))
        return cls(path, state, segments, snapshot, disk, say, Acts.of(disk, state))

    @classmethod
    def build(
        cls,
        path: Path | str,
        sources: Sources,
        options: BuildOptions | None = None,
        *,
        progress: Callable[[int], None] = _nothing,
        say: Say = _warn,
        disk: Disk | None = None,
    ) -> Collection:
        """A new collection of the rows of some sources. Nothing is left of one that fails.

        Args:
            progress: told how many rows were read.

        Raises DataError for what cannot be read, ConfigError for options that do not fit, InUse, DiskError.
        """
        from danlu.recall.embedding import columns_with, with_vectors
        from danlu.recall.sources import batches, schema_of
        from danlu.recall.writing import changing

        place, options, given = Path(path), options or BuildOptions(), _sources(sources)
        disk = disk or Disk(place)
        columns = columns_with(schema_of(given, options), options)
        state = Manifest(number=0, columns=columns, id=options.id, bytes_per_row=options.bytes_per_row)
        with claimed(place, say):
            is_new = not place.exists()
            if not is_new and any(place.iterdir()):
                seen = f"{place} exists and is not empty"
                raise ConfigError(seen, fix="choose another name, or add rows to a collection with append or upsert")
            disk.make()
            try:
                with changing(disk, state, (), say) as change:
                    rows = (
                        batch
                        for one in given
                        for batch in batches(one, columns, take=options.columns, separator=options.separator)
                    )
                    change.add(with_vectors(rows, columns, say), options.on_conflict, progress)
                    change.commit()
            except BaseException:
                if is_new and not any(place.iterdir()):
                    place.rmdir()
                raise
        return cls.open(place, say=say, disk=disk)

    # -- asking -------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"Collection({str(self.path)!r}, state {self.manifest.number}, {len(self):,} rows)"

    def __len__(self) -> int:
        return sum(segment.live.count for segment in self.segments)

    @property
    def columns(self) -> list[Column]:
        return self.manifest.columns

    @property
    def id_column(self) -> str:
        """The column of external ids; _row where rows are numbered."""
        return self.manifest.id or ROW

    @property
    def id_type(self) -> type:
        """int or str."""
        kind = next(column.kind for column in self.columns if column.name == self.id_column)
        return int if kind == "integer" else str

    @property
    def size_bytes(self) -> int:
        """What it takes on the disk, manifests apart."""
        return sum(file.size for one in self.manifest.folders for file in one.files.values())

    @cached_property
    def _plans(self) -> Callable[[str], tuple[Question, ...]]:
        return lru_cache(maxsize=_PLANS)(self._plan)

    def _plan(self, text: str) -> tuple[Question, ...]:
        audiences = {name: audience.where for name, audience in self.manifest.audiences.items()}
        clause = parse(text, self.columns, self.id_column, audiences)
        return tuple(question(clause, segment.live, segment.passing) for segment in self.segments)

    def where(self, text: str) -> RowSet:
        """The rows that a where-clause is for. Raises ConfigError, with the place, for a clause that is wrong."""
        return RowSet(self.snapshot, tuple(answered(self._plans(text))))

    def count(self, text: str) -> int:
        """How many rows a where-clause is for; no set is made."""
        return sum(counted(self._plans(text)))

    def everything(self) -> RowSet:
        """All rows that are not deleted."""
        return everything(self.snapshot)

    def rows(self, numbers: Iterable[int] | Array) -> RowSet:
        """The live rows of these numbers."""
        return of_rows(self.snapshot, numbers)

    def find(self, ids: Sequence[Any] | Array) -> Array:
        """The row number (int64) of each external id; -1 where no live row has it."""
        found = np.full(len(ids), -1, np.int64)
        for start, segment in zip(self.snapshot.starts[:-1], self.segments, strict=True):
            rows = segment.find(checked_ids(self.id_column, segment.id_column, ids))
            found[rows >= 0] = rows[rows >= 0] + start
        return found

    def ids(self, rows: RowSet | Array, limit: int | None = None) -> pa.Array:
        """External ids, in the order of the rows."""
        return self.table(rows, [self.id_column], limit).column(0).combine_chunks()

    def table(self, rows: RowSet | Array, columns: Sequence[str] | None = None, limit: int | None = None) -> pa.Table:
        """Values of these rows: of a set in its order, of numbers in theirs; the first `limit` of them."""
        from danlu.recall.tables import table_of

        places, numbers = self._places(columns), self._numbers(rows, limit)
        return table_of(self.columns, places, self.segments, self.snapshot.starts, numbers)

    def _numbers(self, rows: RowSet | Array, limit: int | None) -> Array:
        if not isinstance(rows, RowSet):
            numbers = np.asarray(rows, np.int64)[:limit]
            if len(numbers) and not (numbers.min() >= 0 and numbers.max() < self.snapshot.starts[-1]):
                raise DataError("there is no row of such a number", allowed=f"0 to {self.snapshot.starts[-1] - 1}")
            return numbers
        self.check_of_here(rows)
        return rows.rows(limit)

    def check_of_here(self, rows: RowSet) -> None:
        """Raises DataError for a set of another state."""
        if rows.snapshot != self.snapshot:
            seen = (
                f"a row set of snapshot {rows.snapshot.number} of {rows.snapshot.place}; this is {self.snapshot.number}"
            )
            raise DataError(seen, fix="ask for the set again: row numbers are those of one snapshot")

    def _places(self, names: Sequence[str] | None) -> list[int]:
        known = {column.name: at for at, column in enumerate(self.columns)}
        for name in names or ():
            if name not in known:
                raise ConfigError(f"there is no column {name!r}", allowed=", ".join(known), fix=nearest(name, known))
        return list(known.values()) if names is None else [known[name] for name in names]

    def profile(self, rows: RowSet) -> list[Attribute]:
        """Of every attribute, how its values are spread in the set and among all."""
        self.check_of_here(rows)
        return profile(self.columns, self.id_column, self.segments, rows.parts)

    @cached_property
    def behaviour(self) -> Behaviour:
        """Who did what with the rows, and what was learnt of it."""
        return Behaviour(self, self._acts, self._say, lambda path: Collection.open(path, say=self._say))

    @cached_property
    def channels(self) -> Mapping[str, Channel]:
        """What finds rows by a query: words:COLUMN, vector:COLUMN."""
        return channels_of(self)

    def recall(self, query: Query) -> Candidates:
        """The best rows of those that qualify, and what found them. Raises ConfigError for a query that is wrong."""
        return recall(self, query)

    def recall_all(self, queries: Sequence[Query]) -> list[Candidates]:
        """`recall` of each, in less time than one after the other."""
        return recall_all(self, queries)

    def tune(self, labels: Sequence[tuple[Query, Sequence[Any]]]) -> Fuse:
        """How to fuse, with weights from labels: queries, and for each the ids of rows that are relevant."""
        return tune(self, labels)

    def check(self) -> list[str]:
        """What is wrong with its files, all of which are read for it."""
        found = []
        for number in manifests.numbers(self._disk):
            try:
                manifests.read(self._disk, number)
            except DataError as error:
                found.append(error.seen)
        return [*found, *(seen for segment in self.segments for seen in segment.damage()), *self._acts.damage()]

    # -- changing -----------------------------------------------------------------------------------------

    def append(self, sources: Sources, **how: Any) -> Collection:
        """Rows are added; an id that is there already is an error, and nothing is added. `how`: as for `upsert`."""
        return self._added(sources, "error", **how)

    def upsert(self, sources: Sources, **how: Any) -> Collection:
        """Rows are added; those whose id is there already take the place of the earlier ones.

        Args:
            columns: the columns to take. separator: between tags that are one text. progress: told of rows read.
        """
        return self._added(sources, "last", **how)

    def _added(
        self,
        sources: Sources,
        on_conflict: Conflict,
        *,
        columns: Sequence[str] | None = None,
        separator: str = ",",
        progress: Callable[[int], None] = _nothing,
    ) -> Collection:
        from danlu.recall.embedding import with_vectors
        from danlu.recall.sources import batches

        given = _sources(sources)
        self._places(columns)
        with self._newest_state() as (now, change):
            rows = (batch for one in given for batch in batches(one, now.columns, take=columns, separator=separator))
            change.add(with_vectors(rows, now.columns, self._say), on_conflict, progress)
            change.commit()
        return self._again()

    def delete(self, rows: RowSet | Sequence[Any]) -> Collection:
        """Rows of a set of this state, or of external ids, go; ids that no row has are passed over."""
        with self._newest_state() as (now, change):
            if not isinstance(rows, RowSet):
                found = now.find(rows)
                chosen = now.rows(found[found >= 0])
            else:
                now.check_of_here(rows)
                chosen = rows
            for at, part in enumerate(chosen.parts):
                change.delete(at, part)
            if len(chosen):
                change.commit()
        return self._again()

    def add_events(
        self,
        sources: Sources,
        columns: EventOptions | None = None,
        options: BehaviourOptions | None = None,
        *,
        now: float | None = None,
    ) -> Collection:
        """Who did what with the rows is stored, and learnt from: one commit, all of it or nothing.

        Args:
            columns: which columns say who did what. options: how channels learn; None goes on as before.
            now: days since 1970, after which nothing can have happened; by default the clock's.

        Raises DataError for what is no event and for items that no row has, ConfigError for options that do not fit.
        """
        from danlu.recall.behaviour.events import read

        new = read(_sources(sources), columns, now)
        with self._newest_state() as (state, change):
            change.commit(**learnt_of(state, state.behaviour, new, options, change.write))
        return self._again()

    def compact(self, *, progress: Callable[[int], None] = _nothing) -> Collection:
        """Small segments become one, deleted rows are gone, damaged indexes are written anew. Row numbers change."""
        from danlu.recall.writing import worth_merging

        with self._newest_state() as (now, change):
            for segment in now.segments:
                segment.probe()
            chosen = worth_merging(now.segments)
            if chosen:
                change.merge(chosen, progress)
                change.commit()
        return self._again()

    def name_audience(self, name: str, where: str | None, *, tags: str | None = None) -> Collection:
        """Keep a where-clause under a name; in others it is audience('name'). None takes the name away.

        Args:
            tags: a column of tags: those rows have the name in it, and no others, also when rows are added.

        Raises ConfigError for a clause that is wrong, and for taking away a name that another audience is made of.
        """
        from danlu.recall.tagging import named

        with self._newest_state() as (now, change):
            audiences, rules = named(now, name, where, tags)
            change.retag(rules)
            change.commit(audiences=audiences)
        return self._again()

    def newest(self) -> Collection:
        """The newest state; this very object where it is that. Raises as `open` does."""
        return self if manifests.numbers(self._disk)[:1] == [self.manifest.number] else self._again()

    def _again(self) -> Collection:
        return Collection.open(self.path, say=self._say, disk=self._disk)

    @contextmanager
    def _newest_state(self) -> Iterator[tuple[Collection, Any]]:
        """The newest state and a change to it, by the only process that writes."""
        from danlu.recall.writing import changing

        with claimed(self.path, self._say):
            now = self._again()
            manifests.prune(self._disk)
            with changing(self._disk, now.manifest, now.segments, self._say) as change:
                yield now, change


def _sources(given: Sources) -> list[Source]:
    from danlu.recall.sources import Source

    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    if not listed:
        raise ConfigError("no source is given")
    return [one if isinstance(one, Source) else Source(one) for one in listed]
