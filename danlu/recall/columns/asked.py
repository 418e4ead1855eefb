"""What can be asked of one column, in values of the column's kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Value: TypeAlias = int | float | str


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, either of which may be missing; `above` and `below` leave out the bound itself."""

    low: Value | None = None
    high: Value | None = None
    above: bool = False
    below: bool = False


@dataclass(frozen=True)
class OneOf:
    """One of the values; of tags, at least one."""

    values: tuple[Value, ...]


@dataclass(frozen=True)
class AllOf:
    """Every one of the tags."""

    values: tuple[Value, ...]


@dataclass(frozen=True)
class Like:
    """SQL's pattern: % stands for any text, _ for one character, \\\\ before either for itself."""

    pattern: str
    ignore_case: bool = False


@dataclass(frozen=True)
class Known:
    """Not null."""


Test: TypeAlias = Range | OneOf | AllOf | Like | Known
