"""A row, where it stands, and what can be wrong with it. Knows no file and no format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from danlu.errors import DataError


class RowFault(Exception):
    """One row is wrong. Whoever knows the row's place makes it a DataError, or counts it."""

    def __init__(self, seen: str, *, allowed: str = "", fix: str = "") -> None:
        super().__init__("; ".join([seen, *([f"allowed: {allowed}"] if allowed else [])]))
        self.seen, self.allowed, self.fix = seen, allowed, fix

    def at(self, place: str) -> DataError:
        """The same as an error of the row at `place`."""
        return DataError(
            f"{place}: {self.seen}",
            allowed=self.allowed,
            fix=self.fix or "mend the row, or leave such rows out with data.on_error=skip",
        )


Row = dict[str, Any]
PlacedRow = tuple[str, Row | RowFault]
# A table's column names -> those to decode; RowFault when a table of such columns is of no use.
Columns = Callable[[list[str]], list[str]]


class Cells(dict[str, Any]):
    """A row of a .csv or .tsv file: every value is a cell's text, whatever it stands for."""


class PartialRow(dict[str, Any]):
    """A row of a table of which some columns were not decoded."""

    def __init__(self, row: Row, not_decoded: tuple[str, ...]) -> None:
        super().__init__(row)
        self.not_decoded = not_decoded
