"""Batches of rows -> a segment on the disk.

A segment is gathered in memory, at most so many rows and so many bytes, so that a collection of any size is built in
bounded memory. Its values are written column by column, the indexes beside them.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from danlu.errors import DanluError, DataError
from danlu.recall.columns import encoding
from danlu.recall.columns.base import Column as StoredColumn
from danlu.recall.columns.ids import Ids
from danlu.recall.columns.sets import Sets
from danlu.recall.derived import DERIVED, derived_files
from danlu.recall.disk import Disk
from danlu.recall.files import ArrayWriter
from danlu.recall.manifest import DATA, IDS, Column, Folder, Segment, StoredFile, column_file, index_file
from danlu.recall.rows.bits import Array, Bits
from danlu.recall.sources import ROW, Batch

SEGMENT_ROWS = 1 << 24
SEGMENT_BYTES = 3 << 29
# What finding the words of a text takes while a segment is made, for each byte of it.
_WORD_BYTES = 8


def new_segment_name() -> str:
    return f"seg-{secrets.token_hex(8)}"


class Gathered:
    """Rows of a segment that is being made.

    Args:
        first_row: number of the first row, where rows are numbered (the column _row); None if the batches have it.
    """

    def __init__(self, columns: Sequence[Column], id_column: str, first_row: int | None) -> None:
        self._columns, self._id, self._first_row = columns, id_column, first_row
        self._parts: dict[str, _Values] = {
            column.name: _GATHERERS.get(column.kind, _Numbers)(column)
            for column in columns
            if column.name != ROW or first_row is None
        }
        if isinstance(self._parts.get(id_column), _Words):
            self._parts[id_column] = _Texts(Column(name=id_column, kind="text"))
        self.rows = 0

    @property
    def is_full(self) -> bool:
        return self.rows >= SEGMENT_ROWS or sum(part.bytes for part in self._parts.values()) >= SEGMENT_BYTES

    def add(self, batch: Batch) -> None:
        """Raises DataError for a row without an id."""
        if self._id in batch.arrays and batch.arrays[self._id].null_count:
            nulls = pc.is_null(batch.arrays[self._id]).to_numpy(zero_copy_only=False)
            seen = f"{batch.where}: row {int(np.flatnonzero(nulls)[0]) + 1} of them has no {self._id}"
            raise DataError(seen, fix="give every row an id, or build without one: rows are numbered then")
        for name, part in self._parts.items():
            part.add(batch.arrays[name])
        self.rows += batch.rows

    def columns(self) -> dict[str, StoredColumn]:
        """The columns as they are kept; what was gathered is let go one by one."""
        made: dict[str, StoredColumn] = {}
        for column in self._columns:
            if column.name == ROW and self._first_row is not None:
                numbers = np.arange(self._first_row, self._first_row + self.rows)
                made[ROW] = encoding.plain_numbers(numbers, np.ones(self.rows, np.bool_))
            else:
                made[column.name] = self._parts.pop(column.name).made(as_id=column.name == self._id)
        return made


class _Values:
    """Values of one column, gathered."""

    def __init__(self, column: Column) -> None:
        self.bytes = 0
        self._column = column
        self._masks: list[Array] = []

    def add(self, array: Any) -> None:
        self._masks.append(pc.is_valid(array).to_numpy(zero_copy_only=False))
        self._add(array)

    def _add(self, array: Any) -> None:
        raise NotImplementedError

    def made(self, *, as_id: bool) -> StoredColumn:
        raise NotImplementedError

    def _mask(self) -> Array:
        return np.concatenate([np.empty(0, np.bool_), *self._masks])


class _Numbers(_Values):
    def __init__(self, column: Column) -> None:
        super().__init__(column)
        self._numbers: list[Array] = []

    def _add(self, array: Any) -> None:
        if self._column.kind == "boolean":
            array = array.cast(pa.uint8())
        elif self._column.kind == "date":
            array = array.cast(pa.int32())
        elif self._column.kind == "time":
            array = array.cast(pa.int64())
        numbers = pc.fill_null(array, 0).to_numpy(zero_copy_only=False)
        self._numbers.append(numbers)
        self.bytes += numbers.nbytes

    def made(self, *, as_id: bool) -> StoredColumn:
        dtype = np.float64 if self._column.kind == "real" else np.int64
        values = np.concatenate([np.empty(0, dtype), *self._numbers]).astype(dtype, copy=False)
        self._numbers.clear()
        return (encoding.plain_numbers if as_id else encoding.numbers)(values, self._mask())


class _Dictionary:
    """Texts -> codes from 1, in the order in which they are met."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        self.bytes = 0

    def coded(self, array: Any) -> Array:
        """A code for each text, 0 for null."""
        encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
        table = np.zeros(len(encoded.dictionary) + 1, np.int64)
        for at, text in enumerate(encoded.dictionary.to_pylist(), 1):
            if text not in self.codes:
                self.codes[text] = len(self.codes) + 1
                self.bytes += len(text) + 100
            table[at] = self.codes[text]
        places = pc.fill_null(pc.add(encoded.indices, 1), 0).to_numpy(zero_copy_only=False)
        codes: Array = table[places].astype(np.uint32)
        return codes

    def texts(self) -> list[bytes]:
        return [text.encode() for text in self.codes]


