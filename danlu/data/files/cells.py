"""How the lines of a table are cut into cells: found out from its first lines.

Knows no files and no formats of rows: whether columns of such names are of use, its caller says (`Columns`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from danlu.data.row import Columns, RowFault

SEPARATORS = ",;\t|"


@dataclass(frozen=True, slots=True)
class Cut:
    """Attributes:
    separator: between two cells.
    blanks: a blank follows each separator and belongs to no cell.
    notes: what differs from the usual, in words.
    """

    separator: str
    blanks: bool = False
    notes: tuple[str, ...] = ()


def cut_of(first: str, usual: str, columns: Columns) -> Cut:
    """How a table whose first line is `first` is cut.

    At the separator that the line itself names, as spreadsheets write it ("sep=;"), else at the usual one, unless
    the line names known columns only when cut at another.
    """
    if named := separator_named(first):
        return Cut(named, notes=(f"columns are parted by {named!r}",) if named != usual else ())
    for separator in (usual, *(other for other in SEPARATORS if other != usual)):
        names = _cells(first, separator)
        if _are_of_use([name.strip() for name in names], columns):
            blanks = len(names) > 1 and all(name.startswith(" ") for name in names[1:])
            notes = [f"columns are parted by {separator!r}"] if separator != usual else []
            notes += ["the blank after each separator belongs to no cell"] if blanks else []
            return Cut(separator, blanks, tuple(notes))
    return Cut(usual)


def separator_named(line: str) -> str:
    """What a line such as "sep=;" names; "" for any other line."""
    text = line.rstrip("\r\n").strip('"')
    return text[4:] if text.casefold().startswith("sep=") and text[4:] in (*SEPARATORS,) else ""


def names_separator(cells: Sequence[str]) -> bool:
    """Whether these are the cells that a line such as "sep=;" is cut into."""
    return cells[0].casefold() in ("sep=", *(f"sep={separator}" for separator in SEPARATORS)) and not any(cells[1:])


def _cells(line: str, separator: str) -> list[str]:
    lines: Iterator[str] = iter([line])
    try:
        return next(csv.reader(lines, delimiter=separator), [])
    except csv.Error:  # the line will be read as a row, and be its fault
        return []


def _are_of_use(names: list[str], columns: Columns) -> bool:
    try:
        columns(names)
    except RowFault:
        return False
    return True
