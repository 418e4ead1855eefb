"""Files and tables -> batches of rows with the columns of a collection.

Parquet, CSV, JSONL and Arrow files, a folder of them, a query of a database file, or what pyarrow holds in memory; read
in batches, so a source may be larger than memory. What does not fit the columns is an error that names file and column.
Knows nothing of segments.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from danlu.errors import ConfigError, DataError, nearest
from danlu.recall.databases import ENDINGS, Database, is_database
from danlu.recall.fitted import (
    ARROW,
    arrow_type,
    first_line,
    fitted,
    is_list,
    is_list_of_texts,
    is_number,
    is_text,
    padded,
)
from danlu.recall.manifest import Column, Kind
from danlu.recall.options import BuildOptions

BATCH_ROWS = 1 << 17
_BLOCK_BYTES = 1 << 24
SOURCE, ROW = "_source", "_row"
# What a file's name ends in -> how it is read.
_ENDINGS = {
    ".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip

Given: TypeAlias = "str | Path | pa.Table | pa.RecordBatch | Database"


@dataclass(frozen=True)
class Source:
    """Where rows come from.

    Attributes:
        given: a file, a folder of files, a table, or a query of a database.
        names: column there -> column of the collection, where they are called differently.
        label: what stands in the column _source of its rows; by default the file's name.
    """

    given: Given
    names: Mapping[str, str] = field(default_factory=dict)
    label: str | None = None

    def parts(self) -> list[tuple[str, Given]]:
        """(name, file or table) of each part. Raises DataError for a file that is not there or of an unknown kind."""
        if isinstance(self.given, Database):
            return [(self.label or Path(self.given.path).name, self.given)]
        if not isinstance(self.given, (str, Path)):
            return [(self.label or "table", self.given)]
        path = Path(self.given)
        if path.is_file() and is_database(path):
            return [(self.label or path.name, Database(path))]
        if path.is_dir():
            files = [file for file in sorted(path.iterdir()) if file.suffix in _ENDINGS]
        elif path.is_file():
            files = [path]
        else:
            raise DataError(f"{path}: no such file or folder")
        if not files or any(file.suffix not in _ENDINGS for file in files):
            raise DataError(f"{path}: no kind of file that is read here", allowed=", ".join([*_ENDINGS, *ENDINGS]))
        return [(self.label or file.name, file) for file in files]

    def columns(self) -> list[str]:
        """Names of the columns of all its parts, as the collection has them."""
        there = (self.names.get(name, name) for _, part in self.parts() for name in _peeked(part).names)
        return list(dict.fromkeys(there))


def schema_of(sources: Sequence[Source], options: BuildOptions) -> list[Column]:
    """The columns of a new collection: those of all sources together. Raises DataError where kinds differ."""
    found: dict[str, tuple[Kind, str]] = {}
    for source in sources:
        for where, part in source.parts():
            schema = _peeked(part)
            _check_names(source.names, schema.names, where)
            for name, type_ in _renamed(schema, source.names):
                if options.columns is not None and name not in options.columns:
                    continue
                if name in (SOURCE, ROW):
                    raise DataError(f"{where}: a column is called {name}, which Danlu writes itself", fix="rename it")
                _add_kind(found, name, type_, where, options)
    named = {
        *options.tags,
        *options.text,
        *options.embed,
        *options.vector,
        *options.kinds,
        *(options.columns or ()),
        *([options.id] if options.id else []),
    }
    if missing := sorted(named - found.keys()):
        fix = nearest(missing[0], found)
        raise ConfigError(f"no source has a column {missing[0]!r}", allowed=", ".join(found) or "(none)", fix=fix)
    columns = [_column(name, kind, sources, options) for name, (kind, _) in found.items()]
    _check_id(columns, options.id)
    return [*([] if options.id else [Column(name=ROW, kind="integer")]), *columns, Column(name=SOURCE, kind="word")]


def _add_kind(
    found: dict[str, tuple[Kind, str]], name: str, type_: pa.DataType, where: str, options: BuildOptions
) -> None:
    if pa.types.is_null(type_) and name in found:
        return
    kind = _kind(name, type_, where, options)
    earlier, place = found.get(name, (kind, where))
    if earlier != kind and {earlier, kind} != {"integer", "real"}:
        seen = f"column {name} is of kind {kind} in {where} and {earlier} in {place}"
        raise DataError(seen, fix=f"say which it is: kinds {name}={earlier}, or leave the column out")
    found[name] = ("real" if earlier != kind else kind, place)


def _kind(name: str, type_: pa.DataType, where: str, options: BuildOptions) -> Kind:
    if name in options.tags:
        return "tags"
    if name in (*options.text, *options.embed):
        return "text"
    if name in options.vector:
        if not (pa.types.is_null(type_) or (is_list(type_) and is_number(type_.value_type))):
            raise DataError(
                f"{where}: column {name} is of type {type_}, which is no vector", allowed="lists of numbers"
            )
        return "vector"
    return options.kinds[name] if name in options.kinds else _kind_of(type_, name, where)


def _column(name: str, kind: Kind, sources: Sequence[Source], options: BuildOptions) -> Column:
    if kind != "vector":
        return Column(name=name, kind=kind, keywords=name in options.text)
    dims = (_dim(part, _theirs(source.names, name)) for source in sources for _, part in source.parts())
    dim = next((dim for dim in dims if dim), 0)
    if not dim:
        raise DataError(f"column {name}: no row of any source has a vector", fix="leave the column out")
    return Column(name=name, kind="vector", dim=dim, metric=options.metric)


def _dim(part: Given, name: str) -> int:
    """Numbers in a vector, as the type says, or else the first row that has one; 0 if none has."""
    schema = _peeked(part)
    if name not in schema.names:
        return 0
    if pa.types.is_fixed_size_list(schema.field(name).type):
        return int(schema.field(name).type.list_size)
    for batch in _batches(part, (), {}):
        if name in batch.schema.names and is_list(batch.schema.field(name).type):
            length = pc.max(pc.list_value_length(batch.column(name))).as_py()
            if length:
                return int(length)
    return 0


def _check_id(columns: Sequence[Column], id_column: str | None) -> None:
    kind = next((column.kind for column in columns if column.name == id_column), None)
    if kind not in (None, "integer", "word"):
        raise ConfigError(f"the id {id_column} is of kind {kind}", allowed="whole numbers, or text")


def _check_names(names: Mapping[str, str], there: Sequence[str], where: str) -> None:
    for theirs in names:
        if theirs not in there:
            raise ConfigError(f"{where} has no column {theirs!r}", allowed=", ".join(there), fix=nearest(theirs, there))


def _renamed(schema: pa.Schema, names: Mapping[str, str]) -> list[tuple[str, pa.DataType]]:
    listed = [(names.get(one.name, one.name), one.type) for one in schema]
    twice = {name for name, _ in listed if [other for other, _ in listed].count(name) > 1}
    if twice:
        raise DataError(f"two columns are called {sorted(twice)[0]!r}", fix="rename one of them")
    return listed


def _kind_of(type_: pa.DataType, name: str, where: str) -> Kind:
    if pa.types.is_dictionary(type_):
        return _kind_of(type_.value_type, name, where)
    tests: list[tuple[Any, Kind]] = [
        (pa.types.is_boolean, "boolean"), (pa.types.is_integer, "integer"), (pa.types.is_floating, "real"),
        (pa.types.is_decimal, "real"), (pa.types.is_date, "date"), (pa.types.is_timestamp, "time"),
        (is_text, "word"), (pa.types.is_null, "word"), (is_list_of_texts, "tags"),
    ]  # fmt: skip
    for is_so, kind in tests:
        if is_so(type_):
            return kind
    raise DataError(
        f"{where}: column {name} is of type {type_}, which has no kind here",
        allowed="numbers, text, booleans, dates, times, lists of text",
        fix=f"name it as a vector: vector={name}" if is_list(type_) else "leave it out: name the columns to take",
    )


# -- batches ----------------------------------------------------------------------------------------------

# What a file without types is told; of dates, times and tags it shows itself how they are written.
_SAID: tuple[Kind, ...] = ("integer", "real", "boolean", "word", "text")


@dataclass(frozen=True)
class Batch:
    """Rows with every column of the collection but _row. where: file and first row, for messages."""

    where: str
    arrays: dict[str, pa.Array]
    rows: int


def batches(
    source: Source, columns: Sequence[Column], *, take: Sequence[str] | None, separator: str
) -> Iterator[Batch]:
    """The rows of a source, in order. Raises DataError for what does not fit the columns.

    Args:
        take: the columns to take, by their names in the collection; None is all.
    """
    known = {column.name: column for column in columns}
    for label, part in source.parts():
        _check_names(source.names, _peeked(part).names, label)
        at = 1
        for batch in _batches(part, columns, source.names):
            where = f"{label}, rows from {at}"
            arrays = {}
            for name, type_ in _renamed(batch.schema, source.names):
                if take is not None and name not in take:
                    continue
                if name not in known or name in (SOURCE, ROW):
                    fix = nearest(name, known) or "leave it out: name the columns to take"
                    raise DataError(
                        f"{where}: the collection has no column {name!r}", allowed=", ".join(known), fix=fix
                    )
                given = batch.column(batch.schema.get_field_index(_theirs(source.names, name)))
                arrays[name] = fitted(given, known[name], separator, where, type_)
            for column in columns:
                if column.name not in arrays and column.name not in (SOURCE, ROW):
                    arrays[column.name] = pa.nulls(batch.num_rows, arrow_type(column))
            arrays[SOURCE] = pa.array([label] * batch.num_rows, pa.large_string()).dictionary_encode()
            yield Batch(where, arrays, batch.num_rows)
            at += batch.num_rows


def _theirs(names: Mapping[str, str], ours: str) -> str:
    return next((theirs for theirs, name in names.items() if name == ours), ours)


def _batches(part: Given, columns: Sequence[Column], names: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
    if isinstance(part, pa.RecordBatch):
        yield part
    elif isinstance(part, pa.Table):
        yield from part.to_batches(max_chunksize=BATCH_ROWS)
    elif isinstance(part, Database):
        yield from part.batches()
    else:
        path = Path(part)
        types = {
            _theirs(names, column.name): ARROW[column.kind]
            for column in columns
            if column.kind in _SAID and column.name not in (SOURCE, ROW)
        }
        try:
            yield from _READERS[_ENDINGS[path.suffix]](path, types)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError) as error:
            fix = "the kind of a column is seen from the first rows: name it if later ones differ, as in kinds age=real"
            raise DataError(f"{path}: {first_line(error)}", fix=fix) from error
        except OSError as error:
            raise DataError(f"{path} cannot be read: {first_line(error)}") from error


def _parquet(path: Path, _types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=BATCH_ROWS)


def _arrow(path: Path, _types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(path)) as file:
        try:
            reader = pa.ipc.open_file(file)
            yield from (reader.get_batch(at) for at in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            file.seek(0)
            yield from pa.ipc.open_stream(file)


def _csv(path: Path, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    from pyarrow import csv

    # Whole numbers are read as text, so that a zero before one is seen.
    types = {name: pa.large_string() if pa.types.is_integer(type_) else type_ for name, type_ in types.items()}
    with csv.open_csv(
        path,
        read_options=csv.ReadOptions(block_size=_BLOCK_BYTES),
        parse_options=csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True),
        # Nothing between two commas is null, "" is a text of no length, and NA may be Namibia.
        convert_options=csv.ConvertOptions(
            column_types=types, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
        ),
    ) as reader:
        yield from reader


def _jsonl(path: Path, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    with path.open("rb") as file:
        while lines := file.readlines(_BLOCK_BYTES):
            yield from _json_table(b"".join(lines), types).to_batches(max_chunksize=BATCH_ROWS)


def _json_table(block: bytes, types: Mapping[str, pa.DataType]) -> pa.Table:
    from pyarrow import json

    if not block.strip():
        return pa.table({})
    options = json.ParseOptions(explicit_schema=pa.schema(list(types.items())), newlines_in_values=False)
    return json.read_json(io.BytesIO(block), json.ReadOptions(block_size=len(block) + 1), options)


def _with_codes(path: Path, schema: pa.Schema) -> pa.Schema:
    """Of what looks like whole numbers, those are texts that have a zero before them."""
    whole = {one.name: one.type for one in schema if pa.types.is_integer(one.type)}
    read = next(_csv(path, whole))
    for at, one in enumerate(schema):
        if one.name in whole and padded(read.column(at)) is not None:
            schema = schema.set(at, pa.field(one.name, pa.large_string()))
    return schema


_READERS = {"parquet": _parquet, "arrow": _arrow, "csv": _csv, "jsonl": _jsonl}


def _peeked(part: Given) -> pa.Schema:
    """Names and types; of a file without types, as its first rows show them."""
    if not isinstance(part, (str, Path)):
        return part.schema
    path, kind = Path(part), _ENDINGS[Path(part).suffix]
    try:
        if kind == "parquet":
            import pyarrow.parquet as pq

            return pq.read_schema(path)
        first = next(iter(_READERS[kind](path, {})), None)
        if first is not None and kind == "csv":
            return _with_codes(path, first.schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError, OSError) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}") from error
    if first is None:
        raise DataError(f"{path} holds no rows", fix="leave it out")
    return first.schema
