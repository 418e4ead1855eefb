"""Rows whose vectors are near one that is given, or near that of a text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from danlu.errors import ConfigError
from danlu.recall.channels.base import Opened, joined
from danlu.recall.columns.vectors import Vectors
from danlu.recall.embedding import question_vector
from danlu.recall.query import Found, Query, given_for
from danlu.recall.rows.bits import Array, Bits
from danlu.recall.rows.kernels import answered
from danlu.recall.rows.kernels import kernels as set_kernels
from danlu.recall.rows.tree import And, Question
from danlu.recall.rowset import RowSet

_BLOCK_ROWS = 1 << 14
_LEAST = {"cosine": -1.0}


class Nearest:
    """The vectors of one column, each compared with the one that is asked for."""

    def __init__(self, opened: Opened, at: int) -> None:
        self._column = opened.columns[at]
        self.name = f"vector:{self._column.name}"
        self._opened, self._at = opened, at

    def find(self, query: Query, rows: RowSet, k: int) -> Found | None:
        wanted = self._wanted(query)
        return None if wanted is None else joined(self._scored(wanted, rows), k, _LEAST.get(self._column.metric))

    def _wanted(self, query: Query) -> Array | None:
        if query.vector is not None:
            given = given_for(query.vector, self._column.name)
            return None if given is None else self._checked(given)
        if query.like is None or self._column.embedder is None:
            return None
        return question_vector(self._column.embedder, query.like)

    def _checked(self, given: Any) -> Array:
        wanted = np.asarray(given, np.float32)
        if wanted.shape != (self._column.dim,) or not np.isfinite(wanted).all():
            seen = f"a vector of shape {wanted.shape} for {self._column.name}"
            raise ConfigError(seen, allowed=f"{self._column.dim} finite numbers")
        return wanted

    def _scored(self, wanted: Array, rows: RowSet) -> Iterator[tuple[int, Array, Array]]:
        for start, segment, part in zip(rows.snapshot.starts[:-1], self._opened.segments, rows.parts, strict=True):
            column = segment.columns[self._at]
            assert isinstance(column, Vectors)
            here = _places(column.known, part)
            scores = [
                _scores(column.values[here[at : at + _BLOCK_ROWS]], wanted, self._column.metric)
                for at in range(0, len(here), _BLOCK_ROWS)
            ]
            yield start, here, np.concatenate([np.empty(0), *scores])


def _places(known: Bits, part: Bits) -> Array:
    (both,) = answered([Question(part.rows, And((part, known)))])
    return set_kernels().places(both, 0, len(both.kinds), both.rows)


def _scores(values: Array, wanted: Array, metric: str) -> Array:
    """The larger the nearer; minus the square of the distance for l2."""
    values, wanted = values.astype(np.float64), wanted.astype(np.float64)
    if metric == "l2":
        squares: Array = -np.square(values - wanted).sum(1)
        return squares
    products: Array = values @ wanted
    if metric == "inner_product":
        return products
    lengths = np.sqrt(np.square(values).sum(1)) * np.sqrt(np.square(wanted).sum())
    return products / np.where(lengths > 0, lengths, np.inf)


def vector_channels(opened: Opened) -> Iterator[Nearest]:
    return (Nearest(opened, at) for at, column in enumerate(opened.columns) if column.kind == "vector")
