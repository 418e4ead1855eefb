"""Everything that a collection asks of the file system, in one place, so that tests can lose power at any point.

A file is written once, under a name that nobody has, and is on the disk when `close` returns. A name is there for
certain once its folder was flushed. Nothing is ever overwritten or renamed. Knows nothing of what files hold.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from danlu.errors import disk_faults
from danlu.recall.rows.bits import Array


class Disk:
    """A folder and what is below it; names are relative to it, with `/` between.

    Raises DiskError for faults of writing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def doing(self, _operation: str, name: str, _data: bytes | memoryview = b"") -> Iterator[None]:
        """Around each operation that changes something: make, create, write, close, link, remove, flush."""
        with disk_faults(self.root / name, "writing the collection"):
            yield

    def make(self, folder: str = "") -> None:
        """Make a folder, which may be there."""
        with self.doing("make", folder):
            (self.root / folder).mkdir(exist_ok=True)

    def create(self, name: str) -> Sink:
        """A new file. Raises FileExistsError within a DiskError if the name is taken."""
        with self.doing("create", name):
            return Sink(self, name, (self.root / name).open("xb", buffering=0))

    def link(self, old: str, new: str) -> None:
        """A second name of a file. Raises FileExistsError if it is taken: of two who try, one succeeds."""
        with self.doing("link", new, old.encode()):
            os.link(self.root / old, self.root / new)

    def remove(self, name: str) -> None:
        """Remove a file or an empty folder; what is not there is no error, and a reader keeps what it has mapped."""
        with self.doing("remove", name), suppress(FileNotFoundError):
            if (self.root / name).is_dir():
                (self.root / name).rmdir()
            else:
                (self.root / name).unlink()

    def flush(self, folder: str = "") -> None:
        """Let the names in a folder outlive a loss of power."""
        with self.doing("flush", folder):
            number = os.open(self.root / folder, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)

    def names(self, folder: str = "") -> list[str]:
        """What lies in a folder, sorted."""
        return sorted(os.listdir(self.root / folder))

    def size(self, name: str) -> int:
        return (self.root / name).stat().st_size

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def mapped(self, name: str) -> Array:
        """The bytes of a file (uint8), read only when they are looked at."""
        with (self.root / name).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:  # which cannot be mapped
                return np.empty(0, np.uint8)
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


class Sink:
    """A file that is being written."""

    def __init__(self, disk: Disk, name: str, file: BinaryIO) -> None:
        self.name, self.size = name, 0
        self._disk, self._file = disk, file

    def write(self, data: bytes | memoryview) -> None:
        """Append; whole or an error."""
        left = memoryview(data).cast("B")
        self.size += len(left)
        with self._disk.doing("write", self.name, left):
            while len(left):
                left = left[self._file.write(left) :]

    def close(self) -> None:
        """Bring all of it to the disk."""
        with self._disk.doing("close", self.name):
            try:
                os.fsync(self._file.fileno())
            finally:
                self._file.close()

    def drop(self) -> None:
        """Close without a care for what becomes of it."""
        with suppress(OSError):
            self._file.close()
