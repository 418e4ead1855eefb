"""External ids of a set of rows -> a file: Parquet, or a portable Roaring bitmap.

Roaring as its specification has it (github.com/RoaringBitmap/RoaringFormatSpec): ids of 32 bits in `.roaring`; in
`.roaring64` one such bitmap for every 2^32 ids that has some, as CRoaring and pyroaring write it. Containers are lists
or bits; runs are not written.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from danlu.errors import DataError, disk_faults
from danlu.recall.columns.stored import PlainNumbers
from danlu.recall.exporting import whole
from danlu.recall.rows.bits import EMPTY, SHARD_ROWS, Array
from danlu.recall.rows.kernels import kernels
from danlu.recall.rowset import RowSet

if TYPE_CHECKING:
    from danlu.recall.collection import Collection

# Of a bitmap whose containers are lists or bits; the largest list; ids of a container.
_COOKIE, _MOST_LISTED, _CONTAINER = 12346, 4096, 1 << 16


def write_ids(opened: Collection, rows: RowSet, path: Path) -> None:
    """The ids of the rows as a file of the kind that its name ends in. Raises DataError for ids that it cannot hold."""
    with disk_faults(path, "writing the ids"), whole(path) as place:
        ID_WRITERS[path.suffix](opened, rows, place)


def numbers(opened: Collection, rows: RowSet) -> Iterator[Array]:
    """Ids that are whole numbers (int64), in the order of the rows, those of a shard at a time."""
    opened.check_of_here(rows)
    for part, segment in zip(rows.parts, opened.segments, strict=True):
        column = segment.id_column
        assert isinstance(column, PlainNumbers)
        for shard in np.flatnonzero(part.kinds != EMPTY).tolist():
            yield column.values[kernels().places(part, shard, shard + 1, SHARD_ROWS)]


def _parquet(opened: Collection, rows: RowSet, place: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    name, is_whole = opened.id_column, opened.id_type is int
    schema = pa.schema([(name, pa.int64() if is_whole else pa.large_string())])
    # Ids differ, so neither a dictionary nor a compressor finds anything in them.
    plain = {"use_dictionary": False, "compression": "none", "write_statistics": False} if is_whole else {}
    with parquet.ParquetWriter(place, schema, **plain) as writer:
        if is_whole:
            for some in numbers(opened, rows):
                writer.write_batch(pa.record_batch([pa.array(some)], schema))
        else:
            for chunk in rows.chunks():
                writer.write_table(opened.table(chunk, [name]).cast(schema))


def _sorted_ids(opened: Collection, rows: RowSet, bits: int, ending: str) -> Array:
    """uint64 or uint32, in order. Raises DataError."""
    if opened.id_type is not int:
        seen = f"{opened.id_column} is text, and {ending} holds numbers"
        raise DataError(seen, allowed="ids that are whole numbers", fix="write a .parquet file")
    parts = []
    for some in numbers(opened, rows):
        low, high = int(some.min()), int(some.max())
        if low < 0 or high >= 1 << bits:
            wrong = low if low < 0 else high
            fix = "write a .roaring64 file" if low >= 0 else "write a .parquet file"
            raise DataError(
                f"{opened.id_column} {wrong} does not fit into {ending}", allowed=f"0 to 2^{bits} - 1", fix=fix
            )
        parts.append(some.astype(np.uint32 if bits == 32 else np.uint64))
    ids = np.concatenate([np.empty(0, np.uint32 if bits == 32 else np.uint64), *parts])
    if (ids[1:] < ids[:-1]).any():
        ids.sort()
    return ids


def _roaring(opened: Collection, rows: RowSet, place: Path) -> None:
    ids = _sorted_ids(opened, rows, 32, ".roaring")
    with place.open("wb") as file:
        write_roaring(file, ids)


def _roaring64(opened: Collection, rows: RowSet, place: Path) -> None:
    ids = _sorted_ids(opened, rows, 63, ".roaring64")
    tops = ids >> np.uint64(32)
    cuts = [*np.flatnonzero(np.diff(tops, prepend=tops[:1] + np.uint64(1))).tolist(), len(ids)] if len(ids) else [0]
    with place.open("wb") as file:
        file.write(struct.pack("<Q", len(cuts) - 1))
        for start, stop in pairwise(cuts):
            file.write(struct.pack("<I", int(tops[start])))
            write_roaring(file, ids[start:stop].astype(np.uint32))


def write_roaring(file: BinaryIO, ids: Array) -> None:
    """One portable bitmap of 32 bits.

    Args:
        ids: uint32, in order; they differ.
    """
    high = ids >> np.uint32(16)
    begins = np.append(np.flatnonzero(high[1:] != high[:-1]) + 1, len(ids)) if len(ids) else np.empty(0, np.int64)
    cuts = np.concatenate([np.zeros(1, np.int64), begins])
    keys = high[cuts[:-1]]
    counts = np.diff(cuts)
    sizes = np.where(counts > _MOST_LISTED, _CONTAINER // 8, 2 * counts)
    head = np.stack([keys, counts - 1], 1).astype("<u2")
    start = 8 + 8 * len(keys)
    file.write(struct.pack("<II", _COOKIE, len(keys)) + head.tobytes())
    file.write((start + np.cumsum(sizes) - sizes).astype("<u4").tobytes())
    low = ids.astype("<u2")  # the lower half
    for start, stop in pairwise(cuts.tolist()):
        inside = low[start:stop]
        if stop - start > _MOST_LISTED:
            flags = np.zeros(_CONTAINER, np.bool_)
            flags[inside] = True
            file.write(np.packbits(flags, bitorder="little").tobytes())
        else:
            file.write(inside.tobytes())


ID_WRITERS: dict[str, Callable[[Collection, RowSet, Path], None]] = {
    ".parquet": _parquet, ".roaring": _roaring, ".roaring64": _roaring64,
}  # fmt: skip
