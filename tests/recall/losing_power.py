"""What may be found on a disk after a loss of power: every prefix of what was done, in each form.

The model is that of journalling file systems without ordered data: what a file holds is certain once it was synced, a
name once its folder was. What is not certain may be there, not there, or in parts.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from danlu.recall.disk import Disk

SECTOR = 512
# kept: all that was done is there. dropped: nothing that was not made certain. torn: files end within what was not
# synced, at a sector. zeros: they have their length, and zeros instead. names lost: files are whole, their names gone.
FORMS = ("kept", "dropped", "torn", "zeros", "names lost")


class Recording(Disk):
    """Remembers what was done: (operation, name, data)."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.done: list[tuple[str, str, bytes]] = []

    @contextmanager
    def doing(self, operation: str, name: str, data: bytes | memoryview = b"") -> Iterator[None]:
        self.done.append((operation, name, bytes(data)))
        with super().doing(operation, name, data):
            yield


class Failing(Disk):
    """Its n-th operation, counted from 0, and all after it fail."""

    def __init__(self, root: Path, n: int, code: int = errno.ENOSPC, *, once: bool = False) -> None:
        super().__init__(root)
        self.left, self._code, self._once = n, code, once

    @contextmanager
    def doing(self, operation: str, name: str, data: bytes | memoryview = b"") -> Iterator[None]:
        with super().doing(operation, name, data):
            self.left -= 1
            if self.left == -1 or (self.left < 0 and not self._once):
                raise OSError(self._code, "as asked for", str(self.root / name))
            yield


class _File:
    def __init__(self, data: bytes = b"", synced: int = 0) -> None:
        self.data, self.synced = bytearray(data), synced

    def after(self, form: str) -> bytes:
        certain, rest = bytes(self.data[: self.synced]), len(self.data) - self.synced
        if form == "dropped":
            return certain
        if form == "torn":
            return bytes(self.data[: self.synced + rest // 2 // SECTOR * SECTOR])
        return certain + bytes(rest) if form == "zeros" else bytes(self.data)


def _flushed(folder: str, certain: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What is certain once the names in a folder are."""

    def is_inside(name: str) -> bool:
        return name.rpartition("/")[0] == folder

    return {n: f for n, f in certain.items() if not is_inside(n)} | {n: f for n, f in now.items() if is_inside(n)}


def after(before: Path, done: list[tuple[str, str, bytes]], form: str, into: Path) -> Path:
    """The folder as it may be found when power was lost after these operations on what stood in `before`."""
    folders = {"", *(str(p.relative_to(before)) for p in before.rglob("*") if p.is_dir())}
    names = {
        str(p.relative_to(before)): _File(p.read_bytes(), p.stat().st_size) for p in before.rglob("*") if p.is_file()
    }
    certain, certain_folders = dict(names), set(folders)
    for operation, name, data in done:
        if operation == "make":
            folders.add(name)
        elif operation == "create":
            names[name] = _File()
        elif operation == "write":
            names[name].data += data
        elif operation == "close":
            names[name].synced = len(names[name].data)
        elif operation == "link":
            names[name] = names[data.decode()]
        elif operation == "remove":
            names.pop(name, None)
            folders.discard(name)
        else:
            assert operation == "flush", operation
            certain = _flushed(name, certain, names)
            certain_folders = {*_flushed(name, dict.fromkeys(certain_folders), dict.fromkeys(folders)), ""}
    if form in ("dropped", "names lost"):
        names, folders = certain, certain_folders
    into.mkdir()
    for folder in sorted(folders - {""}):
        (into / folder).mkdir(exist_ok=True)
    for name, file in names.items():
        if (into / name).parent.is_dir():  # a folder whose name is lost takes its files with it
            (into / name).write_bytes(file.after(form))
    return into
