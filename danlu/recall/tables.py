"""Stored columns -> Arrow: the rows that a user sees, and those that are written into a new segment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from danlu.recall.columns.base import Column as StoredColumn
from danlu.recall.fitted import ARROW, arrow_type
from danlu.recall.manifest import Column
from danlu.recall.rows.bits import Array, Bits
from danlu.recall.rows.kernels import kernels
from danlu.recall.segment import OpenSegment
from danlu.recall.sources import BATCH_ROWS, SOURCE, Batch


def arrow_of(column: Column, stored: StoredColumn, rows: Array) -> pa.Array:
    """The values of these rows (int64)."""
    values, there = stored.taken(rows)
    kind = column.kind
    if kind == "vector":
        assert isinstance(values, np.ndarray)
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), column.dim, mask=pa.array(~there))
    if isinstance(values, np.ndarray):
        plain = pa.array(values, mask=~there)
        if kind == "boolean":
            return plain.cast(pa.bool_())
        return (plain.cast(pa.int32()) if kind == "date" else plain).cast(ARROW[kind])
    listed = [value if is_there else None for value, is_there in zip(values, there.tolist(), strict=True)]
    return pa.array(listed, ARROW[kind])


def table_of(
    columns: Sequence[Column],
    places: Sequence[int],
    segments: Sequence[OpenSegment],
    starts: Sequence[int],
    numbers: Array,
) -> pa.Table:
    """The values of rows (int64, of all segments together) in these columns.

    Args:
        places: of the columns among all. starts: number of the first row of each segment, and one past the last.
    """
    owners = np.searchsorted(starts, numbers, side="right") - 1
    met = [(owner, np.flatnonzero(owners == owner)) for owner in np.unique(owners).tolist()]
    back = pa.array(np.argsort(np.concatenate([here for _, here in met]), kind="stable")) if len(met) > 1 else None
    made = []
    for at in places:
        parts = [
            arrow_of(columns[at], segments[owner].columns[at], numbers[here] - starts[owner]) for owner, here in met
        ]
        array = pa.concat_arrays(parts) if parts else pa.array([], arrow_type(columns[at]))
        made.append(array if back is None else array.take(back))
    return pa.table(made, names=[columns[at].name for at in places])


def batches_of(segment: OpenSegment, columns: Sequence[Column], live: Bits) -> Iterator[Batch]:
    """The live rows of a segment, to be written again."""
    rows = kernels().places(live, 0, len(live.kinds), live.rows)
    for start in range(0, len(rows), BATCH_ROWS):
        some = rows[start : start + BATCH_ROWS].astype(np.int64)
        arrays = {one.name: arrow_of(one, segment.columns[at], some) for at, one in enumerate(columns)}
        arrays[SOURCE] = arrays[SOURCE].dictionary_encode()
        yield Batch(segment.stored.name, arrays, len(some))
