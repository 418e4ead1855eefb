"""Rows that a query of a database file gives: DuckDB's and SQLite's, opened to be read only.

What SQLite holds has no types but those of its values: a column's is that of its values among the first rows. Knows
nothing of collections.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from danlu.errors import ConfigError, DataError

# What such files end in, and where in them they say what they are.
ENDINGS = (".duckdb", ".ddb", ".db", ".sqlite", ".sqlite3")
_SQLITE, _DUCK = b"SQLite format 3\0", b"DUCK"
_BATCH_ROWS = 1 << 17
_SHOWN = 20


@dataclass(frozen=True)
class Database:
    """A source of rows.

    Args:
        path: of the file. sql: a query; None takes the only table.
    """

    path: Path | str
    sql: str | None = None

    @cached_property
    def schema(self) -> pa.Schema:
        """Names and types of the query's columns. Raises DataError."""
        first = next(self.batches(), None)
        if first is None:
            raise DataError(f"{self.path}: the query gives no rows", fix="ask for others, or leave the file out")
        return first.schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Raises DataError for what is no such file, a query that fails, and values that have no kind here."""
        read = _duckdb if self._is_duckdb() else _sqlite
        yield from read(Path(self.path), self.sql)

    def _is_duckdb(self) -> bool:
        try:
            with Path(self.path).open("rb") as file:
                begins = file.read(16)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from error
        if begins[8:12] != _DUCK and begins != _SQLITE:
            raise DataError(f"{self.path} is no database that is read here", allowed="files of DuckDB and SQLite")
        return begins != _SQLITE


def is_database(path: Path) -> bool:
    return path.suffix in ENDINGS


def _only_table(path: Path, tables: Iterable[str]) -> str:
    """A query for all of the only table."""
    listed = sorted(tables)
    if len(listed) != 1:
        named = ", ".join(listed[:_SHOWN]) or "(none)"
        raise ConfigError(f"{path} has {len(listed)} tables", allowed=named, fix='ask one: --sql "select * from NAME"')
    quoted = listed[0].replace('"', '""')
    return f'select * from "{quoted}"'


def _duckdb(path: Path, sql: str | None) -> Iterator[pa.RecordBatch]:
    try:
        import duckdb
    except ModuleNotFoundError as error:
        raise ConfigError(f"{path} is read by duckdb", fix='pip install "danlu[duckdb]"') from error
    try:
        with duckdb.connect(str(path), read_only=True) as opened:
            tables = "select table_name from information_schema.tables where table_schema = current_schema()"
            asked = sql or _only_table(path, (name for (name,) in opened.execute(tables).fetchall()))
            found = opened.sql(asked)
            if found is None:
                raise DataError(f"{path}: the query gives no rows", allowed="select …")
            yield from found.to_arrow_reader(_BATCH_ROWS)
    except duckdb.Error as error:
        raise DataError(f"{path}: {_first_lines(error)}", fix="mend the query") from error


def _sqlite(path: Path, sql: str | None) -> Iterator[pa.RecordBatch]:
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as opened:
            tables = "select name from sqlite_master where type in ('table', 'view') and name not glob 'sqlite_*'"
            asked = sql or _only_table(path, (name for (name,) in opened.execute(tables)))
            cursor = opened.execute(asked)
            if cursor.description is None:
                raise DataError(f"{path}: the query gives no rows", allowed="select …")
            names = [one[0] for one in cursor.description]
            first = list(islice(cursor, _BATCH_ROWS))
            types = [_type_of(path, name, values) for name, values in zip(names, _columns(first, names), strict=True)]
            schema = pa.schema(zip(names, types, strict=True))
            rest = iter(lambda: list(islice(cursor, _BATCH_ROWS)), [])
            at = 1
            for rows in chain([first] if first else [], rest):
                yield _batch(path, rows, schema, at)
                at += len(rows)
    except sqlite3.Error as error:
        raise DataError(f"{path}: {_first_lines(error)}", fix="mend the query") from error


def _columns(rows: list[Any], names: list[str]) -> list[list[Any]]:
    return [[row[at] for row in rows] for at in range(len(names))]


def _type_of(path: Path, name: str, values: list[Any]) -> pa.DataType:
    kinds = {type(value) for value in values} - {type(None)}
    for allowed, type_ in (({int}, pa.int64()), ({int, float}, pa.float64()), ({str}, pa.large_string())):
        if kinds and kinds <= allowed:
            return type_
    if kinds:
        listed = " and ".join(sorted(kind.__name__ for kind in kinds))
        seen = f"{path}: the column {name} holds values of type {listed}"
        raise DataError(seen, allowed="numbers, or texts", fix=f"make one of them in the query: cast({name} as text)")
    return pa.null()


def _batch(path: Path, rows: list[Any], schema: pa.Schema, first: int) -> pa.RecordBatch:
    arrays = []
    for column, values in zip(schema, _columns(rows, schema.names), strict=True):
        try:
            arrays.append(pa.array(values, column.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            seen = (
                f"{path}, rows from {first}: the column {column.name} began with {column.type}: {_first_lines(error)}"
            )
            raise DataError(seen, fix=f"give it one type in the query: cast({column.name} as text)") from error
    return pa.record_batch(arrays, schema)


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
