"""A file -> its rows, each with its place or its fault.

    .jsonl          one object a line                     .csv .tsv    the first line names the columns
    .json           a list of objects, {"data": [...]},   .parquet     one row a record
                    or objects one after another          .txt .md     documents parted by blank lines

All but Parquet also compressed: .jsonl.gz, .bz2, .xz, .zst. A list of messages where a row is due is a row that holds
nothing else. A directory is read as the files in it, sorted. Everything streams: memory does not grow with the file.
Knows no format of rows: whether a table's columns will do, its caller says (`Columns`).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from danlu.data.files import files
from danlu.data.files.cells import cut_of, names_separator
from danlu.data.files.folders import Part
from danlu.data.records import Skipped
from danlu.data.row import Cells, Columns, PartialRow, PlacedRow, Row, RowFault
from danlu.data.shapes.messages import is_python
from danlu.errors import DataError

PARQUET_ROWS = 128  # decoded at once


def placed_rows(
    path: Path,
    columns: Columns,
    *,
    encoding: str | None = None,
    skipped: Skipped | None = None,
    part: Part = "train",
) -> Iterator[PlacedRow]:
    """The rows of a file, or of a directory's files, each with its place or its fault.

    Args:
        columns: asked once a table.
        encoding: of files that are not UTF-8.
        skipped: told of the files that are read, of those of a directory that are not, and of separators found.
        part: which files of a directory.

    Raises DataError: at once for a path that is no readable file; while reading for a table that `columns`
    refuses and for a fault after which the file cannot be read on.
    """
    skipped = Skipped() if skipped is None else skipped
    found, passed_over = files.data_files(path, list(_READERS), encoding, part)
    skipped.files += map(str, found)
    skipped.passed_over |= {str(file): reason for file, reason in passed_over.items()}
    named = {file: str(file.relative_to(path)) if path.is_dir() else file.name for file in found}
    return chain.from_iterable(
        _READERS[files.kind_of(file)](file, Source(name, columns, encoding, skipped)) for file, name in named.items()
    )


@dataclass(frozen=True, slots=True)
class Source:
    """What a reader is told beside its file: `name` is the file's own, or its place in the folder that was named."""

    name: str
    columns: Columns
    encoding: str | None
    skipped: Skipped


_LIST_HINT = "if the file is one list, name it .json"


def _hint(line: str) -> str:
    """What to do about a line that is no JSON, where its beginning tells."""
    if line.startswith("\0"):
        return "NULs, as a crash or a full disk leaves them: remove the line, and write what is missing anew"
    if line.strip() == "{":
        return "if each object stands over several lines, name the file .json"
    if is_python(line):
        return "it looks like a Python object written with str(): write each row with json.dumps"
    return _LIST_HINT if line.startswith("[") else ""


def _is_conversation(value: Any) -> bool:
    """A bare list of messages."""
    turns = isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    return bool(turns) and all(item.keys() & {"role", "from"} for item in value)


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

    def row_at(self, text: str, start: int) -> tuple[Row | RowFault, int]:
        """The object that begins at `start` (or its fault), and where it ends.

        Raises ValueError or RecursionError, as the standard decoder does.
        """
        self._twice.clear()
        value, end = self._decoder.raw_decode(text, start)
        if _is_conversation(value):
            value = {"messages": value}
        if not isinstance(value, dict):
            kind = "a list" if isinstance(value, list) else repr(value)[:60]
            hint = _LIST_HINT if isinstance(value, list) else ""
            return RowFault(f"{kind} instead of a row", allowed="an object of keys and values", fix=hint), end
        if self._twice:
            return RowFault(f"the key {self._twice[0]!r} is given twice", fix="keep one of them"), end
        return value, end

    def row(self, text: str) -> Row | RowFault:
        """The one object in `text`, or its fault."""
        try:
            row, end = self.row_at(text, len(text) - len(text.lstrip()))
        except json.JSONDecodeError as error:
            seen = f"not valid JSON: {error.msg} (column {error.colno})"
            return RowFault(seen, allowed="one object on one line", fix=_hint(text))
        except RecursionError:
            return RowFault("nested too deeply")
        except ValueError as error:  # a number of thousands of digits
            return RowFault(f"not usable JSON: {error}")
        if text[end:].strip():
            return RowFault(f"not valid JSON: more follows the object (column {end + 1})")
        return row


def _jsonl_rows(path: Path, source: Source) -> Iterator[PlacedRow]:
    decoder = _Decoder()
    with files.opened(path, source.encoding) as file:
        for number, line in files.lines(file, source.name):
            text = line.rstrip().lstrip("\ufeff")  # the mark stands inside when files were joined
            if text.strip():
                yield f"{source.name}:{number}", decoder.row(text)


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
        chunk = self.file.read(max(files.CHUNK, len(self.text) - self.at))
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

    def row(self) -> Row | RowFault:
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
        if len(self.text) - self.at > files.ROW_LIMIT:
            raise self.fault(0, f"a row is longer than {files.ROW_LIMIT:,} characters, or is never closed")
        return error.pos > len(self.text) - 16 or error.msg.startswith("Unterminated string")


