"""A column of vectors: floats of 32 bits, so many a row. They are not filtered; what finds them is made beside them."""

from __future__ import annotations

from dataclasses import dataclass

from danlu.recall.columns.asked import Known, Test
from danlu.recall.columns.base import Base
from danlu.recall.columns.sets import Sets
from danlu.recall.files import ArrayWriter
from danlu.recall.rows.bits import Array
from danlu.recall.rows.tree import Not, Tree


@dataclass
class Vectors(Base):
    """Attributes:
    values: (rows, dim) float32; zeros where it is null.
    """

    values: Array

    def write(self, writer: ArrayWriter) -> None:
        Sets.of(self.known.rows, [self.known]).write(writer, "known.")
        writer.add("vectors", self.values)

    def made_index(self, bytes_per_row: float) -> None:
        return None

    def passing(self, test: Test, negated: bool) -> Tree:
        assert isinstance(test, Known)
        return Not(self.known) if negated else self.known

    def taken(self, rows: Array) -> tuple[Array, Array]:
        return self.values[rows], self.mask(rows)
