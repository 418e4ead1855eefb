"""Rows that a step reads: files, or a Python function that yields them, one by one or as batches of pyarrow's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field, model_validator

from danlu.config import Options, PathText
from danlu.data.files.rows import placed_rows
from danlu.data.row import RowFault
from danlu.data.source import function_named
from danlu.errors import ConfigError, DataError
from danlu.fingerprint import of_texts
from danlu.steps.step import Place

_LOOKED_AT = 100  # rows, for the columns of a function


class RowsOptions(Options):
    """Where rows come from: files or a function, one of them."""

    path: PathText | tuple[PathText, ...] | None = Field(None, description="file, folder of files, or a list of them")
    source: str | None = Field(None, description="a Python function that yields rows: package.module:function")
    source_options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of that function")

    @model_validator(mode="after")
    def _one_source(self) -> RowsOptions:
        if (self.path is None) == (self.source is None):
            raise ValueError("give path (files) or source (a Python function), one of them")
        if self.source_options and self.source is None:
            raise ValueError("source_options has no effect without source")
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path or ()

    def digests(self, place: Place) -> dict[str, str]:
        """Path or function -> digest of what it holds. Raises DataError, ConfigError."""
        if self.source is None:
            return place.read(*self.paths)
        first, yielded = self._yielded()
        if not isinstance(first, pa.RecordBatch):
            return {self.source: of_texts(map(repr, yielded))}
        digest = hashlib.sha256()
        for batch in yielded:
            digest.update(batch.serialize())
        return {self.source: digest.hexdigest()}

    def table(self) -> pa.Table:
        """What a function yields. Raises DataError for rows that are no table."""
        first, yielded = self._yielded()
        if isinstance(first, pa.RecordBatch):
            return pa.Table.from_batches(yielded)
        return self._as_table(list(yielded))

    def _as_table(self, rows: list[Any]) -> pa.Table:
        try:
            names = list(dict.fromkeys(name for row in rows for name in row))
            return pa.Table.from_pydict({name: [row.get(name) for row in rows] for name in names})
        except (AttributeError, TypeError, pa.ArrowException) as error:
            seen = f"{self.source}: its rows are no table: {str(error).splitlines()[0]}"
            raise DataError(seen, allowed="mappings of one shape, or batches of pyarrow") from error

    def beginning(self) -> pa.Table:
        """The first of what a function yields, for its columns."""
        first, yielded = self._yielded()
        if isinstance(first, pa.RecordBatch):
            return pa.Table.from_batches([first])
        return self._as_table(list(islice(yielded, _LOOKED_AT)))

    def placed(self) -> Iterator[tuple[dict[str, Any], str]]:
        """(row, its place) of each. Raises DataError for one that is no mapping."""
        rows: Iterable[tuple[Any, str]]
        if self.source is not None:
            _, yielded = self._yielded()
            rows = ((row, f"{self.source}, row {at}") for at, row in enumerate(yielded, 1))
        else:
            each = [placed_rows(Path(path), lambda names: names, part="all") for path in self.paths]
            rows = ((row, place) for place, row in chain.from_iterable(each))
        for row, where in rows:
            if isinstance(row, RowFault) or not isinstance(row, dict):
                raise DataError(f"{where}: {row}" if isinstance(row, RowFault) else f"{where}: no mapping of keys")
            yield row, where

    def _yielded(self) -> tuple[Any, Iterator[Any]]:
        """(the first, all of them). Raises DataError where there is none."""
        assert self.source is not None, "path otherwise"
        function = function_named(self.source, "source")
        try:
            yielded = iter(function(**self.source_options))
            first = next(yielded)
        except TypeError as error:
            raise ConfigError(f"{self.source}: {error}", fix="its keyword arguments stand in source_options") from error
        except StopIteration:
            raise DataError(f"{self.source} yields no row") from None
        return first, chain([first], yielded)
