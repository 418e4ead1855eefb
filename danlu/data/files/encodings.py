"""Bytes -> text: files compressed or not, in UTF-8 or in an encoding that the user names.

A file that is UTF-8 is read as UTF-8 whatever is named, so that one option serves a folder of both kinds.
Knows no rows and no kinds of data.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from danlu.errors import DataError, nearest

CHUNK = 2**18  # characters or bytes read at once where lines may be of any length
ENCODINGS = ("utf-8", "gb18030", "gbk", "big5", "shift_jis", "euc-kr", "utf-16", "utf-32", "cp1252", "latin-1")


def _plain(path: Path) -> BinaryIO:
    return path.open("rb")


def _zstd(path: Path) -> BinaryIO:
    import pyarrow

    arrow: Any = pyarrow
    return cast(BinaryIO, io.BufferedReader(arrow.CompressedInputStream(arrow.OSFile(str(path)), "zstd")))


_OPENERS: dict[str, Callable[[Path], BinaryIO]] = {
    ".gz": lambda path: cast(BinaryIO, gzip.GzipFile(path)),
    ".bz2": lambda path: cast(BinaryIO, bz2.BZ2File(path)),
    ".xz": lambda path: cast(BinaryIO, lzma.LZMAFile(path)),  # noqa: SIM115 - opened_bytes closes it
    ".zst": _zstd,
}
COMPRESSED = tuple(_OPENERS)


@contextmanager
def opened_bytes(path: Path) -> Iterator[BinaryIO]:
    """What the file holds, decompressed; its faults become DataError."""
    try:
        with _OPENERS.get(path.suffix.lower(), _plain)(path) as file:
            yield file
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: not a whole {path.suffix} file: {error}", fix="compress it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}", fix="check the file") from error


@contextmanager
def opened_text(path: Path, encoding: str | None = None) -> Iterator[TextIO]:
    """A text file, line ends kept as they are; its faults become DataError."""
    used = encoding if encoding and not _is_utf8(path) else "utf-8-sig"
    try:
        with opened_bytes(path) as file, io.TextIOWrapper(file, encoding=used, newline="\n") as text:
            yield text
    except UnicodeDecodeError as error:
        if used == "utf-8-sig":
            raise _not_utf8(path) from None
        raise DataError(f"{path.name}: not {used}: {error.reason}", fix="name another data.encoding") from None
    except UnicodeError as error:  # UTF-16 without its mark
        raise DataError(f"{path.name}: not {used}: {error}", fix="name another data.encoding") from None


def check_encoding(encoding: str) -> str:
    """The encoding's name. Raises ValueError for one that Python does not have."""
    try:
        "".encode(encoding)
    except LookupError:
        hint = nearest(encoding, ENCODINGS)
        raise ValueError(f"unknown encoding {encoding!r} {hint}; for example {', '.join(ENCODINGS)}") from None
    return encoding


def _is_utf8(path: Path) -> bool:
    """Whether the first CHUNK that is not plain ASCII, or all of the file, reads as UTF-8."""
    with opened_bytes(path) as file:
        while piece := file.read(CHUNK):
            if not piece.isascii() or b"\0" in piece:
                break
        else:
            return True
    try:
        codecs.getincrementaldecoder("utf-8")().decode(piece)
    except UnicodeDecodeError:
        return False
    return b"\0" not in piece


def wide_encoding(head: bytes) -> str:
    """UTF-16 or UTF-32 by its mark, or by NULs that fill one half of the bytes; "" for anything else."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    even, odd = head[::2].count(0), head[1::2].count(0)
    if even + odd < 3 or min(even, odd) * 10 > max(even, odd):
        return ""
    return "UTF-16LE" if odd > even else "UTF-16BE"


def wrong_encoding(seen: str, encoding: str) -> DataError:
    """The error that names what the text seems to be, and the option that reads it."""
    return DataError(
        f"{seen}; it looks like {encoding}",
        allowed="UTF-8, or the encoding that data.encoding names",
        fix=f"set data.encoding={encoding.lower()}",
    )


def _not_utf8(path: Path) -> DataError:
    """Find the first byte that is not UTF-8, and guess what the text is."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, offset, piece = 1, 0, b""
    with opened_bytes(path) as file:
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
        return wrong_encoding(seen, encoding)
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
