"""Rows that stand in training data already: 13 words in a row in common, of Chinese 13 characters.

As GPT-3's authors looked for it (Brown et al. 2020, appendix C). A hit says that a text was seen, and not that it
helped: so figures are given with those rows and without them. Training data streams; only the rows to judge are held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from danlu.data.files.rows import placed_rows
from danlu.data.row import RowFault
from danlu.evaluate.overlap import words
from danlu.evaluate.rows import FaultyRow, Row

GRAM = 13


def contaminated(rows: Sequence[Row | FaultyRow], training: Path) -> list[bool]:
    """Of each row, whether its question, context or truth shares 13 words in a row with a text of the training data.

    Shorter texts cannot be told apart from chance, and count as clean. Raises DataError for a file that is not read.
    """
    places: dict[tuple[str, ...], set[int]] = {}
    for at, row in enumerate(rows):
        for text in _asked(row):
            for gram in grams(text):
                places.setdefault(gram, set()).add(at)
    hit: set[int] = set()
    for _, found in placed_rows(training, lambda names: names, part="all") if places else ():
        for text in () if isinstance(found, RowFault) else _texts(found):
            for gram in grams(text):
                hit |= places.get(gram, set())
    return [at in hit for at in range(len(rows))]


def grams(text: str) -> Iterator[tuple[str, ...]]:
    """Every run of 13 words."""
    found = words(text)
    return (tuple(found[at : at + GRAM]) for at in range(len(found) - GRAM + 1))


def _asked(row: Row | FaultyRow) -> list[str]:
    """What was there before anybody answered."""
    if isinstance(row, FaultyRow):
        return []
    return [text for text in (row.question, row.context, row.truth) if text]


def _texts(value: Any) -> Iterator[str]:
    """All texts in a row, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
