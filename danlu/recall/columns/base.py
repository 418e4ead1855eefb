"""What all kinds of columns can do, and share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from danlu.recall.columns.asked import Test
from danlu.recall.columns.forms import Index
from danlu.recall.files import ArrayWriter, Damaged
from danlu.recall.rows.bits import EMPTY, Array, Bits, member
from danlu.recall.rows.tree import And, Not, Tree


class Column(Protocol):
    """What all kinds of columns can do."""

    known: Bits

    def write(self, writer: ArrayWriter) -> None: ...

    def made_index(self, bytes_per_row: float) -> Index | None:
        """The index that fits into so many bytes a row; None for what has none."""

    def use(self, index: Callable[[], Index]) -> None:
        """Where the index is had from, when it is needed."""

    def probe(self) -> None:
        """Have the index now."""

    def passing(self, test: Test, negated: bool) -> Tree:
        """The rows that pass the test; negated, those that fail it. Null neither passes nor fails, save for Known."""

    def taken(self, rows: Array) -> tuple[Array | list[Any], Array]:
        """Values of these rows, and which of them are not null."""


@dataclass
class Base:
    known: Bits
    _index: Callable[[], Index] | None = field(default=None, repr=False, kw_only=True)

    def use(self, index: Callable[[], Index]) -> None:
        self._index = index

    def probe(self) -> None:
        _ = self.index

    @cached_property
    def index(self) -> Index:
        assert self._index is not None
        return self._index()

    @property
    def nothing(self) -> Tree:
        return Bits.whole(self.known.rows, EMPTY)

    def among_known(self, tree: Tree, negated: bool = False) -> Tree:
        if negated:
            return And((self.known, Not(tree)))
        return tree if self.known.count == self.known.rows else And((self.known, tree))

    def mask(self, rows: Array) -> Array:
        """Which of the rows are not null."""
        return member(self.known, rows)


def checked(codes: Array, most: int) -> Array:
    """The codes (int64). Raises Damaged for one that no value has."""
    if codes.max(initial=0) > most:
        raise Damaged("a column holds a code that no value has", fix="look for damaged files: danlu recall check")
    return codes.astype(np.int64)
