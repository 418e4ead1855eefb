"""Named arrays in one file, written once from beginning to end, mapped when read.

    arrays, each from a multiple of 64 bytes on
    a table (JSON): names, types, places; a checksum of every MiB before it
    checksum and length of the table, and eight bytes that say what the file is

Its size is known before it is mapped, since a map that is longer than its file kills the process that reads its end.
The table is checked whenever a file is opened, the arrays when `damage` is asked for. Little-endian throughout.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from danlu.errors import DataError
from danlu.recall.disk import Disk, Sink
from danlu.recall.rows.bits import Array

_MAGIC = b"DANLUar1"
_END = struct.Struct("<IQ8s")
_BLOCK = 1 << 20
_ALIGNED = 64
_TYPES = ("u1", "u2", "u4", "u8", "i4", "i8", "f4", "f8")
# What is handed to the system at once.
_PIECE_BYTES = 1 << 24


class Damaged(DataError):
    """A file of a collection is not what was written."""


class ArrayWriter:
    """Writes arrays one after the other; each may come in pieces. On the disk once its block is left without an error.

    Attributes:
        size, checksum: of the file, and of its table, when it is on the disk.
    """

    def __init__(self, disk: Disk, name: str) -> None:
        self._sink: Sink = disk.create(name)
        self._table: dict[str, tuple[str, list[int], int]] = {}
        self._crcs: list[int] = []
        self._crc = self._in_block = 0
        self.checksum = 0

    @property
    def size(self) -> int:
        return self._sink.size

    def add(self, name: str, array: Array) -> None:
        """One array, of any shape."""
        self.stream(name, array.dtype.str[1:], [array], list(array.shape))

    def stream(self, name: str, kind: str, pieces: Iterable[Array], shape: list[int] | None = None) -> None:
        """An array in pieces, one after the other; without a shape it has one dimension."""
        assert kind in _TYPES, kind
        assert name not in self._table, name
        self._write(memoryview(bytes(-self.size % _ALIGNED)))
        start, dtype = self.size, np.dtype(f"<{kind}")
        for piece in pieces:
            flat = np.ascontiguousarray(piece, dtype).reshape(-1).view(np.uint8)
            for at in range(0, len(flat), _PIECE_BYTES):
                self._write(flat[at : at + _PIECE_BYTES].data)
        length = (self.size - start) // dtype.itemsize
        self._table[name] = (kind, [length] if shape is None else shape, start)

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._close()
        finally:
            self._sink.drop()

    def _close(self) -> None:
        if self._in_block:
            self._crcs.append(self._crc)
        table = json.dumps({"arrays": self._table, "bytes": self.size, "crcs": self._crcs}).encode()
        self.checksum = zlib.crc32(table)
        self._sink.write(table + _END.pack(self.checksum, len(table), _MAGIC))
        self._sink.close()

    def _write(self, data: memoryview) -> None:
        if not len(data):
            return
        self._sink.write(data)
        while len(data):
            some = data[: _BLOCK - self._in_block]
            self._crc = zlib.crc32(some, self._crc)
            self._in_block += len(some)
            if self._in_block == _BLOCK:
                self._crcs.append(self._crc)
                self._crc = self._in_block = 0
            data = data[len(some) :]


class ArrayFile:
    """The arrays of a file, mapped.

    Args:
        size, checksum: as they were when it was written.

    Raises Damaged if the file is missing, or its size or its table is another.
    """

    def __init__(self, disk: Disk, name: str, size: int, checksum: int) -> None:
        self.name, self._place = name, disk.root / name
        try:
            found = disk.size(name)
            if found != size:
                raise Damaged(f"{self._place} has {found} bytes; {size} were written")
            self._data = disk.mapped(name)
        except FileNotFoundError:
            raise Damaged(f"{self._place} is missing") from None
        table = self._read_table(checksum)
        self._bytes, self._crcs = int(table["bytes"]), table["crcs"]
        self._arrays = {key: self._array(*place) for key, place in table["arrays"].items()}

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def names(self) -> list[str]:
        return list(self._arrays)

    def get(self, name: str) -> Array | None:
        return self._arrays.get(name)

    def damage(self) -> str:
        """What is wrong with the arrays, which are read for it; empty if nothing is."""
        blocks = range(0, self._bytes, _BLOCK)
        wrong = []
        for at, crc in zip(blocks, self._crcs, strict=True):
            if zlib.crc32(self._data[at : min(at + _BLOCK, self._bytes)].data) != crc:
                wrong.append(at)
        if not wrong:
            return ""
        seen = f"{len(wrong)} of {len(blocks)} blocks differ from what was written, the first at byte {wrong[0]}"
        return f"{self._place}: {seen}"

    def _read_table(self, checksum: int) -> Any:
        end = bytes(self._data[-_END.size :])
        if len(end) == _END.size:
            crc, length, magic = _END.unpack(end)
            table = bytes(self._data[-_END.size - length : -_END.size]) if length < len(self._data) else b""
            if magic == _MAGIC and crc == checksum == zlib.crc32(table):
                return json.loads(table)
        raise Damaged(f"{self._place}: its table of contents differs from what was written")

    def _array(self, kind: str, shape: list[int], start: int) -> Array:
        dtype = np.dtype(f"<{kind}")
        stop = start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        array: Array = self._data[start:stop].view(dtype).reshape(shape)
        return array
