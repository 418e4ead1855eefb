"""Where-clauses: text -> tests of columns, joined by and and or.

SQL's conditions as sqlglot reads them; what is not listed here is refused, nothing is ever executed. Not is carried
down to the tests, where null passes neither a test nor its contrary: the rows are those of SQL's three truth values.
Knows the names and kinds of columns, not how they are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from danlu.errors import ConfigError, nearest
from danlu.recall.columns.asked import AllOf, Known, Like, OneOf, Range, Test, Value
from danlu.recall.kinds import typed
from danlu.recall.manifest import Column

if TYPE_CHECKING:
    from sqlglot import exp

# Parts of a node that are looked at; one with others means something else.
_UNDERSTOOD = ("this", "expression", "expressions", "low", "high", "negate", "table")
# Longer ones are lists of ids: those are looked up, not parsed.
MOST_CHARACTERS = 1 << 18
ALLOWED = (
    "= <> < <= > >= between, in (...), is null, like 'x%', has_any, has_all and has_none of tags, audience('name'), "
    "and, or, not, parentheses"
)


@dataclass(frozen=True)
class Atom:
    """A test of one column, by its place; negated, the rows that fail it."""

    column: int
    test: Test
    negated: bool


@dataclass(frozen=True)
class Every:
    parts: tuple[Clause, ...]


@dataclass(frozen=True)
class Either:
    parts: tuple[Clause, ...]


Clause: TypeAlias = Atom | Every | Either
EVERYTHING, NOTHING = Every(()), Either(())


def parse(text: str, columns: Sequence[Column], id_column: str, audiences: Mapping[str, str]) -> Clause:
    """The clause that the text means.

    Args:
        audiences: name -> where-clause.

    Raises ConfigError, with the place, for what cannot be read, an unknown column, a value of the wrong kind.
    """
    read = _kept if len(text) <= _SHORT else _read
    return read(text, tuple(columns), id_column, tuple(audiences.items()))


def _read(text: str, columns: tuple[Column, ...], id_column: str, audiences: tuple[tuple[str, str], ...]) -> Clause:
    return _Reader(columns, id_column, dict(audiences)).read(text, ())


# Whoever opens a collection anew asks the same again. Long texts, lists of ids, are rarely asked twice.
_SHORT = 2000
_kept = lru_cache(maxsize=1024)(_read)


class _Reader:
    def __init__(self, columns: Sequence[Column], id_column: str, audiences: Mapping[str, str]) -> None:
        self._columns, self._id, self._audiences = columns, id_column, audiences
        self._places = {column.name: at for at, column in enumerate(columns)}
        self._within: tuple[str, ...] = ()

    def read(self, text: str, within: tuple[str, ...], negated: bool = False) -> Clause:
        """Args:
        within: the audiences that this text is (a part of).
        """
        outer, self._within = self._within, within
        try:
            return self._clause(_syntax(text), negated)
        except RecursionError:
            raise ConfigError("the where-clause is nested too deeply", fix="write it flatter") from None
        except ConfigError as error:
            if not within or error.seen.startswith("audience "):
                raise
            raise ConfigError(f"audience {within[-1]!r}: {error.seen}", allowed=error.allowed, fix=error.fix) from error
        finally:
            self._within = outer

    def _clause(self, node: exp.Expression, negated: bool) -> Clause:
        from sqlglot import exp

        if any(value and name not in _UNDERSTOOD for name, value in node.args.items()):
            raise _wrong(node, f"{_sql(node)} is not understood", allowed=ALLOWED)
        if isinstance(node, exp.Paren):
            return self._clause(node.this, negated)
        if isinstance(node, exp.Not):
            return self._clause(node.this, not negated)
        if isinstance(node, (exp.And, exp.Or)):
            parts = tuple(self._clause(part, negated) for part in node.flatten())
            return Every(parts) if isinstance(node, exp.And) is not negated else Either(parts)
        if isinstance(node, exp.Boolean):
            return EVERYTHING if bool(node.this) is not negated else NOTHING
        if isinstance(node, exp.Anonymous):
            return self._function(node, negated)
        return self._test(node, negated)

    def _function(self, node: exp.Anonymous, negated: bool) -> Clause:
        name, arguments = str(node.this).lower(), node.expressions
        if name == "audience":
            return self._audience(node, negated)
        if name not in ("has_any", "has_all", "has_none"):
            raise _wrong(node, f"{_sql(node)} is not understood", fix=nearest(name, ("has_any", "has_all", "has_none")))
        if len(arguments) < 2:
            allowed = f"{name} of a column and one tag at least, as in {name}(interests, 'yoga')"
            fix = "where no tag is asked for, leave the test out"
            raise _wrong(node, f"{_sql(node)} is not understood", allowed=allowed, fix=fix)
        at, column = self._column(arguments[0])
        if column.kind != "tags":
            raise _wrong(node, f"{name} asks for tags; {column.name} is of kind {column.kind}")
        values = tuple(self._value(column, one) for one in arguments[1:])
        test = AllOf(values) if name == "has_all" else OneOf(values)
        return Atom(at, test, negated is not (name == "has_none"))

    def _audience(self, node: exp.Anonymous, negated: bool) -> Clause:
        names = [_literal(one) for one in node.expressions]
        if len(names) != 1 or not isinstance(names[0], str):
            raise _wrong(node, f"{_sql(node)} is not understood", allowed="audience('name')")
        (name,) = names
        if name in self._within:
            raise _wrong(node, f"audience {name!r} is made of itself: {' -> '.join((*self._within, name))}")
        if name not in self._audiences:
            known = ", ".join(sorted(self._audiences)) or "there are none yet"
            raise _wrong(node, f"there is no audience {name!r}", allowed=known, fix=nearest(name, self._audiences))
        return self.read(self._audiences[name], (*self._within, name), negated)

    def _test(self, node: exp.Expression, negated: bool) -> Clause:
        from sqlglot import exp

        if isinstance(node, exp.Column):
            at, column = self._column(node)
            return Atom(at, OneOf((self._typed(node, column, True),)), negated)
        if isinstance(node, exp.Is):
            return self._is(node, negated)
        if isinstance(node, exp.Between):
            at, column = self._column(node.this)
            low, high = (self._value(column, node.args[side]) for side in ("low", "high"))
            return Atom(at, self._ordered(node, column, Range(low, high)), negated)
        if isinstance(node, exp.In):
            return self._in(node, negated)
        if isinstance(node, (exp.Like, exp.ILike)):
            return self._like(node, negated)
        if isinstance(node, (exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE)):
            return self._comparison(node, negated)
        raise _wrong(node, f"{_sql(node)} is not understood", allowed=ALLOWED)

    def _is(self, node: exp.Is, negated: bool) -> Clause:
        from sqlglot import exp

        at, column = self._column(node.this)
        if isinstance(node.expression, exp.Null):
            return Atom(at, Known(), not negated)
        if not isinstance(node.expression, exp.Boolean):
            raise _wrong(node, f"{_sql(node)} is not understood", allowed="is null, is not null, is true, is false")
        is_true = Atom(at, OneOf((self._value(column, node.expression),)), negated)
        return (
            Either((is_true, Atom(at, Known(), True))) if negated else is_true
        )  # null is not true: one of two answers

    def _in(self, node: exp.In, negated: bool) -> Clause:
        at, column = self._column(node.this)
        if not node.expressions:
            raise _wrong(node, f"{_sql(node)} is not understood", allowed="in (value, value, ...)")
        return Atom(at, self._one_of(node, column, node.expressions), negated)

    def _one_of(self, node: exp.Expression, column: Column, values: Sequence[exp.Expression]) -> Test:
        if column.kind in ("text", "vector"):
            what = "text, which is" if column.kind == "text" else "vectors, which are"
            raise _wrong(node, f"{column.name} is {what} not filtered", allowed="is null, is not null")
        return OneOf(tuple(self._value(column, value) for value in values))

    def _like(self, node: exp.Like | exp.ILike, negated: bool) -> Clause:
        from sqlglot import exp

        at, column = self._column(node.this)
        pattern = _literal(node.expression)
        if column.kind not in ("word", "tags") or column.name == self._id or not isinstance(pattern, str):
            reason = "the id" if column.name == self._id else f"of kind {column.kind}"
            raise _wrong(node, f"{_sql(node)}: {column.name} is {reason}", allowed="like 'x%' on words and tags")
        return Atom(at, Like(pattern, isinstance(node, exp.ILike)), negated is not bool(node.args.get("negate")))

    def _comparison(self, node: exp.Binary, negated: bool) -> Clause:
        from sqlglot import exp

        left, right, kind = node.left, node.right, type(node)
        if not isinstance(left, exp.Column) and isinstance(right, exp.Column):
            left, right = right, left
            kind = {exp.LT: exp.GT, exp.LTE: exp.GTE, exp.GT: exp.LT, exp.GTE: exp.LTE}.get(kind, kind)
        at, column = self._column(left)
        if kind in (exp.EQ, exp.NEQ):
            return Atom(at, self._one_of(node, column, [right]), negated is not (kind is exp.NEQ))
        value = self._value(column, right)
        if kind in (exp.LT, exp.LTE):
            asked = Range(high=value, below=kind is exp.LT)
        else:
            asked = Range(low=value, above=kind is exp.GT)
        return Atom(at, self._ordered(node, column, asked), negated)

    def _ordered(self, node: exp.Expression, column: Column, asked: Range) -> Range:
        if column.kind in ("tags", "text", "vector", "boolean") or (column.kind == "word" and column.name == self._id):
            reason = "the id" if column.name == self._id else f"of kind {column.kind}"
            raise _wrong(node, f"{_sql(node)}: {column.name} is {reason}, which has no order", allowed="=, <>, in")
        return asked

    def _column(self, node: exp.Expression) -> tuple[int, Column]:
        from sqlglot import exp

        if not isinstance(node, exp.Column):
            fix = "a column's name with blanks or signs in it stands in double quotes"
            raise _wrong(node, f"{_sql(node)} is no column", allowed="column = value, and the like", fix=fix)
        name = node.name
        if node.args.get("table"):
            whole = node.sql().replace('"', "")
            raise _wrong(
                node, f"{whole} has a point in it", fix=f'if that is its name, write "{whole}" in double quotes'
            )
        at = self._places.get(name)
        if at is None:
            alike = [place for known, place in self._places.items() if known.casefold() == name.casefold()]
            if len(alike) > 1:
                both = " and ".join(known for known in self._places if known.casefold() == name.casefold())
                raise _wrong(node, f"there is no column {name!r}, but {both}", fix="write it as it is")
            if not alike:
                fix = nearest(name, self._places) or f"text stands in single quotes: '{name}'"
                raise _wrong(node, f"there is no column {name!r}", allowed=", ".join(self._places), fix=fix)
            (at,) = alike
        return at, self._columns[at]

    def _value(self, column: Column, node: exp.Expression) -> Value:
        from sqlglot import exp

        if isinstance(node, exp.Null):
            raise _wrong(
                node, f"{column.name} is compared with null", fix=f"write {column.name} is null, or is not null"
            )
        value = _literal(node)
        if value is None:
            hint = f"text stands in single quotes: '{node.name}'" if isinstance(node, exp.Column) else ""
            raise _wrong(
                node, f"{_sql(node)} is no value", allowed="numbers, text in single quotes, true, false", fix=hint
            )
        return self._typed(node, column, value)

    def _typed(self, node: exp.Expression, column: Column, value: Any) -> Value:
        try:
            return typed(column, value)
        except ConfigError as error:
            raise _wrong(node.parent or node, error.seen, allowed=error.allowed) from None


def _syntax(text: str) -> exp.Expression:
    try:
        import sqlglot
        from sqlglot import exp
        from sqlglot.errors import ParseError, SqlglotError
    except ModuleNotFoundError as error:
        raise ConfigError("where-clauses need sqlglot", fix='pip install "danlu[recall]"') from error
    if len(text) > MOST_CHARACTERS:
        seen = f"the where-clause has {len(text)} characters"
        raise ConfigError(seen, allowed=f"{MOST_CHARACTERS}", fix="look long lists of ids up with Collection.find")
    try:
        found = sqlglot.Dialect.get_or_raise(None).parse_into(exp.Condition, text)
    except ParseError as error:
        told = error.errors[0] if error.errors else {}
        reason = str(told.get("description") or error).removeprefix("Invalid expression / ")
        line, column = told.get("line"), told.get("col")
        place = f", line {line}, character {column}" if line else ""
        raise ConfigError(f"where-clause{place}: {reason}", allowed=ALLOWED, fix=_QUOTES) from error
    except SqlglotError as error:
        raise ConfigError(f"where-clause: {str(error).splitlines()[0]}", allowed=ALLOWED, fix=_QUOTES) from error
    if len(found) > 1:
        raise ConfigError("where-clause: a ; parts it in two", fix="write one condition")
    if not found or found[0] is None:
        raise ConfigError("the where-clause is empty", fix="write true for all rows")
    return found[0]


_QUOTES = "text stands in single quotes ('it''s'); a column's name with blanks or of a word of SQL in double ones"


def _literal(node: exp.Expression) -> Any:
    """The value of a literal; None if it is none."""
    from sqlglot import exp

    if isinstance(node, exp.Paren):
        return _literal(node.this)
    if isinstance(node, exp.Cast) and node.to.this in (exp.DataType.Type.DATE, exp.DataType.Type.TIMESTAMP):
        return _literal(node.this)
    if isinstance(node, exp.Boolean):
        return bool(node.this)
    if isinstance(node, exp.Neg):
        value = _literal(node.this)
        return -value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    if not isinstance(node, exp.Literal):
        return None
    return str(node.this) if node.is_string else _number(str(node.this))


def _number(text: str) -> int | float | None:
    try:
        value = int(text) if text.isdecimal() else float(text)
    except ValueError:
        return None
    return None if value == math.inf else value


def _sql(node: exp.Expression) -> str:
    text = node.sql(normalize_functions=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _wrong(node: exp.Expression, seen: str, *, allowed: str = "", fix: str = "") -> ConfigError:
    """With the place of the first name in the node."""
    from sqlglot import exp

    starts = [one.meta["start"] for one in node.find_all(exp.Identifier) if "start" in one.meta]
    place = f"where-clause, character {min(starts) + 1}: " if starts else "where-clause: "
    return ConfigError(f"{place}{seen}", allowed=allowed, fix=fix)
