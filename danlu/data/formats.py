"""Rows -> records: messages, alpaca, sharegpt, prompt/completion, preference, plain text.

All rows of a path have one format: the one named by the caller, or else the one whose keys the first readable
row has. Everything streams. What kinds of file there are, `data/files/rows.py` says; which columns a row may have,
`data/shapes/shapes.py`; what a message leaves here as, `data/records.py`. Knows no tokenizer and no chat template:
`data/chat.py` turns records into ids and decides what is learnt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from danlu.data.files.folders import Part
from danlu.data.files.rows import placed_rows
from danlu.data.records import Conversation, Message, Preference, Record, Skipped, Text
from danlu.data.row import Cells, Columns, PartialRow, PlacedRow, Row, RowFault
from danlu.data.shapes.glance import Glance
from danlu.data.shapes.messages import present
from danlu.data.shapes.parsers import label_of, record_of
from danlu.data.shapes.reading import OnError, Reading, missing_columns
from danlu.data.shapes.shapes import (
    KNOWN_COLUMNS,
    MEDIA_KEYS,
    FormatName,
    Shape,
    check_text_row,
    fits_any,
    in_our_names,
    plain_name,
    shape_of,
)
from danlu.errors import DataError

# The records' types are part of this file's face: whoever reads records names them too.
__all__ = [
    "Conversation", "FormatName", "Message", "OnError", "Preference", "Reading", "Record", "Skipped", "Text",
    "detect_format", "format_of", "read_records", "record_from_row",
]  # fmt: skip

ROWS_TO_RECOGNISE = 100  # a path none of whose first rows has a format is given up


def read_records(
    path: Path,
    *,
    format: FormatName | None = None,
    on_error: OnError = "raise",
    skipped: Skipped | None = None,
    reading: Reading | None = None,
    part: Part = "train",
) -> Iterator[Record]:
    """The records of a file, or of a directory's files, one at a time.

    Args:
        path: see the head of data/files/rows.py for the kinds.
        format: how rows are read; None recognises it by the keys of the first readable row.
        on_error: "raise" stops at the first faulty row; "skip" passes over it.
        skipped: told of every row that was passed over, and of all else that was not taken as it stood.
        reading: what the user says of format, columns, speakers and encoding, instead of `format`. Who brings
            it asks it at the end whether all of it was used; without, this does.
        part: which files of a directory (data/files/folders.py).

    Raises:
        DataError: at once for a path that is no readable file; while reading for a faulty row (when
            on_error is "raise"), for a fault after which the file cannot be read on, and at the end
            when there was no usable row.
    """
    reading = reading or Reading(format)
    skipped = Skipped() if skipped is None else skipped
    rows = placed_rows(Path(path), _columns_for(reading), encoding=reading.encoding, skipped=skipped, part=part)
    return _records(Path(path), rows, reading, on_error, skipped)


def format_of(path: Path, reading: Reading | None = None) -> FormatName:
    """The format that `read_records` recognises in a path: that of the first row with a format's keys.

    Raises DataError when none of the first ROWS_TO_RECOGNISE has them, with the fault of the first row.
    """
    reading = reading or Reading()
    first: DataError | None = None
    rows = placed_rows(Path(path), _columns_for(reading), encoding=reading.encoding)
    for place, row in islice(rows, ROWS_TO_RECOGNISE):
        try:
            return reading.shape(reading.renamed(_sound(row))[0], reading.format).format
        except RowFault as fault:
            first = first or fault.at(place)
    raise first or DataError(f"{path}: holds no rows", fix="check that this is the file you meant")


def record_from_row(
    row: Mapping[str, Any],
    format: FormatName | None,
    place: str,
    *,
    reading: Reading | None = None,
    skipped: Skipped | None = None,
) -> Record:
    """One row as a record; `place` says in errors where the row came from.

    Raises DataError for a row that is not of this format or, where `format` is None, of any one.
    """
    reading = reading or Reading(format)
    try:
        given = present(row)
        recognised = _recognised(given, format, reading)
        return _record(given, *recognised, place, reading, Skipped() if skipped is None else skipped)
    except RowFault as fault:
        raise fault.at(place) from None


def detect_format(row: Mapping[str, Any]) -> FormatName:
    """The one format whose keys this row has; a key that holds None counts as absent.

    Raises DataError when there is none (with the nearest names) or more than one.
    """
    try:
        return shape_of(Reading().renamed(present(row))[0]).format
    except RowFault as fault:
        raise DataError(fault.seen, allowed=fault.allowed, fix=fault.fix) from None


def _records(
    path: Path, rows: Iterable[PlacedRow], reading: Reading, on_error: OnError, skipped: Skipped
) -> Iterator[Record]:
    found, before, origin, format = False, skipped.count, "", reading.format
    glance = Glance(reading, skipped)
    for place, row in rows:
        if (known := glance.record(row, place)) is not None:
            yield known
            continue
        try:
            renamed, shape, aside = _recognised(_sound(row), format, reading, origin)
            if format is None:
                format, origin = shape.format, place
            record = _record(row, renamed, shape, aside, place, reading, skipped)
        except RowFault as fault:
            if on_error == "raise":
                raise fault.at(place) from None
            skipped.add(place, str(fault), fault.fix)
            if format is None and skipped.count - before == ROWS_TO_RECOGNISE:
                break
        else:
            found = True
            if isinstance(row, dict):
                glance.learn(row, shape)
            yield record
    if not found:
        raise _nothing_usable(path, skipped, before)


def _recognised(row: Row, format: FormatName | None, reading: Reading, since: str = "") -> tuple[Row, Shape, list[str]]:
    """(the row under plain names, its shape, keys that the user's mapping sets aside)."""
    renamed, aside = reading.renamed(row)
    check_text_row(renamed)
    try:
        return renamed, reading.shape(renamed, format, since), aside
    except RowFault:
        missing_columns(reading, list(row))
        raise


def _record(
    row: Row | RowFault, renamed: Row, shape: Shape, aside: list[str], place: str, reading: Reading, skipped: Skipped
) -> Record:
    """The row's record; what of it was not read, or was changed, goes to `skipped`."""
    ours, unread, optional = in_our_names(renamed, shape, reading.columns)
    if ours.get("label", "") != "" and label_of(ours["label"]) is None:
        unread.append("label")
        optional = [(theirs, key) for theirs, key in optional if key != "label"]
    reader = reading.reader
    reader.notes.clear()
    reader.unread.clear()
    record = record_of(ours, shape.format, place, reader)
    left = [*aside, *(key for key in unread if renamed.get(key) not in ("", [], {})), *sorted(reader.unread)]
    if isinstance(row, PartialRow):
        left += row.not_decoded
    skipped.shapes[shape.describe(optional)] += 1
    skipped.notes.update(sorted(reader.notes))
    skipped.pass_over_keys(key or "(no name)" for key in left)
    return record


def _nothing_usable(path: Path, skipped: Skipped, before: int) -> DataError:
    faulty = skipped.count - before
    if not faulty:
        return DataError(f"{path}: holds no rows", fix="check that this is the file you meant")
    shown = [f"    {place}: {reason}" for place, reason in skipped.faults[before : before + 5]]
    fix = next((fix for fix in skipped.fixes[before:] if fix), "mend the rows that are named here")
    return DataError("\n".join([f"{path}: no usable row; {faulty} faulty, the first:", *shown]), fix=fix)


_EMPTY_CELLS = {"", "nan", "NaN", "<NA>"}  # as pandas and R write "not given"


def _sound(row: Row | RowFault) -> Row:
    if isinstance(row, RowFault):
        raise row
    if isinstance(row, Cells):
        return {key: "" if cell in _EMPTY_CELLS else cell for key, cell in row.items()}
    given = present(row)
    return PartialRow(given, row.not_decoded) if isinstance(row, PartialRow) else given


def _columns_for(reading: Reading) -> Columns:
    """Those of a table's columns that are read; RowFault when they make no format."""

    def chosen(names: list[str]) -> list[str]:
        missing_columns(reading, names)
        renamed, aside = reading.renamed(dict.fromkeys(names))
        if not fits_any(renamed):
            reading.shape(renamed, None)
        taken = {theirs for theirs in reading.columns.values() if theirs is not None}
        known = {*KNOWN_COLUMNS, *MEDIA_KEYS} - {ours for ours, theirs in reading.columns.items() if theirs is None}
        return [name for name in names if name in taken or (name not in aside and plain_name(name) in known)]

    return chosen
