"""Rows whose vectors are near one that is given, or near that of a text."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from danlu.errors import ConfigError
from danlu.recall.channels.base import Opened
from danlu.recall.columns.vectors import Vectors
from danlu.recall.embedding import question_vector
from danlu.recall.query import Found, Query, given_for
from danlu.recall.rows.bits import Array
from danlu.recall.rowset import RowSet
from danlu.recall.vectors.index import VectorIndex
from danlu.recall.vectors.search import nearest

_LEAST = {"cosine": -1.0}


class Nearest:
    """The vectors of one column."""

    def __init__(self, opened: Opened, at: int) -> None:
        self._column = opened.columns[at]
        self.name = f"vector:{self._column.name}"
        self._opened, self._at = opened, at

    def find(self, query: Query, rows: RowSet, k: int) -> Found | None:
        wanted = self._wanted(query)
        if wanted is None:
            return None
        found = nearest(self._indexes, rows.parts, wanted[None], min(k, max(len(rows), 1)))
        there = found.rows[0] >= 0
        least = _LEAST.get(self._column.metric)
        return Found(found.rows[0][there], found.scores[0][there].astype(np.float64), least)

    def _wanted(self, query: Query) -> Array | None:
        if query.vector is not None:
            given = given_for(query.vector, self._column.name)
            return None if given is None else self._checked(given)
        if query.like is None or self._column.embedder is None:
            return None
        return question_vector(self._column.embedder, query.like)

    def _checked(self, given: Any) -> Array:
        with np.errstate(over="ignore"):  # what is too large is said below
            wanted = np.asarray(given, np.float32)
        if wanted.shape != (self._column.dim,) or not np.isfinite(wanted).all():
            seen = f"a vector of shape {wanted.shape} for {self._column.name}"
            raise ConfigError(seen, allowed=f"{self._column.dim} finite numbers")
        return wanted

    @cached_property
    def _indexes(self) -> list[VectorIndex]:
        made = []
        for segment in self._opened.segments:
            column = segment.columns[self._at]
            assert isinstance(column, Vectors)
            made.append(segment.derived("near", self._at).over(column.values, column.known))
        return made


def vector_channels(opened: Opened) -> Iterator[Nearest]:
    return (Nearest(opened, at) for at, column in enumerate(opened.columns) if column.kind == "vector")
