"""A path -> the data files behind it, looked at from outside, and their lines.

Whatever cannot be read as text is named for what it is: an archive, an Office document, another encoding (with the
option that reads it). Knows no rows: `data/files/rows.py` reads those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TextIO

from danlu.data.files import encodings
from danlu.data.files.encodings import COMPRESSED, opened_bytes, wide_encoding, wrong_encoding
from danlu.data.files.folders import Part, PassedOver, files_of
from danlu.errors import DataError, nearest

ROW_LIMIT = 64 * 2**20  # characters of one row; longer "rows" are files without line breaks
CHUNK = encodings.CHUNK  # characters read at once where lines may be of any length

_ARCHIVES = {".zip", ".7z", ".tar", ".tgz", ".rar", ".lz4", ".br"}
_SHEETS = {".xlsx", ".xls", ".xlsm", ".ods", ".numbers"}
_MAGIC = {
    b"PAR1": "Parquet (name it .parquet)",
    b"PK\x03\x04": "a zip archive or an Office document (unpack it, or export it as CSV)",
    b"\x1f\x8b": "gzip (name it .gz)",
    b"BZh": "bzip2 (name it .bz2)",
    b"\xfd7zXZ": "xz (name it .xz)",
    b"\x28\xb5\x2f\xfd": "zstd (name it .zst)",
    b"7z\xbc\xaf": "7-zip (decompress it first)",
    b"%PDF": "PDF (extract its text first)",
    b"version https://git-lfs": "a Git LFS pointer (fetch the file itself: git lfs pull)",
    b"ARROW1": "Arrow IPC (write it as Parquet)",
    b"\xd0\xcf\x11\xe0": "an old Office document (export it as CSV)",
}
_OWN = {".parquet": b"PAR1"}


def kind_of(path: Path) -> str:
    """The ending that says how a file is read: ".jsonl" of a.jsonl and of a.jsonl.gz."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() in COMPRESSED else path.suffix.lower()


def data_files(
    path: Path, kinds: Sequence[str], encoding: str | None = None, part: Part = "train"
) -> tuple[list[Path], PassedOver]:
    """(files to read, what is passed over and why): the file itself, or a folder's data files (data/files/folders.py).

    Each file to read is looked at from outside.

    Args:
        kinds: the endings of names that will do, such as ".jsonl".
        encoding: of files that are not UTF-8.
        part: which files of a folder.

    Raises DataError for a path that is not there, holds no data, or is of another kind.
    """
    try:
        return _looked_at(path, kinds, encoding, part)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{str(path)[:200]}: cannot be read: {reason}", fix="check the path") from error


def _looked_at(path: Path, kinds: Sequence[str], encoding: str | None, part: Part) -> tuple[list[Path], PassedOver]:
    if path.is_dir():
        found, passed_over = files_of(path, lambda file: kind_of(file) in kinds, part)
        if not found:
            shown = ", ".join(str(file.relative_to(path)) for file in list(passed_over)[:5])
            seen = f"{path}: a directory without data files" + (f"; it holds {shown}" if shown else "")
            raise DataError(seen, allowed=", ".join(kinds))
        for file in found:
            _check_kind(file, kinds, encoding)
        return found, passed_over
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"no such file: {path}", fix=nearest(path.name, siblings) or "check the path")
    if not path.is_file():
        raise DataError(f"{path}: not a regular file", allowed=", ".join(kinds))
    _check_kind(path, kinds, encoding)
    return [path], {}


def _check_kind(path: Path, kinds: Sequence[str], encoding: str | None) -> None:
    kind = kind_of(path)
    if kind not in kinds:
        raise DataError(
            f"{path}: files of kind {kind!r} are not read" if kind else f"{path}: the name has no extension",
            allowed=f"{', '.join(kinds)}; compressed as {', '.join(COMPRESSED)}",
            fix=_how_to_read(kind),
        )
    if kind == ".parquet" and path.suffix.lower() != kind:
        raise DataError(f"{path}: a Parquet file inside another", fix="decompress it: Parquet compresses by itself")
    with opened_bytes(path) as file:
        head = file.read(4096)
    if not head:
        raise DataError(f"{path}: the file is empty", fix="check that this is the file you meant")
    _check_magic(path, kind, head)
    if kind != ".parquet":
        _check_is_text(path, kind, head, encoding)


def _how_to_read(kind: str) -> str:
    """What to do about a file of another kind."""
    if not kind:
        return "give it the ending of what it holds, such as .jsonl"
    if kind in _SHEETS:
        return "export the sheet as CSV (UTF-8)"
    return "decompress it first" if kind in _ARCHIVES else "convert it to JSON Lines (.jsonl)"


def _check_magic(path: Path, kind: str, head: bytes) -> None:
    """Raises DataError for what begins as a file of another kind does."""
    found = next((name for magic, name in _MAGIC.items() if head.startswith(magic) and magic != _OWN.get(kind)), "")
    if kind not in (".txt", ".md") and head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        found = "a web page (look at what was downloaded)"
    if found:
        raise DataError(f"{path}: not {kind} but {found}", allowed=f"what a {kind} file holds")


def _check_is_text(path: Path, kind: str, head: bytes, encoding: str | None) -> None:
    wide = wide_encoding(head)
    if encoding and wide:
        return
    if wide:
        raise wrong_encoding(f"{path}: not UTF-8", wide)
    if b"\0" in head:
        raise DataError(
            f"{path}: a binary file (NUL at byte {head.index(0)})",
            allowed=f"text in a {kind} file",
            fix="check that this is the file you meant; NULs inside a text are to be removed",
        )
    if kind != ".json" and b"\n" not in head and b"\r" in head[:-1]:
        raise DataError(
            f"{path}: its lines end with a carriage return alone, as old Macs wrote them",
            allowed="lines that end with a line feed",
            fix=f"write them anew: tr '\\r' '\\n' < {path.name} > new{kind}",
        )


def opened(path: Path, encoding: str | None = None) -> AbstractContextManager[TextIO]:
    """A text file, decompressed, line ends kept as they are; its faults become DataError."""
    return encodings.opened_text(path, encoding)


def lines(file: TextIO, name: str) -> Iterator[tuple[int, str]]:
    """(line number from 1, line with its end); DataError for a line past ROW_LIMIT."""
    number = 0
    while line := file.readline(ROW_LIMIT + 1):
        number += 1
        if len(line) > ROW_LIMIT:
            raise DataError(
                f"{name}:{number}: the line is longer than {ROW_LIMIT:,} characters",
                allowed="one record a line",
                fix="check the line ends; a list of objects belongs in a .json file",
            )
        yield number, line
