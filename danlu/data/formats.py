"""Files -> records: messages, alpaca, sharegpt, prompt/completion, preference, plain text.

    .jsonl          one object a line                     .csv .tsv    the first line names the columns
    .json           a list of objects, {"data": [...]},   .parquet     one row a record
                    or objects one after another          .txt .md     documents parted by blank lines

A directory is read as its files, sorted by name. All rows of a path have one format: the one named by the
caller, or else the one whose keys the first readable row has. Everything streams: memory does not grow with
the file. A message leaves here as {"role", "content"} with content always text, and, where the row has them,
"tool_calls" (arguments as a mapping), "name", "tool_call_id", "reasoning_content", and "train": False for an
assistant turn that is not learnt. Other keys of a message are left out.

Knows no tokenizer and no chat template: `data/chat.py` turns records into ids and decides what is learnt.
It is long because each kind of file and each format has its own ways to be wrong; it has two halves, marked
below: files -> rows with their places, and rows -> records.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

from danlu.errors import DataError, nearest

FormatName = Literal["messages", "alpaca", "sharegpt", "prompt_completion", "preference", "text"]
OnError = Literal["raise", "skip"]
Message = dict[str, Any]

# What a row must hold to be of a format.
REQUIRED_KEYS: dict[FormatName, tuple[str, ...]] = {
    "messages": ("messages",),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "preference": ("chosen", "rejected"),
    "text": ("text",),
}
_KNOWN_KEYS = {*chain(*REQUIRED_KEYS.values()), "input", "history", "system", "prompt", "tools", "group"}
ROLES = ("system", "developer", "user", "assistant", "tool")
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "system": "system",
}  # sharegpt's "from" -> role
ROW_LIMIT = 64 * 2**20  # characters of one row; longer "rows" are files without line breaks
CHUNK = 2**18  # characters read at once from a .json file
FAULTS_KEPT = 100
ROWS_TO_RECOGNISE = 100  # a path none of whose first rows has a format is given up
PARQUET_ROWS = 128  # decoded at once


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages to learn from: every assistant turn is learnt, save those that carry "train": False.

    Attributes:
        messages: at least one; the last is an assistant's.
        place: where it was read, such as "train.jsonl:12".
        group: records of one group never part between training and held-out data.
        tools: function schemas offered to the model, each {"type": "function", "function": {...}}.
    """

    messages: tuple[Message, ...]
    place: str
    group: str | None = None
    tools: tuple[dict[str, Any], ...] | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A document to continue pre-training on; all of it is learnt."""

    text: str
    place: str
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Preference:
    """One prompt with a better and a worse answer; both answers open and end with an assistant turn."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    place: str
    group: str | None = None


Record = Conversation | Text | Preference


@dataclass(slots=True)
class Skipped:
    """Faulty rows that were passed over: how many, and the first FAULTS_KEPT as (place, reason)."""

    count: int = 0
    faults: list[tuple[str, str]] = field(default_factory=list)

    def add(self, place: str, reason: str) -> None:
        """Count one row."""
        self.count += 1
        if len(self.faults) < FAULTS_KEPT:
            self.faults.append((place, reason))


class _Fault(Exception):
    """One row is wrong. Whoever knows the row's place makes it a DataError, or counts it."""

    def __init__(self, seen: str, *, allowed: str = "", fix: str = "") -> None:
        super().__init__("; ".join([seen, *([f"allowed: {allowed}"] if allowed else [])]))
        self.seen, self.allowed, self.fix = seen, allowed, fix

    def at(self, place: str) -> DataError:
        return DataError(
            f"{place}: {self.seen}",
            allowed=self.allowed,
            fix=self.fix or "mend the row, or leave such rows out with on_error=skip",
        )


_Row = dict[str, Any]
_PlacedRow = tuple[str, _Row | _Fault]


def read_records(
    path: Path,
    *,
    format: FormatName | None = None,
    on_error: OnError = "raise",
    skipped: Skipped | None = None,
) -> Iterator[Record]:
    """The records of a file, or of a directory's files, one at a time.

    Args:
        path: see the head of this file for the kinds.
        format: how rows are read; None recognises it by the keys of the first readable row.
        on_error: "raise" stops at the first faulty row; "skip" passes over it.
        skipped: told of every row that was passed over.

    Raises:
        DataError: at once for a path that is no readable file; while reading for a faulty row (when
            on_error is "raise"), for a fault after which the file cannot be read on, and at the end
            when there was no usable row.
    """
    if format is not None:
        _check_name(format)
    rows = _rows_of(_files_of(Path(path)))
    return _records(Path(path), rows, format, on_error, Skipped() if skipped is None else skipped)


