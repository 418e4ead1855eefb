"""A collection in ClickHouse: the same where-clauses, audiences, profiles and vectors, for more rows than fit here.

    from clickhouse_connect import get_client

    away = ClickHouse.copied(get_client(dsn="clickhouse://host"), Collection.open("people.recall"), "people")
    away.count("sex = 'F' and age > 25")

Clauses are read by where.py, so that they mean the same and are refused for the same reasons; what is asked of the
server is written here, value by value, and never taken from a text as it stands. `chdb:///folder` is the engine in this
process, by the same client. Behaviour is asked of a table of events beside the rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from danlu.errors import ConfigError, DataError, nearest
from danlu.recall.columns.asked import AllOf, Known, Like, OneOf, Range, Test, Value
from danlu.recall.fitted import first_line
from danlu.recall.kinds import shown
from danlu.recall.manifest import Column
from danlu.recall.profile import RANGES, Attribute, Share
from danlu.recall.rows.bits import Array
from danlu.recall.where import Atom, Clause, Every, parse

if TYPE_CHECKING:
    from danlu.recall.collection import Collection

_TYPES = {
    "integer": "Nullable(Int64)", "real": "Nullable(Float64)", "boolean": "Nullable(Bool)", "date": "Nullable(Date32)",
    "time": "Nullable(DateTime64(6, 'UTC'))", "word": "LowCardinality(Nullable(String))", "text": "Nullable(String)",
    "tags": "Array(LowCardinality(String))", "vector": "Array(Float32)",
}  # fmt: skip
# Beside a column of tags: whether a row has a list, since lists are never null there.
_KNOWN = "__known"
_ABOUT = "danlu: "
_CHUNK_ROWS = 1 << 17
# Values of a number up to which each is counted in a profile; beyond it ranges are.
MOST_VALUES = 1 << 16
_DISTANCES = {"cosine": "cosineDistance", "l2": "L2SquaredDistance", "inner_product": "-dotProduct"}
_EVENTS = "_events"


@dataclass(frozen=True)
class ClickHouse:
    """Attributes:
    client: of clickhouse-connect. table: where the rows are; its comment says the columns' kinds.
    audiences: name -> where-clause.
    """

    client: Any
    table: str
    columns: list[Column]
    id_column: str
    audiences: Mapping[str, str] = field(default_factory=dict)

    # -- moving there -----------------------------------------------------------------------------------------

    @classmethod
    def opened(cls, client: Any, table: str) -> ClickHouse:
        """A table that `copied` has made. Raises DataError for another."""
        name = _text(table)
        asked = f"select comment from system.tables where database = currentDatabase() and name = {name}"
        found = _asked(client, asked).column(0).to_pylist()
        if not found or not str(found[0]).startswith(_ABOUT):
            seen = f"there is no table {table!r}" if not found else f"the table {table!r} was not made here"
            raise DataError(seen, fix="copy a collection: ClickHouse.copied(client, collection, table)")
        about = json.loads(str(found[0]).removeprefix(_ABOUT))
        columns = [Column.model_validate(one) for one in about["columns"]]
        return cls(client, table, columns, about["id"], about["audiences"])

    @classmethod
    def copied(cls, client: Any, collection: Collection, table: str, *, order_by: Sequence[str] = ()) -> ClickHouse:
        """A new table with the live rows of a collection, its audiences, and its events where it has some.

        Args:
            order_by: columns that rows are sorted by, before their id: those that most clauses ask for.

        Raises DataError for a table that is there, and for what the server refuses.
        """
        known = [column.name for column in collection.columns]
        for name in order_by:
            if name not in known:
                raise ConfigError(f"there is no column {name!r}", allowed=", ".join(known), fix=nearest(name, known))
        audiences = {name: one.where for name, one in collection.manifest.audiences.items()}
        made = cls(client, table, collection.columns, collection.id_column, audiences)
        made._create(order_by)
        rows = collection.everything()
        for chunk in rows.chunks():
            for start in range(0, len(chunk), _CHUNK_ROWS):
                made.append(collection.table(chunk[start : start + _CHUNK_ROWS]))
        if collection.behaviour.has_events:
            made._copy_events(collection)
        return made

    def _create(self, order_by: Sequence[str]) -> None:
        columns = [f"{_name(one.name)} {self._type(one)}" for one in self.columns]
        columns += [f"{_name(one.name + _KNOWN)} Bool" for one in self.columns if one.kind == "tags"]
        about = {
            "id": self.id_column,
            "columns": [one.model_dump() for one in self.columns],
            "audiences": dict(self.audiences),
        }
        order = ", ".join(_name(one) for one in (*order_by, self.id_column))
        _done(
            self.client,
            f"create table {_name(self.table)} ({', '.join(columns)}) engine = MergeTree order by ({order}) "
            f"settings allow_nullable_key = 1 comment {_text(_ABOUT + json.dumps(about, ensure_ascii=False))}",
        )

    def _type(self, column: Column) -> str:
        if column.name == self.id_column:
            return "Int64" if column.kind == "integer" else "String"
        return _TYPES[column.kind]

    def append(self, rows: pa.Table) -> None:
        """Rows with all of the columns, as `Collection.table` gives them. Raises DataError for what is refused."""
        arrays: dict[str, Any] = {}
        for column in self.columns:
            values = rows.column(column.name).combine_chunks()
            if column.kind == "tags":
                arrays[column.name + _KNOWN] = values.is_valid()
            if column.kind in ("tags", "vector"):
                inner = pa.large_string() if column.kind == "tags" else pa.float32()
                values = pa.array([one or [] for one in values.to_pylist()], pa.large_list(inner))
            arrays[column.name] = values
        try:
            self.client.insert_arrow(_name(self.table), pa.table(arrays))
        except Exception as error:  # whatever the client raises
            raise _refused(error) from error

    # -- asking -----------------------------------------------------------------------------------------------

    def condition(self, text: str) -> str:
        """The where-clause as the server reads it. Raises ConfigError, with the place, for one that is wrong."""
        return condition_of(text, self.columns, self.id_column, self.audiences)

    def count(self, text: str) -> int:
        """How many rows a where-clause is for."""
        return int(self._select(f"count() from {_name(self.table)} where {self.condition(text)}").column(0)[0].as_py())

    def ids(self, text: str, limit: int | None = None) -> pa.Array:
        """Ids of the rows that a where-clause is for, in order."""
        name, most = _name(self.id_column), "" if limit is None else f" limit {int(limit)}"
        found = self._select(f"{name} from {_name(self.table)} where {self.condition(text)} order by {name}{most}")
        return found.column(0).combine_chunks()

    def rows(self, text: str, columns: Sequence[str] | None = None, limit: int | None = None) -> pa.Table:
        """Values of the rows that a where-clause is for, in the order of their ids."""
        known = [one.name for one in self.columns]
        for name in columns or ():
            if name not in known:
                raise ConfigError(f"there is no column {name!r}", allowed=", ".join(known), fix=nearest(name, known))
        listed = ", ".join(_name(one) for one in known if columns is None or one in columns)
        most = "" if limit is None else f" limit {int(limit)}"
        order = _name(self.id_column)
        return self._select(f"{listed} from {_name(self.table)} where {self.condition(text)} order by {order}{most}")

    def profile(self, text: str) -> list[Attribute]:
        """Of every attribute, how its values are spread among the rows of a clause and among all.

        Numbers with many values are put into ranges by the server's quantiles, which need not be those of a collection.
        """
        condition = self.condition(text)
        made = []
        for column in self.columns:
            if column.kind not in ("text", "vector") and column.name != self.id_column:
                made.append(self._attribute(column, condition))
        return made

    def _attribute(self, column: Column, condition: str) -> Attribute:
        name, source = _name(column.name), _name(self.table)
        known = _name(column.name + _KNOWN) if column.kind == "tags" else f"isNotNull({name})"
        totals = self._select(
            f"countIf({condition}), count(), countIf(({condition}) and {known}), countIf({known}) from {source}"
        )
        rows, all_rows, known_rows, known_of_all = (int(one[0].as_py()) for one in totals.columns)
        value = f"arrayJoin(arrayDistinct({name}))" if column.kind == "tags" else _number(column)
        is_wide = column.kind in ("integer", "real", "date", "time") and self._different(value) > MOST_VALUES
        shares = self._ranges(column, value, condition) if is_wide else self._values(column, value, condition)
        return Attribute(column.name, column.kind, rows, all_rows, known_rows, known_of_all, tuple(shares))

    def _different(self, value: str) -> int:
        return int(self._select(f"uniq({value}) from {_name(self.table)}").column(0)[0].as_py())

    def _values(self, column: Column, value: str, condition: str) -> Iterator[Share]:
        found = self._select(
            f"{value} as value, countIf({condition}) as rows, count() as all_rows from {_name(self.table)} "
            f"group by value having isNotNull(value) order by rows desc, value"
        )
        for one, rows, of_all in zip(*(column.to_pylist() for column in found.columns), strict=True):
            yield Share(shown(column.kind, one), rows, of_all)

    def _ranges(self, column: Column, value: str, condition: str) -> Iterator[Share]:
        levels = ", ".join(str(at / RANGES) for at in range(RANGES + 1))
        listed = self._select(f"quantilesExact({levels})({value}) from {_name(self.table)}").column(0)[0].as_py()
        edges = sorted(set(listed))
        bounds = list(pairwise(edges)) or [(edges[0], edges[0])]
        counts = []
        for at, (low, high) in enumerate(bounds):
            inside = f"{value} {'>=' if at == 0 else '>'} {_literal(low)} and {value} <= {_literal(high)}"
            counts += [f"countIf(({condition}) and {inside})", f"countIf({inside})"]
        found = [int(one[0].as_py()) for one in self._select(f"{', '.join(counts)} from {_name(self.table)}").columns]
        for at, (low, high) in enumerate(bounds):
            yield Share((shown(column.kind, low), shown(column.kind, high)), *found[2 * at : 2 * at + 2])

    def nearest(
        self, column: str, vector: Sequence[float] | Array, k: int, where: str = "true"
    ) -> list[tuple[Any, float]]:
        """(id, score) of the k rows of a clause whose vectors are nearest, compared one by one; scores as here.

        Raises ConfigError for a column that has no vectors, and a vector of another length.
        """
        known = {one.name: one for one in self.columns if one.kind == "vector"}
        if column not in known:
            raise ConfigError(f"{column!r} is no column of vectors", allowed=", ".join(known) or "(there is none)")
        wanted = np.asarray(vector, np.float32)
        if wanted.shape != (known[column].dim,) or not np.isfinite(wanted).all():
            seen = f"a vector of shape {wanted.shape} for {column}"
            raise ConfigError(seen, allowed=f"{known[column].dim} finite numbers")
        metric, numbers = known[column].metric, ", ".join(map(repr, map(float, wanted)))
        distance = f"{_DISTANCES[metric]}({_name(column)}, cast([{numbers}], 'Array(Float32)'))"
        found = self._select(
            f"{_name(self.id_column)} as id, {distance} as distance from {_name(self.table)} "
            f"where notEmpty({_name(column)}) and ({self.condition(where)}) order by distance, id limit {int(k)}"
        )
        base = 1.0 if metric == "cosine" else 0.0
        return [(id, base - distance) for id, distance in zip(*(one.to_pylist() for one in found.columns), strict=True)]

    # -- behaviour --------------------------------------------------------------------------------------------

    def _copy_events(self, collection: Collection) -> None:
        events = collection.behaviour.events
        given = pa.table({
            "user": pa.array(events.user_names.ids(events.users)),
            "item": pa.array(events.item_names.ids(events.items)),
            "day": pa.array(events.times), "weight": pa.array(events.weights.astype(np.float64)),
        })  # fmt: skip
        types = [
            f"{side} {'Int64' if names.is_whole else 'String'}"
            for side, names in (("user", events.user_names), ("item", events.item_names))
        ]
        _done(
            self.client,
            f"create table {_name(self.table + _EVENTS)} ({', '.join(types)}, day Float64, weight Float64) "
            "engine = MergeTree order by (user, day)",
        )
        self.client.insert_arrow(_name(self.table + _EVENTS), given)

    def together(self, items: Sequence[Any], k: int, where: str = "true") -> list[tuple[Any, float]]:
        """(id, score) of the k rows of a clause that go with some others: the cosine of their users, added up."""
        events, name = _name(self.table + _EVENTS), _name(self.id_column)
        given = ", ".join(_literal(one) for one in items)
        found = self._select(
            f"item as id, sum(both / sqrt(mine * theirs)) as score from (select a.item as one, b.item as item, "
            f"uniqExact(a.user) as both from (select distinct user, item from {events} where item in ({given})) as a "
            f"inner join (select distinct user, item from {events}) as b on a.user = b.user "
            f"where b.item not in ({given}) group by one, item) as pairs "
            f"inner join (select item as mine_item, uniqExact(user) as mine from {events} group by item) as m "
            f"on pairs.one = m.mine_item inner join (select item as their_item, uniqExact(user) as theirs "
            f"from {events} group by item) as t on pairs.item = t.their_item where id in (select {name} "
            f"from {_name(self.table)} where {self.condition(where)}) "
            f"group by id order by score desc, id limit {int(k)}"
        )
        return list(zip(*(one.to_pylist() for one in found.columns), strict=True))

    def hot(self, k: int, where: str = "true") -> list[tuple[Any, int]]:
        """(id, users) of the k rows of a clause that most users have done something with."""
        name = _name(self.id_column)
        found = self._select(
            f"item as id, uniqExact(user) as users from {_name(self.table + _EVENTS)} where id in (select {name} from "
            f"{_name(self.table)} where {self.condition(where)}) group by id order by users desc, id limit {int(k)}"
        )
        return list(zip(*(one.to_pylist() for one in found.columns), strict=True))

    def _select(self, what: str) -> pa.Table:
        return _asked(self.client, f"select {what}")


# -- what is asked of the server --------------------------------------------------------------------------


def condition_of(text: str, columns: Sequence[Column], id_column: str, audiences: Mapping[str, str]) -> str:
    """A where-clause as the server reads it. Raises ConfigError, with the place, for one that is wrong."""
    return _condition(parse(text, columns, id_column, audiences), columns, id_column)


def _condition(clause: Clause, columns: Sequence[Column], id_column: str) -> str:
    if isinstance(clause, Atom):
        return _atom(clause, columns[clause.column], id_column)
    if not clause.parts:
        return "true" if isinstance(clause, Every) else "false"
    joint = " and " if isinstance(clause, Every) else " or "
    return f"({joint.join(_condition(part, columns, id_column) for part in clause.parts)})"


def _atom(atom: Atom, column: Column, id_column: str) -> str:
    """A test that null neither passes nor fails, save for Known."""
    is_tags = column.kind == "tags"
    known = _name(column.name + _KNOWN) if is_tags else _known(column, id_column)
    if isinstance(atom.test, Known):
        return f"not {known}" if atom.negated else known
    test = _tags_test(column, atom.test) if is_tags else _test(column, atom.test)
    return f"({known} and {'not ' if atom.negated else ''}({test}))"


def _known(column: Column, id_column: str) -> str:
    if column.name == id_column:
        return "true"
    return f"notEmpty({_name(column.name)})" if column.kind == "vector" else f"isNotNull({_name(column.name)})"


def _test(column: Column, test: Test) -> str:
    value = _number(column)
    if isinstance(test, Range):
        parts = []
        if test.low is not None:
            parts.append(f"{value} {'>' if test.above else '>='} {_literal(test.low)}")
        if test.high is not None:
            parts.append(f"{value} {'<' if test.below else '<='} {_literal(test.high)}")
        return " and ".join(parts) or "true"
    if isinstance(test, Like):
        return f"{value} {'ilike' if test.ignore_case else 'like'} {_text(test.pattern)}"
    assert isinstance(test, (OneOf, AllOf))
    return " or ".join(f"{value} = {_literal(one)}" for one in test.values) or "false"


def _tags_test(column: Column, test: Test) -> str:
    name = _name(column.name)
    if isinstance(test, Like):
        return f"arrayExists(one -> one {'ilike' if test.ignore_case else 'like'} {_text(test.pattern)}, {name})"
    assert isinstance(test, (OneOf, AllOf))
    listed = f"[{', '.join(_literal(one) for one in test.values)}]"
    return f"{'hasAll' if isinstance(test, AllOf) else 'hasAny'}({name}, {listed})"


def _number(column: Column) -> str:
    """The column as clauses compare it: dates as days, times as microseconds, booleans as 0 and 1."""
    name = _name(column.name)
    kinds = {
        "date": "toInt32({})",
        "time": "toUnixTimestamp64Micro({})",
        "boolean": "toUInt8({})",
        "word": "toString({})",
    }
    return kinds.get(column.kind, "{}").format(name)


def _literal(value: Value) -> str:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return repr(value) if value == value and abs(value) != float("inf") else ("inf" if value > 0 else "-inf")
    if -(1 << 63) <= value < 1 << 64:
        return str(value)
    return f"toInt256('{value}')" if abs(value) < 1 << 255 else ("inf" if value > 0 else "-inf")


def _text(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\0", "\\0") + "'"


def _name(name: str) -> str:
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def _asked(client: Any, text: str) -> pa.Table:
    try:
        return client.query_arrow(text)
    except Exception as error:  # whatever the client raises
        raise _refused(error) from error


def _done(client: Any, text: str) -> None:
    try:
        client.command(text)
    except Exception as error:  # whatever the client raises
        raise _refused(error) from error


def _refused(error: Exception) -> DataError:
    return DataError(f"ClickHouse: {first_line(error)}", fix="look at the server's message; nothing was changed here")
