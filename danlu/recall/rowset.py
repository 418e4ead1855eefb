"""Rows of a collection as a set: what every channel takes as its filter and attributes answer with.

Ten million rows cost megabytes, and and, or, not and counting go by words. Row numbers are those of one snapshot, so a
set remembers which, and sets of two do not mix: numbers of one may be other rows in the other. What is to be kept for
longer is written as external ids. Knows nothing of columns and files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import numpy as np

from danlu.errors import DataError
from danlu.recall.rows.bits import EMPTY, SHARD_ROWS, Array, Bits, member, shards_of
from danlu.recall.rows.kernels import answered, kernels
from danlu.recall.rows.tree import And, Not, Or, Question, Tree


@dataclass(frozen=True)
class Snapshot:
    """One state of a collection: row numbers mean the same in it for ever.

    Attributes:
        place: where the collection lies. number: of its manifest.
        live: the rows of each segment that are not deleted.
    """

    place: str
    number: int
    live: tuple[Bits, ...] = field(compare=False, repr=False)

    @cached_property
    def starts(self) -> list[int]:
        """Row number of the first row of each segment, and one past the last."""
        return [0, *accumulate(bits.rows for bits in self.live)]


@dataclass(frozen=True, eq=False)
class RowSet:
    """Rows of a snapshot. Sets of one snapshot combine by `&`, `|`, `-`, `^` and `~` (all live rows but these).

    Attributes:
        parts: the rows of each segment, numbered from 0 there.
    """

    snapshot: Snapshot
    parts: tuple[Bits, ...]

    def __len__(self) -> int:
        return sum(part.count for part in self.parts)

    def __and__(self, other: RowSet) -> RowSet:
        return self._with(other, lambda a, b: And((a, b)))

    def __or__(self, other: RowSet) -> RowSet:
        return self._with(other, lambda a, b: Or((a, b)))

    def __sub__(self, other: RowSet) -> RowSet:
        return self._with(other, lambda a, b: And((a, Not(b))))

    def __xor__(self, other: RowSet) -> RowSet:
        return self._with(other, lambda a, b: And((Or((a, b)), Not(And((a, b))))))

    def __invert__(self) -> RowSet:
        return everything(self.snapshot) - self

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RowSet):
            return NotImplemented
        self._check(other)
        return self.parts == other.parts

    __hash__ = None  # type: ignore[assignment]

    def __contains__(self, row: object) -> bool:
        if not isinstance(row, (int, np.integer)) or not 0 <= row < self.snapshot.starts[-1]:
            return False
        at = int(np.searchsorted(self.snapshot.starts, row, side="right")) - 1
        inside = int(row) - self.snapshot.starts[at]
        shard = inside // SHARD_ROWS
        found = kernels().places(self.parts[at], shard, shard + 1, SHARD_ROWS)
        place = int(np.searchsorted(found, inside))
        return place < len(found) and int(found[place]) == inside

    def has(self, rows: Array) -> Array:
        """Whether each of these row numbers (int64), which some rows have, is in the set."""
        flags = np.zeros(len(rows), np.bool_)
        owners = np.searchsorted(self.snapshot.starts, rows, side="right") - 1
        for at in np.flatnonzero(np.bincount(owners, minlength=len(self.parts))).tolist():
            here = owners == at
            flags[here] = member(self.parts[at], rows[here] - self.snapshot.starts[at])
        return flags

    def __iter__(self) -> Iterator[int]:
        for rows in self.chunks():
            yield from rows.tolist()

    def chunks(self) -> Iterator[Array]:
        """Row numbers (int64) in order, those of a shard at a time."""
        for start, part in zip(self.snapshot.starts[:-1], self.parts, strict=True):
            for shard in np.flatnonzero(part.kinds != EMPTY).tolist():
                yield kernels().places(part, shard, shard + 1, SHARD_ROWS).astype(np.int64) + start

    def rows(self, limit: int | None = None) -> Array:
        """Row numbers (int64) in order, the first `limit` of them."""
        left = len(self) if limit is None else min(limit, len(self))
        found = [np.empty(0, np.int64)]
        for start, part in zip(self.snapshot.starts[:-1], self.parts, strict=True):
            places = kernels().places(part, 0, shards_of(part.rows), left)
            found.append(places.astype(np.int64) + start)
            left -= len(places)
            if left <= 0:
                break
        return np.concatenate(found)

    @property
    def bytes(self) -> int:
        """Memory that the set takes, apart from what is empty in it."""
        return sum(part.bytes for part in self.parts)

    def _with(self, other: RowSet, tree: Callable[[Bits, Bits], Tree]) -> RowSet:
        self._check(other)
        pairs = zip(self.parts, other.parts, strict=True)
        return RowSet(self.snapshot, tuple(answered([Question(a.rows, tree(a, b)) for a, b in pairs])))

    def _check(self, other: RowSet) -> None:
        mine, theirs = self.snapshot, other.snapshot
        if mine != theirs:
            seen = f"row sets of two snapshots: {mine.number} of {mine.place} and {theirs.number} of {theirs.place}"
            raise DataError(
                seen, fix="ask both of one opened collection; between snapshots rows are named by their ids"
            )


def everything(snapshot: Snapshot) -> RowSet:
    """All rows that are not deleted."""
    return RowSet(snapshot, snapshot.live)


def of_rows(snapshot: Snapshot, rows: Iterable[int] | Array) -> RowSet:
    """The live ones among these row numbers, in any order. Raises DataError for a number that no row has."""
    numbers = np.unique(np.fromiter(rows, np.int64) if not isinstance(rows, np.ndarray) else rows.astype(np.int64))
    if len(numbers) and not (numbers[0] >= 0 and numbers[-1] < snapshot.starts[-1]):
        wrong = numbers[0] if numbers[0] < 0 else numbers[-1]
        raise DataError(f"there is no row {wrong}", allowed=f"0 to {snapshot.starts[-1] - 1}")
    cuts = np.searchsorted(numbers, snapshot.starts)
    parts = [
        Bits.of(live.rows, numbers[cuts[at] : cuts[at + 1]] - snapshot.starts[at])
        for at, live in enumerate(snapshot.live)
    ]
    return RowSet(snapshot, tuple(parts)) & everything(snapshot)