def format_of(path: Path) -> FormatName:
    """The format that `read_records` recognises in a path: that of the first row with a format's keys.

    Raises DataError when none of the first ROWS_TO_RECOGNISE has them, with the fault of the first row.
    """
    first: DataError | None = None
    for place, row in islice(_rows_of(_files_of(Path(path))), ROWS_TO_RECOGNISE):
        try:
            return _detect(_sound(row))
        except _Fault as fault:
            first = first or fault.at(place)
    raise first or DataError(f"{path}: holds no rows", fix="check that this is the file you meant")


def record_from_row(row: Mapping[str, Any], format: FormatName, place: str) -> Record:
    """One row as a record; `place` says in errors where the row came from.

    Raises DataError for a row that is not of this format.
    """
    _check_name(format)
    try:
        return _record(_given(row), format, place)
    except _Fault as fault:
        raise fault.at(place) from None


def detect_format(row: Mapping[str, Any]) -> FormatName:
    """The one format whose keys this row has; a key that holds None counts as absent.

    Raises DataError when there is none (with the nearest names) or more than one.
    """
    try:
        return _detect(_given(row))
    except _Fault as fault:
        raise DataError(fault.seen, allowed=fault.allowed, fix=fault.fix) from None


def _records(
    path: Path, rows: Iterable[_PlacedRow], format: FormatName | None, on_error: OnError, skipped: Skipped
) -> Iterator[Record]:
    found, before, origin = False, skipped.count, ""
    for place, row in rows:
        try:
            sound = _sound(row)
            if format is None:
                format, origin = _detect(sound), place
            record = _record(sound, format, place, origin)
        except _Fault as fault:
            if on_error == "raise":
                raise fault.at(place) from None
            skipped.add(place, str(fault))
            if format is None and skipped.count - before == ROWS_TO_RECOGNISE:
                break
        else:
            found = True
            yield record
    if not found:
        raise _nothing_usable(path, skipped, before)


def _nothing_usable(path: Path, skipped: Skipped, before: int) -> DataError:
    faulty = skipped.count - before
    if not faulty:
        return DataError(f"{path}: holds no rows", fix="check that this is the file you meant")
    shown = [f"    {place}: {reason}" for place, reason in skipped.faults[before : before + 5]]
    return DataError("\n".join([f"{path}: no usable row; {faulty} faulty, the first:", *shown]))


def _check_name(format: str) -> None:
    if format not in REQUIRED_KEYS:
        hint = nearest(format, REQUIRED_KEYS)
        raise DataError(f"unknown format {format!r} {hint}".rstrip(), allowed=", ".join(REQUIRED_KEYS))


def _clipped(value: Any) -> str:
    return repr(value)[:60]


def _sound(row: _Row | _Fault) -> _Row:
    if isinstance(row, _Fault):
        raise row
    return _given(row)


def _given(row: Mapping[str, Any]) -> _Row:
    if not isinstance(row, Mapping):
        raise _Fault(f"{type(row).__name__} instead of a row", allowed="an object of keys and values")
    return {str(key): value for key, value in row.items() if value is not None}


# --- files -> rows ----------------------------------------------------------------------------------------


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


def _files_of(path: Path) -> list[Path]:
    """The files to read, each looked at from outside: it exists, is not empty, and is of a known kind."""
    try:
        return _looked_at(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{str(path)[:200]}: cannot be read: {reason}", fix="check the path") from error


def _looked_at(path: Path) -> list[Path]:
    if path.is_dir():
        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
        if folders := [entry.name for entry in entries if entry.is_dir()]:
            raise DataError(
                f"{path}: holds directories ({', '.join(folders[:3])})",
                allowed="a file, or a directory that holds nothing but data files",
                fix="name one of them",
            )
        if not entries:
            raise DataError(f"{path}: a directory without files", allowed=", ".join(_READERS))
        return [file for entry in entries for file in _looked_at(entry)]
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"no such file: {path}", fix=nearest(path.name, siblings) or "check the path")
    if not path.is_file():
        raise DataError(f"{path}: not a regular file", allowed=", ".join(_READERS))
    _check_kind(path)
    return [path]


