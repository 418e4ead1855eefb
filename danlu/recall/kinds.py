"""Kinds of columns: how a value of each is written in a where-clause and shown, and which number stands for it.

A date is a number of days, a time one of microseconds, both from 1970 on, in UTC; a boolean is 0 or 1. Knows nothing of
how columns are kept.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

from danlu.errors import ConfigError
from danlu.recall.columns.asked import Value
from danlu.recall.manifest import Column, Kind

WRITTEN: dict[Kind, str] = {
    "integer": "a whole number, as in 25",
    "real": "a number, as in 2.5",
    "boolean": "true or false",
    "date": "a date in quotes, as in '2024-02-29'",
    "time": "a time in quotes, as in '2024-02-29 18:30:00'; without a zone it is UTC",
    "word": "text in quotes, as in 'Rome'",
    "tags": "text in quotes, as in 'yoga'",
    "text": "nothing; it is not filtered",
    "vector": "nothing; it is not filtered",
}
NUMERIC: tuple[Kind, ...] = ("integer", "real", "boolean", "date", "time")
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def typed(column: Column, value: Any) -> Value:
    """What stands for a value that was written for this column. Raises ConfigError if it is of another kind."""
    found = _typed(column.kind, value)
    if found is None:
        written = f"{value!r}" if isinstance(value, str) else f"{value}".lower()
        seen = f"{column.name} is of kind {column.kind}; {written} is {_kind_of(column.kind, value)}"
        raise ConfigError(seen, allowed=WRITTEN[column.kind])
    return found


def _typed(kind: Kind, value: Any) -> Value | None:
    """None for a value of another kind."""
    if kind in ("word", "tags"):
        return value if isinstance(value, str) else None
    if kind == "boolean":
        return int(value) if isinstance(value, bool) else None
    if kind in ("date", "time"):
        return _moment(kind, value) if isinstance(value, str) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value


def _moment(kind: Kind, text: str) -> int | None:
    try:
        if kind == "date":
            return date.fromisoformat(text).toordinal() - _EPOCH_DAY
        found = datetime.fromisoformat(text)
        return ((found if found.tzinfo else found.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError):
        return None


def _kind_of(kind: Kind, value: Any) -> str:
    if isinstance(value, str):
        return f"no {kind}" if kind in ("date", "time") else "text"
    return "a truth value" if isinstance(value, bool) else "a number"


def shown(kind: Kind, value: Any) -> Any:
    """A stored value as Python has it: dates and times as such, booleans as True and False."""
    if kind == "boolean":
        return bool(value)
    if kind == "date":
        days = int(value) + _EPOCH_DAY
        return date.fromordinal(days) if 1 <= days <= date.max.toordinal() else f"day {value}"
    if kind == "time":
        try:
            return _EPOCH + int(value) * _MICROSECOND
        except OverflowError:
            return f"microsecond {value}"
    return value
