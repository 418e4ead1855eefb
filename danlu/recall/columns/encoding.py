"""Values of a segment -> a column as it is kept, and from its file again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from danlu.recall.columns.base import Column
from danlu.recall.columns.lists import PlainTexts, TagLists
from danlu.recall.columns.sets import Sets
from danlu.recall.columns.stored import MOST_CODES, CodedNumbers, CodedWords, PlainNumbers, zones_of
from danlu.recall.columns.texts import Dictionary, Texts
from danlu.recall.columns.vectors import Vectors
from danlu.recall.files import ArrayFile, Damaged
from danlu.recall.rows.bits import FULL, Array, Bits

# A table of all numbers between the least and the largest is made up to this many.
_MOST_SPAN = 1 << 22
# Of so many numbers it is seen whether there are too many different ones.
_SAMPLE = 1 << 18


def known_rows(mask: Array) -> Bits:
    """The rows that are not null."""
    return Bits.whole(len(mask), FULL) if mask.all() else Bits.of(len(mask), np.flatnonzero(mask))


def numbers(values: Array, mask: Array) -> CodedNumbers | PlainNumbers:
    """Args:
    values: int64 or float64, without NaN. mask: which are not null.
    """
    known, there = known_rows(mask), values if mask.all() else values[mask]
    found = _different(there)
    if found is None:
        return plain_numbers(values, mask)
    different, places = found
    codes = np.zeros(len(values), smallest(len(different)))
    codes[mask] = places + 1
    histogram = np.bincount(codes, minlength=len(different) + 1)
    return CodedNumbers(known, codes, histogram, different)


def plain_numbers(values: Array, mask: Array) -> PlainNumbers:
    """As they are, however few differ."""
    if not mask.all():
        values = np.where(mask, values, values[mask][0] if mask.any() else 0)  # within the zones
    return PlainNumbers(known_rows(mask), values, zones_of(values))


def _different(values: Array) -> tuple[Array, Array] | None:
    """The different ones in order, and the place of each value among them; None if there are more than get codes."""
    if not len(values):
        return values, np.empty(0, np.int64)
    least = values.min()
    if values.dtype == np.int64 and int(values.max()) - int(least) < _MOST_SPAN:
        shifted = values - least
        is_there = np.zeros(int(shifted.max()) + 1, np.bool_)
        is_there[shifted] = True
        different = np.flatnonzero(is_there) + least
        places = (np.cumsum(is_there) - 1)[shifted]
    elif len(np.unique(values[:: max(1, len(values) // _SAMPLE)])) > MOST_CODES:
        return None
    else:
        different, places = np.unique(values, return_inverse=True)
    return None if len(different) > MOST_CODES else (different, places)


def smallest(most: int) -> type[np.unsignedinteger]:
    """The type that holds 0 to most."""
    return next(kind for kind in (np.uint8, np.uint16, np.uint32) if most <= np.iinfo(kind).max)


def words(codes: Array, texts: Sequence[bytes]) -> CodedWords:
    """Args:
    codes: of a row, from 1, in the order of `texts`, which differ; 0 for null.
    """
    dictionary, renamed = _in_order(texts)
    codes = renamed[codes].astype(smallest(len(texts)))
    histogram = np.bincount(codes, minlength=len(texts) + 1)
    return CodedWords(known_rows(codes > 0), codes, histogram, dictionary)


def tags(starts: Array, codes: Array, texts: Sequence[bytes], mask: Array) -> TagLists:
    """Args:
    starts: int64, where the codes of each row begin, and their end. codes: from 1, in the order of `texts`.
    """
    dictionary, renamed = _in_order(texts)
    rows = np.repeat(np.arange(len(mask)), np.diff(starts))
    together = rows * (len(texts) + 1) + renamed[codes]
    together.sort(kind="stable")  # rows are in order already
    together = together[np.diff(together, prepend=-1) != 0]  # each tag of a row once
    rows, codes = np.divmod(together, len(texts) + 1)
    starts = np.searchsorted(rows, np.arange(len(mask) + 1))
    return TagLists(known_rows(mask), starts, codes.astype(np.uint32), dictionary)


def _in_order(texts: Sequence[bytes]) -> tuple[Dictionary, Array]:
    """A dictionary, and the code in it for each place in `texts`, from 1; 0 stays 0."""
    order = sorted(range(len(texts)), key=texts.__getitem__)
    renamed = np.zeros(len(texts) + 1, np.int64)
    renamed[np.array(order, np.int64) + 1] = np.arange(1, len(texts) + 1)
    return Dictionary(Texts.of(texts[at] for at in order)), renamed


def texts(starts: Array, data: Array, mask: Array) -> PlainTexts:
    return PlainTexts(known_rows(mask), Texts(starts, data))


def vectors(values: Array, mask: Array) -> Vectors:
    """Args:
    values: (rows, dim) float32.
    """
    return Vectors(known_rows(mask), values)


# -- from a file ------------------------------------------------------------------------------------------


def read(file: ArrayFile, rows: int) -> Column:
    """The column that was written there. Raises Damaged if its arrays do not fit together."""
    column = _read(file, rows)
    if column.known.rows != rows:
        raise Damaged(f"{file.name}: it is of {column.known.rows} rows instead of {rows}")
    return column


def _read(file: ArrayFile, rows: int) -> Column:
    if "known.words" not in file:
        return _read_codes(file, rows)
    known = Sets.read(file, rows, "known.")[0]
    if "zones" in file:
        values, zones = file["values"], file["zones"]
        _check(file, len(values) == rows and zones.shape == (len(known.kinds), 2))
        return PlainNumbers(known, values, zones)
    if "places" in file:
        starts, codes = file["places"], file["codes"]
        _check(file, len(starts) == rows + 1 and starts[0] == 0 and starts[-1] == len(codes))
        return TagLists(known, starts, codes, Dictionary(Texts.read(file)))
    if "vectors" in file:
        vectors = file["vectors"]
        _check(file, vectors.ndim == 2 and len(vectors) == rows and vectors.dtype == np.float32)
        return Vectors(known, vectors)
    kept = Texts.read(file)
    _check(file, len(kept) == rows)
    return PlainTexts(known, kept)


def _read_codes(file: ArrayFile, rows: int) -> Column:
    codes, histogram = file["codes"], file["histogram"]
    known = _known_of(codes, histogram)
    if "values" in file:
        _check(file, len(codes) == rows and len(histogram) == len(file["values"]) + 1)
        return CodedNumbers(known, codes, histogram, file["values"])
    dictionary = Dictionary(Texts.read(file))
    _check(file, len(codes) == rows and len(histogram) == len(dictionary) + 1)
    return CodedWords(known, codes, histogram, dictionary)


def _known_of(codes: Array, histogram: Array) -> Bits:
    return Bits.whole(len(codes), FULL) if histogram[0] == 0 else known_rows(codes > 0)


def _check(file: ArrayFile, fits: bool) -> None:
    if not fits:
        raise Damaged(f"{file.name}: its arrays do not fit together")