def _check_kind(path: Path) -> None:
    kind = path.suffix.lower()
    if kind not in _READERS:
        raise DataError(
            f"{path}: files of kind {kind!r} are not read" if kind else f"{path}: the name has no extension",
            allowed=", ".join(_READERS),
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


def _rows_of(files: Iterable[Path]) -> Iterator[_PlacedRow]:
    return chain.from_iterable(_READERS[path.suffix.lower()](path) for path in files)


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
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


def _lines(file: TextIO, name: str) -> Iterator[tuple[int, str]]:
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


_LIST_HINT = "if the file is one list, name it .json"


class _Decoder:
    """JSON that refuses a key given twice, which the standard decoder would silently drop."""

    def __init__(self) -> None:
        self._twice: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            keys = [key for key, _ in pairs]
            self._twice.append(next(key for key in keys if keys.count(key) > 1))
        return made

    def row_at(self, text: str, start: int) -> tuple[_Row | _Fault, int]:
        """The object that begins at `start` (or its fault), and where it ends.

        Raises ValueError or RecursionError, as the standard decoder does.
        """
        self._twice.clear()
        value, end = self._decoder.raw_decode(text, start)
        if not isinstance(value, dict):
            kind = "a list" if isinstance(value, list) else _clipped(value)
            hint = _LIST_HINT if isinstance(value, list) else ""
            return _Fault(f"{kind} instead of a row", allowed="an object of keys and values", fix=hint), end
        if self._twice:
            return _Fault(f"the key {self._twice[0]!r} is given twice", fix="keep one of them"), end
        return value, end

    def row(self, text: str) -> _Row | _Fault:
        """The one object in `text`, or its fault."""
        try:
            row, end = self.row_at(text, len(text) - len(text.lstrip()))
        except json.JSONDecodeError as error:
            hint = _LIST_HINT if text.startswith("[") else ""
            seen = f"not valid JSON: {error.msg} (column {error.colno})"
            return _Fault(seen, allowed="one object on one line", fix=hint)
        except RecursionError:
            return _Fault("nested too deeply")
        except ValueError as error:  # a number of thousands of digits
            return _Fault(f"not usable JSON: {error}")
        if text[end:].strip():
            return _Fault(f"not valid JSON: more follows the object (column {end + 1})")
        return row


def _jsonl_rows(path: Path) -> Iterator[_PlacedRow]:
    decoder = _Decoder()
    with _opened(path) as file:
        for number, line in _lines(file, path.name):
            text = line.rstrip().lstrip("\ufeff")  # the mark stands inside when files were joined
            if text.strip():
                yield f"{path.name}:{number}", decoder.row(text)


class _JsonWindow:
    """A moving window of a .json file, so that a list of any length is read in flat memory.

    `text[at:]` is not read yet; `line` is the line of `at`, `behind` the characters of that line that have
    left the window.
    """

    def __init__(self, file: TextIO, name: str) -> None:
        self.file, self.name, self.decoder = file, name, _Decoder()
        self.text, self.at, self.line, self.behind = "", 0, 1, 0

    def fault(self, ahead: int, seen: str) -> DataError:
        """`ahead` is how far past `at` the fault lies."""
        at = self.at + ahead
        newline = self.text.rfind("\n", 0, at)
        line = self.line + self.text.count("\n", self.at, at)
        column = at - newline if newline >= 0 else self.behind + at + 1
        return DataError(
            f"{self.name}:{line}: {seen} (column {column})",
            allowed='a list of objects, {"data": [...]}, or objects one after another',
            fix="mend the file; a .jsonl file, one object a line, can be read past a broken line",
        )

    def more(self) -> bool:
        """Read on, doubling what is unread; False at the end of the file."""
        chunk = self.file.read(max(CHUNK, len(self.text) - self.at))
        newline = self.text.rfind("\n", 0, self.at)
        self.behind = self.at - newline - 1 if newline >= 0 else self.behind + self.at
        self.text, self.at = self.text[self.at :] + chunk, 0
        return bool(chunk)

    def move(self, to: int) -> None:
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def peek(self) -> str:
        """The next character that is no white space; "" at the end of the file."""
        while True:
            blank = re.compile(r"[ \t\r\n]*").match(self.text, self.at)
            self.move(blank.end() if blank else self.at)
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def expect(self, mark: str) -> None:
        if self.peek() != mark:
            raise self.fault(0, f"not valid JSON: no {mark!r} where one is due")
        self.move(self.at + 1)

    def row(self) -> _Row | _Fault:
        """The next value, reading on until it is whole."""
        while True:
            try:
                row, end = self.decoder.row_at(self.text, self.at)
            except json.JSONDecodeError as error:
                ahead = error.pos - self.at
                if self._may_be_cut(error) and self.more():
                    continue
                raise self.fault(ahead, f"not valid JSON: {error.msg}") from None
            except RecursionError:
                raise self.fault(0, "nested too deeply") from None
            except ValueError as error:
                raise self.fault(0, f"not usable JSON: {error}") from None
            if end == len(self.text) and self.more():  # a number may go on
                continue
            self.move(end)
            return row

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """The fault may be only that the window ends inside the value."""
        if len(self.text) - self.at > ROW_LIMIT:
            raise self.fault(0, f"a row is longer than {ROW_LIMIT:,} characters, or is never closed")
        return error.pos > len(self.text) - 16 or error.msg.startswith("Unterminated string")


def _json_rows(path: Path) -> Iterator[_PlacedRow]:
    with _opened(path) as file:
        window = _JsonWindow(file, path.name)
        closing = _open_list(window)
        number = 0
        while window.peek() != closing[:1]:
            if number and closing:
                window.expect(",")
                window.peek()
            number += 1
            yield f"{path.name}:{window.line} (item {number})", window.row()
        for mark in closing:
            window.expect(mark)
        if window.peek():
            raise window.fault(0, "more text follows the list")


def _open_list(window: _JsonWindow) -> str:
    """Step into the list of rows; the marks that must close it ("" when objects stand one after another)."""
    first = window.peek()
    while len(window.text) - window.at < 100 and window.more():
        pass
    wrapped = re.compile(r'\{\s*"data"\s*:\s*\[').match(window.text, window.at)
    if wrapped:
        window.move(wrapped.end())
        return "]}"
    if first == "[":
        window.expect("[")
        return "]"
    if first not in ("{", ""):
        raise window.fault(0, "not a list of rows")
    return ""


def _csv_rows(path: Path) -> Iterator[_PlacedRow]:
    return _table_rows(path, ",")


def _tsv_rows(path: Path) -> Iterator[_PlacedRow]:
    return _table_rows(path, "\t")


def _table_rows(path: Path, delimiter: str) -> Iterator[_PlacedRow]:
    csv.field_size_limit(max(csv.field_size_limit(), ROW_LIMIT))  # the default refuses long answers
    header: list[str] = []
    with _opened(path) as file:
        lines = (line for _, line in _lines(file, path.name))
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            place = f"{path.name}:{reader.line_num + 1}"
            cells = _next_cells(reader, place)
            if cells is None:
                return
            if isinstance(cells, _Fault):
                yield place, cells
            elif not any(cells):
                continue
            elif not header:
                header = _header(cells, place)
            elif len(cells) != len(header):
                yield place, _Fault(f"{len(cells)} fields, but the header names {len(header)}")
            else:
                yield place, _cells_row(header, cells)


def _next_cells(reader: Iterator[list[str]], place: str) -> list[str] | _Fault | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        if "field larger than" in str(error):
            raise DataError(
                f"{place}: a field is longer than {ROW_LIMIT:,} characters",
                fix="look for a double quote that is never closed",
            ) from None
        reason = "a quoted field is never closed" if "unexpected end" in str(error) else str(error)
        return _Fault(f"not a valid table row: {reason}", fix='put the field in quotes, and write a quote in it as ""')


def _header(cells: list[str], place: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise DataError(f"{place}: the column {twice[0]!r} is named twice", fix="keep one of them")
    _check_columns(names, place, "the first line of a table names its columns; ")
    return names


def _check_columns(names: list[str], place: str, advice: str = "") -> None:
    row: _Row = dict.fromkeys(names)
    if not _formats_of(row):
        fault = _no_format(row)
        raise DataError(f"{place}: {fault.seen}", allowed=fault.allowed, fix=advice + fault.fix)


_TURN_KEYS = ("prompt", "completion", "chosen", "rejected")


def _cells_row(header: list[str], cells: list[str]) -> _Row | _Fault:
    """A table's row; a message list in a cell is read as JSON, and never learnt as if it were the text."""
    row: _Row = dict(zip(header, cells, strict=True))
    for key in _TURN_KEYS:
        text = row.get(key, "").strip()
        if re.match(r"\[\s*\{\s*['\"](role|content)['\"]", text):
            try:
                row[key] = json.loads(text)
            except (ValueError, RecursionError):
                return _Fault(f"{key}: looks like a list of messages, but is not JSON", fix="write it as JSON")
    return row


def _parquet_rows(path: Path) -> Iterator[_PlacedRow]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path, buffer_size=2**20) as file:
            names = file.schema_arrow.names
            _check_columns(names, path.name)
            known = [name for name in names if name in _KNOWN_KEYS]
            for batch in file.iter_batches(PARQUET_ROWS, columns=known, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path.name}:{number}", _without_nulls(row)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"{path.name}: not a readable Parquet file (after row {number}): {reason}",
            fix="write the file again; it may have been cut short",
        ) from error


