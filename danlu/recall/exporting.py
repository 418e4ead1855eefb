"""Tables, one after the other -> one file; it is there under its name when it is whole."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from danlu.errors import ConfigError, disk_faults


def check_new(path: Path, endings: Sequence[str], flag: str = "--out") -> None:
    """Raises ConfigError unless the path is one of a new file with one of these endings, in a folder that is there."""
    if path.suffix not in endings:
        raise ConfigError(f"{flag} {path}: no kind of file that is written", allowed=", ".join(endings))
    if path.exists():
        raise ConfigError(f"{flag} {path} exists", fix="choose another name, or remove it")
    if not path.parent.is_dir():
        raise ConfigError(f"{flag} {path}: there is no folder {path.parent}", fix="make it, or choose another")


def write(path: Path, tables: Iterator[pa.Table]) -> None:
    """The tables as one file of the kind that its name ends in; the first says the columns. Raises DiskError."""
    with disk_faults(path, "writing the rows"):
        WRITERS[path.suffix](path, tables)


def _parquet(path: Path, tables: Iterator[pa.Table]) -> None:
    from pyarrow import parquet

    first = next(tables)
    with whole(path) as place, parquet.ParquetWriter(place, first.schema) as writer:
        for table in chain([first], tables):
            writer.write_table(table)


def _csv(path: Path, tables: Iterator[pa.Table]) -> None:
    """Tags and vectors as one text, with commas between."""
    from pyarrow import csv

    first = _flat(next(tables))
    with whole(path) as place, csv.CSVWriter(place, first.schema) as writer:
        for table in chain([first], map(_flat, tables)):
            writer.write_table(table)


def _flat(table: pa.Table) -> pa.Table:
    for at, one in enumerate(table.schema):
        if pa.types.is_large_list(one.type) or pa.types.is_fixed_size_list(one.type):
            joined = [None if tags is None else ",".join(map(str, tags)) for tags in table.column(at).to_pylist()]
            table = table.set_column(at, one.name, pa.array(joined, pa.large_string()))
    return table


def _jsonl(path: Path, tables: Iterator[pa.Table]) -> None:
    with whole(path) as place, place.open("w", encoding="utf-8") as file:
        for table in tables:
            file.writelines(json.dumps(row, ensure_ascii=False, default=_as_text) + "\n" for row in table.to_pylist())


def _as_text(value: Any) -> str:
    text: str = value.isoformat()
    return text


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place to write to; what stands there in the end has the path's name, after an error nothing has."""
    place = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield place
        os.replace(place, path)
    finally:
        place.unlink(missing_ok=True)


WRITERS: dict[str, Callable[[Path, Iterator[pa.Table]], None]] = {
    ".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl,
}  # fmt: skip
