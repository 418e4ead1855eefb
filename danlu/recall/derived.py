"""What is made of columns for channels to find rows by: one file each in a segment, made anew where it is damaged.

A new kind is one line in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from danlu.recall.columns.lists import PlainTexts
from danlu.recall.files import ArrayFile, ArrayWriter
from danlu.recall.keywords.postings import Postings
from danlu.recall.manifest import Column


class Made(Protocol):
    """What is made of one column of one segment."""

    def write(self, writer: ArrayWriter) -> None: ...


@dataclass(frozen=True)
class Derived:
    """Attributes:
    what: of a column, as messages say it.
    wanted: whether it is made of a column. make: out of the column as it is kept (columns/).
    read: from its file, for so many rows. Raises Damaged.
    """

    what: str
    wanted: Callable[[Column], bool]
    make: Callable[[Column, Any], Made]
    read: Callable[[ArrayFile, int], Made]


def _postings(_: Column, kept: PlainTexts) -> Postings:
    return Postings.of(kept.texts)


# What its files are called, before a dash and the column's place -> what it is.
DERIVED = {"words": Derived("the words", lambda column: column.keywords, _postings, Postings.read)}


def derived_files(columns: Sequence[Column]) -> list[tuple[str, str, int]]:
    """(file, name in the table, the column's place) of all that is made of these columns."""
    return [
        (derived_file(name, at), name, at)
        for at, column in enumerate(columns)
        for name, kind in DERIVED.items()
        if kind.wanted(column)
    ]


def derived_file(name: str, at: int) -> str:
    return f"{name}-{at}"