def _without_nulls(value: Any) -> Any:
    """Parquet gives every object of a column all keys of the column: those that are null were not there."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _text_rows(path: Path) -> Iterator[_PlacedRow]:
    """Documents parted by blank lines; line ends become "\\n"."""
    held: list[str] = []
    start = length = 0
    with _opened(path) as file:
        for number, line in chain(_lines(file, path.name), [(0, "")]):
            if line.strip():
                start = start if held else number
                length += len(line)
                if length > ROW_LIMIT:
                    raise DataError(
                        f"{path.name}:{start}: a document is longer than {ROW_LIMIT:,} characters",
                        fix="part documents by blank lines",
                    )
                held.append(line.rstrip("\r\n"))
            elif held:
                yield f"{path.name}:{start}", {"text": "\n".join(held)}
                held, length = [], 0


_READERS: dict[str, Callable[[Path], Iterator[_PlacedRow]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".parquet": _parquet_rows,
    ".txt": _text_rows,
    ".md": _text_rows,
}


# --- rows -> records --------------------------------------------------------------------------------------


def _formats_of(row: _Row) -> list[FormatName]:
    return [name for name, keys in REQUIRED_KEYS.items() if all(key in row for key in keys)]


def _detect(row: _Row) -> FormatName:
    formats = _formats_of(row)
    if not formats:
        raise _no_format(row)
    if len(formats) > 1:
        raise _ambiguous(formats)
    return formats[0]


def _no_format(row: _Row) -> _Fault:
    shown = ", ".join(key[:40] for key in islice(row, 12)) or "(none)"
    wanted = "; ".join(f"{name} ({', '.join(keys)})" for name, keys in REQUIRED_KEYS.items())
    return _Fault(f"the keys match no format: {shown}", allowed=wanted, fix=_near_miss(row))


def _near_miss(row: _Row) -> str:
    """What to do about a row that has some keys of a format, or keys that are nearly one's."""
    for name, keys in REQUIRED_KEYS.items():
        missing = [key for key in keys if key not in row]
        if len(missing) < len(keys):
            return f"{name} also needs {missing[0]!r} {nearest(missing[0], islice(row, 12))}".rstrip()
    every = [key for keys in REQUIRED_KEYS.values() for key in keys]
    hints = [f"{key!r}: {hint}" for key in islice(row, 12) if (hint := nearest(key[:40], every))]
    return "; ".join(hints) or "rename the keys to those of one format"


