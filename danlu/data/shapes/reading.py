"""How rows are to be read: what the user says of columns, speakers and format, beyond what is recognised.

One object serves all files of a run, so that at the end it is known what had no effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from danlu.data.row import Row, RowFault
from danlu.data.shapes.messages import Reader
from danlu.data.shapes.shapes import (
    MEDIA_KEYS,
    OURS,
    REQUIRED_KEYS,
    FormatName,
    Shape,
    plain_name,
    shape_of,
    unanswered_shape_of,
)
from danlu.data.shapes.speakers import Role, Speakers
from danlu.errors import DataError, nearest

OnError = Literal["raise", "skip"]
Placeholders = Literal["raise", "text"]
KEPT_SHAPES = 10_000  # of rows, by their keys


def _key_of(name: str | None, row: Row) -> str | None:
    """The key that a user means by `name`: that very one, or one that differs in case and separators alone."""
    if name is None or name in row:
        return name
    return next((key for key in row if plain_name(key) == plain_name(name)), None)


class Reading:
    """Args:
    format: how rows are read; None recognises it by the keys of the first readable row.
    columns: our name -> the data's; None for a column of ours that is not to be read.
    roles: the data's name of a speaker -> ours.
    encoding: of files that are not UTF-8.
    placeholders: whether <image>, <video> and <audio> in a message are a fault or plain words.
    may_be_unanswered: a row may be a question alone.

    Raises DataError for a format or a column's name that is not known.
    """

    def __init__(
        self,
        format: FormatName | None = None,
        columns: Mapping[str, str | None] | None = None,
        roles: Mapping[str, Role] | None = None,
        encoding: str | None = None,
        placeholders: Placeholders = "raise",
        may_be_unanswered: bool = False,
    ) -> None:
        if format is not None:
            _check_name(format)
        self.columns = dict(columns or {})
        for ours in self.columns:
            if ours not in (*OURS, *MEDIA_KEYS):
                hint = nearest(ours, OURS)
                raise DataError(f"data.columns: unknown name {ours!r} {hint}".rstrip(), allowed=", ".join(OURS))
        self.format, self.encoding = format, encoding
        self.reader = Reader(Speakers(roles), placeholders == "text", may_be_unanswered)
        self._unseen = {theirs for theirs in self.columns.values() if theirs is not None}
        self._shapes: dict[tuple[str, ...], Shape] = {}

    @property
    def mapped(self) -> tuple[str, ...]:
        """Our names that the user has given columns."""
        return tuple(ours for ours, theirs in self.columns.items() if theirs is not None)

    def renamed(self, row: Row) -> tuple[Row, list[str]]:
        """The row under the names that shapes know, and the keys that the user's mapping sets aside."""
        made: Row = {}
        aside: list[str] = []
        taken: set[str] = set()
        for ours, theirs in self.columns.items():
            key = _key_of(theirs, row)
            if theirs is not None and key is not None:
                made[ours] = row[key]
                taken.add(key)
                self._unseen.discard(theirs)
        for key, value in row.items():
            if key in taken:
                continue
            plain = plain_name(key)
            if plain in made or (plain != key and plain in row) or plain in self.columns:
                aside.append(key)
            else:
                made[plain] = value
        return made, aside

    def shape(self, row: Row, format: FormatName | None, since: str = "") -> Shape:
        """The shape of a renamed row; rows with the same keys are looked at once, when the format is settled."""
        keys = tuple(row)
        if format is not None and keys in self._shapes and self._shapes[keys].format == format:
            return self._shapes[keys]
        if len(self._shapes) >= KEPT_SHAPES:
            self._shapes.clear()
        mapped = [ours for ours in self.mapped if ours in row]
        try:
            self._shapes[keys] = shape_of(row, format, mapped, since)
        except RowFault:
            asking = unanswered_shape_of(row, format) if self.reader.may_be_unanswered else None
            if asking is None:
                raise
            self._shapes[keys] = asking
        return self._shapes[keys]

    def check_used(self) -> None:
        """Raises DataError for a mapping that met no row: a misspelt name would do nothing."""
        if self._unseen:
            raise DataError(
                f"data.columns: no row has {', '.join(map(repr, sorted(self._unseen)))}",
                fix="mend the name, or leave it out",
            )
        if unseen := self.reader.speakers.unseen():
            raise DataError(
                f"data.roles: no turn is spoken by {', '.join(map(repr, unseen))}", fix="mend the name, or leave it out"
            )


def _check_name(format: str) -> None:
    if format not in REQUIRED_KEYS:
        hint = nearest(format, REQUIRED_KEYS)
        raise DataError(f"unknown format {format!r} {hint}".rstrip(), allowed=", ".join(REQUIRED_KEYS))


def missing_columns(reading: Reading, names: list[str]) -> None:
    """Raises RowFault where a table lacks columns that the user has named."""
    for theirs in reading.columns.values():
        if theirs is not None and theirs not in names:
            raise RowFault(f"data.columns names {theirs!r}, which is no column {nearest(theirs, names)}".rstrip())