class _Words(_Values):
    def __init__(self, column: Column) -> None:
        super().__init__(column)
        self._dictionary, self._codes = _Dictionary(), [np.empty(0, np.uint32)]

    def _add(self, array: Any) -> None:
        self._codes.append(self._dictionary.coded(array))
        self.bytes += 5 * len(array)

    def made(self, *, as_id: bool) -> StoredColumn:
        return encoding.words(np.concatenate(self._codes), self._dictionary.texts())


class _Tags(_Values):
    def __init__(self, column: Column) -> None:
        super().__init__(column)
        self._dictionary, self._codes, self._lengths = _Dictionary(), [np.empty(0, np.uint32)], [np.empty(0, np.int64)]

    def _add(self, array: Any) -> None:
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        codes = self._dictionary.coded(pc.list_flatten(array))
        if not codes.all():  # a null among the tags is no tag
            owners = np.repeat(np.arange(len(lengths)), lengths)
            lengths = np.bincount(owners[codes > 0], minlength=len(lengths))
            codes = codes[codes > 0]
        self._codes.append(codes)
        self._lengths.append(lengths)
        self.bytes += codes.nbytes + lengths.nbytes

    def made(self, *, as_id: bool) -> StoredColumn:
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(self._lengths))])
        return encoding.tags(starts, np.concatenate(self._codes), self._dictionary.texts(), self._mask())


class _Texts(_Values):
    def __init__(self, column: Column) -> None:
        super().__init__(column)
        self._data, self._lengths = [np.empty(0, np.uint8)], [np.empty(0, np.int64)]

    def _add(self, array: Any) -> None:
        filled = pc.fill_null(array, "")
        _, places, data = filled.buffers()
        starts = np.frombuffer(places, np.int64)[filled.offset : filled.offset + len(filled) + 1]
        kept = np.frombuffer(data or b"", np.uint8)[starts[0] : starts[-1]].copy()
        self._data.append(kept)
        self._lengths.append(np.diff(starts))
        self.bytes += len(kept) * (1 + self._column.keywords * _WORD_BYTES) + 9 * len(array)

    def made(self, *, as_id: bool) -> StoredColumn:
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(self._lengths))])
        return encoding.texts(starts, np.concatenate(self._data), self._mask())


class _Vectors(_Values):
    def __init__(self, column: Column) -> None:
        super().__init__(column)
        self._vectors = [np.empty((0, column.dim), np.float32)]

    def _add(self, array: Any) -> None:
        values = np.zeros((len(array), self._column.dim), np.float32)
        values[self._masks[-1]] = array.flatten().to_numpy(zero_copy_only=False).reshape(-1, self._column.dim)
        self._vectors.append(values)
        self.bytes += values.nbytes

    def made(self, *, as_id: bool) -> StoredColumn:
        return encoding.vectors(np.concatenate(self._vectors), self._mask())


_GATHERERS: dict[str, type[_Values]] = {"word": _Words, "tags": _Tags, "text": _Texts, "vector": _Vectors}