def _ambiguous(formats: list[FormatName]) -> _Fault:
    return _Fault(
        f"the row has the keys of more than one format: {' and '.join(formats)}",
        allowed="the keys of one format, or the format named",
        fix=f"name the format, such as format={formats[0]}",
    )


def _record(row: _Row, format: FormatName, place: str, origin: str = "") -> Record:
    """`origin` is the place of the row whose keys chose the format; "" when the user named it."""
    _check_format(row, format, origin)
    try:
        return _PARSERS[format](row, place)
    except RecursionError:
        raise _Fault("nested too deeply") from None


def _check_format(row: _Row, format: FormatName, origin: str) -> None:
    formats = _formats_of(row)
    if format in formats:
        if len(formats) > 1 and origin:
            raise _ambiguous(formats)
        return
    if formats:
        since = f" since {origin}" if origin else ""
        raise _Fault(
            f"mixed formats: this row is {formats[0]}, but the data is read as {format}{since}",
            allowed="rows of one format",
            fix="part the formats into files of their own",
        )
    missing = next(key for key in REQUIRED_KEYS[format] if key not in row)
    raise _Fault(f"{format} needs the key {missing!r} {nearest(missing, islice(row, 12))}".rstrip())


def _from_messages(row: _Row, place: str) -> Conversation:
    return _conversation(row, _messages(row["messages"], "messages"), place)


