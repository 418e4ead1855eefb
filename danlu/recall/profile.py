"""Who the rows of a set are: of every attribute, how its values are spread among them and among all.

TGI (target group index) is the share of a value in the set over its share among all live rows, times 100: 100 is as
everywhere. Knows nothing of how sets come about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from danlu.recall.columns.base import Column as StoredColumn
from danlu.recall.columns.lists import TagLists
from danlu.recall.columns.stored import CodedNumbers, CodedWords, PlainNumbers
from danlu.recall.kinds import shown
from danlu.recall.manifest import Column
from danlu.recall.rows.bits import Array, Bits, shards_of
from danlu.recall.rows.kernels import answered, counted, kernels
from danlu.recall.rows.tree import And, Question
from danlu.recall.segment import OpenSegment

# Values of a wide number are put into so many ranges, each with about as many of all rows.
RANGES = 10
# Different values up to which each is counted.
MOST_VALUES = 1 << 16
_SAMPLE = 1 << 16


@dataclass(frozen=True)
class Share:
    """Attributes:
    value: a value, or the bounds of a range: from behind the first, which only the first range includes, to the second.
    rows, of_all: rows with it in the set and among all.
    """

    value: Any
    rows: int
    of_all: int


@dataclass(frozen=True)
class Attribute:
    """Attributes:
    known: rows of the set with a value, nulls left out; of tags, with a list, empty or not.
    known_of_all: the same among all live rows.
    shares: the values, those with most rows in the set first; ranges in their order. Of tags a row may have several;
        where there are very many different ones, the most frequent are counted.
    """

    name: str
    kind: str
    rows: int
    all_rows: int
    known: int
    known_of_all: int
    shares: tuple[Share, ...]

    def tgi(self, share: Share) -> float | None:
        """None where either has no rows to compare."""
        if not self.known or not share.of_all or not self.known_of_all:
            return None
        return 100 * (share.rows / self.known) / (share.of_all / self.known_of_all)


def profile(
    columns: Sequence[Column], id_column: str, segments: Sequence[OpenSegment], parts: Sequence[Bits]
) -> list[Attribute]:
    """Of every column that is filtered by, apart from ids."""
    made = []
    for at, column in enumerate(columns):
        if column.kind not in ("text", "vector") and column.name != id_column:
            stored = [segment.columns[at] for segment in segments]
            lives = [segment.live for segment in segments]
            made.append(_attribute(column, stored, parts, lives))
    return made


def _attribute(
    column: Column, stored: Sequence[StoredColumn], parts: Sequence[Bits], lives: Sequence[Bits]
) -> Attribute:
    known, known_of_all = (_known(stored, sets) for sets in (parts, lives))
    if any(isinstance(one, PlainNumbers) for one in stored):
        shares = _ranges(column, stored, parts, lives)
    else:
        here, everywhere = _counts(column, stored, parts), _counts(column, stored, lives)
        several = [Share(value, here.get(value, 0), count) for value, count in everywhere.items()]
        shares = sorted(several, key=lambda share: -share.rows)
    rows = [sum(bits.count for bits in sets) for sets in (parts, lives)]
    return Attribute(column.name, column.kind, rows[0], rows[1], known, known_of_all, tuple(shares))


def _known(stored: Sequence[StoredColumn], sets: Sequence[Bits]) -> int:
    return sum(counted([Question(bits.rows, And((bits, one.known))) for one, bits in zip(stored, sets, strict=True)]))


def _counts(column: Column, stored: Sequence[StoredColumn], sets: Sequence[Bits]) -> dict[Any, int]:
    """Rows with each value; none for a column with too many different ones."""
    totals: dict[Any, int] = {}
    if any(_different(one) > MOST_VALUES for one in stored):
        return totals
    for one, bits in zip(stored, sets, strict=True):
        counts, value_of = _of_segment(column, one, bits)
        for at in np.flatnonzero(counts).tolist():
            value = value_of(at)
            totals[value] = totals.get(value, 0) + int(counts[at])
    return totals


def _different(stored: StoredColumn) -> int:
    if isinstance(stored, CodedWords):
        return len(stored.dictionary)
    return len(stored.values) if isinstance(stored, CodedNumbers) else 0


def _of_segment(column: Column, stored: StoredColumn, bits: Bits) -> tuple[Array, Callable[[int], Any]]:
    """Rows of the set with each value, and what the value of a place is."""
    is_whole = bits.count == bits.rows  # counted when it was written
    if isinstance(stored, TagLists):
        sets, which = stored.index.sets, stored.index.which
        assert which is not None
        asked = [] if is_whole else [Question(bits.rows, And((bits, sets[at]))) for at in range(len(sets))]
        counts = sets.counts if is_whole else np.array(counted(asked), np.int64)
        return counts, lambda at: stored.dictionary.texts[int(which[at]) - 1]
    assert isinstance(stored, (CodedNumbers, CodedWords))
    counts_of_codes = stored.histogram if is_whole else np.zeros(len(stored.histogram), np.int64)
    if not is_whole:
        kernels().histogram(bits, stored.codes, counts_of_codes, 0, shards_of(bits.rows))
    if isinstance(stored, CodedWords):
        return counts_of_codes[1:], stored.dictionary.texts.__getitem__
    values = stored.values
    return counts_of_codes[1:], lambda at: shown(column.kind, values[at].item())


def _ranges(
    column: Column, stored: Sequence[StoredColumn], parts: Sequence[Bits], lives: Sequence[Bits]
) -> list[Share]:
    """Ranges of about equally many of all rows; where they lie is seen from a sample."""
    sampled = [_some_values(one, bits) for one, bits in zip(stored, lives, strict=True)]
    sample = np.sort(np.concatenate(sampled))
    if not len(sample):
        return []
    edges = np.unique(sample[np.linspace(0, len(sample) - 1, RANGES + 1).astype(np.int64)])
    counts = []
    for sets in (parts, lives):
        total = np.zeros(max(len(edges) - 1, 1), np.int64)
        for one, bits in zip(stored, sets, strict=True):
            total += _counted_in(one, bits, edges)
        counts.append(total)
    bounds = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)) or [(edges[0].item(), edges[0].item())]
    kinds = [(shown(column.kind, low), shown(column.kind, high)) for low, high in bounds]
    return [Share(value, int(a), int(b)) for value, a, b in zip(kinds, *counts, strict=True)]


def _some_values(stored: StoredColumn, live: Bits) -> Array:
    step = max(1, stored.known.rows // _SAMPLE)
    (rows,) = answered([Question(live.rows, And((live, stored.known)))])
    places = kernels().places(rows, 0, len(rows.kinds), rows.count)[::step].astype(np.int64)
    values, _ = stored.taken(places)
    return np.asarray(values)


def _counted_in(stored: StoredColumn, bits: Bits, edges: Array) -> Array:
    """Rows in each range; what lies beyond the sample's ends counts with the outermost."""
    (rows,) = answered([Question(bits.rows, And((bits, stored.known)))])
    total = np.zeros(max(len(edges) - 1, 1), np.int64)
    for shard in range(len(rows.kinds)):
        places = kernels().places(rows, shard, shard + 1, rows.rows).astype(np.int64)
        values, _ = stored.taken(places)
        inside = np.clip(np.searchsorted(edges, np.asarray(values), side="left") - 1, 0, len(total) - 1)
        total += np.bincount(inside, minlength=len(total))
    return total
