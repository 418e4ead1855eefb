"""A path -> the data files behind it, looked at from outside, and their text.

Whatever cannot be read as UTF-8 text is named for what it is: an archive, an Office document, another encoding
(with the command that converts it). Knows no rows: `data/rows.py` reads those.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from danlu.errors import DataError, nearest

ROW_LIMIT = 64 * 2**20  # characters of one row; longer "rows" are files without line breaks
CHUNK = 2**18  # characters or bytes read at once where lines may be of any length

_COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar", ".tgz"}
_MAGIC = {
    b"PAR1": "Parquet (name it .parquet)",
    b"PK\x03\x04": "a zip archive or an Office document (unpack it, or export it as CSV)",
    b"\x1f\x8b": "gzip (decompress it first)",
    b"BZh": "bzip2 (decompress it first)",
    b"\xfd7zXZ": "xz (decompress it first)",
    b"\x28\xb5\x2f\xfd": "zstd (decompress it first)",
    b"7z\xbc\xaf": "7-zip (decompress it first)",
    b"%PDF": "PDF (extract its text first)",
    b"ARROW1": "Arrow IPC (write it as Parquet)",
    b"\xd0\xcf\x11\xe0": "an old Office document (export it as CSV)",
}


def data_files(path: Path, kinds: Sequence[str]) -> list[Path]:
    """The file, or a directory's files sorted by name, each looked at from outside.

    Args:
        kinds: the endings of names that will do, such as ".jsonl".

    Raises DataError for a path that is not there, is empty, or is of another kind.
    """
    try:
        return _looked_at(path, kinds)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{str(path)[:200]}: cannot be read: {reason}", fix="check the path") from error


def _looked_at(path: Path, kinds: Sequence[str]) -> list[Path]:
    if path.is_dir():
        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
        if folders := [entry.name for entry in entries if entry.is_dir()]:
            raise DataError(
                f"{path}: holds directories ({', '.join(folders[:3])})",
                allowed="a file, or a directory that holds nothing but data files",
                fix="name one of them",
            )
        if not entries:
            raise DataError(f"{path}: a directory without files", allowed=", ".join(kinds))
        return [file for entry in entries for file in _looked_at(entry, kinds)]
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"no such file: {path}", fix=nearest(path.name, siblings) or "check the path")
    if not path.is_file():
        raise DataError(f"{path}: not a regular file", allowed=", ".join(kinds))
    _check_kind(path, kinds)
    return [path]


def _check_kind(path: Path, kinds: Sequence[str]) -> None:
    kind = path.suffix.lower()
    if kind not in kinds:
        raise DataError(
            f"{path}: files of kind {kind!r} are not read" if kind else f"{path}: the name has no extension",
            allowed=", ".join(kinds),
            fix="decompress it first" if kind in _COMPRESSED else "convert it to JSON Lines (.jsonl)",
        )
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        raise DataError(f"{path}: the file is empty", fix="check that this is the file you meant")
    if kind != ".parquet":
        _check_is_text(path, head)


def _check_is_text(path: Path, head: bytes) -> None:
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            raise DataError(f"{path}: not text but {name}", allowed=f"UTF-8 text in a {path.suffix} file")
    if encoding := _wide_encoding(head):
        raise _wrong_encoding(path, f"{path}: not UTF-8", encoding)
    if b"\0" in head:
        raise DataError(
            f"{path}: a binary file (NUL at byte {head.index(0)})",
            allowed=f"UTF-8 text in a {path.suffix} file",
        )


def _wide_encoding(head: bytes) -> str:
    """UTF-16 or UTF-32 by its mark, or by NULs that fill one half of the bytes; "" for anything else."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    even, odd = head[::2].count(0), head[1::2].count(0)
    if even + odd < 3 or min(even, odd) * 10 > max(even, odd):
        return ""
    return "UTF-16LE" if odd > even else "UTF-16BE"


def _wrong_encoding(path: Path, seen: str, encoding: str) -> DataError:
    return DataError(
        f"{seen}; it looks like {encoding}",
        allowed="UTF-8",
        fix=f"convert it with: iconv -f {encoding} -t UTF-8 {path.name} > utf8-{path.name}",
    )


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """A UTF-8 file, line ends kept as they are; its faults become DataError."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            yield file
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _not_utf8(path: Path) -> DataError:
    """Find the first byte that is not UTF-8, and guess what the text is."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, offset, piece = 1, 0, b""
    with path.open("rb") as file:
        while True:
            carried = decoder.getstate()[0]
            piece = file.readline(CHUNK)
            try:
                decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                at = offset - len(carried) + error.start
                seen = f"{path.name}:{line}: not UTF-8 (byte 0x{error.object[error.start]:02X} at offset {at})"
                break
            line += piece.endswith(b"\n")
            offset += len(piece)
            if not piece:  # another process mended the file meanwhile
                return DataError(f"{path.name}: changed while it was read")
    if encoding := _narrow_encoding(carried + piece):
        return _wrong_encoding(path, seen, encoding)
    return DataError(seen, allowed="UTF-8", fix="mend the broken bytes, or save the file as UTF-8")


def _narrow_encoding(line: bytes) -> str:
    """GB18030 or Windows-1252 if the line reads as such; "" for UTF-8 with a few broken bytes."""
    decoded = line.decode("utf-8", "replace")
    if sum(character >= "\u0800" for character in decoded if character != "\ufffd") > decoded.count("\ufffd"):
        return ""
    if not re.search(rb"[\x80-\xff]{2}", line):  # Chinese comes in runs, accents come alone
        return "Windows-1252"
    try:
        line.rstrip(b"\r\n").decode("gb18030")
    except UnicodeDecodeError as error:
        cut = error.end >= len(line) and len(line) >= CHUNK  # a piece of a long line ends inside a character
        return "GB18030" if cut else ""
    return "GB18030"


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