def _from_alpaca(row: _Row, place: str) -> Conversation:
    turns: list[Message] = []
    for index, pair in enumerate(_listed(row.get("history") or [], "history")):
        where = f"history[{index}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise _Fault(f"{where}: not a pair", allowed="[user, assistant]")
        turns += [_turn("user", pair[0], where), _turn("assistant", pair[1], where)]
    parts = [_text(row.get(key, ""), key) for key in ("instruction", "input")]
    question = "\n\n".join(part for part in parts if part.strip())
    turns += [_turn("user", question, "instruction"), _turn("assistant", row["output"], "output")]
    return _conversation(row, tuple(turns), place)


def _from_sharegpt(row: _Row, place: str) -> Conversation:
    items = _listed(row["conversations"], "conversations")
    turns = (_sharegpt_turn(item, f"conversations[{index}]") for index, item in enumerate(items))
    return _conversation(row, tuple(turns), place)


def _sharegpt_turn(item: Any, where: str) -> Message:
    """{"from", "value"}, or with the same speakers {"role", "content"}, which many such files hold."""
    if not isinstance(item, Mapping):
        raise _Fault(f"{where}: {type(item).__name__} instead of a turn", allowed='{"from", "value"}')
    message = _given(item)
    for theirs, ours in (("from", "role"), ("value", "content")):
        if theirs in message:
            message[ours] = message.pop(theirs)
        elif ours not in message:
            raise _Fault(f"{where}: no {theirs!r} {nearest(theirs, message)}".rstrip())
    speaker = message["role"]
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise _Fault(f"{where}: unknown speaker {_clipped(speaker)}", allowed=", ".join(SPEAKERS))
    if speaker == "function_call":
        calls = _from_json(message.pop("content"), where)
        message["tool_calls"] = calls if isinstance(calls, list) else [calls]
    return _message({**message, "role": SPEAKERS[speaker]}, where)


def _from_prompt_completion(row: _Row, place: str) -> Conversation:
    prompt = _turns(row["prompt"], "prompt", "user")
    completion = _turns(row["completion"], "completion", "assistant")
    _check_is_answer(completion, "completion")
    unlearnt = ({**message, "train": False} if message["role"] == "assistant" else message for message in prompt)
    return _conversation(row, (*unlearnt, *completion), place)


def _from_preference(row: _Row, place: str) -> Preference:
    if row.get("tools"):
        raise _Fault("tools are not supported in preference rows", fix="leave the key out")
    chosen = _turns(row["chosen"], "chosen", "assistant")
    rejected = _turns(row["rejected"], "rejected", "assistant")
    prompt = _turns(row["prompt"], "prompt", "user") if row.get("prompt") else ()
    shared = _shared_opening(chosen, rejected)
    # Many files give the prompt and repeat it at the head of both answers.
    if not prompt or prompt in (shared[: len(prompt)], shared[-len(prompt) :]):
        prompt, chosen, rejected = shared, chosen[len(shared) :], rejected[len(shared) :]
    if not prompt:
        raise _Fault(
            "no prompt: chosen and rejected open with different messages",
            allowed="a key 'prompt', or two message lists that open alike",
        )
    prompt = _with_system(row, prompt)
    _check_is_answer(chosen, "chosen")
    _check_is_answer(rejected, "rejected")
    if chosen == rejected:
        raise _Fault("chosen and rejected are the same")
    return Preference(prompt, chosen, rejected, place, _group(row))


