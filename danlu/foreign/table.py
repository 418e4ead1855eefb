"""What a table of another tool's keys is made of: a row says where a key goes, or why it goes nowhere.

Values are turned by `values.py`; which row a key has, and what becomes of it, `making.py` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, TypeVar

from danlu.errors import ConfigError
from danlu.foreign.values import above_zero, number, whole

_T = TypeVar("_T")

# What is told of a key beside the line that it became.
#   differs  it became something that means a little else here
#   lacks    it has no counterpart: what it would take, or what to do instead
#   idle     it shapes nothing that is learnt, or nothing here
Verdict = Literal["differs", "lacks", "idle"]


@dataclass(frozen=True)
class Row:
    """One key of a tool; `*` in its name stands for any letters.

    Attributes:
        ours: the key of a recipe that it becomes; nothing if it becomes none.
        convert: its value -> ours; None says that nothing is to be written.
        default: the tool's own where the file says nothing. It is written where it shapes what is learnt and Danlu's
            is another.
        verdict, remark: what is told of it.
    """

    theirs: str
    ours: str = ""
    convert: Callable[[Any], Any] = lambda value: value
    default: Any = None
    verdict: Verdict | None = None
    remark: str = ""

    def fits(self, key: str) -> bool:
        return fnmatchcase(key, self.theirs)


def same(
    theirs: str, ours: str, convert: Callable[[Any], Any] = lambda value: value, default: Any = None, differs: str = ""
) -> Row:
    """A key that has a counterpart."""
    return Row(theirs, ours, convert, default, "differs" if differs else None, differs)


def lacking(names: str, takes: str) -> tuple[Row, ...]:
    """Keys without a counterpart, and what it would take."""
    return tuple(Row(name, verdict="lacks", remark=takes) for name in names.split())


def needless(names: str, why: str) -> tuple[Row, ...]:
    """Keys that shape nothing that is learnt here."""
    return tuple(Row(name, verdict="idle", remark=why) for name in names.split())


@dataclass
class Given:
    """What was given: keys and values as the tool would read them.

    Attributes:
        where: what it is called in messages.
        folder: that paths in it may be relative to, beside the current one.
        stage: what a command line names behind the tool: "sft", "dpo".
        environment: variables set before it.
        processes: that it would be run in.
        unread: what of the file could not be read without running it -> why.
    """

    values: dict[str, Any]
    where: str
    folder: Path = Path()
    stage: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    processes: int = 1
    unread: Mapping[str, str] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def read(self, name: str, convert: Callable[[Any], _T], default: Any = None) -> _T:
        """A value as what it has to be. Raises ConfigError with the key."""
        try:
            return convert(self.get(name, default))
        except ConfigError as error:
            raise ConfigError(f"{self.where}: {name}: {error.seen}", allowed=error.allowed) from error

    def number(self, name: str, default: float | None = None) -> float | None:
        return self.read(name, number, default)

    def whole(self, name: str, default: int | None = None) -> int | None:
        return self.read(name, whole, default)

    def above_zero(self, name: str) -> int | None:
        return self.read(name, above_zero)


@dataclass(frozen=True)
class Tool:
    """Another tool.

    Attributes:
        name: as `--as` takes it.
        title: as its authors write it.
        rows: of its keys; the first that fits counts.
        own: keys that `read` looks at itself.
        stage: what is trained, as a kind of ours. Raises ConfigError where there is none.
        read: (given, the `Making`) puts what no single row can say: data, batches, how long.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    own: frozenset[str]
    stage: Callable[[Given], str]
    read: Callable[[Given, Any], None]

    def row(self, key: str) -> Row | None:
        exact = next((row for row in self.rows if row.theirs == key), None)
        return exact or next((row for row in self.rows if row.fits(key)), None)

    def names(self) -> frozenset[str]:
        """The keys that it is known by."""
        return self.own | {row.theirs for row in self.rows if "*" not in row.theirs}