# -- on the disk ------------------------------------------------------------------------------------------


def write_segment(
    disk: Disk,
    columns: Sequence[Column],
    stored: dict[str, StoredColumn],
    id_column: str,
    ids: Ids,
    bytes_per_row: float,
    live: Bits,
) -> Segment:
    """A folder with the files of a segment, certain to be there when this returns; nothing is left after an error.

    Args:
        id_column: has no index of its own, ids are found by `ids`.
        live: the rows that are not deleted.
    """
    name, files = new_segment_name(), {}
    try:
        disk.make(name)
        for at, column in enumerate(columns):
            kept = stored[column.name]
            with ArrayWriter(disk, f"{name}/{column_file(at)}") as writer:
                kept.write(writer)
            files[column_file(at)] = StoredFile(size=writer.size, checksum=writer.checksum)
            index = None if column.name == id_column else kept.made_index(bytes_per_row)
            if index is not None:
                with ArrayWriter(disk, f"{name}/{index_file(at)}") as writer:
                    index.write(writer)
                files[index_file(at)] = StoredFile(size=writer.size, checksum=writer.checksum)
        for file, kind, at in derived_files(columns):
            with ArrayWriter(disk, f"{name}/{file}") as writer:
                DERIVED[kind].make(columns[at], stored[columns[at].name]).write(writer)
            files[file] = StoredFile(size=writer.size, checksum=writer.checksum)
        with ArrayWriter(disk, f"{name}/{IDS}") as writer:
            ids.write(writer)
        files[IDS] = StoredFile(size=writer.size, checksum=writer.checksum)
        made = Segment(name=name, rows=live.rows, files=files)
        if live.count < live.rows:
            made = with_live(disk, made, live)
        disk.flush(name)
        return made
    except BaseException:
        remove_segment(disk, name)
        raise


def write_folder(disk: Disk, write: Callable[[ArrayWriter], None], events: int) -> Folder:
    """A folder with one file of arrays, certain to be there when this returns; nothing is left after an error."""
    name = new_segment_name()
    try:
        disk.make(name)
        with ArrayWriter(disk, f"{name}/{DATA}") as writer:
            write(writer)
        disk.flush(name)
    except BaseException:
        remove_segment(disk, name)
        raise
    return Folder(name=name, events=events, files={DATA: StoredFile(size=writer.size, checksum=writer.checksum)})


def with_live(disk: Disk, segment: Segment, live: Bits) -> Segment:
    """The segment with these rows as its live ones, in a file of their own. Its folder is to be flushed yet."""
    name = f"live-{secrets.token_hex(8)}"
    with ArrayWriter(disk, f"{segment.name}/{name}") as writer:
        Sets.of(live.rows, [live]).write(writer)
    files = {key: file for key, file in segment.files.items() if key != segment.live}
    files[name] = StoredFile(size=writer.size, checksum=writer.checksum)
    changes: dict[str, Any] = {"live": name, "deleted": live.rows - live.count, "files": files}
    return segment.model_copy(update=changes)


def with_column(disk: Disk, segment: Segment, at: int, column: StoredColumn, bytes_per_row: float) -> Segment:
    """The segment with other values in a column, in files of their own. Its folder is to be flushed yet."""
    mark, files, renewed = secrets.token_hex(8), dict(segment.files), dict(segment.renewed)
    for file, write in ((column_file(at), column), (index_file(at), column.made_index(bytes_per_row))):
        files.pop(segment.named(file), None)
        if write is not None:
            renewed[file] = f"{file}-{mark}"
            with ArrayWriter(disk, f"{segment.name}/{renewed[file]}") as writer:
                write.write(writer)
            files[renewed[file]] = StoredFile(size=writer.size, checksum=writer.checksum)
    return segment.model_copy(update={"files": files, "renewed": renewed})


def remove_segment(disk: Disk, name: str) -> None:
    """As far as the disk lets us: whatever is left is pruned by the next writer."""
    with suppress(DanluError, OSError):
        for file in disk.names(name):
            disk.remove(f"{name}/{file}")
        disk.remove(name)