def _shared_opening(one: tuple[Message, ...], other: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages that both lists begin with, leaving each at least its last."""
    length, most = 0, min(len(one), len(other)) - 1
    while length < most and one[length] == other[length]:
        length += 1
    return one[:length]


def _check_is_answer(messages: tuple[Message, ...], key: str) -> None:
    for message, does in ((messages[0], "opens"), (messages[-1], "ends")):
        if message["role"] != "assistant":
            raise _Fault(f"{key} {does} with a {message['role']} turn", allowed="an assistant turn")


def _from_text(row: _Row, place: str) -> Text:
    if not isinstance(row["text"], str):
        raise _Fault(f"text is {type(row['text']).__name__}", allowed="text")
    text = _text(row["text"], "text")
    if not text.strip():
        raise _Fault("text is empty")
    return Text(text, place, _group(row))


_PARSERS: dict[FormatName, Callable[[_Row, str], Record]] = {
    "messages": _from_messages,
    "alpaca": _from_alpaca,
    "sharegpt": _from_sharegpt,
    "prompt_completion": _from_prompt_completion,
    "preference": _from_preference,
    "text": _from_text,
}
assert set(_PARSERS) == set(REQUIRED_KEYS) == set(get_args(FormatName))


def _conversation(row: _Row, messages: tuple[Message, ...], place: str) -> Conversation:
    if not messages:
        raise _Fault("the conversation is empty", allowed="at least one assistant turn")
    messages = _with_system(row, messages)
    if messages[-1]["role"] != "assistant":
        raise _Fault(f"the last turn is {messages[-1]['role']}", allowed="assistant: its answer is learnt")
    if not any(message["role"] == "assistant" and message.get("train", True) for message in messages):
        raise _Fault("nothing to learn: every assistant turn has train=false or weight=0")
    return Conversation(messages, place, _group(row), _tools(row))


def _with_system(row: _Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The row's own "system" goes first, in every chat format."""
    system = _text(row.get("system", ""), "system")
    if not system.strip():
        return messages
    if messages[0]["role"] in ("system", "developer"):
        raise _Fault("two system prompts: the key 'system' and the first message", fix="keep one of them")
    return ({"role": "system", "content": system}, *messages)


def _group(row: _Row) -> str | None:
    group = row.get("group", "")
    if isinstance(group, bool) or not isinstance(group, str | int):
        raise _Fault(f"group is {type(group).__name__}", allowed="text or a whole number")
    return _text(str(group), "group") or None


def _turns(value: Any, key: str, role: str) -> tuple[Message, ...]:
    """Plain text is one turn of `role`; a list is messages."""
    if isinstance(value, str):
        return (_turn(role, value, key),)
    if not isinstance(value, list | tuple):
        raise _Fault(f"{key} is {type(value).__name__}", allowed="text or a list of messages")
    return _messages(value, key)


def _messages(value: Any, key: str) -> tuple[Message, ...]:
    items = _listed(value, key)
    if not items:
        raise _Fault(f"{key} is empty", allowed="at least one message")
    return tuple(_message(item, f"{key}[{index}]") for index, item in enumerate(items))


def _turn(role: str, content: Any, where: str) -> Message:
    return _message({"role": role, "content": content}, where)


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise _Fault(f"{where}: {type(item).__name__} instead of a message", allowed='{"role", "content"}')
    given = _given(item)
    if "role" not in given:
        raise _Fault(f"{where}: no 'role' {nearest('role', given)}".rstrip())
    role = given["role"]
    if role not in ROLES:
        raise _Fault(f"{where}: unknown role {_clipped(role)}", allowed=", ".join(ROLES))
    message = {"role": role, "content": "", **_call_keys(given, role, where)}
    if "content" in given:
        message["content"] = _text(given["content"], where)
    elif "tool_calls" not in message:
        raise _Fault(f"{where}: no 'content' {nearest('content', given)}".rstrip())
    if role in ("user", "assistant") and not message["content"].strip() and "tool_calls" not in message:
        raise _Fault(f"{where}: the {role} turn is empty")
    if not _is_learnt(given, role, where):
        message["train"] = False
    return message


def _call_keys(given: _Row, role: str, where: str) -> Message:
    """What a message holds beside role and content, checked."""
    if "function_call" in given:
        raise _Fault(f"{where}: 'function_call' is an old form", fix="write it as tool_calls")
    keys: Message = {
        key: _text(given[key], f"{where}.{key}")
        for key in ("name", "tool_call_id", "reasoning_content")
        if key in given
    }
    if calls := given.get("tool_calls"):
        if role != "assistant":
            raise _Fault(f"{where}: tool_calls in a {role} turn", allowed="only in an assistant turn")
        listed = _listed(calls, f"{where}.tool_calls")
        keys["tool_calls"] = [_tool_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(listed)]
    return keys


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    """{"type", "function": {"name", "arguments"}} with arguments as a mapping, as chat templates want it."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise _Fault(f"{where}: no function name", allowed='{"function": {"name", "arguments"}}')
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = _from_json(arguments, f"{where}.arguments")
    if not isinstance(arguments, Mapping):
        raise _Fault(f"{where}.arguments is {type(arguments).__name__}", allowed="an object, or its JSON text")
    normal: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}
    if isinstance(call.get("id"), str):
        normal = {"id": call["id"], **normal}
    _check_plain(normal, where)
    return normal


def _tools(row: _Row) -> tuple[dict[str, Any], ...] | None:
    tools = []
    for index, tool in enumerate(_listed(row.get("tools") or [], "tools")):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise _Fault(f"tools[{index}]: no function name", allowed='{"type", "function": {"name", ...}}')
        tools.append({"type": "function", "function": dict(function)})
        _check_plain(tools[-1], f"tools[{index}]")
    return tuple(tools) or None


def _is_learnt(given: _Row, role: str, where: str) -> bool:
    """`train` (true, false) or OpenAI's `weight` (0, 1) of an assistant turn; True when neither is given."""
    train, weight = given.get("train"), given.get("weight")
    if train is not None and not isinstance(train, bool):
        raise _Fault(f"{where}: train is {_clipped(train)}", allowed="true or false")
    if weight is not None and weight not in (0, 1):
        raise _Fault(f"{where}: weight is {_clipped(weight)}", allowed="0 or 1")
    if role != "assistant":
        if train:
            raise _Fault(f"{where}: train=true in a {role} turn", allowed="only assistant turns are learnt")
        return True
    if train is not None and weight is not None and train != bool(weight):
        raise _Fault(f"{where}: train and weight disagree", fix="keep one of them")
    return train is not False and weight != 0


_UNUSABLE = re.compile(r"[\x00\ud800-\udfff]")


def _text(value: Any, where: str) -> str:
    """Text, or OpenAI's list of text parts joined."""
    if isinstance(value, list | tuple):
        value = "".join(_part(part, f"{where}, part {index}") for index, part in enumerate(value))
    if not isinstance(value, str):
        raise _Fault(f"{where}: {type(value).__name__} instead of text", allowed="text, or a list of text parts")
    if found := _UNUSABLE.search(value):
        name = "a NUL" if found[0] == "\0" else f"half of a surrogate pair, U+{ord(found[0]):04X},"
        raise _Fault(f"{where}: {name} at character {found.start()}", fix="remove it")
    return value


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(text, str):
        raise _Fault(
            f"{where}: {_clipped(kind)} content", allowed='{"type": "text", "text": ...}; Danlu trains on text'
        )
    return text


def _listed(value: Any, key: str) -> list[Any]:
    """A list, or the JSON text of one, as tables hold it."""
    if isinstance(value, str):
        value = _from_json(value, key)
    if not isinstance(value, list | tuple):
        raise _Fault(f"{key} is {type(value).__name__}", allowed="a list")
    return list(value)


def _from_json(value: Any, where: str) -> Any:
    if not isinstance(value, str):
        raise _Fault(f"{where}: {type(value).__name__} instead of JSON text")
    try:
        return json.loads(value)
    except ValueError as error:
        raise _Fault(f"{where}: not valid JSON: {error}") from None


def _check_plain(value: Any, where: str) -> None:
    """Calls and tools hold nothing but what JSON and UTF-8 can say."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise _Fault(f"{where}: not plain JSON: {error}") from None
