"""What changes a collection: rows are added, deleted, merged. Each is one commit; before it nothing is touched that a
reader sees, and after an error nothing has changed.

Only for the one who holds the collection's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from itertools import chain
from typing import Any

import numpy as np

from danlu.errors import DanluError, DataError, InUse
from danlu.recall.building import (
    SEGMENT_ROWS,
    Gathered,
    remove_segment,
    with_column,
    with_live,
    write_folder,
    write_segment,
)
from danlu.recall.columns.base import Column as StoredColumn
from danlu.recall.columns.encoding import known_rows
from danlu.recall.columns.ids import IdColumn, Ids, again
from danlu.recall.columns.stored import PlainNumbers
from danlu.recall.disk import Disk
from danlu.recall.files import ArrayWriter
from danlu.recall.manifest import Folder, Manifest, Segment, commit, numbers, prune
from danlu.recall.options import Conflict
from danlu.recall.rows.bits import FULL, Array, Bits, member
from danlu.recall.rows.kernels import answered
from danlu.recall.rows.tree import And, Not, Question
from danlu.recall.segment import OpenSegment
from danlu.recall.sources import ROW, Batch
from danlu.recall.tables import batches_of
from danlu.recall.tagging import Rule, passing_in_memory, retagged, rules_of

# Ids that an error names.
_NAMED = 5
Progress = Callable[[int], None]


class Change:
    """A change that is being made to a state of a collection, until `commit`.

    Args:
        opened: the segments of the state. warn: told of what is left undone without harm.
    """

    def __init__(self, disk: Disk, state: Manifest, opened: Sequence[OpenSegment], warn: Callable[[str], None]) -> None:
        self._disk, self._state, self._warn = disk, state, warn
        self._opened, self._live = list(opened), [segment.live for segment in opened]
        self._stored = [segment.stored for segment in opened]
        self._new: list[str] = []
        # Settled now: what another writer commits in between, where there are no locks, has this number too.
        self._number = max(numbers(disk), default=0) + 1
        self.next_id = state.next_id

    @property
    def _id(self) -> str:
        return self._state.id or ROW

    def add(self, batches: Iterable[Batch], on_conflict: Conflict, progress: Progress) -> None:
        """Rows, as new segments; a row whose id is there already is a conflict. Raises DataError for those."""
        gathered = Gathered(self._state.columns, self._id, self.next_id)
        done = 0
        for batch in batches:
            gathered.add(batch)
            done += batch.rows
            progress(done)
            if gathered.is_full:
                self._write(gathered, on_conflict)
                gathered = Gathered(self._state.columns, self._id, self.next_id)
        self._write(gathered, on_conflict)

    def delete(self, at: int, rows: Bits) -> None:
        """Rows of the segment at this place."""
        live = self._live[at]
        (self._live[at],) = answered([Question(live.rows, And((live, Not(rows))))])

    def merge(self, chosen: Sequence[int], progress: Progress) -> None:
        """The live rows of some segments, written as new ones; deleted rows are gone then."""
        gathered, done = Gathered(self._state.columns, self._id, None), 0
        rows = chain.from_iterable(batches_of(self._opened[at], self._state.columns, self._live[at]) for at in chosen)
        for batch in rows:
            gathered.add(batch)
            done += batch.rows
            progress(done)
            if gathered.is_full:
                self._write(gathered, None)
                gathered = Gathered(self._state.columns, self._id, None)
        self._write(gathered, None)
        for at in sorted(chosen, reverse=True):
            del self._opened[at], self._live[at], self._stored[at]

    def retag(self, rules: Sequence[Rule]) -> None:
        """Columns of tags as the rules have them, where they differ."""
        for at, segment in enumerate(self._opened):
            stored = self._stored[at]
            for place, column in retagged(segment.columns, rules, self._live[at], segment.passing):
                self._stored[at] = with_column(self._disk, self._stored[at], place, column, self._state.bytes_per_row)
            if self._stored[at] is not stored:
                self._disk.flush(stored.name)

    def write(self, what: Callable[[ArrayWriter], None], events: int) -> Folder:
        """A folder for what belongs to no rows; `commit` is to be told of it."""
        folder = write_folder(self._disk, what, events)
        self._new.append(folder.name)
        return folder

    def commit(self, **changes: Any) -> None:
        """Make it the newest state; `changes` are further fields of the manifest."""
        segments = [self._with_live(at) for at in range(len(self._opened))]
        kept = [segment for segment in segments if segment.deleted < segment.rows]
        fields = {"number": self._number, "segments": kept, "next_id": self.next_id, **changes}
        state = self._state.model_copy(update=fields)
        self._check_there(state.folders)
        self._disk.flush()
        commit(self._disk, state)
        self._new.clear()
        try:
            prune(self._disk)
        except (DanluError, OSError) as error:
            self._warn(f"earlier states could not be removed: {error}")

    def _check_there(self, folders: Sequence[Segment | Folder]) -> None:
        """Raise InUse if another writer has removed what is to be named, as may be where there are no locks."""
        for segment in folders:
            there = set(self._disk.names(segment.name)) if segment.name in self._disk.names() else set()
            if missing := sorted(segment.files.keys() - there):
                seen = f"{self._disk.root}: another writer has removed {segment.name}/{missing[0]}"
                raise InUse(seen, fix="let one process at a time write; this file system has no locks to see to it")

    def undo(self) -> None:
        """Remove what was written for a change that will not be committed, as far as the disk lets us."""
        for name in self._new:
            remove_segment(self._disk, name)
        with suppress(DanluError, OSError):
            prune(self._disk)

    def _with_live(self, at: int) -> Segment:
        segment, live, stored = self._opened[at], self._live[at], self._stored[at]
        if live.count == segment.live.count:
            return stored
        if live.count == 0:  # it goes as a whole
            return stored.model_copy(update={"deleted": segment.rows})
        made = with_live(self._disk, stored, live)
        self._disk.flush(made.name)
        return made

    def _write(self, gathered: Gathered, on_conflict: Conflict | None) -> None:
        """A segment of what was gathered. Without a rule ids are known to differ."""
        if not gathered.rows:
            return
        rows, stored = gathered.rows, gathered.columns()
        if self._rules:
            self._tag(stored, rows)
        column = stored[self._id]
        assert isinstance(column, IdColumn)
        ids, live = Ids.of(column), Bits.whole(rows, FULL)
        if on_conflict is not None and self._state.id is not None:
            there = self._settled(column, ids, on_conflict)
            live, ids = known_rows(there), ids.only(there)
        budget = self._state.bytes_per_row
        segment = write_segment(self._disk, self._state.columns, stored, self._id, ids, budget, live)
        self._new.append(segment.name)
        opened = OpenSegment(self._disk, segment, self._state.columns, self._id, budget, self._warn)
        self._opened.append(opened)
        self._live.append(opened.live)
        self._stored.append(segment)
        if on_conflict is not None and self._state.id is None:
            self.next_id += rows

    @cached_property
    def _rules(self) -> list[Rule]:
        return rules_of(self._state.columns, self._id, self._state.audiences)

    def _tag(self, stored: dict[str, StoredColumn], rows: int) -> None:
        """Settle the tags of rows that are to be written."""
        names = [column.name for column in self._state.columns]
        columns = [stored[name] for name in names]
        passing = partial(passing_in_memory, columns, names.index(self._id))
        for place, column in retagged(columns, self._rules, Bits.whole(rows, FULL), passing):
            stored[names[place]] = column

    def _settled(self, column: IdColumn, ids: Ids, on_conflict: Conflict) -> Array:
        """Which of the new rows live (a flag each), after ids that are there twice; earlier rows may go for them."""
        rows = len(ids.rows)
        earlier, later = again(column, ids)
        if len(later) and on_conflict == "error":
            raise self._conflict(column, later, "stands twice in what is added")
        gone = np.zeros(rows, np.bool_)
        gone[later if on_conflict == "first" else earlier] = True
        for at, segment in enumerate(self._opened):
            found = segment.find(column.values if isinstance(column, PlainNumbers) else column.texts)
            met = np.flatnonzero((found >= 0) & ~gone)
            met = met[member(self._live[at], found[met])]
            if not len(met):
                continue
            if on_conflict == "error":
                raise self._conflict(column, met, "is in the collection already")
            if on_conflict == "first":
                gone[met] = True
            else:
                self.delete(at, Bits.of(segment.rows, np.unique(found[met])))
        return ~gone

    def _conflict(self, column: IdColumn, rows: Array, what: str) -> DataError:
        values, _ = column.taken(rows[:_NAMED])
        named = ", ".join(repr(value) for value in (values.tolist() if isinstance(values, np.ndarray) else values))
        more = f" and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else ""
        fix = "keep one of them: on_conflict first or last; upsert puts new rows in the place of old ones"
        return DataError(f"{self._id} {named}{more}: {what}", fix=fix)


@contextmanager
def changing(
    disk: Disk, state: Manifest, segments: Sequence[OpenSegment], say: Callable[[str], None]
) -> Iterator[Change]:
    """A change to a state; what it has written is removed if the block ends with an error."""
    change = Change(disk, state, segments, say)
    try:
        yield change
    except BaseException:
        change.undo()
        raise


def worth_merging(opened: Sequence[OpenSegment]) -> list[int]:
    """Segments that a merge makes better: with deleted rows, damaged, or small ones where there are several."""
    small = [at for at, segment in enumerate(opened) if segment.rows < SEGMENT_ROWS // 2]
    worn = [at for at, segment in enumerate(opened) if segment.stored.deleted or segment.is_damaged]
    return sorted({*worn, *(small if len(small) > 1 else [])})