def _json_rows(path: Path, source: Source) -> Iterator[PlacedRow]:
    with files.opened(path, source.encoding) as file:
        window = _JsonWindow(file, source.name)
        closing = _open_list(window)
        number = 0
        while window.peek() != closing[:1]:
            if number and closing:
                window.expect(",")
                window.peek()
            number += 1
            yield f"{source.name}:{window.line} (item {number})", window.row()
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


def _csv_rows(path: Path, source: Source) -> Iterator[PlacedRow]:
    return _table_rows(path, ",", source)


def _tsv_rows(path: Path, source: Source) -> Iterator[PlacedRow]:
    return _table_rows(path, "\t", source)


def _table_rows(path: Path, delimiter: str, source: Source) -> Iterator[PlacedRow]:
    csv.field_size_limit(max(csv.field_size_limit(), files.ROW_LIMIT))  # the default refuses long answers
    with files.opened(path, source.encoding) as file:
        first = next((line for _, line in files.lines(file, source.name) if line.strip()), "")
    cut = cut_of(first, delimiter, source.columns)
    source.skipped.notes.update(f"{source.name}: {note}" for note in cut.notes)
    header: list[str] = []
    with files.opened(path, source.encoding) as file:
        lines = (line for _, line in files.lines(file, source.name))
        reader = csv.reader(lines, delimiter=cut.separator, skipinitialspace=cut.blanks, strict=True)
        while True:
            place = f"{source.name}:{reader.line_num + 1}"
            cells = _next_cells(reader, place)
            if cells is None:
                return
            if isinstance(cells, RowFault):
                if not header:  # else the next line would be taken for it
                    raise cells.at(place)
                yield place, cells
            elif not any(cells) or (not header and names_separator(cells)):
                continue
            elif not header:
                header = _header(cells, place, source.columns)
            elif len(cells) != len(header):
                yield place, RowFault(f"{len(cells)} fields, but the header names {len(header)}")
            else:
                yield place, Cells(zip(header, cells, strict=True))


def _next_cells(reader: Iterator[list[str]], place: str) -> list[str] | RowFault | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        if "field larger than" in str(error):
            raise DataError(
                f"{place}: a field is longer than {files.ROW_LIMIT:,} characters",
                fix="look for a double quote that is never closed",
            ) from None
        reason = "a quoted field is never closed" if "unexpected end" in str(error) else str(error)
        return RowFault(
            f"not a valid table row: {reason}", fix='put the field in quotes, and write a quote in it as ""'
        )


def _header(cells: list[str], place: str, columns: Columns) -> list[str]:
    names = [cell.strip() for cell in cells]
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise DataError(f"{place}: the column {twice[0]!r} is named twice", fix="keep one of them")
    _chosen(columns, names, place, "if the first line is data already, put a line of column names above it; ")
    return names


def _chosen(columns: Columns, names: list[str], place: str, advice: str = "") -> list[str]:
    try:
        return columns(names)
    except RowFault as fault:
        raise DataError(f"{place}: {fault.seen}", allowed=fault.allowed, fix=advice + fault.fix) from None


def _parquet_rows(path: Path, source: Source) -> Iterator[PlacedRow]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path, buffer_size=2**20) as file:
            names = file.schema_arrow.names
            wanted = _chosen(source.columns, names, source.name)
            others = tuple(name for name in names if name not in wanted)
            for batch in file.iter_batches(PARQUET_ROWS, columns=wanted, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{source.name}:{number}", PartialRow(_without_nulls(row), others)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"{source.name}: not a readable Parquet file (after row {number}): {reason}",
            fix="write the file again; it may have been cut short",
        ) from error


def _without_nulls(value: Any) -> Any:
    """Parquet gives every object of a column all keys of the column: those that are null were not there."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _text_rows(path: Path, source: Source) -> Iterator[PlacedRow]:
    """Documents parted by blank lines; line ends become "\\n"."""
    held: list[str] = []
    start = length = 0
    with files.opened(path, source.encoding) as file:
        for number, line in chain(files.lines(file, source.name), [(0, "")]):
            if line.strip():
                start = start if held else number
                length += len(line)
                if length > files.ROW_LIMIT:
                    raise DataError(
                        f"{source.name}:{start}: a document is longer than {files.ROW_LIMIT:,} characters",
                        fix="part documents by blank lines",
                    )
                held.append(line.rstrip("\r\n"))
            elif held:
                text = "\n".join(held)
                if start == 1:
                    _refuse_json(path, text)
                yield f"{source.name}:{start}", {"text": text}
                held, length = [], 0


def _refuse_json(path: Path, text: str) -> None:
    """Rows in a file of texts would be learnt with their braces."""
    for piece in (text, text.partition("\n")[0]):
        if piece.lstrip()[:1] in ("[", "{"):
            try:
                found = json.loads(piece)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict) or (isinstance(found, list) and found and isinstance(found[0], dict)):
                fix = f"name it {path.stem}.json, or .jsonl with one object a line"
                raise DataError(f"{path}: holds JSON, not text", allowed="documents parted by blank lines", fix=fix)


_READERS: dict[str, Callable[[Path, Source], Iterator[PlacedRow]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".parquet": _parquet_rows,
    ".txt": _text_rows,
    ".md": _text_rows,
}
