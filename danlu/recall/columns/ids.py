"""External ids of a segment -> its rows: whole numbers or texts, in order, each beside its row.

A text stands there as a number made of its bytes (kernels.c), and is compared with the column before it is believed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from danlu.recall.columns.lists import PlainTexts
from danlu.recall.columns.stored import PlainNumbers
from danlu.recall.columns.texts import Texts
from danlu.recall.files import ArrayFile, ArrayWriter, Damaged
from danlu.recall.rows.bits import Array
from danlu.recall.rows.kernels import kernels

IdColumn = PlainNumbers | PlainTexts


@dataclass(frozen=True)
class Ids:
    """Attributes:
    keys: int64 or (of texts) uint64, in order. rows: uint32, the row of each. Rows that were deleted before the
        segment was written are left out, so that no id stands twice.
    """

    keys: Array
    rows: Array

    @classmethod
    def of(cls, column: IdColumn) -> Ids:
        keys = keys_of(column.values if isinstance(column, PlainNumbers) else column.texts)
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], order.astype(np.uint32))

    def only(self, rows: Array) -> Ids:
        """Those of some rows, given as one flag a row."""
        kept = rows[self.rows]
        return Ids(self.keys[kept], self.rows[kept])

    def write(self, writer: ArrayWriter) -> None:
        writer.add("keys", self.keys)
        writer.add("rows", self.rows)

    @classmethod
    def read(cls, file: ArrayFile, rows: int) -> Ids:
        keys, places = file["keys"], file["rows"]
        if len(keys) != len(places) or len(keys) > rows:
            raise Damaged(f"{file.name}: its arrays do not fit together")
        return cls(keys, places)

    def find(self, wanted: Array | Texts, column: IdColumn) -> Array:
        """The row (int64) of each id that is wanted; -1 where there is none. Of ids that stand twice, the last row."""
        keys = keys_of(wanted)
        stops = np.searchsorted(self.keys, keys, side="right")
        found = self._row(stops - 1, keys)
        if isinstance(wanted, Texts):
            assert isinstance(column, PlainTexts)
            for at in np.flatnonzero(found >= 0).tolist():
                found[at] = self._same(wanted.encoded(at), int(stops[at]) - 1, column.texts)
        return found

    def _row(self, at: Array, keys: Array) -> Array:
        """The row at these places where the key is the one that is meant."""
        if not len(self.keys):
            return np.full(len(keys), -1, np.int64)
        inside = np.maximum(at, 0)
        return np.where((at >= 0) & (self.keys[inside] == keys), self.rows[inside].astype(np.int64), -1)

    def _same(self, text: bytes, at: int, texts: Texts) -> int:
        """Of the rows with one key, going back from a place, the one whose id is this text; -1 if none is."""
        key = self.keys[at]
        while at >= 0 and self.keys[at] == key:
            row = int(self.rows[at])
            if row < len(texts) and texts.encoded(row) == text:
                return row
            at -= 1
        return -1


def keys_of(ids: Array | Texts) -> Array:
    """What ids are found by: the numbers themselves, or numbers made of the texts."""
    if isinstance(ids, Texts):
        return kernels().hashes(np.ascontiguousarray(ids.starts), np.ascontiguousarray(ids.data))
    return ids


def again(column: IdColumn, ids: Ids) -> tuple[Array, Array]:
    """(rows whose id a later row has as well, rows whose id an earlier row had), both int64."""
    same = np.flatnonzero(ids.keys[:-1] == ids.keys[1:])
    if isinstance(column, PlainNumbers):
        return ids.rows[same].astype(np.int64), ids.rows[same + 1].astype(np.int64)
    earlier, later = [], []
    for key in np.unique(ids.keys[same]):
        start, stop = (int(np.searchsorted(ids.keys, key, side=side)) for side in ("left", "right"))
        last: dict[bytes, int] = {}
        for row in ids.rows[start:stop].tolist():
            text = column.texts.encoded(row)
            if text in last:
                earlier.append(last[text])
                later.append(row)
            last[text] = row
    return np.array(sorted(earlier), np.int64), np.array(sorted(later), np.int64)
