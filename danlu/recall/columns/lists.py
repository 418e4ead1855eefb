"""Columns of lists and of long texts: tags, which are filtered by, and texts, which are only kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from danlu.recall.columns import forms
from danlu.recall.columns.asked import AllOf, Known, Like, OneOf, Test
from danlu.recall.columns.base import Base, checked
from danlu.recall.columns.forms import EACH, Index
from danlu.recall.columns.sets import Sets
from danlu.recall.columns.texts import Dictionary, Texts, like_codes
from danlu.recall.files import ArrayWriter
from danlu.recall.rows.bits import Array, Bits
from danlu.recall.rows.tree import And, Not, Or, Tree


@dataclass
class TagLists(Base):
    """Attributes:
    starts: int64, where the codes of each row begin, and their end. codes: uint32, from 1, those of a row differ.
    """

    starts: Array
    codes: Array
    dictionary: Dictionary

    def write(self, writer: ArrayWriter) -> None:
        Sets.of(self.known.rows, [self.known]).write(writer, "known.")
        writer.add("places", self.starts)
        writer.add("codes", self.codes)
        self.dictionary.texts.write(writer)

    def made_index(self, bytes_per_row: float) -> Index:
        """A set for each tag, or for those that most rows have; no budget leaves them out: a scan takes far longer."""
        order = np.argsort(self.codes, kind="stable")
        rows = np.repeat(np.arange(self.known.rows), np.diff(self.starts))[order]
        cuts = np.searchsorted(self.codes[order], np.arange(1, len(self.dictionary) + 2))
        which = np.arange(1, len(self.dictionary) + 1)
        if len(which) > forms.MOST_SETS:
            which = np.sort(np.argsort(-np.diff(cuts), kind="stable")[: forms.MOST_SETS] + 1)
        sets = [Bits.of(self.known.rows, rows[cuts[code - 1] : cuts[code]]) for code in which.tolist()]
        return Index(Sets.of(self.known.rows, sets), {EACH: (0, len(sets), 0)}, which)

    def rows_with(self, code: int) -> Bits:
        """The rows that have a tag: its set, or looked for among all tags of all rows."""
        which = self.index.which
        assert which is not None
        at = int(np.searchsorted(which, code))
        if at < len(which) and which[at] == code:
            return self.index.sets[at]
        return Bits.of(
            self.known.rows, np.searchsorted(self.starts, np.flatnonzero(self.codes == code), side="right") - 1
        )

    def passing(self, test: Test, negated: bool) -> Tree:
        if isinstance(test, Known):
            return Not(self.known) if negated else self.known
        if isinstance(test, Like):
            codes = [code for low, high in like_codes(self.dictionary, test) for code in range(low, high + 1)]
        else:
            assert isinstance(test, (OneOf, AllOf))
            codes = [self.dictionary.code(str(value)) for value in dict.fromkeys(test.values)]
        some = tuple(self.rows_with(code) for code in codes if code)
        if isinstance(test, AllOf):
            tree: Tree = self.nothing if len(some) < len(codes) else And(some)
        else:
            tree = some[0] if len(some) == 1 else Or(some)
        return self.among_known(tree, negated)

    def taken(self, rows: Array) -> tuple[list[Any], Array]:
        begins, ends = self.starts[rows], np.cumsum(self.starts[rows + 1] - self.starts[rows])
        lengths = np.diff(ends, prepend=0)
        inside = np.arange(lengths.sum()) + np.repeat(begins - (ends - lengths), lengths)
        different, which = np.unique(checked(self.codes[inside], len(self.dictionary)), return_inverse=True)
        words = [self.dictionary.texts[code - 1] for code in different.tolist()]
        flat = [words[at] for at in which.tolist()]
        made = [flat[stop - length : stop] for stop, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
        return made, self.mask(rows)


@dataclass
class PlainTexts(Base):
    texts: Texts

    def write(self, writer: ArrayWriter) -> None:
        Sets.of(self.known.rows, [self.known]).write(writer, "known.")
        self.texts.write(writer)

    def made_index(self, bytes_per_row: float) -> None:
        return None

    def passing(self, test: Test, negated: bool) -> Tree:
        assert isinstance(test, Known)
        return Not(self.known) if negated else self.known

    def taken(self, rows: Array) -> tuple[list[Any], Array]:
        return [self.texts[row] for row in rows.tolist()], self.mask(rows)
